"""Bounded reading of small files, and typed values from them: JSON and YAML -> checked dicts -> config dataclasses.

Every reader of a folder uses these. A file larger than its limit, nested more deeply than `DEEPEST`, or of other types
than expected raises a ValueError that names the file and the key.

Test: ``pytest tests/files/test_values.py``
"""

import json
import os
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import get_args

from .hints import pointer_reason
from .messages import shown

LIMITS = {  # bytes of a file
    "config": 2**20,  # config.json and the like
    "yaml": 2**16,  # train.yaml
    "index": 2**23,  # the index of shards, tokenizer_config.json, added tokens
    "conversation": 2**30,  # with its media
    "pickle": 2**22,  # the part of a final.pt that is no tensor
    "vocabulary": 2**28,  # tokenizer.json, vocab.json, merges.txt, tokenizer.model
}
DEEPEST = 32  # objects and lists inside each other
MOST_VALUES = 2**19  # of a file, after the aliases of YAML are expanded


def read_bytes(path, limit):
    """The bytes of a file. Raises: ValueError if it cannot be read, or is larger than ``LIMITS[limit]``."""
    try:
        with open(path, "rb") as file:
            content = file.read(LIMITS[limit] + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > LIMITS[limit]:
        raise ValueError(f"{path} is larger than {LIMITS[limit]:,} bytes, which no such file is")
    if reason := pointer_reason(content):
        raise ValueError(f"cannot read {path}: {reason}")
    return content


def read_text(path, limit):
    """The text of a UTF-8 file. Raises: ValueError as `read_bytes`, and for other encodings."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_json(path, kind=dict, limit="config"):
    """The object (or with ``kind=list`` the list) in a JSON file.

    Raises: ValueError if the file is missing, too large, too deep, is not valid JSON, or is of another kind.
    """
    path = Path(path)
    if not os.path.isfile(path):
        folder = shown(path.parent, limit=400)[1:-1]
        raise ValueError(f"{folder} is not a checkpoint folder: it has no {path.name}")
    text = read_text(path, limit)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} has more than {DEEPEST} lists or objects inside each other") from None
    if type(value) is not kind:
        expected = {dict: "an object", list: "a list"}[kind]
        raise ValueError(f"{path} is a JSON {type(value).__name__}, expected {expected}")
    return check_depth(value, path)


def read_yaml(path):
    """The content of a YAML file. Raises: ValueError as `read_json`, and for merge keys (``<<``)."""
    try:
        import yaml
    except ImportError:
        raise ValueError(f"reading {path} needs pyyaml: pip install pyyaml") from None

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent, index):
            if self.depth > DEEPEST:
                raise RecursionError
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def flatten_mapping(self, node):  # merging can double the size of a mapping with every line
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise ValueError("merge keys (<<) are not read: write the values out")

    text = read_text(path, "yaml")
    try:
        value = yaml.load(text, Loader)
    except RecursionError:
        raise ValueError(f"{path} has more than {DEEPEST} lists or objects inside each other") from None
    except Exception as error:  # noqa: BLE001, the library lets errors of many classes through
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    return check_depth(value, path)


def check_depth(value, path):
    """Returns a value of dicts and lists unchanged. Raises: ValueError if it is too deep or has too many values."""
    level, count = [value], 0
    for _ in range(DEEPEST + 1):
        nested = [each for each in level if isinstance(each, (dict, list, tuple, set))]
        count += sum(map(len, nested))
        if count > MOST_VALUES:
            raise ValueError(f"{path} has more than {MOST_VALUES:,} values")
        if not nested:
            return value
        level = [v for each in nested for v in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(f"{path} has more than {DEEPEST} lists or objects inside each other")


# ---- typed values


def require(raw, path, *keys):
    """The values of keys that are required.

    Raises: ValueError with the names of all keys that are missing.
    """
    missing = [k for k in keys if k not in raw]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return [raw[k] for k in keys]


def sizes(raw, path, *keys):
    """Like `require`, for integers of at least 1."""
    for key, value in zip(keys, require(raw, path, *keys)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {key} must be an integer of at least 1, got {shown(value)}")
    return [raw[key] for key in keys]


def section(raw, path, key):
    """The object of a key, empty if the key is absent or null."""
    return _typed(raw, path, key, dict, "an object", {})


def flag(raw, path, key, default=False):
    """The bool of a key, ``default`` if the key is absent or null."""
    return _typed(raw, path, key, bool, "true or false", default)


def text(raw, path, key, default=None):
    """The text of a key, ``default`` if the key is absent or null."""
    return _typed(raw, path, key, str, "a text", default)


def first(raw, *keys, default=None):
    """The value of the first key that is present and not null."""
    return next((raw[key] for key in keys if raw.get(key) is not None), default)


def check_supported(path, supported):
    """Raises: ValueError with the names of all settings that this project does not support (name -> whether it does)."""
    unsupported = [name for name, is_supported in supported.items() if not is_supported]
    if unsupported:
        raise ValueError(f"{path}: not supported here: {', '.join(unsupported)}")


def _typed(raw, path, key, kind, expected, default):
    value = first(raw, key, default=default)
    if value is not default and type(value) is not kind:
        raise ValueError(f"{path}: {key} must be {expected}, got {shown(value)}")
    return value


def build(cls, values, path):
    """A config dataclass from a dict of its fields; lists become tuples, objects the dataclass of their field.

    Raises: ValueError that names the file, for a field that is unknown, missing, of another type or out of range.
    """
    if type(values) is not dict:
        raise ValueError(f"{path}: {cls.__name__} must be a JSON object, got {shown(values)}")
    unknown = sorted(shown(name)[1:-1] for name in values.keys() - {f.name for f in fields(cls)})
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if unknown or missing:
        raise ValueError(f"{path}: {cls.__name__} has {_listed('unknown', unknown)}{_listed('missing', missing)}")
    nested = {f.name: next(filter(is_dataclass, (f.type, *get_args(f.type))), None) for f in fields(cls)}
    built = {k: build(nested[k], v, path) if nested[k] and type(v) is dict else _tuples(v) for k, v in values.items()}
    try:
        return cls(**built)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _listed(what, names):
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{what} fields: {', '.join(names[:8])}{more}. " if names else ""
