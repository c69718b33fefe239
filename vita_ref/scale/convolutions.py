"""Convolutions in bfloat16 on processors without bfloat16 units: in float32, by blocks of output channels.

With AVX2 torch computes them without vector instructions: the audio encoder at full size takes minutes for three
seconds of sound, nearly all of it in its second convolution. With AVX-512 oneDNN emulates them, as it does products.
Results differ by rounding only. Elsewhere, and with gradients, torch's convolution is used.

Test: ``pytest tests/scale/test_convolutions.py``
"""

import torch
from torch import nn

from . import products

WIDENED = ("avx512_vnni", "avx2")  # classes of processors; measured with AVX2 only
BLOCK = 2**21  # elements of a weight that are converted at a time; with fewer, the input is rearranged more often


def widened(conv, x):
    """A convolution in float32. The weight is converted by blocks of output channels, and the result is rounded once.

    Shapes: as those of the module ``conv``, without groups: [N, C, ...] -> [N, outputs, ...].
    """
    wide, out, weight = x.float(), None, conv.weight
    step = max(1, BLOCK // weight[0].numel())
    for start in range(0, len(weight), step):
        channels = slice(start, start + step)
        bias = None if conv.bias is None else conv.bias[channels].float()  # [block]
        part = conv._conv_forward(wide, weight[channels].float(), bias)
        if out is None:
            out = x.new_empty(len(part), len(weight), *part.shape[2:])
        out[:, channels] = part
    return out


class FastConvolution:
    """A convolution that is `widened` on the processors of `WIDENED`: always, or only in `products.fast_products`."""

    def __init__(self, conv, always=True):
        nn.Module.__init__(self)
        self.__dict__ |= {
            k: v for k, v in vars(conv).items() if not k.startswith("_") or k == "_reversed_padding_repeated_twice"
        }
        self.always = always
        self.weight = conv.weight
        self.register_parameter("bias", conv.bias)

    def forward(self, x):
        usable = self.groups == 1 and x.dim() == self.weight.dim() and x.dtype == torch.bfloat16
        usable = usable and (self.always or products.in_fast_products()) and products.has_choice(x, self.weight)
        return widened(self, x) if usable and products.processor_class() in WIDENED else super().forward(x)


class FastConv1d(FastConvolution, nn.Conv1d):
    """`nn.Conv1d` as `FastConvolution`. It keeps the weights."""


class FastConv2d(FastConvolution, nn.Conv2d):
    """`nn.Conv2d` as `FastConvolution`. It keeps the weights."""


def use_fast_convolutions(module, always=True):
    """Replaces the plain convolutions inside a module, loaded or not."""
    kinds = {nn.Conv1d: FastConv1d, nn.Conv2d: FastConv2d}
    for owner in [*module.modules()]:
        for name, child in [*owner.named_children()]:
            if type(child) in kinds:
                setattr(owner, name, kinds[type(child)](child, always))
