"""Random bugs: they are other programs, equal for equal seeds, planted where they say, and the file of results is read again."""

import ast
import json

import pytest

from tools import random_mutants
from tools.random_mutants import (
    ROOT,
    TESTS,
    Change,
    choose,
    first_failure,
    main,
    planted,
    source,
    survivors,
)


def test_the_same_seed_gives_the_same_bugs_and_another_seed_others():
    files = ["cache.py", "splice.py"]
    first = choose(3, 40, files)
    assert first == choose(3, 40, files) != choose(4, 40, files)
    assert len({(change.file, change.start, change.stop) for change in first}) == 40


@pytest.mark.parametrize("file", ["cache.py", "sampling.py", "splice.py", "scale/int8.py"])
def test_a_planted_bug_is_a_valid_program_that_differs_in_one_place(file):
    plain = source(file)
    for change in choose(1, 3, [file]):
        other = planted(change)
        assert ast.dump(ast.parse(other)) != ast.dump(ast.parse(plain))
        assert plain[change.start : change.stop].decode() == change.old
        assert plain[: change.start].count(b"\n") + 1 == change.line
        assert other == plain[: change.start] + change.new.encode() + plain[change.stop :]


def test_messages_and_docstrings_stay_as_they_are():
    changes = [c for group in random_mutants.changes("x.py", 'def f(a: int = 1):\n    "word"\n    raise ValueError("no" + "thing")\n') for c in group]
    assert {change.old for change in changes} <= {"1"}


def test_the_tests_of_each_file_exist():
    assert all((ROOT / "tests" / name).exists() for names in TESTS.values() for name in names.split())
    assert all((ROOT / "vita_ref" / file).exists() for file in TESTS)


def test_survivors_are_read_from_results_and_refused_if_the_source_has_changed(tmp_path, capsys):
    bugs = choose(2, 3, ["cache.py"])
    rows = [bug._asdict() | {"failure": failure} for bug, failure in zip(bugs, (None, "tests/test_x.py::test_y", None))]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert survivors(file) == [bugs[0], bugs[2]]
    assert main(["--again", str(file), "--list"]) == 0
    assert [Change(**json.loads(line)) for line in capsys.readouterr().out.splitlines()] == [bugs[0], bugs[2]]
    rows[0]["old"] += "x"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"{bugs[0].file}, line {bugs[0].line}"):
        survivors(file)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("assert True", None),
        ("assert False", "test_it.py::test_it"),
        ("import os; os._exit(7)", "status 7"),
        ("while True: pass", "limit"),
    ],
)
def test_the_first_failure_is_named_and_an_endless_test_is_one(tmp_path, body, found):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    failure = first_failure(["test_it.py"], tmp_path, 1 if found == "limit" else 60)
    assert failure == found or (found and failure.endswith(found))
