"""Int8 weights: how far they may be off, and that everything around them stays."""

from unittest.mock import patch

import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vita_ref import Vita
from vita_ref.scale.int8 import Int8Linear, assign, int8_linear, quantize


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 9), columns=st.integers(1, 17), seed=st.integers(0, 999), power=st.integers(-12, 12) | st.integers(-125, -115))
def test_a_weight_is_off_by_at_most_half_a_step(rows, columns, seed, power):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    with patch("vita_ref.scale.int8.ROWS", 4):  # quantised in several blocks
        rounded, scale = quantize(weight)
    assert rounded.dtype == torch.int8 and int(rounded.abs().max()) <= 127
    bound = (weight.abs().amax(1, keepdim=True) / 254).clamp(min=torch.finfo(torch.float32).tiny / 2)
    assert ((rounded * scale[:, None] - weight).abs() <= bound * (1 + 1e-5)).all()


def test_a_row_of_zeros_stays_zero():
    rounded, scale = quantize(torch.zeros(3, 5))
    assert not rounded.any() and not (rounded * scale[:, None]).isnan().any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("width", [1, 24, 36, 64, 65])
def test_every_path_multiplies_by_the_rounded_weight(dtype, tolerance, rows, width):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in ((rows, width), (48, width), (48,)))
    rounded, scale = quantize(weight)
    want = F.linear(x.to(dtype).float(), rounded * scale[:, None], bias)
    got = int8_linear(x.to(dtype), rounded, scale, bias.to(dtype))
    assert got.dtype == dtype and (got.float() - want).abs().max() <= tolerance * want.abs().max()


def test_float16_does_not_overflow_if_the_result_is_finite():
    g = torch.Generator().manual_seed(0)
    x, weight = (100 * torch.randn(3, 512, generator=g)).half(), 0.02 * torch.randn(48, 512, generator=g)
    rounded, scale = quantize(weight)
    want = F.linear(x.float(), rounded * scale[:, None])
    assert (int8_linear(x, rounded, scale).float() - want).abs().max() <= 1e-3 * want.abs().max()


def test_the_bias_and_the_leading_dimensions_are_kept():
    linear = nn.Linear(6, 4)
    int8 = Int8Linear(linear)
    assign(int8, "weight", linear.weight.detach())
    x = torch.randn(2, 3, 6)
    bound = (x.abs().sum(-1, keepdim=True) * linear.weight.abs().amax(1) / 254) * 1.01 + 1e-6
    assert ((int8(x) - linear(x)).abs() <= bound).all()


def test_only_the_matrices_of_the_decoder_become_int8():
    plain, small = (Vita.from_pretrained(GOLDEN / "checkpoint", quantize=q) for q in (None, "int8"))
    rounded = {n for n, m in small.named_modules() if type(m) is Int8Linear}
    assert rounded == {n for n, m in plain.decoder.named_modules(prefix="decoder") if isinstance(m, nn.Linear)}
    assert small.decoder.embed_tokens.weight.equal(plain.decoder.embed_tokens.weight)
    assert small.decoder.layers[0].self_attn.q_proj.bias.equal(plain.decoder.layers[0].self_attn.q_proj.bias)
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        a, b = plain(ids).logits, small(ids).logits
    assert 0 < (a - b).abs().max() < 0.05 * a.abs().max()
