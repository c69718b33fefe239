"""Types of the public interface: a user's script passes a type checker, wrong uses do not, and the stub of `Vita` is true."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vita_ref
from vita_ref import KVCache, Vita, splice
from vita_ref.config import VitaConfig
from vita_ref.fbank import load_sound, log_mel
from vita_ref.files.tokenizer import Tokenizer
from vita_ref.image import load_square, load_tiles, tile_grid
from vita_ref.prompt import render
from vita_ref.speech import Speech
from vita_ref.splice import shared_position_ids
from vita_ref.video import frame_indices, load_frames, slow_fast

ROOT = Path(__file__).parents[1]
STUB = ast.parse((ROOT / "vita_ref/model.pyi").read_text(encoding="utf-8"))
[CLASS] = [node for node in STUB.body if isinstance(node, ast.ClassDef)]
METHODS = [node for node in CLASS.body if isinstance(node, ast.FunctionDef)]

SCRIPT = """
import torch
from vita_ref import KVCache, Vita, VitaConfig, __version__, splice
from vita_ref.audio import audio_token_count
from vita_ref.fbank import log_mel
from vita_ref.image import load_tiles, tile_grid
from vita_ref.video import frame_indices

vita = Vita.from_pretrained("weights/demo", dtype=torch.float32)
vita.respond("What color is the star?", images=["weights/demo/example.jpg"]).upper()
vita.respond("Why?", details=True).finish_reason.upper()
ids = torch.tensor([vita.tokenizer("Hello!").input_ids])
out = vita(ids, output_hidden_states=True)
more = vita(ids, cache=out.cache)
new = vita.generate(ids, max_new_tokens=3)
for piece in vita.stream("Hi"):
    print(piece.text.upper(), piece.token_ids)
chat = vita.chat()
chat.stream("Hi").finish().text.upper()
waveform, rate = vita.speak("Hello")
columns, rows = tile_grid(640, 480)
width = vita.config.decoder.hidden_size + VitaConfig.preset("demo").max_tiles
spliced = splice(ids, vita.embed, image_token=-200, audio_token=-500)
cache = KVCache(1, 1, 2, None, 4)
reveal_type(vita)  # vita_ref.model.Vita
reveal_type(out.logits)  # torch._tensor.Tensor
reveal_type(new)  # torch._tensor.Tensor
reveal_type(vita.respond("Hi"))  # str
reveal_type(vita.respond("Hi", details=True))  # vita_ref.stream.Result
reveal_type(vita.respond_batch(["Hi"]))  # list[str]
reveal_type(vita.tokenizer.encode("Hi"))  # list[int]
reveal_type(waveform)  # torch._tensor.Tensor
reveal_type(columns)  # int
reveal_type(spliced.lengths)  # torch._tensor.Tensor
reveal_type(cache.nbytes)  # int
reveal_type(audio_token_count(998))  # int
reveal_type(frame_indices(30, 30))  # list[int]
reveal_type(log_mel(waveform, rate))  # torch._tensor.Tensor
reveal_type(load_tiles("x.png").shape[0])  # int
reveal_type(__version__)  # str
"""
WRONG = """
import torch
from vita_ref import KVCache, Vita, splice
from vita_ref.image import tile_grid

vita = Vita.from_pretrained(["weights"])
vita.respond(3)
vita.generate(torch.zeros(1, 1))
vita.respond("Hi").finish_reason
vita(torch.zeros(1, 1), image=None)
splice(torch.zeros(1, 1), vita.embed)
tile_grid("640", 480)
KVCache(1, 1)
vita.config.decoder.width
"""


def checked(tmp_path, text):
    """The messages of mypy about a script, by line."""
    (tmp_path / "script.py").write_text(text)
    flags = ["--python-executable", sys.executable, "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *flags, str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"script\.py:(\d+): (\w+): (.*)", done.stdout)
    assert done.returncode in (0, 1) and not re.search(r"^(?!.*script\.py).*: error:", done.stdout, re.MULTILINE), done.stdout + done.stderr
    return [(int(line), kind, message) for line, kind, message in found]


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy: pip install mypy (extra dev)")
def test_a_users_script_passes_mypy_and_the_types_are_those_expected(tmp_path):
    found = checked(tmp_path, SCRIPT)
    assert [row for row in found if row[1] == "error"] == []
    shown = {line: re.sub(r"builtins\.", "", re.findall(r'"(.*)"', message)[0]) for line, kind, message in found if kind == "note"}
    lines = SCRIPT.splitlines()
    expected = {i: line.partition("  # ")[2] for i, line in enumerate(lines, 1) if line.startswith("reveal_type")}
    assert {line: kind.replace("torch._C.TensorBase", "torch._tensor.Tensor") for line, kind in shown.items()} == expected


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy: pip install mypy (extra dev)")
def test_wrong_uses_are_errors_of_mypy(tmp_path):
    lines = WRONG.splitlines()
    wrong = {i for i, line in enumerate(lines, 1) if i > 5 and line}
    assert {line for line, kind, _ in checked(tmp_path, WRONG) if kind == "error"} == wrong


# ---- without a type checker


def signature(node):
    """Names of the parameters of a stub's function, in order, with their defaults; keyword-only ones and ** behind."""
    a = node.args
    positional = [arg.arg for arg in a.args]
    defaults = dict(zip(positional[::-1], [ast.literal_eval(d) for d in a.defaults][::-1]))
    defaults |= {arg.arg: ast.literal_eval(d) for arg, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
    return positional, [arg.arg for arg in a.kwonlyargs], a.kwarg and a.kwarg.arg, defaults


def run_time_signature(function):
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    [*rest] = [p.name for p in parameters if p.kind == p.VAR_KEYWORD]
    return positional, keywords, rest[0] if rest else None, {p.name: p.default for p in parameters if p.default is not p.empty}


def is_overload(node):
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


@pytest.mark.parametrize("node", [m for m in METHODS if m.name != "__call__"], ids=lambda m: f"{m.name}-{m.lineno}")
def test_the_stub_has_the_signature_of_the_method(node):
    own = inspect.getattr_static(Vita, node.name)
    if isinstance(own, property):
        assert any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        return
    function = own.__func__ if isinstance(own, classmethod) else own
    stub, real = signature(node), run_time_signature(function)
    assert stub[:3] == real[:3]
    if not is_overload(node):
        assert stub[3] == real[3]


def test_the_call_of_the_stub_has_the_arguments_of_forward_and_of_a_batch():
    from dataclasses import fields

    from vita_ref.inputs import Batch

    [call] = [m for m in METHODS if m.name == "__call__"]
    positional, keywords, _, defaults = signature(call)
    real = run_time_signature(Vita.forward)
    assert positional == real[0]
    assert set(keywords) == {*real[1], *(f.name for f in fields(Batch))} - {"input_ids"}
    assert {name: defaults[name] for name in real[3]} == real[3]


def test_every_public_method_is_in_the_stub_and_has_types():
    public = {name for name, value in vars(Vita).items() if not name.startswith("_") and (callable(value) or isinstance(value, (property, classmethod)))}
    assert public <= {m.name for m in METHODS}
    for node in METHODS:
        assert node.returns is not None and all(a.annotation for a in [*node.args.args[1:], *node.args.kwonlyargs]), node.name


PUBLIC = [
    *(splice, shared_position_ids, load_sound, log_mel, load_square, load_tiles, tile_grid, frame_indices, load_frames),
    *(slow_fast, render, VitaConfig.preset, Speech.from_pretrained, Speech.tokens, Speech.vocode, Speech.stream),
    *(KVCache.__init__, KVCache.write, KVCache.advance, KVCache.truncate, Tokenizer.encode, Tokenizer.decode, Tokenizer.id_of),
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__qualname__)
def test_a_public_function_has_types(function):
    found = inspect.signature(function)
    for p in found.parameters.values():
        assert p.annotation is not p.empty or p.name in ("self", "cls"), p.name
    assert found.return_annotation is not found.empty or function.__name__ == "__init__"


def test_the_package_says_that_it_has_types_and_which_version_it_is():
    assert (ROOT / "vita_ref/py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", vita_ref.__version__)
    changelog = (ROOT / "tools/README.md").read_text(encoding="utf-8")
    assert f"### {vita_ref.__version__}" in changelog
