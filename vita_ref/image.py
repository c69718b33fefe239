"""A picture file -> tiles of pixels, as InternViT takes them.

A file becomes an upright RGB picture; the picture is stretched to a grid of square tiles whose shape
is near its own; the tiles, row by row, and a thumbnail of the whole become one normalised tensor.
Letters: N tiles; R rows and C columns of the grid; E the edge of a tile, Y and X the height and
width of a picture, in pixels.

Test: ``pytest tests/test_image.py``
"""

import os
import struct
import zlib

import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_PIXELS = 200_000_000  # of a picture on its way to a square; a thin strip would fill the memory
# what Pillow's many readers raise on broken bytes, beside its own DecompressionBombError
READ_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError,
    AttributeError, AssertionError, MemoryError, struct.error, zlib.error,
)  # fmt: skip


def open_image(source):
    """A path, a binary file object or a PIL image -> an upright 8-bit RGB PIL image.

    What is transparent becomes white (upstream drops alpha, which shows whatever colours lie beneath). Of
    an animation it is the first frame, of a PIL image the one it stands at. White is 65535 for integers
    wider than 8 bits, and for floats 1 where none is larger, else 255.

    Raises: ValueError that names the file where it is missing, broken, too large or no picture.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError("pictures need Pillow: pip install Pillow") from None
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "the picture given"
    elif isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
    elif hasattr(source, "read"):
        name = getattr(source, "name", "the picture given")
    else:
        raise ValueError(f"a picture must be a path, a file object or a PIL image, got {type(source).__name__}")
    try:
        if isinstance(source, Image.Image):
            return _rgb(ImageOps.exif_transpose(source))
        with Image.open(source) as file:
            return _rgb(ImageOps.exif_transpose(file))
    except Image.UnidentifiedImageError:
        reason = "it is not in a format that Pillow reads"
    except (Image.DecompressionBombError, *READ_ERRORS) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"cannot read {name}: {reason}")


def _rgb(image):
    """Any mode of Pillow's -> RGB."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # I;16 and the like, I and F: Pillow would clip them at 255
        values = np.nan_to_num(np.array(image, dtype=np.float64))
        white = 65535 if image.mode.startswith("I") else 1 if values.max() <= 1 else 255
        levels = np.rint(values.clip(0, white) * (255 / white))
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow leads from La to RGBA by way of LA only
            image = image.convert("LA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def tile_grid(width, height, *, tile=448, max_tiles=12, min_tiles=1):
    """(columns, rows) of the grid whose shape is nearest to the picture's.

    Shapes are compared by columns / rows. Of grids equally near, a larger one wins if the picture has more
    than half of its pixels. 800 x 800 pixels are as square as 1 x 1, 2 x 2 and 3 x 3 tiles of 448:
        2 x 2 has 802816 pixels, half are 401408, the picture has 640000: it beats 1 x 1
        3 x 3 has 1806336, half are 903168: too few, so it stays at (2, 2)

    Source: upstream vita/util/data_utils_video_audio_neg_patch.py.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture must have width and height of at least 1, got {width} x {height}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}")
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"expected 1 <= min_tiles <= max_tiles, got {min_tiles} and {max_tiles}")
    grids = {
        (columns, rows)
        for most in range(min_tiles, max_tiles + 1)
        for columns in range(1, most + 1)
        for rows in range(1, min(most, max_tiles // columns) + 1)
        if columns * rows >= min_tiles
    }
    best, nearest = (1, 1), float("inf")
    # quirk: grids of as many tiles stand in the order of CPython's set, filled in just this way. That decides
    # nothing unless min_tiles > 1: were a picture equally far from a x b and from a wider c x d with as many
    # tiles, then a x d, which has fewer, would lie between the two and be nearer.
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        enough = width * height > 0.5 * tile * tile * columns * rows
        if distance < nearest or (distance == nearest and enough):
            best, nearest = (columns, rows), distance
    return best


def load_tiles(source, *, tile=448, max_tiles=12, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """A picture stretched to its grid and cut: tiles row by row, then a thumbnail if there are several.

    Shapes: -> [N, 3, E, E] float32, N = columns x rows, and one more if that is more than 1
    Raises: as `open_image` and `tile_grid`.
    """
    image = open_image(source)
    columns, rows = tile_grid(*image.size, tile=tile, max_tiles=max_tiles)
    whole = _pixels(image.resize((columns * tile, rows * tile)), mean, std)  # [3, Y, X]
    tiles = whole.reshape(3, rows, tile, columns, tile)  # [3, R, E, C, E]
    tiles = tiles.permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, tile, tile)  # [N, 3, E, E]
    if len(tiles) == 1:
        return tiles
    thumbnail = _pixels(image.resize((tile, tile)), mean, std)  # [3, E, E]
    return torch.cat([tiles, thumbnail[None]])


def load_square(source, *, tile=448, fit="crop", mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """A picture as one tile, not stretched: its middle (``crop``), or on a square of the mean colour (``pad``).

    Shapes: -> [1, 3, E, E] float32
    Raises: as `open_image`; and ValueError for a strip too thin to be resized whole.
    Source: upstream vita/util/mm_utils.py and CLIPImageProcessor of transformers.
    """
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit must be 'crop' or 'pad', got {fit!r}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}")
    image = open_image(source)
    (width, height), short, long = image.size, min(image.size), max(image.size)
    if (long * long if fit == "pad" else tile * tile * long // short) > MOST_PIXELS:
        raise ValueError(f"{width} x {height} is too long a strip for fit={fit!r}: cut it first, or use load_tiles")
    if fit == "pad":
        from PIL import Image

        padded = Image.new("RGB", (long, long), tuple(int(m * 255) for m in mean))
        padded.paste(image, ((long - width) // 2, (long - height) // 2))
        square = padded.resize((tile, tile))
    else:
        width, height = tile * width // short, tile * height // short
        left, top = (width - tile) // 2, (height - tile) // 2
        square = image.resize((width, height)).crop((left, top, left + tile, top + tile))
    return _pixels(square, mean, std)[None]


def _pixels(image, mean, std):
    """An RGB picture -> [3, Y, X] float32, 0 to 255 brought to 0 to 1 and normalised by channel."""
    pixels = torch.from_numpy(np.array(image))  # [Y, X, 3]
    pixels = pixels.permute(2, 0, 1).float() / 255  # [3, Y, X]
    mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)  # [3, 1, 1]
    std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)  # [3, 1, 1]
    return (pixels - mean) / std
