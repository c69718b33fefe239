"""What the README says about the code is true: line counts, commands, flags, the wheel's contents."""

import re
import subprocess
import sys
from pathlib import Path

from tools.mutants import MUTANTS, planted
from vita_ref.generate import main, parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_stands_in_the_reading_order_with_its_true_line_count():
    listed = dict(re.findall(r"`(\w+\.py)` \((\d+)\)", README))
    true = {f.name: len(f.read_text(encoding="utf-8").splitlines()) for f in (ROOT / "vita_ref").glob("*.py")}
    true.pop("__init__.py")
    assert {k: int(v) for k, v in listed.items()} == true
    assert f"all of them are {sum(true.values()):,} lines" in README


def test_the_first_forty_lines_hold_promise_commands_answer_and_order():
    head = "\n".join(README.splitlines()[:40])
    for part in ("from scratch in plain PyTorch", "python -m vita_ref.generate --image", "python -m pytest", ".jpg"):
        assert part in head


def test_so_many_bugs_are_planted_and_each_has_its_place():
    assert f"plants {len(MUTANTS)} one-line bugs" in README
    assert all(planted(mutant, ROOT) for mutant in MUTANTS)


def test_ci_runs_the_test_command_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    command = re.search(r"^python3 -m venv .*pytest$", README, re.MULTILINE).group()
    for step in command.split(" && ")[2:]:
        assert step.replace("pip install -q", "pip install") in ci.replace("pip install -q", "pip install")


def test_every_flag_and_tool_that_is_named_exists():
    flags = {flag for action in parser()._actions for flag in action.option_strings}
    commands = re.findall(r"vita_ref\.generate(.*)", README)
    used = {flag for command in commands for flag in re.findall(r" (--[a-z-]+)", command)}
    assert used <= flags
    for tool in re.findall(r"python (tools/\w+\.py)", README):
        assert (ROOT / tool).is_file(), tool


def test_the_command_of_the_readme_prints_the_answer_of_the_readme(capsys):
    picture = re.search(r"generate --image (\S+)$", README, re.MULTILINE).group(1)
    answer = re.search(r"^```\n(.+)\n```", README, re.MULTILINE).group(1)
    assert main(["--image", str(ROOT / picture)]) == 0
    assert capsys.readouterr().out.strip() == answer


def test_importing_the_package_needs_no_optional_library():
    code = (
        "import sys, torch; before = set(sys.modules); import vita_ref, vita_ref.generate; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} & "
        "{'PIL', 'tokenizers', 'soundfile', 'soxr', 'av', 'yaml', 'tqdm', 'matplotlib', 'transformers', 'torchvision'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
