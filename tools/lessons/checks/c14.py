"""The check of lesson 14, int8 weights in groups. The package's int8 has one group a row: the reference cuts rows into groups."""

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.scale import int8

TINY = torch.finfo(torch.float32).tiny


def quantise(weight, group):
    outputs, inputs = weight.shape
    integers, scales = int8.quantize(weight.reshape(-1, group))
    return integers.view(outputs, inputs), scales.view(outputs, -1)


def linear8(x, integers, scales, bias):
    group = integers.shape[1] // scales.shape[1]
    parts = zip(x.split(group, 1), integers.split(group, 1), scales.T)
    return sum(int8.int8_linear(*part) for part in parts) + bias


def some():
    weight = randn(4, 6, seed=1)
    weight[:, 3:] *= 20
    weight[2] *= 0.01
    return weight


def cases():
    row = torch.tensor([[0.5, -1.27, 0.004, 10, 0, -5]])
    integers = torch.tensor([[50, -127, 0, 127, 0, -64]], dtype=torch.int8)
    scales = torch.tensor([[0.01, 10 / 127]])
    zeros = torch.zeros(1, 6)
    return [
        Case("the row of the text", "quantise", lambda my: my.quantise(row, 3), (integers, scales)),
        Case("four rows of two groups", "quantise", lambda my: my.quantise(some(), 3)),
        Case("one group a row", "quantise", lambda my: my.quantise(some(), 6)),
        Case("every weight is off by at most half a step", "quantise", lambda my: worst(my, some(), 3), True),
        Case("zeros stay zeros", "quantise", lambda my: (my.quantise(zeros, 3)[0], bool((my.quantise(zeros, 3)[1] > 0).all())),
             (zeros.to(torch.int8), True)),
        Case("one input in each group: x = [1, 0, 0, 2, 0, 0]", "linear8",
             lambda my: my.linear8(torch.tensor([[1.0, 0, 0, 2, 0, 0]]), integers, scales, torch.tensor([0.25])), torch.tensor([[0.5 + 20 + 0.25]])),
        Case("three rows of x", "linear8", lambda my: my.linear8(randn(3, 6), *quantise(some(), 3), randn(4, seed=5))),
    ]  # fmt: skip


def worst(my, weight, group):
    integers, scales = my.quantise(weight, group)
    step = scales.repeat_interleave(group, 1)
    return bool(((integers.float() * step - weight).abs() <= 0.5001 * step).all())


def quantised(weight, group, largest=lambda g: g.abs().amax(-1, keepdim=True), top=127, rounded=torch.round, floor=TINY):
    groups = weight.unflatten(1, (-1, group))
    scale = (largest(groups) / top).clamp(min=floor)
    integers = rounded(groups / scale).to(torch.int8) if top == 127 else rounded(groups / scale).int().to(torch.int8)
    return integers.flatten(1), scale.expand(*groups.shape[:2], 1)[..., 0].contiguous()


def with_quantise(**options):
    return {"quantise": lambda *a: quantised(*a, **options)}


def product(x, integers, scales, bias, scale=True, add=True, order="group"):
    group = integers.shape[1] // scales.shape[1]
    wide = scales.repeat_interleave(group, 1) if order == "group" else scales.repeat(1, group)
    out = x @ (integers.float() * (wide if scale else 1)).T
    return out + bias if add else out


def with_linear(**options):
    return {"linear8": lambda *a: product(*a, **options)}


def across(weight, group):
    integers, scales = quantise(weight.T.contiguous(), 2 if len(weight) % 2 == 0 else 1)
    return integers.T.contiguous(), scales.T.contiguous()


LESSON = Lesson(
    14, "quantise", "int8 weights in groups", {"quantise": quantise, "linear8": linear8}, cases,
    (
        Mistake("cut off instead of rounded", "a conversion to int8 cuts the fraction off: weights are off by up to a whole step.",
                "round before you convert.", with_quantise(rounded=lambda x: x)),
        Mistake("one scale for the whole matrix", "one large weight makes all others coarse.", "take the maximum within each group.",
                with_quantise(largest=lambda g: g.abs().max().expand(*g.shape[:2], 1))),
        Mistake("one scale a row", "the groups were not used.", "take the maximum within each group, not of the row.",
                with_quantise(largest=lambda g: g.abs().amax((1, 2), keepdim=True).expand(-1, g.shape[1], 1))),
        Mistake("128 steps", "128 does not fit into int8: the largest weight changes its sign.", "divide the largest absolute value by 127.",
                with_quantise(top=128)),
        Mistake("the maximum without its sign removed", "a group whose largest weight is negative has too small a scale.",
                "take the largest absolute value.", with_quantise(largest=lambda g: g.amax(-1, keepdim=True))),
        Mistake("0 / 0 in a group of zeros", "its scale is 0.", "give the scale a tiny lower bound.", with_quantise(floor=0.0)),
        Mistake("rounded up", "every weight is moved in one direction.", "round to the nearest.", with_quantise(rounded=torch.ceil)),
        Mistake("groups across outputs", "a group runs down a column.", "cut each row into groups of neighbouring inputs.", {"quantise": across}),
        Mistake("scale forgotten in the product", "the integers were multiplied as they are.", "multiply each group's sum by its scale.",
                with_linear(scale=False)),
        Mistake("scales of the wrong groups", "the scales were repeated as a whole; each belongs to `group` neighbours.",
                "repeat each scale group times in a row, or use a loop over groups.", with_linear(order="cycle")),
        Mistake("bias forgotten", "the bias is added once, at the end.", "add the bias.", with_linear(add=False)),
    ),
    {"quantise": "reshape to [outputs, inputs / group, group]; largest absolute value over the last dimension / 127, at least a tiny number; "
                 "divide, round, int8; give the integers the shape of the weight.",
     "linear8": "for each group: x of the group @ integers of the group transposed, times the group's scales; add the groups and the bias."},
)  # fmt: skip
