"""A film -> a few of its frames as pictures; and which of them are looked at closely.

A film is a file that FFmpeg reads (by way of ``av``), an animated GIF, WebP or PNG (by way of Pillow),
or a folder of pictures. `frame_indices` chooses, `load_frames` decodes what was chosen, and
`slow_fast` thins out the features that the eye gives for them.
Letters: V features of one frame; Y and X the height and width of their grid.

Test: ``pytest tests/test_video.py``
"""

import math
import re
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from torch.nn.functional import interpolate

from vita_ref.image import READ_ERRORS, open_image

SLOW_EVERY, SLOW_SIDE, FAST_SIDE = 4, 12, 7  # one frame in four keeps 12 x 12 features, the others 7 x 7
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # frames in a folder


def frame_indices(num_frames, fps, *, start=None, end=None, max_frames=16, min_frames=4, sample_fps=1):
    """The numbers of the frames to look at: `sample_fps` a second, thinned out evenly to `max_frames`.

    The frame at `end` belongs to it. Where `start` is the later of the two they change places, and where they
    are one, it is the second that begins there. 31 frames at 30 a second:
        a step of 30 gives the frames 0 and 30, which is fewer than min_frames
        four even steps from the first to the second, rounded down: the 0th, 0th, 0th, 1st
        so the choice is [0, 0, 0, 30]

    Units: start and end in seconds (upstream cuts them to whole ones), fps in frames a second of the film.
    Raises: ValueError where there is nothing to choose from.
    Source: upstream video_audio_demo.py, _get_rawvideo_dec.
    """
    if num_frames < 1:
        raise ValueError(f"a film must have at least 1 frame, got num_frames={num_frames}")
    if max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    for name, rate in (("fps", fps), ("sample_fps", sample_fps)):
        if not 0 < rate < math.inf:
            raise ValueError(f"{name} must be a number of frames a second above 0, got {rate}")
    for name, time in (("start", start), ("end", end)):
        if time is not None and not math.isfinite(time):
            raise ValueError(f"{name} must be a number of seconds, got {time}")
    if start is not None and end is not None:
        start, end = sorted((max(start, 0), max(end, 0)))
        end = end if end > start else start + 1
    first = 0 if start is None else int(max(start, 0) * fps)
    last = num_frames - 1 if end is None else min(int(max(end, 0) * fps), num_frames - 1)
    if first > last:
        raise ValueError(f"start={start} s lies behind the end of the film: {num_frames} frames at {fps:g} a second")
    every = range(first, last + 1, max(1, round(fps / sample_fps)))
    # quirk: a choice of fewer than min_frames repeats frames, even where the film has others
    count = min(max(len(every), min_frames), max_frames)
    return [every[i] for i in np.linspace(0, len(every) - 1, count, dtype=int)]


def slow_fast(features, sf_masks):
    """Pools the features of film frames: of every run of one mask, each fourth frame finely, the rest coarsely.

    A mask above 0 marks a frame of a film, one number a film; other pictures stay as they are.

    Shapes: list of [V, D], V a square -> list of [144, D], [49, D] or, for a mask of 0, [V, D]
    Source: upstream vita/model/vita_arch.py.
    """
    masks = [int(mask) for mask in sf_masks]
    if len(masks) != len(features):
        raise ValueError(f"sf_masks must have one number a picture: got {len(masks)} for {len(features)} pictures")
    pooled = []
    for mask, run in groupby(zip(masks, features), key=lambda pair: pair[0]):
        for place, (_, frame) in enumerate(run):
            side = FAST_SIDE if place % SLOW_EVERY else SLOW_SIDE
            pooled.append(_pool(frame, side) if mask > 0 else frame)
    return pooled


def _pool(frame, side):
    """[V, D] on a square grid -> [side * side, D], bilinear."""
    edge = math.isqrt(len(frame))
    if edge * edge != len(frame):
        raise ValueError(f"slow_fast needs a square grid of features, got {len(frame)} for a frame")
    grid = frame.reshape(1, edge, edge, -1).permute(0, 3, 1, 2)  # [1, D, Y, X]
    small = interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return small[0].flatten(1).T


def load_frames(source, *, fps=1.0, max_frames=16, start=None, end=None):
    """The chosen frames of a film, as RGB PIL images.

    `frame_indices` chooses. The pictures of a folder stand a second apart, in the order in which people
    count (2 before 10). From folders and animations no frame comes twice: where so many a second would be
    fewer than four, it is four that are spread evenly, or all there are.

    Units: fps in frames to look at a second; start and end in seconds.
    Raises: ValueError in one line, for whatever is missing, broken, no film or out of range.
    """
    try:
        path = Path(source)
    except TypeError:
        raise ValueError(f"a film must be a path, got {type(source).__name__}") from None
    if not path.exists():
        raise ValueError(f"cannot read {path}: no such file or folder")
    choose = partial(frame_indices, start=start, end=end, max_frames=max_frames, sample_fps=fps)

    def choose_different(num_frames, rate):
        chosen = choose(num_frames, rate)
        if len(set(chosen)) < len(chosen):
            chosen = choose(num_frames, rate, max_frames=min(4, max_frames), sample_fps=rate)
        return sorted(set(chosen))

    if path.is_dir():
        return _folder(path, choose_different)
    frames = _animation(path, choose_different)
    return _film(path, choose) if frames is None else frames


def _folder(path, choose):
    """The chosen pictures of a folder."""
    found = [p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    if not found:
        raise ValueError(f"{path} has no frames: expected pictures that end in {', '.join(PICTURES)}")
    found.sort(key=lambda p: ([int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", p.name)], p.name))
    return [open_image(found[i]) for i in choose(len(found), 1)]


def _animation(path, choose):
    """The chosen frames of an animated picture; None where Pillow does not take the file for one."""
    try:
        from PIL import Image, ImageSequence
    except ImportError:
        raise ValueError("films need Pillow: pip install Pillow") from None
    pauses = []
    try:
        film = Image.open(path, formats=("GIF", "PNG", "WEBP"))
        for frame in ImageSequence.Iterator(film):
            frame.load()  # a WebP does not know its pause before
            pauses.append(frame.info.get("duration") or 100)  # ms; 0 is up to the viewer, and viewers take a tenth
    except Image.UnidentifiedImageError:
        return None
    except (Image.DecompressionBombError, *READ_ERRORS) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    frames = []
    with film:
        for place in choose(len(pauses), 1000 * len(pauses) / sum(pauses)):
            film.seek(place)
            frames.append(open_image(film))
    return frames


def _film(path, choose):
    """The chosen frames of a file that FFmpeg reads: by the count in its header, or by the true one."""
    try:
        import av
    except ImportError:
        raise ValueError("films need av: pip install vita-ref[video]") from None

    opened = partial(av.open, str(path), metadata_errors="replace")  # a title need not be UTF-8

    def decoded():
        with opened() as film:
            yield from film.decode(film.streams.best("video"))

    def picked(wanted):
        frames = {}
        for place, frame in enumerate(decoded()):
            if place in wanted:
                frames[place] = frame.to_image().rotate(frame.rotation, expand=True)
            if place == wanted[-1]:
                return [frames[i] for i in wanted]
        return None  # the film ends before

    try:
        with opened() as film:
            stream = film.streams.best("video")
            if stream is None or not stream.average_rate:
                raise ValueError(f"cannot read {path}: it has no moving pictures")
            promised, rate = stream.frames, float(stream.average_rate)
        if promised and (frames := picked(choose(promised, rate))):
            return frames
        count = sum(1 for _ in decoded())
        if not count:
            raise ValueError(f"cannot read {path}: none of its frames can be decoded")
        return picked(choose(count, rate))
    except av.FFmpegError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
