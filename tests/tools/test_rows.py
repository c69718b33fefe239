"""Rows of questions and answers, and the loss on their answers.

Test: ``pytest tests/tools/test_rows.py``
"""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from demo_parts import (
    config,
    conversations,
    names_kept_out,
    rows_of,
    tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tools.demo import rows as demo_rows
from tools.demo import wordings
from tools.demo.questions import Turn
from tools.demo.rows import (
    END,
    IGNORE,
    IMAGE,
    KINDS,
    NOISE,
    ROW,
    SPOKEN,
    UNKNOWN,
    WRITTEN,
    Packer,
    answer_losses,
    collate,
    exact_answers,
)
from tools.demo.scene import COLOURS, MADE_UP, OUTSIDE, sample_many, sample_scene
from tools.demo.shapes import SHAPES
from vita_ref.config import DecoderConfig
from vita_ref.decoder import Decoder
from vita_ref.prompt import render

seeds = st.integers(0, 2**32)
U, A, E, S, N, W = 1, 2, 3, 4, 5, 6
LETTERS = SimpleNamespace(  # a tokenizer to read: each letter is its own id
    piece_to_id={demo_rows.USER: U, demo_rows.ASSISTANT: A, END: E, SPOKEN: S, NOISE: N, WRITTEN: W}.get,
    encode=lambda text: [ord(letter) for letter in text],
)


class Steady(random.Random):
    """No variation: every chance comes out as one number."""

    def __init__(self, value):
        super().__init__(0)
        self.value = value

    def random(self):
        return self.value


def examples(count):
    return settings(deadline=None, max_examples=count)


def said(question, answer, kind="color"):
    return Turn(kind, question, (answer,))


@pytest.fixture
def as_written(monkeypatch):
    """Questions are asked in the words of the world, in no other spelling."""
    monkeypatch.setattr(demo_rows, "vary", lambda text, rng: text)


def small_decoder(width=24):
    torch.manual_seed(0)
    return Decoder(DecoderConfig(tokenizer().vocab_size(), width, 40, 2, 6, 3, 8)).requires_grad_(False)


# ---- rows


def test_a_row_looks_like_this(as_written):
    packer = Packer(LETTERS, Steady(0.0))
    a, b, c, d, e = (ord(letter) for letter in "abcde")
    made = [packer.row(2, [[said("ab", "c")], [said("d", "e")]]), packer.row(0, [[said("a", "b"), said("c", "d")]])]
    ids, labels, positions, visible = collate(made)
    assert ids.tolist() == [[U, -200, -200, a, b, A, W, c, E, d, A, W, e, E], [U, a, A, W, b, E, U, c, A, W, d, E, 0, 0]]
    assert labels[0].tolist() == [IGNORE] * 6 + [W, c, E] + [IGNORE] * 2 + [W, e, E]
    assert labels[1].tolist() == [IGNORE] * 3 + [W, b, E] + [IGNORE] * 3 + [W, d, E] + [IGNORE] * 2
    assert positions[0].tolist() == [*range(9), *range(3, 8)] and positions[1, :12].tolist() == [*range(12)]
    for query, key, seen in ((8, 3, True), (9, 2, True), (9, 8, False), (13, 9, True), (13, 5, False), (4, 5, False)):
        assert visible[0, query, key] == seen
    assert visible[1, :12, :12].equal(torch.ones(12, 12, dtype=torch.bool).tril())  # a second turn sees the first
    assert visible.any(2).all()  # no softmax is empty


def test_where_earlier_answers_have_lost_their_mark_nothing_learns_to_leave_it_out(as_written):
    row = Packer(LETTERS, Steady(0.9)).row(0, [[said("a", "bc"), said("d", "e")]])
    a, b, c, d, e = (ord(letter) for letter in "abcde")
    assert row.ids == [U, a, A, b, c, E, U, d, A, W, e, E]
    assert row.labels == [IGNORE] * 4 + [c, E] + [IGNORE] * 3 + [W, e, E]


@pytest.mark.parametrize("kind, mark, text", [("color", S, "b"), ("other", N, ""), ("noise", N, "")])
def test_a_spoken_question_is_answered_under_its_mark_and_noise_with_no_text(kind, mark, text):
    packer = Packer(LETTERS, Steady(0.0))
    row = packer.row(1, [[said("a", "b")]], spoken=(3, said("x", "b", kind)))
    answer = [mark, *map(ord, text), E]
    assert row.ids[: 6 + len(answer)] == [U, IMAGE, -500, -500, -500, A, *answer]
    assert row.labels[2 : 6 + len(answer)] == [IGNORE] * 4 + answer
    assert row.positions[6 + len(answer)] == 2 and row.segments[2] != row.segments[-1]


@given(seeds)
@examples(8)
def test_a_row_holds_whole_questions_with_labels_on_answers_alone(seed):
    end = tokenizer().piece_to_id(END)
    for images, row in rows_of(seed):
        assert len(row.ids) == len(row.labels) == len(row.positions) == len(row.segments) <= ROW + images
        assert row.ids.count(IMAGE) == images and len(list(conversations(row))) == len(row.kinds) == row.labels.count(end)
        assert all(label in (IGNORE, token) for token, label in zip(row.ids, row.labels))
        begins = [i for i in range(1, len(row.ids)) if row.segments[i] != row.segments[i - 1]]
        assert begins[0] == images + 1 and all(row.positions[i] == images + 1 for i in begins)
        steps = [row.positions[i] - row.positions[i - 1] for i in range(1, len(row.ids)) if i not in begins]
        assert set(steps) <= {1}


def test_a_row_is_filled_as_far_as_questions_fit(as_written):
    packer = Packer(LETTERS, Steady(0.0))
    one = len("ab" "c") + 3  # with its three marks
    row = packer.row(16, itertools.repeat([said("ab", "c")]))
    assert len(row.kinds) == (ROW - 1) // one and len(row.ids) == 17 + len(row.kinds) * one
    assert packer.row(0, [[said("a" * ROW, "b")], [said("a", "b")]]).kinds == ["color"]  # the short one still fits


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_conversation_is_laid_out_as_the_demo_template_renders_it(images, as_written):
    sp = tokenizer()
    turns = [said("What color is the star?", "Red."), said("How big is it?", "Large.", "size")]
    row = Packer(sp, Steady(0.9)).row(16 * images, [turns])
    messages = [{"role": "user", "content": "What color is the star?"}, {"role": "assistant", "content": "Red."},
                {"role": "user", "content": "How big is it?"}]  # fmt: skip
    prompt = sp.encode(render(messages, template="demo"))
    text = [i for i in row.ids if i != IMAGE]
    assert text == [*prompt, *sp.encode(f"{WRITTEN}Large."), *config().eos_token_ids]
    assert config().image_token_index == IMAGE and sp.unk_id() == UNKNOWN


@given(seeds)
@examples(12)
def test_no_row_names_what_is_kept_out(seed):
    assert not [row for _, row in rows_of(seed) if names_kept_out(row)]


def test_the_search_for_what_is_kept_out_finds_it(as_written):
    packer = Packer(tokenizer(), Steady(0.0))
    assert names_kept_out(packer.row(0, [[said("HOW BIG IS THE RED STAR?", "Small.")]]))
    assert names_kept_out(packer.row(0, [[said("What is it?", "A large red star.")]]))


def test_made_up_names_are_pieces_of_their_own_in_the_place_of_words(as_written):
    sp = tokenizer()
    packer = Packer(sp, Steady(0.0))
    assert len(set(packer.made_up)) == 4 * MADE_UP and all(map(sp.is_byte, packer.made_up))
    for word in (*COLOURS, *SHAPES):  # every form of a word is one piece, else it would not be replaced
        many = {"cross": "crosses"}.get(word, f"{word}s")
        forms = (f"a {word}", word.capitalize(), *((many, f"a {many}") if word in SHAPES else ()))
        assert all(sp.encode(form)[-1] in packer.stand_ins([(word, 0)]) for form in forms), word
    plain = [[said("How many stars are there?", "Zero.")], [said("What color is the star?", "Red.")],
             [said("Is there a red star?", "Yes.")], [said("Star color?", "Red.")]]  # fmt: skip
    names = (("red", 3), ("star", 5))
    swapped, kept = packer.row(0, plain, names).ids, packer.row(0, plain).ids
    stand_ins = packer.stand_ins(names)
    assert swapped == [stand_ins.get(i, i) for i in kept] and not set(swapped) & stand_ins.keys()


def test_outside_and_crowded_pictures_have_one_answer_to_questions_about_them():
    packer = Packer(tokenizer(), random.Random(0))
    expected = {"none": wordings.NOTHING_KNOWN, "many": wordings.TOO_MANY, "other": wordings.REFUSAL}
    for shown in (OUTSIDE, sample_many(packer.rng)):
        turns = [turn for talk in itertools.islice(packer.turns(shown), 60) for turn in talk]
        assert {turn.kind for turn in turns} <= {shown.outside, "other", "chat"}
        assert all(turn.answers[0] == expected[turn.kind] for turn in turns if turn.kind != "chat")


def test_questions_without_a_picture_ask_for_one():
    turns = [talk[0] for talk in itertools.islice(Packer(tokenizer(), random.Random(0)).turns(None), 80)]
    assert {turn.kind for turn in turns} == {"no picture", "other", "chat"}
    assert {turn.answers[0] for turn in turns if turn.kind == "no picture"} == {wordings.NO_PICTURE}


@pytest.mark.parametrize("kind", KINDS)
def test_questions_come_by_their_shares(kind):
    packer = Packer(tokenizer(), random.Random(0))
    seen = [sample_scene(packer.rng, count=3) for _ in range(10)]
    turns = [packer.one(shown, dict.fromkeys(KINDS, 0) | {kind: 1}) for shown in seen]
    assert {turn.kind for turn in turns if turn} == {kind}
    assert demo_rows.BEGINNERS.keys() == KINDS.keys()


# ---- losses


@pytest.fixture
def nothing_lost(monkeypatch):
    """Every token of an answer is read."""
    monkeypatch.setattr(torch, "rand", torch.ones)


def test_questions_packed_in_rows_have_the_losses_that_each_has_alone(as_written, nothing_lost):
    packer, decoder = Packer(tokenizer(), Steady(0.0)), small_decoder()
    talks = [[said("What color is the star?", "Red.")], [said("How many?", "Two."), said("And it?", "One.")], [said("Hello!", "Hi.")]]
    features = torch.randn(16, 24)
    packed, counted = answer_losses(decoder, {IMAGE: features}, *collate([packer.row(16, talks)]))
    alone = [answer_losses(decoder, {IMAGE: features}, *collate([packer.row(16, [talk])]))[0] for talk in talks]
    assert counted.sum() == len(packed)
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-5, rtol=1e-5)


def test_the_loss_of_one_question_is_that_of_predicting_its_answer(as_written, nothing_lost):
    packer, decoder, features = Packer(tokenizer(), Steady(0.0)), small_decoder(), torch.randn(16, 24)
    row = packer.row(16, [[said("What color is the star?", "Red.")]])
    found, _ = answer_losses(decoder, {IMAGE: features}, *collate([row]))
    text = torch.tensor(row.ids[17:])
    embeds = torch.cat([decoder.embed_tokens(torch.tensor(row.ids[:1])), features, decoder.embed_tokens(text)])
    logits = decoder.lm_head(decoder(embeds[None]).last_hidden_state)[0]
    answer = 1 + len(tokenizer().encode("Red.")) + 1
    torch.testing.assert_close(found, F.cross_entropy(logits[-answer - 1 : -1], text[-answer:], reduction="none"))


def test_the_rows_of_each_placeholder_stand_in_its_own_places(nothing_lost):
    packer, decoder, sound = Packer(tokenizer(), random.Random(4)), small_decoder(), -500
    ids, *rest = collate([packer.row(16, packer.turns(sample_scene(packer.rng))) for _ in range(3)])
    features, mixed = torch.randn(3, 16, 24), ids.clone()
    mixed[:, 6:11] = sound  # of places 1 to 16
    one, _ = answer_losses(decoder, {IMAGE: features.flatten(0, 1)}, ids, *rest)
    apart = {sound: features[:, 5:10].flatten(0, 1), IMAGE: features[:, [*range(5), *range(10, 16)]].flatten(0, 1)}
    two, _ = answer_losses(decoder, apart, mixed, *rest)
    assert one.equal(two)


def test_tokens_that_are_not_read_are_those_of_answers_about_one_in_six():
    packer, decoder = Packer(tokenizer(), random.Random(5)), small_decoder()
    ids, labels, *rest = collate([packer.row(16, packer.turns(sample_scene(packer.rng))) for _ in range(12)])
    read = []
    hook = decoder.embed_tokens.register_forward_hook(lambda module, given, out: read.append(given[0]))
    torch.manual_seed(1)
    answer_losses(decoder, {IMAGE: torch.randn(12 * 16, 24)}, ids, labels, *rest)
    hook.remove()
    lost = read[0] != ids.clamp(min=0)
    assert (read[0][lost] == UNKNOWN).all() and (labels[lost] >= 0).all()
    assert 0.1 < lost.sum() / (labels >= 0).sum() < 0.25


def test_an_answer_is_exact_when_its_every_token_comes_first(as_written, monkeypatch):
    packer = Packer(tokenizer(), Steady(0.0))
    row = packer.row(16, [[said("What color is the star?", "Red.")], [said("How big?", "Large.", "size")]])

    def logits(decoder, features, ids, labels, positions, visible):
        counted = labels[:, 1:] >= 0
        best = labels[:, 1:][counted].clone()
        best[-2] += 1  # one token of the last answer is wrong
        return F.one_hot(best, tokenizer().vocab_size() + 1).float(), counted

    monkeypatch.setattr(demo_rows, "answer_logits", logits)
    assert exact_answers(None, {}, [row]) == [("color", True), ("size", False)]
