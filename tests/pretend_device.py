"""A second device for tests on a machine that has none: tensors that say "maia" and compute on the CPU.

    with pretend():
        x = torch.ones(3, device="maia")
        x + torch.arange(3)              # RuntimeError, as on a GPU: the operands are on two devices

Everything that reaches torch's dispatcher is watched, so a tensor that is made without ``device=`` is found as soon as it
meets one that is not on the CPU. As on a GPU, a tensor of a single number (0-dim) may be on the CPU.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("maia", 0)  # torch knows the name, and loads nothing for it


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on `DEVICE`; ``inner`` has its values."""

    @staticmethod
    def __new__(cls, inner):
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        out = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **options)
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __repr__(self):
        return f"Elsewhere({self.inner})"


READ = {getattr(torch.Tensor, f"__{name}__") for name in ("float", "int", "bool", "index")}
READ |= {torch.Tensor.item, torch.Tensor.tolist}


class Functions(TorchFunctionMode):
    """The functions for which torch would look for a driver of the device before it dispatches."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        away = any(isinstance(x, Elsewhere) for x in tree_leaves((args, kwargs)))
        if func in (torch.tensor, torch.as_tensor):
            asked = kwargs.get("device")
            out = func(*tree_map(inner_of, args), **kwargs | {"device": "cpu"})
            return Elsewhere(out) if (away if asked is None else torch.device(asked).type == DEVICE.type) else out
        func = torch.bitwise_not if func is torch.Tensor.__invert__ else func
        if away and func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            check_same_device("an assignment", [args[0], *args[2:]])  # the index itself may be on the CPU
            out = func(*tree_map(inner_of, args))
            return out if out is None else Elsewhere(out)
        return func(*tree_map(inner_of, args)) if away and func in READ else func(*args, **kwargs)


class Operations(TorchDispatchMode):
    """Everything else."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextlib.contextmanager
def pretend():
    """Inside the block, tensors can be made on `DEVICE` and moved there."""
    with Operations(), Functions():
        yield


def run(func, args, kwargs):
    """An operation on the inner tensors. Its result is on the device that is asked for, or else on that of its inputs."""
    name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
    inputs = [x for x in leaves if isinstance(x, torch.Tensor)]
    asked = next((x for x in leaves if isinstance(x, torch.device)), None)
    if name not in ("to", "_to_copy", "copy_") and not name.startswith("new_"):
        check_same_device(name, inputs)
    out = func(*tree_map(inner_of, args), **tree_map(inner_of, kwargs))
    if name.endswith("_") and not name.startswith("_"):
        return args[0]
    to_away = any(isinstance(x, Elsewhere) for x in inputs) if asked is None else asked.type == DEVICE.type
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out) if to_away else out


def check_same_device(name, inputs):
    """Refuses tensors on two devices, but for single numbers on the CPU."""
    here = [list(x.shape) for x in inputs if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) and x.dim()]
    if here and any(isinstance(x, Elsewhere) for x in inputs):
        raise RuntimeError(f"{name}: tensors of {here} are on the CPU, others on {DEVICE}")


def inner_of(x):
    """What the CPU computes with in place of an argument."""
    return x.inner if isinstance(x, Elsewhere) else torch.device("cpu") if isinstance(x, torch.device) else x


def move(module):
    """Moves a module there, in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(Elsewhere(value.detach()), requires_grad=False)
        for name, value in part._buffers.items():
            part._buffers[name] = Elsewhere(value)
    return module
