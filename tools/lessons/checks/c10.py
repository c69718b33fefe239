"""The check of lesson 10, the splice."""

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref import splice as package_splice

PLACEHOLDER = -200
TABLE = torch.arange(10.0)[:, None] + torch.tensor([0.1, 0.2])  # the row of token 5 is [5.1, 5.2]


def embed(ids):
    """As the package's `embed`, it refuses what is not in the table."""
    ids = torch.as_tensor(ids)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(TABLE):
        raise ValueError(f"embed takes ids from 0 to {len(TABLE) - 1}, got {ids.tolist()}: a placeholder is no token")
    return TABLE[ids.long()]


def splice(rows, embed, features, placeholder, side):
    out = package_splice(rows, embed, features, image_token=placeholder, audio_token=-500, padding_side=side)
    return out.inputs_embeds, out.attention_mask, out.position_ids


def splice_row(ids, embed, features, placeholder):
    return splice([ids], embed, features, placeholder, "right")[0][0]


def picture(n, number):
    """n rows of a picture: -number.0, -number.1 and so on."""
    return (-number - torch.arange(n) / 10)[:, None].expand(n, 2)


def row(*ids):
    return torch.tensor(ids)


def cases():
    p = PLACEHOLDER
    text, with_picture = row(9, 8), row(5, p, 7)
    three = [picture(3, 1)]
    joined = torch.cat([TABLE[[5]], three[0], TABLE[[7]]])
    padded = torch.cat([TABLE[[9, 8]], torch.zeros(3, 2)])
    two = [row(1, p), row(p, 2, p, 3)], [picture(2, 1), picture(1, 2), picture(3, 3)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 0, 0]])
    left = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
    flipped = torch.stack([joined, padded.roll(3, 0)])
    return [
        Case("the row of the text", "splice_row", lambda my: my.splice_row(with_picture, embed, three, p), joined),
        Case("text alone", "splice_row", lambda my: my.splice_row(text, embed, [], p), TABLE[[9, 8]]),
        Case("two pictures side by side at the start", "splice_row",
             lambda my: my.splice_row(row(p, p, 4), embed, [picture(2, 1), picture(1, 2)], p),
             torch.cat([picture(2, 1), picture(1, 2), TABLE[[4]]])),
        Case("a picture at the end", "splice_row", lambda my: my.splice_row(row(4, 3, p), embed, three, p),
             torch.cat([TABLE[[4, 3]], three[0]])),
        Case("one row as a batch: positions count the picture's rows", "splice",
             lambda my: my.splice([with_picture], embed, three, p, "right"),
             (joined[None], torch.ones(1, 5).bool(), torch.arange(5)[None])),
        Case("the batch of the text, padded on the right", "splice",
             lambda my: my.splice([with_picture, text], embed, three, p, "right"), (torch.stack([joined, padded]), mask, positions)),
        Case("the same, padded on the left", "splice",
             lambda my: my.splice([with_picture, text], embed, three, p, "left"),
             (flipped, torch.stack([mask[0], mask[1].flip(0)]), left)),
        Case("two rows share out three pictures", "splice", lambda my: my.splice(*two[:1], embed, two[1], p, "right")),
        Case("the same on the left, with features of width 4", "splice",
             lambda my: my.splice([row(1, p), row(p, 2, p, 3)], lambda ids: randn(10, 4)[ids], [randn(n, 4, seed=n) for n in (2, 1, 3)], p, "left")),
    ]  # fmt: skip


def one_row(ids, embed, features, placeholder, keep=False, last=False, tail=True):
    """A row, with a copy of token 0 in the placeholder's place (``keep``), with all pictures at the end (``last``), or up to
    the last picture alone (without ``tail``)."""
    if not tail and (ids == placeholder).any():
        ids = ids[: int((ids == placeholder).nonzero()[-1]) + 1]
    elif not tail:
        return embed(ids[:0])
    parts, rest = [], list(features)
    for i in ids.tolist():
        if i != placeholder:
            parts.append(embed(torch.tensor([i])))
            continue
        parts += [embed(torch.tensor([0]))] if keep else []
        parts += [] if last else [rest.pop(0)]
    return torch.cat([*parts, *rest] if last else parts)


def batch(rows, embed, features, placeholder, side, share="next", positions="real", pad="zero", mask="real", join=one_row):
    spliced, at = [], 0
    for r in rows:
        n = int((r == placeholder).sum())
        own = {"next": features[at : at + n], "restart": features[:n], "reversed": features[::-1][at : at + n]}[share]
        spliced.append(join(r, embed, own, placeholder))
        at += n
    width = max(map(len, spliced))
    embeds = torch.zeros(len(rows), width, spliced[0].shape[1])
    if pad == "token":
        embeds[:] = embed(torch.tensor([0]))
    real, ids = torch.zeros(len(rows), width).bool(), torch.zeros(len(rows), width).long()
    for i, (x, r) in enumerate(zip(spliced, rows)):
        place = slice(width - len(x), width) if side == "left" else slice(0, len(x))
        embeds[i, place], real[i, place] = x, True
        ids[i, place] = torch.arange(len(x))
        if positions == "columns":
            ids[i] = torch.arange(width)
        elif positions == "own columns":
            ids[i, place] = torch.arange(width)[place]
        elif positions == "one":
            ids[i, place] += 1
        elif positions == "ids":
            ids[i, place] = moved(r, len(x), placeholder)
        elif positions == "last":
            ids[i] = torch.where(real[i], ids[i], len(x) if side == "right" else 0)
    if mask == "all":
        real[:] = True
    return embeds, ~real if mask == "inverted" else real, ids


def moved(ids, length, placeholder):
    """Position ids in which a picture takes one position, whatever its rows."""
    extra = length - len(ids)
    n = int((ids == placeholder).sum())
    out = []
    for position, i in enumerate(ids.tolist()):
        out += [position] * (1 + (extra // n if n and i == placeholder else 0))
    return torch.tensor((out + [len(ids)] * length)[:length])


def with_batch(**options):
    return {"splice": lambda *a: batch(*a, **options)}


def with_row(**options):
    join = lambda *a: one_row(*a, **options)
    return {"splice_row": join, "splice": lambda *a: batch(*a, join=join)}


LESSON = Lesson(
    10, "splice", "the splice", {"splice_row": splice_row, "splice": splice}, cases,
    (
        Mistake("the placeholder kept", "the picture was put in behind the placeholder, which still has a row of its own.",
                "replace the placeholder: its own row must not be there.", with_row(keep=True)),
        Mistake("pictures at the end of the row", "the picture was appended; it belongs where the placeholder stands.",
                "go through the ids in order, and put the picture's rows in the placeholder's place.", with_row(last=True)),
        Mistake("the text behind the last picture lost", "the row ends with its last picture.",
                "embed what stands behind the last placeholder, too.", with_row(tail=False)),
        Mistake("one row for a picture", "a placeholder became one row. It becomes all rows of its picture.",
                "put all rows [I, D] in the placeholder's place.",
                {"splice_row": lambda ids, e, f, p: one_row(ids, e, [x[:1] for x in f], p)},
                ({"splice_row": lambda ids, e, f, p: one_row(ids, e, [x.mean(0, keepdim=True) for x in f], p)},)),
        Mistake("pictures in the wrong order", "the first placeholder got the last picture.", "take the features in order.",
                {"splice_row": lambda ids, e, f, p: one_row(ids, e, f[::-1], p), "splice": lambda *a: batch(*a, share="reversed")}),
        Mistake("every row takes the first pictures", "row 1 got the picture of row 0.",
                "go on in the list of features where the row before has stopped.", with_batch(share="restart")),
        Mistake("position ids not moved after a picture", "a picture took one position, whatever its rows: later words come too early.",
                "count the rows after the splice, not the ids before it.", with_batch(positions="ids")),
        Mistake("positions count padding", "the columns were numbered. Padding takes no position, and has the id 0.",
                "number the real rows of each row of the batch from 0, wherever they stand; 0 on padding.", with_batch(positions="columns"),
                (with_batch(positions="own columns"),)),
        Mistake("positions counted from one", "the first real row has the position 0.", "begin with 0.", with_batch(positions="one")),
        Mistake("positions go on into the padding", "padding has the position id 0.", "write 0 on padding.", with_batch(positions="last")),
        Mistake("padding on the wrong side", "left and right are swapped.", 'with side "left" the padding stands in front of the row.',
                {"splice": lambda r, e, f, p, side: batch(r, e, f, p, "left" if side == "right" else "right")}),
        Mistake("padding always on the right", "side was not used.", 'with side "left" the padding stands in front of the row.',
                {"splice": lambda r, e, f, p, side: batch(r, e, f, p, "right")}),
        Mistake("padding embedded", "padding has the row of token 0. It should be zeros.", "fill the padding with zeros.",
                with_batch(pad="token")),
        Mistake("padding attended", "the mask is True on padding.", "the mask is True on real rows alone.", with_batch(mask="all")),
        Mistake("mask inverted", "the mask marks the padding. It should mark the real rows.", "True is real, False is padding.",
                with_batch(mask="inverted")),
    ),
    {"splice_row": "cut the ids at the placeholders; embed each piece of text; between two pieces put the next picture's rows; join all "
                   "with torch.cat.",
     "splice": "splice each row with its own share of the features; find the longest; for each row fill a slice of zeros [B, S, D], of the mask "
               "and of the position ids, at the beginning (right padding) or at the end (left padding)."},
    ("splice",),
)  # fmt: skip
