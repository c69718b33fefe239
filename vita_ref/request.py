"""From a request (text and files) to the ids and tensors of a batch.

    Request("What is this?", images=["cat.jpg"]) -> prepare_request -> ids with a placeholder, tiles [N, 3, 448, 448]
    several of these -> collate -> Batch, the arguments of a forward pass

N tiles or video frames, X, Y width and height, J frames of a filter bank, M mel bins, A positions of a sound, D width.

Test: ``pytest tests/test_request.py``
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType

import torch

from . import fbank, image, video
from .audio import MIN_FRAMES, audio_token_count
from .checks.media import (
    as_picture,
    as_waveform,
    check_pixels,
    check_request,
    check_sound,
)
from .checks.rows import room
from .files.messages import counted, shown
from .files.sounds import too_short
from .inputs import Batch
from .prompt import adds_bos, chat_text, encode_prompt, expand_media, place_media
from .splice import check_counts, runs

DESCRIBE = {"image": "Describe the image.", "video": "Describe the video."}


@dataclass(frozen=True)
class Request:
    """What a user asks. Images are paths, file objects, PIL images, numpy uint8 arrays [H, W] or [H, W, 3 or 4], or
    floating tensors of normalised pixels, [3, Y, X] or [N, 3, Y, X] for one placeholder. Sounds are paths, file objects,
    (waveform, rate) with floats [W] or [C, W], or filter banks [J, M]. One of them stands for a list of one. A video is
    a path or a tensor [N, 3, Y, X].

    ``prompt`` may contain placeholders; otherwise they are added in front. The default is `DESCRIBE` for images and
    videos, and empty with a sound, which is then the question. ``raw`` omits the chat template.
    """

    prompt: str | None = None
    images: list = field(default_factory=list)
    audios: list = field(default_factory=list)
    video: object = None
    system: str | None = None
    raw: bool = False
    max_tiles: int | None = None
    fps: float = 1.0
    max_frames: int = 16


@dataclass(frozen=True)
class PreparedRequest:
    """ids [n] long with placeholders; images, a list of [N, 3, Y, X]; sounds, a list of [J, M]."""

    ids: torch.Tensor
    images: list
    sounds: list


def prepare_request(request, config, tokenizer):
    """Reads the files of a request and encodes its text.

    Raises: ValueError for a file that cannot be read, media that the checkpoint cannot take, placeholders that
    do not match the media, an empty prompt, or a field of a wrong type.
    """
    request = check_request(request)
    check_parts(request, config, tokenizer)
    has_video = request.video is not None
    counts = len(request.images), len(request.audios)
    text = place_media(default_prompt(request), *counts, config.template, videos=int(has_video))
    if not request.raw:
        medium, message = "video" if has_video else "image" if request.images else "lang", {"role": "user", "content": text}
        options = {"system": request.system, "default_system": config.default_system, "medium": medium}
        text = chat_text([message], tokenizer, config.template, **options)
    images = [load_image(source, request, config) for source in request.images]
    frames, before = load_video(request, config) if has_video else [], text.partition("<video>")[0].count("<image>")
    text = expand_media(text, config.template, images=len(images), frames=len(frames))
    images = [*images[:before], *frames, *images[before:]]
    sounds = [load_audio(source, config) for source in request.audios]
    placeholders = {"image_token_index": config.image_token_index, "audio_token_index": config.audio_token_index}
    bos = request.raw or adds_bos(tokenizer, config.template)
    ids = encode_prompt(text, tokenizer, images=len(images), audios=len(sounds), bos=bos, **placeholders)
    if not ids:
        raise ValueError("the prompt is empty: there is nothing to answer")
    return PreparedRequest(torch.tensor(ids), images, sounds)


def default_prompt(request):
    """The prompt of a request, or the default for its media."""
    if request.prompt is not None:
        return request.prompt
    if request.audios:
        return ""
    if request.video is not None:
        return DESCRIBE["video"]
    if request.images:
        return DESCRIBE["image"]
    raise ValueError("a prompt is needed if there is no image, video or sound")


def collate(prepared):
    """Prepared requests as one batch."""
    images = [tiles for each in prepared for tiles in each.images]
    sounds = [sound for each in prepared for sound in each.sounds]
    audios = {"audios": sounds} if sounds else None
    return Batch([each.ids for each in prepared], images=images or None, audios=audios)


def as_request(given, common=MappingProxyType({})):
    """A `Request`, a dict of its fields, or a prompt as a `Request`. ``common`` has the fields that it leaves out."""
    if isinstance(given, Request):
        defaults = {f.name: f.default for f in fields(Request)}
        return replace(given, **{name: x for name, x in common.items() if getattr(given, name) is defaults[name]})
    given = {"prompt": given} if isinstance(given, str) else given
    has_fields = isinstance(given, Mapping)
    if not has_fields:
        raise ValueError(f"a request must be a Request, a dict of its fields or a prompt, got {type(given).__name__}")
    names = [f.name for f in fields(Request)]
    if not set(given) <= set(names):
        raise ValueError(f"a request has the fields {', '.join(names)}, got {shown(list(given))}")
    return Request(**(common | given))


# ---- media


def load_image(source, request, config):
    """One image as tiles [N, 3, tile, tile]; a tensor [3, Y, X] or [N, 3, Y, X] is already normalised."""
    source = as_picture(source, config.vision)
    if isinstance(source, torch.Tensor):
        return source
    c = config.vision
    most = config.max_tiles if request.max_tiles is None else request.max_tiles
    options = {"max_tiles": most, "min_tiles": min(config.min_tiles, most), "thumbnail": config.use_thumbnail}
    return image.load_tiles(source, tile=c.image_size, mean=c.image_mean, std=c.image_std, **options)


def load_video(request, config):
    """The chosen frames of a video, each [1, 3, tile, tile]; a tensor [N, 3, Y, X] is already normalised."""
    if isinstance(request.video, torch.Tensor):
        return list(check_pixels(request.video, config.vision, "a video", (4,)).split(1))
    frames = video.iterate_frames(request.video, fps=request.fps, max_frames=request.max_frames)
    return list(map(frame_reader(config), frames))  # a loop would keep a frame while the next is read


def frame_reader(config):
    """The function from a video frame to its tile [1, 3, tile, tile]: stretched, cropped or padded, as the checkpoint says."""
    options = {"tile": config.vision.image_size, "mean": config.vision.image_mean, "std": config.vision.image_std}
    if config.image_aspect_ratio == "stretch":
        return partial(image.load_tiles, max_tiles=1, **options)
    return partial(image.load_square, fit="pad" if config.image_aspect_ratio == "pad" else "crop", **options)


def load_audio(source, config):
    """One sound as its filter bank [J, M]; a tensor is returned unchanged."""
    if isinstance(source, torch.Tensor):
        return check_sound(source, config)
    c = config.audio
    waveform, rate = as_waveform(source) or fbank.load_sound(source)
    options = {"frame_length": c.frame_length, "frame_shift": c.frame_shift, "target_rate": c.sample_rate}
    bank = fbank.log_mel(waveform, rate, num_mel_bins=c.num_mel_bins, **options)  # [J, M]
    if len(bank) < MIN_FRAMES:
        least = c.frame_length + (MIN_FRAMES - 1) * c.frame_shift
        raise ValueError(too_short(source, waveform.shape[1] / rate, least))
    return bank


def check_parts(request, config, tokenizer):
    """Refuses media for which the checkpoint has no encoder, and a checkpoint without a tokenizer."""
    sounds = [source for source in request.audios if not isinstance(source, torch.Tensor)]
    if (request.images or request.video is not None) and config.vision is None:
        raise ValueError(f"this checkpoint cannot take images: {missing_reason(config, 'vision')}")
    if sounds and config.audio is None:  # embeddings given as tensors need no audio encoder
        raise ValueError(f"this checkpoint cannot take sounds: {missing_reason(config, 'audio')}")
    if tokenizer is None:
        files = "tokenizer.json, vocab.json and merges.txt, or tokenizer.model"
        raise ValueError(f"this checkpoint has no tokenizer ({files})")


def missing_reason(config, part):
    """Why a checkpoint has no vision or audio part."""
    return config.missing.get(part, f"it has no {part} part")


# ---- how many positions a prompt takes


def num_patches(vision, tiles):
    """Patches of each tile of an image [N, 3, Y, X]."""
    return tiles.shape[2] // vision.patch_size * (tiles.shape[3] // vision.patch_size)


def image_positions(vision, tiles):
    """Positions in the prompt of all tiles of an image."""
    return len(tiles) * (num_patches(vision, tiles) // vision.shuffle**2 + vision.keep_class_token)


def audio_positions(config, sound):
    """Positions in the prompt of a sound: a filter bank [J, M], or embeddings [A, D] with one position for each row."""
    encoder = config.audio
    if sound.shape[-1] == config.decoder.hidden_size != (encoder and encoder.num_mel_bins):
        return len(sound)
    if len(sound) < MIN_FRAMES:
        frames = counted(len(sound), "filter-bank frame")
        raise ValueError(f"a sound of {frames} is too short: at least {MIN_FRAMES} are needed")
    return audio_token_count(len(sound)) + (encoder.num_prompts if encoder else 0)


def count_positions(config, prepared):
    """Positions of a prepared request: text, image, audio, total, and ``cut``, those beyond the maximum length.

    Raises: ValueError if a sound is too short, or placeholders do not match the media.
    """
    tokens = {"image": config.image_token_index, "audio": config.audio_token_index}
    lengths = {
        "image": [image_positions(config.vision, tiles) for tiles in prepared.images],
        "audio": [audio_positions(config, sound) for sound in prepared.sounds],
    }
    check_counts([prepared.ids], tokens, lengths, None)
    remaining, kept, whole = {kind: iter(values) for kind, values in lengths.items()}, Counter(), 0
    limit = float("inf") if config.tokenizer_model_max_length is None else config.tokenizer_model_max_length
    for kind, start, stop in runs(prepared.ids, tokens):
        length = stop - start if kind == "text" else next(remaining[kind])
        kept[kind] += max(0, min(length, limit - whole))
        whole += length
    counts = {kind: kept[kind] for kind in ("text", "image", "audio")}
    return counts | {"total": sum(counts.values()), "cut": whole - sum(counts.values())}


def check_length(config, prepared, max_new_tokens=None):
    """Returns the counts of `count_positions`.

    Raises: ValueError if the end of the prompt would be cut off, or the prompt and its new tokens take more positions
    than the checkpoint has.
    """
    counts = count_positions(config, prepared)
    check_positions(config, counts["total"] + counts["cut"], max_new_tokens)
    return counts


def check_positions(config, positions, max_new_tokens=None):
    """Raises: ValueError if a prompt of so many positions, with its new tokens, is longer than the checkpoint takes."""
    most = config.tokenizer_model_max_length
    if most is not None and positions > most:
        fewer = "give fewer images, fewer tiles (--max-tiles) or shorter sounds"
        raise ValueError(f"the prompt takes {positions} positions, but this checkpoint takes at most {most}: {fewer}")
    room(positions, max_new_tokens, config.decoder.max_position_embeddings)
