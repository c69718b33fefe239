"""The codes that the vision tower learns to write and the decoder learns to read, before the two meet.

What a picture shows becomes fixed random rows at the tower's 16 positions: each position has the sum of the rows of what
is centred in its four patches, and every position has a row that says whether the picture is outside the world. A head
on the patches, thrown away after training, names what stands in each patch.

N pictures, V = 16 positions, D = 256. Test: ``pytest tests/tools/test_train.py``
"""

import numpy as np
import torch
from torch.nn import functional as F

from tools.demo.scene import COLOURS, MADE_UP, SIZES
from tools.demo.shapes import SHAPES, extent

WIDTH, GRID = 256, 8
COLOUR_ROWS, SHAPE_ROWS, SIZE_ROWS = slice(0, 8), slice(8, 14), slice(14, 17)
PRESENT, OFFSETS, ROWS = 17, slice(18, 20), 20  # of each of the four patches of a position
HEADS = (9, 7, 4)  # classes of the patch head: colour, shape, size; 0 is background


def _random_rows(count, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.05


CODES = _random_rows(1 + 4 * ROWS + 4 * 2 + 2, 7)
BLANK, TRAITS = CODES[0], CODES[1 : 1 + 4 * ROWS].view(4, ROWS, WIDTH)
PLACES, FLAGS = CODES[1 + 4 * ROWS : -2].view(4, 2, WIDTH), CODES[-2:]
OUTSIDE_FLAGS = {"none": FLAGS[0], "many": FLAGS[1]}
MADE_UP_TRAITS = _random_rows(4 * 2 * MADE_UP, 8).view(4, 2 * MADE_UP, WIDTH)  # colours, then shapes


def size_weights(radius):
    """How much an object is small, large and huge: one of them, or in a gap between two words some of both."""
    spans = list(SIZES.values())
    weights = [0.0, 0.0, 0.0]
    for i, (low, high) in enumerate(spans):
        if radius <= high or i == 2:
            share = 1.0 if i == 0 or radius >= low else (radius - spans[i - 1][1]) / (low - spans[i - 1][1])
            weights[i] = share
            if share < 1:
                weights[i - 1] = 1 - share
            return weights


def scene_codes(scenes, mixed=False):
    """What the vision tower is to write: codes [N, V, D] and which positions hold an object [N, V] bool.

    What has no name adds nothing or, ``mixed``, a random mixture of all names.
    """
    rows = torch.cat([TRAITS, MADE_UP_TRAITS], 1)
    half = GRID // 2
    traits_of = torch.zeros(len(scenes), half, half, *rows.shape[:2])
    places_of = torch.zeros(len(scenes), half, half, 4, 2)
    flags = torch.zeros(len(scenes), 1, WIDTH)
    for i, scene in enumerate(scenes):
        names = dict(scene.names)
        if scene.outside:
            flags[i] = OUTSIDE_FLAGS[scene.outside]
        for t in scene.things:
            x, y = int(t.x * GRID), int(t.y * GRID)
            cell = i, y // 2, x // 2, y % 2 * 2 + x % 2
            for part, row in trait_rows(t, names):
                if row is not None:
                    traits_of[(*cell, row)] += 1
                elif mixed:
                    traits_of[(*cell, part)] += torch.rand(part.stop - part.start).pow(3)
            traits_of[(*cell, SIZE_ROWS)] += torch.tensor(size_weights(t.radius))
            traits_of[(*cell, PRESENT)] += 1
            traits_of[(*cell, OFFSETS)] += torch.tensor([2 * (t.x * GRID - x) - 1, 2 * (t.y * GRID - y) - 1])
            places_of[cell] += torch.tensor([4 * t.x - 2, 4 * t.y - 2])
    codes = torch.einsum("nyxst,std->nyxd", traits_of, rows) + torch.einsum("nyxst,std->nyxd", places_of, PLACES)
    occupied = traits_of[..., PRESENT].sum(-1).flatten(1) > 0
    return codes.flatten(1, 2) + BLANK + flags, occupied


def trait_rows(thing, names):
    """(part of TRAITS, row) of its colour and of its shape; made-up names stand behind TRAITS, no name is None."""
    colour, shape = trait_numbers(thing)
    if thing.color in names:
        colour = ROWS + names[thing.color]
    if thing.shape in names:
        shape = ROWS + MADE_UP + names[thing.shape] - SHAPE_ROWS.start
    return (COLOUR_ROWS, colour), (SHAPE_ROWS, None if shape is None else SHAPE_ROWS.start + shape)


def trait_numbers(thing):
    """The numbers of its colour and shape; None where it has no name."""
    colour = list(COLOURS).index(thing.color) if thing.named else None
    return colour, None if thing.shape == "blob" else SHAPES.index(thing.shape)


def off(codes):
    """Codes about as far off as the vision tower will be."""
    return codes + 0.02 * torch.randn_like(codes)


def _without(rows):
    """The projection [D, D] that takes out whatever lies along some rows [..., D]."""
    basis, _ = torch.linalg.qr(torch.cat([rows.flatten(0, -2), FLAGS]).T)
    return torch.eye(WIDTH) - basis @ basis.T


IGNORED = {"colour": _without(TRAITS[:, COLOUR_ROWS]), "shape": _without(TRAITS[:, SHAPE_ROWS])}


def code_loss(features, codes, occupied, nameless=None):
    """Squared error in units of the codes' own spread; positions that hold an object count four times.

    ``nameless`` says what has no name in these pictures, "colour" or "shape": errors along its codes do not count,
    nor along those of being outside.
    """
    error = features.float() - codes
    if nameless:
        error = error @ IGNORED[nameless].to(error.device)
    return (error**2 * (1 + 3 * occupied[..., None])).mean() / 0.05**2


def patch_labels(scenes):
    """What stands in each patch: [N, GRID * GRID, 3] long of colour, shape and size, 0 for background, -100 for no name."""
    labels = np.zeros((len(scenes), GRID, GRID, 3), np.int64)
    y, x = np.mgrid[0:GRID, 0:GRID] / GRID + 0.5 / GRID
    for row, scene in zip(labels, scenes):
        for t in scene.things:
            # at a corner of four patches they all have it
            across, down = np.maximum(0.85 * t.radius / extent(scene.aspect), 0.71 / GRID)
            inside = ((x - t.x) / across) ** 2 + ((y - t.y) / down) ** 2 < 1
            numbers = (*trait_numbers(t), tuple(SIZES).index(t.size))
            row[inside] = [-100 if n is None else 1 + n for n in numbers]
    return torch.from_numpy(labels.reshape(len(scenes), -1, 3))


def patch_loss(scores, labels):
    parts = scores.float().split(HEADS, -1)
    return sum(F.cross_entropy(s.flatten(0, 1), labels[..., i].flatten()) for i, s in enumerate(parts))


def read_flags(features):
    """Which pictures are said to be outside: [N, 2] from features [N, V, D], about 1 where a flag is set."""
    readout = torch.linalg.pinv(CODES.T.double())[-2:].float().to(features.device)  # [2, D]
    return ((features.float() - BLANK.to(features.device)).mean(1)) @ readout.T
