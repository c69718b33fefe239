"""Images, sounds and the fields of a request, as users give them.

    one image where a list is expected, numpy arrays, (waveform, rate) -> the form that the readers take
    integer tensors, pixels that are not normalised, NaN               -> ValueError with the expected form

N tiles, X, Y width and height, C channels, W samples, J frames, M mel bins, A positions of a sound, D decoder width.

Test: ``pytest tests/test_request.py tests/checks/test_arguments.py``
"""

import itertools
import math
import os
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import torch

from ..files.media import MAX_TILE_PIXELS
from ..files.messages import shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_PIXEL = 20  # normalised pixels are within -3..3
LARGEST_SAMPLE = 20  # samples are within -1..1; 16-bit integers as floats are not
SAMPLE_RATES = (1_000, 1_000_000)  # Hz
MOST_MEDIA = 10_000  # images or sounds of one request


def describe(given):
    """A short description of an argument for messages: dtype and shape of an array, otherwise the type."""
    if isinstance(given, torch.Tensor):
        return f"{str(given.dtype).removeprefix('torch.')} {'nested' if given.is_nested else list(given.shape)}"
    return f"{given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else type(given).__name__


def check_finite(tensor, what):
    """Returns the tensor unchanged. Raises: ValueError for NaN and infinity."""
    if not tensor.is_meta and not tensor.isfinite().all():
        raise ValueError(f"{what} has values that are not finite (NaN or infinity): check where they come from")
    return tensor


def is_float_tensor(given):
    """Whether it is a dense tensor of a floating dtype."""
    is_dense = isinstance(given, torch.Tensor) and given.layout is torch.strided and not given.is_nested
    return is_dense and given.dtype in FLOATS


def check_values(tensor, what, like=None):
    """Returns a tensor unchanged. ``like`` is a weight of the model, or None for a model that is not on the meta device.

    Raises: ValueError for a tensor on the meta device, unless the model is there too.
    """
    if tensor.is_meta and not (like is not None and like.is_meta):
        raise ValueError(f"{what} is on the device meta, so it has no values: give {describe(tensor)} with values")
    return tensor


# ---- images


def check_pixels(pixels, config, what="an image", dims=(3, 4), finite=True, like=None):
    """Returns normalised pixels unchanged. ``config`` is the `VisionConfig`, or None; ``like`` as in `check_values`.

    Raises: ValueError for another shape, an integer dtype, or values that are not normalised pixels.
    """
    expected = " or ".join({3: "[3, Y, X]", 4: "[N, 3, Y, X]"}[d] for d in dims)
    if not is_float_tensor(pixels) or pixels.dim() not in dims or pixels.shape[-3] != 3 or not pixels.numel():
        form = f"a floating tensor {expected} of normalised pixels"
        raise ValueError(f"{what} must be {form}, got {describe(pixels)} (8-bit images: a PIL image or numpy uint8)")
    unit = 1 if config is None else config.patch_size * config.shuffle
    if pixels.shape[-2] % unit or pixels.shape[-1] % unit:
        raise ValueError(f"height and width of {what} must be multiples of {unit}, got {list(pixels.shape)}")
    if pixels.shape[-2] * pixels.shape[-1] > MAX_TILE_PIXELS:
        raise ValueError(f"{what} must have at most {MAX_TILE_PIXELS:,} pixels, got {list(pixels.shape)}")
    if check_values(pixels, what, like).is_meta:
        return pixels
    largest = max(abs(float(x)) for x in pixels.detach().aminmax())  # NaN if there is one
    if not math.isfinite(largest):
        return check_finite(pixels, what) if finite else pixels
    if largest > LARGEST_PIXEL:
        raise ValueError(
            f"{what} has pixel values up to {largest:g}, so it is not normalised: subtract the mean and divide by the "
            "standard deviation of 0..1 pixels, or give a PIL image or a numpy uint8 array"
        )
    return pixels


def as_picture(source, config):
    """One image: a tensor as tiles [N, 3, Y, X], a numpy array as a PIL image, anything else unchanged.

    Raises: ValueError for tensors and arrays of another shape or dtype.
    """
    if isinstance(source, torch.Tensor):
        check_pixels(source, config)
        return source if source.dim() == 4 else source[None]
    if not isinstance(source, np.ndarray):
        return source
    shape = source.shape
    has_channels = len(shape) == 2 or len(shape) == 3 and shape[2] in (3, 4)
    if source.dtype != np.uint8 or not has_channels or not source.size:
        raise ValueError(f"an image as a numpy array must be uint8 [H, W] or [H, W, 3 or 4], got {describe(source)}")
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("images need Pillow: pip install Pillow") from None
    return Image.fromarray(np.ascontiguousarray(source))


# ---- sounds


def check_sound(sound, config):
    """Returns a filter bank [J, M], or embeddings [A, D], unchanged. Raises: ValueError for other tensors."""
    widths = {config.decoder.hidden_size} | ({config.audio.num_mel_bins} if config.audio else set())
    if not is_float_tensor(sound) or sound.dim() != 2 or sound.shape[1] not in widths:
        form = f"a floating filter bank [J, {config.audio.num_mel_bins}]" if config.audio else "floating embeddings"
        form += f" or [A, {config.decoder.hidden_size}]" if config.audio else f" [A, {config.decoder.hidden_size}]"
        raise ValueError(f"a sound as a tensor must be {form}, got {describe(sound)}: give samples as (waveform, rate)")
    if not len(sound):
        raise ValueError(f"a sound has no rows: got {describe(sound)}")
    return check_finite(check_values(sound, "a sound"), "a sound")


def check_sounds(fbank, lengths, like=None):
    """Refuses filter banks that are no floating tensor [N, J, M], and lengths that are no integers."""
    if not is_float_tensor(fbank) or fbank.dim() != 3:
        raise ValueError(f"fbank must be a floating tensor [N, J, M], got {describe(fbank)}")
    check_values(fbank, "fbank", like)
    is_array = isinstance(lengths, np.ndarray) or isinstance(lengths, torch.Tensor) and not lengths.is_meta
    values = lengths.tolist() if is_array else lengths
    if not isinstance(values, (list, tuple)) or not all(is_length(x) for x in values):
        raise ValueError(f"lengths must be one integer for each sound, got {shown(lengths)}")
    for i, (sound, length) in enumerate(zip(fbank, values)):
        check_finite(sound[: int(length)], f"sound {i}")


def is_length(value):
    """Whether it is a whole number of at least 0."""
    is_one = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_meta
    value = value.item() if is_one else value
    return isinstance(value, Real) and value >= 0 and value == value // 1


def is_pair(source):
    """Whether it is (waveform, rate)."""
    arrays = (torch.Tensor, np.ndarray)
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], arrays) and np.isscalar(source[1])


def as_waveform(source):
    """(waveform, rate) as [C, W] float32 and the rate. Anything else must be a path or file object, and gives None.

    Raises: ValueError for other types, integer samples, another shape, or a rate out of range.
    """
    if not is_pair(source):
        if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
            return None
        forms = "a path, a file object, (waveform, rate) or a tensor"
        raise ValueError(f"a sound must be {forms}, got {describe(source)}")
    wave, rate = as_tensor(source[0]), source[1]
    wave = wave[None] if isinstance(wave, torch.Tensor) and wave.dim() == 1 else wave
    if not is_float_tensor(wave) or wave.dim() != 2 or len(wave) > 64 or not len(wave):
        raise ValueError(f"a waveform must be floats in -1..1, [W] or [C, W], got {describe(source[0])}")
    low, high = SAMPLE_RATES
    if isinstance(rate, (bool, np.bool_)) or not isinstance(rate, Real) or not low <= rate <= high:
        raise ValueError(f"the rate of a waveform must be {low} to {high} Hz, got {shown(rate)}")
    if not wave.shape[1]:
        raise ValueError("a waveform has no samples")
    largest = float(check_finite(check_values(wave, "a waveform"), "a waveform").abs().max())
    if largest > LARGEST_SAMPLE:
        raise ValueError(f"a waveform must be floats in -1..1, got values up to {largest:g}: divide by the full scale")
    return wave.float(), int(rate) if rate == int(rate) else float(rate)


def as_tensor(given):
    """A floating numpy array as a tensor, anything else unchanged."""
    if not isinstance(given, np.ndarray) or given.dtype.kind != "f":
        return given
    return torch.from_numpy(np.array(given, dtype=np.float32))


# ---- the fields of a request


def check_request(request):
    """The request with images and audios as lists. Raises: ValueError that names the field with a wrong type or value."""
    for name in ("prompt", "system"):
        check_text(getattr(request, name), name)
    whole = "an integer of at least 1"
    rules = {
        "raw": ("True or False", lambda x: isinstance(x, bool)),
        "max_tiles": (whole, lambda x: x is None or is_whole(x)),
        "max_frames": (whole, is_whole),
        "fps": ("a number above 0", lambda x: isinstance(x, Real) and not isinstance(x, bool) and 0 < x < math.inf),
    }
    for name, (expected, is_valid) in rules.items():
        if not is_valid(value := getattr(request, name)):
            raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    video = request.video
    count = len(video) if isinstance(video, (list, tuple)) else None
    if count is not None:
        raise ValueError(f"one video can be given, got a list of {count}: images= takes several images")
    is_video = video is None or isinstance(video, (str, os.PathLike, torch.Tensor))
    if not is_video:
        raise ValueError(f"a video must be a path or a floating tensor [N, 3, Y, X], got {describe(video)}")
    images, audios = as_list(request.images, "images", 4), as_list(request.audios, "audios", 2)
    return replace(request, images=images, audios=[as_tensor(sound) for sound in audios])


def is_whole(value):
    """Whether it is an integer of at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def check_text(text, name):
    """Raises: ValueError for what is no text, or cannot be written as UTF-8."""
    is_text = text is None or isinstance(text, str)
    if not is_text:
        raise ValueError(f"{name} must be a string, got {describe(text)}")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode: character {error.start} is half of a surrogate pair") from None


def as_list(given, name, dims):
    """A list of images or sounds. One of them is a list of one; ``dims`` are those of one tensor at most."""
    if given is None:
        return []
    is_one = isinstance(given, (str, os.PathLike)) or hasattr(given, "read") or is_pair(given)
    if not is_one and isinstance(given, (torch.Tensor, np.ndarray)):
        is_one = given.ndim <= (dims if isinstance(given, torch.Tensor) else min(dims, 3))
    if not is_one and (isinstance(given, (list, tuple, torch.Tensor, np.ndarray)) or hasattr(given, "__next__")):
        items = list(itertools.islice(given, MOST_MEDIA + 1))
        if len(items) > MOST_MEDIA:
            raise ValueError(f"{name} must have at most {MOST_MEDIA} entries, got more")
        return items
    return [given]
