"""The answer to one request while it is generated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.answer import Answer, drop_unknown_ids
from vita_ref.prompt import split_state

EOS = 99


class Letters:
    """Each id below 99 is one character; some are state marks or white space. Id 50 stands for no token."""

    special_ids, leading_spaces = frozenset(), 0
    alphabet = "☞☟☜ \nabcde"

    def __contains__(self, token_id):
        return token_id != 50

    def piece(self, token_id):
        return self.alphabet[token_id % len(self.alphabet)].encode()


class Texts:
    """A tokenizer whose ids are the indices of the given texts."""

    special_ids, leading_spaces = frozenset(), 0

    def __init__(self, texts):
        self.texts = texts

    def __contains__(self, token_id):
        return token_id < len(self.texts)

    def piece(self, token_id):
        return self.texts[token_id].encode()


def answer(tokens, tokenizer=None, template="vita"):
    """The finished answer of these tokens, and its pieces."""
    segments = [("text", 0, 3), ("image", 3, 7), ("text", 7, 8)]
    one, pieces = Answer(tokenizer or Letters(), template, (EOS,), segments), []
    for token in tokens:
        one.push(token, torch.tensor([float(token)]))
        pieces.append(one.piece)
    one.finish()
    return one, [*pieces, one.piece]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 49), max_size=9), st.lists(st.integers(0, 49), max_size=3))
def test_the_pieces_add_up_to_the_text_and_nothing_after_the_end_token_counts(tokens, rest):
    one, pieces = answer([*tokens, EOS, *rest])
    whole = b"".join(map(Letters().piece, tokens)).decode()
    assert "".join(pieces) == one.text == split_state(whole, "vita")[1]
    assert one.state == split_state(whole, "vita")[0]
    assert one.token_ids == tokens and one.finish_reason == "stop"


@pytest.mark.parametrize(
    "texts, pieces, state",
    [
        (["☞", " Hello"], ["", "Hello", ""], "☞"),
        (["☞", " Hello", " you"], ["", "Hello", " you", ""], "☞"),
        (["\n", "☟", " x"], ["", "", "x", ""], "☟"),
        (["☜"], ["", ""], "☜"),
        ([" ", "Hello"], ["", " Hello", ""], None),
        (["Yes ", "☞"], ["Yes ", "☞", ""], None),
        ([" "], ["", " "], None),
    ],
)
def test_a_state_mark_and_the_white_space_around_it_are_in_no_piece(texts, pieces, state):
    one, got = answer([*range(len(texts)), EOS], Texts(texts))
    assert got[: len(texts)] + got[-1:] == pieces and got[len(texts)] == ""  # the end token adds nothing
    assert (one.text, one.state) == ("".join(pieces), state)


def test_a_template_without_states_keeps_the_marks():
    one, pieces = answer([0, 1, EOS], Texts(["☞", " Hello"]), "chatml")
    assert pieces == ["☞", " Hello", "", ""] and (one.text, one.state) == ("☞ Hello", None)


def test_an_answer_without_an_end_token_ended_by_length():
    assert answer([5, 6])[0].finish_reason == "length"
    assert answer([5, 6, EOS])[0].finish_reason == "stop"


def test_ids_after_the_end_of_a_row_are_not_added_and_an_error_is_the_reason_of_the_end():
    one = Answer(Letters(), "vita", (EOS,), [])
    one.push(7, torch.zeros(3))
    one.push(8, torch.zeros(3), ended=True)
    assert one.piece == "" and one.token_ids == [7] and one.error is None
    error = ValueError("not finite")
    one.finish(error)
    assert one.finish_reason == "error" and one.error is error and one.text == "c"


def test_the_first_logits_are_kept():
    assert answer([7, 8, EOS])[0].first_logits.tolist() == [7.0]


def test_positions_of_the_prompt_are_counted_by_kind():
    counts = {"text_tokens": 4, "image_tokens": 4, "audio_tokens": 0, "total": 8}
    assert answer([EOS])[0].prompt_counts() == counts


def test_ids_that_stand_for_no_token_are_reported_and_not_decoded():
    one, _ = answer([5, 50, 6, EOS])
    assert one.text == "ab" and one.token_ids == [5, 50, 6]
    assert drop_unknown_ids(torch.tensor([5, 50, 6]), Letters()) == [5, 6]
