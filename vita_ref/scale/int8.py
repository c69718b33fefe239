"""Weight-only int8: each row of a matrix as whole numbers of -127..127 and one scale. Biases, norms and embeddings stay.

A weight is off by at most half a step, scale / 2 = max |row| / 254; where a product is made in bfloat16, which rounds
the scale too, by three quarters. Matrices are made one by one while a checkpoint loads, so the peak stays near the result.

Test: ``pytest tests/test_quant.py``
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..files.checkpoint import set_param

ROWS = 1024  # rounded at a time: a head of 152,000 rows in float32 would be larger than many a model


def quantize(weight):
    """Rounds a matrix to int8, symmetric, a scale for each output channel.

    Shapes: [O, I] floating -> [O, I] int8 and [O] float32, such that weight ~ int8 * scale.
    """
    scale = weight.new_empty(len(weight), dtype=torch.float32)  # [O]
    whole = torch.empty_like(weight, dtype=torch.int8)  # [O, I]
    for start in range(0, len(weight), ROWS):
        some = weight[start : start + ROWS].float()  # [N, I]
        steps = (some.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # [N]; a row of zeros has one too
        scale[start : start + ROWS] = steps
        whole[start : start + ROWS] = (some / steps[:, None]).round_()
    return whole, scale


def int8_linear(x, weight, scale, bias=None):
    """x @ (weight * scale).T + bias. Shapes: x [..., I], weight [O, I] int8, scale [O], bias [O] -> [..., O]."""
    rows = x.reshape(-1, x.shape[-1])  # [R, I]
    whole = rows.shape[1] % 16 == 0  # of another width that kernel reads beyond the end of a row
    if x.dtype == torch.bfloat16 and len(rows) <= 16 and whole and x.device.type == "cpu":
        out = torch._weight_int8pack_mm(rows, weight, scale.to(x.dtype))  # [R, O]
    elif x.dtype == torch.float16:  # sums of whole numbers overflow it
        out = (F.linear(rows.float(), weight.float()) * scale).to(x.dtype)  # [R, O]
    else:
        out = F.linear(rows, weight.to(x.dtype)) * scale.to(x.dtype)  # [R, O]
    if bias is not None:
        out = out + bias  # [R, O]
    return out.view(*x.shape[:-1], -1)


class Int8Linear(nn.Module):
    """A linear map with an int8 weight. A checkpoint's float weight is rounded as it is put in."""

    def __init__(self, linear):
        super().__init__()
        device = linear.weight.device
        self.register_buffer("weight", torch.empty(linear.weight.shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.empty(len(linear.weight), device=device), persistent=False)
        self.bias = linear.bias

    def forward(self, x):
        return int8_linear(x, self.weight, self.scale, self.bias)


def int8_linears(decoder):
    """Replaces every linear map in a decoder's layers, and its head, by an `Int8Linear` to be filled."""
    found = [(owner, name) for owner in decoder.modules() for name, m in owner.named_children() if isinstance(m, nn.Linear)]
    for owner, name in found:
        setattr(owner, name, Int8Linear(getattr(owner, name)))


def assign(owner, leaf, tensor):
    """Puts a checkpoint's tensor in its place, rounding it where an `Int8Linear` keeps it."""
    if type(owner) is Int8Linear and leaf == "weight":
        owner.weight, owner.scale = quantize(tensor)
    else:
        set_param(owner, leaf, tensor)
