"""Checkpoint folders of three kinds -> `VitaConfig`, and a `VitaConfig` -> ``config.json`` of this project's own kind.

    config.json with model_type
      vita_ref      this project's own: the fields of `VitaConfig` as JSON
      qwen2         Qwen2 and Qwen2.5, as Hugging Face writes them
      vita-Qwen2    VITA-1.5 as released; vision tower and audio encoder have folders of their own

A setting that this project does not support is never ignored: it raises an error that names it.

Test: ``pytest tests/files/test_folders.py``
"""

import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

from ..config import AudioConfig, DecoderConfig, VisionConfig, VitaConfig

KINDS = ("vita_ref", "qwen2", "vita-Qwen2")


def read_config(folder, *, vision_dir=None, audio_dir=None):
    """Reads ``config.json`` of any of the three kinds of folder, and the files that it refers to, into a `VitaConfig`.

    ``vision_dir`` and ``audio_dir`` are the folders of a VITA-1.5 checkpoint's vision tower and audio encoder; with
    None, folders with the names in config.json are tried. A part without a folder is None, and ``missing`` says why.

    Raises: ValueError if a file is missing or damaged, or has a setting that this project does not support.
    """
    folder = Path(folder)
    path = folder / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{path}: model_type is {kind!r}, expected one of {', '.join(KINDS)}")
    try:
        if kind == "vita_ref":
            return _own_config(raw, path)
        if kind == "qwen2":
            return _qwen2_config(raw, path)
        return _vita_config(raw, path, vision_dir, audio_dir)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}, or a file that it refers to, has a value of the wrong type: {error}") from None


def config_json(config):
    """The text of ``config.json`` for a `VitaConfig`, as `read_config` reads it. Parts that are None are left out."""
    values = {k: v for k, v in asdict(config).items() if v is not None and k not in ("missing", "speech")}
    return json.dumps({"model_type": "vita_ref"} | values, indent=1) + "\n"


def read_json(path):
    """The object in a JSON file.

    Raises: ValueError if the file is missing, is not valid JSON, or is no object.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path.parent} is not a checkpoint folder: it has no {path.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if type(value) is not dict:
        raise ValueError(f"{path} is a JSON {type(value).__name__}, expected an object")
    return value


def require(raw, path, *keys):
    """The values of keys that are required.

    Raises: ValueError with the names of all keys that are missing.
    """
    missing = [k for k in keys if k not in raw]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return [raw[k] for k in keys]


def build(cls, values, path):
    """A config dataclass from a dict of its fields; lists become tuples.

    Raises: ValueError that names the file, for a field that is unknown, missing or out of range.
    """
    if type(values) is not dict:
        raise ValueError(f"{path}: {cls.__name__} must be a JSON object, got {values!r}")
    unknown = sorted(values.keys() - {f.name for f in fields(cls)})
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if unknown or missing:
        raise ValueError(f"{path}: {cls.__name__} has {_listed('unknown', unknown)}{_listed('missing', missing)}")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _listed(what, names):
    return f"{what} fields: {', '.join(names)}. " if names else ""


def _sizes(raw, path, *keys):
    """Like `require`, for integers of at least 1."""
    for key, value in zip(keys, require(raw, path, *keys)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {key} must be an integer of at least 1, got {value!r}")
    return [raw[key] for key in keys]


def _check_supported(path, supported):
    """Raises: ValueError with the names of all settings that this project does not support."""
    unsupported = [name for name, is_supported in supported.items() if not is_supported]
    if unsupported:
        raise ValueError(f"{path}: not supported here: {', '.join(unsupported)}")


# ---- this project's own folders


def _own_config(raw, path):
    parts = {"decoder": DecoderConfig, "vision": VisionConfig, "audio": AudioConfig}
    built = {k: build(cls, raw[k], path) for k, cls in parts.items() if raw.get(k) is not None}
    rest = {k: v for k, v in raw.items() if k not in parts and k != "model_type"}
    return build(VitaConfig, rest | built, path)


# ---- Qwen2 and Qwen2.5


def _qwen2_config(raw, path):
    """A config without vision and audio. Defaults are those of Hugging Face's Qwen2Config."""
    vocab, width, mlp, layers, heads = _sizes(
        raw, path, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
    )
    rope = raw.get("rope_parameters") or {}  # the newer spelling
    scalings = {r.get("rope_type", r.get("type", "default")) for r in (rope, raw.get("rope_scaling") or {})}
    supported = {
        "hidden_act": raw.get("hidden_act", "silu") == "silu",
        "rope_scaling": scalings == {"default"},
        "use_sliding_window": not raw.get("use_sliding_window"),
    }
    _check_supported(path, supported)
    decoder = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or width // heads,
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope_theta": float(raw.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        "max_position_embeddings": raw.get("max_position_embeddings", 32768),
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
    }
    generation = path.parent / "generation_config.json"
    defaults = read_json(generation) if generation.is_file() else {}
    eos = defaults.get("eos_token_id", raw.get("eos_token_id"))
    values = {
        "decoder": build(DecoderConfig, decoder, path),
        "bos_token_id": raw.get("bos_token_id"),
        "eos_token_ids": () if eos is None else eos if isinstance(eos, list) else (eos,),
        "pad_token_id": defaults.get("pad_token_id", raw.get("pad_token_id")),
        "dtype": raw.get("dtype") or raw.get("torch_dtype") or "float32",
    }
    return build(VitaConfig, values, path)


# ---- VITA-1.5


def _vita_config(raw, path, vision_dir, audio_dir):
    if raw.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu" or raw.get("use_s2"):
        raise ValueError(f"{path}: only the projector mlp2x_gelu without S2 is supported")
    config, missing = _qwen2_config(raw, path), {}
    vision = audio = None
    if folder := _part_folder("vision", raw.get("mm_vision_tower"), path.parent, vision_dir, missing):
        vision = _vision_config(folder)
    if folder := _part_folder("audio", raw.get("mm_audio_encoder"), path.parent, audio_dir, missing):
        prompts = raw.get("audio_prompt_num", 0) if raw.get("audio_prompt_finetune") else 0
        audio = replace(_audio_config(folder), num_prompts=prompts)
    return replace(
        config,
        vision=vision,
        audio=audio,
        tokenizer_padding_side=raw.get("tokenizer_padding_side", "right"),
        tokenizer_model_max_length=raw.get("tokenizer_model_max_length"),
        image_aspect_ratio=raw.get("image_aspect_ratio") or "square",
        template="vita",
        missing=missing,
    )


def _part_folder(part, configured, folder, given, missing):
    """The folder of a part's config, or None. If a folder is configured but absent, ``missing`` gets the reason.

    A released config.json has paths of the machine that trained the model, so only the last name of a path is used.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise ValueError(f"--{part}-dir {given} is not a folder")
        return Path(given)
    if configured is None:
        return None
    name = Path(configured).name
    for place in (folder / configured, folder / name, folder.parent / name):
        if place.is_dir():
            return place
    missing[part] = f"its folder {name} is neither in {folder} nor next to it; give its place with --{part}-dir"
    return None


def _vision_config(folder):
    """The config of an InternViT folder. Defaults are those of upstream's InternVisionConfig."""
    path, preprocessor = folder / "config.json", folder / "preprocessor_config.json"
    raw = read_json(path)
    width, mlp, layers, heads = _sizes(
        raw, path, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
    )
    supported = {
        "hidden_act": raw.get("hidden_act", "gelu") == "gelu",
        "qk_normalization": not raw.get("qk_normalization", True),
        "norm_type": raw.get("norm_type", "rms_norm") == "layer_norm",
    }
    _check_supported(path, supported)
    pixels = read_json(preprocessor) if preprocessor.is_file() else {}
    values = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": raw.get("image_size", 224),
        "patch_size": raw.get("patch_size", 14),
        "num_channels": raw.get("num_channels", 3),
        "layer_norm_eps": raw.get("layer_norm_eps", 1e-6),
        "qkv_bias": raw.get("qkv_bias", False),
    }
    values |= {k: pixels[k] for k in ("image_mean", "image_std") if k in pixels}
    return build(VisionConfig, values, path)


def _audio_config(folder):
    """The config of an audio encoder folder. Defaults are those of upstream's classes."""
    path = folder / "train.yaml"
    raw, sub, enc, adapter, sound = _read_train_yaml(path)
    fbank = sound.get("fbank_conf", {})
    width, mlp, layers, heads = _sizes(enc, path, "attention_dim", "linear_units", "num_blocks", "attention_heads")
    (channels,) = _sizes(sub, path, "output_dim")
    supported = {
        "subsampling-rate": sub.get("rate", 4) == 4,
        "transformer-input-layer": enc.get("input_layer", "linear") == "linear",
        "transformer-positionwise-layer-type": enc.get("positionwise_layer_type", "linear") == "linear",
        "transformer-pos-enc-class": enc.get("pos_enc_class", "abs-enc") in ("rel-enc", "abs-enc", "no-enc"),
        "adpter_type": adapter.get("adpter_type", "cnn") == "subsampling",  # upstream's spelling
        "norm": adapter.get("norm", "batch") in ("layer", "batch"),
        "activation_func": adapter.get("activation_func", "relu") in ("gelu", "relu"),
    }
    _check_supported(path, supported)
    return AudioConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        subsampling_size=channels,
        num_mel_bins=raw.get("input_dim", 80),
        sample_rate=sound.get("resample_conf", {}).get("resample_rate", 16000),
        frame_length=fbank.get("frame_length", 25),
        frame_shift=fbank.get("frame_shift", 10),
        dither=fbank.get("dither", 0.0),
        position_encoding=enc.get("pos_enc_class", "abs-enc"),
        normalize_before=enc.get("normalize_before", True),
        concat_after=enc.get("concat_after", False),
        chunk_size=enc.get("chunk_size", -1),
        left_chunks=enc.get("left_chunks", -1),
        dynamic_chunks=enc.get("dynamic_chunks", True),
        adapter_kernel_size=adapter.get("kernel_size", 3),
        adapter_norm=adapter.get("norm", "batch"),
        adapter_activation=adapter.get("activation_func", "relu"),
    )


def _read_train_yaml(path):
    """A ``train.yaml`` and its sections: subsampling, transformer (their keys without prefix), adapter, data."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is not the folder of an audio encoder: it has no {path.name}")
    try:
        import yaml
    except ImportError:
        raise ValueError(f"reading {path} needs pyyaml: pip install pyyaml") from None
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        layout = raw["encoder_conf"]["overview_conf"]["encoder-layer-config"]
        parts = raw["encoder_conf"]["para_conf"]
        adapter, sound = raw["model_conf"], raw["dataset_conf"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no {error}") from None
    if layout != "subsampling-transformer":
        raise ValueError(f"{path}: encoder-layer-config is {layout!r}, expected 'subsampling-transformer'")
    options = []
    for part in ("subsampling", "transformer"):
        (values,) = require(parts, path, part)
        # upstream accepts '-' and '_' in a key: transformer-num-blocks is num_blocks
        options.append({k.replace("-", "_").removeprefix(part + "_"): v for k, v in values.items()})
    return raw, *options, adapter, sound
