"""Products of few rows: every way gives what the plain one gives, and the quickest is kept."""

import threading
import time
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vita_ref import Vita
from vita_ref.scale.products import (
    LARGE,
    Linear,
    columns,
    linear,
    pack,
    packable,
    plain,
    product,
    ways,
    without_onednn,
)

LOOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 16),
    inputs=st.integers(1, 33),
    outputs=st.integers(1, 29),
    dtype=st.sampled_from(list(LOOSE)),
    seed=st.integers(0, 99),
)
def test_every_way_gives_the_same_product(rows, inputs, outputs, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=g).to(dtype), torch.randn(outputs, inputs, generator=g).to(dtype)
    want = x.double() @ weight.double().T
    for way in ways(weight):
        out = way(x, weight)
        assert out.shape == (rows, outputs) and out.dtype == dtype and out.is_contiguous(), way
        assert (out - want).abs().max() <= LOOSE[dtype] * (1 + want.abs().max()), way


def large(rows=2, inputs=500, outputs=None):
    outputs = outputs or LARGE // inputs + 3
    return torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)


def test_all_ways_are_tried_and_the_quickest_is_kept():
    x, weight, _ = large()
    want, used = x @ weight.T, []

    def slow(rows, weight):
        used.append("slow")
        time.sleep(0.01)
        return plain(rows, weight)

    def quick(rows, weight):
        used.append("quick")
        return columns(rows, weight)

    with patch.multiple("vita_ref.scale.products", _times={}, _chosen={}, plain=slow, ways=lambda weight: [slow, quick]):
        for _ in range(20):
            assert (product(x, weight) - want).abs().max() < 1e-3
    assert used[10:] == ["quick"] * 10 and sorted(used[:10]) == ["quick"] * 5 + ["slow"] * 5


def test_the_plain_way_stays_unless_it_is_beaten_clearly():
    x, weight, _ = large()
    clock = iter(range(10_000))  # every product takes one tick
    chosen = {}
    with (
        patch.multiple("vita_ref.scale.products", _times={}, _chosen=chosen),
        patch("vita_ref.scale.products.time.perf_counter", lambda: next(clock)),
    ):
        for _ in range(40):
            product(x, weight)
    assert list(chosen.values()) == [plain]


def test_many_rows_small_matrices_and_training_take_the_plain_way():
    x, weight, bias = large()
    many, small, learning = large(rows=17), (x, weight[:5], bias[:5]), (x, weight.clone().requires_grad_(), bias)
    with patch("vita_ref.scale.products.product", side_effect=AssertionError):
        for given_x, given_weight, given_bias in (many, small, learning):
            assert linear(given_x, given_weight, given_bias).equal(F.linear(given_x, given_weight, given_bias))
        torch.use_deterministic_algorithms(True)
        try:
            assert linear(x, weight, bias).equal(F.linear(x, weight, bias))
        finally:
            torch.use_deterministic_algorithms(False)


def test_the_module_keeps_leading_dimensions_and_the_bias():
    x, weight, bias = large(rows=6)
    module = Linear(weight.shape[1], len(weight)).requires_grad_(False)
    module.weight.copy_(weight)
    module.bias.copy_(bias)
    want = F.linear(x, weight, bias).view(2, 3, -1)
    for _ in range(30):  # through every way
        assert (module(x.view(2, 3, -1)) - want).abs().max() < 1e-3


def test_threads_that_switch_onednn_off_at_once_leave_it_on():
    x, weight, _ = large(1)
    before, entered, joined = torch.backends.mkldnn.enabled, threading.Event(), threading.Event()
    first = threading.Thread(target=without_onednn, args=(x, weight))

    def multiply(rows, matrix):  # the second goes in while the first is in there, and comes out after it
        if threading.current_thread() is first:
            entered.set()
            assert joined.wait(60)
        else:
            joined.set()
            first.join()

    with patch("torch.nn.functional.linear", multiply):
        first.start()
        assert entered.wait(60)
        without_onednn(x, weight)
    assert torch.backends.mkldnn.enabled == before


def test_one_row_without_a_batch_and_a_weight_that_is_a_view_are_taken_too():
    x, weight, bias = large(1)
    wide = torch.randn(weight.shape[1], len(weight)).T
    for _ in range(30):
        assert linear(x[0], weight, bias).shape == bias.shape
        assert (linear(x, wide) - F.linear(x, wide)).abs().max() < 1e-3


def test_onednn_is_as_it_was_afterwards():
    x, weight, _ = large(rows=1)
    before = torch.backends.mkldnn.enabled
    for way in ways(weight):
        way(x, weight)
    assert torch.backends.mkldnn.enabled == before


ONEDNN = pytest.mark.skipif(not packable(torch.float32), reason="torch was built without oneDNN")


@ONEDNN
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 33),
    outputs=st.integers(1, 29),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]).filter(packable),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_weights_give_the_same_product(rows, inputs, outputs, dtype, biased, seed):
    torch.manual_seed(seed)
    module, x = Linear(inputs, outputs, bias=biased).to(dtype), torch.randn(1, rows, inputs).to(dtype)
    names, weight = list(module.state_dict()), module.weight.detach().clone()
    want = F.linear(x.double(), weight.double(), module.bias.double() if biased else None)
    pack(module)
    assert list(module.state_dict()) == names and module.weight.shape == weight.shape
    assert module.weight.nbytes == weight.nbytes and module.weight.to_dense().equal(weight)
    with torch.inference_mode():
        for given_x, wanted in ((x, want), (x[0, 0], want[0, 0])):
            out = module(given_x)
            assert out.shape == wanted.shape and out.dtype == dtype
            assert (out - wanted).abs().max() <= LOOSE[dtype] * (1 + want.abs().max())


@ONEDNN
def test_packed_weights_take_no_rows_and_pass_gradients_on():
    module, x = Linear(5, 4), torch.randn(2, 3, 5, requires_grad=True)
    want = torch.autograd.grad(module(x).square().sum(), x)[0]
    pack(module)
    assert module(torch.zeros(2, 0, 5)).shape == (2, 0, 4)
    torch.testing.assert_close(torch.autograd.grad(module(x).square().sum(), x)[0], want)


def test_what_cannot_be_packed_says_so():
    with pytest.raises(ValueError, match="weights in float16 on cpu cannot be packed here"):
        pack(nn.Sequential(Linear(3, 4).half()))
    with torch.device("meta"), pytest.raises(ValueError, match="on meta cannot be packed"):
        pack(Linear(3, 4))
    other = nn.Linear(3, 4)
    pack(other)  # not one of ours: it stays
    assert not other.weight.is_mkldnn


@ONEDNN
def test_a_model_with_packed_weights_answers_as_without():
    plain, packed = (Vita.from_pretrained("tests/golden/checkpoint", pack=p) for p in (False, True))
    assert packed.state_dict().keys() == plain.state_dict().keys()
    assert {m.weight.is_mkldnn for m in packed.decoder.modules() if isinstance(m, Linear)} == {True}
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        a, b = plain(ids).logits, packed(ids).logits
    assert (a - b).abs().max() < 1e-4 * a.abs().max()
    assert plain.generate(ids, max_new_tokens=8).equal(packed.generate(ids, max_new_tokens=8))
    with pytest.raises(ValueError, match="int8 weights cannot be packed"):
        Vita.from_pretrained("tests/golden/checkpoint", quantize="int8", pack=True)
