"""Checks every figure of upstream's language-model-layer.md against the modules, at full size.

    register.py   the claims of the document, by line
    run.py        the true values, from the ``documented`` preset
    check.py      the comparison: a claim holds, contradicts another line of the document, or is wrong

A false figure "contradicts itself" if another line has another figure for the same quantity; otherwise it is "wrong".
Exit status 1 if a verdict differs from the one in the register: the code or a figure has changed.

Run: ``python tools/document/check.py [--verdict wrong] [--json]``. Test: ``pytest tests/tools/test_document_check.py``
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.document.register import LETTERS, QUANTITIES
from tools.document.run import Run, VitaConfig

UNITS = {"MB": 1e6, "GB": 1e9, "million": 1e6, "billion": 1e9}
VERDICTS = {"holds": "holds", "contradicts": "contradicts itself", "wrong": "wrong"}
COLUMNS = {"line": 5, "claim": 45, "says": 25, "is": 24, "verdict": 18, "why": 0}  # and their widths


class Claim(NamedTuple):
    """A figure in a line of the document, with the verdict of the register."""

    line: int
    figure: object
    verdict: str


def claims(quantity):
    """All claims about a quantity."""
    for verdict in VERDICTS:
        for figure, lines in getattr(quantity, verdict).items():
            for line in lines if isinstance(lines, tuple) else (lines,):
                yield Claim(line, figure, verdict)


def value(figure):
    """A figure as numbers, so that 7 and 7.0 billion are equal."""
    if isinstance(figure, str) and figure.startswith("["):
        return tuple(LETTERS[n] if n in LETTERS else int(n) for n in figure[1:-1].split(", "))
    number, _, unit = str(figure).partition(" ")
    return float(number) * UNITS[unit] if unit in UNITS else figure


def agrees(figure, truth):
    """Whether a figure is true, to as many digits as it has."""
    number, _, unit = str(figure).partition(" ")
    if unit in UNITS:
        return round(truth / UNITS[unit], len(number.partition(".")[2])) == float(number)
    return value(figure) == (tuple(truth) if isinstance(truth, tuple) else truth)


def in_unit_of(figure, truth):
    """The true value, written in the unit of the figure."""
    unit = str(figure).partition(" ")[2]
    if unit in UNITS:
        return f"{truth / UNITS[unit]:.3g} {unit}"
    return f"[{', '.join(map(str, truth))}]" if isinstance(truth, tuple) else str(truth)


def verdict_of(claim, quantity, truth):
    """The verdict on a claim and the reason: (key of `VERDICTS`, text)."""
    reasons = [quantity.arithmetic, quantity.note]
    others = [c for c in claims(quantity) if value(c.figure) != value(claim.figure)]
    if agrees(claim.figure, truth):
        all_hold = not quantity.contradicts and not quantity.wrong  # otherwise the note is about the false ones
        return "holds", quantity.note if all_hold else ""
    if others:
        other = min(others, key=lambda c: not agrees(c.figure, truth))  # one that holds, if there is one
        return "contradicts", "; ".join(filter(None, [f"line {other.line} has {other.figure}", *reasons]))
    return "wrong", "; ".join(filter(None, reasons))


def judge(quantity, run):
    """The claims about one quantity as rows of the table, and the differences from the register."""
    truth, rows, problems = quantity.truth(run), [], []
    for claim in claims(quantity):
        found, why = verdict_of(claim, quantity, truth)
        true_value = in_unit_of(claim.figure, truth)
        row = {"line": claim.line, "claim": quantity.name, "says": str(claim.figure), "is": true_value}
        rows.append(row | {"verdict": VERDICTS[found], "recorded": VERDICTS[claim.verdict], "why": why})
        if found != claim.verdict:
            verdicts = f"recorded {VERDICTS[claim.verdict]}, found {VERDICTS[found]}"
            problems.append(f"line {claim.line}, {quantity.name}: {verdicts} ({true_value})")
    if quantity.arithmetic and eval(quantity.arithmetic) != truth:  # text of the register
        problems.append(f"{quantity.name}: {quantity.arithmetic} is not {truth}")
    return rows, problems


@torch.inference_mode()
def check(quantities, run):
    """All rows in the order of lines, and all differences from the register."""
    judged = [judge(quantity, run) for quantity in quantities]
    rows = [row for rows, _ in judged for row in rows]
    return sorted(rows, key=lambda row: row["line"]), [problem for _, problems in judged for problem in problems]


def print_row(row):
    print("  ".join(f"{row[name]:<{width}}" for name, width in COLUMNS.items()).rstrip())


def main(argv=None):
    parser = argparse.ArgumentParser(description="Checks the sizes in language-model-layer.md.")
    parser.add_argument("--verdict", choices=VERDICTS, help="print these claims only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    rows, problems = check(QUANTITIES, Run(VitaConfig.preset("documented")))
    counts = Counter(row["verdict"] for row in rows)
    chosen = [row for row in rows if args.verdict is None or row["verdict"] == VERDICTS[args.verdict]]
    if args.json:
        print(json.dumps({"counts": counts, "claims": chosen, "problems": problems}, indent=1))
    else:
        print_row({name: name for name in COLUMNS})
        for row in chosen:
            print_row(row)
        print(f"\n{len(rows)} claims:", ", ".join(f"{counts[v]} {v}" for v in VERDICTS.values()))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
