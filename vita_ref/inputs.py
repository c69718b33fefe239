"""The arguments of a forward pass, declared once, how they become inputs of the decoder, and its results.

    Batch -> features of images and sounds -> splice -> Inputs

B batch rows, S new positions, D decoder width, V vocabulary, N images or sounds, I, A positions of one, J frames, M mel
bins; n ids of a row.

Test: ``pytest tests/test_model.py``
"""

import contextlib
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .audio import audio_token_count
from .cache import KVCache
from .checks.batch import check_audios, check_batch, check_labels, check_sf_masks
from .checks.media import check_finite, is_length
from .files.messages import shown
from .masks import new_columns
from .splice import count_message, splice
from .video import slow_fast


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


class VitaOutput(NamedTuple):
    """The result of one pass.

    Shapes: logits [B, S, V]; loss a scalar or None; hidden_states and attentions as in `DecoderOutput`. ``cache`` is
    None while gradients are recorded; ``segments`` are those of `Spliced`, None if nothing was spliced.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None
    cache: KVCache | None
    hidden_states: tuple | None
    attentions: tuple | None
    segments: list | None


class Step(NamedTuple):
    """One step of the loop: the chosen ids [B], the logits [B, V] that they were chosen from, and which rows [B] had
    ended before it or failed in it."""

    ids: torch.Tensor
    logits: torch.Tensor
    ended: torch.Tensor


# ---- from a batch to the decoder's inputs


def decoder_inputs(vita, batch, cache=None, finite=True, progress=None):
    """A `Batch` as inputs of the decoder: text is embedded, media are encoded and spliced in.

    ``progress`` is called with what is encoded, how many of its positions are done, and how many there are.
    Raises: ValueError as `check_batch`; NaN and infinity are accepted without ``finite``.
    """
    batch = check_batch(batch, vita.config, vita.decoder.norm.weight, finite)
    if batch.inputs_embeds is not None:
        return Inputs(batch.inputs_embeds, batch.attention_mask, batch.position_ids, batch.labels, None, batch)
    if not batch.has_media:
        embeds = vita.embed(text_ids(batch, vita.config, cache))  # [B, S, D]
        return Inputs(embeds, batch.attention_mask, batch.position_ids, batch.labels, None, batch)
    mask = batch.attention_mask
    if cache is not None and mask is not None and isinstance(batch.input_ids, torch.Tensor):
        mask = mask[:, -batch.input_ids.shape[1] :]  # [B, n]; it may cover the cached columns too
    images = image_features(vita, batch.images, batch.sf_masks, progress)
    return spliced_inputs(vita, batch, images, audio_features(vita, batch.audios, finite, progress), mask, cache)


def spliced_inputs(vita, batch, images, sounds, mask=None, cache=None):
    """A `Batch` as inputs of the decoder, with the features of its images [I_i, D] and sounds [A_i, D]."""
    c, states = vita.config, None if batch.audios is None else batch.audios.get("state_labels")
    spliced = splice(
        batch.input_ids, vita.embed, images, sounds, mask, batch.labels,
        image_token=c.image_token_index, audio_token=c.audio_token_index,
        padding_side=c.tokenizer_padding_side, max_length=c.tokenizer_model_max_length,
        shared_v_pid_stride=batch.shared_v_pid_stride, state_labels=states,
    )  # fmt: skip
    positions = spliced.position_ids  # [B, S]
    if cache is not None:
        positions = positions + cache.next_positions[:, None] * spliced.attention_mask  # [B, S]
    return Inputs(spliced.inputs_embeds, spliced.attention_mask, positions, spliced.labels, spliced.segments, batch)


def image_features(vita, images, sf_masks=None, progress=None):
    """Features [I_i, D] for each placeholder: of a row of a tensor, or of all tiles of a list's entry."""
    if images is None:
        return []
    tiles = [x if x.dim() == 4 else x[None] for x in images]
    with layer_progress(vita.vision, "images", progress):
        if len({t.shape[1:] for t in tiles}) == 1:
            encoded = vita.encode_images(torch.cat(tiles), checked=True).split([len(t) for t in tiles])
        else:
            encoded = [vita.encode_images(t, checked=True) for t in tiles]
    features = [x.flatten(0, 1) for x in encoded]  # each [I_i, D]
    if sf_masks is None:
        return features
    check_sf_masks(sf_masks, tiles)
    return slow_fast(features, sf_masks)


def audio_features(vita, audios, finite=True, progress=None):
    """Features [A_i, D] of each sound.

    ``audios`` is a dict: "audios", filter banks [N, J, M], embeddings [N, A, D] or a list of such rows; "lengths"
    [N], how many rows are real; "lengths_for_llm" [N], how many positions to keep (if there are fewer, all
    are kept); "kind", "fbank" or "embeds" if the width does not tell; "state_labels" [N], see `splice`.
    Raises: ValueError if a length, the kind or a width does not match.
    """
    if audios is None:
        return []
    rows, kept, is_bank = audio_rows(audios, vita.config, finite)
    banks, encoded, prompts = [row for row, bank in zip(rows, is_bank) if bank], iter(()), 0
    if banks:
        padded = nn.utils.rnn.pad_sequence(banks, batch_first=True)  # [N, J, M]
        with layer_progress(vita.audio, "sounds", progress):
            embeds = vita.encode_audios(padded, [len(bank) for bank in banks], checked=True).embeds  # [N, A, D]
        prompts = vita.config.audio.num_prompts
        encoded = (e[: audio_token_count(len(bank)) + prompts] for e, bank in zip(embeds, banks))
    features = [next(encoded) if bank else row for row, bank in zip(rows, is_bank)]
    ends = [None if n is None else n + prompts * bank for n, bank in zip(kept, is_bank)]
    return [f[:end] for f, end in zip(features, ends)]


@contextlib.contextmanager
def layer_progress(encoder, what, progress):
    """Inside the block, ``progress`` is called after each layer of an encoder: its share of all positions is done.

    It may raise an exception, which ends the pass.
    """
    if progress is None or encoder is None:
        yield
        return
    layers, done = encoder.encoder.layers if what == "images" else encoder.encoder["enc"][1].encoders, 0

    def report(layer, args, out):
        nonlocal done
        done += 1
        n, s = args[0].shape[:2]
        progress(what, n * s * done // len(layers), n * s)

    handles = [layer.register_forward_hook(report) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def check_inputs(x, vocab_size=None):
    """Refuses empty prompts, and labels of another shape than the prompt or beyond the vocabulary."""
    if 0 in x.embeds.shape[:2] or (x.mask is not None and not x.mask.is_meta and not x.mask.any(1).all()):
        raise ValueError("a prompt is empty: it must have at least one token")
    if x.labels is not None and (isinstance(x.labels, list) or x.labels.shape != x.embeds.shape[:2]):
        got = "a list" if isinstance(x.labels, list) else list(x.labels.shape)
        raise ValueError(f"labels must be {list(x.embeds.shape[:2])} like the prompt, got {got}")
    check_labels(x.labels, x.mask, vocab_size)


def split_options(options, *classes):
    """Keyword arguments as one dict for each dataclass that has fields of these names.

    Raises: TypeError for a name that none of them has.
    """
    names = [{f.name for f in fields(cls)} for cls in classes]
    if unknown := options.keys() - set.union(*names):
        raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
    return [{name: value for name, value in options.items() if name in known} for known in names]


def audio_rows(audios, config, finite=True):
    """The ``audios`` argument: sounds cut to their lengths, numbers of positions to keep, and which are filter banks.

    Raises: ValueError if a length, the kind or a width does not match, or, with ``finite``, for NaN and infinity.
    """
    check_audios(audios)
    rows, kind = list(audios["audios"]), audios.get("kind")
    if kind not in (None, "embeds", "fbank"):
        raise ValueError(f"the kind of audios must be 'embeds', 'fbank' or None, got {shown(kind)}")
    lengths, kept = (int_list(audios.get(name), name, len(rows)) for name in ("lengths", "lengths_for_llm"))
    width, bins = config.decoder.hidden_size, config.audio and config.audio.num_mel_bins
    rows = [row[:n] for row, n in zip(rows, lengths)]
    if finite:
        rows = [check_finite(row, f"sound {i}") for i, row in enumerate(rows)]
    is_bank = [kind == "fbank" or kind is None and (row.shape[-1] != width or width == bins) for row in rows]
    if wrong := [list(row.shape) for row, bank in zip(rows, is_bank) if not bank and row.shape[-1] != width]:
        raise ValueError(f"embeddings of a sound must be {width} wide, got {wrong[0]}")
    if wrong := [list(row.shape) for row, bank in zip(rows, is_bank) if bank and bins and row.shape[-1] != bins]:
        raise ValueError(f"a filter bank must be [J, {bins}], got {wrong[0]}")
    return rows, kept, is_bank


def int_list(given, name, n):
    """``given`` as a list of ``n`` ints of at least 0; ``n`` times None if nothing is given."""
    if given is None:
        return [None] * n
    is_array = isinstance(given, np.ndarray) or isinstance(given, torch.Tensor) and not given.is_meta
    values = given.tolist() if is_array else given
    values = values if isinstance(values, (list, tuple)) else [None]
    if len(values) != n or not all(is_length(x) for x in values):
        raise ValueError(f"{name} must have an integer of at least 0 for each of {n} audios, got {shown(given)}")
    return [int(x) for x in values]
