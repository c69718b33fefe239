"""A stream gives the answer of `respond` in pieces, with log-probabilities, and ends when it is told to."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_answer import Letters
from test_model import EOS, PIXELS, ids, noise, tiny_vita

from vita_ref.answer import Answer, possible_stop
from vita_ref.request import Request
from vita_ref.sampling import Sampling

MODEL = tiny_vita()
OPTIONS = {"max_new_tokens": 6, "eos_token_id": ()}
IMAGE = noise(2, 3, PIXELS, PIXELS)


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 4}, {"repetition_penalty": 1.5}, {"stop": ["4"]}])
def test_pieces_and_details_are_the_answer_of_respond(options):
    question = {"text": "what is this", "images": IMAGE, **OPTIONS, **options}
    stream = MODEL.stream(**question)
    assert stream.result is None
    pieces, result = list(stream), stream.result
    assert "".join(piece.text for piece in pieces).strip() == result.text == MODEL.respond(**question)
    assert all(piece.text for piece in pieces[:-1])
    for name in ("token_ids", "logprobs", "top"):
        assert [x for piece in pieces for x in getattr(piece, name)] == getattr(result, name)
    details = MODEL.respond(**question, details=True)
    assert details.token_ids == result.token_ids and details.logprobs == result.logprobs
    assert result.prompt["total"] == result.segments[-1][2] and result.state is None and result.dropped == []
    assert [kind for kind, *_ in result.segments].count("image") == 1


@pytest.mark.parametrize("details", [False, True])
def test_errors_are_returned_where_that_is_asked_for_and_options_out_of_range_are_not(details):
    vita = tiny_vita()
    vita.decoder.lm_head.weight[0, 0] = torch.nan
    cases = [(MODEL, {"images": "no such.png"}, "no such.png"), (MODEL, {"max_new_tokens": 10**6}, "positions"), (vita, {}, "not finite|NaN")]
    for model, question, message in cases:
        question = {"text": "what", "details": details, **OPTIONS, **question}
        error = model.respond(**question, errors="return")
        assert isinstance(error, ValueError)
        with pytest.raises(ValueError, match=message) as raised:
            model.respond(**question)
        assert str(raised.value) == str(error) or model is vita
    for wrong in ({"temperature": -1}, {"top_k": -2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MODEL.respond("what", details=details, errors="return", **wrong)
    with pytest.raises(TypeError, match="tmperature"):
        MODEL.respond("what", details=details, errors="return", tmperature=1)
    good = MODEL.respond("what", details=details, errors="return", **OPTIONS)
    assert (good.text if details else good) == MODEL.respond("what", **OPTIONS)


def test_log_probabilities_are_those_of_the_model_before_temperature_and_filters():
    result = MODEL.respond("what is this", details=True, top=3, temperature=3.0, top_k=5, seed=1, **OPTIONS)
    prompt = MODEL.prepare(Request("what is this")).ids.tolist()
    logits = MODEL(ids(*prompt, *result.token_ids)).logits[0, len(prompt) - 1 : -1]
    want = logits.log_softmax(-1)
    got = torch.tensor(result.logprobs)
    torch.testing.assert_close(got, want[range(6), result.token_ids], atol=1e-4, rtol=0)
    for row, likeliest in zip(want, result.top):
        values, places = row.topk(3)
        assert [token for token, _ in likeliest] == places.tolist()
        torch.testing.assert_close(torch.tensor([x for _, x in likeliest]), values, atol=1e-4, rtol=0)
    assert MODEL.respond("what is this", details=True, **OPTIONS).top == [[]] * 6


def test_a_seed_repeats_an_answer_and_another_one_does_not():
    answers = [MODEL.respond("what", temperature=2.0, seed=seed, max_new_tokens=9, eos_token_id=()) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    x, options = ids(7, 8), {"max_new_tokens": 9, "eos_token_id": (), "temperature": 2.0}
    generator = torch.Generator().manual_seed(1)
    assert MODEL.generate(x, seed=1, **options).equal(MODEL.generate(x, generator=generator, **options))
    with pytest.raises(ValueError, match="seed and generator are two sources"):
        MODEL.generate(x, seed=1, generator=generator, **options)


# ---- the end


def test_stop_ends_it_before_the_next_token():
    stream = MODEL.stream("what", **OPTIONS)
    first = next(stream)
    stream.stop()
    assert list(stream) == [] and stream.result.finish_reason == "stopped"
    assert stream.result.token_ids == first.token_ids and stream.finish() is stream.result


def test_stop_from_another_thread_ends_what_is_being_read():
    vita, reports = tiny_vita(), []
    vita.prompt_chunk = 2

    def progress(*report):
        reports.append(report)
        if report == ("prompt", 4, 9):
            other = threading.Thread(target=stream.stop)
            other.start()
            other.join()

    stream = vita.stream("a b c d e f g h i", raw=True, progress=progress, **OPTIONS)
    result = stream.finish()
    assert (result.finish_reason, result.token_ids, result.text) == ("stopped", [], "")
    assert reports == [("prompt", 0, 9), ("prompt", 2, 9), ("prompt", 4, 9)]


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_a_time_limit_ends_the_answer(seconds):
    result = MODEL.respond("what", images=IMAGE, max_seconds=seconds, details=True, **OPTIONS)
    assert result.finish_reason == ("time" if seconds < 1 else "length")
    assert len(MODEL.generate(ids(7, 8), max_seconds=seconds, **OPTIONS)[0]) == (1 if seconds < 1 else 6)
    assert (MODEL.respond("what", max_seconds=seconds, **OPTIONS) == "") == (seconds < 1)


def test_finish_reasons_of_answers_that_end_by_themselves():
    longest = MODEL.respond("what", details=True, **OPTIONS)
    assert longest.finish_reason == "length" and len(longest.token_ids) == 6
    end = longest.token_ids[1]
    ended = MODEL.respond("what", details=True, max_new_tokens=6, eos_token_id=end)
    assert ended.finish_reason == "stop" and ended.token_ids == longest.token_ids[: longest.token_ids.index(end)]


@pytest.mark.parametrize("wrong", [{"stop": ""}, {"stop": [""]}, {"stop": 3}, {"seed": 0.5}, {"seed": True}, {"seed": 2**64},
                                   {"max_seconds": 0}, {"max_seconds": "1"}, {"top": -1}, {"top": 1.5}])  # fmt: skip
def test_options_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be "):
        MODEL.stream("what", **wrong)


def test_stop_texts_are_for_texts():
    with pytest.raises(ValueError, match="stop texts do not end"):
        MODEL.generate(ids(7, 8), stop=["x"], **OPTIONS)


def test_a_row_of_a_batch_ends_at_its_stop_text_and_the_others_go_on():
    texts = ["what", "why is", "a b c"]
    whole = MODEL.respond_batch(texts, **OPTIONS)
    stop = whole[1].split()[2]
    assert MODEL.respond_batch(texts, stop=stop, **OPTIONS) == [MODEL.respond(text, stop=stop, **OPTIONS) for text in texts]
    assert MODEL.respond("why is", stop=stop, **OPTIONS) == whole[1][: whole[1].index(stop)].strip()


letters = st.text("ab", max_size=12)


@settings(derandomize=True, max_examples=150)
@given(letters, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_an_answer_ends_at_the_stop_text_that_is_complete_first_and_no_piece_is_taken_back(text, stops):
    tokenizer = Letters()
    answer = Answer(tokenizer, "chatml", (), [], Sampling(stop=stops))
    pieces = []
    for letter in text:
        answer.push(tokenizer.alphabet.index(letter), torch.zeros(4))
        pieces.append(answer.piece)
        assert not any(stop in "".join(pieces) for stop in stops)
    answer.finish()
    pieces.append(answer.piece)
    first = next((text[:n] for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)), text)
    want = min((first[: first.index(stop)] for stop in stops if stop in first), key=len, default=text)
    assert "".join(pieces) == answer.text == want
    assert answer.finish_reason == ("stop" if any(stop in text for stop in stops) else "length")
    assert len(answer.token_ids) == len(want)


@given(st.text("ab", max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(derandomize=True, max_examples=150)
def test_the_end_of_a_text_is_held_while_it_may_begin_a_stop_text(text, stops):
    n = possible_stop(text, stops)
    longer = [k for k in range(1, len(text) + 1) if any(stop.startswith(text[-k:]) and len(stop) > k for stop in stops)]
    assert n == max(longer, default=0)


def test_progress_reports_images_sounds_and_prompt_up_to_all_of_them():
    vita, reports = tiny_vita(), []
    vita.prompt_chunk = 4
    sound = noise(40, 17)
    vita.stream("what is", IMAGE, sound, progress=lambda *report: reports.append(report), **OPTIONS).finish()
    for what in ("images", "sounds", "prompt"):
        done = [(n, total) for name, n, total in reports if name == what]
        assert done and done[-1][0] == done[-1][1] and [n for n, _ in done] == sorted(n for n, _ in done)
    assert [name for name, *_ in reports] == sorted((name for name, *_ in reports), key=["images", "sounds", "prompt"].index)
    assert not vita.vision.encoder.layers[0]._forward_hooks and EOS == 5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, None])
def test_reading_in_chunks_gives_the_logits_of_one_pass_for_padded_rows_too(side, chunk):
    vita = tiny_vita(tokenizer_padding_side=side)
    vita.prompt_chunk = None
    prepared = [Request(text) for text in ("a", "b c d e f", "g h i")]
    want = vita.respond_batch(prepared, **OPTIONS)
    vita.prompt_chunk = chunk
    assert vita.respond_batch(prepared, **OPTIONS) == want
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]]) if side == "left" else torch.tensor([[1, 0, 0], [1, 1, 1]])
    x = torch.tensor([[9, 8, 7], [4, 3, 2]])
    got = vita.generate(x, attention_mask=mask, **OPTIONS)
    vita.prompt_chunk = None
    assert got.equal(vita.generate(x, attention_mask=mask, **OPTIONS))
