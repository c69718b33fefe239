"""Lesson 9: pixel shuffle and projector.

The tower gives a row for each patch, 32 x 32 = 1,024 for a tile of VITA-1.5. That would be a long prompt. The pixel shuffle
joins squares of 2 x 2 neighbouring patches: their rows of E numbers are put side by side and become one row of 4 * E. Nothing is
lost, and the tile takes 256 positions. The four parts of a row come in the order upper left, upper right, lower left, lower
right, each with its E channels together. That is the order (row, column, channel).

Then the projector brings the rows to the decoder's width D: a linear map, a GELU (the exact one, with erf), a second linear map.
What comes out has the form of token embeddings. The decoder cannot tell it from words.

Three details of VITA-1.5 are easily missed. The class token, row 0, is left out before the shuffle. The features are multiplied
by a constant (feature_scale, 0.5) before the projector. And no norm follows the tower. None of this can be seen in the weights,
which were trained with it: if you leave something out, every shape is right and every answer is wrong.

    grid of patches, E = 1        shuffle by 2            GELU(x) = x * (1 + erf(x / sqrt 2)) / 2
      0  1 |  2  3                [ 0  1  4  5]
      4  5 |  6  7                [ 2  3  6  7]           GELU(1) = 0.8413
     ------+------                [ 8  9 12 13]           GELU(-1) = -0.1587
      8  9 | 10 11                [10 11 14 15]
     12 13 | 14 15

    [N, 1 + rows*columns, E] -> drop row 0 -> * scale -> grid -> shuffle -> [N, I, 4*E] -> linear, GELU, linear -> [N, I, D]

To do: write `pixel_shuffle` and `image_rows`. Then run:  python tools/lessons/run.py 9
"""

import torch


def pixel_shuffle(x: torch.Tensor, factor: int) -> torch.Tensor:
    """x [N, rows, columns, E] -> [N, rows / factor, columns / factor, factor * factor * E]"""
    raise NotImplementedError


def image_rows(
    x: torch.Tensor, factor: int, scale: float, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
) -> torch.Tensor:
    """x [N, 1 + side * side, E], what the tower gives for a square tile, the class token first; w1 [n, factor*factor*E] and
    b1 [n]; w2 [D, n] and b2 [D] -> [N, I, D], I = (side / factor)^2"""
    raise NotImplementedError
