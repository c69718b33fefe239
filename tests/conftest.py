"""Tests may import the programs in ``tools/``; one thread keeps them quick beside other work."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
torch.set_num_threads(1)
