"""The settings of a tokenizer's JSON files: special and added tokens, and the default system text of a chat template.

Test: ``pytest tests/files/test_tokenizer.py``
"""

import math
import os
import re

from .messages import shown
from .values import read_json

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")  # of an added token
_MOST = 2**14  # added tokens
_HIGHEST = 2**24  # id of an added token

# The default system text in a Jinja chat template: a quoted string with the whole system block. The text may contain
# \-escapes, but not the quote that opened the string. If the text comes from the messages, the string ends right after
# `system\n` and nothing matches.
_SYSTEM_TEXT = re.compile(r"""(['"])<\|im_start\|>system(?:\n|\\n)((?:\\.|(?!\1)[^\\])*?)<\|im_end\|>""", re.DOTALL)


def read_settings(folder):
    """The object of ``tokenizer_config.json``, completed by ``special_tokens_map.json``."""
    names = ("special_tokens_map.json", "tokenizer_config.json")
    other, settings = (_read_optional(folder / name) for name in names)
    settings = other | settings
    if type(adds_bos := settings.get("add_bos_token")) not in (bool, type(None)):
        raise ValueError(f"{folder / names[1]}: add_bos_token must be true or false, got {shown(adds_bos)}")
    return settings


def _read_optional(path):
    """The object in a JSON file, empty if there is no such file."""
    return read_json(path, limit="index") if os.path.isfile(path) else {}


def token_name(token, role="a special token"):
    """The name of a special token, which is written as a string, as an object with ``content``, or as null.

    Raises: ValueError for anything else.
    """
    name = token.get("content", 0) if isinstance(token, dict) else token
    if type(name) not in (str, type(None)):
        raise ValueError(f"{role} must be a text or an object with a text as content, got {shown(token)}")
    return name


def added_tokens(folder, settings):
    """Name -> flags and ``id`` of each added token (None if no file gives one), in the order of the ids.

    Raises: ValueError for tokens that are not written as Hugging Face writes them.
    """
    ids, entries = _read_optional(folder / "added_tokens.json"), settings.get("added_tokens_decoder") or {}
    try:
        added = {name: dict.fromkeys(FLAGS, False) | {"id": i} for name, i in ids.items()}
        added |= dict(_decoder_entries(entries))
        more = settings.get("additional_special_tokens") or []
        if type(more) is not list:
            raise ValueError(f"additional_special_tokens must be a list, got {shown(more)}")
        names = [token_name(settings.get(role), role) for role in ROLES] + [*map(token_name, more)]
        for name in filter(None, names):
            added[name] = added.get(name, dict.fromkeys(FLAGS, False) | {"id": None}) | {"special": True}
        for name, flags in added.items():
            _check_token(name, flags)
        if len(added) > _MOST:
            raise ValueError(f"there are {len(added)} added tokens, but at most {_MOST} are read")
    except ValueError as error:
        raise ValueError(f"{folder}: special tokens are not written as Hugging Face does: {error}") from None
    return dict(sorted(added.items(), key=lambda item: math.inf if item[1]["id"] is None else item[1]["id"]))


def _decoder_entries(entries):
    """Yields name and flags of each entry of ``added_tokens_decoder``, which maps ids to objects."""
    if type(entries) is not dict:
        raise ValueError(f"added_tokens_decoder must be an object, got {shown(entries)}")
    for i, entry in entries.items():
        if type(entry) is not dict or type(entry.get("content")) is not str:
            raise ValueError(f"token {shown(i)} must be an object with a text as content, got {shown(entry)}")
        if not (i.isascii() and i.isdigit() and len(i) < 10):
            raise ValueError(f"the id of {shown(entry['content'])} must be a number, got {shown(i)}")
        yield entry["content"], {flag: entry.get(flag, False) for flag in FLAGS} | {"id": int(i)}


def _check_token(name, flags):
    """Raises: ValueError for a name, an id or a flag that no token can have."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{shown(name)} is not valid Unicode") from None
    if not name:
        raise ValueError("the name of an added token must not be empty")
    if flags["id"] is not None and (type(flags["id"]) is not int or not 0 <= flags["id"] < _HIGHEST):
        raise ValueError(f"the id of {shown(name)} must be an integer from 0 to {_HIGHEST}, got {shown(flags['id'])}")
    for flag in FLAGS:
        if type(flags[flag]) is not bool:
            raise ValueError(f"{flag} of {shown(name)} must be true or false, got {shown(flags[flag])}")


def system_text(template):
    """The default system text in a chat template, or None."""
    match = _SYSTEM_TEXT.search(template or "")
    if match is None:
        return None
    return re.sub(r"\\(.)", lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), match[2], flags=re.DOTALL)
