"""Sound files, read in blocks within the limits of ``media.py``.

C channels, W samples.

Test: ``pytest tests/test_fbank.py``
"""

import io
import os
import re

import numpy as np

from .media import (
    MAX_LEVEL,
    MAX_RATE,
    MAX_SOUND_SAMPLES,
    MAX_SOUND_SECONDS,
    MAX_SPECTRUM,
    MIN_RATE,
    check_regular,
    name_of,
    quiet_stderr,
    read_bounded,
    reason_of,
)
from .messages import shown
from .mp3 import with_length

BLOCK = 1 << 22  # samples of all channels that are read at once
HEAD_BYTES = 1 << 20  # in which the length of an MP3 file is looked for, behind its title and cover
UNKNOWN_FRAMES = 2**62  # from here on a header means: unknown
# libsndfile's log: "data : 64000 (should be 38382)"; 2**31 - 2**20 and above is what programs write for: unknown
CLAIMED_BYTES = re.compile(r"^\s*(?:data|SSND|Data [Ss]ize)\s*:\s*(\d+)(?: \(should be (\d+)\))?\s*$", re.MULTILINE)
UNKNOWN_BYTES = 2**31 - 2**20
SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
HEADER_BYTES = 64  # a size of a W64 file includes its header


def read_sound(source, most_seconds=None):
    """The samples [C, W] float32 of a sound file of at most ``most_seconds`` (see `check_length`), and its sample rate.

    Raises: ValueError with the name of the file if it is missing, damaged, too long, shorter than its header says, or
    has samples that are not finite.
    """
    try:
        import soundfile
    except ImportError:
        raise ValueError("reading sound files needs soundfile: pip install soundfile") from None
    name = name_of(source, "sound")
    file, head = _open(source, name)
    try:
        with quiet_stderr(), _whole(soundfile.SoundFile(file), file) as sound:
            check_length(sound.frames if sound.frames < UNKNOWN_FRAMES else 0, sound.samplerate, sound.channels, most_seconds)
            samples = _read_blocks(sound, most_seconds)
            _check_complete(sound, samples.shape[1], head)
            rate = sound.samplerate
        check_samples(samples)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: the file name ends in .raw
        reason = reason_of(getattr(error, "error_string", error))
        raise ValueError(f"cannot read {name} as wav, flac, ogg or mp3: {reason}") from None
    except (ValueError, MemoryError) as error:
        raise ValueError(f"cannot read {name}: {reason_of(error)}") from None
    return samples, rate


def _open(source, name):
    """What soundfile opens, and the first bytes of the file."""
    if isinstance(source, (str, os.PathLike)):
        try:
            check_regular(source)
            with open(source, "rb") as file:
                return os.fspath(source), file.read(HEAD_BYTES)
        except (FileNotFoundError, IsADirectoryError):
            raise ValueError(f"cannot read {name}: no such sound file") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {name}: {reason_of(error)}") from None
    if not hasattr(source, "read"):
        raise ValueError(f"a sound must be a path or a file object, got {type(source).__name__}")
    if hasattr(source, "seekable") and source.seekable():
        source.seek(0)
    content = read_bounded(source, name=name)
    return io.BytesIO(content), content[:HEAD_BYTES]


def _whole(sound, file):
    """The sound itself, or the sound with the right length if it is an MP3 file that is longer than libsndfile expects."""
    if sound.format != "MP3":
        return sound
    import soundfile

    content = file.getvalue() if isinstance(file, io.BytesIO) else _content(file)
    longer = with_length(content, sound.frames)
    if longer is None:
        return sound
    sound.close()
    return soundfile.SoundFile(io.BytesIO(longer))


def _content(path):
    """All bytes of a file. Raises: ValueError if there are too many."""
    with open(path, "rb") as file:
        return read_bounded(file)


def _read_blocks(sound, most_seconds):
    """All samples [C, W] to the end of the file, whatever its header says. soundfile gives blocks [W, C]."""
    sound.seekable = lambda: False  # soundfile seeks after each block, which fails if the header claims too many samples
    size, blocks, total = max(1, BLOCK // sound.channels), [], 0
    while len(block := sound.read(out=np.empty((size, sound.channels), dtype=np.float32))):
        total += len(block)
        check_length(total, sound.samplerate, sound.channels, most_seconds)
        blocks.append(block.T.copy())  # a copy without the rest of a block that is not full
    if not blocks:
        raise ValueError("it has no samples")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


def _check_complete(sound, count, head):
    """Refuses a sound with fewer samples than its header says. Lengths that stand for an unknown one are accepted."""
    if count < sound.frames < UNKNOWN_FRAMES:
        has_length = sound.format != "MP3" or b"Xing" in head or b"Info" in head  # otherwise it is an estimate
        if has_length:
            raise ValueError(f"it is cut off: its header says {sound.frames:,} samples, it has {count:,}")
    width = sound.channels * SAMPLE_BYTES.get(sound.subtype, 1)  # bytes of a sample of each channel
    for claimed, present in CLAIMED_BYTES.findall(sound.extra_info):
        if not present and sound.subtype not in SAMPLE_BYTES:
            continue
        have, more = (int(present), width) if present else (count * width, HEADER_BYTES)
        if have + more <= int(claimed) < UNKNOWN_BYTES:
            raise ValueError(f"it is cut off: its header says {int(claimed):,} bytes of samples, it has {have:,}")


def too_short(source, seconds, least):
    """The message for a sound that is too short for the audio encoder. ``least`` in milliseconds."""
    return f"cannot use {name_of(source, 'sound')}: it has {1000 * seconds:.3g} ms; a sound needs at least {least:g} ms"


def check_rate(rate):
    """Refuses a sample rate outside the limits, NaN, and what is no number."""
    try:
        is_within = MIN_RATE <= float(rate) <= MAX_RATE
    except (TypeError, ValueError):
        is_within = False
    if not is_within:
        raise ValueError(f"the sample rate must be {MIN_RATE:,} to {MAX_RATE:,} Hz, got {shown(rate)}")


def check_length(count, rate, channels, most_seconds=None):
    """Refuses a sample rate outside the limits, and a sound longer than ``most_seconds``, or the limit for all sounds."""
    check_rate(rate)
    most = MAX_SOUND_SECONDS if most_seconds is None else most_seconds
    if count > most * rate:
        raise ValueError(f"it has {count / rate:,.0f} s; at most {most:,} s are read: cut it")
    if count * channels > MAX_SOUND_SAMPLES:
        raise ValueError(f"it has {count:,} samples in {channels} channels; at most {MAX_SOUND_SAMPLES:,} are read")


def check_frames(count, size):
    """Refuses a filter bank of ``count`` frames if their spectra of ``size`` numbers are too many."""
    if count * size > MAX_SPECTRUM:
        frames = f"a sound of {count:,} frames, whose spectra have {size:,} numbers each"
        raise ValueError(f"{frames}, is too long: at most {MAX_SPECTRUM:,} numbers are computed; cut it")


def check_samples(samples):
    """Refuses an array or tensor of samples that are NaN or infinite, or far outside -1..1."""
    if not samples.shape[-1]:
        return
    low, high = float(samples.min()), float(samples.max())  # both are NaN if a sample is
    if not np.isfinite([low, high]).all():
        raise ValueError("it has NaN or infinite samples: expected numbers in -1..1")
    if max(-low, high) > MAX_LEVEL:
        raise ValueError(f"its samples reach {max(-low, high):g}: expected numbers in -1..1; divide them by full scale")
