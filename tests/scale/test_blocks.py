"""Products by blocks of outputs: any block size gives the product, gradients pass, and no second copy is made."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_device import DEVICE, Elsewhere, move, pretend
from torch import nn

from vita_ref.scale import METHODS, blocks, int4, int8


def by_blocks(x, weight, **options):
    """The product with a weight that only has to be copied."""

    def convert(start, stop, block):
        return block.view(-1, weight.shape[1]).copy_(weight[start:stop])

    return blocks.product(x, len(weight), convert, torch.float32, **options)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    rows=st.integers(0, 5), inputs=st.integers(1, 9), outputs=st.integers(1, 23), block=st.integers(1, 99),
    multiple=st.integers(1, 4), scaled=st.booleans(),
)  # fmt: skip
def test_any_block_gives_the_product_and_starts_at_a_multiple(rows, inputs, outputs, block, multiple, scaled):
    g = torch.Generator().manual_seed(0)
    x, weight, scale = (torch.randn(s, generator=g) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    starts = []

    def convert(start, stop, buffer):
        starts.append(start)
        return buffer.view(-1, inputs).copy_(weight[start:stop])

    with patch.multiple("vita_ref.scale.blocks", BLOCK=block, OUTPUTS=1):
        got = blocks.product(x, outputs, convert, torch.float32, multiple, scale if scaled else None)
    want = x @ weight.T * (scale if scaled else 1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not any(start % multiple for start in starts)


def test_a_gradient_passes_through_several_blocks():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(11, 5)
    with patch.multiple("vita_ref.scale.blocks", BLOCK=10, OUTPUTS=1):
        got = torch.autograd.grad(by_blocks(x, weight).square().sum(), x)[0]
    want = torch.autograd.grad((x @ weight.T).square().sum(), x)[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_weights_are_expanded_by_blocks_only(largest, method, rows, dtype):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(320, 640), torch.randn(rows, 320).to(dtype)
    kind, assign = {"int8": (int8.Int8Linear, int8.assign), "int4": (int4.Int4Linear, int4.assign)}[method]
    module = kind(linear)
    for leaf in ("weight", "bias"):
        assign(module, leaf, getattr(linear, leaf).detach().to(dtype))
    with patch.multiple("vita_ref.scale.blocks", BLOCK=10_000, OUTPUTS=1), largest, torch.inference_mode():
        module(x)
    assert largest.count <= 320 * 640 * (1 if method == "int8" else 0.5) + 1  # bytes of the quantised weight itself


LAYOUTS = {
    "whole": lambda *shape: torch.randn(shape),
    "every second input": lambda *shape: torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2],
    "part of a row": lambda *shape: torch.randn(*shape[:-1], shape[-1] + 3)[..., 1:-2],
    "inputs first": lambda *shape: torch.randn(shape[-1], *shape[:-1]).movedim(0, -1),
    "one row repeated": lambda *shape: torch.randn(shape[-1]).expand(shape),
    "one number repeated": lambda *shape: torch.randn(1).expand(shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["int8", "int4"])
@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    lead=st.lists(st.integers(0, 3), max_size=3), inputs=st.sampled_from([16, 20, 64, 96]), outputs=st.sampled_from([3, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.bfloat16, torch.float16]), grad=st.booleans(),
)  # fmt: skip
def test_rows_of_any_layout_and_number_are_multiplied_by_quantised_weights(method, layout, lead, inputs, outputs, dtype, grad):
    module = METHODS[method][0](nn.Linear(inputs, outputs).to(dtype).requires_grad_(False))
    METHODS[method][1](module, "weight", torch.randn(outputs, inputs))
    x = LAYOUTS[layout](*lead, inputs).to(dtype, memory_format=torch.preserve_format).requires_grad_(grad)
    got, want = module(x), module(x.detach().clone(memory_format=torch.contiguous_format))
    assert got.dtype == dtype and got.shape == (*lead, outputs)
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2 * float(want.abs().max()) if want.numel() else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_int4_map_that_is_moved_to_another_device_multiplies_there(dtype):
    module = int4.Int4Linear(nn.Linear(64, 96).to(dtype).requires_grad_(False))
    int4.assign(module, "weight", torch.randn(96, 64))
    x = torch.randn(3, 64).to(dtype)
    want = module(x)
    with pretend(), patch.object(torch, "_weight_int4pack_mm_for_cpu", None, create=True):
        got = move(module)(Elsewhere(x))
    assert got.device == DEVICE
    torch.testing.assert_close(got.inner, want, rtol=2e-2, atol=2e-2 * float(want.abs().max()))
