"""Weight-only int8: each row of a matrix as integers of -127..127 and one scale. Biases, norms and embeddings keep
their dtype.

A weight is off by at most half a step, scale / 2 = max |row| / 254; by three quarters of a step if the product is
computed in bfloat16, which rounds the scale too. Matrices are quantised one by one while a checkpoint loads, so the peak
of memory is near the size of the result.

Test: ``pytest tests/scale/test_int8.py``
"""

import torch

from ..files.checkpoint import set_param
from . import blocks
from .products import block_dtype

ROWS = 1024  # quantised at a time, because a float32 copy of a whole head of 152,000 rows would need much memory


def quantize(weight):
    """Rounds a matrix to int8, symmetrically, with one scale for each output.

    Shapes: [outputs, inputs] floating -> [outputs, inputs] int8 and [outputs] float32, such that weight ~ int8 * scale.

    Example: the row [0.5, -1.27, 0.004] has the scale 0.01 and becomes [50, -127, 0].
    """
    scale = weight.new_empty(len(weight), dtype=torch.float32)  # [outputs]
    rounded = torch.empty_like(weight, dtype=torch.int8)  # [outputs, inputs]
    for start in range(0, len(weight), ROWS):
        block = weight[start : start + ROWS].float()  # [block, inputs]
        steps = (block.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # [block], above 0
        scale[start : start + ROWS] = steps
        rounded[start : start + ROWS] = (block / steps[:, None]).round_()
    return rounded, scale


def int8_linear(x, weight, scale, bias=None):
    """x @ (weight * scale).T + bias.

    Shapes: x [..., inputs], weight [outputs, inputs] int8, scale [outputs], bias [outputs] -> [..., outputs].
    """
    rows = x.reshape(-1, x.shape[-1])  # [rows, inputs]
    aligned = rows.shape[1] % 16 == 0  # with other widths the kernel reads beyond the end of a row
    learns = torch.is_grad_enabled() and x.requires_grad  # the kernel gives no gradient
    if x.dtype == torch.bfloat16 and 0 < len(rows) <= 16 and aligned and x.device.type == "cpu" and not learns:
        out = torch._weight_int8pack_mm(rows.contiguous(), weight, scale.to(x.dtype))  # [rows, outputs]
    else:
        dtype = block_dtype(x)

        def convert(start, stop, block):
            return block.view(-1, rows.shape[1]).copy_(weight[start:stop])  # [block, inputs]

        out = blocks.product(rows, len(weight), convert, dtype, scale=scale.to(dtype))  # [rows, outputs]
    if bias is not None:
        out = out + bias  # [rows, outputs]
    return out.reshape(*x.shape[:-1], len(weight))


class Int8Linear(blocks.Quantized):
    """A linear map with an int8 weight. `assign` quantises the checkpoint's weight for it, unless it is ``stored`` so."""

    method = "int8"

    def __init__(self, linear, stored=False):
        super().__init__()
        like = linear.weight.detach()
        weight = torch.empty_like(like, dtype=torch.int8 if stored else like.dtype)
        scale = torch.empty(len(like), dtype=torch.float32, device=like.device)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale, persistent=stored)
        self.bias = linear.bias

    def forward(self, x):
        return int8_linear(x, self.weight, self.weight_scale, self.bias)

    def stored_tensors(self):
        """The tensors of a quantised folder."""
        return {"weight": self.weight, "weight_scale": self.weight_scale}


def assign(owner, leaf, tensor):
    """Sets one tensor of a checkpoint, as `set_param` does; a floating weight of an `Int8Linear` is quantised first."""
    if type(owner) is Int8Linear and leaf == "weight" and tensor.is_floating_point():
        owner.weight, owner.weight_scale = quantize(tensor)
    else:
        set_param(owner, leaf, tensor)
