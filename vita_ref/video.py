"""From a video to a few of its frames as images, and the pooling of their features.

    load_frames     file or folder       -> RGB images of the frames that `frame_indices` chooses
    (vision tower)  frames               -> features, one [I, D] each
    slow_fast       these features       -> [144, D] for every fourth frame and [49, D] for the others

A video is a file that FFmpeg reads (through ``av``), an animated GIF, WebP or PNG (through Pillow), or a folder of
images.

I positions of a frame in the prompt, D decoder width, X, Y columns and rows of a frame's features.

Test: ``pytest tests/test_video.py``
"""

import math
import numbers
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from .files import films, media
from .files.messages import shown
from .image import READ_ERRORS, open_image

SLOW_EVERY, SLOW_SIDE, FAST_SIDE = 4, 12, 7  # every fourth frame keeps 12 x 12 features, the others 7 x 7
FRAME_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # in a folder


def load_frames(
    source: str | os.PathLike, *, fps: float = 1.0, max_frames: int = 16, start: float | None = None,
    end: float | None = None,
) -> list:  # fmt: skip
    """The chosen frames of a video as RGB PIL images. `frame_indices` chooses them.

    The images of a folder are one frame per second, sorted by name with numbers as numbers (2 before 10). For folders
    and animations no frame is repeated: if `frame_indices` would repeat one, up to 4 evenly spaced frames are chosen.
    If the frame rate of a film is not constant, the frames on screen at the chosen times are taken; upstream counts by
    number there too, which shows other times than it was asked for.

    Units: fps in chosen frames per second; start and end in seconds.
    Raises: ValueError if the video is missing, damaged or not a video, or if an option is out of range.
    """
    frames = []
    for frame in iterate_frames(source, fps=fps, max_frames=max_frames, start=start, end=end):
        frames.append(frame)
        media.check_held(*frame.size, len(frames), media.cut(source))
    return frames


def iterate_frames(source, *, fps=1.0, max_frames=16, start=None, end=None):
    """`load_frames`, frame by frame: large images of a folder need not be in memory together.

    ``image.info["seconds"]`` is the time of each frame in the video; an image of a folder is one second.
    """
    try:
        path = Path(source)
    except TypeError:
        raise ValueError(f"a video must be a path, got {type(source).__name__}") from None
    try:
        media.check_regular(path)
        is_folder = path.is_dir()
    except FileNotFoundError:
        raise ValueError(f"cannot read {media.cut(path)}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {media.cut(path)}: {media.reason_of(error)}") from None
    options = {"start": start, "end": end, "max_frames": max_frames, "sample_fps": fps}
    _check_indices(1, 1, start, end, max_frames, fps)
    if max_frames > media.MAX_FRAMES:
        raise ValueError(f"max_frames must be at most {media.MAX_FRAMES}, got {shown(max_frames)}")
    if is_folder:
        return _folder_frames(path, options)
    frames = _animation_frames(path, options)
    return _film_frames(path, options) if frames is None else frames


def frame_indices(
    num_frames: int, fps: float, *, start: float | None = None, end: float | None = None, max_frames: int = 16,
    min_frames: int = 4, sample_fps: float = 1,
) -> list[int]:  # fmt: skip
    """The indices of the chosen frames: `sample_fps` per second, reduced evenly to `max_frames`.

    The frame at `end` is included. If `start` is after `end`, they are swapped. If they are equal, the frames
    are chosen from the second that begins there.

    Example: 31 frames at 30 per second.
        A step of 30 gives the frames 0 and 30, fewer than min_frames.
        Four even steps over these two, rounded down, are the entries 0, 0, 0 and 1.
        The result is [0, 0, 0, 30].

    Units: start and end in seconds; fps in frames per second of the video.
    Raises: ValueError if an argument is out of range, or the video ends before `start`.
    Source: upstream video_audio_demo.py, _get_rawvideo_dec. It rounds start and end to whole seconds.
    """
    _check_indices(num_frames, fps, start, end, max_frames, sample_fps)
    if start is not None and end is not None:
        start, end = sorted((max(start, 0), max(end, 0)))
        end = end if end > start else start + 1
    first = 0 if start is None else int(min(max(start, 0) * fps, num_frames))
    last = num_frames - 1 if end is None else int(min(max(end, 0) * fps, num_frames - 1))
    if first > last:
        raise ValueError(f"start={start} s is after the end of the video: it lasts {num_frames / fps:g} s")
    steps = range(first, last + 1, max(1, round(min(fps / sample_fps, num_frames))))
    # quirk: fewer than min_frames are filled up by repeating frames, as upstream does, even if the video has others
    count = min(max(len(steps), min_frames), max_frames)
    return [steps[i] for i in np.linspace(0, len(steps) - 1, count, dtype=int)]


def _check_indices(num_frames, fps, start, end, max_frames, sample_fps):
    for name, count in (("num_frames", num_frames), ("max_frames", max_frames)):
        if not isinstance(count, numbers.Integral) or count < 1:
            raise ValueError(f"{name} must be at least 1, got {shown(count)}")
    for name, rate in (("fps", fps), ("sample_fps", sample_fps)):
        if not isinstance(rate, numbers.Real) or not 1e-9 < rate < 1e9:
            raise ValueError(f"{name} must be a number of frames per second above 0, got {shown(rate)}")
    for name, time in (("start", start), ("end", end)):
        if time is not None and not (isinstance(time, numbers.Real) and abs(time) < 1e9):
            raise ValueError(f"{name} must be a number of seconds, got {shown(time)}")


def slow_fast(features: Sequence[torch.Tensor], sf_masks: Sequence[int] | torch.Tensor) -> list[torch.Tensor]:
    """Pools the features of video frames to fewer positions. The features of other images are returned as they are.

    A mask above 0 marks a video frame, with one number for each video. In each run of equal masks, the first of every
    four frames is pooled to 12 x 12 positions (slow) and the other three to 7 x 7 (fast).

    Shapes: list of [I, D], I a square number -> list of [144, D], [49, D] or, for a mask of 0, [I, D]
    Raises: ValueError if the lengths differ, or I of a frame is not a square number.
    Source: upstream vita/model/vita_arch.py:150-163, 247-307.
    """
    masks = [int(mask) for mask in sf_masks]
    if len(masks) != len(features):
        raise ValueError(f"sf_masks must have one number per image: got {len(masks)} for {len(features)} images")
    pooled = []
    for mask, run in groupby(zip(masks, features), key=lambda pair: pair[0]):
        for place, (_, frame) in enumerate(run):
            side = FAST_SIDE if place % SLOW_EVERY else SLOW_SIDE
            pooled.append(_pool(frame, side) if mask > 0 else frame)
    return pooled


def _pool(frame, side):
    """[I, D] features of a square grid -> [side * side, D], by bilinear interpolation."""
    edge = math.isqrt(len(frame))
    if edge * edge != len(frame):
        raise ValueError(f"slow_fast needs a square grid of features per frame, got {len(frame)} features")
    grid = frame.reshape(1, edge, edge, -1).permute(0, 3, 1, 2)  # [1, D, Y, X]
    grid = interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)  # [1, D, side, side]
    return grid[0].flatten(1).T  # [side*side, D]


# ---- one function for each kind of video; it returns the chosen frames

STEPS = 1000  # in which the time from one sample to the next is divided if the frame rate is not constant


def _film_frames(path, options):
    """The chosen frames of a file that FFmpeg reads. If it has fewer than its header says, they are counted."""
    try:
        import av
    except ImportError:
        raise ValueError("videos need av: pip install vita-ref[video]") from None
    name = media.cut(path)
    try:
        with films.open_film(path) as film:
            stream = film.streams.best("video")
            if stream is None:
                raise ValueError(f"cannot read {name}: no video stream found")
            count, fps = stream.frames, float(stream.average_rate or 0)
            times = films.times(packet for packet in film.demux(stream) if packet.size) if count else []
        if count and films.is_constant(times, fps):
            chosen = frame_indices(count, fps, **options)
            if frames := films.decode_frames(path, chosen):
                return _timed(frames, [i / fps for i in chosen])
        times = films.times(films.decode(path))
        if not times:
            raise ValueError(f"cannot read {name}: none of its frames can be decoded")
        chosen = _film_indices(times, fps, options, name)
        return _timed(films.decode_frames(path, chosen), [i / fps if times[i] is None else times[i] for i in chosen])
    except av.FFmpegError as error:
        raise ValueError(f"cannot read {name}: {media.reason_of(error)}") from None


def _timed(frames, seconds):
    """Images with their times in the video, as ``image.info["seconds"]``. None is kept while the next is read."""
    seconds = iter(seconds)

    def timed(frame):
        frame.info["seconds"] = next(seconds)
        return frame

    return map(timed, frames)


def _film_indices(times, fps, options, name):
    """The chosen frames of a film: by number as upstream at a constant rate, otherwise those on screen at the times."""
    if films.is_constant(times, fps):
        return frame_indices(len(times), fps, **options)
    if times[-1] is None:
        raise ValueError(f"cannot read {name}: it has neither a frame rate nor times of its frames")
    if times[-1] > media.MAX_FILM_SECONDS:
        raise ValueError(f"cannot read {name}: it lasts {times[-1]:,.0f} s, more than {media.MAX_FILM_SECONDS:,} s")
    fine = STEPS * min(options["sample_fps"], 1000)  # a constant rate, at which a sample is every STEPS frames
    steps = frame_indices(int(times[-1] * fine + 1e-6) + 1, fine, **options | {"sample_fps": fine / STEPS})
    return [bisect_right(times, step / fine + 0.001) - 1 for step in steps]  # containers round times to 1 ms


def _animation_frames(path, options):
    """The chosen frames of an animated image; None if Pillow does not read the file as one."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("videos need Pillow: pip install Pillow") from None
    try:
        image = Image.open(path, formats=("GIF", "PNG", "WEBP"))
        media.check_regular(path, media.MAX_PICTURE_BYTES)
        durations = _durations(image)
    except Image.UnidentifiedImageError:
        return None
    except (Image.DecompressionBombError, *READ_ERRORS) as error:
        raise ValueError(f"cannot read {media.cut(path)}: {media.reason_of(error)}") from None
    fps = 1000 * len(durations) / sum(durations)
    chosen = _distinct_indices(len(durations), fps, options)
    return _timed(_frames_at(image, chosen), [sum(durations[:i]) / 1000 for i in chosen])


def _durations(image):
    """The durations of the frames of an animated image, in ms."""
    from PIL import ImageSequence

    media.check_animation(*image.size, getattr(image, "n_frames", 1))
    durations = []
    for frame in ImageSequence.Iterator(image):
        frame.load()  # only then is the duration of a WebP frame known
        durations.append(frame.info.get("duration") or 100)  # viewers show a frame with duration 0 for 100 ms
    return durations


def _frames_at(image, indices):
    with image:
        for i in indices:
            image.seek(i)
            yield open_image(image)


def _folder_frames(path, options):
    """The chosen images of a folder, read one by one."""
    files = [p for p in path.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and not p.name.startswith(".")]
    if not files:
        suffixes = ", ".join(FRAME_SUFFIXES)
        raise ValueError(f"{media.cut(path)} has no frames: expected images with the suffix {suffixes}")
    files.sort(key=lambda p: ([int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", p.name)], p.name))
    chosen = _distinct_indices(len(files), 1, options)
    return _timed(_read_images(path, [files[i] for i in chosen]), chosen)


def _read_images(folder, files):
    pixels = 0
    for file in files:
        image = open_image(file)
        pixels += image.width * image.height
        if pixels > media.MAX_FOLDER_PIXELS:
            raise ValueError(f"cannot read {media.cut(folder)}: its frames have more than {media.MAX_FOLDER_PIXELS:,} pixels")
        yield image
        del image  # before the next is read, so that one is in memory


def _distinct_indices(num_frames, fps, options):
    """`frame_indices` without repetition: if it repeats a frame, up to 4 evenly spaced frames replace them."""
    indices = frame_indices(num_frames, fps, **options)
    if len(set(indices)) < len(indices):
        few = {"max_frames": min(4, options["max_frames"]), "sample_fps": fps}
        indices = frame_indices(num_frames, fps, **options | few)
    return sorted(set(indices))
