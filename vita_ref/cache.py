"""The KV cache: keys and values of all positions so far. Nothing else stores the current length.

A forward pass writes each layer's new keys and values behind the filled part, and increases ``length`` once, at its end.
A pass that fails in between leaves the length unchanged. The cache also stores for each row which columns are padding,
and the position id of each column. These give the next position id of every row.

L decoder layers, B batch rows, G key/value heads, S new positions, T cached and new positions, K head size.

Test: ``pytest tests/test_cache.py``
"""

import torch
from torch.nn.functional import pad

GROWTH = 512  # without a limit, the capacity is a multiple of this; the first pass allocates exactly what it needs


class KVCache:
    """Keys and values [L, B, G, capacity, K], filled from the left.

    With ``max_length=None`` the capacity grows in steps. Otherwise it is ``max_length``, and writing more is an error.
    """

    def __init__(
        self, num_layers: int, batch_size: int, num_kv_heads: int, max_length: int | None, head_dim: int,
        dtype: torch.dtype | None = None, device: torch.device | str | None = None,
    ):  # fmt: skip
        self.limit, self.length = max_length, 0
        self.padded = False  # whether any filled column is padding
        shape = (num_layers, batch_size, num_kv_heads, max_length or 0, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # [L, B, G, capacity, K]
        self.values = torch.empty_like(self.keys)  # [L, B, G, capacity, K]
        self.real = torch.zeros(batch_size, shape[3], dtype=torch.bool, device=device)  # [B, capacity]
        self.positions = torch.zeros(batch_size, shape[3], dtype=torch.long, device=device)  # [B, capacity]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes [B, G, S, K] behind the filled part and returns views of all columns, [B, G, T, K].

        Raises: ValueError if the shapes differ from the cache's, or there are more columns than the limit.
        """
        end = self.length + keys.shape[2]
        expected = (*self.keys.shape[1:3], keys.shape[2], self.keys.shape[4])
        if tuple(keys.shape) != expected or keys.shape != values.shape:
            got = f"{list(keys.shape)} and {list(values.shape)}"
            raise ValueError(f"the cache takes keys and values of {list(expected)}, got {got}")
        self.reserve(end)
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n: int, real: torch.Tensor | None = None, positions: torch.Tensor | None = None) -> None:
        """Adds ``n`` to the length, after every layer has written ``n`` columns.

        Shapes (S = n): real [B, S] bool, None if no column is padding; positions [B, S] long, None continues the count.
        """
        end = self.length + n
        self.reserve(end)
        if positions is None:
            positions = self.next_positions[:, None] + torch.arange(n, device=self.positions.device)  # [B, S]
        self.positions[:, self.length : end] = positions
        self.real[:, self.length : end] = True if real is None else real
        self.padded = self.padded or real is not None
        self.length = end

    def truncate(self, length: int) -> None:
        """Removes all columns but the first ``length``."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of length {self.length} cannot be truncated to {length}")
        self.length = length
        self.padded = self.padded and length > 0

    @property
    def mask(self) -> torch.Tensor:
        """Which filled columns are not padding, [B, T] bool."""
        return self.real[:, : self.length]

    @property
    def next_positions(self) -> torch.Tensor:
        """The position id of each row's next token, [B] long."""
        if self.length == 0:
            return self.positions.new_zeros(len(self.positions))  # [B]
        columns = torch.arange(1, self.length + 1, device=self.real.device)  # [T]
        last = (self.mask * columns).amax(1)  # [B]
        used = self.positions.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0]  # [B]
        return torch.where(last > 0, used + 1, 0)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values, filled or not."""
        return self.keys.nbytes + self.values.nbytes

    def __getitem__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, the filled part: each [B, G, T, K]."""
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]

    def reserve(self, needed):
        """Allocates memory, if necessary, for ``needed`` columns in all.

        Raises: ValueError if the limit is lower.
        """
        if needed <= self.keys.shape[3]:
            return
        if self.limit is not None:
            raise ValueError(
                f"the cache is full: it holds {self.length} of at most {self.limit} positions, "
                f"and there is no space for {needed - self.length} more"
            )
        capacity = -(-needed // GROWTH) * GROWTH if self.length else needed
        added = capacity - self.keys.shape[3]
        self.keys, self.values = pad(self.keys, (0, 0, 0, added)), pad(self.values, (0, 0, 0, added))
        self.real, self.positions = pad(self.real, (0, added)), pad(self.positions, (0, added))
