"""Weight-only int4: groups of 32 inputs, each with a step and a middle. Biases, norms and embeddings keep their dtype.

    weight ~ (nibble - 8) * step + middle        nibble 0..15; step and middle in bfloat16: 5 bits for a weight in all

A group's range is its least to its largest weight, or a part of it if that makes the sum of squared errors smaller
(`RANGES`); no calibration data is used. A shorter last group is filled with zeros, which multiply zeros.

    row order      [outputs, inputs / 2] uint8, the input 2i in the low half of byte i: on disk, and on other devices
    kernel order   [blocks, inputs, half] uint8: output j of a block in the low half, output half + j in the high half,
                   as torch's kernel `_weight_int4pack_mm_for_cpu` reads it; half is 16 or 32, by processor

The kernel multiplies few rows in bfloat16. Everything else, and a processor without the kernel, takes the plain path:
blocks of outputs are unpacked and multiplied (`blocks.product`).

Test: ``pytest tests/scale/test_int4.py``
"""

import functools

import torch
from torch.nn import functional as F

from ..files.checkpoint import set_param
from . import blocks
from .products import block_dtype

GROUP = 32  # inputs
RANGES = (1.0, 0.95, 0.9, 0.85, 0.8)  # parts of a group's range that are tried
ROWS = 256  # quantised or reordered at a time
MOST_ROWS = 32  # of x that torch's kernel multiplies; the plain path is faster for more


# ---- quantising


def quantize(weight, group=GROUP, ranges=RANGES):
    """Rounds a matrix to four bits.

    Shapes: [outputs, inputs] floating -> nibbles [outputs, groups * group / 2] uint8 in row order, and steps and
    middles [groups, outputs, 2] bfloat16.

    Example: a group from -0.7 to 0.8 has the step 0.1 and the middle 0.1; its weight 0.32 becomes the nibble 10: 0.3.
    """
    outputs, inputs = weight.shape
    groups = -(-inputs // group)
    nibbles = weight.new_empty(outputs, groups * group // 2, dtype=torch.uint8)
    scale = weight.new_empty(groups, outputs, 2, dtype=torch.bfloat16)
    for start in range(0, outputs, ROWS):
        rows = weight[start : start + ROWS].float()  # [block, inputs]
        padded = F.pad(rows, (0, groups * group - inputs)).unflatten(1, (groups, group))  # [block, groups, group]
        rounded, pair = _nearest(padded, ranges)
        nibbles[start : start + ROWS] = _pairs(rounded.flatten(1))
        scale[:, start : start + ROWS] = pair.transpose(0, 1)
    return nibbles, scale


def _nearest(x, ranges):
    """The nibbles [block, groups, group] and the pairs [block, groups, 2] with the least error of all ranges."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # [block, groups, 1]
    best = None
    for part in ranges:
        step = ((high - low) * (part / 15)).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()  # [block, groups, 1]
        middle = ((high + low) / 2 + (high - low) * (part / 30)).bfloat16()  # [block, groups, 1]
        nibble = ((x - middle.float()) / step.float()).round_().add_(8).clamp_(0, 15)  # [block, groups, group]
        error = ((nibble - 8) * step.float() + middle.float() - x).square_().sum(-1, keepdim=True)  # [block, groups, 1]
        found = error, nibble.to(torch.uint8), torch.cat([step, middle], -1)
        better = None if best is None else error < best[0]
        best = found if best is None else tuple(torch.where(better, new, old) for new, old in zip(found, best))
    return best[1:]


def _pairs(rounded):
    """[rows, inputs] of 0..15 -> [rows, inputs / 2], two in a byte."""
    return rounded[:, 0::2] | (rounded[:, 1::2] << 4)


def dequantize(nibbles, scale, inputs, dtype=torch.float32):
    """The matrix that the nibbles in row order stand for. Shapes: -> [outputs, inputs]."""
    outputs, groups = len(nibbles), len(scale)
    whole = torch.empty(outputs * groups * 2 * nibbles.shape[1] // groups, dtype=dtype, device=nibbles.device)
    return _rows(nibbles, scale, whole)[:, :inputs]


# ---- the orders of the nibbles


@functools.cache
def kernel_half():
    """Half the outputs in a block of torch's kernel on this processor: 16 or 32; None if it has no such kernel."""
    values = torch.arange(128 * 4, dtype=torch.int32).remainder(13).view(128, 4)
    try:
        packed = torch._convert_weight_to_int4pack_for_cpu(values, 1).flatten()
        torch._weight_int4pack_mm_for_cpu  # noqa: B018
    except (AttributeError, RuntimeError):
        return None
    nibbles = _pairs(values.to(torch.uint8))
    return next((half for half in (16, 32) if packed.equal(pack(nibbles, half).flatten())), None)


def pack(nibbles, half):
    """Row order to kernel order. The last block is filled with zeros.

    Shapes: [outputs, inputs / 2] -> [blocks, inputs, half], blocks = outputs / (2 * half), rounded up.
    """
    outputs, pairs = nibbles.shape
    size = 2 * half
    packed = nibbles.new_empty(-(-outputs // size), pairs, 2, half)
    for start in range(0, outputs, ROWS):
        rows = nibbles[start : start + ROWS]
        if len(rows) % size:
            rows = F.pad(rows, (0, 0, 0, -len(rows) % size))  # [blocks*2*half, pairs]
        rows = rows.view(-1, 2, half, pairs)  # [blocks, 2, half, pairs]
        first, second = rows[:, 0], rows[:, 1]
        here = packed[start // size : start // size + len(rows)]  # [blocks, pairs, 2, half]
        here[:, :, 0] = ((first & 15) | (second << 4)).mT
        here[:, :, 1] = ((first >> 4) | (second & 240)).mT
    return packed.flatten(1, 2)


def unpack(packed, outputs):
    """Kernel order to row order. Shapes: [blocks, inputs, half] -> [outputs, inputs / 2]."""
    count, inputs, half = packed.shape
    nibbles = packed.new_empty(count, 2 * half, inputs // 2)
    for start in range(0, count, ROWS):
        part = packed[start : start + ROWS]
        rows = torch.cat([part & 15, part >> 4], 2).mT  # [blocks, 2*half, inputs]
        nibbles[start : start + ROWS] = rows[..., 0::2] | (rows[..., 1::2] << 4)
    return nibbles.flatten(0, 1)[:outputs]


def _signed(nibbles):
    """The low and the high halves of bytes, minus 8, as int8."""
    return ((nibbles & 15) - 8).view(torch.int8), ((nibbles >> 4) - 8).view(torch.int8)


def _rows(nibbles, scale, block):
    """Nibbles in row order as numbers. Shapes: [n, inputs / 2], scale [groups, n, 2], a block -> [n, inputs]."""
    pairs = block.view(len(nibbles), -1, 2)  # [n, inputs/2, 2]
    pairs[..., 0], pairs[..., 1] = _signed(nibbles)
    values = block.view(len(nibbles), len(scale), -1)  # [n, groups, group]
    step, middle = (scale[:, :, i].T[..., None].to(block.dtype) for i in (0, 1))  # [n, groups, 1]
    return torch.addcmul(middle, values, step, out=values).view(len(nibbles), -1)  # [n, inputs]


def _columns(packed, scale, block):
    """Nibbles in kernel order as numbers. Shapes: [blocks, inputs, half], scale [groups, n, 2], a block -> [n, inputs]."""
    count, inputs, half = packed.shape
    halves = block.view(inputs, count, 2, half)  # [inputs, blocks, 2, half]
    halves[:, :, 0], halves[:, :, 1] = _signed(packed.transpose(0, 1))
    values = block.view(len(scale), -1, count * 2 * half)  # [groups, group, n]
    step, middle = (scale[:, None, :, i].to(block.dtype) for i in (0, 1))  # [groups, 1, n]
    return torch.addcmul(middle, values, step, out=values).view(inputs, -1).T  # [n, inputs]


# ---- the product


def int4_linear(x, weight, scale, outputs, bias=None):
    """x @ weight.T + bias, with the weight in either order.

    Shapes: x [..., inputs], weight [outputs, inputs / 2] or [blocks, inputs, half], scale [groups, n, 2], n >= outputs,
    bias [outputs] -> [..., outputs].
    """
    packed = weight.dim() == 3
    width = weight.shape[1] if packed else 2 * weight.shape[1]
    rows = x.reshape(-1, x.shape[-1])  # [rows, inputs]
    if width > rows.shape[1]:
        rows = F.pad(rows, (0, width - rows.shape[1]))  # [rows, width]
    learns = torch.is_grad_enabled() and x.requires_grad  # the kernel gives no gradient
    fits = x.dtype == torch.bfloat16 and x.device.type == "cpu" and 0 < len(rows) <= MOST_ROWS
    if packed and fits and not learns:
        flat = weight.view(scale.shape[1], width // 2)  # the shape that the kernel expects, in its own order
        out = torch._weight_int4pack_mm_for_cpu(rows.contiguous(), flat, width // len(scale), scale)  # [rows, n]
        out = out[:, :outputs]  # [rows, outputs]
    else:
        size = 2 * weight.shape[2] if packed else 1  # rows of the weight in one of its blocks
        dtype = block_dtype(x)

        def convert(start, stop, block):
            part = weight[start // size : stop // size]
            return (_columns if packed else _rows)(part, scale[:, start:stop], block)  # [block, inputs]

        out = blocks.product(rows, scale.shape[1], convert, dtype, multiple=size if packed else None)[:, :outputs]  # [rows, outputs]
    if bias is not None:
        out = out + bias  # [rows, outputs]
    return out.reshape(*x.shape[:-1], outputs)


class Int4Linear(blocks.Quantized):
    """A linear map with an int4 weight. `assign` quantises the checkpoint's weight for it, unless it is ``stored`` so."""

    method = "int4"

    def __init__(self, linear, stored=False, group=GROUP):
        super().__init__()
        outputs, inputs = linear.weight.shape
        groups, device = -(-inputs // group), linear.weight.device
        weight = (
            torch.empty(outputs, groups * group // 2, dtype=torch.uint8, device=device) if stored else linear.weight
        )
        self.outputs, self.inputs, self.group = outputs, inputs, group
        self.register_buffer("weight", weight.detach())
        scale = torch.empty(groups, outputs, 2, dtype=torch.bfloat16, device=device)
        self.register_buffer("weight_scale", scale, persistent=stored)
        self.bias = linear.bias

    def forward(self, x):
        return int4_linear(x, self.weight, self.weight_scale, self.outputs, self.bias)

    def _half(self, device):
        """`kernel_half`, or None if the kernel does not support the device or the group size."""
        return kernel_half() if device.type == "cpu" and 32 <= self.group <= 256 else None

    def set_nibbles(self, nibbles):
        """Takes nibbles in row order; on a processor with torch's kernel they are kept in its order."""
        half = self._half(nibbles.device)
        self.weight = nibbles.clone() if half is None else pack(nibbles, half)  # a copy: the file is memory-mapped

    def set_scale(self, scale):
        """Takes steps and middles, filled up to whole blocks where the nibbles will be in the kernel's order."""
        half = self._half(scale.device)
        missing = 0 if half is None else -self.outputs % (2 * half)
        self.weight_scale = F.pad(scale, (0, 0, 0, missing)) if missing else scale

    def stored_tensors(self):
        """The tensors of a quantised folder: row order, without filling."""
        packed = self.weight.dim() == 3
        nibbles = unpack(self.weight, self.outputs) if packed else self.weight  # [outputs, inputs/2]
        return {"weight": nibbles, "weight_scale": self.weight_scale[:, : self.outputs]}


def assign(owner, leaf, tensor):
    """Sets one tensor of a checkpoint, as `set_param` does; a floating weight of an `Int4Linear` is quantised first."""
    if type(owner) is not Int4Linear or leaf == "bias":
        set_param(owner, leaf, tensor)
    elif leaf == "weight_scale":
        owner.set_scale(tensor)
    elif tensor.is_floating_point():
        owner.outputs, owner.inputs = tensor.shape  # smaller if the decoder is split over several processes
        nibbles, scale = quantize(tensor, owner.group)
        owner.set_nibbles(nibbles)
        owner.set_scale(scale)
    else:
        owner.set_nibbles(tensor)
