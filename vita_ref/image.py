"""From an image file to normalised tiles of pixels, the input of the vision tower.

    open_image   file                  -> RGB image, rotated upright
    tile_grid    its width and height  -> columns and rows of the grid whose aspect ratio is nearest
    load_tiles   both of them          -> [N, 3, tile, tile]: the tiles row by row, then a thumbnail

An 800 x 600 image is stretched to 4 x 3 tiles of 448 x 448 pixels. With the thumbnail these are N = 13 tiles.

N tiles, X, Y width and height in pixels; tile, the side of a tile in pixels.

Test: ``pytest tests/test_image.py``
"""

import os
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .files.media import (
    MAX_TILE_PIXELS,
    MAX_TILES,
    check_array,
    name_of,
    quiet_stderr,
    reason_of,
)
from .files.pictures import file_of, to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXIF_ORIENTATION = 0x0112  # the tag; 1 is upright


def load_tiles(
    source: Any, *, tile: int = 448, max_tiles: int = 12, min_tiles: int = 1, mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD, thumbnail: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Stretches an image to its grid and cuts it into tiles. If there are several, a thumbnail is added at the end.

    Shapes: -> [N, 3, tile, tile] float32. N is columns * rows, plus 1 if there is a thumbnail.
    Raises: ValueError for what `open_image` cannot read or `tile_grid` does not accept.
    """
    image = _open(source)
    columns, rows = tile_grid(*image.size, tile=tile, max_tiles=max_tiles, min_tiles=min_tiles)
    if columns * rows * tile * tile > MAX_TILE_PIXELS:
        raise ValueError(f"{columns} x {rows} tiles of {tile} x {tile} pixels are too many: lower max_tiles")
    pixels = _normalise(image.resize((columns * tile, rows * tile)), mean, std)  # [3, rows*tile, columns*tile]
    tiles = pixels.reshape(3, rows, tile, columns, tile)  # [3, rows, tile, columns, tile]
    tiles = tiles.permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, tile, tile)  # [N, 3, tile, tile]
    if len(tiles) == 1 or not thumbnail:
        return tiles
    whole = _normalise(image.resize((tile, tile)), mean, std)  # [3, tile, tile]
    return torch.cat([tiles, whole[None]])  # [rows*columns+1, 3, tile, tile]


def open_image(source):
    """A path, a binary file object, a PIL image or a uint8 array as an RGB PIL image, rotated as its EXIF orientation says.

    Transparent pixels are drawn on white. The result for an animated file is its first frame, for an animated PIL image
    its current frame.

    Shapes: an array is [Y, X], [Y, X, 3] or [Y, X, 4], grey, RGB or RGBA.
    Raises: ValueError with the name of the file if it is missing, damaged, too large or not an image.
    """
    image = _open(source)
    return image.copy() if image is source else image


def _open(source):
    """`open_image` without a copy of a PIL image that needs no change: a copy may take 0.7 GB."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError("images need Pillow: pip install Pillow") from None
    name = _name(source)
    try:
        if isinstance(source, np.ndarray):
            check_array(source)
            return to_rgb(Image.fromarray(np.ascontiguousarray(source)))
        if isinstance(source, Image.Image):
            return to_rgb(source if _needs_no_change(source) else ImageOps.exif_transpose(source))
        with Image.open(file_of(source)) as image, quiet_stderr(image.format == "TIFF"):
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except Image.UnidentifiedImageError:
        reason = "it is not in a format that Pillow reads"
    except (Image.DecompressionBombError, *READ_ERRORS) as error:
        reason = reason_of(error)
    raise ValueError(f"cannot read {name}: {reason}")


def _needs_no_change(image):
    """Whether a PIL image can be used as it is: EXIF does not rotate it, and it has no further frames to `seek`."""
    return image.getexif().get(EXIF_ORIENTATION, 1) == 1 and not getattr(image, "is_animated", False)


def tile_grid(width: int, height: int, *, tile: int = 448, max_tiles: int = 12, min_tiles: int = 1) -> tuple[int, int]:
    """(columns, rows) of the grid whose aspect ratio columns / rows is nearest to that of the image.

    If several grids are equally near, the largest of those with less than twice the pixels of the image is chosen.

    Example: 1 x 1, 2 x 2 and 3 x 3 tiles of 448 have the ratio of an 800 x 800 image, which has 640,000 pixels.
        2 x 2 tiles have 802,816 pixels. The image has more than half of them (401,408), so 2 x 2 beats 1 x 1.
        3 x 3 tiles have 1,806,336 pixels. The image has less than half of them (903,168). The result is (2, 2).

    Raises: ValueError for an image without pixels, or for limits that contradict each other.
    Source: upstream vita/util/data_utils_video_audio_neg_patch.py:1487-1545.
    """
    _check_grid(width, height, tile, max_tiles, min_tiles)
    best, nearest = (1, 1), float("inf")
    for columns, rows in _all_grids(min_tiles, max_tiles):
        distance = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * tile * tile * columns * rows
        if distance < nearest or (distance == nearest and large_enough):
            best, nearest = (columns, rows), distance
    return best


def _all_grids(min_tiles, max_tiles):
    """(columns, rows) of every grid with min_tiles to max_tiles tiles, sorted by the number of tiles."""
    grids = {
        (columns, rows)
        for columns in range(1, min_tiles + 1)
        for rows in range(1, min(min_tiles, max_tiles // columns) + 1)
        if columns * rows >= min_tiles
    }
    for most in range(min_tiles + 1, max_tiles + 1):  # upstream's order: those whose longer side is ``most``
        grids.update((columns, most) for columns in range(1, min(most - 1, max_tiles // most) + 1))
        grids.update((most, rows) for rows in range(1, min(most, max_tiles // most) + 1))
    # quirk: grids of equally many tiles keep the order of a Python set, as in upstream; it matters if min_tiles > 1
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def _check_grid(width, height, tile, max_tiles, min_tiles):
    if width < 1 or height < 1:
        raise ValueError(f"width and height of an image must be at least 1 pixel, got {width} x {height}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}")
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"expected 1 <= min_tiles <= max_tiles, got min_tiles={min_tiles} and max_tiles={max_tiles}")
    if max_tiles > MAX_TILES:
        raise ValueError(f"max_tiles must be at most {MAX_TILES}, got {max_tiles}")


def _normalise(image, mean, std):
    """An RGB image as [3, Y, X] float32: scaled from 0..255 to 0..1, then normalised by channel."""
    pixels = torch.from_numpy(np.array(image))  # [Y, X, 3]
    pixels = pixels.permute(2, 0, 1).float() / 255  # [3, Y, X]
    mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)  # [3, 1, 1]
    std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)  # [3, 1, 1]
    return (pixels - mean) / std  # [3, Y, X]


# ---- an image as a single tile, which video frames need

MAX_PIXELS = 200_000_000  # of the enlarged image in `load_square`: a long thin image could need all memory


def load_square(
    source: Any, *, tile: int = 448, fit: str = "crop", mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:  # fmt: skip
    """An image as one tile that is not stretched: its middle (``crop``), or all of it with borders (``pad``).

    Shapes: -> [1, 3, tile, tile] float32
    Raises: ValueError for what `open_image` cannot read, for wrong options, and for a long thin image.
    Source: upstream vita/util/mm_utils.py:16-42, and CLIPImageProcessor of transformers.
    """
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit must be 'crop' or 'pad', got {fit!r}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}")
    image = _open(source)
    (width, height), short, long = image.size, min(image.size), max(image.size)
    if max(tile * tile, long * long if fit == "pad" else tile * tile * long // short) > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is too long and thin for fit={fit!r}: crop the image, or use load_tiles")
    square = _pad(image, tile, mean) if fit == "pad" else _crop(image, tile)
    return _normalise(square, mean, std)[None]  # [1, 3, tile, tile]


def _crop(image, tile):
    """The short side is scaled to ``tile``, then the middle of the long side is cut out."""
    width, height = (tile * side // min(image.size) for side in image.size)
    left, top = (width - tile) // 2, (height - tile) // 2
    return image.resize((width, height)).crop((left, top, left + tile, top + tile))


def _pad(image, tile, mean):
    """The image is pasted into the middle of a square of the mean colour, which is then scaled to ``tile``."""
    from PIL import Image

    side = max(image.size)
    if image.size == (side, side):
        return image.resize((tile, tile))
    square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((tile, tile))


# ---- names and errors

READ_ERRORS = (  # what Pillow raises for damaged files, in addition to Image.DecompressionBombError
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError,
    AttributeError, AssertionError, MemoryError, struct.error, zlib.error,
)  # fmt: skip


def _name(source):
    """The name of an image for messages."""
    from PIL import Image

    if isinstance(source, (Image.Image, np.ndarray, str, os.PathLike)) or hasattr(source, "read"):
        return name_of(source, "image")
    kinds = "a path, a file object, a PIL image or a uint8 array"
    raise ValueError(f"an image must be {kinds}, got {type(source).__name__}")
