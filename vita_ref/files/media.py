"""Limits of pictures, films and sounds, and their checks: a small file must not need gigabytes or minutes.

``tools/limits.md`` lists the limits for users.

Test: ``pytest tests/files/test_media.py``
"""

import contextlib
import os
import re
import stat
import sys
import tempfile
import threading

import numpy as np

from .hints import check_no_address, check_no_pointer, pointer_reason
from .messages import escaped

MAX_STREAM_BYTES = 256 * 1024**2  # of standard input, and of a file object that is read whole
MAX_PICTURE_BYTES = 1024**3  # of a file that holds a picture or an animation
MAX_PIXELS = 178_956_970  # of a picture or a frame; Pillow's own limit
MAX_TILES = 4096  # of the largest grid that `tile_grid` considers
MAX_TILE_PIXELS = 64_000_000  # of all tiles of a picture
MAX_ANIMATION_PIXELS = 1_000_000_000  # of all frames of a GIF, WebP or PNG, which are decoded one by one
MIN_FRAME_PIXELS = 10_000  # as which a smaller frame counts: an animation has at most 100,000 frames
MAX_FILM_PIXELS = 500_000_000_000  # of all frames of a film that are decoded: 67 minutes of 1920 x 1080 at 60 per second
MAX_FILM_SECONDS = 24 * 3600  # between the first and the last frame
MAX_FRAMES = 1024  # that are chosen from a video
MAX_FOLDER_PIXELS = 4_000_000_000  # of the chosen frames of a folder, which are read one by one: 16 of 178 megapixels
MAX_HELD_PIXELS = 1_000_000_000  # of the chosen frames that are in memory together
MIN_RATE, MAX_RATE = 1_000, 768_000  # samples per second of a sound
MAX_SOUND_SECONDS = 3600
MAX_SOUND_SAMPLES = 400_000_000  # of all channels together: an hour of two channels at 48 kHz has 345,600,000
MAX_SPECTRUM = 400_000_000  # numbers of all frames of a filter bank: an hour with the usual settings has 184,320,000
MAX_LEVEL = 100.0  # of a sample, where 1 is full scale; above it the samples are not scaled to -1..1

CHUNK = 1024**2  # bytes that are read from a stream at once


def cut(text, limit=80):
    """A name or a message on one line, with control characters escaped and the middle of a long one left out."""
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2 - 1]}…{text[-(limit // 2) :]}"
    return escaped(text)


def name_of(source, kind):
    """The name of a path or file object for messages; ``kind`` is "image" or "sound"."""
    if isinstance(source, (str, os.PathLike)):
        return cut(os.fspath(source))
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return cut(name) if isinstance(name, str) else f"the given {kind}"


def check_regular(path, limit=None):
    """Refuses devices and pipes, which may have no end, and files of more than ``limit`` bytes.

    Raises: OSError if the path is missing; ValueError.
    """
    check_no_address(path)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a device or a pipe; expected a regular file")
    if limit is not None and status.st_size > limit:
        raise ValueError(f"it has {status.st_size:,} bytes; at most {limit:,} are read")
    if stat.S_ISREG(status.st_mode):
        check_no_pointer(path)


def read_bounded(file, limit=MAX_STREAM_BYTES, name=None):
    """All bytes of a binary file object. ``name`` is what messages call it.

    Raises: ValueError if there are more than ``limit``, or the file object gives text or cannot be read.
    """
    chunks, size = [], 0
    try:
        while chunk := file.read(min(CHUNK, limit + 1 - size)):
            if not isinstance(chunk, (bytes, bytearray, memoryview)):
                raise ValueError("it gives text; open it in binary mode")  # noqa: TRY004
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise ValueError(f"it has more than {limit:,} bytes")
        if reason := pointer_reason(b"".join(chunks[:1])):
            raise ValueError(reason)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read {name}: {reason_of(error)}" if name else reason_of(error)) from None
    return b"".join(chunks)


def reason_of(error):
    """The message of an error of a library, on one line and not too long."""
    return cut(getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__, 160)


# ---- pictures and frames


def check_pixels(width, height):
    """Refuses a picture without pixels or with too many."""
    if width < 1 or height < 1:
        raise ValueError(f"width and height of an image must be at least 1 pixel, got {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} are more than {MAX_PIXELS:,} pixels: make the image smaller")


def check_array(array):
    """Refuses an array that is not a picture: uint8 [Y, X], [Y, X, 3] or [Y, X, 4]."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        got = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"an array must be uint8 [Y, X], [Y, X, 3] or [Y, X, 4], got {got}")
    check_pixels(array.shape[1], array.shape[0])


def check_animation(width, height, count):
    """Refuses an animation whose frames have too many pixels. All of them are decoded: a few bytes may hold a frame."""
    if count * max(width * height, MIN_FRAME_PIXELS) > MAX_ANIMATION_PIXELS:
        frames = f"{count:,} frames of {width} x {height}"
        raise ValueError(f"{frames} are more than {MAX_ANIMATION_PIXELS:,} pixels: make it smaller or shorter")


def check_held(width, height, count, name):
    """Refuses ``count`` chosen frames that do not fit into memory together."""
    if count * width * height > MAX_HELD_PIXELS:
        frames = f"{count} frames of {width} x {height}"
        raise ValueError(f"cannot read {name}: {frames} are more than {MAX_HELD_PIXELS:,} pixels: lower max_frames")


# ---- standard error


LIBRARY_LINES = re.compile(  # "LZWDecode: Not enough data", "[src/libmpg123/layer3.c:...", "Note: Trying to resync..."
    rb"^\n?(?:_?TIFF\w*: |\w*(?:Decode|Setup|State|Lib)\w*: |tempfile\.tif: |\[src/libmpg123/"
    rb"|Note: (?:Illegal|Trying|Skipped|Hit end|Junk|Looks like|Could be|Xing|Info|Input data|free|broken|Cut) ?"
    rb"|Warning: (?:Xing stream|Encountered more|Big change)).*\n?",
    re.MULTILINE,
)
_one_at_a_time = threading.RLock()  # the file descriptor belongs to the whole process


@contextlib.contextmanager
def quiet_stderr(wanted=True):
    """Discards what C libraries (libtiff, libmpg123) write to standard error.

    What other Python threads write there meanwhile is kept, and appears when the block ends.
    """
    with _one_at_a_time if wanted else contextlib.nullcontext():
        saved = _duplicate(2) if wanted else None
        if saved is None:
            yield
            return
        is_alone = _is_only_thread()
        with open(os.devnull, "wb") if is_alone else tempfile.TemporaryFile() as place:
            sys.stderr.flush()
            os.dup2(place.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(saved, 2)
                if not is_alone:
                    place.seek(0)
                    _write_all(saved, LIBRARY_LINES.sub(b"", place.read()))
                os.close(saved)


def _write_all(descriptor, content):
    """Writes bytes to a file descriptor. What cannot be written is dropped."""
    with contextlib.suppress(OSError):
        while content:
            content = content[os.write(descriptor, content) :]


def _duplicate(descriptor):
    """A copy of a file descriptor; None if it is closed."""
    try:
        return os.dup(descriptor) if sys.stderr else None
    except OSError:
        return None


def _is_only_thread():
    """Whether this is the only Python thread. The thread of a tqdm bar (TMonitor) does not count: it writes nothing."""
    others = [t for t in threading.enumerate() if t is not threading.current_thread()]
    return all(type(t).__name__ == "TMonitor" for t in others)
