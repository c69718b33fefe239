"""The arguments of a forward pass, declared once, and their checks.

B batch rows, S new positions, D decoder width.

Test: ``pytest tests/test_model.py``
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from .masks import new_columns
from .splice import count_message


@dataclass(frozen=True)
class Batch:
    """The arguments of a forward pass, declared once; `Vita.forward` describes them."""

    input_ids: torch.Tensor | list | None = None
    images: torch.Tensor | list | None = None
    audios: dict | None = None
    attention_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    labels: torch.Tensor | list | None = None
    inputs_embeds: torch.Tensor | None = None
    sf_masks: list | torch.Tensor | None = None
    shared_v_pid_stride: int | None = None

    @property
    def has_media(self):
        """Whether the rows must be spliced."""
        return self.images is not None or self.audios is not None or isinstance(self.input_ids, list)

    def check(self, width):
        """Returns the batch unchanged. Raises: ValueError if arguments contradict each other or have a wrong shape."""
        if (self.input_ids is None) == (self.inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        for name in ("input_ids", "attention_mask", "labels"):
            given = getattr(self, name)
            if isinstance(given, torch.Tensor) and given.dim() != 2:
                raise ValueError(f"{name} must be [B, S], got {list(given.shape)}")
        if self.inputs_embeds is not None:
            if self.has_media:
                raise ValueError("images and audios need input_ids with their placeholders, not inputs_embeds")
            if self.inputs_embeds.dim() != 3 or self.inputs_embeds.shape[2] != width:
                raise ValueError(f"inputs_embeds must be [B, S, {width}], got {list(self.inputs_embeds.shape)}")
        elif self.has_media and self.position_ids is not None:
            raise ValueError("position_ids cannot be given for a spliced prompt: the splice makes them")
        return self


class Inputs(NamedTuple):
    """The inputs of the decoder, made from a batch.

    Shapes: embeds [B, S, D]; mask, positions and labels [B, S] or None; segments as in `Spliced`, or None. ``batch``
    holds the arguments that these were made from.
    """

    embeds: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    labels: torch.Tensor | None
    segments: list | None
    batch: Batch


def text_ids(batch, config, cache=None):
    """The ids of a batch without media. Padding, which may be any id, becomes 0.

    Raises: ValueError for placeholders.
    """
    ids, mask = batch.input_ids, batch.attention_mask
    if ids.is_meta:
        return ids
    if mask is not None and mask.device == ids.device:
        real = new_columns(mask, *ids.shape, cache)
        ids = ids if real is None else ids.where(real, 0)  # [B, S]
    for kind, token in (("image", config.image_token_index), ("audio", config.audio_token_index)):
        if count := int((ids == token).sum()):
            raise ValueError(count_message(count, 0, kind))
    return ids


def check_inputs(x):
    """Refuses empty prompts, and labels of another shape than the prompt."""
    if x.embeds.shape[1] == 0 or (x.mask is not None and not x.mask.is_meta and not x.mask.any(1).all()):
        raise ValueError("a prompt is empty: it must have at least one token")
    if x.labels is not None and (isinstance(x.labels, list) or x.labels.shape != x.embeds.shape[:2]):
        got = "a list" if isinstance(x.labels, list) else list(x.labels.shape)
        raise ValueError(f"labels must be {list(x.embeds.shape[:2])} like the prompt, got {got}")


def split_options(options, *classes):
    """Keyword arguments as one dict for each dataclass that has fields of these names.

    Raises: TypeError for a name that none of them has.
    """
    names = [{f.name for f in fields(cls)} for cls in classes]
    if unknown := options.keys() - set.union(*names):
        raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
    return [{name: value for name, value in options.items() if name in known} for known in names]


def audio_rows(audios, config):
    """The ``audios`` argument: sounds cut to their lengths, numbers of positions to keep, and which are filter banks.

    Raises: ValueError if a length, the kind or a width does not match.
    """
    if not isinstance(audios, dict) or "audios" not in audios:
        raise ValueError('audios must be a dict with the sounds under "audios", and optionally their "lengths"')
    rows, kind = list(audios["audios"]), audios.get("kind")
    if kind not in (None, "embeds", "fbank"):
        raise ValueError(f"the kind of audios must be 'embeds', 'fbank' or None, got {kind!r}")
    lengths, kept = (int_list(audios.get(name), name, len(rows)) for name in ("lengths", "lengths_for_llm"))
    width, bins = config.decoder.hidden_size, config.audio and config.audio.num_mel_bins
    rows = [row[:n] for row, n in zip(rows, lengths)]
    is_bank = [kind == "fbank" or kind is None and (row.shape[-1] != width or width == bins) for row in rows]
    if wrong := [list(row.shape) for row, bank in zip(rows, is_bank) if not bank and row.shape[-1] != width]:
        raise ValueError(f"embeddings of a sound must be {width} wide, got {wrong[0]}")
    return rows, kept, is_bank


def int_list(given, name, n):
    """``given`` as a list of ``n`` ints of at least 0; ``n`` times None if nothing is given."""
    if given is None:
        return [None] * n
    values = [int(x) for x in given]
    if len(values) != n or min(values, default=0) < 0:
        raise ValueError(f"{name} must have {n} integers of at least 0, one for each sound, got {values}")
    return values
