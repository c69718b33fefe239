"""The audio encoder against upstream's golden data, a slow version of itself, and itself in batches.

Run: ``pytest tests/test_audio.py``
"""

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
    AudioAttention,
    AudioEncoder,
    audio_token_count,
    encoder_position_count,
    sinusoids,
    visible_spans,
)
from vita_ref.config import AudioConfig, VitaConfig
from vita_ref.files.folders import read_config

FOLDER = "audio-encoder-Qwen2-7B-1107-weight-base-11wh-tunning"
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
    """A small audio encoder with random weights and statistics."""
    torch.manual_seed(seed)
    encoder = AudioEncoder(config, WIDTH).eval()
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(-scale, scale)
    for name, tensor in encoder.named_buffers():
        if name.endswith(("istd", "running_var")):
            tensor.uniform_(0.5, 1.5)
    return encoder


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def golden_weights(kind=""):
    files = [*sorted((GOLDEN / "checkpoint").glob("*.safetensors"))]
    if kind == "audio_batchnorm":
        files = [GOLDEN / "variants" / kind / "audio_encoder.safetensors"]
    elif kind == "audio_prompt":
        files.append(GOLDEN / "variants" / kind / "extra.safetensors")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {name.removeprefix(PREFIX): x for name, x in tensors.items() if name.startswith(PREFIX)}


def golden_encoder(kind=""):
    folder = GOLDEN / "variants" / kind / FOLDER if kind == "audio_batchnorm" else None
    config = read_config(GOLDEN / "checkpoint", audio_dir=folder)
    audio = replace(config.audio, num_prompts=5) if kind == "audio_prompt" else config.audio
    with torch.device("meta"):
        encoder = AudioEncoder(audio, config.decoder.hidden_size)
    encoder.load_state_dict(golden_weights(kind), strict=True, assign=True)
    return encoder.eval()


def golden_case(name):
    """The tensors of a case, and its filter banks."""
    t = case(name)
    if "audios_index" not in t:  # the silence that upstream uses if there is no sound
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
def test_prompt_rows_are_those_of_upstream(name, kind):
    encoder, (t, fbank) = golden_encoder(kind), golden_case(name)
    with torch.inference_mode():
        embeds, lengths = encoder(fbank, t["lengths"])
    assert torch.equal(lengths, t["attention_mask"].sum(1) + encoder.config.num_prompts)
    assert embeds.shape == t["inputs_embeds"].shape
    for got, want, n in zip(embeds, t["inputs_embeds"], lengths):
        torch.testing.assert_close(got[:n], want[:n], atol=2e-5, rtol=0)
        assert not got[n:].any()


@pytest.mark.parametrize("name, kind", GOLDEN_CASES)
def test_each_step_gives_the_values_of_upstream(name, kind):
    encoder, (t, fbank) = golden_encoder(kind), golden_case(name)
    mask, lengths = t["encoder_mask"][:, 0], encoder_position_count(t["lengths"])
    with torch.inference_mode():
        normal = encoder.normalise(fbank)
        subsampled = encoder.subsample(normal)
        hidden = encoder.encode(subsampled, lengths)
    assert torch.equal(lengths, mask.sum(1))
    torch.testing.assert_close(normal, t["cmvn_out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(subsampled, t["subsampling_out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(hidden[mask], t["encoder_out_valid"], atol=2e-5, rtol=0)


def test_tensor_names_and_shapes_are_those_of_the_released_model():
    listed = json.loads((GOLDEN / "vita-1.5-tensors.json").read_text())["tensors"]
    want = {}
    for name, entry in listed.items():
        if name.startswith(PREFIX):
            want |= {name.replace("*", str(i)): entry["shape"] for i in range(entry["count"])}
    config = VitaConfig.preset("vita-1.5")
    with torch.device("meta"):
        encoder = AudioEncoder(config.audio, config.decoder.hidden_size)
    assert {PREFIX + k: list(v.shape) for k, v in encoder.state_dict().items()} == want


# ---- the number of positions


@given(frames=st.integers(0, 5000))
def test_the_counts_are_the_lengths_that_upstreams_slices_leave(frames):
    x = range(frames)
    assert audio_token_count(frames) == len(x[2::2][2::2][0::2])
    assert frames < 3 or encoder_position_count(frames) == len(x[2::2][2::2])


def test_the_counts_are_those_of_upstreams_table():
    rows = json.loads((GOLDEN / "cases" / "audio_lengths.json").read_text())
    assert len(rows) == 65
    for row in rows:
        assert audio_token_count(row["frames"]) == row["lengths_for_llm"], row


# ---- the same, written out


def slow_spans(size, chunk, left):
    """[P, P] bool: which keys each query sees, one by one."""
    if chunk <= 0:
        return torch.ones(size, size, dtype=torch.bool)
    left = size if left < 0 else left
    return torch.tensor([[0 <= q // chunk - k // chunk <= left for k in range(size)] for q in range(size)])


def slow_attention(a, x, table, visible):
    """Head by head, with upstream's formula of the scores. ``a`` is the attention module."""
    size, out = x.shape[1] // a.num_heads, []
    for h in range(a.num_heads):
        head = slice(h * size, h * size + size)
        q, k, v = (linear(x)[:, head] for linear in (a.linear_q, a.linear_k, a.linear_v))
        scores = q @ k.T
        if a.has_positions:
            p = a.linear_pos(table)[:, head]
            scores = (q + a.pos_bias_u[h]) @ k.T + (q + a.pos_bias_v[h]) @ p.T
        scores = (scores / math.sqrt(size)).masked_fill(~visible, -math.inf)
        out.append(scores.softmax(-1) @ v)
    return a.linear_out(torch.cat(out, 1))


def slow_sinusoids(size, width):
    """The position table entry by entry: sines in even columns, cosines in odd ones."""
    rates = [10000 ** (-(e // 2 * 2) / width) for e in range(width)]
    waves = (math.sin, math.cos)
    return torch.tensor([[waves[e % 2](position * rates[e]) for e in range(width)] for position in range(size)])


def slow_encode(encoder, x):
    """The transformer on one sound without padding: [P, U] -> [P, E]."""
    c, t = encoder.config, encoder.encoder["enc"][1]
    x = t.embed(x)
    table = slow_sinusoids(*x.shape)
    visible, width = slow_spans(len(x), c.chunk_size, c.left_chunks), x.shape[1]
    x = x if c.position_encoding == "no-enc" else x * math.sqrt(width)
    x = x + table if c.position_encoding == "abs-enc" else x
    for layer in t.encoders:
        first, second = (layer.norm1, layer.norm2) if c.normalize_before else (torch.nn.Identity(),) * 2
        y = first(x)
        attended = slow_attention(layer.self_attn, y, table, visible)
        x = x + (layer.concat_linear(torch.cat([y, attended], 1)) if c.concat_after else attended)
        x = x if c.normalize_before else layer.norm1(x)
        x = x + layer.feed_forward(second(x))
        x = x if c.normalize_before else layer.norm2(x)
    return t.after_norm(x) if c.normalize_before else x


@settings(deadline=None, max_examples=30)
@given(options=OPTIONS, size=st.integers(1, 14), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_the_transformer_is_its_formula_for_every_option_and_with_padding(options, size, more, seed):
    encoder = build(replace(TINY, **options), seed)
    x = noise(2, size + more, TINY.subsampling_size, seed=seed)
    with torch.inference_mode():
        got = encoder.encode(x, torch.tensor([size, size + more]))
        torch.testing.assert_close(got[0, :size], slow_encode(encoder, x[0, :size]), **CLOSE)
        torch.testing.assert_close(got[1], slow_encode(encoder, x[1]), **CLOSE)


@torch.inference_mode()
def test_blocks_of_positions_give_the_same_as_a_single_block():
    encoder = build(TINY)
    x = noise(1, 4 * (BLOCK + 9) + 3, TINY.num_mel_bins)
    core = encoder.encoder["enc"][0]["core"]
    subsampled = encoder.subsample(x)
    torch.testing.assert_close(subsampled, core.out(core.conv(x[:, None]).transpose(1, 2).flatten(2)), **CLOSE)
    hidden = encoder.encode(subsampled, torch.tensor([BLOCK + 9]))
    torch.testing.assert_close(hidden[0], slow_encode(encoder, subsampled[0]), **CLOSE)


@given(size=st.integers(1, 40), chunk=st.integers(-1, 50), left=st.integers(-1, 4))
def test_the_spans_have_each_query_once_with_the_keys_that_it_sees(size, chunk, left):
    times = torch.zeros(size, size, dtype=torch.long)
    for queries, keys in visible_spans(size, chunk, left):
        times[queries, keys] += 1
    assert torch.equal(times, slow_spans(size, chunk, left).long())


@settings(deadline=None, max_examples=30)
@given(options=OPTIONS, size=st.integers(1, 14), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_the_attention_core_shows_the_weights_that_multiply_v_and_changes_only_the_rounding(options, size, more, seed):
    encoder, calls = build(replace(TINY, **options), seed), []
    x, lengths = noise(2, size + more, TINY.subsampling_size, seed=seed), torch.tensor([size, size + more])
    cores = [layer.self_attn.core for layer in encoder.encoder["enc"][1].encoders]
    with torch.inference_mode():
        fused = encoder.encode(x, lengths)
        for core in cores:
            core.register_forward_pre_hook(lambda core, args: (*args, True))
            core.register_forward_hook(lambda core, args, result: calls.append((args, result)))
        eager = encoder.encode(x, lengths)
    torch.testing.assert_close(eager[0, :size], fused[0, :size], **CLOSE)
    torch.testing.assert_close(eager[1], fused[1], **CLOSE)
    assert len(calls) == len(cores)
    visible = slow_spans(size + more, encoder.config.chunk_size, encoder.config.left_chunks)
    for (q, k, v, bias, *_), (out, weights) in calls:
        assert weights.shape == (2, TINY.num_attention_heads, size + more, size + more)
        assert not weights[:, :, ~visible].any()
        assert not weights[0, :, :size, size:].any()  # padding
        assert torch.equal(weights @ v, out)
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias[:, :, None]
        want = scores.masked_fill(~visible, -math.inf).softmax(-1)
        torch.testing.assert_close(weights[0, :, :size], want[0, :, :size], **CLOSE)
        torch.testing.assert_close(weights[1], want[1], **CLOSE)


def test_the_attention_core_uses_the_v_that_a_hook_sees_and_gives_no_weights_unless_asked():
    attention = AudioAttention(TINY)
    attention.core.register_forward_pre_hook(lambda core, args: (*args[:2], torch.zeros_like(args[2]), *args[3:]))
    attention.core.register_forward_hook(lambda core, args, result: results.append(result))
    results, size = [], 7
    x, table, bias = noise(2, size, 24), sinusoids(size, 24), torch.zeros(2, 1, size)
    out = attention(x, table, bias, visible_spans(size, -1, -1))
    torch.testing.assert_close(out, attention.linear_out.bias.expand(2, size, 24))
    assert results[0][1] is None


def test_the_position_table_has_rows_for_an_hour_and_they_do_not_depend_on_its_length():
    table = sinusoids(90000, 24)
    assert table.shape == (90000, 24) and table.isfinite().all()
    torch.testing.assert_close(table.square().sum(1), torch.full((90000,), 12.0))
    assert torch.equal(table[:100], sinusoids(100, 24))


@torch.inference_mode()
def test_memory_does_not_grow_with_the_square_of_the_length(largest):
    encoder, frames = build(replace(TINY, num_hidden_layers=1)), 24000
    x = noise(1, frames, TINY.num_mel_bins)
    with largest:
        encoder(x, torch.tensor([frames]))
    assert largest.count < encoder_position_count(frames) ** 2


# ---- batches


@settings(deadline=None, max_examples=30)
@given(
    options=OPTIONS,
    lengths=st.lists(st.integers(7, 120), min_size=1, max_size=4),
    more=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_a_sound_in_a_batch_gives_the_same_rows_as_alone(options, lengths, more, seed):
    encoder = build(replace(TINY, **options), seed)
    fbank = noise(len(lengths), max(lengths) + more, TINY.num_mel_bins, seed=seed)  # the padding is noise too
    with torch.inference_mode():
        together = encoder(fbank, torch.tensor(lengths))
        for i, n in enumerate(lengths):
            alone = encoder(fbank[i : i + 1, :n], torch.tensor([n]))
            count = audio_token_count(n) + encoder.config.num_prompts
            assert together.lengths[i] == alone.lengths[0] == alone.embeds.shape[1] == count
            torch.testing.assert_close(together.embeds[i, :count], alone.embeds[0], **CLOSE)
            assert not together.embeds[i, count:].any()


@torch.inference_mode()
def test_arguments_and_weights_are_not_changed():
    encoder, fbank, lengths = build(TINY), noise(2, 50, TINY.num_mel_bins), torch.tensor([50, 20])
    hidden, positions = noise(2, 11, TINY.hidden_size), torch.tensor([11, 4])
    before = [x.clone() for x in (fbank, lengths, hidden, positions, *encoder.state_dict().values())]
    encoder(fbank, lengths)
    encoder.adapt(hidden, positions)
    after = [fbank, lengths, hidden, positions, *encoder.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


@torch.inference_mode()
def test_learned_prompts_come_before_the_rows_of_a_sound():
    encoder = build(TINY)
    embeds, lengths = encoder(noise(2, 50, TINY.num_mel_bins), torch.tensor([50, 20]))
    assert lengths.tolist() == [6 + 2, 2 + 2]
    assert torch.equal(embeds[:, :2], encoder.prompt_embeddings.weight.expand(2, 2, WIDTH))


@torch.inference_mode()
def test_a_chunk_does_not_depend_on_later_chunks():
    chunk = 4
    encoder = build(replace(TINY, chunk_size=chunk))
    x = noise(1, 20, TINY.subsampling_size)
    changed = x.clone()
    changed[:, 2 * chunk] += 1
    length = torch.tensor([20])
    difference = (encoder.encode(x, length) - encoder.encode(changed, length)).abs().amax((0, 2))
    assert difference[: 2 * chunk].max() == 0 and difference[2 * chunk :].min() > 1e-4


@torch.inference_mode()
def test_dynamic_chunks_change_nothing():  # quirk
    fbank, lengths = noise(1, 300, TINY.num_mel_bins), torch.tensor([300])
    for chunk in (-1, 3):
        want = build(replace(TINY, chunk_size=chunk))(fbank, lengths).embeds
        encoder = build(replace(TINY, chunk_size=chunk, dynamic_chunks=True))
        assert torch.equal(encoder(fbank, lengths).embeds, want) and torch.equal(encoder(fbank, lengths).embeds, want)


@torch.inference_mode()
def test_the_adapter_takes_later_positions_and_no_earlier_ones():  # quirk: padding on the right only
    encoder = build(TINY)
    x = noise(1, 11, TINY.hidden_size)
    changed = x.clone()
    changed[:, 7] += 1  # outputs 2 and 3 take the positions 4 to 7 and 6 to 9; padded on both sides, 3 and 4 would
    difference = (encoder.adapt(x, torch.tensor([11])) - encoder.adapt(changed, torch.tensor([11]))).abs().amax((0, 2))
    assert (difference > 1e-4).tolist() == [False, False, True, True, False, False]


# ---- dtypes, gradients, refusals


@pytest.mark.parametrize("dtype, near", [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
@torch.inference_mode()
def test_half_precision_is_near_float32(dtype, near):
    fbank, lengths = noise(2, 90, TINY.num_mel_bins), torch.tensor([90, 40])
    want = build(TINY)(fbank, lengths).embeds
    got = build(TINY).to(dtype)(fbank, lengths).embeds
    assert got.dtype == dtype and got.isfinite().all()
    torch.testing.assert_close(got.float(), want, atol=near, rtol=0)


def test_every_weight_gets_a_gradient():
    encoder = build(replace(TINY, concat_after=True))
    encoder(noise(2, 90, TINY.num_mel_bins), torch.tensor([90, 40])).embeds.square().sum().backward()
    for name, weight in encoder.named_parameters():
        if not name.endswith("linear_k.bias"):  # adds the same to all scores of a query, so softmax cancels it
            assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


@pytest.mark.parametrize(
    "shape, lengths, message",
    [
        ((2, 50, 31), [50, 6], r"needs 7 \(85 ms\) frames, got 6"),
        ((1, 0, 31), [0], "frames, got 0"),
        ((1, 50, 30), [50], r"\[sounds, frames, 31\], got \[1, 50, 30\]"),
        ((50, 31), [50], "sounds, frames, 31"),
        ((2, 50, 31), [50], r"lengths must be \[2\], one for each sound, got \[1\]"),
        ((1, 50, 31), [51], "51 frames, but fbank has 50"),
    ],
)
def test_shapes_that_do_not_match_and_sounds_that_are_too_short_are_refused(shape, lengths, message):
    with pytest.raises(ValueError, match=message):
        build(TINY)(torch.zeros(shape), torch.tensor(lengths))


@torch.inference_mode()
def test_the_shortest_sound_gives_one_row():
    embeds, lengths = build(replace(TINY, num_prompts=0))(noise(1, 7, TINY.num_mel_bins), torch.tensor([7]))
    assert embeds.shape == (1, 1, WIDTH) and lengths.tolist() == [1]
