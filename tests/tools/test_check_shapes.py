"""Every shape comment is executed; and a comment that is wrong, or that nothing executes, is seen."""

import contextlib
import importlib.util
import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from tools import check_shapes as claims
from tools.check_shapes import Claim, Watch, check, main, read

PLANTED = {  # a line of the code: the comment put there, and what has to be said of it
    'self.register_buffer("mean", torch.zeros(config.num_mel_bins))': ("# [M]", "never executed", "no assignment"),
    "samples = _resample(samples, sample_rate, target_rate)": ("# [W]", "never executed", ""),
    "k = self.k_proj(x).view(": ("# [B, H, S, K]", "wrong", "expected H = 8 at place 1, got [3, 4, 7, 10]"),
    "wide = wide * torch.rsqrt": ("# [S, B, D]", "wrong", "expected S = 7 at place 0, got [3, 7, 24]"),
    "guesses = logits[:, :-1]": ("# [B*S, V]", "wrong", "expected B*S = 21 at place 0, got [18, 61]"),
    "out = F.scaled_dot_product_attention(*qkv)": ("# [N, H, K]", "wrong", "expected 3 dimensions, got [5, 3, 17, 6]"),
    "qkv = self.qkv(x).view(": ("# [3, N, H, P", "ok", ""),  # no bracket closes it, so it is no claim
    "hidden = F.silu(self.gate_proj(x))": ("# [I, J, Q]", "vacuous", ""),
    "bank = _mel_bank(num_mel_bins": ("# [Z, M+]", "wrong", "it cannot be read"),
    "size, shift = int(target_rate": ("# [R]", "wrong", "expected a tensor, got int"),
}


@pytest.fixture(scope="module")
def report():
    tracer, state, written = sys.gettrace(), torch.get_rng_state(), io.StringIO()
    with contextlib.redirect_stdout(written):
        status = main(["--json"])
    assert sys.gettrace() is tracer and torch.get_rng_state().equal(state)  # nothing is left behind
    return json.loads(written.getvalue()) | {"status": status}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A copy of the package with other comments, and the claims found there by the quickest of the runs."""
    folder = tmp_path_factory.mktemp("copy")
    for file in claims.FOLDER.glob("*.py"):
        lines = file.read_text(encoding="utf-8").split("\n")
        for i, line in enumerate(lines):
            for start, (comment, *_) in PLANTED.items():
                if line.strip().startswith(start):
                    lines[i] = f"{line.partition('  # ')[0]}  {comment}"
        (folder / file.name).write_text("\n".join(lines), encoding="utf-8")
    found = check(folder, only="small")
    text = {file.stem: file.read_text(encoding="utf-8").split("\n") for file in folder.glob("*.py")}
    return [(text[c.file][c.line - 1].strip(), c) for c in found]


def test_every_shape_comment_is_executed_and_true(report):
    bad = [c for c in report["claims"] if c["verdict"] in ("wrong", "never executed")]
    assert not bad and report["status"] == 0
    assert len(report["claims"]) == report["files"]["all"]["claims"] > 150


def test_the_parts_of_the_model_are_held_at_full_size(report):
    reading = ("cache", "decoder", "fbank", "image", "sampling", "speech", "splice", "vision")
    for file in (*reading, "scale.int8", "voice.decoder", "voice.vocoder"):
        assert report["files"][file]["full size"] == report["files"][file]["claims"] > 0
    runs = {run for c in report["claims"] for run in c["runs"]}
    assert runs == {"vita-1.5", "documented", "small", "speech"}


@pytest.mark.parametrize("start", PLANTED)
def test_a_planted_comment_gets_its_verdict(planted, start):
    comment, verdict, why = PLANTED[start]
    here = [c for line, c in planted if line.startswith(start)]
    if comment == "# [3, N, H, P":
        assert here == []
    else:
        assert [c.verdict for c in here] == [verdict] and why in here[0].why


def test_a_wrong_comment_fails_the_command(planted, monkeypatch, capsys):
    monkeypatch.setattr(claims, "check", lambda: [c for _, c in planted if c.verdict == "wrong"])
    assert main([]) == 1
    assert "# [B, H, S, K] wrong: expected H = 8 at place 1" in capsys.readouterr().out
    monkeypatch.setattr(claims, "check", lambda: [c for _, c in planted if c.verdict == "ok"])
    assert main([]) == 0


def test_no_two_sizes_of_the_small_model_are_equal():
    for file, sizes in claims.letters(claims.SMALL).items():
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
        ("R", [6], "expected one R in a call, it is 6 and 9"),
        ("", [], None),
        ("", [1], "expected 0 dimensions"),
        ("V_i, U+1", [4, 99], None),
    ],
)
def test_a_shape_is_held_against_config_locals_and_itself(text, shape, fault):
    claim = Claim("vision", 1, text, [s for s in text.split(", ") if s])
    frame = SimpleNamespace(f_locals={"b": 3, "s": 4, "side": 7, "factor": 9}, f_code=SimpleNamespace(co_name="f"))
    watch = Watch([claim])
    watch.letters = {"vision": {"D": 10, "R": 6}}
    assert watch.unify(claim, frame, shape, {}) == fault


TOY = '''
import torch

def several(n):
    a, b = torch.zeros(n, 2), torch.zeros(n, 2)  # each [N, 2]
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


def test_statements_of_every_kind_are_looked_at_once_they_are_done(tmp_path, monkeypatch):
    file = tmp_path / "toy.py"
    file.write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    spec = importlib.util.spec_from_file_location("toy", file)
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    found, before = list(read(file, tmp_path)), sys.gettrace()
    sys.settrace(Watch(found))
    try:
        toy.several(3)
        list(toy.steps(3))
    finally:
        sys.settrace(before)
    assert [(c.text, c.verdict) for c in found] == [
        ("# each [N, 2]", "ok"),
        ("# [N, P_i]", "ok"),
        ("# [N, 4]", "never executed"),  # it raised
        ("# [N]", "ok"),  # behind a statement of three lines
        ("# [N, 5]", "wrong"),
        ("# [1, N]", "ok"),
        ("# [A, 1]", "ok"),
        ("# [A, 1]", "wrong"),  # the letter means one number, in a generator too
    ]
