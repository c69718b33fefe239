"""The check of lesson 1, RMSNorm."""

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.decoder import RMSNorm


def rms_norm(x, weight, eps):
    norm = RMSNorm(len(weight), eps)
    norm.weight.data = weight
    return norm(x).detach()


def cases():
    weight = torch.linspace(0.5, 2, 6)
    return [
        Case("the example of the text", "rms_norm",
             lambda my: my.rms_norm(torch.tensor([[[3.0, 4.0]]]), torch.tensor([1.0, 2.0]), 0.0),
             torch.tensor([[[3 / 12.5**0.5, 8 / 12.5**0.5]]])),
        Case("after the norm, the mean square of each row is 1", "rms_norm",
             lambda my: my.rms_norm(3 + randn(2, 3, 6), torch.ones(6), 0.0).square().mean(-1), torch.ones(2, 3)),
        Case("a row that is ten times as long gives the same", "rms_norm",
             lambda my: my.rms_norm(10 * randn(2, 3, 6), weight, 0.0), rms_norm(randn(2, 3, 6), weight, 0.0)),
        Case("small rows, for which eps matters", "rms_norm", lambda my: my.rms_norm(0.01 * randn(2, 3, 6), weight, 1e-3)),
        Case("a row of zeros stays zero", "rms_norm",
             lambda my: my.rms_norm(torch.zeros(1, 1, 6), weight, 1e-6), torch.zeros(1, 1, 6)),
        Case("bfloat16 in, bfloat16 out, with the accuracy of float32 between", "rms_norm",
             lambda my: my.rms_norm(randn(2, 4, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16), 1e-6)),
        Case("bfloat16: [0.2, 1.4] is rounded to [0.2002, 1.3984], and then multiplied by 1.125", "rms_norm",
             lambda my: my.rms_norm(torch.tensor([[[1.0, 7.0]]]).bfloat16(), torch.full((2,), 1.125).bfloat16(), 0.0),
             torch.tensor([[[0.2255859375, 1.5703125]]]).bfloat16(), 1e-4),
    ]  # fmt: skip


def layer_norm(x, weight, eps):
    return rms_norm(x - x.mean(-1, keepdim=True), weight, eps)


def in_its_dtype(x, weight, eps):
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def divided_in_its_dtype(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


LESSON = Lesson(
    1, "rmsnorm", "RMSNorm", {"rms_norm": rms_norm}, cases,
    (
        Mistake("the mean subtracted", "that is LayerNorm. RMSNorm leaves the mean where it is.",
                "leave the mean of the row out: use the squares of x itself.", {"rms_norm": layer_norm}),
        Mistake("sum instead of mean", "the squares are added up and not divided by D.",
                "take the mean of the squares over the last dimension.",
                {"rms_norm": lambda x, weight, eps: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps) * weight}),
        Mistake("weight forgotten", "the rows have the right length, but no channel is scaled.",
                "multiply by the weight [D] at the end.",
                {"rms_norm": lambda x, weight, eps: rms_norm(x, torch.ones_like(weight), eps)}),
        Mistake("normalised over the wrong dimension", "the mean runs over positions, so a row depends on its neighbours.",
                "take the mean over the last dimension, and keep it as a dimension of size 1.",
                {"rms_norm": lambda x, weight, eps: x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps) * weight}),
        Mistake("normalised over everything", "one mean for the whole tensor: rows influence each other.",
                "take the mean over the last dimension alone, and keep it as a dimension of size 1.",
                {"rms_norm": lambda x, weight, eps: x * torch.rsqrt(x.square().mean() + eps) * weight}),
        Mistake("eps forgotten", "a row of zeros is divided by zero, and small rows become too long.",
                "add eps to the mean square, before the root.",
                {"rms_norm": lambda x, weight, eps: rms_norm(x, weight, 0.0)}),
        Mistake("eps outside the root", "eps is added to the root mean square and not to the mean square.",
                "add eps before you take the root.",
                {"rms_norm": lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight}),
        Mistake("the mean's dimension lost", "the mean over D has the shape [B, S], which does not fit x [B, S, D].",
                "keep the dimension over which the mean is taken, with size 1 (keepdim=True).",
                {"rms_norm": lambda x, weight, eps: x / (x.square().mean(-1) + eps).sqrt() * weight}),
        Mistake("no root", "the row is divided by its mean square.", "divide by the root of the mean square.",
                {"rms_norm": lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True) + eps) * weight}),
        Mistake("norm in bfloat16", "the squares were rounded to bfloat16 before they were used.",
                "convert x to float32 first, and the normalised row back to the dtype of x.", {"rms_norm": in_its_dtype},
                ({"rms_norm": divided_in_its_dtype},)),
        Mistake("rounded after the weight", "the normalised row was multiplied by the weight in float32, and rounded once.",
                "convert the normalised row to the dtype of x, and multiply by the weight then.",
                {"rms_norm": lambda x, weight, eps: rms_norm(x.float(), weight.float(), eps).to(x.dtype)}),
        Mistake("divided by the standard deviation", "the mean was subtracted from the squares, and they were divided by D - 1.",
                "divide by the root of the mean of the squares of x itself.",
                {"rms_norm": lambda x, weight, eps: x / x.std(-1, keepdim=True) * weight},
                ({"rms_norm": lambda x, weight, eps: x / (x.var(-1, keepdim=True) + eps).sqrt() * weight},)),
        Mistake("one added to the weight", "other models store the weight less one; this one does not.", "multiply by the weight as it is.",
                {"rms_norm": lambda x, weight, eps: rms_norm(x, 1 + weight, eps)}),
        Mistake("multiplied by the root", "the row was made longer, not shorter.", "divide by the root of the mean square.",
                {"rms_norm": lambda x, weight, eps: x * (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight}),
        Mistake("the result stays float32", "the norm has to give back the dtype that it was given.",
                "convert the normalised row to the dtype of x before you multiply by the weight.",
                {"rms_norm": lambda x, weight, eps: rms_norm(x.float(), weight.float(), eps)}),
    ),
    {"rms_norm": "convert to float32; square; mean over the last dimension with keepdim; add eps; root; divide; convert back "
                 "to the dtype of x; multiply by the weight."},
    ("norm",),
)  # fmt: skip
