"""What the trainer makes of sounds: transcripts, rows that begin with a spoken question, and batches to finish with.

A hum stands for espeak-ng here, so that none is needed. Test: ``pytest tests/tools/test_train_audio.py``
"""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from demo_parts import config, names_kept_out, tokenizer

from tools.demo import batches, speech
from tools.demo.batches import spoken_row
from tools.demo.model import (
    PADDING,
    SILENCE,
    Model,
    compile_layers,
    transcripts_right,
    warp,
    word_loss,
)
from tools.demo.questions import Turn
from tools.demo.rows import AUDIO, END, IMAGE, NOISE, SPOKEN, Packer
from tools.demo.train import ALOUD, Trainer


@pytest.fixture(autouse=True)
def spoken(monkeypatch):
    """All texts that were spoken; each word is a hum of a fifth of a second."""
    texts = []

    def hum(text, manner):
        texts.append(text)
        starts = [match.start() for match in re.finditer(r"\S+", text)]
        samples = np.sin(np.arange(len(starts) * 3200) * 0.1 * (1 + len(text) % 7)).astype(np.float32) / 3
        return speech.Speech(samples, 16000, tuple((start, 0.2 * i) for i, start in enumerate(starts)))

    monkeypatch.setattr(speech, "speak", hum)
    return texts


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Model(config()).eval()
    model.audio.encoder["global_cmvn"].istd.fill_(0.2)
    return model


def a_lesson(text, seed=0):
    return speech.lesson(text, speech.Manner("en", 170, 50), tokenizer(), random.Random(seed))


def asked(*pairs):
    return [[Turn("exists", question, (answer,))] for question, answer in pairs]


def test_of_four_batches_to_finish_with_two_are_pictures_one_is_films_and_one_is_codes(spoken):
    sp = tokenizer()
    made = [batches.finish_batch(random.Random(step), step, 16, sp, config()) for step in range(8)]
    kinds = ["pictures", "films", "pictures", "coded scenes", "pictures", "films", "pictures", "coded films"]
    assert [batch.kind for batch in made] == kinds
    for batch in made:
        assert batch.shown.shape[1:] == ((16, 256) if batch.kind.startswith("coded") else (3, 112, 112))
        assert sum(row.ids.count(IMAGE) for row in batch.rows) == len(batch.shown) * 16
        aloud = [row for row in batch.rows if AUDIO in row.ids]
        assert [row.ids.count(AUDIO) for row in aloud] == [len(lesson.labels) for lesson in batch.lessons]
        assert bool(batch.lessons) != batch.kind.startswith("coded")
        written = [row for row in batch.rows if AUDIO not in row.ids]
        assert not [row for row in written if names_kept_out(row)]
    assert len(spoken) > 30 and not [text for text in spoken if speech.is_kept_out(text)]


def test_the_spoken_question_stands_first_and_is_seen_by_its_answer_alone():
    packer = Packer(tokenizer(), random.Random(0))
    row, lesson = spoken_row(packer, 2, asked(("Is it red?", "Yes."), ("How many?", "Two."), ("Is it big?", "No.")), written=2)
    n, sp = len(lesson.labels), tokenizer()
    answer = [sp.piece_to_id(SPOKEN), *sp.encode("Yes."), sp.piece_to_id(END)]
    first = slice(3, 3 + n + 1 + len(answer))
    assert row.ids[:3] == [packer.user, IMAGE, IMAGE]
    assert row.ids[first] == [AUDIO] * n + [packer.assistant, *answer]
    assert row.labels[first] == [-100] * (n + 1) + answer
    assert set(row.segments[first]) == {ALOUD} and ALOUD not in row.segments[first.stop :]
    for segment in set(row.segments) - {0}:  # each conversation goes on from the pictures
        mine = [p for p, s in zip(row.positions, row.segments) if s == segment]
        assert mine == list(range(3, 3 + len(mine)))


def test_a_row_without_anything_to_ask_has_no_sound():
    row, lesson = spoken_row(Packer(tokenizer(), random.Random(0)), 2, [])
    assert lesson is None and AUDIO not in row.ids


def test_talk_that_is_no_question_of_this_world_and_noise_are_answered_with_a_mark_alone():
    packer, sp = Packer(tokenizer(), random.Random(0)), tokenizer()
    rows = [spoken_row(packer, 0, [[packer.other()]])[0] for _ in range(3)]
    packer.rng.random = lambda: 0.0  # now a noise comes in the place of every question
    rows.append(spoken_row(packer, 0, asked(("Is it red?", "Yes.")))[0])
    for row in rows:
        assert [label for label in row.labels if label >= 0] == [sp.piece_to_id(NOISE), sp.piece_to_id(END)]


def test_words_are_scored_at_every_position_but_padding():
    labels = [a_lesson("Is it red?").labels, a_lesson("How many objects are there?", 1).labels]
    size = max(map(len, labels))
    scores = torch.zeros(2, size, 1 + tokenizer().vocab_size())
    for row, own in zip(scores, labels):
        row[range(len(own)), own + 1] = 50.0  # silence, -1, is the first
    assert word_loss(scores, labels) < 1e-6
    scores[0, len(labels[0]) :] = torch.randn(1 + tokenizer().vocab_size())
    assert word_loss(scores, labels) < 1e-6
    scores[0, 0, labels[0][0] + 1] = -50.0
    assert word_loss(scores, labels) > 0.1
    assert SILENCE == -1 and PADDING == -100


def test_a_transcript_is_right_when_its_words_are_in_their_order():
    labels = [a_lesson("Is it red?").labels, a_lesson("How many objects are there?", 1).labels]
    scores = torch.zeros(2, max(map(len, labels)) + 3, 1 + tokenizer().vocab_size())[:, : max(map(len, labels))]
    for row, own in zip(scores, labels):
        row[range(len(own)), own + 1] = 1.0
    assert transcripts_right(scores, labels) == [True, True]
    assert transcripts_right(scores.flip(0), labels) == [False, False]
    assert transcripts_right(scores, [labels[0], labels[1].flip(0)]) == [True, False]


@torch.no_grad()
def test_sounds_encoded_together_are_encoded_as_alone_and_come_back_in_their_order(model):
    texts = ("Describe the image.", "Is it?", "How many pink hearts are there?", "What is moving?")
    lessons = [a_lesson(text, i) for i, text in enumerate(texts)]
    together, _ = Trainer.listen_all(model, lessons, None)
    alone = [model.listen([lesson.bank])[0][0] for lesson in lessons]
    assert [len(rows) for rows in alone] == [len(lesson.labels) for lesson in lessons]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_a_warped_sound_keeps_its_length_and_most_of_its_energy():
    bank, mean = torch.rand(60, 80) + 1, torch.zeros(80)
    warped = bank.clone()
    warp(warped, 60, mean, random.Random(0))
    assert not warped.equal(bank) and warped.shape == bank.shape
    assert 0.5 < warped.sum() / bank.sum() < 1.05


def test_compiling_covers_every_layer_of_the_three_parts_and_renames_nothing():
    model = Model(config("full"))
    names = list(model.state_dict())
    compile_layers(model)  # nothing is compiled before it is called
    compiled = Counter(type(m).__name__ for m in model.modules() if m._compiled_call_impl is not None)
    assert set(compiled.values()) == {6, 5, 4} and list(model.state_dict()) == names
