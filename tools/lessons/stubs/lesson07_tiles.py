"""Lesson 7: a picture into tiles.

The vision tower takes squares of one size (448 pixels in VITA-1.5, the "tile"). A picture has any size. So it is stretched to
a grid of columns x rows tiles and cut up, with at most max_tiles tiles. Of all grids the one is taken whose aspect ratio
columns / rows is nearest to width / height. If several are equally near (1 x 1, 2 x 2, 3 x 3), go through them from few tiles
to many: a later one replaces an earlier one if the picture has more than half of its pixels,
width * height > 0.5 * tile * tile * columns * rows. So a small picture is not blown up.

The tower was trained on normalised pixels: a byte 0..255 is divided by 255, then the mean of its channel is subtracted, and the
result divided by the channel's standard deviation. Files store rows of pixels of three numbers, [Y, X, 3]. Convolutions want
[3, Y, X]. Height comes before width in both, but people say "width x height" and PIL's `size` is (width, height): most
mistakes in this lesson come from there.

The tiles are numbered like words on a page: row by row, and in a row from left to right. (A thumbnail of the whole picture
follows them in the real code. It is one more resize and not part of this lesson.)

    800 x 600 pixels: ratio 1.333. Grids of up to 12 tiles: 4 / 3 = 1.333 is nearest -> (4, 3), 12 tiles, not (3, 4).
    800 x 800 pixels, tile 448: 1 x 1, 2 x 2 and 3 x 3 have the ratio 1. 640,000 pixels are more than half of 2 * 2 * 448 * 448
    = 802,816, but not of 3 * 3 * 448 * 448 = 1,806,336 -> (2, 2).
    byte 128 of red: 128 / 255 = 0.502; (0.502 - 0.485) / 0.229 = 0.0741

    +---+---+---+---+
    | 0 | 1 | 2 | 3 |      (columns, rows) = (4, 3)
    +---+---+---+---+      tile 6 is in row 1, column 2: pixels
    | 4 | 5 | 6 | 7 |      [:, 1 * tile : 2 * tile, 2 * tile : 3 * tile]
    +---+---+---+---+
    | 8 | 9 | 10| 11|
    +---+---+---+---+

To do: write `grid`, `normalise` and `cut`. Then run:  python tools/lessons/run.py 7
"""

import torch


def grid(width: int, height: int, tile: int, max_tiles: int) -> tuple[int, int]:
    """-> (columns, rows)"""
    raise NotImplementedError


def normalise(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """pixels [Y, X, 3] uint8, mean and std [3] -> [3, Y, X] float32"""
    raise NotImplementedError


def cut(pixels: torch.Tensor, tile: int) -> torch.Tensor:
    """pixels [3, rows * tile, columns * tile] -> [rows * columns, 3, tile, tile]"""
    raise NotImplementedError
