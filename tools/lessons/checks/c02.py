"""The check of lesson 2, rotary positions."""

import math

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.decoder import apply_rope
from vita_ref.decoder import rope_angles as angles_of


def rope_angles(positions, head_dim, theta):
    return angles_of(positions, head_dim, theta)


def rotate(x, cos, sin):
    return apply_rope(x, (cos, sin))


def score(my, query_at, key_at):
    """The dot product of a query and a key at these positions."""
    q, k = randn(1, 1, 1, 8, seed=1), randn(1, 1, 1, 8, seed=2)
    turned = [my.rotate(x, *my.rope_angles(torch.tensor([[at]]), 8, 100.0)) for x, at in ((q, query_at), (k, key_at))]
    return (turned[0] * turned[1]).sum()


def cases():
    three = torch.tensor([[3]])
    angles = torch.tensor([3.0, 0.3]).view(1, 1, 1, 2)
    head = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    turned = [math.cos(3), -2 * math.sin(0.3), math.sin(3), 2 * math.cos(0.3)]
    x, positions = randn(2, 3, 4, 8), torch.tensor([[0, 1, 2, 3], [5, 6, 7, 20]])
    return [
        Case("the angles of the text's example: 3 and 0.3", "rope_angles",
             lambda my: my.rope_angles(three, 4, 100.0), (angles.cos(), angles.sin())),
        Case("the head of the text's example, turned at position 3", "rotate",
             lambda my: my.rotate(head, angles.cos(), angles.sin()), torch.tensor(turned).view(1, 1, 1, 4)),
        Case("four pairs in two rows of a batch", "rope_angles", lambda my: my.rope_angles(positions, 8, 1e4)),
        Case("three heads turn by the same angles", "rotate", lambda my: my.rotate(x, *rope_angles(positions, 8, 1e4))),
        Case("a turn changes no length", "rotate",
             lambda my: my.rotate(x, *rope_angles(positions, 8, 1e4)).norm(dim=-1), x.norm(dim=-1)),
        Case("the score depends on the distance alone: positions 5 and 3, and 105 and 103", "rotate",
             lambda my: score(my, 105, 103) - score(my, 5, 3), 0.0, 1e-4),
        Case("bfloat16 in, bfloat16 out, with the accuracy of float32 between", "rotate",
             lambda my: my.rotate(x.bfloat16(), *rope_angles(positions, 8, 1e4))),
    ]  # fmt: skip


def interleaved(x, cos, sin):
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2).to(x.dtype)


def one_by_one(x, cos, sin):
    first, second = x.float().chunk(2, -1)
    first = first * cos - second * sin
    return torch.cat([first, second * cos + first * sin], -1).to(x.dtype)


def in_its_dtype(x, cos, sin):
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def angles(positions, rates):
    a = positions[:, None, :, None].float() * rates
    return a.cos(), a.sin()


def pairs(head_dim):
    return torch.arange(head_dim // 2)


LESSON = Lesson(
    2, "rotary", "rotary positions", {"rope_angles": rope_angles, "rotate": rotate}, cases,
    (
        Mistake("interleaved instead of half-split rotation", "numbers 2i and 2i + 1 were paired. Here i goes with i + K/2.",
                "cut the head into its first and its second half, and turn them against each other.", {"rotate": interleaved}),
        Mistake("turned the other way", "the angle has the wrong sign: minus and plus are swapped.",
                "x' = x cos - y sin, and y' = y cos + x sin.", {"rotate": lambda x, cos, sin: rotate(x, cos, -sin)}),
        Mistake("cosine and sine swapped", "at position 0 a head should not change, and here it turns by a quarter.",
                "the cosine comes first, in what rope_angles gives and in what rotate takes.",
                {"rotate": lambda x, cos, sin: rotate(x, sin, cos),
                 "rope_angles": lambda *a: rope_angles(*a)[::-1]}),
        Mistake("the second half from the turned first half", "y' was computed from x', not from x.",
                "keep both halves until both results are computed.", {"rotate": one_by_one}),
        Mistake("halves swapped", "the second half of the result stands in front.", "put x' in front of y'.",
                {"rotate": lambda x, cos, sin: torch.cat(rotate(x, cos, sin).chunk(2, -1)[::-1], -1)}),
        Mistake("rotation in bfloat16", "the products were rounded to bfloat16 before they were added.",
                "convert x to float32, turn it, and convert the result back.", {"rotate": in_its_dtype}),
        Mistake("exponent i/K instead of 2i/K", "the slow pairs turn too fast: the exponent runs only to 1/2.",
                "the exponents are 0, 2/K, 4/K and so on.",
                {"rope_angles": lambda p, k, theta: angles(p, theta ** (-pairs(k) / k))}),
        Mistake("the exponent without its minus", "later pairs turn faster; they should turn more slowly.",
                "divide the position by theta^(2i/K).",
                {"rope_angles": lambda p, k, theta: angles(p, theta ** (2 * pairs(k) / k))}),
        Mistake("positions counted from one", "position 0 should not turn at all.", "use the position as it is given.",
                {"rope_angles": lambda p, k, theta: rope_angles(p + 1, k, theta)}),
        Mistake("positions counted anew", "the columns were numbered 0, 1, 2; the given positions were not used.",
                "multiply by the given positions [B, S], not by an arange.",
                {"rope_angles": lambda p, k, theta: rope_angles(torch.arange(p.shape[1]).expand_as(p), k, theta)}),
        Mistake("degrees instead of radians", "the angles are 57 times too small.", "use the angle as it is: torch takes radians.",
                {"rope_angles": lambda p, k, theta: angles(torch.deg2rad(p.float()), theta ** (-2 * pairs(k) / k))}),
    ),
    {"rope_angles": "make the K/2 rates theta^(-2i/K); give positions the shape [B, 1, S, 1]; multiply; cosine and sine.",
     "rotate": "cut the last dimension into halves x and y; compute x cos - y sin and y cos + x sin; join them in this order."},
    ("rotation",),
)  # fmt: skip
