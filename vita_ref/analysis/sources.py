"""The pictures, sounds and frames of a request, as a page shows them: names, sizes, grids of tiles, waveforms, times.

    Request with paths -> the same request with opened media, and a `Picture` or `Sound` for each placeholder

The opened media give the same tensors as the paths. They are opened here because a prepared request has only tensors.

N tiles, X, Y their size, W samples, J frames of a filter bank, M mel bins.

Test: ``pytest tests/analysis/test_look.py``
"""

import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from .. import fbank, image, video
from ..checks.media import as_picture, as_waveform, check_request
from ..files.media import cut
from ..request import frame_reader

ENVELOPE = 800  # at most so many intervals of a waveform are kept


@dataclass(frozen=True)
class Picture:
    """One picture or video frame. ``tiles`` [N, 3, Y, X]; the grid has columns and rows of tiles.

    ``thumbnail`` says whether the last tile is the whole picture once more. ``seconds`` is a frame's time in its video.
    """

    name: str
    tiles: torch.Tensor
    size: tuple | None = None  # of the file, in pixels
    grid: tuple = (1, 1)
    thumbnail: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Sound:
    """One sound: its filter bank [J, M] (or ready embeddings), and the waveform if there was one.

    ``envelope`` has the lowest and the highest sample of each of up to `ENVELOPE` intervals, [intervals, 2].
    """

    name: str
    bank: torch.Tensor
    rate: float | None = None
    seconds: float | None = None
    envelope: np.ndarray | None = None


def open_media(request, config):
    """The request with opened media, and what is known about each: (request, pictures in order, sounds in order).

    Raises: ValueError for a file that cannot be read.
    """
    request = check_request(request)
    needs_vision = request.images or request.video is not None
    needs_audio = any(not isinstance(source, torch.Tensor) for source in request.audios)
    if needs_vision and config.vision is None or needs_audio and config.audio is None:
        return request, None, None  # `prepare_request` refuses it
    most = config.max_tiles if request.max_tiles is None else request.max_tiles
    opened = [open_picture(source, config, most) for source in request.images]
    images, pictures = [x for x, _ in opened], [about for _, about in opened]
    frames, film = (None, []) if request.video is None else open_video(request, config)
    heard = [open_sound(source) for source in request.audios]
    request = replace(request, images=images, video=frames, audios=[x for x, _ in heard])
    before = len(images) if request.prompt is None else images_before_video(request)
    return request, [*pictures[:before], *film, *pictures[before:]], [about for _, about in heard]


def images_before_video(request):
    """How many images come before the video's frames in the prompt."""
    from ..prompt import place_media

    text = place_media(request.prompt, len(request.images), videos=int(request.video is not None))
    return text[: text.find("<video>")].count("<image>") if "<video>" in text else len(request.images)


def name_of(source, kind):
    """The base name of a file, or what else it is."""
    if isinstance(source, (str, os.PathLike)):
        return cut(os.path.basename(os.fspath(source)) or os.fspath(source), 120)
    return kind


def open_picture(source, config, max_tiles):
    """(what the request gets, the fields of its `Picture` without tiles)."""
    name, source = name_of(source, "picture"), as_picture(source, config.vision)
    if isinstance(source, torch.Tensor):
        return source, {"name": name, "grid": (len(source), 1)}
    opened, limits = image.open_image(source), {"max_tiles": max_tiles, "min_tiles": min(config.min_tiles, max_tiles)}
    columns, rows = image.tile_grid(*opened.size, tile=config.vision.image_size, **limits)
    thumbnail = config.use_thumbnail and columns * rows > 1
    return opened, {"name": name, "size": opened.size, "grid": (columns, rows), "thumbnail": thumbnail}


def open_video(request, config):
    """The chosen frames as one tensor [N, 3, Y, X], and the fields of a `Picture` for each."""
    if isinstance(request.video, torch.Tensor):
        return request.video, [{"name": f"frame {i}"} for i in range(len(request.video))]
    tiles, about, name, read = [], [], name_of(request.video, "video"), frame_reader(config)
    for frame in video.iterate_frames(request.video, fps=request.fps, max_frames=request.max_frames):
        about.append({"name": name, "size": frame.size, "seconds": float(frame.info["seconds"])})
        tiles.append(read(frame))
        del frame  # so that only one is in memory
    return torch.cat(tiles), about


def open_sound(source):
    """(what the request gets, the fields of its `Sound` without the filter bank)."""
    name = name_of(source, "sound")
    if isinstance(source, torch.Tensor):
        return source, {"name": name}
    wave, rate = as_waveform(source) or fbank.load_sound(source)
    about = {"name": name, "rate": rate, "seconds": wave.shape[1] / rate, "envelope": envelope(wave[0].numpy())}
    return (wave, rate), about


def envelope(samples):
    """The lowest and the highest sample of each interval: [W] -> [intervals, 2] float32."""
    parts = np.array_split(samples, min(ENVELOPE, len(samples)))
    return np.array([(part.min(), part.max()) for part in parts], np.float32)


def describe(prepared, pictures=None, sounds=None):
    """`Picture` and `Sound` objects for a prepared request. What is not known is left out."""
    pictures = pictures or [{"name": f"picture {i}", "grid": (len(x), 1)} for i, x in enumerate(prepared.images)]
    sounds = sounds or [{"name": f"sound {i}"} for i in range(len(prepared.sounds))]
    shown = [Picture(tiles=tiles, **about) for about, tiles in zip(pictures, prepared.images, strict=True)]
    return shown, [Sound(bank=bank, **about) for about, bank in zip(sounds, prepared.sounds, strict=True)]
