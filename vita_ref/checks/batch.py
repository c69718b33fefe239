"""The arguments of a forward pass: wrong types and shapes are refused, lists and numpy arrays become tensors.

B batch rows, S new positions, D decoder width; n ids of a row, N images or sounds, X, Y their size, J frames, M mel bins.

Test: ``pytest tests/checks/test_arguments.py``
"""

from dataclasses import replace
from numbers import Integral

import numpy as np
import torch

from ..cache import KVCache
from ..files.messages import shown
from .media import (
    check_finite,
    check_pixels,
    check_values,
    describe,
    is_float_tensor,
)

LARGEST_STRIDE = 2**31


def check_batch(batch, config, like, finite=True):
    """A `Batch` whose ids, masks and labels are tensors or lists of tensors. ``like`` is a weight of the decoder.

    Without ``finite``, NaN and infinity are accepted in images and embeddings: the rows that they reach then fail.
    Raises: ValueError if arguments contradict each other, or have a wrong type or shape.
    """
    if (batch.input_ids is None) == (batch.inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    changed = {name: as_rows(getattr(batch, name), name, like) for name in ("input_ids", "labels")}
    changed |= {"attention_mask": as_mask(batch.attention_mask, like), "images": as_images(batch.images, config, finite, like)}
    if batch.position_ids is not None:
        changed["position_ids"] = as_integers(batch.position_ids, "position_ids", 2, like)
    check_audios(batch.audios, like)
    check_stride(batch.shared_v_pid_stride)
    if batch.sf_masks is not None:
        changed["sf_masks"] = as_integers(batch.sf_masks, "sf_masks", 1, like).tolist()
    batch = replace(batch, **changed)
    ragged = isinstance(batch.attention_mask, list)
    if ragged and not isinstance(batch.input_ids, list):
        raise ValueError(f"attention_mask must be [B, S], got a list of {len(batch.attention_mask)} rows")
    if batch.inputs_embeds is not None:
        if batch.has_media:
            raise ValueError("images and audios need input_ids with their placeholders, not inputs_embeds")
        return replace(batch, inputs_embeds=as_embeds(batch.inputs_embeds, config.decoder.hidden_size, like, finite))
    if batch.has_media and batch.position_ids is not None:
        raise ValueError("position_ids cannot be given for a spliced prompt: the splice makes them")
    return batch


def as_rows(given, name, like):
    """Ids or labels: a tensor [B, n] long, or a list of [n_i] long; None stays None."""
    if given is None:
        return None
    if isinstance(given, (list, tuple)):
        if given and all(isinstance(x, Integral) for x in given):
            raise ValueError(f"{name} must be [B, S], got a list of {len(given)} numbers: put it into a list")
        rows = [as_integers(row, f"each row of {name}", 1, like) for row in given]
    else:
        rows = as_integers(given, name, 2, like)
    if not len(rows):
        raise ValueError(f"{name} must have at least one row, got a batch of 0")
    return rows


def as_integers(given, name, dims, like):
    """Integers as a tensor of dtype long with ``dims`` dimensions. Raises: ValueError for anything else."""
    shape = {1: "[n]", 2: "[B, S]"}[dims]
    try:
        tensor = given if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(given), device=like.device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} must be integers {shape}, got {shown(given)}") from None
    if not isinstance(given, (torch.Tensor, np.ndarray)) and not tensor.numel():
        tensor = tensor.long()  # an empty list has no dtype
    if tensor.dim() != dims:
        raise ValueError(f"{name} must be {shape}, got {list(tensor.shape)}")
    is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not is_integer or tensor.layout is not torch.strided:
        raise ValueError(f"{name} must be integers {shape}, got {describe(tensor)}")
    check_device(tensor, name, like)
    return tensor.long()


def check_device(tensor, name, like):
    """Refuses a tensor on another device than the model."""
    if tensor.device.type != like.device.type and not like.is_meta:
        raise ValueError(f"{name} is on {tensor.device}, but the model is on {like.device}: move one of them")


def as_mask(given, like):
    """An attention mask [B, S] of bool, or of zeros and ones; rows of different lengths are a list. None stays None."""
    if given is None:
        return None
    if isinstance(given, (list, tuple)):
        rows = [x if isinstance(x, torch.Tensor) else torch.as_tensor(check_numbers(x), device=like.device) for x in given]
        given = torch.stack(rows) if rows and len({x.shape for x in rows}) == 1 else rows
    elif isinstance(given, np.ndarray):
        given = torch.as_tensor(check_numbers(given), device=like.device)
    for mask, dims in [(x, 1) for x in given] if isinstance(given, list) else [(given, 2)]:
        if not isinstance(mask, torch.Tensor) or mask.dim() != dims:
            got = list(mask.shape) if isinstance(mask, torch.Tensor) else describe(mask)
            raise ValueError(f"attention_mask must be [B, S], got {got}")
        check_device(mask, "attention_mask", like)
        if not mask.is_meta and mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("attention_mask must be bool, or 0 on padding and 1 elsewhere, got other numbers")
    return given


def check_numbers(given):
    """A row of a mask as a numpy array of numbers or bools."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):
        array = np.array(None)
    if array.dtype.kind not in "bif":
        raise ValueError(f"attention_mask must be bool, or zeros and ones, got {shown(given)}")
    return array


def as_images(images, config, finite, like):
    """Images as a tensor [N, 3, Y, X] or a list of tensors [3, Y, X] or [N, 3, Y, X]; None stays None."""
    if images is None or isinstance(images, torch.Tensor) and images.dim() == 4 and not len(images):
        return images
    if isinstance(images, torch.Tensor):
        return check_pixels(images, config.vision, "images", (4,), finite, like)
    is_list = isinstance(images, (list, tuple))
    if not is_list:
        raise ValueError(f"images must be a tensor [N, 3, Y, X], or a list of them, got {describe(images)}")
    return [check_pixels(x, config.vision, f"image {i}", finite=finite, like=like) for i, x in enumerate(images)]


def as_embeds(embeds, width, like, finite):
    """Embeddings [B, S, D] in the dtype of the model. Raises: ValueError that names the rows that are not finite."""
    if not is_float_tensor(embeds) or embeds.dim() != 3 or embeds.shape[2] != width or not len(embeds):
        form = f"a floating tensor [B, S, {width}]"
        raise ValueError(f"inputs_embeds must be {form}, got {describe(embeds)}")
    check_device(embeds, "inputs_embeds", like)
    if finite and not embeds.is_meta and (bad := ~embeds.detach().flatten(1).isfinite().all(1)).any():
        rows = ", ".join(map(str, bad.nonzero().flatten().tolist()))
        check_finite(embeds, f"inputs_embeds (row {rows})")
    return embeds.to(like.dtype)


def check_labels(labels, mask, vocab_size):
    """Refuses labels beyond the vocabulary. Those below zero, and those of padding, are ignored by the loss."""
    if labels is None or vocab_size is None or labels.is_meta:
        return
    counted = labels if mask is None else labels.where(mask[:, -labels.shape[1] :].bool(), 0)
    if int(counted.max()) >= vocab_size:
        raise ValueError(f"labels must be below {vocab_size} (below 0: ignored), got {int(counted.max())}")


def check_audios(audios, like=None):
    """Refuses ``audios`` that is no dict of floating tensors. ``like`` is a weight of the decoder."""
    if audios is None:
        return
    if not isinstance(audios, dict) or "audios" not in audios:
        raise ValueError('audios must be a dict with the sounds under "audios", and optionally their "lengths"')
    sounds = audios["audios"]
    whole = isinstance(sounds, torch.Tensor)
    rows = [sounds] if whole else sounds if isinstance(sounds, (list, tuple)) else [None]
    for sound in rows:
        if not is_float_tensor(sound) or sound.dim() != 2 + whole:
            got = describe(sounds if rows == [None] else sound)
            raise ValueError(f"audios must be floating tensors [N, J, M] or a list of [J, M], got {got}")
        if like is not None:
            check_values(sound, "a sound", like)


def check_stride(stride):
    """Refuses a stride that is no positive integer."""
    is_integer = isinstance(stride, Integral) and not isinstance(stride, bool)
    if stride is not None and not (is_integer and 1 <= stride < LARGEST_STRIDE):
        raise ValueError(f"shared_v_pid_stride must be an integer of at least 1, got {shown(stride)}")


def check_sf_masks(sf_masks, tiles):
    """Refuses another number of masks than of images, and frames of several tiles."""
    if len(sf_masks) != len(tiles):
        raise ValueError(f"sf_masks must have {len(tiles)} entries, one for each image, got {len(sf_masks)}")
    if any(mask > 0 and len(t) > 1 for mask, t in zip(sf_masks, tiles)):
        raise ValueError("a frame that sf_masks marks must be one tile: give each frame as an entry of its own")


def check_cache(cache, decoder):
    """Refuses a cache that does not fit the decoder's sizes, dtype and device."""
    if cache is None:
        return
    is_cache = isinstance(cache, KVCache)
    if not is_cache:
        raise ValueError(f"cache must be a KVCache, such as .cache of an earlier call, got {describe(cache)}")
    c, like = decoder.config, decoder.norm.weight
    layers, _, groups, _, size = cache.keys.shape
    have = {"layers": layers, "key/value heads": groups, "head size": size, "dtype": cache.keys.dtype}
    need = {"layers": c.num_hidden_layers, "key/value heads": c.num_key_value_heads, "head size": c.head_dim}
    have |= {"device": cache.keys.device.type}
    need |= {"dtype": like.dtype, "device": like.device.type}
    if wrong := [f"{name} {have[name]} instead of {need[name]}" for name in need if have[name] != need[name]]:
        raise ValueError(f"the cache is of another model or dtype: {', '.join(wrong)}")
