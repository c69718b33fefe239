"""Lesson 5: the KV cache.

A model writes one token at a time. For each it would have to read everything before it again. But under a causal mask the
keys and values of earlier positions do not change when something follows. So they are kept. A pass over new tokens writes
their keys and values behind the old ones, and its queries look at all of them. The rule by which you know that a cache is
right: cut a prompt into chunks in any way, one token at a time if you like, and the logits are those of one pass.

One pass goes through all layers, and each layer writes its own keys and values. The length must therefore move once a pass,
at its end (`advance`), not in each `write`. If a pass fails half way, `advance` is not called and the length is what it was:
the next pass writes over what the failed one has left.

The cache also knows which position id each row's next token has. In a batch rows are padded, and padding takes a column but
no position. A row of 3 tokens and 2 padding columns goes on with position 3, not 5. Positions go on from the last one that
was used by a real token, plus one, and from 0 in a row that has none yet.

    pass 1: columns  0  1  2  3  4        pass 2: one new token in each row
    row 0            A  B  C  D  E                    F      position 5
    row 1            a  b  c  .  .                    d      position 3      . is padding on the right

    layer 0  | k k k k k | k          write(0, ...) returns the 6 columns of layer 0
    layer 1  | k k k k k | k          write(1, ...) returns the 6 columns of layer 1, the length is still 5
             ^           ^
             0           length = 5, becomes 6 in advance

To do: write the class `Cache`. You may join tensors with torch.cat or allocate in advance, as you like.
Then run:  python tools/lessons/run.py 5
"""

import torch


class Cache:
    """Keys and values of all positions so far, for each layer."""

    def __init__(self, num_layers: int):
        """An empty cache. `length` is the number of columns that finished passes have written."""
        self.length = 0
        raise NotImplementedError

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """keys and values [B, G, S, K], the new columns -> all columns of this layer, two tensors [B, G, T, K],
        T = length + S. The new columns come last. The length does not change."""
        raise NotImplementedError

    def advance(self, positions: torch.Tensor, real: torch.Tensor) -> None:
        """Ends a pass: the length grows by S. positions [B, S] long, the position ids of the new columns (0 on padding);
        real [B, S] bool, False on padding."""
        raise NotImplementedError

    def next_positions(self) -> torch.Tensor:
        """The position id of each row's next token, [B] long. (Asked only after the first advance.)"""
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Goes back to the first `length` columns, at least 1, as if the others had never been written: neither their keys and values
        nor their positions."""
        raise NotImplementedError
