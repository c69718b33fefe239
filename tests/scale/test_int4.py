"""Int4 weights: how far they may be off, that both orders hold the same numbers, and that everything around them stays."""

from unittest.mock import patch

import pytest
import torch
from conftest import GOLDEN
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from vita_ref import Vita
from vita_ref.scale import int4
from vita_ref.scale.int4 import (
    Int4Linear,
    assign,
    dequantize,
    int4_linear,
    pack,
    quantize,
    unpack,
)

KERNEL = pytest.mark.skipif(int4.kernel_half() is None, reason="this torch or processor has no int4 kernel")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearest(group, step, middle):
    """The slow oracle: the nearest of the sixteen numbers that a step and a middle stand for."""
    levels = torch.tensor([(n - 8) * float(step) + float(middle) for n in range(16)])
    return levels[(group[:, None] - levels).abs().argmin(1)]


@settings(deadline=None, max_examples=25, derandomize=True)
@given(rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 99), power=st.integers(-20, 20))
def test_every_weight_becomes_the_nearest_of_sixteen_numbers_of_its_group(rows, columns, seed, power):
    weight = noise(rows, columns, seed=seed) * 2.0**power
    with patch("vita_ref.scale.int4.ROWS", 2):  # quantised in several blocks
        nibbles, scale = quantize(weight)
    got = dequantize(nibbles, scale, columns)
    assert nibbles.dtype == torch.uint8 and nibbles.shape == (rows, -(-columns // 32) * 16)
    for row in range(rows):
        for group, pair in enumerate(scale[:, row]):
            part = slice(32 * group, min(32 * group + 32, columns))
            want = nearest(weight[row, part], *pair)
            torch.testing.assert_close(got[row, part], want, rtol=1e-5, atol=1e-6 * 2.0**power)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(seed=st.integers(0, 99), spread=st.sampled_from([1, 3]))
def test_the_search_of_the_range_never_makes_the_error_of_a_group_larger(seed, spread):
    weight = noise(6, 96, seed=seed) ** spread
    plain, searched = (dequantize(*quantize(weight, ranges=r), 96) for r in ((1.0,), int4.RANGES))
    errors = [(found - weight).square().unflatten(1, (3, 32)).sum(2) for found in (plain, searched)]
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all() and errors[1].sum() < errors[0].sum()


def test_without_a_search_a_weight_is_off_by_half_a_step_and_the_rounding_of_step_and_middle():
    weight = noise(40, 64)
    step = (weight.unflatten(1, (2, 32)).amax(2) - weight.unflatten(1, (2, 32)).amin(2)) / 15
    error = (dequantize(*quantize(weight, ranges=(1.0,)), 64) - weight).abs().unflatten(1, (2, 32)).amax(2)
    assert (error <= step * (0.5 + 16 * 2**-8)).all()


def test_equal_weights_zeros_and_sixteen_even_levels_are_exact():
    for row in (torch.zeros(32), torch.full((32,), 0.75), torch.arange(32) % 16 * 0.5 - 2):
        assert dequantize(*quantize(row[None]), 32)[0].equal(row)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(outputs=st.integers(1, 70), pairs=st.integers(1, 9), half=st.sampled_from([1, 16, 32]))
def test_the_kernels_order_is_reversed_exactly(outputs, pairs, half):
    nibbles = torch.randint(256, (outputs, pairs), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with patch("vita_ref.scale.int4.ROWS", 2 * half):
        packed = pack(nibbles, half)
        assert packed.shape == (-(-outputs // (2 * half)), 2 * pairs, half)
        assert unpack(packed, outputs).equal(nibbles)


@KERNEL
@pytest.mark.parametrize("outputs, inputs", [(64, 32), (256, 70)])
def test_packed_nibbles_are_what_torch_packs(outputs, inputs):
    values = torch.randint(16, (outputs, 2 * inputs), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    nibbles = values[:, 0::2] | (values[:, 1::2] << 4)
    want = torch._convert_weight_to_int4pack_for_cpu(values, 1)
    assert pack(nibbles.to(torch.uint8), int4.kernel_half()).flatten().equal(want.flatten())


@pytest.mark.parametrize("half", [None, 16, 32])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 3e-3)])
@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 3, 33]),
    width=st.sampled_from([1, 24, 32, 65]),
    outputs=st.sampled_from([5, 64, 90]),
    block=st.sampled_from([1, 4000]),
)
@example(rows=1, width=65, outputs=90, block=1)
def test_every_path_multiplies_by_the_rounded_weight(half, dtype, tolerance, rows, width, outputs, block):
    linear = nn.Linear(width, outputs).requires_grad_(False)
    x, weight, bias = noise(2, rows, width), noise(outputs, width, seed=1), noise(outputs, seed=2)
    layers = int4.kernel_half()
    with patch("vita_ref.scale.int4.kernel_half", lambda: half), patch.multiple("vita_ref.scale.blocks", BLOCK=block, OUTPUTS=1):
        module = Int4Linear(linear)
        assign(module, "weight", weight.to(dtype))
        assign(module, "bias", bias.to(dtype))
        if half != layers:  # another processor's order: only the plain path can read it
            with patch("vita_ref.scale.int4.MOST_ROWS", 0):
                got = module(x.to(dtype))
        else:
            got = module(x.to(dtype))
    exact = dequantize(*quantize(weight.to(dtype)), width).double()
    want = x.to(dtype).double() @ exact.T + bias.to(dtype).double()
    assert got.dtype == dtype and got.shape == want.shape
    assert not rows or (got - want).abs().max() <= tolerance * want.abs().max()


def test_what_is_stored_is_in_row_order_on_every_processor():
    weight, stored = noise(50, 40), []
    for half in (None, 16, 32):
        with patch("vita_ref.scale.int4.kernel_half", lambda half=half: half):
            module = Int4Linear(nn.Linear(40, 50))
            assign(module, "weight", weight)
            stored.append(module.stored_tensors())
    want = dict(zip(("weight", "weight_scale"), quantize(weight)))
    assert all(s[name].equal(want[name]) for s in stored for name in want)


def test_a_processor_without_the_kernel_and_a_torch_without_it_have_no_kernel_order():
    for error in (AttributeError, RuntimeError("expect N to be dividable by 16")):
        with patch("torch._convert_weight_to_int4pack_for_cpu", side_effect=error, create=True):
            assert int4.kernel_half.__wrapped__() is None
    with patch("torch._convert_weight_to_int4pack_for_cpu", lambda w, tiles: torch.zeros(128, 2, dtype=torch.uint8)):
        assert int4.kernel_half.__wrapped__() is None  # an order that is not known here


def test_other_devices_keep_the_order_of_rows():
    module = Int4Linear(nn.Linear(40, 50))
    assign(module, "weight", torch.empty(50, 40, device="meta"))
    assert module.weight.shape == (50, 32) and module.weight.device.type == "meta"
    assign(module, "bias", torch.empty(50, device="meta"))
    for dtype in (torch.float32, torch.bfloat16):
        out = module(torch.empty(2, 3, 40, device="meta", dtype=dtype))
        assert out.shape == (2, 3, 50) and out.dtype == torch.promote_types(dtype, module.bias.dtype)


def test_gradients_pass_to_the_input():
    module, x = Int4Linear(nn.Linear(40, 50, bias=False)), noise(3, 40).bfloat16().requires_grad_()
    assign(module, "weight", weight := noise(50, 40))
    got = torch.autograd.grad(module(x).float().sum(), x)[0]
    want = dequantize(*quantize(weight), 40).sum(0)
    torch.testing.assert_close(got.float(), want.expand(3, -1), rtol=1e-2, atol=1e-2)


def test_only_the_matrices_of_the_decoder_become_int4():
    plain, small = (Vita.from_pretrained(GOLDEN / "checkpoint", quantize=q) for q in (None, "int4"))
    rounded = {n for n, m in small.named_modules() if type(m) is Int4Linear}
    assert rounded == {n for n, m in plain.decoder.named_modules(prefix="decoder") if isinstance(m, nn.Linear)}
    assert small.decoder.embed_tokens.weight.equal(plain.decoder.embed_tokens.weight)
    assert small.decoder.layers[0].self_attn.q_proj.bias.equal(plain.decoder.layers[0].self_attn.q_proj.bias)
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        a, b = plain(ids).logits, small(ids).logits
        for module in small.modules():  # the same model with the rounded weights in plain matrices
            if type(module) is Int4Linear:
                stored = module.stored_tensors()
                exact = dequantize(stored["weight"], stored["weight_scale"], module.inputs)
                module.forward = lambda x, w=exact, m=module: nn.functional.linear(x, w, m.bias)
        c = small(ids).logits
    assert (a - b).abs().max() > 1e-3 * a.abs().max()
    assert (b - c).abs().max() < 1e-5 * a.abs().max()


def test_the_product_takes_a_row_without_a_batch():
    nibbles, scale = quantize(weight := noise(5, 32))
    x = noise(32)
    torch.testing.assert_close(int4_linear(x, nibbles, scale, 5), x @ dequantize(nibbles, scale, 32).T)
    assert weight.shape == (5, 32)
