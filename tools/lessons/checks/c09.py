"""The check of lesson 9, pixel shuffle and projector."""

import math
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref import vision


def pixel_shuffle(x, factor):
    return vision.pixel_shuffle(x, factor)


def image_rows(x, factor, scale, w1, b1, w2, b2):
    tower = vision.VisionTower.__new__(vision.VisionTower)
    torch.nn.Module.__init__(tower)
    side = math.isqrt(x.shape[1] - 1)
    tower.config = SimpleNamespace(patch_size=1, num_channels=3, keep_class_token=False, feature_scale=scale, shuffle=factor)
    tower.embeddings, tower.encoder = (lambda _: x), (lambda x: x)
    projector = vision.Projector(w1.shape[1], len(b2))
    projector[0], projector[2] = torch.nn.Linear(*w1.shape[::-1]), torch.nn.Linear(*w2.shape[::-1])
    for linear, weight, bias in ((projector[0], w1, b1), (projector[2], w2, b2)):
        linear.weight.data, linear.bias.data = weight, bias
    return projector(tower(torch.zeros(len(x), 3, side, side))).detach()


def weights():
    return randn(5, 12, seed=1), randn(5, seed=2), randn(4, 5, seed=3), randn(4, seed=4)


def one(value):
    """A class token and one patch; matrices of one number."""
    return torch.tensor([[[99.0], [value]]]), torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1), torch.zeros(1)


def cases():
    numbers = torch.arange(16.0).view(1, 4, 4, 1)
    x, w1, b1, w2, b2 = one(2.0)
    return [
        Case("the grid of the text", "pixel_shuffle", lambda my: my.pixel_shuffle(numbers, 2).flatten(1, 2),
             torch.tensor([[[0.0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]])),
        Case("a factor of 1 changes nothing", "pixel_shuffle", lambda my: my.pixel_shuffle(numbers, 1), numbers),
        Case("4 rows, 6 columns, 3 channels, two pictures", "pixel_shuffle", lambda my: my.pixel_shuffle(randn(2, 4, 6, 3), 2)),
        Case("one patch: 2 * 0.5 = 1, and GELU(1) = 0.8413", "image_rows", lambda my: my.image_rows(x, 1, 0.5, w1, b1, w2, b2),
             torch.full((1, 1, 1), (1 + math.erf(1 / math.sqrt(2))) / 2)),
        Case("a grid of 4 x 4, E = 3", "image_rows", lambda my: my.image_rows(randn(2, 17, 3), 2, 0.5, *weights())),
    ]  # fmt: skip


def shuffled(order):
    """The shuffle with the five parts (row, row in square, column, column in square, channel) in another order."""

    def wrong(x, factor):
        n, rows, columns, _ = x.shape
        parts = x.view(n, rows // factor, factor, columns // factor, factor, -1)
        return parts.permute(0, *order).reshape(n, rows // factor, columns // factor, -1)

    return {"pixel_shuffle": wrong}


def rows(x, factor, scale, w1, b1, w2, b2, drop=lambda x: x[:, 1:], gelu=F.gelu, after=False, shuffle=pixel_shuffle):
    side = math.isqrt(x.shape[1] - 1)
    x = drop(x).unflatten(1, (side, side)) * (1 if after else scale)
    hidden = gelu(shuffle(x, factor).flatten(1, 2) @ w1.T + b1) @ w2.T + b2
    return hidden * (scale if after else 1)


def with_rows(**options):
    return {"image_rows": lambda *a: rows(*a, **options)}


def strip(x, factor):
    return x.reshape(len(x), x.shape[1] // factor, x.shape[2] // factor, -1)


LESSON = Lesson(
    9, "projector", "pixel shuffle and projector", {"pixel_shuffle": pixel_shuffle, "image_rows": image_rows}, cases,
    (
        Mistake("height and width swapped in the shuffle", "the order is (column, row, channel): lower left comes second.",
                "the parts come upper left, upper right, lower left, lower right.", shuffled((1, 3, 4, 2, 5))),
        Mistake("channels in front", "the order is (channel, row, column). The channels of a patch should stay together.",
                "let the channels be the last part of the joined dimension.", shuffled((1, 3, 5, 2, 4))),
        Mistake("strips instead of squares", "four patches in a row were joined, because a reshape alone moves nothing.",
                "split rows and columns by the factor, bring the two factors together with transpose, then join.",
                {"pixel_shuffle": strip, "image_rows": lambda *a: rows(*a, shuffle=strip)}),
        Mistake("the grid transposed", "the squares are in the order column by column.", "keep the rows outside.",
                shuffled((3, 1, 2, 4, 5)) | shuffled((3, 1, 2, 4, 5))),
        Mistake("the last patch dropped for the class token", "row 0 is the class token, and you left out the last row.",
                "take the rows from 1 on.", with_rows(drop=lambda x: x[:, :-1])),
        Mistake("feature scale forgotten", "the features are twice as large as those that the projector was trained on.",
                "multiply by the scale before the projector.", {"image_rows": lambda x, f, s, *w: image_rows(x, f, 1.0, *w)}),
        Mistake("scaled after the projector", "the projector is not linear, so it matters on which side the scale stands.",
                "multiply by the scale before the first linear map.", with_rows(after=True)),
        Mistake("GELU by tanh", "the approximation differs in the fourth digit. The weights were trained with erf.",
                "use the exact GELU.", with_rows(gelu=lambda x: F.gelu(x, approximate="tanh"))),
        Mistake("ReLU instead of GELU", "negative numbers are not quite zero after a GELU.", "use the exact GELU.", with_rows(gelu=F.relu)),
        Mistake("GELU forgotten", "two linear maps without anything between them are one.", "put the GELU between them.",
                with_rows(gelu=lambda x: x)),
    ),
    {"pixel_shuffle": "view as [N, rows/f, f, columns/f, f, E]; swap dimensions 2 and 3; join the last three.",
     "image_rows": "drop row 0; multiply by the scale; give it the grid [N, side, side, E]; shuffle; join rows and columns to I; linear, "
                   "GELU, linear."},
    ("projector",),
)  # fmt: skip
