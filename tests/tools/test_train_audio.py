"""What the ear's trainer makes of spoken and written questions. A hum stands for espeak-ng, so that none is needed."""

import itertools
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from tools.demo.train_audio import (
    ALOUD,
    AUDIO,
    EAR,
    Listener,
    Questions,
    exact,
    hear_all,
    spoken_row,
    word_loss,
)

from tools.demo import speech, world
from tools.demo import train_audio as train_ear
from tools.demo.model import END, Model, compile_layers, demo_config
from tools.demo.train import IMAGE, Packer
from vita_ref import Vita

DEMO = Path(__file__).parents[2] / "weights" / "demo"
SP = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
CONFIG = demo_config(SP, EAR)


@pytest.fixture(autouse=True)
def said(monkeypatch):
    """All texts that were said; each word is a hum of a fifth of a second."""
    texts = []

    def hum(text, manner):
        texts.append(text)
        starts = [match.start() for match in re.finditer(r"\S+", text)]
        samples = np.sin(np.arange(len(starts) * 3200) * 0.1 * (1 + len(text) % 7)).astype(np.float32) / 3
        return speech.Speech(samples, 16000, tuple((start, 0.2 * i) for i, start in enumerate(starts)))

    monkeypatch.setattr(speech, "speak", hum)
    return texts


@pytest.fixture
def listener():
    torch.manual_seed(0)
    model = Listener(CONFIG).eval()
    model.audio.encoder["global_cmvn"].istd.fill_(0.2)
    return model


def a_lesson(text, seed=0):
    return speech.lesson(text, speech.Manner("en", 170, 50), SP, random.Random(seed))


def test_of_four_batches_two_are_seen_and_heard_and_two_are_codes(said):
    packer = Packer(SP, 0)
    made = list(itertools.islice(Questions(packer, CONFIG, 8), 8))
    assert [kind for kind, *_ in made] == ["", "clips, ", "", "coded, ", "", "clips, ", "", "coded clips, "]
    for kind, shown, rows, lessons in made:
        assert shown.shape[1:] == ((16, 256) if kind.startswith("coded") else (3, 112, 112))
        assert sum(row[0].count(IMAGE) for row in rows) == len(shown) * 16
        aloud = [row for row in rows if AUDIO in row[0]]
        assert [row[0].count(AUDIO) for row in aloud] == [len(lesson.labels) for lesson in lessons]
        assert bool(lessons) != kind.startswith("coded")
        answers = [SP.decode([i for i in row[1] if i >= 0]) for row in rows]
        assert not [name for answer in answers for name in world.HELD_OUT if " ".join(name) in answer.lower()]
    assert said and not [text for text in said if speech.is_kept_out(text)]
    assert not [text for text in said for name in world.HELD_OUT if " ".join(name) in text.lower()]


def test_the_spoken_question_stands_first_and_is_seen_by_its_answer_alone():
    packer, pairs = Packer(SP, 0), [("Is it red?", "Yes."), ("How many?", "Two."), ("Is it big?", "No.")]
    row, lesson = spoken_row(packer, 2, pairs, written=2)
    ids, labels, positions, segments = row
    n, end = len(lesson.labels), SP.piece_to_id(END)
    first = slice(3, 3 + n + 1 + len(SP.encode("Yes.")) + 1)
    assert ids[:3] == [packer.user, IMAGE, IMAGE]
    assert ids[first] == [AUDIO] * n + [packer.assistant, *SP.encode("Yes."), end]
    assert labels[first] == [-100] * (n + 1) + [*SP.encode("Yes."), end]
    assert set(segments[first]) == {ALOUD} and ALOUD not in segments[first.stop :]
    for segment in set(segments) - {0}:  # each conversation goes on from the pictures
        mine = [p for p, s in zip(positions, segments) if s == segment]
        assert mine == list(range(3, 3 + len(mine)))


def test_a_row_without_anything_to_ask_has_no_sound():
    row, lesson = spoken_row(Packer(SP, 0), 2, [])
    assert lesson is None and AUDIO not in row[0]


def test_words_are_scored_at_every_position_but_padding():
    lessons = [a_lesson("Is it red?"), a_lesson("How many objects are there?", 1)]
    size = max(len(lesson.labels) for lesson in lessons)
    scores = torch.zeros(2, size, 1 + SP.vocab_size())
    for row, lesson in zip(scores, lessons):
        row[range(len(lesson.labels)), lesson.labels + 1] = 50.0  # silence, -1, is the first
    assert word_loss(scores, lessons) < 1e-6
    scores[0, len(lessons[0].labels) :] = torch.randn(1 + SP.vocab_size())
    assert word_loss(scores, lessons) < 1e-6
    scores[0, 0, lessons[0].labels[0] + 1] = -50.0
    assert word_loss(scores, lessons) > 0.1


@torch.no_grad()
def test_sounds_heard_together_are_heard_as_alone_and_come_back_in_their_order(listener):
    texts = ("Describe the image.", "Is it?", "How many pink hearts are there?", "What is moving?")
    lessons = [a_lesson(text, i) for i, text in enumerate(texts)]
    together, _ = hear_all(listener, lessons, None)
    for lesson, own in zip(lessons, together):
        alone, counts, _ = listener.hear([lesson], None)
        assert own.shape == (len(lesson.labels), 256) and counts.tolist() == [len(lesson.labels)]
        torch.testing.assert_close(own, alone[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_transcript_is_right_when_its_words_are_in_their_order(listener, monkeypatch):
    lessons = [a_lesson("Is it red?"), a_lesson("How many objects are there?", 1)]

    def heard(model, said, rng):
        labels = [torch.nn.functional.pad(s.labels, (0, 99 - len(s.labels)), value=5) for s in said]
        return None, None, torch.nn.functional.one_hot(torch.stack(labels) + 1, 1 + SP.vocab_size()).float()

    monkeypatch.setattr(train_ear, "pad_labels", lambda said: torch.stack(
        [torch.nn.functional.pad(s.labels, (0, 99 - len(s.labels)), value=-100) for s in said]))
    monkeypatch.setattr(Listener, "hear", heard)
    assert exact(listener, lessons) == 1
    wrong = [lessons[0], speech.Lesson(lessons[1].bank, lessons[1].labels.flip(0))]
    monkeypatch.setattr(Listener, "hear", lambda model, said, rng: heard(model, lessons, rng))
    assert exact(listener, wrong) == 0.5


def test_finish_takes_the_newest_eye_as_it_is_and_leaves_weights_that_answer(tmp_path, monkeypatch):
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    torch.manual_seed(1)
    model = Listener(CONFIG)
    model.audio.encoder["global_cmvn"].mean.uniform_()
    state = model.state_dict()
    for name, parts in (("eye", ("vision", "projector", "patches")), ("decoder", ("decoder",)), ("ear", ("audio", "blank", "nearness"))):
        kept = {k: v for k, v in state.items() if k.split(".")[0] in parts}
        torch.save({"model": kept}, tmp_path / f"{name}.pt")
    before = {k: v.clone() for k, v in state.items()}
    made = Questions(Packer(SP, 0), CONFIG, 8)
    monkeypatch.setattr(train_ear, "DataLoader", lambda *args, **kwargs: iter(made))  # in this process
    torch.manual_seed(2)
    later = Listener(CONFIG)  # an eye that was trained on meanwhile
    for steps in ("4", "5"):
        options = ["--work", tmp_path, "--out", tmp_path / "out", "--steps", steps, "--batch", 8, "--rate", "0.05"]
        monkeypatch.setattr("sys.argv", ["train_ear.py", "finish", *map(str, options)])
        train_ear.main()
        assert torch.load(tmp_path / "finish.pt", weights_only=True)["step"] == int(steps)
        torch.save({"model": later.state_dict()}, tmp_path / "eye.pt")
    after = torch.load(tmp_path / "finish.pt", weights_only=True)["model"]
    before |= {k: v for k, v in later.state_dict().items() if k.split(".")[0] in train_ear.EYE}
    changed = {k.split(".")[0] for k in before if not before[k].equal(after[k])}
    assert changed == {"decoder", "audio", "blank", "nearness"}
    normal = "audio.encoder.global_cmvn.mean"  # not learned, so it tells whose ear this is
    assert after[normal].equal(before[normal])
    vita = Vita.from_pretrained(tmp_path / "out")
    assert vita.config == CONFIG and isinstance(vita.respond("Is it red?", max_new_tokens=3), str)
    for table in (vita.decoder.embed_tokens.weight, vita.decoder.lm_head.weight):  # what was made up is forgotten
        alike = [i for i in range(SP.vocab_size()) if table[i].equal(table[SP.piece_to_id("<0xFF>")])]
        assert [SP.id_to_piece(i) for i in alike] == [f"<0x{byte:02X}>" for byte in (*range(0x80, 0xE0), 0xFF)]
    with torch.no_grad():
        pixels = torch.randn(1, 3, 112, 112)
        torch.testing.assert_close(vita.vision(pixels).float(), later.vision(pixels), atol=0.05, rtol=0.05)


def test_the_ear_learns_alone_and_from_the_words_of_the_newest_decoder(tmp_path, monkeypatch):
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    found = []
    for steps in (2, 3):
        words = Model(CONFIG).decoder.state_dict(prefix="decoder.")
        torch.save({"model": words}, tmp_path / "decoder.pt")
        options = ["--work", tmp_path, "--steps", steps, "--batch", 4, "--rate", "0.05"]
        monkeypatch.setattr("sys.argv", ["train_ear.py", "ear", *map(str, options)])
        train_ear.main()
        found.append(torch.load(tmp_path / "ear.pt", weights_only=True))
        assert found[-1]["step"] == steps
        assert all(found[-1]["model"][name].equal(tensor) for name, tensor in words.items())
    before, after = (kept["model"] for kept in found)
    changed = {k.split(".")[0] for k in before if not before[k].equal(after[k])}
    assert changed == {"decoder", "audio", "blank", "nearness"}
    normal = "audio.encoder.global_cmvn.mean"  # found once, at the beginning
    assert after[normal].equal(before[normal]) and after[normal].any()


def test_compiling_covers_every_layer_of_the_three_parts_and_renames_nothing():
    model = Listener(CONFIG)
    names = list(model.state_dict())
    compile_layers(model)  # nothing is compiled before it is called
    compiled = Counter(type(m).__name__ for m in model.modules() if m._compiled_call_impl is not None)
    assert compiled == {"VisionLayer": 5, "Layer": 4, "DecoderLayer": 4} and list(model.state_dict()) == names
