"""Lesson 4: SwiGLU, and a layer.

A layer has two parts. Attention moves information between positions. The MLP works on each position by itself. In Qwen2
the MLP is a SwiGLU. Two matrices make F numbers each from the D numbers of a row. The first, through the function silu,
is a gate: it says how much of each number of the second may pass. A third matrix goes back from F to D.

silu(x) = x * sigmoid(x) = x / (1 + e^-x). It is about 0 for very negative x and about x for large x, like ReLU without the
corner. silu belongs to the gate. The other branch, "up", stays linear.

A layer adds what its parts compute to its input: x = x + attention(norm1(x)), then x = x + mlp(norm2(x)). The sum is called
the residual stream. It runs through all layers without being normalised; norms are taken only of the copies that enter a
part. So gradients reach the first layer, and a part that has nothing to say adds zeros.

    D = F = 1:  x = 2, gate matrix [1], up matrix [3], down matrix [0.5]
    gate  silu(2 * 1) = 2 / (1 + e^-2) = 1.7616
    up    2 * 3 = 6
    down  0.5 * (1.7616 * 6) = 5.2848

    x --+--> norm1 --> attention --> + --+--> norm2 --> gate --> silu --> * --> down --> + --> out
        |                            ^   |          \\-> up -----------/                  ^
        +----------------------------+   +------------------------------------------------+

To do: write `swiglu` and `layer`. Then run:  python tools/lessons/run.py 4
"""

from collections.abc import Callable

import torch


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """x [B, S, D]; the matrices as checkpoints store them, [outputs, inputs]: gate and up [F, D], down [D, F]
    -> [B, S, D]. There are no biases."""
    raise NotImplementedError


def layer(x: torch.Tensor, norm1: Callable, attend: Callable, norm2: Callable, mlp: Callable) -> torch.Tensor:
    """x [B, S, D] -> [B, S, D]. The four functions take and give [B, S, D]. Leave x itself unchanged."""
    raise NotImplementedError
