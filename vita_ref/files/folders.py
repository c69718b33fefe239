"""Checkpoint folders of five kinds -> `VitaConfig`, and a `VitaConfig` -> ``config.json`` of this project's own kind.

    config.json with model_type
      vita_ref      this project's own: the fields of `VitaConfig` as JSON
      qwen2         Qwen2 and Qwen2.5, as Hugging Face writes them
      vita-Qwen2    VITA-1.5 as released; vision tower and audio encoder have folders of their own
      internvl, internvl_chat   InternVL, as transformers writes it and as published (``internvl.py``)

A setting that this project does not support is never ignored: it raises an error that names it.

Test: ``pytest tests/files/test_folders.py``
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from ..config import AudioConfig, DecoderConfig, VisionConfig, VitaConfig
from .checkpoint import stored_dtype
from .hints import check_is_folder
from .internvl import PIXELS, intern_vit, internvl_config
from .messages import one_line_errors, shown
from .qwen2 import decoder_config, token_ids
from .values import (
    build,
    check_supported,
    first,
    flag,
    read_json,
    read_yaml,
    require,
    section,
    sizes,
    text,
)

KINDS = ("vita_ref", "qwen2", "vita-Qwen2", "internvl", "internvl_chat")


@one_line_errors
def read_config(folder, *, vision_dir=None, audio_dir=None):
    """Reads ``config.json`` of any of the five kinds of folder, and the files that it refers to, into a `VitaConfig`.

    ``vision_dir`` and ``audio_dir`` are the folders of a VITA-1.5 checkpoint's vision tower and audio encoder; with
    None, folders with the names in config.json are tried. A part without a folder is None, and ``missing`` says why.

    Raises: ValueError if a file is missing or damaged, or has a setting that this project does not support.
    """
    check_is_folder(folder)
    folder = Path(folder)
    path = folder / "config.json"
    raw = with_dtype_names(read_json(path), folder)
    kind = raw.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{path}: model_type is {shown(kind)}, expected one of {', '.join(KINDS)}")
    for part in (raw, *(raw.get(key) for key in ("llm_config", "text_config", "vision_config"))):
        _check_unquantized(part if isinstance(part, dict) else {}, path)
    if kind != "vita-Qwen2" and (vision_dir or audio_dir):
        given = "--vision-dir" if vision_dir else "--audio-dir"
        raise ValueError(f"{given} is for VITA-1.5 folders, and {path} has model_type {shown(kind)}: leave it out")
    if kind == "vita_ref":
        return _own_config(raw, path)
    if kind == "qwen2":
        return _qwen2_config(raw, path)
    if kind in ("internvl", "internvl_chat"):
        return internvl_config(raw, path)
    return _vita_config(raw, path, vision_dir, audio_dir)


def with_dtype_names(raw, folder):
    """A config whose dtype is a plain name: old files write "torch.bfloat16", and "auto" is that of the weights."""
    changed = {key: with_dtype_names(value, folder) for key, value in raw.items() if isinstance(value, dict)}
    for key in ("dtype", "torch_dtype"):
        if isinstance(value := raw.get(key), str):
            changed[key] = stored_dtype(folder) if value == "auto" else value.removeprefix("torch.")
    return raw | changed


def config_json(config):
    """The text of ``config.json`` for a `VitaConfig`, as `read_config` reads it. What is None is left out."""
    values = {k: v for k, v in asdict(config).items() if k not in ("missing", "speech")}
    return json.dumps({"model_type": "vita_ref"} | _without_none(values), indent=1) + "\n"


def _without_none(values):
    """A dict of dicts without the keys whose value is None."""
    kept = {k: v for k, v in values.items() if v is not None}
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in kept.items()}


def _check_unquantized(raw, path):
    """Raises: ValueError with the method, if a config is that of quantised weights."""
    options = raw.get("quantization_config")
    if options:
        method = options.get("quant_method") if isinstance(options, dict) else options
        raise ValueError(
            f"{path}: the weights are quantized with the method {shown(method)}, which is not read here: take the "
            "checkpoint in bfloat16, float16 or float32 (--quantize int8 or int4 does it while it loads)"
        )


# ---- this project's own folders


def _own_config(raw, path):
    parts = {"decoder": DecoderConfig, "vision": VisionConfig, "audio": AudioConfig}
    built = {k: build(cls, raw[k], f"{path}, {k}") for k, cls in parts.items() if raw.get(k) is not None}
    for key in {"speech", "missing"} & raw.keys():
        raise ValueError(f"{path}: VitaConfig has unknown fields: {key}")
    rest = {k: v for k, v in raw.items() if k not in parts and k != "model_type"}
    return build(VitaConfig, rest | built, path)


# ---- Qwen2 and Qwen2.5


def _qwen2_config(raw, path):
    """A config without vision and audio."""
    values = {"decoder": decoder_config(raw, path), "dtype": first(raw, "dtype", "torch_dtype", default="float32")}
    return build(VitaConfig, values | token_ids(raw, path.parent), path)


# ---- VITA-1.5


def _vita_config(raw, path, vision_dir, audio_dir):
    if raw.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu" or flag(raw, path, "use_s2"):
        raise ValueError(f"{path}: only the projector mlp2x_gelu without S2 is supported")
    config, missing = _qwen2_config(raw, path), {}
    vision = audio = None
    tower, encoder = (text(raw, path, key) for key in ("mm_vision_tower", "mm_audio_encoder"))
    if folder := _part_folder("vision", tower, path.parent, vision_dir, missing):
        vision = _vision_config(folder)
    if folder := _part_folder("audio", encoder, path.parent, audio_dir, missing):
        prompts = raw.get("audio_prompt_num", 0) if flag(raw, path, "audio_prompt_finetune") else 0
        audio = _audio_config(folder, prompts)
    values = {
        "vision": vision,
        "audio": audio,
        "tokenizer_padding_side": raw.get("tokenizer_padding_side", "right"),
        "tokenizer_model_max_length": raw.get("tokenizer_model_max_length"),
        "image_aspect_ratio": text(raw, path, "image_aspect_ratio", "square"),
        "template": "vita",
        "missing": missing,
    }
    return build(VitaConfig, vars(config) | values, path)


def _part_folder(part, configured, folder, given, missing):
    """The folder of a part's config, or None. If a folder is configured but absent, ``missing`` gets the reason.

    A released config.json has paths of the machine that trained the model, so only the last name of a path is used.
    """
    if given is not None:
        if not os.path.isdir(given):
            raise ValueError(f"--{part}-dir {shown(given)} is not a folder")
        return Path(given)
    if configured is None:
        return None
    name = Path(configured).name
    for place in (folder / configured, folder / name, folder.parent / name):
        if os.path.isdir(place):
            return place
    missing[part] = f"its folder {shown(name)[1:-1]} is neither in {folder} nor next to it; give its place with --{part}-dir"
    return None


def _vision_config(folder):
    """The config of an InternViT folder."""
    path, preprocessor = folder / "config.json", folder / "preprocessor_config.json"
    raw = read_json(path)
    config = build(VisionConfig, intern_vit(raw, path), path)
    _check_unquantized(raw, path)
    pixels = read_json(preprocessor) if os.path.isfile(preprocessor) else {}
    return build(VisionConfig, vars(config) | {k: pixels[k] for k in PIXELS if k in pixels}, preprocessor)


def _audio_config(folder, num_prompts):
    """The config of an audio encoder folder. Defaults are those of upstream's classes."""
    path = folder / "train.yaml"
    raw, sub, enc, adapter, sound = _read_train_yaml(path)
    fbank, resample = section(sound, path, "fbank_conf"), section(sound, path, "resample_conf")
    width, mlp, layers, heads = sizes(enc, path, "attention_dim", "linear_units", "num_blocks", "attention_heads")
    (channels,) = sizes(sub, path, "output_dim")
    supported = {
        "subsampling-rate": sub.get("rate", 4) == 4,
        "transformer-input-layer": enc.get("input_layer", "linear") == "linear",
        "transformer-positionwise-layer-type": enc.get("positionwise_layer_type", "linear") == "linear",
        "transformer-pos-enc-class": enc.get("pos_enc_class", "abs-enc") in ("rel-enc", "abs-enc", "no-enc"),
        "adpter_type": adapter.get("adpter_type", "cnn") == "subsampling",  # upstream's spelling
        "norm": adapter.get("norm", "batch") in ("layer", "batch"),
        "activation_func": adapter.get("activation_func", "relu") in ("gelu", "relu"),
    }
    check_supported(path, supported)
    values = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "subsampling_size": channels,
        "num_mel_bins": raw.get("input_dim", 80),
        "sample_rate": resample.get("resample_rate", 16000),
        "frame_length": fbank.get("frame_length", 25),
        "frame_shift": fbank.get("frame_shift", 10),
        "dither": fbank.get("dither", 0.0),
        "position_encoding": enc.get("pos_enc_class", "abs-enc"),
        "normalize_before": enc.get("normalize_before", True),
        "concat_after": enc.get("concat_after", False),
        "chunk_size": enc.get("chunk_size", -1),
        "left_chunks": enc.get("left_chunks", -1),
        "dynamic_chunks": enc.get("dynamic_chunks", True),
        "adapter_kernel_size": adapter.get("kernel_size", 3),
        "adapter_norm": adapter.get("norm", "batch"),
        "adapter_activation": adapter.get("activation_func", "relu"),
        "num_prompts": num_prompts,
    }
    return build(AudioConfig, values, path)


def _read_train_yaml(path):
    """A ``train.yaml`` and its sections: subsampling, transformer (their keys without prefix), adapter, data."""
    if not os.path.isfile(path):
        raise ValueError(f"{path.parent} is not the folder of an audio encoder: it has no {path.name}")
    raw = read_yaml(path)
    if type(raw) is not dict:
        raise ValueError(f"{path} must be a mapping, got {shown(raw)}")
    adapter, sound = (_section_of(raw, path, key) for key in ("model_conf", "dataset_conf"))
    encoder = _section_of(raw, path, "encoder_conf")
    parts, overview = (_section_of(encoder, path, key) for key in ("para_conf", "overview_conf"))
    (layout,) = require(overview, path, "encoder-layer-config")
    if layout != "subsampling-transformer":
        raise ValueError(f"{path}: encoder-layer-config is {shown(layout)}, expected 'subsampling-transformer'")
    options = []
    for part in ("subsampling", "transformer"):
        values = _section_of(parts, path, part)
        # upstream accepts '-' and '_' in a key: transformer-num-blocks is num_blocks
        options.append({str(k).replace("-", "_").removeprefix(part + "_"): v for k, v in values.items()})
    return raw, *options, adapter, sound


def _section_of(raw, path, key):
    """Like `section`, for a section that is required."""
    require(raw, path, key)
    return section(raw, path, key)
