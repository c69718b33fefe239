"""Linear maps with the product that is fastest on this class of processor, according to a table in this file.

A decoder that generates one answer multiplies one row by every weight, so its speed is limited by the memory from which
weights are read. With few rows, torch's own product reads them at a quarter to a half of the memory's speed on some
processors, and its bfloat16 product is slow on processors without bfloat16 units. The alternatives are short functions:

    class of processor, dtype, number of rows -> TABLE -> name of a function
    function: [rows, inputs], weight [outputs, inputs] -> [rows, outputs]

`python -m tools.bench --products` measures them and prints the row of the table for the machine that it runs on.
Nothing is measured while a model is used and no setting of torch is changed, so the same call gives the same bits. They
differ from torch's product by rounding only. Small matrices, other devices, unknown processors and products that need
gradients use torch's product.

Known loss: with avx512_bf16, torch sends one row in bfloat16 to oneDNN, which reads 15 GB/s of weights on two cores of
an EPYC Zen 4. torch's own kernel reads 34 GB/s but is reached only with oneDNN switched off for all threads, which is
not thread-safe: mm, mv, dot and bmm all prefer oneDNN there, and a product with a float32 result does not exist for the
CPU (torch 2.13). `pack` reads 25 to 31 GB/s.

Test: ``pytest tests/scale/test_products.py``
"""

import contextlib
import contextvars
import functools

import torch
from torch import nn
from torch.nn import functional as F

from ..decoder import TiedHead
from ..files.checkpoint import set_param
from . import blocks

LARGE = 100_000  # matrices with fewer elements always use torch's product
FOLD = 4
ROW_CLASSES = {"1": 1, "2-3": 3, "4": 4, "5-16": 16}  # name -> the largest number of rows; above: "many"


# ---- the functions that compute a product


def plain(rows, weight):
    """torch's product. Shapes, here and below: [rows, inputs], weight [outputs, inputs] -> [rows, outputs]."""
    return F.linear(rows, weight)


def halves(rows, weight):
    """A batch of two products with the weight on the left, whose rows are then read in order."""
    outputs, inputs = weight.shape
    if outputs % 2:
        return plain(rows, weight)
    pair = torch.bmm(weight.view(2, outputs // 2, inputs), rows.T.expand(2, -1, -1))  # [2, outputs/2, rows]
    return pair.flatten(0, 1).T.contiguous()


def folded(rows, weight):
    """Four rows of the weight as one long row: faster to read, even with four times the multiplications."""
    outputs, inputs = weight.shape
    if outputs % FOLD:
        return plain(rows, weight)
    diagonal = torch.kron(torch.eye(FOLD, dtype=rows.dtype), rows)  # [4*rows, 4*inputs]
    product = torch.mm(weight.view(outputs // FOLD, FOLD * inputs), diagonal.T)  # [outputs/4, 4*rows]
    return product.view(outputs, len(rows)).T.contiguous()


def widened(rows, weight):
    """The product in float32: the weight is converted a block of outputs at a time, and the result is rounded once."""
    outputs, inputs = weight.shape

    def convert(start, stop, block):
        return block.view(-1, inputs).copy_(weight[start:stop])  # [block, inputs]

    return blocks.product(rows, outputs, convert, torch.float32)


WAYS = {"plain": plain, "halves": halves, "folded": folded, "widened": widened}


# ---- the table

TABLE = {  # class of processor -> (dtype, class of rows) -> name; what is not listed is plain
    "amx": {},
    "avx512_bf16": {
        (torch.float32, "1"): "halves",  # 54 GB/s of weights, plain 14 (EPYC Zen 4, two threads)
        (torch.bfloat16, "4"): "folded",  # 19 GB/s of weights, plain 13 (EPYC Zen 4, two threads)
    },
    "avx512_vnni": {  # not measured with tools.bench
        (torch.bfloat16, "many"): "widened",  # 256 rows 93 to 130 GFLOP/s, plain 46 (two cores, torch 2.13)
    },
    "avx2": {  # speed against plain: median [least..largest] over sizes of matrices (EPYC Zen 3, one thread)
        (torch.float32, "4"): "halves",  # 1.94 [1.34..2.66]
        (torch.float32, "5-16"): "halves",  # 1.33 [0.91..1.80]
        (torch.bfloat16, "5-16"): "widened",  # 1.49 [1.07..2.56]
        (torch.bfloat16, "many"): "widened",  # 3.71 [2.85..4.54]
    },
    "other": {},
}


BFLOAT16_UNITS = ("amx", "avx512_bf16")  # classes of processors that have them


@functools.cache
def processor_class():
    """The row of the table for this processor: the first of its features in the order amx, avx512_bf16, and so on."""

    def has(feature):
        return getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)()

    if has("amx_tile"):
        return "amx"
    if has("avx512_bf16"):
        return "avx512_bf16"
    if has("avx512") and has("vnni"):
        return "avx512_vnni"
    return "avx2" if has("avx2") and not has("avx512") else "other"


def block_dtype(x):
    """The dtype in which rows x are multiplied by a weight that has to be converted anyway (int8, int4).

    It is that of x, but float32 for float16, whose range is too small for sums of integers, and for bfloat16 on
    processors without bfloat16 units.
    """
    if x.dtype == torch.float16:
        return torch.float32
    slow = x.dtype == torch.bfloat16 and x.device.type == "cpu" and processor_class() not in BFLOAT16_UNITS
    return torch.float32 if slow else x.dtype


def row_class(rows):
    """The name of a number of rows in the table. Example: 1 -> "1", 3 -> "2-3", 17 -> "many"."""
    return next((name for name, most in ROW_CLASSES.items() if rows <= most), "many")


def choose(x, weight):
    """The function for a product. It depends only on the processor, dtypes, shapes, devices and gradients."""
    if weight.numel() < LARGE or not has_choice(x, weight):
        return plain
    rows = x.numel() // x.shape[-1]
    return WAYS[TABLE[processor_class()].get((weight.dtype, row_class(rows)), "plain")]


def has_choice(x, weight):
    """Whether another way than torch's may multiply x and a weight, by their devices, dtypes, layout and gradients."""
    if not weight.is_contiguous() or x.numel() == 0:
        return False
    if x.device.type != "cpu" or weight.device.type != "cpu" or x.dtype != weight.dtype:
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


def linear(x, weight, bias=None):
    """x @ weight.T + bias, with the product that `choose` gives.

    Shapes: x [..., inputs], weight [outputs, inputs], bias [outputs] -> [..., outputs].
    """
    way = choose(x, weight)
    if way is plain:
        return F.linear(x, weight, bias)
    out = way(x.reshape(-1, x.shape[-1]), weight)  # [rows, outputs]
    if bias is not None:
        out = out + bias  # [rows, outputs]
    return out.view(*x.shape[:-1], -1)


# ---- modules

_inside = contextvars.ContextVar("fast products", default=False)  # of this thread or task


@contextlib.contextmanager
def fast_products():
    """In this context, modules that `use_fast_products` made with ``always=False`` use the products of the table.

    It applies to the thread that enters it. Do not ``yield`` from a generator in it: the caller would be in it too.
    """
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def in_fast_products():
    """Whether this thread is in `fast_products`."""
    return _inside.get()


class FastLinear(nn.Linear):
    """`nn.Linear` with the products of the table: always, or only in `fast_products`. It keeps the weights."""

    def __init__(self, linear, always=True):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.always = linear.in_features, linear.out_features, always
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def forward(self, x):
        product = linear if self.always or _inside.get() else F.linear
        return product(x, self.weight, self.bias)


class FastTiedHead(TiedHead):
    """`TiedHead` with the products of the table: always, or only in `fast_products`."""

    def __init__(self, embed_tokens, always=True):
        super().__init__(embed_tokens)
        self.always = always

    def forward(self, hidden):
        product = linear if self.always or _inside.get() else F.linear
        return product(hidden, self.shared[0].weight)


def use_fast_products(module, always=True):
    """Replaces the plain linear maps and tied heads inside a module, loaded or not, by those of the table."""
    for owner in [*module.modules()]:
        for name, child in [*owner.named_children()]:
            if type(child) is nn.Linear:
                setattr(owner, name, FastLinear(child, always))
            elif type(child) is TiedHead:
                setattr(owner, name, FastTiedHead(child.shared[0], always))


# ---- packed weights


class PackedLinear(nn.Linear):
    """`nn.Linear` whose weight is stored in the order in which oneDNN's kernels read it. `pack_weight` fills it."""

    def __init__(self, linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def forward(self, x):
        return packed_linear(x, self.weight, self.bias)


def packed_linears(module):
    """Replaces the plain linear maps inside a module by `PackedLinear`, whose weights `pack_weight` has to set.

    This helps if several rows are decoded at a time: four rows in bfloat16 are 1.4 times as fast, one row is slower.
    """
    for owner in [*module.modules()]:
        for name, child in [*owner.named_children()]:
            if type(child) is nn.Linear:
                setattr(owner, name, PackedLinear(child))


def pack_weight(owner, leaf, tensor):
    """Sets one tensor of a checkpoint, as `set_param` does; the weight of a `PackedLinear` is packed first.

    A packed weight keeps its shape and its size in bytes; ``to_dense()`` gives the plain one back.
    Raises: ValueError if this processor, or the dtype, has no packed order.
    """
    if type(owner) is PackedLinear and leaf == "weight":
        if tensor.device.type != "cpu" or not can_pack(tensor.dtype):
            place = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}"
            raise ValueError(f"weights in {place} cannot be packed on this machine: leave pack out")
        tensor = torch.ops.mkldnn._reorder_linear_weight(tensor, None)
    set_param(owner, leaf, tensor)


def can_pack(dtype):
    """Whether this torch has oneDNN, and oneDNN has kernels for the dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed_linear(x, weight, bias=None):
    """x @ weight.T + bias with a packed weight. Fewer than four rows are padded to 4, for which oneDNN is faster."""
    if not weight.is_mkldnn or torch.is_grad_enabled() and x.requires_grad:  # oneDNN's operator gives no gradient
        return F.linear(x, weight.to_dense() if weight.is_mkldnn else weight, bias)
    rows = x.reshape(-1, x.shape[-1])  # [rows, inputs]
    full = F.pad(rows, (0, 0, 0, max(0, 4 - len(rows))))  # [padded, inputs]
    out = torch.ops.mkldnn._linear_pointwise(full, weight, bias, "none", [], "")  # [padded, outputs]
    return out[: len(rows)].view(*x.shape[:-1], len(weight))
