"""The check of lesson 3, causal grouped attention."""

import math

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.decoder import eager_attention
from vita_ref.masks import Mask


def visible(real, s):
    past = real.shape[1] - s
    return Mask(past, real).rows(0, s)


def attention(q, k, v, mask):
    return eager_attention(q, k, v, Mask(allowed=mask))[0]


REAL = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()


def qkv(b=2, h=4, g=2, s=5, t=5, k=8):
    return randn(b, h, s, k, seed=1), randn(b, g, t, k, seed=2), randn(b, g, t, k, seed=3)


def cases():
    q, k0, k1 = ([x, 0.0, 0.0, 0.0] for x in (2.0, math.log(3), 0.0))
    example = torch.tensor(q).view(1, 1, 1, 4), torch.tensor([k0, k1]).view(1, 1, 2, 4)
    values = torch.tensor([[4.0, 0, 0, 0], [8.0, 0, 0, 0]]).view(1, 1, 2, 4)
    see = torch.ones(2, 1, 5, 5).tril().bool()
    one = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 1, 2) + 1
    heads = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    return [
        Case("the text's example: four columns, the last two are queries", "visible",
             lambda my: my.visible(torch.ones(1, 4).bool(), 2), torch.tensor([[[[1, 1, 1, 0], [1, 1, 1, 1]]]]).bool()),
        Case("the same with padding in column 0", "visible",
             lambda my: my.visible(torch.tensor([[0, 1, 1, 1]]).bool(), 2), torch.tensor([[[[0, 1, 1, 0], [0, 1, 1, 1]]]]).bool()),
        Case("three rows: no padding, padding on the left, padding on the right", "visible", lambda my: my.visible(REAL, 5)),
        Case("one new query behind four cached columns", "visible", lambda my: my.visible(REAL, 1)),
        Case("the text's example: weights 0.75 and 0.25", "attention",
             lambda my: my.attention(*example, values, torch.ones(1, 1, 1, 2).bool()), torch.tensor([5.0, 0, 0, 0]).view(1, 1, 1, 4)),
        Case("a query that sees one key gets its value", "attention",
             lambda my: my.attention(qkv()[0], *(x[:, :, :].clone() for x in qkv()[1:]), torch.eye(5).bool().expand(2, 1, 5, 5)),
             qkv()[2].repeat_interleave(2, 1)),
        Case("query heads 0 and 1 use value head 0, 2 and 3 use head 1", "attention",
             lambda my: my.attention(one, heads, heads, torch.ones(1, 1, 1, 1).bool())[0, :, 0, 0],
             torch.tensor([10.0, 10.0, 20.0, 20.0])),
        Case("five queries of two rows, causal", "attention", lambda my: my.attention(*qkv(), see)),
        Case("with padding, as visible gives it", "attention", lambda my: my.attention(*qkv(b=3), my.visible(REAL, 5))),
        Case("two queries behind three cached columns", "attention",
             lambda my: my.attention(*qkv(b=3, s=2), my.visible(REAL[:, :], 2))),
    ]  # fmt: skip


def scores(q, k, mask, scale, low=-math.inf):
    return (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale).masked_fill(~mask, low)


def weighted(weights, v):
    return weights @ v.repeat_interleave(weights.shape[1] // v.shape[1], 1)


def causal(real, s, below=0, past=None):
    past = real.shape[1] - s if past is None else past
    return torch.ones(s, real.shape[1]).tril(past + below).bool()[None, None].expand(len(real), 1, -1, -1)


def both(real, s, below=0, past=None):
    own = torch.ones(s, real.shape[1]).tril(real.shape[1] - s).triu(real.shape[1] - s).bool()
    return causal(real, s, below, past) & real[:, None, None] | own


def scaled(scale):
    return {"attention": lambda q, k, v, mask: weighted(scores(q, k, mask, scale(q.shape[-1])).softmax(-1), v)}


def masked_later(q, k, v, mask):
    return weighted(scores(q, k, mask | True, q.shape[-1] ** -0.5).softmax(-1) * mask, v)


def over_queries(q, k, v, mask):
    return weighted(scores(q, k, mask, q.shape[-1] ** -0.5, -1e9).softmax(-2), v)


def cycled(q, k, v, mask):
    n = q.shape[1] // k.shape[1]
    return attention(q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1), mask)


def inverted(q, k, v, mask):
    return attention(q, k, v, ~mask)


LESSON = Lesson(
    3, "attention", "causal grouped attention", {"visible": visible, "attention": attention}, cases,
    (
        Mistake("mask off by one: a query does not see itself", "the comparison is 'before' and has to be 'up to'.",
                "a query at column c sees the keys 0 to c, c included.",
                {"visible": lambda real, s: causal(real, s, -1) & real[:, None, None]}),
        Mistake("mask off by one: a query sees the next column", "it sees what it has to predict.",
                "a query at column c sees no key behind c.", {"visible": lambda real, s: both(real, s, 1)}),
        Mistake("queries counted from the first column", "the queries are the last s columns, but their numbers began at 0.",
                "the first query has the column T - S.",
                {"visible": lambda real, s: causal(real, s, past=0) & real[:, None, None]}),
        Mistake("no causal mask", "a query sees the columns behind it.", "combine real with the comparison key <= query.",
                {"visible": lambda real, s: real[:, None, None].expand(-1, 1, s, -1)}),
        Mistake("padding attended", "padding columns are seen as if they were real.",
                "a key must also be real, unless the query is that column itself.",
                {"visible": lambda real, s: causal(real, s)}),
        Mistake("padding columns see each other", "a padding column sees the real columns before it and itself, and no other padding.",
                "a key that is padding is seen by its own column alone.",
                {"visible": lambda real, s: causal(real, s) & (real[:, None, None] | ~real[:, None, -s:, None])}),
        Mistake("a padding column sees nothing", "its softmax is over nothing, which gives NaN.",
                "let every column see itself, padding or not.",
                {"visible": lambda real, s: causal(real, s) & real[:, None, None]}),
        Mistake("padding queries see real columns only as keys", "rows and columns of real were swapped: a padding query sees "
                "nothing, and real queries see padding.", "real belongs to the keys, the last dimension.",
                {"visible": lambda real, s: causal(real, s) & real[:, None, -s:, None]}),
        Mistake("scale forgotten", "the scores are not divided by sqrt(K), so the weights are too sharp.",
                "divide the scores by the square root of K before the softmax.", scaled(lambda k: 1.0)),
        Mistake("scaled by K instead of its root", "the weights are too flat.", "divide the scores by sqrt(K).",
                scaled(lambda k: 1 / k)),
        Mistake("masked after the softmax", "the weights of a query do not sum to one any more.",
                "fill the scores with minus infinity where the mask is False, and take the softmax afterwards.",
                {"attention": masked_later}),
        Mistake("masked scores set to zero", "a score of 0 still gets a weight.", "use minus infinity, not 0.",
                {"attention": lambda q, k, v, mask: weighted(scores(q, k, mask, q.shape[-1] ** -0.5, 0.0).softmax(-1), v)}),
        Mistake("mask inverted", "it hides what a query may see.", "fill where the mask is False.", {"attention": inverted},
                ({"attention": lambda q, k, v, mask: weighted(scores(q, k, ~mask, q.shape[-1] ** -0.5).softmax(-1), v)},)),
        Mistake("mask not used", "every query sees every key.", "fill the scores with minus infinity where the mask is False.",
                {"attention": lambda q, k, v, mask: weighted(scores(q, k, mask | True, q.shape[-1] ** -0.5).softmax(-1), v)}),
        Mistake("key/value heads not repeated", "there are H query heads, but only G heads of keys and values.",
                "repeat each key/value head H/G times in a row, as repeat_interleave does.",
                {"attention": lambda q, k, v, mask: (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf).softmax(-1) @ v}),
        Mistake("softmax over the queries", "the weights of a key sum to one; those of a query should.",
                "take the softmax over the last dimension, the keys.", {"attention": over_queries}),
        Mistake("heads share the wrong keys", "query heads 0 and G share a head. Neighbours 0 and 1 should.",
                "repeat each key/value head H/G times in a row, as repeat_interleave does.", {"attention": cycled}),
    ),
    {"visible": "number the keys 0 to T-1 and the queries T-S to T-1; a key is visible if it is real and not behind the "
                "query, or if it is the query's own column; add the dimension of the heads.",
     "attention": "repeat each key/value head H/G times; scores q @ k transposed, divided by sqrt(K); minus infinity where the "
                  "mask is False; softmax over the keys; weights @ v."},
    ("attention",),
)  # fmt: skip
