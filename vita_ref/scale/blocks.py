"""Products with a weight that is converted by blocks of outputs, so that no second copy of a matrix ever exists.

    weight in bfloat16, int8 or int4 -> a block of outputs in the dtype of the product -> its part of the result

Test: ``pytest tests/scale/test_blocks.py``
"""

import torch
from torch import nn
from torch.nn import functional as F

BLOCK = 2**19  # elements of a weight that are converted at a time: 2 MB in float32, which stay in a cache
MANY = 256  # with more rows, blocks are twice as large, because each block rearranges all rows
OUTPUTS = 32  # a block has a multiple of this many outputs: with other numbers MKL's product takes up to 1.8 times as long
BLOCK_ELSEWHERE = 2**24  # on other devices, where starting a kernel is what costs time


def product(rows, outputs, convert, dtype, multiple=None, scale=None):
    """rows @ weight.T, computed in ``dtype`` and rounded once to the dtype of the rows.

    ``convert(start, stop, buffer)`` gives the weight of these outputs in ``dtype``, [stop - start, inputs]; ``buffer``
    has that many elements. ``multiple`` (None: `OUTPUTS`) divides each start. ``scale`` [outputs] multiplies the result.

    Shapes: rows [rows, inputs] -> [rows, outputs].
    """
    inputs = rows.shape[1]
    size, multiple = BLOCK * (2 if len(rows) > MANY else 1), multiple or OUTPUTS
    if rows.device.type != "cpu":
        size = BLOCK_ELSEWHERE
    step = min(max(1, size // inputs // multiple) * multiple, outputs)
    wide, out = rows.to(dtype), rows.new_empty(len(rows), outputs)
    learns = torch.is_grad_enabled() and rows.requires_grad  # then each block is kept for the backward pass
    buffer = None if learns else rows.new_empty(step * inputs, dtype=dtype)
    for start in range(0, outputs, step):
        stop = min(start + step, outputs)
        block = rows.new_empty((stop - start) * inputs, dtype=dtype) if learns else buffer[: (stop - start) * inputs]
        part = F.linear(wide, convert(start, stop, block))  # [rows, block]
        out[:, start:stop] = part if scale is None else part * scale[start:stop]
    return out


class Quantized(nn.Module):
    """A linear map with quantised weights. Their scale keeps its dtype in `Module.to`, as integers do."""

    def _apply(self, fn, recurse=True):
        scale = self.weight_scale
        super()._apply(fn, recurse)
        self.weight_scale = scale.to(self.weight.device)
        return self
