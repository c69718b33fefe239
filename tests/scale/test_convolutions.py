"""Convolutions in bfloat16 on processors without units for it: nearer to the exact result than torch's, and nowhere else."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vita_ref.scale import convolutions, products, use_fast

CLASS = "vita_ref.scale.products.processor_class"


def pair(conv):
    """A module with the convolution, and one with its fast version (they share their weights)."""
    conv = conv.bfloat16().requires_grad_(False)
    fast = nn.Sequential(conv)
    use_fast(fast, always=True)
    return conv, fast[0]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    dims=st.sampled_from([1, 2]),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 7),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    biased=st.booleans(),
    block=st.integers(1, 60),
)
def test_the_result_is_the_exact_one_rounded_once(dims, channels, outputs, kernel, stride, padding, biased, block):
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
    plain, fast = pair(kind(channels, outputs, kernel, stride=stride, padding=padding, bias=biased))
    x = torch.randn(2, channels, *[6, 5][:dims]).bfloat16()
    exact = kind(channels, outputs, kernel, stride=stride, padding=padding, bias=biased).double().requires_grad_(False)
    exact.load_state_dict(plain.state_dict())
    want = exact(x.double())
    with patch(CLASS, lambda: "avx2"), patch("vita_ref.scale.convolutions.BLOCK", block), torch.inference_mode():
        got = fast(x)
    assert got.dtype == torch.bfloat16 and got.shape == want.shape
    assert ((got - want).abs() <= 2**-8 * want.abs() + 1e-4).all()


def used(fast, x, kind="avx2"):
    """Whether the convolution is computed in float32."""
    with patch(CLASS, lambda: kind), patch("vita_ref.scale.convolutions.widened", return_value=None) as widened:
        fast(x)
    return widened.called


def test_only_bfloat16_without_gradients_on_processors_without_units_is_computed_in_float32():
    _, fast = pair(nn.Conv2d(3, 4, 2))
    x = torch.randn(1, 3, 4, 4).bfloat16()
    assert used(fast, x) and used(fast, x, "avx512_vnni")
    assert not any(used(fast, x, kind) for kind in products.BFLOAT16_UNITS) and not used(fast, x, "other")
    assert not used(fast, x[0]) and not used(fast.float(), x.float())
    fast.bfloat16()
    assert not used(fast, x.requires_grad_())
    assert not used(pair(nn.Conv2d(4, 4, 2, groups=2))[1], torch.randn(1, 4, 4, 4).bfloat16())


def test_a_convolution_that_is_not_always_fast_is_so_in_fast_products_only():
    conv = nn.Sequential(nn.Conv1d(3, 4, 2).bfloat16().requires_grad_(False))
    weight = conv[0].weight
    use_fast(conv, always=False)
    x = torch.randn(1, 3, 4).bfloat16()
    assert conv[0].weight is weight and isinstance(conv[0], nn.Conv1d) and not used(conv[0], x)
    with products.fast_products():
        assert used(conv[0], x)


@pytest.mark.parametrize("conv", [nn.Conv1d(3, 4, 2, padding=1, padding_mode="reflect"), nn.Conv2d(3, 4, 2, dilation=2)])
def test_padding_modes_and_dilation_are_kept(conv):
    plain, fast = pair(conv)
    x = torch.randn(1, 3, *[7, 6][: len(conv.kernel_size)]).bfloat16()
    with patch(CLASS, lambda: "avx2"):
        torch.testing.assert_close(fast(x), plain(x), rtol=2e-2, atol=2e-2)


def test_no_copy_of_the_weight_beyond_a_block(largest):
    plain, fast = pair(nn.Conv2d(40, 50, 3))
    x = torch.randn(1, 40, 4, 4).bfloat16()
    with patch("vita_ref.scale.convolutions.BLOCK", 2_000), patch(CLASS, lambda: "avx2"), largest:
        fast(x)
    assert largest.count <= plain.weight.nbytes  # slices of the weight count as all of it
    assert convolutions.BLOCK * 4 < 10e6
