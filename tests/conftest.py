"""What the tests share: the golden data, one thread for every test, and imports of the programs in ``tools/``."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path[:0] = [str(Path(__file__).parents[1]), *(str(Path(__file__).parent / name) for name in ("tools", "cli"))]
torch.set_num_threads(1)
GOLDEN = Path(__file__).parent / "golden"  # what upstream gave; README.md there describes each case


def case(name):
    """The tensors of one golden case, by name."""
    [file] = GOLDEN.rglob(f"cases/{name}.safetensors")
    return load_file(file)


class Largest(TorchDispatchMode):
    """Inside its ``with`` block: ``count`` is the size in bytes of the largest storage that an operation has returned."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        storages = [x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.count = max(self.count, *storages, 0)
        return out


@pytest.fixture
def largest():
    return Largest()

SLOW = (  # these files begin first, so that two workers end together
    "test_train.py", "test_web_page.py", "test_page.py", "test_clients.py", "test_lessons_cards.py", "test_rows.py",
    "test_reproducible.py", "test_parallel.py", "test_check_shapes.py", "test_demo.py", "test_server_process.py",
)  # fmt: skip


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would begin with the files of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOW)
