"""The lessons: every stub fails with help, every solution passes, and every typical mistake is recognised by its name.

Lesson 12, the swap, the cards and the experiments are in ``test_lessons_more.py``.
"""

import ast
import re
import shlex
import threading
from pathlib import Path

import learner
import pytest
import torch

from tools.lessons import run
from tools.lessons.check import PATIENCE, Case, Lesson, Mistake, check, differs
from tools.lessons.work import STUBS, Work

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [n for n in range(1, run.COUNT + 1) if n != 12]
each_lesson = pytest.mark.parametrize("number", NUMBERS)
each_plant = pytest.mark.parametrize(
    ("number", "name", "old", "new"), [(n, *plant) for n in NUMBERS for plant in learner.PLANTS[n]], ids=lambda x: x if isinstance(x, int) else None
)


def functions(text):
    names = {}
    exec(compile(text, "learner.py", "exec"), names)  # noqa: S102, the texts of learner.py
    return names


def run_in(folder, *words):
    return run.main([*map(str, words), "--work", str(folder)])


@each_lesson
def test_the_packages_own_functions_pass(number):
    lesson = run.lesson_of(number)
    report = check(lesson, lesson.reference)
    assert report.ok, report.lines


@each_lesson
def test_a_solution_written_by_hand_passes(number):
    report = check(run.lesson_of(number), functions(learner.SOLUTIONS[number]))
    assert report.ok, report.lines


@pytest.mark.parametrize("number", range(1, run.COUNT + 1))
def test_a_stub_fails_and_says_what_to_do(number, tmp_path, capsys):
    assert run_in(tmp_path, number) == 0
    given = capsys.readouterr().out
    assert f"lesson{number:02}" in given and "write" in given
    assert run_in(tmp_path, number) == 1
    out = capsys.readouterr().out
    assert "raise NotImplementedError" in out and f"lesson{number:02}" in out
    assert Work(tmp_path).failures(number) == 0  # to look at the stub is no failure


@each_plant
def test_a_typical_mistake_in_a_learners_code_is_recognised(number, name, old, new):
    text = learner.SOLUTIONS[number]
    assert text.count(old) == 1
    report = check(run.lesson_of(number), functions(text.replace(old, new)), failures=PATIENCE - 1)
    assert report.mistake == name, report.lines
    shown = "\n".join(report.lines)
    assert name in shown and "How to fix it" in shown
    solution = [line.strip() for line in text.splitlines() if "=" in line and len(line.strip()) > 30]
    assert not [line for line in solution if line in shown]  # advice in words, no code


@pytest.mark.parametrize("number", range(1, run.COUNT + 1))
def test_at_least_four_mistakes_are_known_and_planted(number):
    known = {m.name for m in run.lesson_of(number).mistakes}
    planted = {name for name, _, _ in learner.PLANTS[number]}
    assert len(planted) >= 4 and planted <= known


@pytest.mark.parametrize("number", range(1, run.COUNT + 1))
def test_a_text_has_three_paragraphs_an_example_a_picture_and_a_stub_with_types(number):
    lesson = run.lesson_of(number)
    tree = ast.parse((STUBS / f"{lesson.module}.py").read_text("utf-8"))
    paragraphs = ast.get_docstring(tree).split("\n\n")
    assert paragraphs[0].startswith(f"Lesson {number}:")
    prose = [p for p in paragraphs[1:] if not p.startswith((" ", "To do"))]
    assert len(prose) >= 3
    indented = "\n".join(p for p in paragraphs if p.startswith(" "))
    assert len(re.findall(r"\d", indented)) >= 6  # numbers of an example
    assert re.search(r"[|+>^\\/]|1 1 1 0", indented)  # a picture
    defined = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert set(defined) == set(lesson.reference) == set(lesson.fixes)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None or node.name == "__init__"
            assert all(a.annotation is not None or a.arg in ("self", "cache") for a in node.args.args), node.name
            assert ast.get_docstring(node)
    imported = {n.name if isinstance(node, ast.Import) else node.module for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for n in node.names}
    assert imported <= {"torch", "collections.abc", "types"}


def test_the_page_of_mistakes_is_current():
    assert (ROOT / "tools/lessons/mistakes.md").read_text("utf-8") == run.mistakes_table(), "run: python tools/lessons/run.py mistakes > tools/lessons/mistakes.md"


# ---- the report


def double():
    """A lesson of one function: twice x."""
    mistakes = (
        Mistake("squared", "x was squared.", "add x to x.", {"twice": lambda x: x * x}),
        Mistake("halved", "x was halved.", "multiply instead.", {"twice": lambda x: x / 2}),
    )
    cases = lambda: [
        Case("two", "twice", lambda my: my.twice(torch.tensor([2.0, 2.0])), torch.tensor([4.0, 4.0])),
        Case("three rows", "twice", lambda my: my.twice(torch.tensor([[1.0], [3.0], [5.0]]))),
    ]
    return Lesson(0, "double", "double", {"twice": lambda x: 2 * x}, cases, mistakes, {"twice": "add x to itself."})


def lines(function, failures=0):
    return "\n".join(check(double(), {"twice": function} if function else {}, failures).lines)


def test_a_report_says_which_case_which_index_and_by_how_much():
    out = lines(lambda x: x * x)
    assert "ok   two" in out and "OFF  three rows" in out
    assert "at index [0, 0]" in out and "it gives 1" in out and "expected 2" in out and "off by 1" in out
    assert "3 of 3 numbers are off, the largest difference is 15" in out
    assert "'squared'" in out and "x was squared." in out


def test_what_no_mistake_explains_is_described():
    assert "3 times the right one" in lines(lambda x: 6 * x)
    assert "NaN" in lines(lambda x: x * torch.nan)
    assert "another order" in lines(lambda x: (2 * x).flip(0) if len(x) > 1 else 2 * x)
    assert "a tensor [1, 3], expected [3, 1]: two dimensions seem to be swapped" in lines(lambda x: 2 * x.mT if x.dim() > 1 else 2 * x)
    assert "a dimension of size 1 is missing" in lines(lambda x: 2 * x.squeeze(-1) if x.dim() > 1 else 2 * x)
    assert "float64, expected float32" in lines(lambda x: 2 * x.double())
    assert "is there a return?" in lines(lambda x: None)
    assert "there is no twice" in lines(None)
    assert "ZeroDivisionError" in lines(lambda x: 1 / 0)


def test_how_to_fix_it_is_said_from_the_sixth_failure_on():
    for before in range(PATIENCE + 2):
        told = "add x to x." in lines(lambda x: x * x, before)
        assert told == (before + 1 >= 6)
    assert "add x to itself." in lines(lambda x: 7 * x + 1, 5)  # no mistake fits: how the function is written


TAIL = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("wrong", [TAIL + 1, TAIL.float(), TAIL.flip(0), TAIL.double() + 0.5, TAIL[:2]])
def test_a_result_that_is_right_is_not_called_conspicuous_for_one_that_is_wrong(wrong):
    lesson = Lesson(0, "pair", "pair", {"pair": lambda: None}, lambda: [Case("pair", "pair", lambda my: my.pair(), (torch.tensor([1.0, 2.0]), TAIL))], (), {"pair": ""})
    out = "\n".join(check(lesson, {"pair": lambda: (torch.tensor([1.0, 2.0]), wrong)}).lines)
    assert "result 2 of 2" in out and "another order" not in out and "times the right one" not in out


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda x: x.to("meta"), lambda x: x.to(torch.complex64), torch.Tensor.numpy, torch.Tensor.tolist, object])
def test_a_result_of_another_kind_is_told(make):
    out = lines(lambda x: make(2 * x) if make is not object else object())
    assert "it gives" in out and "expected" in out and "another order" not in out


@pytest.mark.parametrize("change", [
    lambda x, rows: x.mul_(2), lambda x, rows: x.zero_(), lambda x, rows: x[0].add_(1), lambda x, rows: rows.pop(), lambda x, rows: rows.append(x),
    lambda x, rows: rows.reverse(), lambda x, rows: rows[1].neg_(), lambda x, rows: x.fill_(torch.nan),
])  # fmt: skip
def test_a_function_that_changes_its_arguments_is_told_so_and_they_are_put_back(change):
    x, rows = torch.tensor([1.0, 2.0]), [torch.ones(2), torch.tensor([3, 4])]
    before, kept = x.clone(), [r.clone() for r in rows]
    lesson = Lesson(0, "f", "f", {"f": lambda x, rows: x}, lambda: [Case("f", "f", lambda my: my.f(x, rows), before)], (), {"f": ""})
    right = check(lesson, {"f": lambda x, rows: x})
    wrong = check(lesson, {"f": lambda x, rows: (change(x, rows), before)[1]})
    assert right.ok and not wrong.ok and "changes an argument in place" in wrong.lines[-2]
    assert torch.equal(x, before) and len(rows) == 2 and all(map(torch.equal, rows, kept))


@pytest.mark.parametrize("error", [SystemExit(0), BaseException("x"), RecursionError(), MemoryError(), ValueError("a\n" * 5000), ValueError("\x1b[31m")])
def test_whatever_a_function_raises_is_a_report_of_a_few_lines(error):
    def fails(x):
        raise error

    out = lines(fails)
    assert type(error).__name__ in out and len(out) < 800 and "\x1b" not in out


def test_a_method_without_a_return_is_asked_for_one():
    text = learner.SOLUTIONS[5].replace("        return keys, values\n", "")
    assert "is a return missing?" in "\n".join(check(run.lesson_of(5), functions(text)).lines)


def test_a_function_that_is_stopped_is_not_run_again(tmp_path, capsys):
    write(tmp_path, 1, "calls = []\ndef rms_norm(x, weight, eps):\n    calls.append(1)\n    if len(calls) > 1:\n        print('AGAIN')\n    raise KeyboardInterrupt\n")
    assert run_in(tmp_path, 1) == 1
    out = capsys.readouterr().out
    assert "you have stopped it" in out and "line 6" in out and "AGAIN" not in out


def test_a_case_that_runs_long_says_so(monkeypatch, capsys):
    monkeypatch.setattr("tools.lessons.check.LONG", 0)
    lines(lambda x: (threading.Event().wait(0.2), 2 * x)[1])
    assert "still running" in capsys.readouterr().err


def test_infinities_and_nan_are_compared():
    a = torch.tensor([1.0, torch.inf, torch.nan])
    assert differs(a, a.clone(), 1e-6) is None
    assert differs(torch.tensor([torch.inf]), torch.tensor([-torch.inf]), 1e-6)
    assert differs(torch.tensor([1.0]), torch.tensor([torch.nan]), 1e-6)


# ---- the program


def write(folder, number, text=None):
    folder.mkdir(exist_ok=True)
    (folder / f"{run.lesson_of(number).module}.py").write_text(text or learner.SOLUTIONS[number], encoding="utf-8")


def test_a_learners_way_through_a_lesson(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert run_in(folder) == 0
    assert "1  RMSNorm" in capsys.readouterr().out
    run_in(folder, 1)
    name, old, new = learner.PLANTS[1][0]
    for failure in range(1, 7):
        write(folder, 1, learner.SOLUTIONS[1].replace(old, new))
        capsys.readouterr()
        assert run_in(folder, 1) == 1
        out = capsys.readouterr().out
        assert name in out and ("How to fix it" in out) == (failure >= 6)
    write(folder, 1)
    assert run_in(folder, 1) == 0
    assert "cases are right." in capsys.readouterr().out
    run_in(folder)
    out = capsys.readouterr().out
    assert re.search(r"RMSNorm +done", out) and re.search(r"rotary positions +<- next", out)
    assert Work(folder).failures(1) == 0


def test_a_lesson_that_was_begun_is_not_overwritten(tmp_path):
    write(tmp_path, 1, "# mine\n" + learner.SOLUTIONS[1])
    assert run_in(tmp_path, 1) == 0
    assert (tmp_path / "lesson01_rmsnorm.py").read_text("utf-8").startswith("# mine")


def test_a_lesson_may_import_an_earlier_one(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 4, "from lesson01_rmsnorm import rms_norm\n" + learner.SOLUTIONS[4])
    assert run_in(tmp_path, 4) == 0


def test_an_error_in_the_learners_code_names_its_line(tmp_path, capsys):
    write(tmp_path, 1, "def rms_norm(x, weight, eps):\n    y = x\n    return y.mood()\n")
    assert run_in(tmp_path, 1) == 1
    out = capsys.readouterr().out
    assert "AttributeError" in out and "line 3: return y.mood()" in out


@pytest.mark.parametrize(("text", "told"), [("def f(:\n", "line 1"), ("import nowhere_at_all\n", "cannot be imported"), ("raise SystemExit(3)\n", "cannot be imported"), ("a = 1\0\n", "null bytes")])
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path, capsys, text, told):
    write(tmp_path, 1, text)
    assert run_in(tmp_path, 1) == 2
    err = capsys.readouterr().err
    assert err.startswith("run.py: ") and err.count("\n") == 1 and told in err


def test_the_folder_is_never_inside_the_package(capsys):
    for place in (ROOT / "vita_ref", ROOT / "vita_ref" / "mine", ROOT / "tools" / "lessons" / "mine"):
        assert run_in(place, 1) == 2
        assert "--work" in capsys.readouterr().err
        assert not (place / "lesson01_rmsnorm.py").exists()


@pytest.mark.parametrize("words", [("99",), ("0",), ("nonsense",), ("bug", "77"), ("port", "x"), ("change", "nothing"), ("change", "two", "--minutes", "-1")])
def test_wrong_arguments_are_one_line_and_status_2(tmp_path, capsys, words):
    assert run_in(tmp_path, *words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and not captured.out


def test_damaged_progress_is_one_line(tmp_path, capsys):
    for text in ("{", "[1]", "", "null", "[" * 100_000, '{"1": ' + "9" * 5000 + "}"):
        (tmp_path / "progress.json").write_text(text)
        assert run_in(tmp_path) == 2
        assert "progress.json" in capsys.readouterr().err
    (tmp_path / "progress.json").write_text('{"1": {"failures": -7}}')
    assert Work(tmp_path).failures(1) == 0


def test_progress_is_whole_when_writing_it_is_interrupted(tmp_path, monkeypatch):
    Work(tmp_path).note(1, done=True)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Work(tmp_path).note(2, done=True)
    assert Work(tmp_path).done(1) and not Work(tmp_path).done(2)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~no_such_user_here/x"])
def test_a_folder_that_cannot_be_is_one_line(name, capsys):
    assert run_in(name, 1) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_commands_name_the_learners_folder_so_that_a_shell_reads_them(tmp_path, capsys):
    folder = tmp_path / "my own's"
    run_in(folder, 1)
    text = (folder / "lesson01_rmsnorm.py").read_text("utf-8")
    run_in(folder)
    for where in (text, capsys.readouterr().out):
        words = shlex.split(re.search(r"python tools/lessons/run.py 1 --work .*", where)[0])
        assert words[-1] == str(folder)


def test_a_lesson_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "lesson01_rmsnorm.py").symlink_to(tmp_path / "nowhere" / "x")
    assert run_in(tmp_path, 1) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_callable_is_as_good_as_a_function(tmp_path):
    write(tmp_path, 1, learner.SOLUTIONS[1] + "\nimport functools\nrms_norm = functools.partial(rms_norm)\n")
    assert run_in(tmp_path, 1) == 0
