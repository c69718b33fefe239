"""VITA from scratch in plain PyTorch: a multimodal assistant to read, run and check other implementations against."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m vita_ref.generate` loads libraries for a second: Ctrl-C ends that without a traceback
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

from .cache import KVCache
from .config import VitaConfig
from .model import Vita
from .splice import splice

__all__ = ["KVCache", "Vita", "VitaConfig", "__version__", "splice"]
__version__ = "0.1.0"
