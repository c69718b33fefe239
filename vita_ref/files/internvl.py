"""InternVL folders -> `VitaConfig`: an InternViT-300M, a projector with a LayerNorm, and a Qwen2, Qwen2.5 or Qwen3.

    internvl        as transformers writes them: text_config, vision_config, and the picture processor's own file
    internvl_chat   as OpenGVLab publishes them: llm_config, vision_config, tiles and template in config.json

A larger InternVL has another vision tower or language model; the error names the part and the setting.

Test: ``pytest tests/files/test_internvl_folders.py``
"""

import ast
import io
import itertools
import math
import os
import tokenize

from ..config import VisionConfig, VitaConfig
from .messages import shown
from .qwen2 import decoder_config, token_ids
from .values import (
    build,
    check_supported,
    first,
    flag,
    read_json,
    read_text,
    section,
    sizes,
    text,
)

PIXELS = ("image_mean", "image_std")  # what is read of preprocessor_config.json, for every kind of folder
TEMPLATES = ("Hermes-2", "internvl2_5")  # of the published folders whose language model is a Qwen2 or Qwen3
_LANGUAGE_MODELS = ("qwen2", "qwen3")
# transformers leaves out of a nested config what is the default of its class
_TEXT = {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32}
_TEXT |= {"num_attention_heads": 32, "num_key_value_heads": 32}
_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def internvl_config(raw, path):
    """The `VitaConfig` of ``model_type`` internvl or internvl_chat. Raises: ValueError that names part and setting."""
    published = raw["model_type"] == "internvl_chat"
    key = "llm_config" if published else "text_config"
    llm, tower = _TEXT | section(raw, path, key), _VISION | section(raw, path, "vision_config")
    kind, where = llm.setdefault("model_type", "qwen2"), f"{path}, {key}"
    if kind not in _LANGUAGE_MODELS:
        known = " and ".join(_LANGUAGE_MODELS)
        raise ValueError(f"{where}: the language model {shown(kind)} is not supported here, {known} are")
    if not published:  # the newer of transformers' configs have the flag outside
        llm["tie_word_embeddings"] = first(raw, "tie_word_embeddings", default=True) or llm.get("tie_word_embeddings", False)
    vision = intern_vit(tower, f"{path}, vision_config") if published else _transformers_vit(tower, f"{path}, vision_config")
    vision |= {"shuffle": _shuffle(raw, path), "feature_scale": 1.0, "projector_norm": True}
    pictures = _published_pictures(raw, path, vision) if published else _transformers_pictures(raw, path, vision)
    values = {
        "decoder": decoder_config(_without_dynamic(llm), where),
        "vision": build(VisionConfig, vision, path),
        "image_aspect_ratio": "stretch",
        "dtype": first(raw, "dtype", "torch_dtype", default=first(llm, "dtype", "torch_dtype", default="float32")),
        "template": _published_template(raw, path) if published else "internvl",
        "default_system": _system_text(raw, path) if published else None,
    }
    return build(VitaConfig, token_ids(llm, path.parent) | pictures | values, path)


def _without_dynamic(llm):
    """A config without dynamic rotary scaling. It changes nothing up to max_position_embeddings, and answers end there.

    Source: transformers' `_compute_dynamic_ntk_parameters`: the factor counts for longer texts only.
    """
    plain = {}
    for key in ("rope_scaling", "rope_parameters"):
        rope = llm.get(key)
        if isinstance(rope, dict) and "dynamic" in (rope.get("rope_type"), rope.get("type")):
            theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
            plain[key] = {"rope_type": "default"} | theta
    return llm | plain


def _shuffle(raw, path):
    """How many patches are joined in each direction: 2 for a downsample_ratio of 0.5."""
    ratio = first(raw, "downsample_ratio", default=0.5)
    factor = 1 / ratio if type(ratio) in (int, float) and 1e-3 <= ratio <= 1 else 0
    if not factor or not math.isclose(factor, round(factor), rel_tol=1e-6):
        raise ValueError(f"{path}: downsample_ratio must be 1 divided by an integer, got {shown(ratio)}")
    return round(factor)


# ---- the vision tower


def intern_vit(raw, path):
    """The fields of `VisionConfig` in the config of an InternViT. Defaults are those of upstream's InternVisionConfig."""
    width, mlp, layers, heads = sizes(
        raw, path, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
    )
    supported = {  # an InternViT-6B has the other values
        "hidden_act": raw.get("hidden_act", "gelu") == "gelu",
        "qk_normalization": not flag(raw, path, "qk_normalization", True),
        "norm_type": raw.get("norm_type", "rms_norm") == "layer_norm",
    }
    check_supported(path, supported)
    return {
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


def _transformers_vit(raw, path):
    """The same from transformers' InternVLVisionConfig, whose names and defaults are others."""
    supported = {
        "use_qk_norm": not flag(raw, path, "use_qk_norm"),
        "norm_type": raw.get("norm_type", "layer_norm") == "layer_norm",
        "use_mask_token": not flag(raw, path, "use_mask_token"),
        "use_mean_pooling": flag(raw, path, "use_mean_pooling", True),
        "use_absolute_position_embeddings": flag(raw, path, "use_absolute_position_embeddings", True),
    }
    check_supported(path, supported)
    names = {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": raw.get("attention_bias", False)}
    names |= {"image_size": _side(raw, path, "image_size", 448), "patch_size": _side(raw, path, "patch_size", 14)}
    return intern_vit(raw | names, path)


def _side(raw, path, key, default):
    """The side of a square that is written as a number or as a pair of equal numbers."""
    value = first(raw, key, default=default)
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or pair[0] != pair[1]:
        raise ValueError(f"{path}: {key} must be a square, got {shown(value)}")
    return pair[0]


# ---- pictures


def _published_pictures(raw, path, vision):
    """The fields of `VitaConfig` about tiles in a published config. Defaults are those of its InternVLChatConfig."""
    size = first(raw, "force_image_size", default=vision["image_size"])
    supported = {
        "ps_version": raw.get("ps_version", "v1") == "v2",
        "select_layer": raw.get("select_layer", -1) == -1,
        "pad2square": not flag(raw, path, "pad2square"),
        "force_image_size (other than the image_size of vision_config)": size == vision["image_size"],
    }
    check_supported(path, supported)
    tiled = flag(raw, path, "dynamic_image_size")
    return {
        "min_tiles": first(raw, "min_dynamic_patch", default=1) if tiled else 1,
        "max_tiles": first(raw, "max_dynamic_patch", default=6) if tiled else 1,
        "use_thumbnail": flag(raw, path, "use_thumbnail"),
    }


def _transformers_pictures(raw, path, vision):
    """The same from transformers' picture processor, which always tiles. Sets mean and deviation in ``vision``."""
    supported = {
        "projector_hidden_act": raw.get("projector_hidden_act", "gelu") == "gelu",
        "vision_feature_layer": raw.get("vision_feature_layer", -1) == -1,
        "vision_feature_select_strategy": raw.get("vision_feature_select_strategy", "default") == "default",
    }
    check_supported(path, supported)
    file, pixels = _processor(path.parent)
    size, side = section(pixels, file, "size"), vision["image_size"]
    factor = first(pixels, "rescale_factor", default=1 / 255)
    supported = {
        "rescale_factor (other than 1/255)": isinstance(factor, float) and abs(factor * 255 - 1) < 1e-6,
        "size (other than the image_size of vision_config)": size in ({}, {"height": side, "width": side}),
        "resample (other than 3, bicubic)": first(pixels, "resample", default=3) == 3,
        **{key: flag(pixels, file, key, True) for key in ("do_resize", "do_rescale", "do_normalize")},
    }
    check_supported(file, supported)
    vision |= {key: pixels[key] for key in PIXELS if key in pixels}
    least, most = (first(pixels, key, default=n) for key, n in (("min_patches", 1), ("max_patches", 12)))
    return {"min_tiles": least, "max_tiles": most}


def _processor(folder):
    """The file with the settings of the picture processor, and the settings; empty if there is none."""
    processor, pictures = folder / "processor_config.json", folder / "preprocessor_config.json"
    if os.path.isfile(processor):
        inside = section(read_json(processor), processor, "image_processor")
        if inside:
            return processor, inside
    return pictures, read_json(pictures) if os.path.isfile(pictures) else {}


# ---- template and system text of published folders


def _published_template(raw, path):
    """The name of the chat template; each is one of `vita_ref.prompt.TEMPLATES`."""
    name = text(raw, path, "template")
    if name not in TEMPLATES:
        raise ValueError(f"{path}: the template {shown(name)} is not supported here, {' and '.join(TEMPLATES)} are")
    return name


def _system_text(raw, path):
    """The system text of config.json, or of the template in the folder's ``conversation.py``, or "".

    That file is Python and comes with the checkpoint. It is split into tokens, not run.
    """
    given, file, name = text(raw, path, "system_message"), path.parent / "conversation.py", None
    if given is not None or not os.path.isfile(file):
        return given or ""
    for key, value in _assigned_texts(file):
        if key == "system_message" and name == raw["template"]:
            return value
        name = value if key == "name" else name
    return ""


def _assigned_texts(file):
    """Yields ("name", text) and ("system_message", text) for each such assignment or argument in a Python file."""
    try:
        tokens = tokenize.generate_tokens(io.StringIO(read_text(file, "config")).readline)
        words = [(t.type, t.string) for t in tokens if t.type in (tokenize.NAME, tokenize.OP, tokenize.STRING)]
        for i, (_, key) in enumerate(words[:-1]):
            if key not in ("name", "system_message") or words[i + 1][1] != "=":
                continue
            after = itertools.dropwhile(lambda word: word[1] == "(", itertools.islice(words, i + 2, None))
            texts = [string for _, string in itertools.takewhile(lambda word: word[0] == tokenize.STRING, after)]
            yield key, "".join(map(str, map(ast.literal_eval, texts)))
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        raise ValueError(f"{file} is not Python with the templates of InternVL: {shown(str(error))}") from None
