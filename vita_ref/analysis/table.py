"""The positions of a prompt as a table in the terminal, with the attention that they got: ``--explain``.

Test: ``pytest tests/analysis/test_look.py``
"""

import math

from ..files.messages import escaped

MANY = 64  # positions of a medium; with more of them a row of a picture or half a second of a sound is one line


def table(look):
    """Lines of text: one for each position, then the answer's tokens with their probabilities."""
    average = look.average.mean(0)
    falls = None if look.occlusion is None else look.occlusion.sum(0)
    head = ["position", "id", "kind", "what", "token", "attention"] + ["occlusion"] * (falls is not None)
    rows = [head]
    for group in groups(look.positions):
        first, last = group[0], group[-1]
        columns = [p.index for p in group]
        span = str(first.index) if len(group) == 1 else f"{first.index}-{last.index}"
        ids = str(first.position_id) if first.position_id == last.position_id else f"{first.position_id}-{last.position_id}"
        what = label(first) if len(group) == 1 else f"{label(first)} to {label(last)}"
        row = [span, ids, first.kind, what, "" if first.token_id is None else str(first.token_id)]
        row.append(f"{100 * average[columns].sum():.1f} %")
        if falls is not None:
            row.append("" if math.isnan(falls[columns[0]]) else f"{falls[columns].max():.3f}")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = {0, 1, 4, 5, 6}
    lines = ["  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in rows]
    said = ", ".join(f"{escaped(token.text)!r} {100 * token.probability:.1f} %" for token in look.tokens)
    notes = [
        "attention: the mean over layers, heads and the tokens of the answer (derived from what was observed)",
        *(["occlusion: how much the log-probability of these tokens falls if the place is covered (derived)"] * (falls is not None)),
        *look.notes,
    ]
    return "\n".join(line.rstrip() for line in [*lines, "", f"answer: {said}", *notes])


def label(position):
    """What a position holds, on one line."""
    return repr(escaped(position.text)) if position.kind in ("text", "answer") else position.text


def groups(positions):
    """Positions that share a line."""
    count = {}
    for p in positions:
        count[p.kind, p.medium] = count.get((p.kind, p.medium), 0) + 1
    found, before = [], None
    for p in positions:
        part = (p.medium, p.tile, p.row) if p.kind == "image" else (p.medium, None if p.start is None else int(2 * p.start))
        key = (p.kind, *part) if p.medium is not None and count[p.kind, p.medium] > MANY else (p.index,)
        if key == before:
            found[-1].append(p)
        else:
            found.append([p])
        before = key
    return found
