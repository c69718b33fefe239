"""What to do where a name or a file is nearly right: an address, a name on a hub, a pointer of Git LFS, other weights.

Test: ``pytest tests/files/test_hints.py``
"""

import os
import re
from pathlib import Path

from .messages import shown

POINTER = b"version https://git-lfs.github.com/spec/"  # how the small text begins that Git LFS leaves in place of a file
PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def pointer_reason(content):
    """The reason why bytes are not the file that was meant, None if they are no pointer of Git LFS."""
    if bytes(content[: len(POINTER)]) != POINTER:
        return None
    return "it is a pointer of Git LFS, not the file itself: run git lfs pull in its folder, or download the file"


def pointer_at(path):
    """Like `pointer_reason`, for a file. A file that cannot be read is left to others."""
    try:
        with open(path, "rb") as file:
            return pointer_reason(file.read(len(POINTER)))
    except (OSError, ValueError):
        return None


def check_no_pointer(path):
    """Raises: ValueError if a file is a pointer of Git LFS."""
    if reason := pointer_at(path):
        raise ValueError(reason)


def check_no_address(path):
    """Raises: ValueError if a path is an address on the web, which is not opened."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", os.fspath(path)) if isinstance(path, (str, Path)) else None
    if scheme is None or os.path.exists(path):
        return
    if scheme[1].lower() == "file":
        raise ValueError("it is an address: give the path alone, without file://")
    raise ValueError("it is an address, and nothing is downloaded here: download the file (curl -LO ADDRESS) and give its path")


def check_is_folder(folder):
    """Raises: ValueError, with the way to get it, if there is no such checkpoint folder."""
    if os.path.isdir(folder):
        return
    name = os.fspath(folder)
    if os.path.exists(folder):
        raise ValueError(f"{shown(name)} is not a checkpoint folder: it is a file; give the folder that holds it")
    hint = ""
    if HUB_NAME.fullmatch(name):
        local = name.rpartition("/")[2]
        hint = f". If it is a name on the Hugging Face hub, download it: hf download {name} --local-dir {local}; then give {local}"
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
        hint = ", and nothing is downloaded here: download the checkpoint and give its folder"
    raise ValueError(f"{shown(name, 200)} is not a checkpoint folder: there is no such folder{hint}")


def other_weights(folder):
    """What to do with a folder that has weights in formats that are not read; "" if it has none."""
    pickles = sorted(file.name for pattern in PICKLES for file in Path(folder).glob(pattern))
    if pickles:
        how = "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT) of transformers does so"
        return f". Its {shown(pickles[0])[1:-1]} is a pickle, which is not read: convert it to safetensors ({how})"
    if files := sorted(file.name for file in Path(folder).glob("*.gguf")):
        return f". Its {shown(files[0])[1:-1]} is for llama.cpp and not read: take the checkpoint with safetensors files"
    return ""
