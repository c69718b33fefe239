"""The check of lesson 7, a picture into tiles."""

import torch
from PIL import Image

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref import image


def grid(width, height, tile, max_tiles):
    return image.tile_grid(width, height, tile=tile, max_tiles=max_tiles)


def normalise(pixels, mean, std):
    return image._normalise(Image.fromarray(pixels.numpy()), mean.tolist(), std.tolist())


def cut(pixels, tile):
    """As `load_tiles` cuts: by the package's own code, on a picture that needs no stretching, one channel at a time."""
    _, height, width = pixels.shape
    out = []
    for channel in range(3):
        numbers = torch.arange(height * width).view(height, width)
        shown = torch.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).to(torch.uint8)
        tiles = image.load_tiles(shown.numpy(), tile=tile, max_tiles=64, mean=(0.0, 0, 0), std=(1.0, 1, 1))
        tiles = (tiles[:-1] if len(tiles) > 1 else tiles) * 255
        order = (tiles * torch.tensor([1.0, 256, 65536]).view(3, 1, 1)).sum(1).round().long()
        out.append(pixels[channel].flatten()[order])
    return torch.stack(out, 1)


MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SIZES = [(800, 600), (600, 800), (448, 448), (3000, 400), (100, 1000), (1000, 330), (1920, 1080), (1080, 1920), (500, 260), (137, 305), (174, 100)]


def some_bytes(height, width):
    return torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def cases():
    gray = torch.full((1, 1, 3), 128, dtype=torch.uint8)
    return [
        Case("800 x 600 gives 4 columns and 3 rows", "grid", lambda my: tuple(my.grid(800, 600, 448, 12)), (4, 3)),
        Case("800 x 800, where three grids are equally near", "grid", lambda my: tuple(my.grid(800, 800, 448, 12)), (2, 2)),
        Case("a small square stays one tile", "grid", lambda my: tuple(my.grid(300, 300, 448, 12)), (1, 1)),
        Case("one tile at most", "grid", lambda my: tuple(my.grid(800, 600, 448, 1)), (1, 1)),
        Case("other pictures, at most 12 tiles", "grid", lambda my: [tuple(my.grid(*size, 448, 12)) for size in SIZES]),
        Case("other pictures, at most 6 tiles of 112", "grid", lambda my: [tuple(my.grid(*size, 112, 6)) for size in SIZES]),
        Case("the byte 128 in three channels", "normalise", lambda my: my.normalise(gray, MEAN, STD),
             ((128 / 255 - MEAN) / STD).view(3, 1, 1)),
        Case("2 rows of 3 pixels", "normalise", lambda my: my.normalise(some_bytes(2, 3), MEAN, STD)),
        Case("one tile is the picture", "cut", lambda my: my.cut(randn(3, 4, 4), 4), randn(1, 3, 4, 4)),
        Case("2 columns and 3 rows of tiles of 2 x 2", "cut", lambda my: my.cut(randn(3, 6, 4), 2)),
    ]  # fmt: skip


def grids(max_tiles):
    every = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if c * r <= max_tiles]
    return sorted(every, key=lambda g: g[0] * g[1])


def choose(width, height, tile, max_tiles, ratio=lambda c, r: c / r, share=0.5, later=None):
    best, nearest = (1, 1), float("inf")
    for c, r in grids(max_tiles):
        distance = abs(width / height - ratio(c, r))
        enough = width * height > share * tile * tile * c * r if later is None else later
        if distance < nearest or distance == nearest and enough:
            best, nearest = (c, r), distance
    return best


def chw(x, mean, std):
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    return (x.permute(2, 0, 1).float() / 255 - mean) / std


def tiles_of(x, tile):
    return x.unflatten(1, (-1, tile)).unflatten(3, (-1, tile))  # [3, rows, tile, columns, tile]


LESSON = Lesson(
    7, "tiles", "a picture into tiles", {"grid": grid, "normalise": normalise, "cut": cut}, cases,
    (
        Mistake("rows and columns swapped", "the result is (rows, columns).", "return the columns first: (columns, rows).",
                {"grid": lambda *a: grid(*a)[::-1]}),
        Mistake("height and width swapped", "the ratio height / width was compared with columns / rows.",
                "compare width / height with columns / rows.",
                {"grid": lambda w, h, tile, n: choose(h, w, tile, n)}),
        Mistake("the first of equally near grids", "a large square picture stays one tile.",
                "let a later grid replace an equally near one if the picture has more than half of its pixels.",
                {"grid": lambda *a: choose(*a, later=False)}),
        Mistake("the largest of equally near grids", "a small picture is blown up to many tiles.",
                "let a later grid replace an equally near one only if the picture has more than half of its pixels.",
                {"grid": lambda *a: choose(*a, later=True)}),
        Mistake("all of the grid's pixels needed", "half of them are enough.", "compare with 0.5 * tile * tile * columns * rows.",
                {"grid": lambda *a: choose(*a, share=1.0)}),
        Mistake("channels cut out by view", "a view puts the numbers in the wrong places; it does not move the dimension.",
                "move the channels to the front with permute.",
                {"normalise": lambda x, m, s: (x.reshape(3, *x.shape[:2]).float() / 255 - m.view(3, 1, 1)) / s.view(3, 1, 1)}),
        Mistake("height and width swapped in the pixels", "the picture lies on its side.", "the order is [3, Y, X].",
                {"normalise": lambda x, m, s: chw(x, m, s).mT}),
        Mistake("not divided by 255", "mean and deviation are those of pixels from 0 to 1.", "divide the bytes by 255 first.",
                {"normalise": lambda x, m, s: chw(x.float() * 255, m, s)}),
        Mistake("deviation forgotten", "only the mean was subtracted.", "divide by the standard deviation of the channel.",
                {"normalise": lambda x, m, s: chw(x, m, torch.ones(3))}),
        Mistake("mean forgotten", "only the deviation was divided by.", "subtract the mean of the channel first.",
                {"normalise": lambda x, m, s: chw(x, torch.zeros(3), s)}),
        Mistake("tiles column by column", "tile 1 is below tile 0. It should be beside it.", "let the rows be the outer loop.",
                {"cut": lambda x, tile: tiles_of(x, tile).permute(3, 1, 0, 2, 4).flatten(0, 1)}),
        Mistake("tiles cut by one reshape", "a reshape alone cuts strips of numbers, not squares.",
                "split both dimensions (rows, tile, columns, tile), then permute, then reshape.",
                {"cut": lambda x, tile: x.reshape(-1, 3, tile, tile)}),
        Mistake("tiles on their side", "rows and columns are swapped within each tile.", "keep Y before X within a tile.",
                {"cut": lambda x, tile: cut(x, tile).mT}),
    ),
    {"grid": "sort all grids of at most max_tiles by their number of tiles; keep the best so far; replace it by one that is nearer, "
             "or as near if the picture has more than half of its pixels.",
     "normalise": "permute to [3, Y, X], float, / 255, minus mean, / std, the last two as [3, 1, 1].",
     "cut": "reshape to [3, rows, tile, columns, tile]; permute to [rows, columns, 3, tile, tile]; join the first two."},
    ("tiles",),
)  # fmt: skip
