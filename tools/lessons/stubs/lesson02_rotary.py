"""Lesson 2: rotary positions.

Attention compares a query with keys by dot products, and a dot product does not know where the two stand. Rotary
positions (RoPE) tell it. Every head of K numbers is seen as K/2 points in a plane, and each point is turned around the
origin by an angle that grows with the position. A query at position 5 and a key at position 3 are turned by different
angles. Their dot product then depends on the difference of the angles, that is on the distance 2, and on nothing else.

Pair i turns by position * theta^(-2i/K) radians. The first pair turns fast, by one radian from one position to the next,
and tells neighbours apart. The last turns so slowly that it still tells far positions apart. theta is a constant of the
checkpoint: 10,000 for the demo weights, 1,000,000 for Qwen2.

Which two numbers form a pair is a convention. In Llama, Qwen2 and here, number i goes with number i + K/2: the first half
of the head holds the x coordinates, the second half the y coordinates ("half-split"). Other code pairs neighbours, 2i
with 2i + 1 ("interleaved"). Both are good, but weights trained with one of them are useless with the other. To turn (x, y)
by a: x' = x cos a - y sin a, y' = y cos a + x sin a. As the norm, the rotation is computed in float32.

    K = 4, theta = 100, position 3       pair 0 turns by 3 * 100^(-0/4) = 3, pair 1 by 3 * 100^(-2/4) = 0.3
    head   [1, 0, 0, 2]                  pair 0 is (1, 0), pair 1 is (0, 2)
    pair 0 (1 cos 3 - 0 sin 3, 0 cos 3 + 1 sin 3)           = (-0.9900, 0.1411)
    pair 1 (0 cos 0.3 - 2 sin 0.3, 2 cos 0.3 + 0 sin 0.3)   = (-0.5910, 1.9107)
    turned [-0.9900, -0.5910, 0.1411, 1.9107]

    head:   x0  x1  x2  x3 | y0  y1  y2  y3          y
            |   |   |   |    |   |   |   |           |   * turned
            |   |   |   +----|---|---|---+ pair 3    |  /
            |   |   +--------|---|---+     pair 2    | / a    * (x, y)
            |   +------------|---+         pair 1    |/_______________ x
            +----------------+             pair 0

To do: write `rope_angles` and `rotate`. Then run:  python tools/lessons/run.py 2
"""

import torch


def rope_angles(positions: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each pair's angle.

    positions [B, S] long -> two tensors [B, 1, S, K/2] float32, K = head_dim. The 1 stands for the heads: all heads of a
    position turn by the same angles.
    """
    raise NotImplementedError


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, heads, S, K] in any floating dtype, cos and sin as above -> [B, heads, S, K] in the dtype of x."""
    raise NotImplementedError
