"""Which keys a query may see, which columns are padding, and the position ids.

The rows of a batch are sequences, and its columns are positions. A row has padding columns on the left or on the right.
The first columns may be in the cache already.
A query sees the keys up to its own column that are not padding:

    two cached columns and two new ones     the same, and column 0 is padding
    query 2:   1 1 1 0                      0 1 1 0
    query 3:   1 1 1 1                      0 1 1 1

A padding column also sees itself. Otherwise its softmax would have no entry, which gives NaN. No other query sees it.

B batch rows, S new positions (columns), T cached and new positions, D decoder width.

Test: ``pytest tests/test_masks.py``
"""

from typing import NamedTuple

import torch


class Mask(NamedTuple):
    """What the queries of a pass may see. A large mask is never stored: `rows` computes it for a block of queries.

    Attributes:
        past: number of columns before the first query; None means that every query sees every key.
        real: [B, T] bool, False on padding; None means that no column is padding.
        allowed: [B, 1, S, T] bool, the whole mask. It replaces the two others.
    """

    past: int | None = None
    real: torch.Tensor | None = None
    allowed: torch.Tensor | None = None

    def rows(self, start, stop, device=None):
        """The mask of the queries ``start`` to ``stop``: [B or 1, 1, stop-start, keys] bool, or None if they see all.

        The keys end with the last of these queries.
        """
        if self.allowed is not None:
            return self.allowed[:, :, start:stop]
        if self.past is None or (self.real is None and stop - start == 1):
            return None
        keys = torch.arange(self.past + stop, device=device)  # [T]
        queries = keys[self.past + start :, None]  # [S, 1]
        if self.real is None:
            return (keys <= queries)[None, None]
        visible = (keys <= queries) & self.real[:, None, : len(keys)] | (keys == queries)  # [B, S, T]
        return visible[:, None]


SEE_ALL = Mask()


def new_columns(attention_mask, b, s, cache):
    """Which of the ``s`` new columns are not padding: [B, S] bool, or None if none of them is padding.

    ``attention_mask`` covers the new columns, or the cached and the new ones.
    Raises: ValueError for another shape, or if it differs from the cache in the cached columns.
    """
    if attention_mask is None:
        return None
    past = 0 if cache is None else cache.length
    if attention_mask.shape not in ((b, s), (b, past + s)):
        raise ValueError(f"attention_mask must be [{b}, {s}] or [{b}, {past + s}], got {list(attention_mask.shape)}")
    real = attention_mask.bool()  # [B, T]
    new = real[:, real.shape[1] - s :]  # [B, S]
    if real.is_meta:
        return new
    if real.shape[1] > s and not real[:, :past].equal(cache.mask):
        raise ValueError("attention_mask differs from the cache in the columns that are cached already")
    return None if real.all() else new


def all_columns(new, b, s, cache):
    """Which of the cached and new columns are not padding: [B, T] bool, or None if none of them is padding."""
    if cache is None or cache.length == 0:
        return new
    if new is None and not cache.padded:
        return None
    return torch.cat([cache.mask, cache.mask.new_ones(b, s) if new is None else new], 1)


def count_positions(new, start, b, s, device=None):
    """Position ids of the new columns, counted from ``start`` (0, or [B]) and 0 on padding: [B, S] long.

    Example: new = [[0, 1, 1]], start = 0 gives [[0, 0, 1]].
    """
    start = torch.as_tensor(start, device=device).view(-1, 1)
    if new is None:
        return (torch.arange(s, device=device) + start).expand(b, s)
    counted = new.long().cumsum(1) - 1 + start  # [B, S]
    return counted * new


def last_hidden(hidden, mask):
    """The hidden state of each row's last column that is not padding. Shapes: [B, S, D], [B, S] or None -> [B, D]."""
    if mask is None:
        return hidden[:, -1]
    columns = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)  # [S]
    last = (mask.bool() * columns).argmax(1)  # [B]
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
