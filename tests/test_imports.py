"""The layout of the package: which file may import which, which libraries it needs and when, how long a file may be.

The names in the tables are the files and folders directly below `vita_ref/`.
"""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vita_ref"
FILES = sorted(PACKAGE.rglob("*.py"))

READING = {  # the files that a learner reads: each imports files further up in this table only
    "fields": set(),
    "config": {"fields"},
    "masks": set(),
    "cache": set(),
    "decoder": {"cache", "masks"},
    "sampling": set(),
    "image": set(),
    "vision": set(),
    "video": {"image"},
    "fbank": set(),
    "audio": set(),
    "splice": set(),
    "prompt": set(),
    "inputs": {"audio", "cache", "masks", "splice", "video"},
    "request": {"audio", "fbank", "image", "inputs", "prompt", "splice", "video"},
    "answer": {"inputs", "prompt"},
    "stream": set(),
    "speech": {"sampling"},
    "loading": {"speech"},
    "saving": {"config", "loading"},
    "model": {"answer", "audio", "decoder", "inputs", "masks", "prompt", "request", "sampling", "stream", "vision"},
    "chat": {"answer", "inputs", "prompt", "request", "sampling", "stream"},
    "generate": {"answer", "model"},
    "__init__": {"cache", "config", "model", "splice"},
}
SUB_PACKAGES = {  # what a learner skips: the files and packages that each of them imports
    "files": {"config"},
    "checks": {"cache", "files"},
    "voice": {"cache", "decoder", "masks"},
    "scale": {"decoder", "files"},
    "analysis": {
        *("audio", "checks", "config", "decoder", "fbank", "files", "image", "inputs", "loading", "masks", "model", "prompt"),
        *("request", "sampling", "scale", "speech", "splice", "video"),
    },
    "dialogue": {"checks", "files", "prompt", "request"},
    "serve": {"analysis", "answer", "chat", "cli", "dialogue", "files", "inputs", "loading", "model", "sampling"},
    "cli": {"analysis", "chat", "checks", "files", "loading", "model", "request", "sampling", "scale", "voice"},
}
USES = {  # the sub-packages that a reading file imports at its top
    "answer": {"files"},
    "chat": {"checks", "dialogue", "files"},
    "fbank": {"files"},
    "generate": {"cli"},
    "image": {"files"},
    "inputs": {"checks", "files"},
    "loading": {"checks", "files"},
    "model": {"checks"},
    "request": {"checks", "files"},
    "saving": {"files"},
    "sampling": {"files"},
    "speech": {"files", "voice"},
    "video": {"files"},
}
USES_WHEN_CALLED = {  # what is imported inside a function, so that a request that does not need it does not load it
    "fields": {"files"},
    "loading": {"scale"},
    "chat": {"analysis", "cli"},
    "model": {"analysis", "chat", "loading", "saving", "voice"},
}
AT_THE_TOP = {"torch", "numpy", "safetensors"}
WHEN_CALLED = {"sentencepiece", "tokenizers", "PIL", "soundfile", "soxr", "av", "yaml", "tqdm", "jinja2"}
OF_SUB_PACKAGES = {"serve": {"starlette", "uvicorn"}}  # at the top of files that only its command imports
DISTRIBUTION = {"PIL": "Pillow", "yaml": "pyyaml"}  # where it has another name than the module


def modules(tree, folder):
    """The full names of the modules that a piece of code imports; it stands in this folder of the project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(tree, *folder):
    """The files and folders directly below `vita_ref/` that it imports."""
    return {name.split(".")[1] for name in modules(tree, ("vita_ref", *folder)) if name.startswith("vita_ref.")}


def libraries(tree):
    """The libraries of others that it imports, without Python's own."""
    anywhere = ("vita_ref", "a", "b")  # a relative import stays inside the package
    return {name.split(".")[0] for name in modules(tree, anywhere)} - {"vita_ref", *sys.stdlib_module_names}


def at_the_top(tree):
    """The imports that run when the file is imported: those in classes and conditions, not those in functions."""
    pending, imports = list(tree.body), []
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(node)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += ast.iter_child_nodes(node)
    return ast.Module(imports, [])


def parsed(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def name_of(file):
    return file.relative_to(PACKAGE).as_posix()


each_file = pytest.mark.parametrize("file", FILES, ids=name_of)


@pytest.mark.parametrize("name", READING)
def test_a_reading_file_imports_what_the_tables_say(name):
    tree = parsed(PACKAGE / f"{name}.py")
    top = ours(at_the_top(tree))
    assert top == READING[name] | USES.get(name, set())
    assert ours(tree) - top == USES_WHEN_CALLED.get(name, set())


@pytest.mark.parametrize("folder", SUB_PACKAGES)
def test_a_sub_package_imports_what_the_table_says(folder):
    files = (PACKAGE / folder).glob("*.py")
    assert set().union(*(ours(parsed(file), folder) for file in files)) - {folder} == SUB_PACKAGES[folder]


def test_the_tables_have_every_file_and_sub_package():
    assert {file.stem for file in PACKAGE.glob("*.py")} == set(READING)
    assert {file.parent.name for file in FILES} - {PACKAGE.name} == set(SUB_PACKAGES)


def test_the_imports_have_no_cycle():
    """Each reading file and sub-package can be loaded after those that it imports at its top."""
    needs = {name: READING[name] | USES.get(name, set()) for name in READING} | SUB_PACKAGES
    loaded = set()
    while len(loaded) < len(needs):
        next_ones = {name for name in needs if name not in loaded and needs[name] <= loaded}
        assert next_ones, f"a cycle among {sorted(set(needs) - loaded)}"
        loaded |= next_ones


def test_nothing_of_the_reading_path_imports_fast_products_or_an_analysis_at_its_top():
    for name in READING:
        assert not USES.get(name, set()) & {"scale", "analysis"}, name


def test_a_reading_file_imports_only_files_further_up_in_the_table():
    order = list(READING)
    for name, imported in READING.items():
        assert all(order.index(other) < order.index(name) for other in imported), name


@each_file
def test_a_library_that_not_every_request_needs_is_imported_when_it_is_called(file):
    tree = parsed(file)
    own = OF_SUB_PACKAGES.get(file.parent.name, set())
    assert libraries(at_the_top(tree)) <= AT_THE_TOP | own
    assert libraries(tree) <= AT_THE_TOP | WHEN_CALLED | own


def test_importing_the_package_and_the_command_line_loads_no_such_library():
    code = """
import sys, torch
before = {name.split(".")[0] for name in sys.modules}
import vita_ref, vita_ref.generate
print(*({name.split(".")[0] for name in sys.modules} - before))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "vita_ref" in loaded
    assert not loaded & {*WHEN_CALLED, "matplotlib", "transformers", "torchvision"}


@each_file
def test_no_file_is_longer_than_350_lines(file):
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= 350


def setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def test_setup_cfg_names_every_sub_package():
    folders = {file.parent.relative_to(ROOT) for file in FILES}
    named = {line for line in setup_cfg()["options"]["packages"].split() if not line.startswith("vita_ref.weights")}
    assert {".".join(folder.parts) for folder in folders} == named
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_setup_cfg_declares_every_library():
    setup = setup_cfg()
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for text in lists for line in text.split("\n") if line}
    used = set().union(*(libraries(parsed(file)) for file in FILES))
    assert used >= {"torch", "PIL", "av"}
    assert {DISTRIBUTION.get(name, name).lower() for name in used} <= declared


CODE = """
import os, torch.nn
from . import y, z
from .config import X
from ..cache import KVCache
from vita_ref.image import Y
class A:
    import av
    def f():
        from PIL import Image
        from vita_ref import video
"""


def test_relative_imports_are_resolved_from_the_folder_of_the_file():
    assert ours(ast.parse("from .y import f\nfrom . import z")) == {"y", "z"}
    assert ours(ast.parse("from .y import f\nfrom . import z"), "files") == {"files"}
    assert ours(ast.parse("from ..y import f\nfrom .. import z"), "files") == {"y", "z"}
    assert ours(ast.parse(CODE), "files") == {"files", "cache", "image", "video"}


def test_imports_in_functions_are_told_from_those_at_the_top():
    tree = ast.parse(CODE)
    assert ours(at_the_top(tree), "files") == {"files", "cache", "image"}
    assert libraries(tree) == {"torch", "av", "PIL"}
    assert libraries(at_the_top(tree)) == {"torch", "av"}
