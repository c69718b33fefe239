"""Lesson 8: patches, and the vision tower's block.

A vision transformer reads a picture as a sequence. The tile is cut into patches of p x p pixels, and each patch, 3 * p * p
numbers, becomes a row of E numbers by one matrix. This is the same as a convolution whose stride is its kernel size, and the
weights are stored as those of a convolution, [E, 3, p, p]. The patches follow each other row by row. A learned row, the class
token, is put in front. Then a learned position embedding is added to every row, the class token's too: a transformer would not
know otherwise where a patch was.

The attention in the tower has no mask, because all patches are there at once and each may look at each. It has as many key heads
as query heads. One matrix computes q, k and v together: of its 3 * E outputs the first E are the queries of all heads, then
come E keys, then E values. Each E is H heads of K numbers.

The block is like a layer of the decoder: norm, part, sum, twice. But what a part gives is first multiplied by a learned number
for each channel (the layer scale, ls1 and ls2). It was small at the beginning of training, so that the tower began almost as
the identity.

    picture 4 x 6, p = 2      patches   0 1 2      rows of the sequence: class, 0, 1, 2, 3, 4, 5
                                        3 4 5      + position 0, 1, 2, 3, 4, 5, 6
    one channel, patch [[1, 2], [3, 4]], weight [[1, 0], [0, 10]], bias 0.5:  1 * 1 + 4 * 10 + 0.5 = 41.5

    qkv(x)  |  q head 0 | q head 1 |  k head 0 | k head 1 |  v head 0 | v head 1 |     E = 2 * K here
    x --+--> norm1 --> attention --> * ls1 --> + --+--> norm2 --> MLP --> * ls2 --> + --> out
        +--------------------------------------^   +-------------------------------^

To do: write `embed`, `vision_attention` and `block`. Then run:  python tools/lessons/run.py 8
"""

from collections.abc import Callable

import torch


def embed(
    pixels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, class_token: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """pixels [N, 3, Y, X]; weight [E, 3, p, p]; bias [E]; class_token [E]; position [P, E], P = 1 + patches
    -> [N, P, E]. You may use torch.nn.functional.conv2d."""
    raise NotImplementedError


def vision_attention(
    x: torch.Tensor, qkv: torch.Tensor, qkv_bias: torch.Tensor, proj: torch.Tensor, proj_bias: torch.Tensor, heads: int
) -> torch.Tensor:
    """x [N, P, E]; qkv [3*E, E] and qkv_bias [3*E]; proj [E, E] and proj_bias [E], the last linear map -> [N, P, E]"""
    raise NotImplementedError


def block(
    x: torch.Tensor, norm1: Callable, attend: Callable, ls1: torch.Tensor, norm2: Callable, mlp: Callable, ls2: torch.Tensor
) -> torch.Tensor:
    """x [N, P, E]; ls1 and ls2 [E]; the functions take and give [N, P, E] -> [N, P, E]"""
    raise NotImplementedError
