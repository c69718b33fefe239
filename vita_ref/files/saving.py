"""A stream of tensors -> a folder of this project's own kind: weights in shards, config.json, tokenizer, speech.

Test: ``pytest tests/files/test_saving.py``
"""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from .folders import config_json
from .messages import shown

SHARD = 10**9  # bytes of weights in a file, and in memory before they are written
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
)
SPEECH_PARTS = {
    "decoder": ("model.json", "final.safetensors", "final.pt"),
    "codec": ("model.json", "final.safetensors", "final.pt"),
}


def write_folder(folder, config, tensors, source=None, speech=None):
    """Writes config.json, the weights (an iterable of names and tensors), the tokenizer of ``source``, and ``speech``.

    ``config`` is a `VitaConfig`, or a function that returns it and is called after the last tensor.
    Returns the number of bytes of the weights. If writing fails or is interrupted, what was written is removed.
    Raises: ValueError if the folder exists and is not empty, or weights cannot be written, as on a full disk.
    """
    folder = Path(folder)
    existed = folder.is_dir()
    new_folder(folder)
    total = None
    try:
        total = _write(folder, config, tensors, source, speech)
    except SafetensorError as error:
        raise ValueError(f"{shown(str(folder))} cannot be written: {error}") from None
    finally:
        if total is None:  # an incomplete folder takes gigabytes, and would be refused next time
            for path in [*folder.iterdir()] if existed else [folder]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return total


def _write(folder, config, tensors, source, speech):
    """`write_folder` into an existing empty folder."""
    shards, weight_map, pending, size, total = 0, {}, {}, 0, 0

    def flush():
        nonlocal shards, pending, size
        shards += 1
        save_file(pending, folder / f"shard-{shards}", {"format": "pt"})
        weight_map.update(dict.fromkeys(pending, shards))
        pending, size = {}, 0

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > SHARD:
            flush()
        pending[name] = tensor.detach().to("cpu").contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    files = {
        i: f"model-{i:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        for i in range(1, shards + 1)
    }
    for i, file in files.items():
        (folder / f"shard-{i}").rename(folder / file)
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: files[i] for name, i in weight_map.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for name in TOKENIZER_FILES:
        if source and os.path.isfile(Path(source) / name):
            shutil.copyfile(Path(source) / name, folder / name)
    for part, names in SPEECH_PARTS.items() if speech else ():
        (folder / "speech" / part).mkdir(parents=True)
        for name in names:
            if os.path.isfile(Path(speech) / part / name):
                shutil.copyfile(Path(speech) / part / name, folder / "speech" / part / name)
    # the last file: a folder without it is no checkpoint
    (folder / "config.json").write_text(config_json(config() if callable(config) else config))
    return total


def new_folder(folder):
    """Makes a folder. Raises: ValueError if it exists and is not empty, or cannot be made."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{shown(str(folder))} exists and is not an empty folder: name another one")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
