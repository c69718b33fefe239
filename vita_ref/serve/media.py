"""Pictures and sounds of a request: data URLs and base64, never a path or an address, within the limits of the server.

    data:image/png;base64,... -> a file object whose picture is small enough
    base64 of a wav           -> (waveform [C, W], rate)

C channels, W samples.

Test: ``pytest tests/serve/test_hostile_requests.py``
"""

import base64
import binascii
import io
import re
import warnings

import torch

from ..files.media import reason_of
from ..files.messages import shown
from ..files.sounds import read_sound
from .errors import ProtocolError
from .limits import MAX_PICTURE_PIXELS, MAX_SOUND_SAMPLES, MAX_SOUND_SECONDS

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of Pillow; some others start programs
SOUND_FORMATS = ("wav", "mp3", "flac", "ogg")
DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


def picture(url, param):
    """A data URL as a file object. Raises: ProtocolError for any other URL, and a picture that is damaged or too large."""
    head = DATA_URL.match(url[:256])
    if head is None:
        reason = "no address is fetched and no file is read: send the picture as data:image/png;base64,..."
        raise ProtocolError(f"{reason} (got {shown(url)})", param=param, code="invalid_image_url")
    content = from_base64(url[head.end() :], param)
    try:
        from PIL import Image
    except ImportError:
        raise ProtocolError("this server cannot read pictures: it needs Pillow (pip install Pillow)", 501) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pictures above Pillow's own limit, which is higher
            with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as opened:
                width, height = opened.size
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise many classes
        reason = f"{param} cannot be read as a picture ({', '.join(PICTURE_FORMATS)}): {reason_of(error)}"
        reason = re.sub(r"<_io\.BytesIO object at 0x\w+>", "the data", reason)
        raise ProtocolError(reason, param=param, code="invalid_image") from None
    if width * height > MAX_PICTURE_PIXELS:
        size = f"{width} x {height} pixels, more than {MAX_PICTURE_PIXELS:,}"
        raise ProtocolError(f"{param} has {size}: make it smaller", param=param, code="image_too_large")
    return io.BytesIO(content)


def sound(data, kind, seconds, param):
    """The base64 of a sound file as (waveform, rate). ``seconds`` are those that the request may still have.

    Shapes: waveform [C, W] float32. Raises: ProtocolError for a format that is not read, or a sound that is damaged or too
    long.
    """
    if kind not in SOUND_FORMATS:
        formats = ", ".join(SOUND_FORMATS)
        raise ProtocolError(f"{param}.format must be one of {formats}, got {shown(kind)}", param=param)
    content = from_base64(data[data.find(",") + 1 :] if data[:5] == "data:" else data, param)
    try:
        samples, rate = read_sound(io.BytesIO(content), most_seconds=min(seconds, seconds_in_memory(content)))
    except ValueError as error:
        more = f" (at most {MAX_SOUND_SECONDS} s in one request)" if "at most" in str(error) else ""
        raise ProtocolError(f"{param}: {error}{more}", param=param, code="invalid_audio") from None
    return torch.from_numpy(samples), rate


def seconds_in_memory(content):
    """How many seconds of a sound file, with its rate and channels, have `MAX_SOUND_SAMPLES`. 0 if it cannot be read."""
    try:
        import soundfile

        info = soundfile.info(io.BytesIO(content))
        return MAX_SOUND_SAMPLES / (info.samplerate * info.channels)
    except Exception:  # noqa: BLE001 - the reader gives the reason
        return 0


def from_base64(text, param):
    """The bytes of a base64 text. Raises: ProtocolError if it has other characters, or a wrong length."""
    try:
        content = base64.b64decode(text.encode("ascii").translate(None, b" \r\n\t"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ProtocolError(f"{param} is not valid base64: {reason_of(error)}", param=param, code="invalid_base64") from None
    if not content:
        raise ProtocolError(f"{param} is empty", param=param, code="invalid_base64")
    return content
