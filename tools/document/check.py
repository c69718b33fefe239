"""Checks every figure of upstream's language-model-layer.md against the modules, at full size.

    claims_register.py says what the document says, by line
    claims_run.py      runs the ``documented`` preset: what is so
    here               the two are compared: holds, contradicts itself, or wrong

A figure that is not the truth contradicts the document itself where another line has another figure
for the same quantity; else it is wrong.

Exit status 1 where a verdict is not the one in the register: then the code has changed, or a figure.

Run: ``python tools/check_claims.py [--verdict wrong] [--json]``. Test: ``pytest tests/test_check_claims.py``
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.document.register import LETTERS, QUANTITIES
from tools.document.run import Run, VitaConfig

UNITS = {"MB": 1e6, "GB": 1e9, "million": 1e6, "billion": 1e9}
VERDICTS = {"holds": "holds", "contradicts": "contradicts itself", "wrong": "wrong"}


def read(said):
    """A figure as numbers, so that 7 and 7.0 billion are the same."""
    if isinstance(said, str) and said.startswith("["):
        return tuple(LETTERS[n] if n in LETTERS else int(n) for n in said[1:-1].split(", "))
    number, _, unit = str(said).partition(" ")
    return float(number) * UNITS[unit] if unit in UNITS else said


def agrees(said, truth):
    """Whether a figure is the truth, to as many digits as it has."""
    number, _, unit = str(said).partition(" ")
    if unit in UNITS:
        return round(truth / UNITS[unit], len(number.partition(".")[2])) == float(number)
    return read(said) == (tuple(truth) if isinstance(truth, tuple) else truth)


def shown(truth, said):
    """The truth in the unit of the figure."""
    unit = str(said).partition(" ")[2]
    if unit in UNITS:
        return f"{truth / UNITS[unit]:.3g} {unit}"
    return f"[{', '.join(map(str, truth))}]" if isinstance(truth, tuple) else str(truth)


def judge(quantity, run):
    """Every claim about one quantity, as rows of the table, with the verdict found anew beside the recorded one."""
    truth, rows = quantity.truth(run), []
    recorded = [
        (line, said, verdict)
        for verdict in VERDICTS
        for said, lines in getattr(quantity, verdict).items()
        for line in (lines if isinstance(lines, tuple) else (lines,))
    ]
    for line, said, verdict in recorded:
        others = [(other, figure) for other, figure, _ in recorded if read(figure) != read(said)]
        why = [quantity.arithmetic, quantity.note]
        if agrees(said, truth):  # a note is about what does not hold, where anything does not
            found, why = "holds", [] if quantity.contradicts or quantity.wrong else why[1:]
        elif others:  # first those that hold
            other, figure = min(others, key=lambda o: not agrees(o[1], truth))
            found, why = "contradicts", [f"line {other} has {figure}", *why]
        else:
            found = "wrong"
        row = {"line": line, "claim": quantity.name, "says": str(said), "is": shown(truth, said)}
        rows.append(
            row | {"verdict": VERDICTS[found], "recorded": VERDICTS[verdict], "why": "; ".join(filter(None, why))}
        )
    problems = [
        f"line {r['line']}, {r['claim']}: recorded {r['recorded']}, found {r['verdict']} ({r['is']})"
        for r in rows
        if r["verdict"] != r["recorded"]
    ]
    if quantity.arithmetic and eval(quantity.arithmetic) != truth:  # text of our own register
        problems.append(f"{quantity.name}: {quantity.arithmetic} is not {truth}")
    return rows, problems


@torch.inference_mode()
def check(quantities, run):
    """All rows in the order of lines, and where they are not as recorded."""
    judged = [judge(q, run) for q in quantities]
    return sorted((r for rows, _ in judged for r in rows), key=lambda r: r["line"]), [p for _, ps in judged for p in ps]


def main(argv=None):
    parser = argparse.ArgumentParser(description="What language-model-layer.md says about sizes, checked.")
    parser.add_argument("--verdict", choices=VERDICTS, help="only these claims")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    args = parser.parse_args(argv)
    rows, problems = check(QUANTITIES, Run(VitaConfig.preset("documented")))
    counts = Counter(r["verdict"] for r in rows)
    wanted = [r for r in rows if args.verdict is None or r["verdict"] == VERDICTS[args.verdict]]
    if args.json:
        print(json.dumps({"counts": counts, "claims": wanted, "problems": problems}, indent=1))
    else:
        layout = "{line:>5}  {claim:<45}  {says:<25}  {is:<24}  {verdict:<18}  {why}"
        print(layout.format(**{name: name for name in ("line", "claim", "says", "is", "verdict", "why")}))
        for row in wanted:
            print(layout.format(**row).rstrip())
        print(f"\n{len(rows)} claims:", ", ".join(f"{counts[v]} {v}" for v in VERDICTS.values()))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
