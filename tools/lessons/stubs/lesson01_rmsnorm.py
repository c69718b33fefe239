"""Lesson 1: RMSNorm.

A deep network multiplies and adds many times. Without care its numbers grow or shrink from layer to layer until nothing
can be learned. So in front of each part of a layer stands a norm, which brings every position's row of D numbers to the
same length. RMSNorm divides the row by its root mean square: square the D numbers, take their mean, take the root.
Afterwards the mean square of the row is 1, whatever it was before. (LayerNorm also subtracts the mean. RMSNorm does not.)

Then each channel is multiplied by a learned weight, because not every channel should be equally large. A row of zeros has
the root mean square 0, so a tiny number eps is added to the mean square, under the root, before anything is divided.

Checkpoints are often in bfloat16, which keeps only about three digits. The sum of thousands of squares needs more: the
norm is computed in float32. The normalised row is rounded to the dtype of x and then multiplied by the weight.

    x            [3, 4]               one position, D = 2
    squares      [9, 16]
    mean square  12.5                 rms = sqrt(12.5 + eps) = 3.5355
    x / rms      [0.8485, 1.1314]     mean square of this: (0.72 + 1.28) / 2 = 1
    * weight     [0.8485, 2.2627]     for the weight [1, 2]

         x [B, S, D] ----+-------------------------> * ---> * ---> out [B, S, D]
                         |                           ^      ^
                         +-> square -> mean over D   |      weight [D]
                               -> + eps -> 1 / sqrt -+

To do: write `rms_norm`. Then run:  python tools/lessons/run.py 1
The package's own version is in vita_ref/decoder.py. Look at it when yours passes.
"""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [B, S, D] in any floating dtype, weight [D] -> [B, S, D] in the dtype of x."""
    raise NotImplementedError
