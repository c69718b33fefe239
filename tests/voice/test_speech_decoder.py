"""The speech decoder: golden values, the cached steps against attention written out, its quirks."""

import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.config import DecoderConfig, SpeechConfig
from vita_ref.decoder import RMSNorm
from vita_ref.speech import Speech
from vita_ref.voice.decoder import SpeechDecoder, apply_penalty

WIDTH, HEADS, HEAD_DIM, CODES = 24, 2, 12, 23
CONFIG = SpeechConfig(
    num_codes=CODES,
    num_pre_layers=4,
    decoder=DecoderConfig(
        vocab_size=CODES + 4,
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        rope_theta=1e4,
        attention_bias=False,
    ),
)
BOS = CODES


def build(seed=0):
    """A small decoder with random weights."""
    torch.manual_seed(seed)
    decoder = SpeechDecoder(CONFIG).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return decoder


def text_rows(n, seed=0):
    return torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_golden_pre_network_prefill_and_logits():
    decoder, t = Speech.from_pretrained(GOLDEN / "tts").decoder, case("ar_eos")
    cache = decoder.new_cache()
    encoded = decoder.encode_text(t["hidden"])
    torch.testing.assert_close(encoded, t["pre_nn"], atol=5e-5, rtol=0)
    torch.testing.assert_close(decoder.prefill(encoded, cache), t["prefill_hidden"], atol=5e-5, rtol=0)
    _, sos, eos, _ = decoder.config.specials
    logits = torch.cat([decoder.step(token, cache) for token in [sos, *t["tokens"][0].tolist()]])
    # The logits reach 68. Compared with the same sums in float64, the golden ones are off by 5.6e-5 and ours by 4.9e-5.
    torch.testing.assert_close(logits, t["step_logits"], atol=1e-4, rtol=0)
    assert int(logits[-1].argmax()) == eos


def rotate(x):
    """Rotary positions by complex numbers: elements i and i + K/2 of a head are one of them. Shapes: [H, n, K]."""
    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turned = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def slow_layers(layers, x, text_length):
    """Layers over all positions [n, D] at once. Text sees all text; the tokens behind it see what is before them."""
    n = len(x)
    position = torch.arange(n)
    visible = position[None, :] <= position[:, None].clamp(min=text_length - 1)  # [query, key]
    for layer in layers:
        attention, h = layer.self_attn, layer.input_layernorm(x)
        q = rotate(attention.q_proj(h).view(n, HEADS, HEAD_DIM).transpose(0, 1))
        k = rotate(attention.k_proj(h).view(n, HEADS, HEAD_DIM).transpose(0, 1))
        v = attention.v_proj(h).view(n, HEADS, HEAD_DIM).transpose(0, 1)
        weights = (q @ k.mT / HEAD_DIM**0.5).masked_fill(~visible, -torch.inf).softmax(-1)
        x = x + attention.o_proj((weights @ v).transpose(0, 1).flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return x


def slow_logits(decoder, rows, tokens):
    """The logits behind each token, in one pass over all positions and without a cache."""
    encoded = slow_layers(decoder.layers_pre_nn, rows, len(rows))
    prompt = torch.cat([decoder.embedding.weight[[BOS]], encoded])
    x = torch.cat([prompt, decoder.embedding.weight[tokens]])
    hidden = slow_layers(decoder.layers, x, len(prompt))[len(prompt) :]
    return decoder.out_fnn(decoder.norm(hidden))


@settings(deadline=None, max_examples=10)
@given(
    n=st.integers(1, 9), tokens=st.lists(st.integers(0, CODES + 3), min_size=1, max_size=12), seed=st.integers(0, 1000)
)
def test_cached_steps_equal_one_pass_with_the_mask_written_out(n, tokens, seed):
    decoder, rows = build(seed), text_rows(n, seed)
    cache = decoder.new_cache()
    decoder.prefill(decoder.encode_text(rows), cache)
    logits = torch.cat([decoder.step(token, cache) for token in tokens])
    torch.testing.assert_close(logits, slow_logits(decoder, rows[0], tokens), atol=1e-4, rtol=0)


def test_the_prefill_is_bidirectional():
    decoder, rows = build(), text_rows(5)
    changed = rows.clone()
    changed[:, -1] += 1
    before, after = (decoder.prefill(x, decoder.new_cache()) for x in (rows, changed))
    assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-3)  # quirk: bos, the first position, sees the last row


def test_the_prefill_does_not_apply_the_final_norm():
    decoder, rows = build(), text_rows(5)
    before = decoder.prefill(rows, decoder.new_cache())
    decoder.norm = RMSNorm(WIDTH, 1e-6).requires_grad_(False)
    decoder.norm.weight.fill_(7.0)
    assert torch.equal(before, decoder.prefill(rows, decoder.new_cache()))  # quirk


def test_the_penalty_divides_once_per_occurrence_and_raises_negative_logits():
    logits = torch.tensor([[2.0, -3.0, 1.0, 5.0]])
    # quirk: token 0 occurs three times and is divided by 8; token 1 rises from -3 to -1.5
    assert apply_penalty(logits, [0, 1, 0, 0], 2.0).tolist() == [[0.25, -1.5, 1.0, 5.0]]


def test_the_penalty_changes_nothing_without_recent_tokens():
    logits = torch.tensor([[2.0, -3.0]])
    assert apply_penalty(logits, [], 2.0).tolist() == logits.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_are_float32_and_close_to_golden(dtype):
    speech, t = Speech.from_pretrained(GOLDEN / "tts", dtype=dtype), case("ar_eos")
    decoder = speech.decoder
    cache = decoder.new_cache()
    decoder.prefill(decoder.encode_text(t["hidden"].to(dtype)), cache)
    logits = decoder.step(decoder.config.specials[1], cache)
    assert decoder.norm.weight.dtype == dtype and logits.dtype == torch.float32
    torch.testing.assert_close(logits[0], t["step_logits"][0], atol=0.5, rtol=0)
