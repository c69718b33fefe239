"""Spoken questions keep to the demo world's rules, in every voice. Test: ``pytest tests/tools/test_demo_speech.py``"""

import random

import numpy as np
import pytest

from tools.demo import speech
from tools.demo.scene import HELD_OUT, PAIRS

try:
    speech.speak("Hello.", speech.Manner("en", 170, 50))
except ValueError:
    pytest.skip("espeak-ng is not installed", allow_module_level=True)


def pairs_in(text):
    return {(c, s) for c, s in PAIRS if f"{c} {s}" in text}


def test_nothing_that_is_kept_out_is_said_in_training():
    rng = random.Random(1)
    for _ in range(400):
        text, manner = speech.question(rng), speech.manner(rng)
        assert not pairs_in(text) & HELD_OUT and not speech.is_kept_out(text)
        assert not manner.voice.startswith(speech.STRANGE_ACCENT) and not manner.voice.endswith(speech.STRANGE_VARIANTS)
        assert not 182 <= manner.speed <= 194 and not 60 <= manner.pitch <= 66


@pytest.mark.parametrize("group", speech.GROUPS)
def test_what_is_measured_with_is_said_as_training_never_says_it(group):
    rng = random.Random(2)
    for _ in range(50):
        manner = speech.manner(rng, group)
        assert 182 <= manner.speed <= 194 and 60 <= manner.pitch <= 66
        assert (speech.STRANGE_ACCENT in manner.voice) == (group == "strange accent")
        assert speech.is_kept_out(speech.question(rng, kept_out=True))


def test_every_voice_of_training_and_of_measuring_is_there_and_unlike_the_others():
    said = {}
    for variant in {*speech.VARIANTS, *speech.STRANGE_VARIANTS}:
        samples = speech.speak("Is it red?", speech.Manner("en-us" + variant, 170, 50)).samples
        said[variant] = (len(samples), float(np.square(samples).sum()))
    assert len(set(said.values())) == len(said)
    for accent in (*speech.ACCENTS, speech.STRANGE_ACCENT):
        speech.speak("Yes.", speech.Manner(accent, 170, 50))


def test_an_unknown_voice_is_refused():
    with pytest.raises(ValueError, match="no voice 'nobody'"):
        speech.speak("Yes.", speech.Manner("nobody", 170, 50))


def test_speed_and_pitch_do_what_they_say():
    texts = ("Where is the pink heart?", "How many objects are there?", "What color is the star?")

    def said(*how):
        return [speech.speak(text, speech.Manner("en-us", *how)).samples for text in texts]

    def period(samples):  # where the sound is most like itself, between 300 and 88 Hz
        likeness = np.fft.irfft(np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2)
        return 73 + likeness[73:250].argmax()

    slow, fast, high = said(120, 50), said(220, 50), said(120, 80)
    assert all(len(a) > 1.4 * len(b) for a, b in zip(slow, fast))
    # one sentence's peak may be a multiple of its period, the middle one of three is not
    assert np.median([period(x) for x in high]) < 0.9 * np.median([period(x) for x in slow])


def test_words_are_found_where_they_are_said():
    text = "Is the red circle above or below the blue star?"
    said = speech.speak(text, speech.Manner("en-us", 170, 50))
    places, times = zip(*said.words)
    assert text[places[0]] == "I" and text[places[2] :].startswith("red") and list(times) == sorted(times)
    assert len(places) >= 8 and times[-1] < len(said.samples) / said.rate
    bank = speech.filter_bank(said)
    frame = int(times[-1] * 100)
    assert bank[frame : frame + 30].mean() > bank[-5:].mean() + 5  # the last word, and the pause at the end


class Words:
    """A tokenizer of whole words, each with the space before it."""

    def __init__(self, text):
        first, *rest = text.rstrip(".?!").split()
        self.pieces = [first, *("\u2581" + word for word in rest)]

    def encode(self, text):
        return list(range(len(self.pieces)))

    def id_to_piece(self, token):
        return self.pieces[token]


@pytest.mark.parametrize("voice", ["en-us", "en+f2", "en-gb-scotland", "en-029+m3"])
def test_a_lesson_says_each_word_in_turn_between_silences(voice):
    text = "Is the red circle left or right of the blue star?"
    lesson = speech.lesson(text, speech.Manner(voice, 130, 50), Words(text), random.Random(5))
    labels = lesson.labels.tolist()
    assert len(labels) == (len(lesson.bank) + 1) // 8 and labels[-1] == speech.SILENCE
    spoken = [token for token in labels if token != speech.SILENCE]
    assert spoken == sorted(spoken) and len(set(spoken)) >= 10 and {2, 3, 4, 6, 9, 10} <= set(spoken)


def test_words_that_are_run_together_share_their_time():
    text = "right of the blue"
    spans = list(speech.word_spans(text, [(0, 0.5), (6, 1.0), (13, 1.4)], 2.0, Words(text)))
    assert [token for token, _, _ in spans] == [0, 1, 2, 3]
    assert [x for span in spans for x in span[1:]] == pytest.approx([0.5, 1.0, 1.0, 1.2, 1.2, 1.4, 1.4, 2.0])


def test_noise_gain_and_pauses_change_the_sound_and_not_the_words():
    text, manner = "How big is the pink heart?", speech.Manner("en", 150, 50)
    lessons = [speech.lesson(text, manner, Words(text), random.Random(seed)) for seed in range(6)]
    assert len({round(lesson.bank.mean().item(), 3) for lesson in lessons}) == 6
    assert all({0, 1, 4, 5} <= set(lesson.labels.tolist()) for lesson in lessons)


def test_a_sound_without_words_has_silence_at_every_position():
    rng = random.Random(0)
    made = [speech.noise_lesson(rng) for _ in range(12)]
    for lesson in made:
        assert lesson.labels.tolist() == [speech.SILENCE] * ((len(lesson.bank) + 1) // 8)
        assert 40 <= len(lesson.bank) <= 400 and lesson.bank.isfinite().all()
    assert len({round(lesson.bank.mean().item(), 3) for lesson in made}) == 12


def test_talk_about_other_things_is_said_too():
    rng = random.Random(0)
    asked = [speech.question(rng) for _ in range(300)]
    assert 10 < sum("shape" not in text and not any(w in text.lower() for w in ("star", "color", "object")) for text in asked)
