"""Planted bugs and quirks: each bug has its place in the code, each quirk a correction and a test that forbids it."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tools import quirks
from tools.mutants import CORRECTIONS, MUTANTS, plant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_each_bug_changes_code_that_stays_valid(mutant):
    changed = plant(mutant, ROOT)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse((ROOT / "vita_ref" / mutant.file).read_text("utf-8")))


def test_each_bug_names_tests_that_exist():
    for mutant in MUTANTS:
        file, _, name = mutant.tests.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert not name or name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, mutant.name


def test_names_of_bugs_are_unique():
    assert max(Counter(m.name for m in MUTANTS).values()) == 1


@pytest.mark.parametrize("quirk", quirks.quirks(), ids=str)
def test_each_quirk_has_a_correction_that_is_planted(quirk):
    assert quirks.corrections(quirk)


def test_each_correction_belongs_to_one_quirk():
    found = quirks.quirks()
    for mutant in CORRECTIONS:
        assert sum(mutant.quirk in quirk.text for quirk in found) == 1, mutant.name


def test_the_page_of_quirks_is_current():
    assert quirks.OUT.read_text(encoding="utf-8") == quirks.table(), "run: python tools/quirks.py"


def test_a_quirk_may_span_several_comment_lines(tmp_path, monkeypatch):
    package = tmp_path / "vita_ref"
    package.mkdir()
    code = "x = 1  # quirk: one line\n# not part of it\n# quirk: two\n# lines\ny = '# quirk: no comment'\n"
    (package / "a.py").write_text(code)
    monkeypatch.setattr(quirks, "ROOT", tmp_path)
    assert quirks.quirks() == [("a.py", "one line"), ("a.py", "two lines")]
