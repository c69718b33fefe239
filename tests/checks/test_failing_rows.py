"""A row that cannot be answered says why, and leaves the other rows of its batch as they are."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_model import (
    BINS,
    CONFIG,
    IMAGE,
    PIXELS,
    VOCAB,
    WIDTH,
    WordTokenizer,
    ids,
    noise,
    tiny_vita,
)

from vita_ref import Vita
from vita_ref.checks.rows import room
from vita_ref.generate import main
from vita_ref.inputs import Batch
from vita_ref.loading import demo_folder
from vita_ref.request import Request
from vita_ref.sampling import Sampling

VITA = tiny_vita()
few = settings(max_examples=15, deadline=None, derandomize=True)
NAN, INF = float("nan"), float("inf")
WAYS = {"greedy": {}, "sampled": {"temperature": 1.5, "top_k": 30}, "penalised": {"temperature": 1.0, "repetition_penalty": 1.4}}


def options(way, **more):
    generator = torch.Generator().manual_seed(5)
    return {"max_new_tokens": 5, "eos_token_id": (), "generator": generator} | WAYS[way] | more


# ---- logits that are not finite


@few
@given(st.integers(2, 4), st.data(), st.sampled_from(list(WAYS)), st.sampled_from([NAN, INF, -INF]))
def test_a_row_that_is_not_finite_leaves_the_others_of_generate_as_they_are(rows, data, way, value):
    """Embeddings of rows that are all finite give the oracle; the planted row is the only one that changes."""
    good = noise(rows, 6, WIDTH, seed=data.draw(st.integers(0, 99)))
    bad = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    planted = good.clone()
    for row in bad:
        planted[row, data.draw(st.integers(0, 5)), data.draw(st.integers(0, WIDTH - 1))] = value
    want = VITA.generate(inputs_embeds=good, **options(way))
    got = VITA.generate(inputs_embeds=planted, errors="return", **options(way))
    for i, each in enumerate(got):
        assert "not finite" in str(each) if i in bad else each.equal(want[i])
    if way == "greedy":
        assert all(i in bad or each.equal(VITA.generate(inputs_embeds=good[i : i + 1], **options(way))[0]) for i, each in enumerate(got))
    with pytest.raises(ValueError, match=r"rows? " + ", ".join(map(str, sorted(bad)))):
        VITA.generate(inputs_embeds=planted, **options(way))


@few
@given(st.lists(st.sampled_from(["text", "image", "sound"]), min_size=2, max_size=4), st.data(), st.sampled_from(list(WAYS)))
def test_a_bad_request_anywhere_in_a_batch_leaves_the_other_answers_as_they_are(kinds, data, way):
    media = {"text": {}, "image": {"images": noise(3, PIXELS, PIXELS)}, "sound": {"audios": noise(30, BINS)}}
    requests = [Request(f"row {i}", raw=True, **media[kind]) for i, kind in enumerate(kinds)]
    row = data.draw(st.integers(0, len(kinds) - 1))
    spoiled = data.draw(st.sampled_from([
        {"prompt": "a", "images": torch.full((3, PIXELS, PIXELS), NAN)},
        {"prompt": "a", "audios": torch.full((30, BINS), INF)},
        {"prompt": "a", "images": "nowhere.png"},
        {"prompt": 5},
        {"unknown": 1},
        7,
        "a " * 40_000,
    ]))  # fmt: skip
    want = VITA.respond_batch(requests, **options(way))
    planted = requests[:row] + [spoiled] + requests[row + 1 :]
    got = VITA.respond_batch(planted, errors="return", **options(way))
    assert isinstance(got[row], ValueError) and "\n" not in str(got[row])
    assert [x for i, x in enumerate(got) if i != row] == [x for i, x in enumerate(want) if i != row]
    with pytest.raises(ValueError, match=f"^row {row}: "):
        VITA.respond_batch(planted, **options(way))


@few
@given(st.integers(2, 4), st.data(), st.sampled_from(list(WAYS)), st.integers(0, 4))
def test_a_row_that_fails_at_any_step_has_an_error_and_the_others_their_answers(rows, data, way, step):
    """The head is made to fail for some rows from a step on; a request of its own shows the way through the media."""
    bad, calls = data.draw(st.sets(st.integers(0, rows - 1), min_size=1)), []
    requests = [f"row number {i}" for i in range(rows)]

    def spoil(module, args, logits):
        calls.append(None)
        if len(calls) > step:
            logits[sorted(bad), data.draw(st.integers(0, VOCAB - 1))] = data.draw(st.sampled_from([NAN, INF, -INF]))

    want = VITA.respond_batch(requests, **options(way))
    handle = VITA.decoder.lm_head.register_forward_hook(spoil)
    try:
        got = VITA.respond_batch(requests, errors="return", **options(way))
        assert len(calls) == (5 if len(bad) < rows else step + 1)
        calls.clear()
        with pytest.raises(ValueError, match=r"^the logits of rows? " + ", ".join(map(str, sorted(bad))) + " are not finite"):
            VITA.respond_batch(requests, **options(way))
    finally:
        handle.remove()
    assert [isinstance(x, ValueError) for x in got] == [i in bad for i in range(rows)]
    assert all(i in bad or got[i] == want[i] for i in range(rows))


def test_an_answer_that_failed_says_so_and_keeps_what_was_said_before():
    vita, calls = tiny_vita(), []
    handle = vita.decoder.lm_head.register_forward_hook(lambda *args: args[2].mul_(NAN if calls.append(0) or len(calls) == 3 else 1))
    *_, answers = vita.answer([vita.prepare(Request("a b"))], Sampling(max_new_tokens=5, eos_token_id=(), errors="return"))
    handle.remove()
    [answer] = answers
    assert len(answer.token_ids) == 2 and answer.finish_reason == "error" and "not finite" in str(answer.error)
    assert answer.first_logits.isfinite().all()


def test_a_row_that_has_ended_may_no_longer_fail():
    vita = tiny_vita()
    free = vita.generate(torch.tensor([[7, 8], [9, 3]]), max_new_tokens=6, eos_token_id=())
    end = next(int(t) for t in free[0, :3] if t not in free[1])
    calls = []

    def spoil(module, args, logits):
        calls.append(None)
        if len(calls) > 3:
            logits[0] = NAN

    handle = vita.decoder.lm_head.register_forward_hook(spoil)
    got = vita.generate(torch.tensor([[7, 8], [9, 3]]), max_new_tokens=6, eos_token_id=end)
    handle.remove()
    assert got[1].equal(free[1])


def test_the_error_names_float16_or_the_weight_that_is_not_finite():
    half = tiny_vita().half()
    for weight in half.decoder.layers[1].mlp.parameters():
        weight.mul_(1e3)  # finite, but its products are not
    with pytest.raises(ValueError, match=r"float16 overflows in a layer.*use bfloat16 or float32"):
        half.respond("a b")
    assert isinstance(half.bfloat16().respond("a b", max_new_tokens=3), str)
    for part in ("decoder.layers.1.mlp.up_proj.weight", "vision.embeddings.class_embedding"):
        damaged = tiny_vita()
        damaged.get_parameter(part).view(-1)[3] = NAN
        with pytest.raises(ValueError, match=f"the weight {part} has such values"):
            damaged.respond("a", images=noise(3, PIXELS, PIXELS))


def test_weights_are_checked_when_asked(tmp_path):
    assert Vita.from_pretrained(check_finite=True).config.decoder.vocab_size == 900
    folder = tmp_path / "damaged"
    shutil.copytree(demo_folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][7] = INF
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' has values that are NaN or infinite"):
        Vita.from_pretrained(folder, check_finite=True)
    with pytest.raises(ValueError, match=r"the weight decoder\.norm\.weight has such values"):
        Vita.from_pretrained(folder).respond("hi")


# ---- which options sample


def test_a_temperature_alone_samples_at_every_entry_point():
    """All are drawn from one seed; greedy answers and answers without sampling are others."""
    text, hot = "one two three", {"temperature": 50.0, "max_new_tokens": 9, "eos_token_id": ()}

    def seeded(**more):
        return hot | {"generator": torch.Generator().manual_seed(3)} | more

    x = ids(*VITA.tokenizer(text).input_ids)
    drawn, greedy = VITA.generate(x, **seeded())[0].tolist(), VITA.generate(x, **seeded(do_sample=False))[0].tolist()
    assert drawn != greedy == VITA.generate(x, **hot | {"temperature": None})[0].tolist()
    assert drawn == VITA.generate(x, **seeded(do_sample=True))[0].tolist()
    words = " ".join(map(str, drawn))
    assert VITA.respond(text, raw=True, **seeded()) == words
    assert VITA.respond_batch([Request(text, raw=True)], **seeded()) == [words]
    *_, [answer] = VITA.answer([VITA.prepare(Request(text, raw=True))], Sampling(**seeded()))
    assert answer.token_ids == drawn
    assert [int(step.ids) for step in VITA.steps(VITA.inputs(Batch(x)), Sampling(**seeded()))] == drawn


def test_a_generator_for_each_row_is_used_for_that_row():
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    x, hot = torch.tensor([[7, 8], [9, 3]]), {"temperature": 3.0, "max_new_tokens": 8, "eos_token_id": ()}
    got = VITA.generate(x, generator=generators(1, 2), **hot)
    assert got[1].equal(VITA.generate(x[1:], generator=generators(2), **hot)[0])
    with pytest.raises(ValueError, match="one for each of 2 rows, got a list of 3"):
        VITA.generate(x, generator=generators(1, 2, 3), **hot)


# ---- prompts and answers that are too long


@given(st.integers(0, 30), st.none() | st.integers(1, 30), st.integers(1, 25))
@example(25, 1, 25)
@example(24, 1, 25)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_room_is_what_is_asked_for_or_a_refusal_with_both_numbers(positions, new, limit):
    if positions >= limit or positions + (new or 1) > limit:
        with pytest.raises(ValueError) as caught:
            room(positions, new, limit)
        assert str(positions if positions >= limit else positions + new) in str(caught.value) and str(limit) in str(caught.value)
    else:
        assert room(positions, new, limit) == (new or limit - positions)


LIMIT = 24
SHORT = tiny_vita(decoder=replace(CONFIG.decoder, max_position_embeddings=LIMIT))
LONG = {
    "text": {"prompt": "a " * 25},
    "images": {"prompt": "a", "images": [noise(3, PIXELS, PIXELS)] * 6},
    "video": {"prompt": "a", "video": noise(6, 3, PIXELS, PIXELS)},
    "sound": {"prompt": "a", "audios": noise(191, BINS)},
}
SIZES = {"text": 25, "images": 25, "video": 25, "sound": 25}


@pytest.mark.parametrize("kind", LONG)
def test_a_prompt_beyond_the_positions_of_the_checkpoint_is_refused_before_anything_is_computed(kind, monkeypatch):
    monkeypatch.setattr(SHORT.decoder, "forward", None)
    request = Request(raw=True, **LONG[kind])
    with pytest.raises(ValueError, match=f"takes {SIZES[kind]} positions, but this checkpoint has {LIMIT}"):
        SHORT.respond_batch([request])
    with pytest.raises(ValueError, match=r"takes 25 positions"):
        SHORT.generate(torch.full((1, 25), 7), max_new_tokens=1)
    with pytest.raises(ValueError, match=r"row 1: .*takes 25 positions"):
        SHORT.generate([torch.full((3,), 7), torch.full((25,), 7)], max_new_tokens=1)


@few
@given(st.integers(1, LIMIT - 1), st.integers(1, LIMIT))
def test_new_tokens_beyond_the_positions_are_refused_and_by_default_fill_them(prompt, new):
    x = torch.full((1, prompt), 7)
    if prompt + new > LIMIT:
        with pytest.raises(ValueError, match=rf"{prompt} positions, and {new} new tokens make it {prompt + new}.* at most {LIMIT - prompt}"):
            SHORT.generate(x, max_new_tokens=new, eos_token_id=())
    else:
        assert SHORT.generate(x, max_new_tokens=new, eos_token_id=()).shape == (1, new)
    assert SHORT.generate(x, max_new_tokens=None, eos_token_id=()).shape == (1, LIMIT - prompt)


def test_each_row_of_a_batch_fills_its_own_positions_by_default():
    requests = [Request("a " * n, raw=True) for n in (3, 20, 11)]
    prepared = [SHORT.prepare(each) for each in requests]
    *_, answers = SHORT.answer(prepared, Sampling(eos_token_id=()))
    assert [len(each.token_ids) for each in answers] == [LIMIT - n for n in (3, 20, 11)]
    assert {each.finish_reason for each in answers} == {"length"}
    alone = [SHORT.respond_batch([each], eos_token_id=()) for each in requests]
    assert [each.text for each in answers] == [text for [text] in alone]


def test_padding_and_shared_positions_take_no_room():
    x = torch.full((1, 30), 7)
    mask = torch.arange(30)[None] >= 10
    assert SHORT.generate(x, attention_mask=mask, max_new_tokens=4, eos_token_id=()).shape == (1, 4)
    images = {"images": noise(8, 3, PIXELS, PIXELS), "max_new_tokens": 2, "eos_token_id": ()}
    assert SHORT.generate(ids(*[IMAGE] * 8), shared_v_pid_stride=2, **images).shape == (1, 2)  # 32 columns, 16 positions
    with pytest.raises(ValueError, match="takes 32 positions"):
        SHORT.generate(ids(*[IMAGE] * 8), **images)


def test_the_command_line_refuses_what_is_too_long_with_both_numbers(capsys):
    limit = json.loads((demo_folder() / "config.json").read_text())["decoder"]["max_position_embeddings"]
    for extra in ([], ["--dry-run"]):
        assert main(["hi " * 5000, *extra]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and f"has {limit}" in err and "positions" in err
        assert main(["hi", "--max-new-tokens", "5000", *extra]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and f"has {limit}" in err and "5000 new tokens" in err


def test_a_word_tokenizer_gives_as_many_positions_as_words():
    assert len(WordTokenizer()(LONG["text"]["prompt"]).input_ids) == SIZES["text"]
