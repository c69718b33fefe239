"""A linear map that is as fast as memory for a few rows: the way it is computed is chosen by measuring, once.

A decoder writing one answer multiplies one row with every weight, and libraries made for large products are
slow at that: on some processors they reach a third of what memory gives. So there are several ways to the same
product, each of a few lines; the first products of each size try them in turn, and the quickest stays. For
many rows, small matrices, other devices and training it is `torch.nn.functional.linear`.

Who decodes several rows at a time may `pack` a model's weights: rearranged once, they need no choice.

Letters: R rows, I inputs, O outputs.

Test: ``pytest tests/test_linear.py``
"""

import threading
import time

import torch
from torch import nn
from torch.nn import functional as F

FEW, LARGE = 16, 100_000  # rows at most; numbers in a matrix at least
_TRIALS = 5  # of each way, on the products that are asked for; the first does not count
_GAIN = 0.9  # another way must take less than this share of the plain one's time
_FOLD = 4
_times = {}  # (rows, inputs, outputs, dtype, threads) -> way -> seconds of its trials
_chosen = {}  # the same -> way
_switch = threading.Lock()  # who holds it may switch oneDNN off, for all threads


def plain(rows, weight):
    """Shapes, of every way: rows [R, I], weight [O, I] contiguous -> [R, O] contiguous."""
    return F.linear(rows, weight)


def without_onednn(rows, weight):
    """torch's own kernels: for one row in bfloat16 twice as fast as oneDNN's on AMD's Zen 4."""
    if not _switch.acquire(blocking=False):  # another thread has switched it off and will switch it on
        return F.linear(rows, weight)
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        return F.linear(rows, weight)
    finally:
        torch.backends.mkldnn.enabled = before
        _switch.release()


def columns(rows, weight):
    """The weights on the left, where they are read row by row and never rearranged."""
    return torch.mm(weight, rows.T).T.contiguous()


def halves(rows, weight):
    """A batch of two products: in float32 it passes by MKL's slow product of matrix and vector."""
    outputs, inputs = weight.shape
    pair = torch.bmm(weight.view(2, outputs // 2, inputs), rows.T.expand(2, -1, -1))  # [2, O/2, R]
    return pair.flatten(0, 1).T.contiguous()


def folded(rows, weight):
    """Four rows of the weight as one long row: long rows are quicker, even with four times the multiplications."""
    outputs, inputs = weight.shape
    steps = torch.eye(_FOLD, dtype=rows.dtype)  # [4, 4]
    stairs = torch.kron(steps, rows)  # [4*R, 4*I]
    product = torch.mm(weight.view(outputs // _FOLD, _FOLD * inputs), stairs.T)  # [O/4, 4*R]
    return product.view(outputs, len(rows)).T.contiguous()


def ways(weight):
    """The ways that a matrix allows, the plain one first."""
    found = [plain, without_onednn, columns]
    found += [halves] if len(weight) % 2 == 0 else []
    return found + ([folded] if len(weight) % _FOLD == 0 else [])


def product(rows, weight):
    """The product by the quickest way for so many rows and such a matrix; until that is known, by each in turn.

    It is measured on the products of the model at work, whose weights come from memory: from the processor's
    cache all ways look alike. The plain way stays unless it is beaten clearly.
    """
    key = (*rows.shape, len(weight), weight.dtype, torch.get_num_threads())
    if key in _chosen:
        return _chosen[key](rows, weight)
    times = _times.setdefault(key, {way: [] for way in ways(weight)})
    way = min(times, key=lambda way: len(times[way]))
    start = time.perf_counter()
    out = way(rows, weight)  # [R, O]
    times[way].append(time.perf_counter() - start)
    if all(len(trials) >= _TRIALS for trials in times.values()):
        medians = {way: sorted(trials[1:])[len(trials[1:]) // 2] for way, trials in times.items()}
        best = min(medians, key=medians.get)
        _chosen[key] = best if medians[best] < _GAIN * medians[plain] else plain
    return out


def linear(x, weight, bias=None):
    """x @ weight.T + bias. Shapes: x [..., I], weight [O, I], bias [O] -> [..., O].

    The ways differ in rounding alone; ``torch.use_deterministic_algorithms(True)`` keeps to the plain one.
    """
    if weight.is_mkldnn:
        return packed(x, weight, bias)
    few = 0 < x.numel() <= FEW * x.shape[-1] and weight.numel() >= LARGE and weight.is_contiguous()
    if not few or x.device.type != "cpu" or x.requires_grad or weight.requires_grad and torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    if torch.are_deterministic_algorithms_enabled():
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])  # [R, I]
    out = product(rows, weight)  # [R, O]
    if bias is not None:
        out = out + bias  # [R, O]
    return out.view(*x.shape[:-1], -1)


def packed(x, weight, bias=None):
    """The same with a weight that `pack` has rearranged. Fewer than four rows are padded to N = 4, which oneDNN is quicker at."""
    if x.requires_grad:  # oneDNN's operator gives no gradient
        return F.linear(x, weight.to_dense(), bias)
    rows = x.reshape(-1, x.shape[-1])  # [R, I]
    full = F.pad(rows, (0, 0, 0, max(0, 4 - len(rows))))  # [N, I]
    out = torch.ops.mkldnn._linear_pointwise(full, weight, bias, "none", [], "")  # [N, O]
    return out[: len(rows)].view(*x.shape[:-1], len(weight))


def pack(module):
    """Rearranges the weights of every `Linear` in a module, one by one, in the order in which oneDNN reads them.

    For those who decode several rows at a time. A weight keeps its name, shape and size; ``to_dense()`` gives
    its numbers back.
    Raises: ValueError where this processor or the dtype has no such order.
    """
    for each in [m for m in module.modules() if isinstance(m, Linear)]:
        weight = each.weight
        if not packable(weight.dtype) or weight.device.type != "cpu":
            raise ValueError(f"weights in {str(weight.dtype)[6:]} on {weight.device.type} cannot be packed here")
        each.weight = nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight, None), requires_grad=False)


def packable(dtype):
    """Whether torch has oneDNN, and oneDNN has kernels for the dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)
