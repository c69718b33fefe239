"""Checks a learner's functions against properties and known numbers, and recognises typical mistakes by name.

A lesson has cases and mistakes. A case runs one or more of the learner's functions. What it should give is a number that
was computed by hand, a property, or what the package's own function gives. A mistake is a wrong version of a function.
If a case fails and the learner's numbers are exactly those that the wrong version gives, the mistake is named.

No text here or in ``checks/`` prints a solution. After the sixth failure in a row the report says in words how to fix it.

Test: ``pytest tests/tools/test_lessons.py``
"""

import functools
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from vita_ref.files.messages import escaped

PATIENCE = 6  # failures in a row, after which the report says how to fix it


class Case(NamedTuple):
    """Something to compute with the learner's functions: ``run(my)`` has to give ``expected``.

    Without ``expected`` it has to give what it gives with the package's functions. ``part`` is the function in question.
    """

    name: str
    part: str
    run: Callable
    expected: Any = None
    tolerance: float = 1e-5
    slow: bool = False  # it takes a second, and is left out where mistakes are told from each other


class Mistake(NamedTuple):
    """A typical mistake: its name, what it means, how to fix it, and the wrong versions of functions by name.

    ``also`` has further ways to make the same mistake, whose numbers differ.
    """

    name: str
    meaning: str
    fix: str
    parts: dict
    also: tuple = ()


@dataclass(frozen=True)
class Lesson:
    """One lesson. ``reference`` has the package's functions under the learner's names; ``fixes`` says for each function
    how to write it, in words, for failures that no mistake explains."""

    number: int
    slug: str
    title: str
    reference: dict
    cases: Callable
    mistakes: tuple
    fixes: dict
    swapped: tuple = ()  # the words for it in the sentence at the end, where it is swapped into the real model

    @property
    def module(self):
        """The name of the learner's module."""
        return f"lesson{self.number:02}_{self.slug}"


@dataclass
class Report:
    """The result of a check: its lines, whether all cases passed, and the name of the mistake that was recognised."""

    ok: bool = True
    passed: int = 0
    lines: list = field(default_factory=list)
    mistake: str | None = None
    stub: bool = False  # it failed because the function is not written yet


STUB = "this is still the stub: replace the line `raise NotImplementedError` by your code"
STOPPED = "you have stopped it while it was running: does a loop never end?"
LONG = 30  # seconds after which a message says that a case is still running


def check(lesson, functions, failures=0, file=None):
    """Runs the cases of a lesson in order, up to the first that fails.

    ``functions`` maps names to the learner's functions. ``failures`` is how often the check has failed before, in a row.
    """
    report, my, cases = Report(), SimpleNamespace(**functions), list(lesson.cases())
    for case in cases:
        got = attempt_with_notice(case, my, file)
        difference = compare(got, case, lesson)
        if difference is None:
            report.lines.append(f"  ok   {case.name}")
            report.passed += 1
            continue
        reason = got.text if isinstance(got, Failed) else None
        report.ok, report.stub = False, reason == STUB
        report.lines.append(f"  OFF  {case.name}\n       {case.part}: {difference}")
        if reason not in (STUB, STOPPED):
            explain(report, case, cases, lesson, my, got)
        if not report.stub:
            advise(report, case, lesson, failures + 1)
        break
    return report


def attempt_with_notice(case, my, file):
    """`attempt`; after `LONG` seconds it prints that the case is still running, and how to find out where."""
    text = f"  ...  {case.name}: still running after {LONG} seconds. Ctrl-C stops it and shows the line."
    clock = threading.Timer(LONG, lambda: print(text, file=sys.stderr, flush=True))
    clock.daemon = True
    clock.start()
    try:
        return attempt(case, my, file)
    finally:
        clock.cancel()


class Failed(NamedTuple):
    """An exception in the place of a result: what it says, and where in the learner's file it was raised."""

    text: str
    place: str = ""


def attempt(case, my, file=None):
    """What a case gives with these functions, or a `Failed`."""
    if getattr(my, case.part, None) is None:
        return Failed(f"there is no {case.part} in your file: keep the name that the stub has")
    try:
        with torch.random.fork_rng(devices=[]):
            return case.run(SimpleNamespace(**{name: guarded(f) for name, f in vars(my).items()}))
    except NotImplementedError:
        return Failed(STUB)
    except ChangedError as error:
        return Failed(str(error))
    except KeyboardInterrupt as error:
        return Failed(STOPPED, place(error, file))
    except (TypeError, AttributeError) as error:
        nothing = "; is a return missing?" if "'NoneType'" in str(error) else ""  # what the function gave cannot be used
        return Failed(f"{type(error).__name__}: {brief(error)}{nothing}", place(error, file))
    except BaseException as error:  # noqa: BLE001, of the learner's code, exit() included: it is the report
        return Failed(f"{type(error).__name__}: {brief(error)}", place(error, file))


def guarded(function):
    """The function, except that it raises `ChangedError` if it changes a tensor or a list that it was given.

    Their contents are restored, because the caller still needs them: the next case uses the same tensors.
    """
    if not isinstance(function, FunctionType):
        return function

    @functools.wraps(function)
    def call(*args, **options):
        given = [x for x in (*args, *options.values()) if isinstance(x, (torch.Tensor, list))]
        given += [x for each in given if isinstance(each, list) for x in each if isinstance(x, torch.Tensor)]
        before = [x.clone() if isinstance(x, torch.Tensor) else list(x) for x in given]
        try:
            out = function(*args, **options)
        finally:
            changed = [restore(x, old) for x, old in zip(given, before)]
        if any(changed):
            raise ChangedError("it changes an argument in place, and the caller still needs it: make a new one, as in x = x * 2 for x *= 2")
        return out

    return call


class ChangedError(Exception):
    """A function has changed what it was given."""


def restore(x, old):
    """Gives a tensor or list its former contents again. Returns whether it had others."""
    if isinstance(x, list):
        changed = len(x) != len(old) or any(a is not b for a, b in zip(x, old))
        x[:] = old
        return changed
    if x.shape == old.shape and torch.equal(x.nan_to_num(), old.nan_to_num()):
        return False
    x.detach().resize_(old.shape).copy_(old)
    return True


def brief(error):
    """The message of an exception, without control characters and not longer than a few lines."""
    text = escaped(str(error)).strip()
    return text if len(text) <= 400 else text[:397] + "..."


def place(error, file):
    """In which line of the learner's file an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"line {f.lineno}: {f.line}" for f in frames if file and f.filename == str(file)]
    return f"\n       ({lines[-1]})" if lines else ""


def compare(got, case, lesson):
    """In what a result differs from what the case has to give, in words; None if in nothing."""
    if isinstance(got, Failed):
        return got.text + got.place
    return differs(got, expectation(case, lesson), case.tolerance)


def expectation(case, lesson):
    """What a case has to give. What the package's functions give is computed once."""
    if case.expected is not None:
        return case.expected
    key = lesson.number, case.name
    if key not in _expected:
        _expected[key] = case.run(SimpleNamespace(**lesson.reference))
    return _expected[key]


_expected = {}  # (lesson, name of the case) -> what the package's functions give


def explain(report, failed, cases, lesson, my, got):
    """Names the mistake whose numbers these are, or says what is conspicuous about them.

    If several mistakes give these numbers, the one is named that gives the learner's numbers in most of the other cases.
    """
    versions = [(m, SimpleNamespace(**(lesson.reference | parts))) for m in lesson.mistakes for parts in (m.parts, *m.also)]
    fitting = [(m, wrong) for m, wrong in versions if agrees(got, attempt(failed, wrong), failed, lesson)]
    if fitting:
        others = [(case, attempt(case, my)) for case in cases if not (case is failed or case.slow)] if len(fitting) > 1 else []

        def agreements(version):
            return sum(alike(mine, attempt(case, version[1]), case) for case, mine in others)

        mistake, _ = max(fitting, key=agreements)  # the first of several
        report.mistake = mistake.name
        sign = "This happens with a typical mistake" if isinstance(got, Failed) else "These are the numbers of a typical mistake"
        report.lines.append(f"       {sign}, {mistake.name!r}: {mistake.meaning}")
    elif note := conspicuous(got, expectation(failed, lesson), failed.tolerance):
        report.lines.append(f"       {note}")


def agrees(got, given, case, lesson):
    """Whether a wrong version gives the learner's result, and is wrong in this case."""
    return alike(got, given, case) and compare(given, case, lesson) is not None


def alike(got, given, case):
    """Whether two results of a case are the same, exceptions included."""
    if isinstance(got, Failed) or isinstance(given, Failed):
        return isinstance(got, Failed) and isinstance(given, Failed) and got.text == given.text
    return differs(got, given, case.tolerance) is None


def advise(report, case, lesson, failures):
    """How often it has failed and, from the sixth failure on, how to fix it."""
    if failures < PATIENCE:
        times = "once" if failures == 1 else f"{failures} times"
        report.lines.append(f"       Failed {times}. From the {PATIENCE}th time on you are told how to fix it.")
        return
    fixes = [m.fix for m in lesson.mistakes if m.name == report.mistake] or [lesson.fixes[case.part]]
    report.lines.append(f"       How to fix it: {fixes[0]}")


# ---- comparing


def differs(got, expected, tolerance, where=""):
    """The first difference of two results in words, None if there is none. Results are tensors, numbers, texts, or tuples."""
    if isinstance(expected, (tuple, list)):
        if not isinstance(got, (tuple, list)):
            return f"it gives {kind(got)}, expected {len(expected)} results in a tuple"
        if len(got) != len(expected):
            return f"it gives {len(got)} results{where}, expected {len(expected)}"
        several = len(expected) > 1
        found = (
            differs(a, b, tolerance, f"{where}, result {i + 1} of {len(expected)}" if several else where)
            for i, (a, b) in enumerate(zip(got, expected))
        )
        return next(filter(None, found), None)
    if isinstance(expected, torch.Tensor):
        return differs_tensor(got, expected, tolerance, where)
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        got = got.item()
    if isinstance(expected, float) and isinstance(got, (int, float)):
        off = abs(got - expected)
        return None if off <= tolerance * max(1, abs(expected)) else off_by(got, expected, off, where)
    return None if same(got, expected) else f"it gives {shown(got)}{where}, expected {shown(expected)}"


def same(got, expected):
    try:
        return bool(got == expected)
    except Exception:  # noqa: BLE001, of whatever the learner returned
        return False


def differs_tensor(got, expected, tolerance, where):
    """The first difference of two tensors in words, None if there is none."""
    if not isinstance(got, torch.Tensor):
        return f"it gives {kind(got)}{where}, expected a tensor {list(expected.shape)}"
    if got.shape != expected.shape:
        swapped = sorted(got.shape) == sorted(expected.shape)
        ones = [n for n in got.shape if n != 1] == [n for n in expected.shape if n != 1]
        hint = ": two dimensions seem to be swapped" if swapped else ""
        hint = f": a dimension of size 1 is {'missing' if got.dim() < expected.dim() else 'surplus'}" if ones and got.dim() != expected.dim() else hint
        return f"it gives a tensor {list(got.shape)}{where}, expected {list(expected.shape)}{hint}"
    if got.dtype != expected.dtype:
        return f"it gives {name(got.dtype)}{where}, expected {name(expected.dtype)}"
    if got.layout != expected.layout or got.device != expected.device:
        return f"it gives a tensor with {got.layout} on {got.device}{where}, expected {expected.layout} on {expected.device}"
    a, b = got.detach().double(), expected.detach().double()
    apart = (a - b).abs()
    apart[(a == b) | (a.isnan() & b.isnan())] = 0  # infinities too
    bad = apart.isnan() | (apart > tolerance * b.abs().nan_to_num().clamp(min=1))
    if not bad.any():
        return None
    index = [int(i) for i in bad.nonzero()[0]]
    number, total, largest = int(bad.sum()), bad.numel(), float(apart.nan_to_num(torch.inf).max())
    text = off_by(got[tuple(index)].item(), expected[tuple(index)].item(), float(apart[tuple(index)]), f" at index {index}{where}")
    return f"{text}\n       {number} of {total} numbers are off, the largest difference is {largest:.3g}"


def off_by(got, expected, off, where):
    """One number that is off."""
    if isinstance(expected, bool):
        return f"it gives {got}{where}, expected {expected}"
    return f"it gives {got:.6g}{where}, expected {expected:.6g}: off by {off:.3g}"


def conspicuous(got, expected, tolerance=1e-5):
    """What is remarkable about the first result that is wrong, or None."""
    if isinstance(expected, (tuple, list)):
        results = zip(got, expected) if isinstance(got, (tuple, list)) and len(got) == len(expected) else ()
        return next((conspicuous(a, b, tolerance) for a, b in results if differs(a, b, tolerance)), None)
    pair = got, expected
    if not all(isinstance(x, torch.Tensor) for x in pair) or got.shape != expected.shape or got.dtype != expected.dtype:
        return None
    if not expected.is_floating_point() or got.layout != expected.layout or got.device != expected.device:
        return None
    a, b = (x.detach().double().flatten() for x in pair)
    if a.isnan().any() and not b.isnan().any():
        return "Some of your numbers are NaN: 0 / 0, infinity - infinity, or a softmax over nothing."
    if len(a) > 1 and a.sort().values.allclose(b.sort().values, atol=1e-6):
        return "These are the right numbers in another order: look at reshape, transpose and the order of loops."
    ratio = (a / b)[b.abs() > 1e-6]
    if len(ratio) > 1 and (ratio - ratio[0]).abs().max() < 1e-4 * ratio[0].abs():
        return f"Each of your numbers is {float(ratio[0]):.4g} times the right one: a factor is missing or surplus."
    return None


def kind(value):
    return "nothing (None): is there a return?" if value is None else f"a {type(value).__name__}"


def shown(value):
    try:
        text = escaped(repr(value))
    except Exception:  # noqa: BLE001, of whatever the learner returned
        return kind(value)
    return text if len(text) <= 80 else text[:77] + "..."


def name(dtype):
    return str(dtype).removeprefix("torch.")


# ---- what the cases need


def randn(*shape, seed=0, dtype=torch.float32):
    """Normal numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
