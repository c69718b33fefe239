"""Tests may import the programs in ``tools/``; one thread keeps them quick beside other work; what they share."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)


class Largest(TorchDispatchMode):
    """While it is entered, the bytes of the largest storage that any operation gives are in ``count``."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        storages = [x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.count = max(self.count, *storages, 0)
        return out


@pytest.fixture
def largest():
    return Largest()
