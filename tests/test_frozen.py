"""Options, configs and requests cannot be changed after they were checked."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vita_ref"
MODULES = [".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in sorted(PACKAGE.rglob("*.py")) if f.stem != "__init__"]
STATES = {"Medium", "Message"}  # of a conversation, which goes on


def contents(name):
    """What a module defines; nothing if it needs a library that is not installed, as the server does."""
    try:
        return vars(importlib.import_module(name)).values()
    except ModuleNotFoundError as missing:
        assert not missing.name.startswith("vita_ref")
        return ()


CLASSES = [
    cls
    for name in MODULES
    for cls in contents(name)
    if inspect.isclass(cls) and cls.__module__ == name and dataclasses.is_dataclass(cls) and cls.__name__ not in STATES
]


def test_the_dataclasses_are_found():
    assert {"Template", "Sampling", "Request", "VitaConfig", "DecoderConfig"} <= {cls.__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_field_of_a_dataclass_can_be_assigned_or_deleted(cls):
    value = object.__new__(cls)  # without its fields, whose checks are not meant here
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(value, field.name)
