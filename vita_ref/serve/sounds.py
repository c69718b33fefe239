"""``/v1/audio/speech``: what is to be spoken, and its samples as a file.

W samples.

Test: ``pytest tests/serve/test_speech_endpoint.py``
"""

import io
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

from ..files.messages import escaped, shown
from .errors import ProtocolError
from .limits import MAX_SPEECH_CHARACTERS
from .questions import typed

FORMATS = {  # -> type of the content, and what soundfile calls format and subtype
    "mp3": ("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": ("audio/ogg", "OGG", "OPUS"),
    "flac": ("audio/flac", "FLAC", "PCM_16"),
    "wav": ("audio/wav", "WAV", "PCM_16"),
    "pcm": ("audio/pcm", None, None),
}
IGNORED = ("instructions", "stream_format")
OWN_VOICE = ("default", "alloy")  # the checkpoint's own voice; OpenAI's clients must name one


@dataclass(frozen=True)
class Speech:
    """A text that is to be spoken, how fast, and as which kind of file."""

    text: str
    speed: float
    format: str


def read_speech(body):
    """The body of a request for speech. Raises: ProtocolError."""
    for name in body:
        if name not in ("model", "input", "voice", "speed", "response_format", *IGNORED):
            raise ProtocolError(f"Unrecognized request argument supplied: {shown(name)}", param=escaped(name)[:80])
    text = typed(body, "input", str, None)
    if not text or not text.strip() or len(text) > MAX_SPEECH_CHARACTERS:
        raise ProtocolError(f"input must be a text of 1 to {MAX_SPEECH_CHARACTERS} characters", param="input")
    speed, kind = typed(body, "speed", Real, 1.0), typed(body, "response_format", str, "mp3")
    if not 0.5 <= speed <= 2:
        raise ProtocolError(f"speed must be 0.5 to 2, got {shown(speed)}", param="speed")
    if kind not in FORMATS:
        raise ProtocolError(f"response_format must be one of {', '.join(FORMATS)}, got {shown(kind)}", param="response_format")
    voice = typed(body, "voice", str, "default")
    if voice not in OWN_VOICE:
        raise ProtocolError(f"this model has one voice, {OWN_VOICE[0]!r}, got {shown(voice)}", param="voice")
    return Speech(text, float(speed), kind)


@torch.inference_mode()
def spoken(vita, speech):
    """Yields the samples [W] of a `Speech`, in pieces."""
    yield from vita.speak_stream(speech.text, speed=speech.speed)


def encoded(pieces, rate, kind):
    """Pieces of samples [W] as the bytes of a file, and the type of its content."""
    samples = torch.cat([torch.zeros(0), *(piece.detach().float().cpu() for piece in pieces)]).numpy()
    content, form, subtype = FORMATS[kind]
    if form is None:
        return np.rint(samples.clip(-1, 1) * 32767).astype("<i2").tobytes(), content
    try:
        import soundfile
    except ImportError:
        raise ProtocolError("this server cannot write sound files: it needs soundfile (or use pcm)", 501) from None
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, format=form, subtype=subtype)
    except (ValueError, soundfile.SoundFileError):
        raise ProtocolError(
            f"this server's libsndfile cannot write {kind}: use wav or pcm", 501, param="response_format"
        ) from None
    return file.getvalue(), content
