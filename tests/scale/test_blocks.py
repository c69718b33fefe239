"""Products by blocks of outputs: any block size gives the product, gradients pass, and no second copy is made."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.scale import blocks, int4, int8


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
