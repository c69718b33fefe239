"""The ear against golden data, against a slow version of itself, and against laws of batching."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vita_ref.audio import (
    BLOCK,
    AudioEncoder,
    audio_token_count,
    encoder_position_count,
    read_cmvn,
    sinusoids,
    visible_spans,
)
from vita_ref.config import AudioConfig, VitaConfig
from vita_ref.files.folders import read_config

EAR = "audio-encoder-Qwen2-7B-1107-weight-base-11wh-tunning"
PREFIX = "model.audio_encoder."
CLOSE = {"atol": 1e-5, "rtol": 0}
TINY = AudioConfig(
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=3,
    subsampling_size=20,
    num_mel_bins=31,
    adapter_kernel_size=4,
    num_prompts=2,
)
WIDTH = 28
OPTIONS = st.fixed_dictionaries(
    {
        "position_encoding": st.sampled_from(["rel-enc", "abs-enc", "no-enc"]),
        "normalize_before": st.booleans(),
        "concat_after": st.booleans(),
        "chunk_size": st.sampled_from([-1, 1, 3, 5]),
        "left_chunks": st.sampled_from([-1, 0, 1, 2]),
        "adapter_norm": st.sampled_from(["layer", "batch"]),
        "adapter_activation": st.sampled_from(["gelu", "relu"]),
        "adapter_kernel_size": st.sampled_from([3, 4, 5]),
        "num_prompts": st.sampled_from([0, 2]),
    }
)


def build(config, seed=0, scale=0.3):
    """A small ear with random weights and statistics."""
    torch.manual_seed(seed)
    ear = AudioEncoder(config, WIDTH).eval()
    for tensor in (*ear.parameters(), *ear.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(-scale, scale)
    for name, tensor in ear.named_buffers():
        if name.endswith(("istd", "running_var")):
            tensor.uniform_(0.5, 1.5)
    return ear


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def golden_weights(kind=""):
    files = [*sorted((GOLDEN / "checkpoint").glob("*.safetensors"))]
    if kind == "audio_batchnorm":
        files = [GOLDEN / "variants" / kind / "audio_encoder.safetensors"]
    elif kind == "audio_prompt":
        files.append(GOLDEN / "variants" / kind / "extra.safetensors")
    found = {k: v for f in files for k, v in load_file(f).items()}
    return {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}


def golden_ear(kind=""):
    folder = GOLDEN / "variants" / kind / EAR if kind == "audio_batchnorm" else None
    config = read_config(GOLDEN / "checkpoint", audio_dir=folder)
    audio = replace(config.audio, num_prompts=5) if kind == "audio_prompt" else config.audio
    with torch.device("meta"):
        ear = AudioEncoder(audio, config.decoder.hidden_size)
    ear.load_state_dict(golden_weights(kind), strict=True, assign=True)
    return ear.eval()


def golden_case(name):
    t = case(name)
    if "audios_index" not in t:  # upstream's placeholder
        return t, torch.zeros(1, int(t["lengths"]), 80)
    pool = case("pool")["fbank"]
    return t, pool[t["audios_index"], : int(t["lengths"].max())]


GOLDEN_CASES = [
    ("audio", ""),
    ("audio_single", ""),
    ("variant_audio_batchnorm", "audio_batchnorm"),
    ("variant_audio_prompt", "audio_prompt"),
]


@pytest.mark.parametrize("name, kind", [*GOLDEN_CASES, ("audio_dummy", "")])
def test_golden_prompt_rows(name, kind):
    ear, (t, fbank) = golden_ear(kind), golden_case(name)
    with torch.inference_mode():
        embeds, lengths = ear(fbank, t["lengths"])
    assert torch.equal(lengths, t["attention_mask"].sum(1) + ear.config.num_prompts)
    assert embeds.shape == t["inputs_embeds"].shape
    for got, want, n in zip(embeds, t["inputs_embeds"], lengths):
        torch.testing.assert_close(got[:n], want[:n], atol=2e-5, rtol=0)
        assert not got[n:].any()


@pytest.mark.parametrize("name, kind", GOLDEN_CASES)
def test_golden_steps_on_the_way(name, kind):
    ear, (t, fbank) = golden_ear(kind), golden_case(name)
    mask, lengths = t["encoder_mask"][:, 0], encoder_position_count(t["lengths"])
    with torch.inference_mode():
        normal = ear.normalise(fbank)
        few = ear.subsample(normal)
        hidden = ear.encode(few, lengths)
    assert torch.equal(lengths, mask.sum(1))
    torch.testing.assert_close(normal, t["cmvn_out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(few, t["subsampling_out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(hidden[mask], t["encoder_out_valid"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("is_json, kind", [(True, ""), (False, "audio_batchnorm")])
def test_statistics_in_the_folder_are_those_of_the_checkpoint(is_json, kind):
    weights = golden_weights(kind)
    folder = GOLDEN / "variants" / kind if kind else GOLDEN / "checkpoint"
    mean, istd = read_cmvn(folder / EAR / "global_cmvn", is_json)
    torch.testing.assert_close(mean, weights["encoder.global_cmvn.mean"])
    torch.testing.assert_close(istd, weights["encoder.global_cmvn.istd"])
    with pytest.raises(ValueError, match="cmvn"):
        read_cmvn(folder / EAR / "global_cmvn", not is_json)


def test_tensor_names_and_shapes_of_the_released_model():
    listed = json.loads((GOLDEN / "vita-1.5-tensors.json").read_text())["tensors"]
    want = {}
    for name, entry in listed.items():
        if name.startswith(PREFIX):
            want |= {name.replace("*", str(i)): entry["shape"] for i in range(entry["count"])}
    config = VitaConfig.preset("vita-1.5")
    with torch.device("meta"):
        ear = AudioEncoder(config.audio, config.decoder.hidden_size)
    assert {PREFIX + k: list(v.shape) for k, v in ear.state_dict().items()} == want


# How many positions


@given(frames=st.integers(0, 5000))
def test_a_count_is_what_three_slices_leave(frames):
    x = range(frames)
    assert audio_token_count(frames) == len(x[2::2][2::2][0::2])
    assert frames < 3 or encoder_position_count(frames) == len(x[2::2][2::2])


def test_counts_of_the_golden_table():
    for row in json.loads((GOLDEN / "cases" / "audio_lengths.json").read_text()):
        assert audio_token_count(row["frames"]) == row["lengths_for_llm"]


# Against slow versions


def slow_spans(size, chunk, left):
    """[S, S] bool: which key each query sees, one by one."""
    if chunk <= 0:
        return torch.ones(size, size, dtype=torch.bool)
    left = size if left < 0 else left
    return torch.tensor([[0 <= q // chunk - k // chunk <= left for k in range(size)] for q in range(size)])


def slow_attention(a, x, table, visible):
    """The scores as upstream has them, a head at a time."""
    width = x.shape[1]
    head = width // a.num_heads
    out = []
    for h in range(a.num_heads):
        own = slice(h * head, h * head + head)
        q, k, v = (f(x)[:, own] for f in (a.linear_q, a.linear_k, a.linear_v))
        scores = q @ k.T
        if a.has_positions:
            p = a.linear_pos(table)[:, own]
            scores = (q + a.pos_bias_u[h]) @ k.T + (q + a.pos_bias_v[h]) @ p.T
        scores = (scores / math.sqrt(head)).masked_fill(~visible, -math.inf)
        out.append(scores.softmax(-1) @ v)
    return a.linear_out(torch.cat(out, 1))


def slow_encode(ear, x):
    """One sound, [S, U] -> [S, E]."""
    c, t = ear.config, ear.encoder["enc"][1]
    x = t.embed(x)
    size, width = x.shape
    wave, rate = (math.sin, math.cos), [10000 ** (-(e // 2 * 2) / width) for e in range(width)]
    table = torch.tensor([[wave[e % 2](s * rate[e]) for e in range(width)] for s in range(size)])
    visible = slow_spans(size, c.chunk_size, c.left_chunks)
    x = x if c.position_encoding == "no-enc" else x * math.sqrt(width)
    x = x + table if c.position_encoding == "abs-enc" else x
    for layer in t.encoders:
        first, second = (layer.norm1, layer.norm2) if c.normalize_before else (torch.nn.Identity(),) * 2
        y = first(x)
        heard = slow_attention(layer.self_attn, y, table, visible)
        x = x + (layer.concat_linear(torch.cat([y, heard], 1)) if c.concat_after else heard)
        x = x if c.normalize_before else layer.norm1(x)
        x = x + layer.feed_forward(second(x))
        x = x if c.normalize_before else layer.norm2(x)
    return t.after_norm(x) if c.normalize_before else x


@settings(deadline=None, max_examples=30)
@given(options=OPTIONS, size=st.integers(1, 14), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_the_encoder_is_attention_written_out(options, size, more, seed):
    ear = build(replace(TINY, **options), seed)
    x = noise(2, size + more, TINY.subsampling_size, seed=seed)
    with torch.inference_mode():
        got = ear.encode(x, torch.tensor([size, size + more]))
        torch.testing.assert_close(got[0, :size], slow_encode(ear, x[0, :size]), **CLOSE)
        torch.testing.assert_close(got[1], slow_encode(ear, x[1]), **CLOSE)


@torch.inference_mode()
def test_blocks_of_positions_leave_no_seam():
    ear = build(TINY)
    x = noise(1, 4 * (BLOCK + 9) + 3, TINY.num_mel_bins)
    core = ear.encoder["enc"][0]["core"]
    few = ear.subsample(x)
    torch.testing.assert_close(few, core.out(core.conv(x[:, None]).transpose(1, 2).flatten(2)), **CLOSE)
    hidden = ear.encode(few, torch.tensor([BLOCK + 9]))
    torch.testing.assert_close(hidden[0], slow_encode(ear, few[0]), **CLOSE)


@given(size=st.integers(1, 40), chunk=st.integers(-1, 50), left=st.integers(-1, 4))
def test_spans_cover_each_query_once_and_what_it_sees(size, chunk, left):
    seen = torch.zeros(size, size, dtype=torch.long)
    for rows, keys in visible_spans(size, chunk, left):
        seen[rows, keys] += 1
    assert torch.equal(seen, slow_spans(size, chunk, left).long())


def test_the_table_of_positions_has_no_end():
    table = sinusoids(90000, 24)
    assert table.shape == (90000, 24) and table.isfinite().all()
    torch.testing.assert_close(table.square().sum(1), torch.full((90000,), 12.0))
    assert torch.equal(table[:100], sinusoids(100, 24))


@torch.inference_mode()
def test_long_sounds_need_no_square_of_their_length(largest):
    ear, frames = build(replace(TINY, num_hidden_layers=1)), 24000
    x = noise(1, frames, TINY.num_mel_bins)
    with largest:
        ear(x, torch.tensor([frames]))
    assert largest.count < encoder_position_count(frames) ** 2


# Laws of batching


@settings(deadline=None, max_examples=30)
@given(
    options=OPTIONS,
    lengths=st.lists(st.integers(7, 120), min_size=1, max_size=4),
    more=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_a_sound_in_a_batch_is_what_it_is_alone(options, lengths, more, seed):
    ear = build(replace(TINY, **options), seed)
    fbank = noise(len(lengths), max(lengths) + more, TINY.num_mel_bins, seed=seed)  # the padding is noise too
    with torch.inference_mode():
        together = ear(fbank, torch.tensor(lengths))
        for i, n in enumerate(lengths):
            alone = ear(fbank[i : i + 1, :n], torch.tensor([n]))
            count = audio_token_count(n) + ear.config.num_prompts
            assert together.lengths[i] == alone.lengths[0] == alone.embeds.shape[1] == count
            torch.testing.assert_close(together.embeds[i, :count], alone.embeds[0], **CLOSE)
            assert not together.embeds[i, count:].any()


@torch.inference_mode()
def test_what_is_given_stays_as_it_was():
    ear, fbank, lengths = build(TINY), noise(2, 50, TINY.num_mel_bins), torch.tensor([50, 20])
    hidden, positions = noise(2, 11, TINY.hidden_size), torch.tensor([11, 4])
    before = [x.clone() for x in (fbank, lengths, hidden, positions, *ear.state_dict().values())]
    ear(fbank, lengths)
    ear.adapt(hidden, positions)
    after = [fbank, lengths, hidden, positions, *ear.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


@torch.inference_mode()
def test_learned_prompts_stand_in_front():
    ear = build(TINY)
    embeds, lengths = ear(noise(2, 50, TINY.num_mel_bins), torch.tensor([50, 20]))
    assert lengths.tolist() == [6 + 2, 2 + 2]
    assert torch.equal(embeds[:, :2], ear.prompt_embeddings.weight.expand(2, 2, WIDTH))


@torch.inference_mode()
def test_a_chunk_hears_nothing_of_later_chunks():
    chunk = 4
    ear = build(replace(TINY, chunk_size=chunk))
    x = noise(1, 20, TINY.subsampling_size)
    changed = x.clone()
    changed[:, 2 * chunk] += 1
    apart = (ear.encode(x, torch.tensor([20])) - ear.encode(changed, torch.tensor([20]))).abs().amax((0, 2))
    assert apart[: 2 * chunk].max() == 0 and apart[2 * chunk :].min() > 1e-4


@torch.inference_mode()
def test_the_option_of_random_chunks_changes_nothing():  # quirk
    fbank, lengths = noise(1, 300, TINY.num_mel_bins), torch.tensor([300])
    for chunk in (-1, 3):
        want = build(replace(TINY, chunk_size=chunk))(fbank, lengths).embeds
        ear = build(replace(TINY, chunk_size=chunk, dynamic_chunks=True))
        assert torch.equal(ear(fbank, lengths).embeds, want) and torch.equal(ear(fbank, lengths).embeds, want)


@torch.inference_mode()
def test_the_adapter_looks_ahead_and_never_back():  # quirk: padding on the right alone
    ear = build(TINY)
    x = noise(1, 11, TINY.hidden_size)
    changed = x.clone()
    changed[:, 6] += 1  # the first position that output 3 sees, and with 4 taps the last-but-one of output 2
    apart = (ear.adapt(x, torch.tensor([11])) - ear.adapt(changed, torch.tensor([11]))).abs().amax((0, 2))
    assert (apart > 1e-4).tolist() == [False, False, True, True, False, False]


# Dtypes, gradients, refusals


@pytest.mark.parametrize("dtype, near", [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
@torch.inference_mode()
def test_half_precision_is_near(dtype, near):
    fbank, lengths = noise(2, 90, TINY.num_mel_bins), torch.tensor([90, 40])
    want = build(TINY)(fbank, lengths).embeds
    got = build(TINY).to(dtype)(fbank, lengths).embeds
    assert got.dtype == dtype and got.isfinite().all()
    torch.testing.assert_close(got.float(), want, atol=near, rtol=0)


def test_every_weight_gets_a_gradient():
    ear = build(replace(TINY, concat_after=True))
    ear(noise(2, 90, TINY.num_mel_bins), torch.tensor([90, 40])).embeds.square().sum().backward()
    for name, weight in ear.named_parameters():
        if not name.endswith("linear_k.bias"):  # the same for every key, so softmax takes it out
            assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


@pytest.mark.parametrize(
    "shape, lengths, message",
    [
        ((2, 50, 31), [50, 6], r"6 filter-bank frames .* at least 7 \(85 ms\)"),
        ((1, 0, 31), [0], "0 filter-bank frames"),
        ((1, 50, 30), [50], r"\[sounds, frames, 31\], got \[1, 50, 30\]"),
        ((50, 31), [50], "sounds, frames, 31"),
        ((2, 50, 31), [50], r"each of 2 sounds, got \[1\]"),
        ((1, 50, 31), [51], "51 frames, but fbank holds 50"),
    ],
)
def test_what_does_not_fit_is_refused(shape, lengths, message):
    with pytest.raises(ValueError, match=message):
        build(TINY)(torch.zeros(shape), torch.tensor(lengths))


@torch.inference_mode()
def test_the_shortest_sound_takes_one_position():
    embeds, lengths = build(replace(TINY, num_prompts=0))(noise(1, 7, TINY.num_mel_bins), torch.tensor([7]))
    assert embeds.shape == (1, 1, WIDTH) and lengths.tolist() == [1]
