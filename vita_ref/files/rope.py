"""The rotary positions of a Qwen2 config, in its old and new spellings -> theta and a `YarnConfig` or None.

    rope_theta, rope_scaling            old spelling; rope_scaling has the key type or rope_type
    rope_parameters {rope_theta, ...}   new spelling

As in `transformers`, rope_scaling replaces rope_parameters, and the theta inside them has priority.

Test: ``pytest tests/files/test_folders.py``
"""

import math

from ..config import YarnConfig
from .messages import shown
from .values import build, first, section

_FIELDS = ("factor", "beta_fast", "beta_slow", "attention_factor", "truncate")
_KNOWN = {"type", "rope_type", "rope_theta", "original_max_position_embeddings", "mscale", "mscale_all_dim", *_FIELDS}


def read_rope(raw, path):
    """rope_theta, and the `YarnConfig` or None, of a Qwen2 config.

    Raises: ValueError for another type of scaling, for unknown keys, and for values of the wrong type.
    """
    rope = section(raw, path, "rope_scaling") or section(raw, path, "rope_parameters")
    if unknown := rope.keys() - _KNOWN:
        raise ValueError(f"{path}: not supported here: {', '.join(map(shown, sorted(unknown)[:8]))} in rope_scaling")
    theta = first(rope, "rope_theta", default=first(raw, "rope_theta", default=10000.0))
    kind = first(rope, "rope_type", "type", default="default")
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise ValueError(f"{path}: not supported here: rope_scaling of type {shown(kind)} (default and yarn are)")
    values = {key: rope[key] for key in _FIELDS if rope.get(key) is not None}
    lengths = (raw, "original_max_position_embeddings"), (rope, "original_max_position_embeddings")
    known = (first(where, key) for where, key in (*lengths, (raw, "max_position_embeddings")))
    length = next((n for n in known if n is not None), 32768)
    yarn = build(YarnConfig, {"original_max_position_embeddings": length} | values, f"{path}, rope_scaling")
    return theta, _with_mscale(yarn, rope, path)


def _with_mscale(yarn, rope, path):
    """DeepSeek's spelling of attention_factor: the quotient of two scales that are weighted by mscale."""
    weights = [first(rope, key, default=0) for key in ("mscale", "mscale_all_dim")]
    if any(type(w) not in (int, float) or not 0 <= w <= 1e6 for w in weights):
        raise ValueError(f"{path}: mscale and mscale_all_dim must be numbers of at least 0, got {shown(weights)}")
    if yarn.attention_factor is not None or not all(weights):
        return yarn
    top, bottom = (0.1 * w * math.log(yarn.factor) + 1.0 for w in weights)
    return build(YarnConfig, vars(yarn) | {"attention_factor": top / bottom}, path)
