"""Who may import whom: the table of the house, and what has to be installed for what."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "vita_ref").rglob("*.py"))
READING = {  # the files a learner reads, each with the reading files it may import: downwards, without a cycle
    "config": set(),
    "masks": set(),
    "cache": set(),
    "sampling": set(),
    "image": set(),
    "fbank": set(),
    "splice": set(),
    "prompt": set(),
    "video": {"image"},
    "vision": {"config"},
    "audio": {"config"},
    "decoder": {"config", "masks", "cache"},
    "speech": {"cache", "config", "sampling"},
    "request": {"audio", "config", "fbank", "image", "prompt", "splice", "video"},
    "model": {
        *("audio", "cache", "config", "decoder", "masks", "prompt", "request", "sampling", "speech", "splice", "video"),
        "vision",
    },
    "generate": {"model", "prompt", "request", "sampling"},
    "__init__": {"cache", "config", "model", "splice"},
}
PACKAGES = {  # what the files of a sub-package may import, beside their own package
    "files": {"config"},
    "voice": {"config", "masks", "cache", "decoder", "sampling", "files"},
    "scale": {"config", "decoder", "files"},
    "analysis": {*READING, "files", "scale", "voice"} - {"generate", "__init__"},
}
MAY_USE = {  # the sub-packages that a reading file may import; a `*`: inside a function only, when it is called
    "model": {"files", "voice", "scale*"},
    "speech": {"files", "voice"},
    "generate": {"analysis*", "scale*", "files"},
}
AT_THE_TOP = {"torch", "numpy", "safetensors"}
WHERE_USED = {"sentencepiece", "tokenizers", "PIL", "soundfile", "soxr", "av", "yaml", "tqdm", "jinja2"}
PACKAGE = {"PIL": "Pillow", "yaml": "pyyaml"}


def imported(tree):
    """The modules that a piece of code imports: (ours, those of others)."""
    ours, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            ours |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in names:
                first, _, rest = name.partition(".")
                if first == "vita_ref":
                    ours |= {rest.split(".")[0]} if rest else {a.name for a in node.names}
                else:
                    others.add(first)
    return ours, others - set(sys.stdlib_module_names)


def at_the_top(tree):
    """The statements that run when a file is imported: functions left out, classes and conditions looked into."""
    waiting, found = list(tree.body), []
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        found += [node] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        waiting += ast.iter_child_nodes(node)
    return ast.Module(found, [])


def parsed(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def allowed(file):
    """What a file of the package may import: (anywhere in it, inside functions only)."""
    if file.parent.name in PACKAGES:
        return PACKAGES[file.parent.name] | {file.parent.name}, set()
    assert file.stem in READING, f"{file.name} has no row in the table"
    packages = MAY_USE.get(file.stem, set())
    late = {name.removesuffix("*") for name in packages if name.endswith("*")}
    return READING[file.stem] | {name for name in packages if not name.endswith("*")}, late


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_a_file_imports_only_what_the_table_allows(file):
    anywhere, in_functions = allowed(file)
    depth = len(file.relative_to(ROOT / "vita_ref").parts)
    assert imported(parsed(file), depth)[0] <= anywhere | in_functions
    assert imported(at_the_top(parsed(file)), depth)[0] <= anywhere


def test_the_reading_files_import_each_other_without_a_cycle():
    done, left = set(), dict(READING)
    while left:
        free = [name for name, needs in left.items() if needs <= done]
        assert free, f"a cycle among {sorted(left)}"
        done.update(free)
        left = {name: needs for name, needs in left.items() if name not in done}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_other_libraries_are_few_and_all_but_three_wait_until_they_are_used(file):
    tree = parsed(file)
    assert imported(at_the_top(tree))[1] <= AT_THE_TOP
    assert imported(tree)[1] <= AT_THE_TOP | WHERE_USED


def test_whatever_is_imported_is_declared_in_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for text in lists for line in text.split("\n") if line}
    used = set().union(*(imported(parsed(file))[1] for file in FILES))
    assert {PACKAGE.get(name, name).lower() for name in used} <= declared


def test_the_reader_of_imports_sees_them_all():
    code = """
import os, torch.nn
from . import cache
from .config import X
from vita_ref.image import Y
class A:
    import av
    def f():
        from PIL import Image
        from vita_ref import video
"""
    tree = ast.parse(code)
    assert imported(tree) == ({"cache", "config", "image", "video"}, {"torch", "av", "PIL"})
    assert imported(at_the_top(tree)) == ({"cache", "config", "image"}, {"torch", "av"})
