"""Keys and values of the tokens seen so far: the one owner of position.

A forward pass writes each layer's new keys and values behind the filled part and moves ``length``
once, at its end; a pass that fails in between leaves the cache as it was. Beside them stand, row
by row, which columns hold real tokens and at which position id: batches may be padded on either
side and positions may be shared, and still the next token's position is known.

Test: ``pytest tests/test_cache.py``
"""

import torch

_GROWTH = 512  # columns added at a time where no limit is known; the first pass gets what it needs


class KVCache:
    """Keys and values [L, B, G, T, K] of a decoder, filled from the left.

    ``max_length=None`` grows in large steps; a number allocates once, and more is an error.
    """

    def __init__(self, num_layers, batch_size, num_kv_heads, max_length, head_dim, dtype=None, device=None):
        self.limit, self.length = max_length, 0
        self.padded = False  # whether any filled column is padding
        shape = (num_layers, batch_size, num_kv_heads, max_length or 0, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # [L, B, G, T, K]
        self.values = torch.empty_like(self.keys)  # [L, B, G, T, K]
        self.real = torch.zeros(batch_size, shape[3], dtype=torch.bool, device=device)  # [B, T]
        self.positions = torch.zeros(batch_size, shape[3], dtype=torch.long, device=device)  # [B, T]

    def write(self, layer, keys, values):
        """Puts [B, G, n, K] behind what is there; gives views of the whole, [B, G, length + n, K].

        Raises: ValueError where it does not fit.
        """
        end = self.length + keys.shape[2]
        expected = (*self.keys.shape[1:3], keys.shape[2], self.keys.shape[4])
        if tuple(keys.shape) != expected or keys.shape != values.shape:
            raise ValueError(
                f"the cache takes keys and values of {list(expected)}, got {list(keys.shape)} and {list(values.shape)}"
            )
        if end > self.keys.shape[3]:
            self._grow(end)
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n, real=None, positions=None):
        """Counts the ``n`` columns that every layer has written: all real, positions going on, unless given.

        Shapes: real [B, n] bool, positions [B, n] long.
        """
        end = self.length + n
        if end > self.keys.shape[3]:
            self._grow(end)
        if positions is None:
            positions = self.next_positions[:, None] + torch.arange(n, device=self.positions.device)  # [B, n]
        self.positions[:, self.length : end] = positions
        self.real[:, self.length : end] = True if real is None else real
        self.padded = self.padded or real is not None
        self.length = end

    def truncate(self, length):
        """Goes back to the first ``length`` columns."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of length {self.length} cannot be cut to {length}")
        self.length = length
        if length == 0:
            self.padded = False

    @property
    def mask(self):
        """Which filled columns hold real tokens, [B, length] bool."""
        return self.real[:, : self.length]

    @property
    def next_positions(self):
        """The position id of the token that comes next in each row, [B] long."""
        if self.length == 0:
            return self.positions.new_zeros(len(self.positions))  # [B]
        columns = torch.arange(1, self.length + 1, device=self.real.device)  # [T]
        last = (self.mask * columns).amax(1)  # [B]
        used = self.positions.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0]  # [B]
        return torch.where(last > 0, used + 1, 0)

    @property
    def nbytes(self):
        """Bytes of the memory held for keys and values, filled or not."""
        return self.keys.nbytes + self.values.nbytes

    def __getitem__(self, layer):
        """Keys and values of one layer, the filled part: each [B, G, length, K]."""
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]

    def _grow(self, needed):
        if self.limit is not None:
            raise ValueError(
                f"the cache is full: it holds {self.length} of at most {self.limit} positions "
                f"and {needed - self.length} more were to be written"
            )
        capacity = -(-needed // _GROWTH) * _GROWTH if self.length else needed
        for name in ("keys", "values", "real", "positions"):
            old = getattr(self, name)
            axis = 3 if old.dim() == 5 else 1
            shape = list(old.shape)
            shape[axis] = capacity
            new = old.new_zeros(shape) if axis == 1 else old.new_empty(shape)
            new.narrow(axis, 0, self.length).copy_(old.narrow(axis, 0, self.length))
            setattr(self, name, new)
