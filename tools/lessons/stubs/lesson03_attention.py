"""Lesson 3: causal grouped attention.

Attention lets a position fetch something from others. Each position has a query ("what do I look for"), a key ("what do I
have") and a value ("what do I give"). The score of a query and a key is their dot product, divided by sqrt(K): a sum of K
products grows with sqrt(K), and a softmax of large scores would be all or nothing. The softmax over the keys turns a
query's scores into weights that sum to one. The result is the weighted mean of the values.

Which keys may a query see? In a language model those up to its own position ("causal"): the future is what it has to
predict. The queries are the last S of T columns, because earlier columns may be in a cache and bring no query. A row of a
batch may have padding columns, and no other column sees them. A padding column sees the real columns before it, and itself:
a softmax over nothing would be NaN. What may not be seen gets the score minus infinity (or the most negative number), so
that its weight is 0.

There are H query heads and G key/value heads, with G a divisor of H. H/G neighbouring query heads share one key/value head:
with H = 4 and G = 2 the query heads 0 and 1 use head 0, the query heads 2 and 3 use head 1. So the cache has only G heads.

    q  = [2, 0, 0, 0]        k0 = [1.0986, 0, 0, 0]     k1 = [0, 0, 0, 0]          K = 4, sqrt(K) = 2
    scores    2 * 1.0986 / 2 = 1.0986 = ln 3, and 0
    softmax   3 / (3 + 1) and 1 / (3 + 1)               weights 0.75 and 0.25
    v0 = [4, 0, 0, 0], v1 = [8, 0, 0, 0]                result [0.75 * 4 + 0.25 * 8, 0, 0, 0] = [5, 0, 0, 0]

    T = 4 columns, the last S = 2 are queries      the same, and column 0 is padding
               key 0 1 2 3                                    key 0 1 2 3
    query 2:       1 1 1 0                         query 2:       0 1 1 0
    query 3:       1 1 1 1                         query 3:       0 1 1 1

To do: write `visible` and `attention`. Then run:  python tools/lessons/run.py 3
"""

import torch


def visible(real: torch.Tensor, s: int) -> torch.Tensor:
    """Which keys each query sees.

    real [B, T] bool, False on padding; the queries are the last s columns -> [B, 1, S, T] bool.
    """
    raise NotImplementedError


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """q [B, H, S, K]; k and v [B, G, T, K]; mask [B, 1, S, T] bool, True where a query sees a key -> [B, H, S, K]."""
    raise NotImplementedError
