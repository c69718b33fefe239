"""Products with a weight that is converted by blocks of outputs, so that no second copy of a matrix ever exists.

    weight in bfloat16, int8 or int4 -> a block of outputs in the dtype of the product -> its part of the result

Test: ``pytest tests/scale/test_blocks.py``
"""

import torch
from torch.nn import functional as F

BLOCK = 2**19  # elements of a weight that are converted at a time: 2 MB in float32, which stay in a cache
BLOCK_ELSEWHERE = 2**24  # on other devices, where starting a kernel is what costs time


def product(rows, outputs, convert, dtype, multiple=1, scale=None):
    """rows @ weight.T, computed in ``dtype`` and rounded once to the dtype of the rows.

    ``convert(start, stop, buffer)`` gives the weight of these outputs in ``dtype``, [stop - start, inputs]; ``buffer``
    has that many elements. ``multiple`` divides each start. ``scale`` [outputs] multiplies the result.

    Shapes: rows [rows, inputs] -> [rows, outputs].
    """
    inputs = rows.shape[1]
    size = BLOCK if rows.device.type == "cpu" else BLOCK_ELSEWHERE
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
