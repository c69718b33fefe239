"""Any argument of any type gives a result, or a ValueError or TypeError of one line that says what was expected."""

import io
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_model import AUDIO, BINS, IMAGE, PIXELS, VOCAB, WIDTH, ids, noise, tiny_vita

from vita_ref import KVCache, Vita
from vita_ref.request import Request

VITA = tiny_vita()
few = settings(max_examples=60, deadline=None, derandomize=True)
TILE, BANK = noise(3, PIXELS, PIXELS), noise(30, BINS)
NUMBERS = (0, 1, 7, -1, 2**31, 2**63, 10**30, -(10**30), 0.0, 0.5, 1e300, float("nan"), float("inf"), True, False)
DTYPES = (torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
SHAPES = ((), (0,), (5,), (1, 0), (1, 2), (2, 3), (30, BINS), (4, WIDTH), (3, PIXELS, PIXELS), (3, PIXELS, 3), (0, 3, 28, 28))
SHAPES += ((1, 3, PIXELS, PIXELS), (2, 3, PIXELS, PIXELS), (1, 2, WIDTH), (1, 30, BINS), (1, 1, 3, 28, 28))


def tensor(dtype, shape, value):
    return torch.full(shape, value).to(dtype)


tensors = st.builds(tensor, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from([0.0, 1.0, 255.0, float("nan")]))
tensors |= st.builds(lambda kind, shape: torch.empty(shape, dtype=kind, device="meta"), st.sampled_from(DTYPES), st.sampled_from(SHAPES))
arrays = st.builds(
    lambda kind, shape: np.ones(shape).astype(kind),
    st.sampled_from(["u1", "f4", "f8", "i8", "?", "O", "U3", ">f4", "c8"]),
    st.sampled_from(SHAPES + ((9, 8, 4), (9, 8), (9, 8, 2), (16000,), (2, 16000), (16000, 2))),
)
texts = st.sampled_from(["", "hi", "<image> a", "<audio> <audio>", "<video>", "a\0b", "\ud800", "no/such.png", "\n\x1b[31m" * 99, "."])
leaves = st.one_of(
    st.sampled_from(NUMBERS),
    texts,
    tensors,
    arrays,
    st.sampled_from([None, b"", b"bytes", object(), object, len, {}, {"a": 1}, set(), range(3), Decimal(1), date(2000, 1, 1)]),
    st.sampled_from([Path("nowhere.wav"), TILE, TILE * 255, BANK, Request("a"), torch.Generator(), torch.float16, 1j, np.float32(1)]),
    st.builds(lambda: io.BytesIO(b"no image")),
    st.builds(lambda: Image.new("L", (9, 8))),
    st.builds(lambda: iter(["nowhere.png"])),
)
anything = st.recursive(leaves, lambda x: st.one_of(st.lists(x, max_size=3), st.tuples(x, x)), max_leaves=4)


def refused_or_done(call, *arguments, **options):
    """Whether the call gives a result; the other outcome is an error of one line."""
    try:
        return call(*arguments, **options), True
    except (ValueError, TypeError) as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 600, message
        return message, False


REQUEST = ("text", "images", "audios", "video", "system", "raw", "max_tiles", "fps", "max_frames")
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "eos_token_id", "pad_token_id")
SAMPLING += ("generator", "errors")


def some(names, least=1):
    """A few of these names, each with any value."""
    return st.dictionaries(st.sampled_from(names), anything, min_size=least, max_size=3)


@few
@given(some(REQUEST + SAMPLING))
@example({"text": 5})
@example({"images": "x.jpg"})
@example({"audios": "x.wav"})
@example({"video": ["a.mp4", "b.mp4"]})
@example({"audios": 3})
@example({"images": [torch.empty(3, PIXELS, PIXELS, device="meta")]})
@example({"video": torch.empty(4, 3, PIXELS, PIXELS, device="meta")})
@example({"audios": [torch.empty(30, BINS, device="meta")]})
@example({"audios": [(torch.empty(16000, device="meta"), 16000)]})
@example({"images": [torch.nested.nested_tensor([TILE[0], TILE[1]], layout=torch.jagged)]})
@example({"images": [torch.zeros(1).expand(3, 10**6, 10**6)]})
@example({"audios": [torch.zeros(0, WIDTH)]})
def test_respond_takes_or_refuses_any_value_of_any_argument(arguments):
    answer, done = refused_or_done(VITA.respond, **{"text": "a b", "max_new_tokens": 2} | arguments)
    assert isinstance(answer, str) or done and isinstance(answer, ValueError)


@few
@given(st.one_of(anything, st.lists(st.one_of(anything, some(("prompt", *REQUEST[1:]))), max_size=3)), some(SAMPLING, 0))
@example(["hi"], {})
@example("hi", {})
@example([], {})
@example([{5: 1}], {})
def test_respond_batch_takes_or_refuses_any_value(requests, options):
    answers, done = refused_or_done(VITA.respond_batch, requests, **{"max_new_tokens": 2} | options)
    assert not done or len(answers) == len(requests)


FORWARD = ("input_ids", "images", "audios", "attention_mask", "position_ids", "labels", "inputs_embeds", "sf_masks")
FORWARD += ("shared_v_pid_stride",)
audio_dicts = st.dictionaries(st.sampled_from(["audios", "lengths", "lengths_for_llm", "kind", "state_labels"]), anything, min_size=1)
arguments_of_a_pass = st.one_of(some(FORWARD), st.builds(lambda x: {"audios": x, "input_ids": ids(7, AUDIO)}, audio_dicts))


@few
@given(arguments_of_a_pass, st.sampled_from([(7, 8), (IMAGE, 7), (AUDIO, 7)]))
@example({"input_ids": [[5, 6]]}, (7,))
@example({"input_ids": torch.zeros(0, 3, dtype=torch.long)}, (7,))
@example({"inputs_embeds": torch.zeros(0, 3, WIDTH), "input_ids": None}, (7,))
@example({"audios": {"audios": [BANK, noise(30, BINS + 1)], "kind": "fbank"}, "input_ids": ids(AUDIO, AUDIO)}, (7,))
@example({"audios": {"audios": BANK[None], "lengths": [float("inf")]}}, (AUDIO,))
@example({"labels": ids(7, VOCAB)}, (7, 8))
@example({"attention_mask": torch.tensor([[0.0, float("-inf")]])}, (7, 8))
@example({"position_ids": torch.tensor([[0.5, 1.0]])}, (7, 8))
@example({"sf_masks": [float("inf")], "images": TILE[None]}, (IMAGE,))
@example({"images": torch.empty(1, 3, PIXELS, PIXELS, device="meta")}, (IMAGE,))
@example({"audios": {"audios": torch.empty(1, 30, BINS, device="meta")}}, (AUDIO,))
@example({"audios": {"audios": BANK[None], "lengths": torch.empty(1, device="meta")}}, (AUDIO,))
def test_a_pass_and_generation_take_or_refuse_any_value(arguments, row):
    arguments = {"input_ids": ids(*row)} | arguments
    if arguments.get("inputs_embeds") is not None and len(arguments) > 1:
        arguments.pop("input_ids")
    out, done = refused_or_done(VITA, **arguments)
    assert not done or out.logits.shape[-1] == VOCAB
    refused_or_done(VITA.generate, **arguments, max_new_tokens=2)


@few
@given(some((*SAMPLING, "stream", "include_prompt")))
@example({"max_new_tokens": 10**30})
@example({"eos_token_id": [10**30]})
@example({"pad_token_id": 10**30})
@example({"max_new_tokens": 10**5000})
def test_generation_takes_or_refuses_any_option(options):
    options = {"max_new_tokens": 2} | options
    if not callable(options.get("stream")):
        options.pop("stream", None)
    refused_or_done(VITA.generate, ids(7, 8), **options)


@few
@given(anything, anything)
def test_encoders_take_or_refuse_anything(media, lengths):
    refused_or_done(VITA.encode_images, media)
    refused_or_done(VITA.encode_audios, media, lengths)


@few
@given(some(("folder", "dtype", "device", "quantize", "kernels", "vision_dir", "audio_dir", "speech_dir", "check_finite")))
@example({"dtype": "float23"})
@example({"dtype": torch.int8})
@example({"device": "hpu"})
@example({"device": "meta:0"})
@example({"folder": ""})
@example({"folder": "a\0b\n"})
def test_loading_takes_or_refuses_any_option(options):
    """Without a folder that exists, so that nothing is loaded for each example."""
    result, done = refused_or_done(Vita.from_pretrained, **{"folder": "nowhere"} | options)
    assert not done or result.config == Vita.from_pretrained().config


def test_lists_of_ids_and_numpy_arrays_are_read_as_tensors():
    want = VITA(ids(5, 6)).logits
    for given_ids in ([[5, 6]], [(5, 6)], np.array([[5, 6]]), torch.tensor([[5, 6]], dtype=torch.int32), [np.array([5, 6])]):
        assert VITA(given_ids).logits.equal(want)
        assert VITA.generate(given_ids, max_new_tokens=3).equal(VITA.generate(ids(5, 6), max_new_tokens=3))
    with pytest.raises(ValueError, match="list of 2 numbers"):
        VITA([5, 6])
    mask = VITA(ids(0, 5, 6), attention_mask=torch.tensor([[0, 1, 1]])).logits
    assert VITA(ids(0, 5, 6), attention_mask=[[0, 1, 1]]).logits.equal(mask)
    assert VITA(inputs_embeds=VITA.embed(ids(5, 6)).double()).logits.equal(want)


def test_a_cache_of_another_dtype_or_size_is_refused_with_both():
    c = VITA.config.decoder
    sizes = (c.num_hidden_layers, 1, c.num_key_value_heads, 9, c.head_dim)
    assert VITA(ids(7), cache=KVCache(*sizes)).cache.length == 1
    wrong = {
        "dtype torch.float16 instead of torch.float32": KVCache(*sizes, dtype=torch.float16),
        "device meta instead of cpu": KVCache(*sizes, device="meta"),
        "head size 4 instead of 8": KVCache(*sizes[:4], 4),
        "layers 2 instead of 3": KVCache(2, *sizes[1:]),
        "must be a KVCache": (1, 2),
    }
    for message, cache in wrong.items():
        with pytest.raises(ValueError, match=message):
            VITA(ids(7), cache=cache)


@few
@given(st.sampled_from(["image", "list", "tower", "request"]), st.sampled_from(["int", "flat", "bytes", "nan", "inf", "edge"]), st.data())
def test_pixels_of_the_wrong_kind_are_refused_where_they_enter(place, kind, data):
    wrong = {"int": TILE.long(), "flat": TILE[0], "bytes": TILE * 255, "edge": TILE[:, :-1], "nan": TILE.clone(), "inf": TILE.clone()}[kind]
    if kind in ("nan", "inf"):
        spot = data.draw(st.integers(0, TILE.numel() - 1))
        wrong.view(-1)[spot] = float(kind)
    calls = {
        "image": lambda: VITA(ids(IMAGE), images=wrong[None]),
        "list": lambda: VITA(ids(IMAGE, IMAGE), images=[TILE, wrong]),
        "tower": lambda: VITA.encode_images(wrong[None]),
        "request": lambda: VITA.respond("a", images=[TILE, wrong]),
    }
    words = {"int": "int64", "flat": r"\[3, Y, X\]|\[N, 3", "bytes": "not normalised", "edge": "multiples", "nan": "not finite", "inf": "not finite"}
    with pytest.raises(ValueError, match=words[kind]):
        calls[place]()


@few
@given(st.sampled_from(["pass", "encoder", "request", "embeds"]), st.integers(0, 29 * BINS), st.sampled_from([float("nan"), float("-inf")]))
def test_sounds_and_embeddings_that_are_not_finite_are_refused_where_they_enter(place, spot, value):
    wrong = BANK.clone()
    wrong.view(-1)[spot] = value
    embeds = noise(2, 15, WIDTH)
    embeds[1].view(-1)[spot % (15 * WIDTH)] = value
    calls = {
        "pass": lambda: VITA(ids(AUDIO, AUDIO), audios={"audios": [BANK, wrong]}),
        "encoder": lambda: VITA.encode_audios(wrong[None], [30]),
        "request": lambda: VITA.respond("a", audios=wrong),
        "embeds": lambda: VITA(inputs_embeds=embeds),
    }
    with pytest.raises(ValueError, match=r"row 1\) has values that are not finite" if place == "embeds" else "not finite"):
        calls[place]()


def test_what_lies_behind_the_length_of_a_sound_may_be_anything():
    padded = torch.cat([BANK, torch.full_like(BANK, float("nan"))])[None]
    want = VITA(ids(AUDIO), audios={"audios": BANK[None]}).logits
    assert VITA(ids(AUDIO), audios={"audios": padded, "lengths": [30]}).logits.equal(want)
