"""Reads a speech folder: the configs of its two parts, their tensors, and the tensors into a module.

    decoder/model.json -> SpeechConfig      decoder/final.safetensors or final.pt -> tensors by name -> SpeechDecoder
    codec/model.json   -> CodecConfig       codec/final.safetensors or final.pt   -> tensors by name -> Vocoder

``final.pt`` is upstream's pickle. It is read with ``weights_only=True``, which runs no code from the file.

Test: ``pytest tests/files/test_speech_files.py``
"""

import os
import re
import zipfile
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config import CodecConfig, DecoderConfig, SpeechConfig
from .checkpoint import check_finite_values, shortened
from .hints import check_no_pointer
from .messages import one_line_errors, shown
from .values import LIMITS, build, read_json, require, sizes

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@one_line_errors
def read_speech_config(path):
    """Reads ``decoder/model.json``: a list of width, number of codes, and options.

    Raises: ValueError if the file is missing or has a setting that this project does not support.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path.parent} is not the folder of a speech decoder: it has no {path.name}")
    content = read_json(path, list)
    if len(content) != 3 or type(content[2]) is not dict:
        raise ValueError(f"{path} is not a list of width, codes, options of a transformer: {shown(content)}")
    width, codes = sizes(dict(zip(("width", "codes"), content)), path, "width", "codes")
    keys = ("attention_heads", "attention_dim", "linear_units", "num_blocks")
    heads, size, mlp, layers = sizes(content[2], path, *(f"transformer_{key}" for key in keys))
    if size != width or width % heads:
        raise ValueError(f"{path}: attention_dim ({size}) must be {width} and a multiple of {heads} heads")
    decoder = {
        "vocab_size": codes + 4,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "rope_theta": 1e4,
        "attention_bias": False,
    }
    values = {"num_codes": codes, "num_pre_layers": layers // 2, "decoder": build(DecoderConfig, decoder, path)}
    return build(SpeechConfig, values, path)


@one_line_errors
def read_codec_config(path):
    """Reads ``codec/model.json``. Only the keys that are needed to turn tokens into sound are used.

    Raises: ValueError if the file is missing or has a setting that this project does not support.
    """
    path = Path(path)
    raw = read_json(path)
    names = [f.name for f in fields(CodecConfig)]
    values = dict(zip(names, require(raw, path, *names)))
    expected = {"resblock": "1", "n_code_groups": 1, "residul_layer": 1}  # upstream's spelling
    wrong = [f"{k} {shown(raw.get(k))}, expected {v!r}" for k, v in expected.items() if raw.get(k) != v]
    if wrong:
        raise ValueError(f"{path}: not supported here: {'; '.join(wrong)}")
    config = build(CodecConfig, values, path)
    if len(config.global_tokens) != raw.get("global_code_num"):
        books = shown(raw.get("global_code_num"))
        raise ValueError(f"{path}: {len(config.global_tokens)} global_tokens, expected {books} (global_code_num)")
    return config


@one_line_errors
def read_tensors(folder):
    """The tensors of ``final.safetensors``, or else of ``final.pt``, by name.

    The names of nested dicts are joined with dots: ``{"a": {"b": tensor}}`` gives ``a.b``.

    Raises: ValueError if there is no file, it is damaged, or the pickle contains more than tensors and plain values.
    """
    file, pickle = Path(folder) / "final.safetensors", Path(folder) / "final.pt"
    if os.path.isfile(file):
        try:
            check_no_pointer(file)
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{file} is not a safetensors file: {error}") from None
    if not os.path.isfile(pickle):
        raise ValueError(f"{folder} has no final.safetensors and no final.pt")
    _check_pickle(pickle)
    try:
        check_no_pointer(pickle)
    except ValueError as error:
        raise ValueError(f"{pickle} is refused: {error}") from None
    try:
        content = torch.load(pickle, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001, a damaged pickle can raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        why = f"its pickle needs {refused[1]}" if refused else f"it is damaged ({type(error).__name__})"
        raise ValueError(f"{pickle} is refused: {why}; only a dict of tensors is read") from None
    try:
        tensors = dict(_flatten(content))
    except RecursionError:
        raise ValueError(f"{pickle} is refused: its dicts are nested too deeply") from None
    if not tensors:
        raise ValueError(f"{pickle} is refused: it contains no tensors by name; only a dict of tensors is read")
    return tensors


def _check_pickle(path):
    """Refuses an archive of torch.save that is compressed, or whose pickle is too large: it would be read for minutes."""
    if not zipfile.is_zipfile(path):
        return
    try:
        entries = zipfile.ZipFile(path).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is refused: it is damaged ({type(error).__name__})") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"{path} is refused: it is a compressed archive, which torch.save does not write")
    if any(entry.filename.endswith("data.pkl") and entry.file_size > LIMITS["pickle"] for entry in entries):
        raise ValueError(f"{path} is refused: its pickle has more than {LIMITS['pickle']:,} bytes")


@one_line_errors
def fill_module(module, tensors, folder, dtype, device, check_finite=False):
    """Fills a module built on the meta device with tensors of exactly its names and shapes.

    ``folder`` is only for error messages; ``check_finite`` refuses values that are NaN or infinite.

    Raises: ValueError that lists names that are missing, surplus, of another shape, or not floating.
    """
    expected = {n: list(t.shape) for n, t in module.state_dict().items()}
    stored = {n: list(t.shape) for n, t in tensors.items()}
    faults = {
        "missing": sorted(expected.keys() - stored.keys()),
        "surplus": sorted(stored.keys() - expected.keys()),
        "misshapen": [f"{n} {stored[n]}, expected {s}" for n, s in expected.items() if stored.get(n, s) != s],
        "not floating": [f"{n} {t.dtype}" for n, t in tensors.items() if n in expected and not _is_plain(t)],
    }
    listed = [f"{kind}: {shortened(names)}" for kind, names in faults.items() if names]
    if listed:
        raise ValueError(f"{folder} does not match its model.json: {'. '.join(listed)}")
    for name in expected if check_finite else ():
        check_finite_values(name, tensors[name], folder)
    module.load_state_dict({n: tensors[n].to(device, dtype) for n in expected}, assign=True)
    module.requires_grad_(False)


def _is_plain(tensor):
    """Whether a tensor has floating numbers that can be read: pickles may hold others."""
    return tensor.dtype in _FLOATS and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _flatten(value, prefix=""):
    """Yields name and tensor of every tensor in a dict of dicts. Of a dict with a dict ``model``, only that is read."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, dict) and isinstance(value.get("model"), dict):
        yield from _flatten(value["model"], prefix)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _flatten(entry, f"{prefix}.{name}" if prefix else str(name))
