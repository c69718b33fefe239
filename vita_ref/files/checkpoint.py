"""Safetensors folders into a module that was built on the meta device: exact names, exact shapes, one copy.

A table of prefixes says where the checkpoint keeps each part of the module. Files are memory-mapped, and their
tensors either stay there or are copied out one by one in the wanted dtype, with the map let go every 64 MB: the
peak is the weights and that. What is missing, surplus or misshapen is told in one error, before anything is read.

Test: ``pytest tests/test_checkpoint.py``
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

_INDEX = "model.safetensors.index.json"
_SHOWN = 8  # names listed of each kind of fault
_MAPPED = 2**26  # bytes copied through one map: pages that were read count as memory until it is let go
_PAGE = 4096  # bytes that a map reads at once, at least


def locate(folder):
    """Where each tensor of a folder lies: name -> file. One ``model.safetensors``, or shards with their index.

    Raises: ValueError where neither is there, the index names a file that is not, or a file is damaged.
    """
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():  # an index beside it is of an older save
        listed = dict.fromkeys(headers(single), single)
    elif index.is_file():
        try:
            weight_map = {n: str(f) for n, f in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is no index of shards: {error!r}") from None
        absent = sorted({f for f in weight_map.values() if not (folder / f).is_file()})
        if absent:
            raise ValueError(f"{folder} lacks {', '.join(absent[:_SHOWN])}, which its {_INDEX} names")
        listed = {name: folder / f for name, f in weight_map.items()}
    else:
        raise ValueError(f"{folder} has no model.safetensors and no {_INDEX}")
    for file in sorted(set(listed.values())):  # what a shard holds counts, not what the index says of it
        inside = headers(file)
        wrong = sorted(n for n, f in listed.items() if f == file and n not in inside)
        if wrong:
            raise ValueError(f"{file} does not hold {', '.join(wrong[:_SHOWN])}, which {_INDEX} places there")
        listed.update((name, file) for name in inside if name not in listed)
    return listed


def headers(file):
    """Name -> shape of every tensor of one file, from its header alone."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from None


def expected_names(module, table):
    """Checkpoint name -> name in the module, by the longest prefix of the table that fits.

    Example: the table ``{"decoder.": "model.", "decoder.lm_head.": "lm_head."}`` gives
    ``model.norm.weight -> decoder.norm.weight`` and ``lm_head.weight -> decoder.lm_head.weight``.
    """
    names = {}
    for own in module.state_dict():
        prefix = max((p for p in table if own.startswith(p)), key=len)
        names[table[prefix] + own.removeprefix(prefix)] = own
    return names


def account(module, table, files, ignored=()):
    """Checks a checkpoint against a module: every name there, none too many, every shape right.

    ``files`` maps names to files; names that begin with an ``ignored`` prefix may be surplus.
    Raises: ValueError that lists all faults with their files.
    """
    names, state = expected_names(module, table), module.state_dict()
    shapes = {}
    for file in sorted(set(files.values())):
        shapes |= headers(file)
    where = sorted({f.name for f in files.values()})
    where = f"{where[0]} to {where[-1]}" if len(where) > 1 else "".join(where)
    faults = {
        "missing": [f"{n} {list(state[own].shape)} (expected in {where})" for n, own in names.items() if n not in files],
        "surplus": [
            f"{n} {list(shapes[n])} (in {f.name})"
            for n, f in files.items()
            if n not in names and not n.startswith(tuple(ignored))
        ],
        "misshapen": [
            f"{n} {list(shapes[n])}, expected {list(state[own].shape)} (in {files[n].name})"
            for n, own in names.items()
            if n in files and shapes[n] != tuple(state[own].shape)
        ],
    }
    told = []
    for kind, found in faults.items():
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            told.append(f"{kind}: {'; '.join(found[:_SHOWN])}{more}")
    if told:
        folder = next(iter(files.values())).parent if files else "the checkpoint"
        raise ValueError(f"{folder} does not fit its config: {'. '.join(told)}")
    return names


def put(owner, leaf, tensor):
    """Makes ``tensor`` the parameter or buffer ``leaf`` of a module, without gradients."""
    if leaf in owner._parameters:
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(owner, leaf, tensor)


def load(module, table, files, *, dtype=None, device="cpu", ignored=(), assign=put, part=None, mmap=False, progress=None):
    """Fills a module built on the meta device from ``files`` (see `locate`), strictly.

    Floating-point tensors become ``dtype`` (None: as stored), the others stay. ``assign(owner, leaf,
    tensor)`` puts one tensor in its place; by default as a parameter or buffer of that name.
    ``part(name in the module, tensor)`` gives what is wanted of it, where not all is; the rest is never read.
    ``mmap`` leaves in the file's map what has its dtype already: no copy, and under memory pressure the system
    may drop it and read it again; then the file must not be written to while the module is used.
    ``progress(done, total)`` is told how many tensors have been read.
    """

    def stays(stored):
        return mmap and stored.is_floating_point() and dtype in (None, stored.dtype)

    names = account(module, table, files, ignored)
    wanted = [n for n in files if n in names]
    done = 0
    for file in sorted({files[n] for n in wanted}):
        for name, stored in tensors(file, [n for n in wanted if files[n] == file], stays):
            if stays(stored):
                stored.flatten()[:: _PAGE // stored.itemsize].sum()  # has each page read now, not in the first answer
            stored = part(names[name], stored) if part else stored
            kind = dtype if stored.is_floating_point() and dtype is not None else stored.dtype
            path, _, leaf = names[name].rpartition(".")
            assign(module.get_submodule(path), leaf, stored.to(device, kind, copy=not stays(stored)))
            del stored  # or its map would stay beside the next one
            done += 1
            if progress:
                progress(done, len(wanted))
    return module


def tensors(file, names, stays):
    """Names and tensors of a file one by one, each to be copied before the next is asked for unless it ``stays``."""
    names = list(names)
    while names:
        read = 0
        with safe_open(file, framework="pt") as opened:
            while names and read < _MAPPED:
                name = names.pop(0)
                stored = opened.get_tensor(name)
                read += 0 if stays(stored) else stored.nbytes
                yield name, stored
                del stored
