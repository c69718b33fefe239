"""Counts the code lines on the road of one request: python tools/count_path.py [--all]

It answers about weights/demo/example.jpg, notes every function of vita_ref that is called, and counts their lines
without blank lines, comments and docstrings. Files that a learner reads count; files/, scale/, analysis/, voice/, cli/
and config.py are listed beside them with --all.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PACKAGE = ROOT / "vita_ref"


def called_functions(run):
    """The (file, first line) of every function of the package that ``run()`` calls."""
    called = set()

    def profile(frame, event, arg):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            called.add((Path(frame.f_code.co_filename), frame.f_code.co_firstlineno))

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return called


def code_lines(source):
    """The numbers of the lines that hold code: no blank lines, comments or docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def count(called):
    """File -> code lines of the functions that were called."""
    counted = defaultdict(set)
    for file in {file for file, _ in called}:
        source = file.read_text(encoding="utf-8")
        code = code_lines(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                starts = [node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]
                if any((file, start) in called for start in starts):
                    counted[file] |= code & set(range(min(starts), node.end_lineno + 1))
    return {file.relative_to(PACKAGE): len(lines) for file, lines in counted.items()}


def answer():
    """One real run of the command line."""
    from vita_ref.generate import main

    with redirect_stdout(io.StringIO()):
        assert main(["--image", str(ROOT / "weights/demo/example.jpg")]) == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also list the files that are not part of the reading path")
    every = parser.parse_args().all
    lines = count(called_functions(answer))
    reading = {file: n for file, n in lines.items() if len(file.parts) == 1 and file.name != "config.py"}
    for file, n in sorted((lines if every else reading).items(), key=lambda item: -item[1]):
        print(f"{n:5} {file}{'' if file in reading else '   (not on the reading path)'}")
    flags = sum(n for file, n in lines.items() if file.parts[0] == "cli")
    print(f"{sum(reading.values()):5} lines on the reading path, and {flags} in cli/")


if __name__ == "__main__":
    main()
