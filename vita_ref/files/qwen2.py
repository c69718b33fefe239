"""The config of a Qwen2, Qwen2.5 or Qwen3 decoder, in a folder of its own or inside another config.

Test: ``pytest tests/files/test_folders.py tests/files/test_internvl_folders.py``
"""

import os

from ..config import DecoderConfig
from .rope import read_rope
from .values import build, check_supported, first, flag, read_json, sizes


def decoder_config(raw, path):
    """A `DecoderConfig`. Defaults are those of Hugging Face's Qwen2Config, and of Qwen3Config if that is the model_type.

    Raises: ValueError for a size that is missing, and for settings that are not supported.
    """
    vocab, width, mlp, layers, heads = sizes(
        raw, path, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
    )
    is_qwen3 = raw.get("model_type") == "qwen3"
    supported = {
        "hidden_act": raw.get("hidden_act", "silu") == "silu",
        "use_sliding_window": not flag(raw, path, "use_sliding_window"),
        "attention_bias": not (is_qwen3 and flag(raw, path, "attention_bias")),
    }
    check_supported(path, supported)
    theta, yarn = read_rope(raw, path)
    length = raw.get("max_position_embeddings", 32768)
    if yarn and type(length) is int:  # Qwen2.5's cards add YaRN and leave this number as it was
        length = max(length, int(yarn.factor * yarn.original_max_position_embeddings))
    decoder = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": first(raw, "num_key_value_heads", default=heads),
        "head_dim": first(raw, "head_dim", default=128 if is_qwen3 else width // heads),
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": yarn,
        "max_position_embeddings": length,
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "attention_bias": not is_qwen3,
        "qk_norm": is_qwen3,
    }
    return build(DecoderConfig, decoder, path)


def token_ids(raw, folder):
    """The fields of `VitaConfig` with special tokens: those of ``generation_config.json``, or else of the config."""
    generation = folder / "generation_config.json"
    defaults = read_json(generation) if os.path.isfile(generation) else {}
    eos = defaults.get("eos_token_id", raw.get("eos_token_id"))
    return {
        "bos_token_id": raw.get("bos_token_id"),
        "eos_token_ids": [] if eos is None else eos if isinstance(eos, list) else [eos],
        "pad_token_id": defaults.get("pad_token_id", raw.get("pad_token_id")),
    }
