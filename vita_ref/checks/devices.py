"""Devices that torch cannot use here, with what to do instead.

Test: ``pytest tests/checks/test_devices_and_dtypes.py``
"""

import torch

from ..files.messages import escaped, shown

KINDS = {"cuda": "NVIDIA or AMD GPU", "mps": "Apple GPU", "xpu": "Intel GPU"}


def as_device(given):
    """A device that can hold the model. Raises: ValueError for one that torch cannot use here."""
    try:
        device = torch.device(given)
        if device.type != "meta":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError, OverflowError) as error:
        raise ValueError(f"the device {shown(given)} cannot be used: {advice(given, error)}") from None
    if device.type == "meta":
        raise ValueError("the device meta has no values: --dry-run shows what a request needs")
    return device


def advice(given, error):
    """What to do about a device that does not work."""
    here = available()
    kind = str(given).partition(":")[0].lower()
    if kind in KINDS and kind not in here:
        built = " (this torch is the build without CUDA)" if kind == "cuda" and torch.version.cuda is None else ""
        return f"torch finds no {KINDS[kind]} here{built}, only {', '.join(here)}: leave the device out to use cpu"
    if kind in KINDS:
        reason = (str(error).splitlines() or ["unknown"])[0][:120]
        return f"{escaped(reason)}; torch finds {', '.join(here)} here"
    names = ", ".join(["cpu", *(f"{name} ({what})" for name, what in KINDS.items())])
    return f"devices are {names}, and cuda:1 is the second one; torch finds {', '.join(here)} here"


def available():
    """The devices that torch can use here, as names."""
    found = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "xpu": torch.xpu.is_available}
    return ["cpu", *(name for name, is_available in found.items() if is_available())]
