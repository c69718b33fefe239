"""Every shape comment of vita_ref is executed, true, and able to fail; the checker finds comments that are not."""

import contextlib
import importlib.util
import io
import itertools
import json
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tools import check_shapes
from tools.check_shapes import Claim, ShapeTracer, check, main, read_claims

PLANTED = {  # file, start of a line: the comment that is put there, its verdict, a part of the reason
    ("audio", 'self.register_buffer("mean"'): ("# [M]", "never executed", "no line of an assignment"),
    ("fbank", "samples = _resample(samples"): ("# [W]", "never executed", ""),
    ("decoder", "k = self.k_proj(x).view("): ("# [B, H, S, K]", "wrong", "expected H = 8 at place 1, got [3, 4, 7, 10]"),
    ("decoder", "x = x + self.mlp("): ("# [S, B, D]", "wrong", "expected S = 7 at place 0, got [3, 7, 24]"),
    ("decoder", "predictions = logits[:, :-1]"): ("# [B*S, V]", "wrong", "expected B*S = 21 at place 0, got [18, 61]"),
    ("vision", "q, k, v = qkv.permute("): ("# each [N, H, K]", "wrong", "expected 3 dimensions, got [5, 3, 17, 6]"),
    ("vision", "qkv = self.qkv(x).unflatten("): ("# [3, N, H, P", None, "no bracket closes it, so it is no claim"),
    ("decoder", "hidden = F.silu(self.gate_proj(x))"): ("# [I, J, Q]", "vacuous", ""),
    ("fbank", "bank = _mel_bank(num_mel_bins"): ("# [Z, M+]", "wrong", "it cannot be read"),
    ("fbank", "size, shift = "): ("# [R]", "wrong", "expected a tensor, got int"),
    ("files/cmvn", "mean = sums / count"): ("# [M, M]", "wrong", "expected 2 dimensions, got [27]"),
}


@pytest.fixture(scope="module")
def report():
    """What the program prints as JSON, and its exit status."""
    tracer, state, printed = sys.gettrace(), torch.get_rng_state(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["--json"])
    assert sys.gettrace() is tracer and torch.get_rng_state().equal(state)  # it restores both
    return json.loads(printed.getvalue()) | {"status": status}


def plant(text, file):
    """The text of a file with the planted comments in it, each exactly once."""
    lines = text.split("\n")
    for name, start in PLANTED:
        if name == file:
            [i] = [i for i, line in enumerate(lines) if line.strip().startswith(start)]
            lines[i] = f"{lines[i].partition('  # ')[0]}  {PLANTED[name, start][0]}"
    return "\n".join(lines)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The claims in a copy of the package with planted comments, after the quickest runs: (file, line's text) -> claim."""
    copy = tmp_path_factory.mktemp("copy")
    for path in check_shapes.FOLDER.rglob("*.py"):
        target = copy / path.relative_to(check_shapes.FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        file = check_shapes.file_key(path, check_shapes.FOLDER)
        target.write_text(plant(path.read_text(encoding="utf-8"), file), encoding="utf-8")
    small = itertools.islice((run for run in check_shapes.all_runs() if run[0] == "small"), 4)
    with mock.patch.object(check_shapes, "all_runs", lambda: small):
        claims = check(copy)
    lines = {c: (copy / f"{c.file}.py").read_text(encoding="utf-8").split("\n")[c.line - 1].strip() for c in claims}
    return {(c.file, lines[c]): c for c in claims}


def test_every_shape_comment_is_executed_and_true_and_could_have_failed(report):
    assert [c for c in report["claims"] if c["verdict"] != "ok"] == [] and report["status"] == 0


def test_all_files_with_shape_comments_are_checked_also_those_in_sub_packages(report):
    commented = {
        path.relative_to(check_shapes.FOLDER).with_suffix("").as_posix()
        for path in check_shapes.FOLDER.rglob("*.py")
        if any("  # [" in line for line in path.read_text(encoding="utf-8").splitlines())
    }
    assert commented <= set(report["files"]) and any("/" in file for file in commented)
    assert report["files"]["all"]["claims"] == len(report["claims"]) > 150


@pytest.mark.parametrize("file", ["cache", "decoder", "masks", "vision", "fbank", "image", "sampling", "splice", "voice/vocoder"])
def test_all_claims_of_the_parts_of_the_model_are_run_at_full_size(report, file):
    assert report["files"][file]["full size"] == report["files"][file]["claims"] > 0


def test_all_models_are_run(report):
    assert {run for c in report["claims"] for run in c["runs"]} == {"vita-1.5", "documented", "small", "speech"}


@pytest.mark.parametrize("file, start", PLANTED)
def test_a_planted_comment_gets_its_verdict(planted, file, start):
    comment, verdict, why = PLANTED[file, start]
    claims = [c for (name, line), c in planted.items() if name == file and line.startswith(start)]
    if verdict is None:
        assert claims == [], why
    else:
        assert [(c.text, c.verdict) for c in claims] == [(comment, verdict)]
        assert any(why in reason for reason in [claims[0].why, *claims[0].faults])  # other runs find other faults


@pytest.mark.parametrize("verdict", ["wrong", "never executed", "vacuous"])
def test_the_program_fails_on_every_verdict_but_ok(planted, verdict, monkeypatch, capsys):
    bad = [c for c in planted.values() if c.verdict == verdict]
    monkeypatch.setattr(check_shapes, "check", lambda: bad[:1])
    assert main([]) == 1
    assert f"{bad[0].file}.py:{bad[0].line}: {bad[0].text} {verdict}" in capsys.readouterr().out


def test_the_program_succeeds_on_claims_that_hold(planted, monkeypatch):
    good = [c for c in planted.values() if c.verdict == "ok"]
    monkeypatch.setattr(check_shapes, "check", lambda: good)
    assert good and main([]) == 0


def test_no_two_sizes_of_the_small_model_are_equal():
    for file, sizes in check_shapes.letters(check_shapes.SMALL).items():
        assert len(set(sizes.values())) == len(sizes), file


@pytest.mark.parametrize(
    "text, shape, fault",
    [
        ("B, 2*S", [3, 8], None),
        ("B, 2*S", [4, 8], "expected B = 3 at place 0"),
        ("B, 2*S", [3, 9], "expected 2*S = 8 at place 1"),
        ("side, D/2", [7, 5], None),
        ("side, D/2", [6, 5], "expected side = 7 at place 0"),
        ("Q, Q", [2, 2], None),
        ("Q, Q", [2, 5], "expected Q = 2 at place 1"),
        ("factor", [6], "expected one factor in a call, it is 6 and 9"),
        ("", [], None),
        ("", [1], "expected 0 dimensions"),
        ("V_i, U+1", [4, 99], None),
    ],
)
def test_a_shape_is_compared_with_the_config_with_locals_and_with_itself(text, shape, fault):
    claim = Claim("vision", 1, f"# [{text}]", [size for size in text.split(", ") if size])
    frame = SimpleNamespace(f_locals={"b": 3, "s": 4, "side": 7, "factor": 9}, f_code=SimpleNamespace(co_name="f"))
    tracer = ShapeTracer([claim])
    tracer.letters = {"vision": {"D": 10, "factor": 6}}
    assert tracer.compare_shape(claim, frame, shape, {}) == fault


TOY = '''
import torch

def several(n):
    a, b = torch.zeros(n, 2), torch.zeros(n, 2)  # each [N, 2]
    c, d = torch.zeros(n, 2), torch.zeros(n, 3)  # each [N, 2]
    c, d = torch.zeros(n, 2), None  # [N, 2]: of the first
    for i in range(3):
        part = torch.zeros(n, i)  # [N, P_i]
    try:
        a = torch.zeros(n, 4) @ torch.zeros(3)  # [N, 4]
    except RuntimeError:
        pass
    long = torch.zeros(
        n, 5
    ).sum(1)  # [N]
    c = torch.zeros(n)  # [N, 5]
    with torch.no_grad():
        return long[None]  # [1, N]

def steps(n):
    x = torch.zeros(n, 1)  # [A, 1]
    yield x
    x = torch.zeros(n + 1, 1)  # [A, 1]
'''


def test_statements_of_every_kind_are_checked_once_they_have_ended(tmp_path, monkeypatch):
    file = tmp_path / "inner" / "toy.py"
    file.parent.mkdir()
    file.write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(check_shapes, "FOLDER", tmp_path)
    spec = importlib.util.spec_from_file_location("toy", file)
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    claims, before = list(read_claims(file, tmp_path)), sys.gettrace()
    sys.settrace(ShapeTracer(claims))
    try:
        toy.several(3)
        list(toy.steps(3))
    finally:
        sys.settrace(before)
    assert {c.file for c in claims} == {"inner/toy"}
    assert [(c.text, c.verdict) for c in claims] == [
        ("# each [N, 2]", "ok"),
        ("# each [N, 2]", "wrong"),  # the second of them
        ("# [N, 2]", "ok"),
        ("# [N, P_i]", "ok"),
        ("# [N, 4]", "never executed"),  # it raised
        ("# [N]", "ok"),  # on the last of three lines
        ("# [N, 5]", "wrong"),
        ("# [1, N]", "ok"),
        ("# [A, 1]", "ok"),
        ("# [A, 1]", "wrong"),  # the letter is one number, in a generator too
    ]
