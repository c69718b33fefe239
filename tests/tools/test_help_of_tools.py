"""Every tool answers --help at once: what it does and its flags, without doing anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERNAL = {"tools/bench/process.py", "tools/bench/__main__.py"}  # started by other programs
PROGRAMS = sorted(
    file.relative_to(ROOT).as_posix()
    for file in (ROOT / "tools").rglob("*.py")
    if '__name__ == "__main__"' in file.read_text(encoding="utf-8")
)
COMMANDS = [[name] for name in PROGRAMS if name not in INTERNAL] + [["-m", "tools.bench"], ["-m", "vita_ref.generate"]]


@pytest.fixture(scope="module")
def answers():
    """command -> (exit status, output) of its --help, from one process: each would import torch for seconds."""
    code = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, ".")
answers = []
for command in json.loads(sys.argv[1]):
    sys.argv = [command[-1], "--help"]
    out, status = io.StringIO(), "it went on"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            if command[0] == "-m":
                runpy.run_module(command[1], run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, command[0].rpartition("/")[0])
                runpy.run_path(command[0], run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:
            status = repr(error)
    answers.append((status, out.getvalue()))
print(json.dumps(answers))
"""
    import json

    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, json.dumps(COMMANDS)], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(zip(map(tuple, COMMANDS), json.loads(done.stdout)))


@pytest.mark.parametrize("command", map(tuple, COMMANDS), ids=lambda c: c[-1])
def test_every_tool_answers_help(answers, command):
    status, text = answers[command]
    assert status in (0, None), (status, text[-500:])
    assert text.startswith("usage: ") and "--help" in text and "Traceback" not in text
    assert len(re.sub(r"\s+", " ", text)) > 120, "it says nothing about what it does"


def test_every_tool_that_can_be_run_is_named_in_a_readme():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "tools").rglob("*.md"))
    for name in PROGRAMS:
        assert name in INTERNAL or Path(name).name in pages, name
