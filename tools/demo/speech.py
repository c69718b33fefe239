"""Spoken questions about the demo world: espeak-ng says them, in process, in many voices, speeds and pitches.

    question(rng)        a sentence that somebody may ask, never one that names a kept-out pair
    Manner               how it is said: voice, words a minute, pitch; of three groups (``manner``)
    speak(text, manner)  -> samples, their rate, and where in the text and in time each word begins
    filter_bank(speech)  -> [T, M], the input of the audio encoder
    lesson(...)          the same with noise and pauses, and the token that is said at each position of the prompt
    noise_lesson(...)    a sound in which nothing is said

Kept out of training, to measure with: one accent, three variants of every voice, a band of speeds, a band of
pitches, and one in twelve of the sentences that name a thing (``is_kept_out``).

A positions of the prompt, M mel bins, T frames, W samples.
A sound file: ``python tools/demo/speech.py "What color is the star?" q.wav``.
Test: ``pytest tests/tools/test_demo_speech.py``; needs the library espeak-ng (Debian's libespeak-ng1).
"""

import argparse
import ctypes
import functools
import math
import random
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from tools.demo import wordings
from tools.demo.films import CLIP_KINDS, ask_clip
from tools.demo.questions import ask
from tools.demo.scene import COLOURS, sample_clip, sample_scene
from tools.demo.topics import other_question
from vita_ref.audio import audio_token_count
from vita_ref.fbank import log_mel

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029", "en-us-nyc")
VARIANTS = ("", "", "", "+m1", "+m2", "+m3", "+m4", "+m6", "+m7", "+f1", "+f2", "+f3", "+f5", "+croak", "+klatt2",
            "+Alex", "+Andrea", "+Michael", "+belinda", "+steph", "+travis", "+edward", "+anika")  # fmt: skip
STRANGE_ACCENT, STRANGE_VARIANTS = "en-gb-x-gbcwmd", ("+m5", "+m8", "+f4", "+Annie", "+adam", "+linda")
SPEEDS, STRANGE_SPEEDS = (115, 225), (182, 194)  # words a minute
PITCHES, STRANGE_PITCHES = (15, 85), (60, 66)  # of 0 to 99; a variant moves it
SILENCE = -1  # the label of a position at which nothing is said
GROUPS = ("known voices", "strange variants", "strange accent")
KINDS = {
    "describe": 1.5, "where": 4, "left_right": 5, "above_below": 5, "beside": 5, "bigger": 5, "count_shape": 3,
    "count_color": 3, "count": 1.5, "exists": 4, "size": 4, "color": 3, "shape": 3, "moving": 1, "which_way": 3,
    "describe_video": 1, "chat": 2, "other": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Manner:
    """How something is said."""

    voice: str  # an accent and perhaps a variant, as espeak-ng names them
    speed: int  # words a minute
    pitch: int


@dataclass(frozen=True)
class Speech:
    """What was said: samples [W] float32 in -1..1, and (character, second) of the start of each word."""

    samples: np.ndarray
    rate: int
    words: tuple


def manner(rng, group=None):
    """A manner of training, or, with a group, one to measure with: at a speed and a pitch that training lacks."""
    accent, variant = rng.choice(ACCENTS), rng.choice(VARIANTS)
    if group == "strange variants":
        variant = rng.choice(STRANGE_VARIANTS)
    if group == "strange accent":
        accent = STRANGE_ACCENT
    if group:
        return Manner(accent + variant, rng.randint(*STRANGE_SPEEDS), rng.randint(*STRANGE_PITCHES))
    return Manner(accent + variant, _outside(SPEEDS, STRANGE_SPEEDS, rng), _outside(PITCHES, STRANGE_PITCHES, rng))


def _outside(span, hole, rng):
    while hole[0] <= (value := rng.randint(*span)) <= hole[1]:
        pass
    return value


def is_kept_out(text):
    """Whether a sentence is one of those that no voice says in training."""
    return any(c in text for c in COLOURS) and zlib.crc32(text.encode()) % 12 == 0


def question(rng, kept_out=False):
    """Something to say, in the mixture of KINDS."""
    while True:
        kind = rng.choices(list(KINDS), KINDS.values())[0]
        text = _sentence(kind, rng)
        if text and is_kept_out(text) == kept_out:
            return text


def _sentence(kind, rng):
    """A question of a kind, or None."""
    if kind == "chat":
        return rng.choice(wordings.CHAT)[0]
    if kind == "other":
        return other_question(rng)
    if kind in CLIP_KINDS:
        turn = ask_clip(sample_clip(rng)[0], kind, rng)
    else:
        turn = ask(sample_scene(rng), kind, rng)
    return turn and turn.text


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("letters", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("type", "id", "character", "length", "time", "sample")]
    _fields_ += [("user_data", ctypes.c_void_p), ("about", _Id)]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_WORD, _RATE, _PITCH, _SYNCHRONOUS, _FLAGS = 1, 1, 3, 2, 0x1101  # UTF-8, phonemes in [[]], a pause at the end


@functools.cache
def _engine():
    """The library, its sample rate, and where it leaves sound and words; the callback must outlive the calls."""
    try:
        library = ctypes.CDLL("libespeak-ng.so.1")
    except OSError as error:
        raise ValueError(f"spoken questions need espeak-ng: apt install espeak-ng ({error})") from None
    rate, sound, words = library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0), [], []

    def take(samples, count, events):
        if samples and count > 0:
            sound.append(ctypes.string_at(samples, 2 * count))
        while events[0].type:
            if events[0].type == _WORD:
                words.append((events[0].character - 1, events[0].time / 1000))
            events = ctypes.cast(ctypes.byref(events[0], ctypes.sizeof(_Event)), ctypes.POINTER(_Event))
        return 0

    callback = _CALLBACK(take)
    library.espeak_SetSynthCallback(callback)
    return library, rate, sound, words, callback


def speak(text, manner):
    """The text as espeak-ng says it.

    Raises: ValueError where there is no espeak-ng or it has no such voice.
    """
    library, rate, sound, words, _ = _engine()
    sound.clear(), words.clear()
    if library.espeak_SetVoiceByName(manner.voice.encode()):
        raise ValueError(f"espeak-ng has no voice {manner.voice!r}; see espeak-ng --voices=en")
    library.espeak_SetParameter(_RATE, manner.speed, 0)
    library.espeak_SetParameter(_PITCH, manner.pitch, 0)
    spoken = text.encode()
    library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, _FLAGS, None, None)
    library.espeak_Synchronize()
    samples = np.frombuffer(b"".join(sound), np.int16).astype(np.float32) / 32768
    return Speech(samples, rate, tuple(words))


def filter_bank(speech):
    """[T, M] float32: at 16 kHz, as the audio encoder is given it."""
    with torch.autocast("cpu", enabled=False):  # energies need their float32
        return log_mel(torch.from_numpy(speech.samples)[None], speech.rate)


@dataclass(frozen=True)
class Lesson:
    """What the audio encoder learns from: a filter bank [T, M] and the token of each position [A] long, or SILENCE."""

    bank: torch.Tensor
    labels: torch.Tensor


def lesson(text, manner, sp, rng):
    """The text as it might be recorded: after a pause and before one, louder or softer, mostly with noise."""
    said = speak(text, manner)
    heard = np.flatnonzero(np.abs(said.samples) > 0.003)[-1] + 1
    before = round(rng.choice((0, rng.uniform(0, 0.3))) * said.rate)
    samples = np.pad(said.samples[: heard + round(rng.uniform(0.05, 0.5) * said.rate)], (before, 0))
    samples = samples * np.float32(10 ** rng.uniform(-0.8, 0.15))
    if rng.random() < 0.7:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples), dtype=np.float32)
        samples = samples + np.float32(10 ** rng.uniform(-4, -1.9)) * noise
    bank = filter_bank(replace(said, samples=samples.clip(-1, 1)))
    labels = torch.full((audio_token_count(len(bank)),), SILENCE)
    times = torch.arange(len(labels)) * 0.08 + 0.1 - before / said.rate  # about the middle of what a position covers
    for token, start, stop in word_spans(text, said.words, heard / said.rate, sp):
        labels[(times >= start) & (times < stop)] = token
    return Lesson(bank, labels)


def noise_lesson(rng, rate=16000):
    """Half a second to four of hiss, hum, clicks, tones or next to nothing, with nothing to be said about it."""
    count, chance = round(rng.uniform(0.5, 4) * rate), np.random.default_rng(rng.getrandbits(32))
    kind, t = rng.choice(("hiss", "rumble", "hum", "clicks", "tones", "quiet")), np.arange(count) / rate
    samples = chance.standard_normal(count)
    if kind == "rumble":
        samples = np.cumsum(samples - samples.mean())
        samples /= np.abs(samples).max() + 1e-9
    elif kind == "hum":
        pitch = rng.uniform(50, 400)
        samples = sum(np.sin(math.tau * pitch * k * t) / k for k in range(1, rng.randint(2, 9))) + 0.05 * samples
    elif kind == "clicks":
        samples = samples * (chance.random(count) < rng.uniform(1, 30) / rate)
        samples = np.convolve(samples, np.exp(-np.arange(400) / rng.uniform(10, 150)))[:count]
    elif kind == "tones":
        steps = np.repeat(chance.uniform(100, 2000, count // 2000 + 1), 2000)[:count]
        samples = np.sin(math.tau * np.cumsum(steps) / rate)
    loud = 10 ** (rng.uniform(-3.5, -2.5) if kind == "quiet" else rng.uniform(-2, -0.3))
    samples = (samples * (loud / (np.abs(samples).max() + 1e-9))).clip(-1, 1).astype(np.float32)
    bank = filter_bank(Speech(samples, rate, ()))
    return Lesson(bank, torch.full((audio_token_count(len(bank)),), SILENCE))


def word_spans(text, starts, end, sp):
    """(token, from, to) in seconds for all that is said; words that espeak-ng runs together share their time."""
    starts, spans, at = dict(starts), [], 0
    for token in sp.encode(text.rstrip(".?!")):
        piece = sp.id_to_piece(token)
        begin = at + piece.startswith("\u2581")  # the space before a word
        if begin in starts or not spans:
            spans.append((starts.get(begin, 0.0), []))
        spans[-1][1].append(token)
        at += len(piece)
    for (start, tokens), stop in zip(spans, [start for start, _ in spans[1:]] + [end]):
        share = (stop - start) / len(tokens)
        yield from ((token, start + i * share, start + (i + 1) * share) for i, token in enumerate(tokens))


def main(text, path):
    """Save one sentence, said in some manner."""
    import soundfile

    how = manner(random.Random())
    speech = speak(text, how)
    soundfile.write(path, speech.samples, speech.rate)
    print(f"{path}: {how}, {len(speech.samples) / speech.rate:.2f} s")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("text", metavar="TEXT", help="what is said")
    arguments.add_argument("path", metavar="OUT.wav", help="the sound file to write")
    main(**vars(arguments.parse_args()))
