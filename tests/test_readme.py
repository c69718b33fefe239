"""What README.md says is so: its commands run, its flags, files and links exist, its Python prints what it claims.

The READMEs of tools/ and tests/ are held to the same for commands, flags, files and links.
"""

import re
import runpy
import shlex
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest

from vita_ref.generate import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "tools").rglob("*.md")), *sorted((ROOT / "tests").rglob("*.md"))]
PAGES.append(ROOT / "weights/demo/README.md")

GOLDEN_PAGE = ROOT / "tests/golden/README.md"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(text, language):
    """The fenced code blocks of a language."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in every if name == language]


def commands(text):
    """Every python command, in code blocks and in backticks, as words."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    for code in [*lines, *re.findall(r"`([^`\n]+)`", text)]:
        for part in code.split(" && "):
            words = shlex.split(part, comments=True) if part.startswith("python ") else []
            if len(words) > 1:
                yield words


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def help_text(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    return capsys.readouterr().out


def test_it_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_it_pins_no_number_of_lines_or_tests():
    assert not re.search(r"\.py` \(\d|\d[\d,.]* (lines|tests)\b", README)


@each_page
def test_every_link_and_picture_exists(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))) + re.findall(r'src="([^"]+)"', text_of(page))
    for target in targets:
        path, _, anchor = target.partition("#")
        if not path.startswith(("http://", "https://")):
            place = page.parent / path if path else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(text_of(place)), target


@each_page
def test_every_command_names_a_program_that_exists(page):
    for _, first, *rest in commands(text_of(page)):
        if first == "-m":
            assert find_spec(rest[0]), rest[0]
        elif first != "-c":
            assert (ROOT / first).is_file() or first.isupper(), first


@each_page
def test_every_flag_belongs_to_its_program(page, capsys):
    of_generate = help_text(capsys)
    for _, *words in commands(text_of(page)):
        program = words[1] if words[0] == "-m" else words[0]
        if program.startswith("tools/"):
            known = text_of(ROOT / program)
        elif program.startswith("tools."):
            known = "".join(text_of(file) for file in (ROOT / program.replace(".", "/")).glob("*.py"))
        elif program == "vita_ref.generate":
            known = of_generate
        else:
            continue
        for flag in {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"}:
            assert re.search(rf"{flag}\b(?!-)", known), f"{program} {flag}"


def test_every_flag_in_the_text_belongs_to_the_command_line(capsys):
    known = help_text(capsys)
    known += text_of(ROOT / "vita_ref/serve/__main__.py")
    for flag in re.findall(r"`(--[a-z-]+)", README):
        assert re.search(rf"{flag}\b(?!-)", known), flag


@each_page
def test_every_file_that_it_names_exists(page):
    for name in re.findall(r"`([\w/]+\.py)(?:::\w+)?`", text_of(page)):
        places = (ROOT, ROOT / "vita_ref", ROOT / "tools", ROOT / "tests", page.parent)
        assert any((place / name).is_file() for place in places), name


def test_the_page_of_the_golden_cases_names_each_case_and_a_test_that_reads_it():
    page = text_of(GOLDEN_PAGE)
    rows = re.findall(r"^\| (`.*`) \| .* \| `([\w/]+\.py)` \|$", page, re.MULTILINE)
    patterns = {pattern: test for names, test in rows for pattern in re.findall(r"`([\w*]+)`", names)}
    names = {file.stem for folder in ("cases", "tts/cases") for file in (GOLDEN_PAGE.parent / folder).iterdir()}
    for name in names - {"cases"}:
        [test] = {patterns[pattern] for pattern in patterns if fnmatch(name, pattern)}
        assert (ROOT / "tests" / test).is_file(), name


def test_it_names_every_file_and_sub_package_of_vita_ref():
    files = [file.name for file in (ROOT / "vita_ref").glob("*.py") if file.name != "__init__.py"]
    folders = [file.parent.name for file in (ROOT / "vita_ref").glob("*/__init__.py")]
    assert len(files) > 10 and len(folders) > 3
    for name in [*files, *(f"{folder}/" for folder in folders)]:
        assert f"`{name}`" in README, name


def test_it_shows_the_flow_before_the_details():
    """`tests/tools/test_draw_flow.py` draws the figure again."""
    assert README.index("tools/flow.svg") < README.index("--json")


def test_ci_installs_and_tests_as_it_says():
    ci = text_of(ROOT / ".ci" / "run")
    [command] = re.findall(r"^python3 -m venv .*pytest.*$", README, re.MULTILINE)
    for step in command.split(" && ")[2:]:
        assert step in ci


def test_its_first_command_prints_its_first_answer(capsys):
    picture = re.search(r"generate --image (\S+)$", README, re.MULTILINE).group(1)
    answer = blocks(README, "")[0]
    assert main(["--image", str(ROOT / picture)]) == 0
    assert capsys.readouterr().out == answer


def test_its_python_runs_and_gives_the_values_in_its_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    [code] = blocks(README, "python")
    checked, count = re.subn(r"^(.+?)  +# ('.*')$", r"assert (\1) == \2", code, flags=re.MULTILINE)
    assert count
    (tmp_path / "readme.py").write_text(checked, encoding="utf-8")
    runpy.run_path(str(tmp_path / "readme.py"))
