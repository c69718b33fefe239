"""Options, configs and requests cannot be changed after they were checked."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vita_ref"
FILES = [*PACKAGE.glob("*.py"), *PACKAGE.glob("files/*.py")]  # a server, a page and a conversation have states that change
MODULES = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in sorted(FILES) if file.stem != "__init__"]
CLASSES = [
    cls
    for name in MODULES
    for cls in vars(importlib.import_module(name)).values()
    if inspect.isclass(cls) and cls.__module__ == name and dataclasses.is_dataclass(cls)
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
