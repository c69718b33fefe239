"""The embedding splice: text, images and sounds become one row of embeddings. A pure function.

    ids        [ what is <image> ? ]          one placeholder for each image or sound
    embeddings [ t    t  i i i i i t ]        its features replace the placeholder; then rows are padded

The splice needs no model, only a function that embeds ids, and the features in the order of the placeholders.

B batch rows, S positions of a spliced row, D decoder width, I positions of an image, A of a sound; n ids of a row.

Test: ``pytest tests/test_splice.py``
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

IGNORE = -100  # a label that the loss ignores


class Spliced(NamedTuple):
    """A padded batch of embeddings.

    Shapes: inputs_embeds [B, S, D]; attention_mask [B, S] bool; position_ids and labels [B, S] long; lengths [B] long.
    ``segments`` has for each row a list of (kind, start, end) in the padded row: one entry for each placeholder and for
    each piece of text between placeholders. No segment is empty.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor | None
    lengths: torch.Tensor
    segments: list


class Row(NamedTuple):
    """One spliced row before padding: embeds [S, D], positions [S], labels [S] or None, segments."""

    embeds: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor | None
    segments: list


def splice(
    input_ids: torch.Tensor | Sequence[torch.Tensor], embed: Callable[[torch.Tensor], torch.Tensor],
    image_features: Sequence[torch.Tensor] | torch.Tensor = (),
    audio_features: Sequence[torch.Tensor] | torch.Tensor = (), attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | Sequence[torch.Tensor] | None = None, *, image_token: int, audio_token: int,
    padding_side: str = "right", max_length: int | None = None, shared_v_pid_stride: int | None = None,
    state_labels: Sequence[int] | None = None,
) -> Spliced:  # fmt: skip
    """Replaces each placeholder by its features and pads the rows to a batch.

    Shapes: input_ids [B, n] long, or a list of [n_i]; image_features a sequence of [I_i, D] and audio_features of
    [A_i, D], one for each placeholder in batch order; attention_mask [B, n], False on padding, which is dropped
    first; labels like input_ids. ``state_labels`` has one label for each sound, written on the sound's last position;
    ``max_length`` keeps the beginning of each row; ``shared_v_pid_stride`` image positions share one position id.
    Raises: ValueError if placeholders and features differ in number (with both counts), or if shapes do not match.
    Source: upstream vita_arch.py:308-640, without its dummy images and sounds.

        splice(tensor([[5, -200, 7]]), embed, [torch.zeros(3, D)], image_token=-200, audio_token=-500)
        -> segments [[("text", 0, 1), ("image", 1, 4), ("text", 4, 5)]], position_ids [[0, 1, 2, 3, 4]]
    """
    tokens = {"image": image_token, "audio": audio_token}
    features = {"image": list(image_features), "audio": list(audio_features)}
    check_rows(input_ids, attention_mask, labels, padding_side)
    rows = drop_padding(input_ids, attention_mask)
    label_rows = [None] * len(rows) if labels is None else drop_padding(labels, attention_mask)
    check_counts(rows, tokens, features, state_labels)

    texts = [row[(row != image_token) & (row != audio_token)] for row in rows]
    embedded = embed(torch.cat(texts)).split([len(text) for text in texts])  # all rows at once
    remaining = {kind: iter(values) for kind, values in features.items()}
    states = iter([IGNORE] * len(features["audio"]) if state_labels is None else state_labels)
    stride = 1 if shared_v_pid_stride is None else shared_v_pid_stride
    spliced = []
    for row, text, row_labels in zip(rows, embedded, label_rows):
        spliced.append(splice_row(row, text, row_labels, tokens, remaining, states, stride))
    return pad_rows([truncate(row, max_length) for row in spliced], padding_side)


def splice_row(ids, text, labels, tokens, remaining, states, stride):
    """One row. ``text`` has the embeddings of its text ids; ``remaining`` yields the next features of each kind."""
    parts, part_labels, segments, end = [text[:0]], [], [], 0
    for kind, start, stop in runs(ids, tokens):
        if kind == "text":
            part, text = text[: stop - start], text[stop - start :]  # [n_i, D] and the rest
            label = None if labels is None else labels[start:stop]
        else:
            part = next(remaining[kind])
            check_width(part, text, kind)
            label = None if labels is None else labels.new_full(part.shape[:1], IGNORE)
            if kind == "audio" and labels is not None:
                label[-1:] = int(next(states))
        parts.append(part.to(text))
        part_labels.append(label)
        segments.append((kind, end, end + len(part)))
        end += len(part)
    spans = [(first, last) for kind, first, last in segments if kind == "image"]
    positions = shared_position_ids(spans, end, stride).to(ids.device)  # [S]
    joined = labels if labels is None or not part_labels else torch.cat(part_labels)
    return Row(torch.cat(parts), positions, joined, segments)


def runs(ids, tokens):
    """A row of ids as (kind, start, stop): each placeholder alone, and each piece of text between them."""
    kinds, start = {token: kind for kind, token in tokens.items()}, 0
    places = [i for i, token in enumerate(ids.tolist()) if token in kinds]
    for place in [*places, len(ids)]:
        if place > start:
            yield "text", start, place
        if place < len(ids):
            yield kinds[int(ids[place])], place, place + 1
        start = place + 1


def shared_position_ids(spans: Sequence[tuple[int, int]], length: int, stride: int) -> torch.Tensor:
    """Position ids in which ``stride`` neighbours within a span share one id. Spans that touch are one span.

    Shapes: spans are (start, end), end not included -> [S] long, S = length.
    Source: upstream vita_arch.py:604-639, in integers (its float32 sum rounds differently for a stride of 7).

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
    steps = torch.ones(length, dtype=torch.long)  # [S]: 1 where a new position id begins
    for start, end in merged:
        steps[start:end] = (torch.arange(end - start) % stride == 0).long()
    return steps.cumsum(0) - 1


def truncate(row, max_length):
    """The first ``max_length`` positions of a row (all if None), without empty segments."""
    length = len(row.embeds) if max_length is None else max_length
    segments = [(kind, start, min(end, length)) for kind, start, end in row.segments]
    segments = [(kind, start, end) for kind, start, end in segments if start < end]
    labels = None if row.labels is None else row.labels[:length]
    return Row(row.embeds[:length], row.positions[:length], labels, segments)


def pad_rows(rows, side):
    """Rows of different lengths as one `Spliced` batch, padded on the ``side``."""
    first, lengths = rows[0].embeds, [len(row.embeds) for row in rows]
    b, longest = len(rows), max(lengths)
    embeds = first.new_zeros(b, longest, first.shape[1])  # [B, S, D]
    mask = torch.zeros(b, longest, dtype=torch.bool, device=first.device)  # [B, S]
    positions = torch.zeros(b, longest, dtype=torch.long, device=first.device)  # [B, S]
    labels = None if rows[0].labels is None else torch.full_like(positions, IGNORE)
    segments = []
    for i, row in enumerate(rows):
        start = longest - lengths[i] if side == "left" else 0
        filled = slice(start, start + lengths[i])
        embeds[i, filled], mask[i, filled], positions[i, filled] = row.embeds, True, row.positions
        if labels is not None:
            labels[i, filled] = row.labels
        segments.append([(kind, start + first_column, start + end) for kind, first_column, end in row.segments])
    return Spliced(embeds, mask, positions, labels, torch.tensor(lengths, device=first.device), segments)


def drop_padding(rows, mask):
    """Rows as a list of 1-D tensors without their padding."""
    return list(rows) if mask is None else [row[kept.bool()] for row, kept in zip(rows, mask)]


def check_rows(input_ids, attention_mask, labels, padding_side):
    """Refuses ids, masks and labels that do not match."""
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    if len(input_ids) == 0:
        raise ValueError("input_ids must have at least one row")
    expected = [len(row) for row in input_ids]
    for name, given in (("attention_mask", attention_mask), ("labels", labels)):
        if given is not None and (got := [len(row) for row in given]) != expected:
            raise ValueError(f"{name} must have rows of {expected} as input_ids has, got {got}")


def check_counts(rows, tokens, features, state_labels):
    """Refuses prompts whose number of placeholders is not the number of features."""
    for kind, values in features.items():
        count = sum(int((row == tokens[kind]).sum()) for row in rows)
        if count != len(values):
            raise ValueError(count_message(count, len(values), kind))
    if state_labels is not None and len(state_labels) != len(features["audio"]):
        expected = f"{len(features['audio'])} entries, one for each sound"
        raise ValueError(f"state_labels must have {expected}, got {len(state_labels)}")


def count_message(placeholders, given, kind):
    """The message for a number of placeholders that is not the number of images or sounds."""
    has = f"{placeholders} {kind} placeholder{'s' * (placeholders != 1)}"
    return f"the prompt has {has}, but {given} {kind}{'s' * (given != 1)} {'was' if given == 1 else 'were'} given"


def check_width(part, text, kind):
    """Refuses features that are not as wide as the decoder."""
    if part.shape[1] != text.shape[1]:
        raise ValueError(f"{kind} features must be {text.shape[1]} wide, got {list(part.shape)}")
