"""The embedding splice: text, images and sounds become one row of embeddings a sample. A pure function.

    ids   [ what is in <image> ? ]           one placeholder an image or sound
    rows  [ t t t | v v v v v v | t ]        its features in that place, then padding to a batch

It asks for no model: only for a way to embed ids and for the features, in the order in which the
batch's placeholders stand.

Letters: B batch, S ids in a row, L positions in a spliced row, D width, V and A rows of an image or sound.

Test: ``pytest tests/test_splice.py``
"""

from typing import NamedTuple

import torch

IGNORE = -100  # a label that the loss does not count


class Spliced(NamedTuple):
    """A padded batch of embeddings, [B, L] each but for ``inputs_embeds`` [B, L, D] and ``lengths`` [B].

    ``segments`` lists, for each sample, (kind, start, end) in the padded row: one run a placeholder,
    text between them, none of them empty.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor | None
    lengths: torch.Tensor
    segments: list


def splice(
    input_ids,
    embed,
    image_features=(),
    audio_features=(),
    attention_mask=None,
    labels=None,
    *,
    image_token,
    audio_token,
    padding_side="right",
    max_length=None,
    shared_v_pid_stride=None,
    state_labels=None,
):
    """Puts features in the place of their placeholders and pads the rows to a batch.

    Shapes: input_ids [B, S] long, or a list of [S_i]; image_features a sequence of [V_i, D] and
    audio_features of [A_i, D], one a placeholder in batch order; attention_mask [B, S] (False is
    padding, dropped first); labels as input_ids. ``state_labels`` has one label a sound, which lands
    on its last position; ``max_length`` keeps the beginning of each row; ``shared_v_pid_stride``
    gives that many image positions one position id.
    Raises: ValueError where the placeholders and the features differ in number, with both counts, or
    rows, masks, labels and features do not fit each other.
    Source: upstream vita_arch.py:308-640, without its dummies.

        splice(tensor([[5, -200, 7]]), embed, [torch.zeros(3, D)], image_token=-200, audio_token=-500)
        -> segments [[("text", 0, 1), ("image", 1, 4), ("text", 4, 5)]], position_ids [[0, 1, 2, 3, 4]]
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    if len(input_ids) == 0:
        raise ValueError("input_ids must have at least one row")
    for name, given in (("attention_mask", attention_mask), ("labels", labels)):
        if given is not None and [len(row) for row in given] != [len(row) for row in input_ids]:
            raise ValueError(
                f"{name} must have rows of {[len(row) for row in input_ids]} as input_ids has, "
                f"got {[len(row) for row in given]}"
            )
    rows, row_labels = unpadded(input_ids, attention_mask), unpadded(labels, attention_mask, len(input_ids))
    tokens = {"image": image_token, "audio": audio_token}
    waiting = {"image": list(image_features), "audio": list(audio_features)}
    for kind, features in waiting.items():
        count = sum(int((row == tokens[kind]).sum()) for row in rows)
        if count != len(features):
            raise ValueError(f"the prompt has {count} {kind} placeholders, but {len(features)} {kind}s were given")
    if state_labels is not None and len(state_labels) != len(waiting["audio"]):
        raise ValueError(f"{len(state_labels)} state_labels were given for {len(waiting['audio'])} audios")

    texts = [row[(row != image_token) & (row != audio_token)] for row in rows]
    embedded = iter(embed(torch.cat(texts)).split([len(t) for t in texts]))
    states = iter(state_labels if state_labels is not None else [IGNORE] * len(waiting["audio"]))
    waiting = {kind: iter(features) for kind, features in waiting.items()}

    built = []
    for row, target in zip(rows, row_labels):
        words, parts, part_labels, segments = next(embedded), [], [], []
        end = used = 0
        for kind, start, stop in runs(row, tokens):
            if kind == "text":
                part = words[used : used + stop - start]  # [S_i, D]
                label = None if target is None else target[start:stop]
                used += stop - start
            else:
                part = next(waiting[kind])
                if part.shape[1] != words.shape[1]:
                    raise ValueError(f"{kind} features must be {words.shape[1]} wide, got {list(part.shape)}")
                part = part.to(words)  # [V_i, D]
                label = None if target is None else target.new_full(part.shape[:1], IGNORE)
                if kind == "audio":
                    state = int(next(states))
                    if label is not None and len(label):
                        label[-1] = state
            parts.append(part)
            part_labels.append(label)
            segments.append((kind, end, end + len(part)))
            end += len(part)
        spans = [(a, b) for kind, a, b in segments if kind == "image"]
        positions = shared_position_ids(spans, end, 1 if shared_v_pid_stride is None else shared_v_pid_stride).to(row.device)
        joined = torch.cat(parts) if parts else words
        built.append((joined, positions, torch.cat(part_labels) if target is not None and parts else target, segments))
    return padded(built, padding_side, max_length)


def unpadded(rows, mask, count=None):
    """Rows as a list of 1-D tensors without padding; ``count`` times None where there are none."""
    if rows is None:
        return [None] * count
    if mask is None:
        return list(rows)
    return [row[kept.bool()] for row, kept in zip(rows, mask)]


def runs(row, tokens):
    """A row of ids as (kind, start, stop): each placeholder alone, the text between them in one piece."""
    kinds, start = {token: kind for kind, token in tokens.items()}, 0
    places = [i for i, token in enumerate(row.tolist()) if token in kinds]
    for place in [*places, len(row)]:
        if place > start:
            yield "text", start, place
        if place < len(row):
            yield kinds[int(row[place])], place, place + 1
        start = place + 1


def shared_position_ids(spans, length, stride):
    """Position ids in which ``stride`` neighbours inside a span share one; spans that touch are one.

    Shapes: spans are (start, end), end not included -> [length] long.
    Source: upstream vita_arch.py:604-639, in whole numbers (its float32 sum rounds apart at a stride of 7).

        shared_position_ids([(1, 6)], 8, stride=2) -> [0, 1, 1, 2, 2, 3, 4, 5]
    """
    if stride < 1:
        raise ValueError(f"shared_v_pid_stride must be at least 1, got {stride}")
    merged = []
    for start, end in sorted(spans):
        if merged and merged[-1][1] == start:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    steps = torch.ones(length, dtype=torch.long)  # [L]: 1 where a new position id begins
    for start, end in merged:
        steps[start:end] = (torch.arange(end - start) % stride == 0).long()
    return steps.cumsum(0) - 1


def padded(built, side, max_length):
    """Rows of (embeds [L_i, D], positions [L_i], labels or None, segments) cut, padded and stacked."""
    built = [
        (e[:max_length], p[:max_length], t if t is None else t[:max_length], cut(s, max_length)) for e, p, t, s in built
    ]
    first = built[0][0]
    lengths = [len(e) for e, *_ in built]
    b, longest = len(built), max(lengths)
    embeds = first.new_zeros(b, longest, first.shape[1])  # [B, L, D]
    mask = torch.zeros(b, longest, dtype=torch.bool, device=first.device)  # [B, L]
    positions = torch.zeros(b, longest, dtype=torch.long, device=first.device)  # [B, L]
    labels = None if built[0][2] is None else torch.full_like(positions, IGNORE)
    segments = []
    for i, (embed, position, label, parts) in enumerate(built):
        start = longest - len(embed) if side == "left" else 0
        here = slice(start, start + len(embed))
        embeds[i, here], mask[i, here], positions[i, here] = embed, True, position
        if labels is not None:
            labels[i, here] = label
        segments.append([(kind, a + start, b + start) for kind, a, b in parts])
    return Spliced(embeds, mask, positions, labels, torch.tensor(lengths, device=first.device), segments)


def cut(segments, max_length):
    """The segments of a row's first ``max_length`` positions, the empty ones left out."""
    ends = [(kind, a, b if max_length is None else min(b, max_length)) for kind, a, b in segments]
    return [(kind, a, b) for kind, a, b in ends if a < b]
