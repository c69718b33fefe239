"""The files of a speech folder: the two configs, and the tensors of the speech decoder and of the codec.

    decoder/ or codec/: model.json -> config,  final.safetensors or final.pt -> tensors by name -> module

Test: ``pytest tests/test_speech.py``
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config import CodecConfig, SpeechConfig


def read_speech_config(path):
    """Reads ``decoder/model.json``. Raises: ValueError if it is missing or not supported."""
    return SpeechConfig.from_file(path)


def read_codec_config(path):
    """Reads ``codec/model.json``. Raises: ValueError if it is missing or not supported."""
    return CodecConfig.from_file(path)


def read_tensors(folder):
    """The tensors of ``final.safetensors``, or else of ``final.pt``, by name. Names of nested dicts are joined by dots.

    Raises: ValueError if both files are missing, the file is damaged, or the pickle holds no tensors by name or needs
    more than tensors and plain values.
    """
    file, pickle = Path(folder) / "final.safetensors", Path(folder) / "final.pt"
    if file.is_file():
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from None
    if not pickle.is_file():
        raise ValueError(f"{folder} has no final.safetensors and no final.pt")
    try:
        content = torch.load(pickle, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001, a damaged pickle can raise anything
        call = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"its pickle asks for {call[1]}" if call else f"it is damaged ({type(error).__name__})"
        raise ValueError(f"{pickle} is refused: {reason}; only a dict of tensors is read") from None
    tensors = dict(named_tensors(content))
    if not tensors:
        raise ValueError(f"{pickle} is refused: it holds no tensors by name; only a dict of tensors is read")
    return tensors


def named_tensors(content, prefix=""):
    """Yields the name and tensor of every tensor in a dict of dicts. Of a dict with a ``model``, only that is read."""
    if isinstance(content, torch.Tensor):
        yield prefix, content
    elif isinstance(content, dict) and isinstance(content.get("model"), dict):
        yield from named_tensors(content["model"], prefix)
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from named_tensors(value, f"{prefix}.{name}" if prefix else str(name))


def fill_module(module, tensors, where, dtype, device):
    """Loads tensors into a module that was built on the meta device. Names and shapes must be exactly the module's.

    Raises: ValueError with ``where`` and the first names that are missing, surplus or of another shape.
    """
    expected = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    given = {n: tuple(t.shape) for n, t in tensors.items()}
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "surplus": sorted(given.keys() - expected.keys()),
        "misshapen": [f"{n} {list(given[n])}, expected {list(s)}" for n, s in expected.items() if given.get(n, s) != s],
    }
    told = [f"{kind}: {'; '.join(names[:8])}" for kind, names in problems.items() if names]
    if told:
        raise ValueError(f"{where} does not fit its model.json: {'. '.join(told)}")
    module.load_state_dict({n: tensors[n].to(device, dtype) for n in expected}, assign=True)
    module.requires_grad_(False)
