"""VITA from scratch in plain PyTorch: a multimodal assistant to read, run and check other implementations against."""

from .cache import KVCache
from .config import VitaConfig
from .model import Vita
from .splice import splice

__all__ = ["KVCache", "Vita", "VitaConfig", "splice"]
