"""Lesson 14: int8 weights.

A decoder that writes one token at a time reads all its weights for each token. The time is the time to read them. Stored in 8 bits
instead of 16 they take half the memory and half the time. Weight-only quantisation stores integers from -127 to 127 and a scale:
weight = integer * scale, about. The activations stay in floating point.

A scale belongs to a group of weights. The fewer weights share one, the smaller the error and the more scales there are. Here a group
is `group` neighbouring inputs of one output: each row of the matrix [outputs, inputs] is cut into inputs / group groups. The scale
of a group is its largest absolute value / 127, so that the largest weight becomes 127 or -127 and no weight is off by more than half
a step, scale / 2. (The package's int8 has one group a row.) A group of zeros would have the scale 0 and be 0 / 0: give it a tiny
scale instead.

The product with x needs no copy of the matrix in floating point: within a group the integers are multiplied by x and added, then the
sum is multiplied by the scale, then the groups are added. Writing the matrix out again, integer * scale, gives the same numbers, and
is how you check it.

    row      [0.5, -1.27, 0.004 | 10, 0, -5]         two groups of 3
    scales   1.27 / 127 = 0.01     10 / 127 = 0.0787
    integers [50, -127, 0 | 127, 0, -64]             -5 / 0.0787 = -63.5 is rounded to the even -64
    back     [0.5, -1.27, 0 | 10, 0, -5.04]          errors at most 0.005 and 0.039

    weight [outputs, inputs]  -> cut ->  [outputs, inputs/group, group]  -> max |.| / 127 -> scale [outputs, inputs/group]
                                                  |                                               |
                                                  +-----------> divide, round <-------------------+ -> int8

To do: write `quantise` and `linear8`. Then run:  python tools/lessons/run.py 14
"""

import torch


def quantise(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [outputs, inputs] float32; group divides inputs -> integers [outputs, inputs] int8 and scales
    [outputs, inputs / group] float32"""
    raise NotImplementedError


def linear8(x: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x [n, inputs] float32, what quantise gives, and bias [outputs] -> [n, outputs] float32"""
    raise NotImplementedError
