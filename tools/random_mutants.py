"""Plants small random bugs in the files that compute an answer, and prints which of them no test finds.

    python tools/random_mutants.py                                  300 bugs of the seed 0: about an hour on one core
    python tools/random_mutants.py --seed 5 --count 20 --file splice.py
    python tools/random_mutants.py --list                           the bugs alone, without any test

A bug is one change of the syntax tree: another operator, comparison, number, argument, slice or branch, or a statement
left out. Messages, docstrings and annotations stay as they are. The same seed gives the same bugs of the same source.
The tests of `TESTS` run until one fails; a bug that needs more than --limit seconds of processor time counts as found.

Each line is a JSON object: the file, the line, the code before and after, and the test that failed, null for a bug that
survived. --out appends them to a file, and a run that is started again skips what the file has. Exit status 1 if any
bug survived. What survived in the last run, and why: [the table](random_mutants.md).

Test: ``pytest tests/tools/test_random_mutants.py``
"""

import argparse
import ast
import copy
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.mutants import ROOT, copy_project

TESTS = {  # file of vita_ref/ -> its tests, the quickest to find a bug first
    "splice.py": "test_splice.py test_golden_splice.py test_batches.py test_model.py test_devices.py",
    "cache.py": "test_cache.py test_batches.py test_decoder.py test_model.py test_devices.py",
    "sampling.py": "test_sampling.py test_batches.py checks/test_arguments.py test_devices.py test_stream.py test_generate.py",
    "decoder.py": "test_decoder.py test_golden_text.py files/test_rope.py test_model.py test_batches.py test_devices.py",
    "masks.py": "test_masks.py test_decoder.py test_batches.py test_devices.py",
    "fbank.py": "test_fbank.py test_audio.py",
    "prompt.py": "test_prompt.py test_request.py test_frozen.py test_chat.py files/test_template.py",
    "vision.py": "test_vision.py test_golden_splice.py test_devices.py",
    "audio.py": "test_audio.py test_golden_splice.py test_devices.py analysis/test_trace.py",
    "image.py": "test_image.py test_request.py",
    "video.py": "test_video.py test_request.py",
    "inputs.py": "test_model.py test_batches.py test_golden_splice.py checks test_devices.py test_chat.py test_stream.py",
    "request.py": "test_request.py test_model.py test_batches.py analysis/test_budget.py checks cli",
    "model.py": "test_model.py test_golden_splice.py test_batches.py test_generate.py checks test_stream.py test_chat.py test_devices.py",
    "scale/int8.py": "scale/test_int8.py scale/test_reproducible.py scale/test_products.py files/test_stored.py test_saving.py",
}


class Change(NamedTuple):
    """A bug: in a file of vita_ref/, the bytes ``start`` to ``stop`` become ``new``."""

    file: str
    line: int
    start: int
    stop: int
    old: str
    new: str


# ---- the changes of one node of the syntax tree

COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "amax": "amin", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "cos": "sin",
    "sin": "cos", "zeros": "ones", "ones": "zeros", "sum": "amax", "argmax": "argmin", "sorted": "list", "log": "log2",
    "find": "rfind", "lstrip": "rstrip", "round": "int", "unbind": "split", "new_zeros": "new_ones",
}  # fmt: skip

NO_VALUES = ("torch", "F", "nn", "math", "self", "image", "video", "fbank", "functools", "contextlib", "dataclasses")  # x.f(y) is not x


def changes_of(node):
    """Yields nodes that could stand in the place of a node."""

    def changed(**fields):
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    if isinstance(node, ast.Compare):
        if len(node.ops) == 1 and type(node.ops[0]) in COMPARE:
            yield changed(ops=[COMPARE[type(node.ops[0])]()])
        if len(node.ops) == 2:
            yield changed(ops=[COMPARE[type(node.ops[0])](), node.ops[1]])
            yield changed(ops=[node.ops[0], COMPARE[type(node.ops[1])]()])
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield changed(op=OPERATORS[type(node.op)]())
        yield node.left
    elif isinstance(node, ast.BoolOp):
        yield changed(op=OPERATORS[type(node.op)]())
        yield from (changed(values=[v for v in node.values if v is not left_out]) for left_out in node.values)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in other_values(node.value))
    elif isinstance(node, ast.IfExp):
        yield changed(test=ast.UnaryOp(ast.Not(), node.test))
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Call):
        yield from changes_of_call(node, changed)
    elif isinstance(node, ast.Slice):
        yield from (changed(lower=None), changed(upper=None), changed(lower=plus_one(node.lower)), changed(upper=plus_one(node.upper)))
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield changed(attr=NAMES[node.attr])
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield changed(id=NAMES[node.id])


def plus_one(node):
    """A slice's limit and one; None stays None."""
    return node and ast.BinOp(node, ast.Add(), ast.Constant(1))


def other_values(value):
    """What a constant could be instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 1.1 + 0.01, value / 2]
    is_word = isinstance(value, str) and value and " " not in value  # others are messages
    return [value + "x"] if is_word else []


def changes_of_call(node, changed):
    """A call without one of its arguments, with two of them swapped, or without the call."""
    for left_out in node.keywords:
        yield changed(keywords=[k for k in node.keywords if k is not left_out])
    if len(node.args) > 1:
        yield changed(args=node.args[:-1])
        yield changed(args=[node.args[1], node.args[0], *node.args[2:]])
    if isinstance(node.func, ast.Attribute):  # x.f(...) becomes x
        is_value = not isinstance(node.func.value, ast.Name) or node.func.value.id not in NO_VALUES
        yield from [node.func.value] * is_value
    elif len(node.args) == 1 and isinstance(node.func, ast.Name) and node.func.id.islower():  # f(x) becomes x
        yield node.args[0]


def changes_of_statement(node):
    """Texts that could stand in the place of a statement."""
    if isinstance(node, (ast.Expr, ast.AugAssign)) or (isinstance(node, ast.Return) and node.value is None):
        yield "pass"
    if isinstance(node, (ast.Continue, ast.Break)):
        yield "pass"


# ---- all changes of a file


def changes(file, text):
    """Every change of a file, in the order of the text: groups of those of one place."""
    starts, groups = line_starts(text), {}
    content = text.encode()
    for node in reachable(ast.parse(text)):
        if not hasattr(node, "end_col_offset"):
            continue
        start = starts[node.lineno - 1] + node.col_offset
        stop = starts[node.end_lineno - 1] + node.end_col_offset
        old = content[start:stop].decode()
        texts = [*changes_of_statement(node)] if isinstance(node, ast.stmt) else [in_brackets(n) for n in changes_of(node)]
        for new in texts:
            if new != old:
                groups.setdefault((start, stop), []).append(Change(file, node.lineno, start, stop, old, new))
    return [groups[place] for place in sorted(groups)]


def in_brackets(node):
    """The text of a new expression, in brackets where its place could need them."""
    text = ast.unparse(node)
    simple = isinstance(node, (ast.Constant, ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Slice))
    return text if simple and not text.startswith("-") else f"({text})"


def is_other_program(change):
    """Whether the file with the bug can be parsed, and differs in more than its layout."""
    try:
        return ast.dump(ast.parse(planted(change))) != ast.dump(ast.parse(source(change.file)))
    except SyntaxError:
        return False


def line_starts(text):
    """The byte at which each line begins."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def reachable(node):
    """The nodes below one, without docstrings, messages, annotations, decorators, imports and parts of f-strings."""
    for child in ast.iter_child_nodes(node):
        is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if is_docstring or isinstance(child, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.arg)):
            continue
        if child in getattr(node, "decorator_list", ()) or child in (getattr(node, "annotation", 0), getattr(node, "returns", 0)):
            continue
        yield child
        yield from reachable(child)


def choose(seed, count, files=TESTS):
    """``count`` changes: places are drawn without repeating one, then one of the changes of each place."""
    groups = [group for file in files for group in changes(file, source(file).decode())]
    draw = random.Random(seed)
    draw.shuffle(groups)
    drawn = (draw.choice(group) for group in groups)
    return list(itertools.islice(filter(is_other_program, drawn), count))


def survivors(path):
    """The bugs of a file of results that no test found. Raises: ValueError if the source has changed since."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = [Change(*(row[name] for name in Change._fields)) for row in rows if row["failure"] is None]
    for change in found:
        if source(change.file)[change.start : change.stop] != change.old.encode():
            raise ValueError(f"{change.file}, line {change.line}: the source has changed since {path} was written")
    return found


def source(file):
    return (ROOT / "vita_ref" / file).read_bytes()


def planted(change):
    """The file with the bug."""
    content = source(change.file)
    return content[: change.start] + change.new.encode() + content[change.stop :]


def write(path, content):
    """Writes a source file. Its bytecode goes, because Python knows it by size and second only."""
    path.write_bytes(content)
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        old.unlink()


# ---- running tests in a fork of this process, which has the libraries in memory


def seconds(start):
    """Processor time of the forks since then."""
    now = os.times()
    return now.children_user + now.children_system - start.children_user - start.children_system


def first_failure(tests, folder, limit):
    """The first test that fails in the copy, "limit" for one that takes too long, None if all pass."""
    failure = folder / "failure"
    failure.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        run_tests(tests, folder, limit, failure)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "limit" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else f"signal {os.WTERMSIG(status)}"
    if failure.exists():
        return failure.read_text(encoding="utf-8")
    return None if os.WEXITSTATUS(status) == 0 else f"status {os.WEXITSTATUS(status)}"


def run_tests(tests, folder, limit, failure):
    """The child: runs pytest and ends."""
    import pytest

    class First:
        @staticmethod
        def pytest_runtest_logreport(report):
            if report.failed and not failure.exists():
                failure.write_text(report.nodeid, encoding="utf-8")

        @staticmethod
        def pytest_collectreport(report):
            if report.failed and not failure.exists():
                failure.write_text(report.nodeid, encoding="utf-8")

    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tools", "vita_ref")]:
        del sys.modules[name]
    status = 1
    try:
        flags = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'files'}"]
        status = pytest.main([*flags, *(f"tests/{t}" for t in tests)], plugins=[First()])
    finally:
        os._exit(int(status))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    p.add_argument("--count", type=int, default=300, help="how many bugs (default: 300)")
    p.add_argument("--file", choices=TESTS, action="append", help="only bugs of this file; repeatable")
    p.add_argument("--limit", type=int, default=240, help="seconds of processor time for one bug (default: 240)")
    p.add_argument("--out", metavar="FILE", help="append the results to this file, and skip what it has")
    p.add_argument("--again", metavar="FILE", help="only the bugs that survived in this file of results")
    p.add_argument("--list", action="store_true", help="print the bugs and run no test")
    p.add_argument("--unchecked", action="store_true", help="do not run the tests of the unchanged files first")
    p.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th bug, from the I-th on: for several processes")
    a = p.parse_args(argv)
    part, parts = map(int, a.part.split("/"))
    chosen = survivors(a.again) if a.again else choose(a.seed, a.count, a.file or TESTS)
    chosen = chosen[part - 1 :: parts]
    if a.list:
        for change in chosen:
            print(json.dumps(change._asdict()))
        return 0
    return 1 if run(chosen, a) else 0


def run(chosen, a):
    """Plants the bugs one by one. Returns the number that survived."""
    import hypothesis.strategies  # noqa: F401 - the forks have these in memory
    import PIL.Image  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    out = Path(a.out) if a.out else None
    done = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out and out.exists() else []
    known, survived = {(d["file"], d["start"], d["new"]) for d in done}, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_project(folder)
        if not a.unchecked:
            tests = sorted({test for change in chosen for test in TESTS[change.file].split()})
            if (broken := first_failure(tests, folder, 10 * a.limit)) is not None:
                raise RuntimeError(f"without any bug, {broken} fails")
        for change in chosen:
            if (change.file, change.start, change.new) in known:
                continue
            start = os.times()
            write(folder / "vita_ref" / change.file, planted(change))
            failure = first_failure(TESTS[change.file].split(), folder, a.limit)
            write(folder / "vita_ref" / change.file, source(change.file))
            survived += failure is None
            line = json.dumps(change._asdict() | {"failure": failure, "seconds": round(seconds(start), 1)})
            print(line, flush=True)
            if out:
                with out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    return survived


if __name__ == "__main__":
    sys.exit(main())
