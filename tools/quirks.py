"""Writes tests/QUIRKS.md: the quirks of the trained model that the code keeps: python tools/quirks.py

    `# quirk:` comments of vita_ref/ + the corrections of tools/mutants.py -> one table

A quirk is behaviour of upstream that looks like a mistake, but that the trained weights need. The comment says what is
kept. The correction of a quirk is a planted bug, and it names the test that must fail if someone corrects the code.

Test: ``pytest tests/tools/test_mutants.py``
"""

import argparse
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.mutants import CORRECTIONS

OUT, MARK = ROOT / "tests/QUIRKS.md", "# quirk: "
HEAD = """# Quirks that are kept

Written by `python tools/quirks.py` from the `# quirk:` comments in `vita_ref/`. Each is behaviour of upstream's code that the
trained weights need. `python tools/mutants.py --quirks` corrects them one by one; the tests in the last column must then fail.

| file | what is kept | tests that hold it |
| --- | --- | --- |
"""


class Quirk(NamedTuple):
    """A comment: its file below vita_ref/, and its text in one line."""

    file: str
    text: str


def quirks():
    """All quirks of vita_ref/. Comment lines of their own that follow a `# quirk:` line go on with its text."""
    found = []
    for file in sorted((ROOT / "vita_ref").rglob("*.py")):
        name, code, last = file.relative_to(ROOT / "vita_ref").as_posix(), file.read_text(encoding="utf-8"), None
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type != tokenize.COMMENT:
                continue
            row, column = token.start
            alone = token.line[:column].isspace() or column == 0
            if token.string.startswith(MARK):
                found.append(Quirk(name, token.string.removeprefix(MARK)))
                last = row if alone else None
            elif alone and last == row - 1:
                found[-1] = Quirk(name, f"{found[-1].text} {token.string.lstrip('# ')}")
                last = row
    return found


def corrections(quirk):
    """The planted bugs that correct a quirk."""
    return [m for m in CORRECTIONS if m.quirk in quirk.text]


def table():
    """The page as Markdown."""
    lines = []
    for quirk in quirks():
        tests = "<br>".join(dict.fromkeys(f"`{m.tests}`" for m in corrections(quirk)))
        text = quirk.text[0].upper() + quirk.text[1:].rstrip(".").replace("|", r"\|")
        lines.append(f"| `{quirk.file}` | {text}. | {tests} |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    OUT.write_text(table(), encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)}: {len(quirks())} quirks")
