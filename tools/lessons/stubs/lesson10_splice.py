"""Lesson 10: the splice.

This is where a language model begins to see. The prompt contains a placeholder, an id that is no token (-200). Every real id
becomes its row of the embedding table. The placeholder becomes the rows of the picture, as many as there are: one placeholder, 256
rows. The decoder gets one sequence of rows of width D, and does not know which were words.

So the row of embeddings is longer than the row of ids. Everything that counts positions must count rows: a word behind the picture
stands 256 positions further on. A placeholder must not be embedded (the table has no row -200), and takes the next picture in the
order of the whole batch: if row 0 has one picture and row 1 has two, row 1 takes the second and third.

Rows of a batch end up with different lengths and are padded to the longest with rows of zeros, on the right or on the left.
With the padding come a mask [B, S], True where a row is real, and the position ids: 0, 1, 2 ... over the real rows, wherever they
stand, and 0 on padding.

    ids          5    -200     7         the picture has 3 rows: i0 i1 i2
                 |   / | \\    |
    row         e5  i0 i1 i2  e7         e7 is the row of token 7
    positions    0   1  2  3   4

    a batch of [5, -200, 7] and [9, 8]         side="right"                  side="left"
    row 0   e5 i0 i1 i2 e7                     e5 i0 i1 i2 e7                e5 i0 i1 i2 e7
    row 1   e9 e8                              e9 e8  .  .  .                 .  .  . e9 e8
    mask of row 1                               1  1  0  0  0                 0  0  0  1  1
    positions of row 1                          0  1  0  0  0                 0  0  0  0  1

To do: write `splice_row` and `splice`. Then run:  python tools/lessons/run.py 10
"""

from collections.abc import Callable

import torch


def splice_row(ids: torch.Tensor, embed: Callable, features: list, placeholder: int) -> torch.Tensor:
    """One row. ids [n] long; embed takes real ids [m] (none, too) and gives [m, D]; features is a list of [I_i, D], one for each
    placeholder of this row in order -> [S, D]"""
    raise NotImplementedError


def splice(
    rows: list, embed: Callable, features: list, placeholder: int, side: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch. rows is a list of [n_i] long; features a list of [I_i, D] for all placeholders of the batch in order; side is
    "right" or "left", where the padding goes -> embeds [B, S, D], mask [B, S] bool, position ids [B, S] long"""
    raise NotImplementedError
