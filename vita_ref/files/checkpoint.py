"""Safetensors files -> the parameters of a module that was built on the meta device. Strict, and without a second copy.

    find_tensors   folder -> which file holds each tensor
    stored_config  the config against the headers, before anything is built from it
    check_fits     headers against the module: names, shapes and dtypes, all faults in one error, no weight is read
    read_tensors   one file -> its tensors, one by one
    load_weights   the last two in this order; each tensor gets its dtype and device and becomes a parameter

A table of prefixes maps names: ``{"decoder.": "model."}`` says that ``decoder.norm.weight`` of the module is
``model.norm.weight`` in the checkpoint (``names.py`` has those of each kind of folder). Files are memory-mapped. With ``mmap=True`` tensors that keep their dtype stay
in the map; otherwise each is copied, and the map is closed and reopened every 64 MB, because pages that were read
count as memory of the process until then.

Test: ``pytest tests/files/test_checkpoint.py``
"""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .hints import other_weights, pointer_at
from .messages import escaped, one_line_errors, shown
from .names import PREFIXES
from .values import read_json

_INDEX = "model.safetensors.index.json"
_SHOWN = 8  # names listed for each kind of fault
_LONGEST = 800  # characters of all names listed
_MAPPED = 2**26  # bytes copied through one map
_PAGE = 4096  # bytes: reading one byte of a page loads the whole page
_BLOCK = 2**24  # numbers that are compared or checked at once
_FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes in a header that weights may have
_OTHERS = {torch.long: ("I64", "I32"), torch.int8: ("I8",), torch.uint8: ("U8",)}  # counters, and quantised weights
_STEPS = "weight_scale"  # of quantised weights: they keep their dtype
_STEP_DTYPES = {torch.float32: ("F32",), torch.bfloat16: ("BF16",)}  # of int8 and int4
_NOT_WEIGHTS = "rotary_emb.inv_freq"  # a table that old checkpoints store; it follows from the config


@one_line_errors
def find_tensors(folder):
    """The file that holds each tensor of a folder: name -> path.

    Reads ``model.safetensors``, or else the shards listed in ``model.safetensors.index.json``. Tensors that are in a
    shard but not in the index are included.

    Raises: ValueError if neither file exists, a shard is missing or damaged, or a tensor is not in its shard.
    """
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / _INDEX
    if os.path.isfile(single):  # an index next to it is left from an older save
        return dict.fromkeys(read_shapes(single), single)
    if not os.path.isfile(index):
        raise ValueError(f"{folder} has no model.safetensors and no {_INDEX}{other_weights(folder)}")
    files = {name: folder / file for name, file in _read_index(index).items()}
    missing = sorted({file.name for file in files.values() if not os.path.isfile(file)})
    if missing:
        raise ValueError(f"{folder} has no {shortened(missing)}, which its {_INDEX} lists")
    for file in sorted(set(files.values())):
        inside = read_shapes(file)
        wrong = sorted(n for n, f in files.items() if f == file and n not in inside)
        if wrong:
            raise ValueError(f"{file} does not hold {shortened(wrong)}, although {_INDEX} says so")
        files |= {name: file for name in inside if name not in files}
    return files


def _read_index(path):
    """Tensor name -> file name, from the index of a sharded checkpoint."""
    weight_map = read_json(path, limit="index").get("weight_map")
    if type(weight_map) is not dict or not all(type(file) is str for file in weight_map.values()):
        raise ValueError(f"{path} is not an index of shards: its weight_map must give a file name for each tensor")
    return weight_map


def read_shapes(file):
    """The shape of every tensor of one file, from its header: name -> tuple.

    Raises: ValueError if the file is damaged.
    """
    return {name: shape for name, (shape, _) in _read_header(file).items()}


def _read_header(file):
    """Shape and dtype of every tensor of one file: name -> (tuple, the header's name of the dtype)."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            slices = {name: opened.get_slice(name) for name in names}
            return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        reason = pointer_at(file) or error
        raise ValueError(f"{file} is not a safetensors file, or it is damaged: {reason}") from None


def module_names(module, table):
    """Checkpoint name -> name in the module, for every tensor of the module. The longest matching prefix is used.
    Of a tuple of prefixes each has some rows of the tensor, in this order.

    Example: the table ``{"decoder.": "model.", "decoder.lm_head.": "lm_head."}`` gives
    ``model.norm.weight -> decoder.norm.weight`` and ``lm_head.weight -> decoder.lm_head.weight``.
    """
    names = {}
    for own in module.state_dict():
        prefix = max((p for p in table if own.startswith(p)), key=len)
        places = table[prefix]
        names |= {place + own.removeprefix(prefix): own for place in ((places,) if type(places) is str else places)}
    return names


def pieces_of(names):
    """The result of `module_names` the other way round: name in the module -> a list of the names in the checkpoint."""
    groups = {}
    for name, own in names.items():
        groups.setdefault(own, []).append(name)
    return groups


def _piece_shape(tensor, pieces):
    """The shape of one of several pieces of equally many rows."""
    shape = list(tensor.shape)
    return shape if pieces == 1 else [shape[0] // pieces, *shape[1:]]


def joined(name, stored, group, pieces):
    """The tensor whose rows a group of stored ones has, or None as long as ``pieces`` lacks one of them."""
    if len(group) == 1:
        return stored
    pieces[name] = stored.clone()
    return torch.cat([pieces.pop(each) for each in group]) if pieces.keys() >= set(group) else None


@one_line_errors
def stored_config(config, files, table=PREFIXES):
    """A `VitaConfig` compared with the headers of its files, before anything of its size is built.

    A stored head that differs from the embeddings is used although the config says that both are one tensor, as in
    `transformers`. ``files`` is the result of `find_tensors`, or empty; ``table`` has the prefixes of its names.

    Raises: ValueError if the config has more layers than the files have tensors.
    """
    for name, part in (("decoder", config.decoder), ("vision tower", config.vision), ("audio encoder", config.audio)):
        if files and part is not None and part.num_hidden_layers > len(files):
            raise ValueError(
                f"num_hidden_layers of the {name} is {part.num_hidden_layers} in config.json, but the weight files have "
                f"only {len(files)} tensors: take config.json and weights of the same checkpoint"
            )
    table_name, head = table["decoder."] + "embed_tokens.weight", table["decoder.lm_head."] + "weight"
    if not config.decoder.tie_word_embeddings or not {table_name, head} <= files.keys():
        return config
    with safe_open(files[table_name], framework="pt") as one, safe_open(files[head], framework="pt") as other:
        tied = _equal(one.get_slice(table_name), other.get_slice(head))
    return replace(config, decoder=replace(config.decoder, tie_word_embeddings=tied))


def _equal(one, other):
    """Whether two stored tensors have the same shape and values; they are read in blocks of rows."""
    shape = one.get_shape()
    if shape != other.get_shape() or len(shape) != 2:
        return False
    rows = max(1, _BLOCK // max(1, shape[1]))
    return all(one[i : i + rows].equal(other[i : i + rows]) for i in range(0, shape[0], rows))


def stored_dtype(folder):
    """The name of the dtype of a folder's embeddings, "float32" if it has no weights: what "auto" means in a config."""
    folder = Path(folder)
    if not any(os.path.isfile(folder / name) for name in ("model.safetensors", _INDEX)):
        return "float32"
    files = find_tensors(folder)
    name = next((name for name in files if name.endswith("embed_tokens.weight")), None)
    return {"BF16": "bfloat16", "F16": "float16"}.get(name and _read_header(files[name])[name][1], "float32")


@one_line_errors
def check_fits(module, table, files, ignored=()):
    """Checks a checkpoint against a module: no tensor is missing or surplus, and each has the right shape and dtype.

    ``files`` is the result of `find_tensors`. Names that begin with a prefix in ``ignored`` may be surplus.
    Returns the result of `module_names`.

    Raises: ValueError that lists the faults with their files.
    """
    names, state = module_names(module, table), module.state_dict()
    groups = pieces_of(names)
    expected = {name: _piece_shape(state[own], len(groups[own])) for name, own in names.items()}
    stored, dtypes = {}, {}
    for file in sorted(set(files.values())):
        header = {n: entry for n, entry in _read_header(file).items() if files.get(n) == file}
        stored |= {n: list(shape) for n, (shape, _) in header.items()}
        dtypes |= {n: dtype for n, (_, dtype) in header.items()}
    shards = sorted({f.name for f in files.values()})
    places = f"{shards[0]} to {shards[-1]}" if len(shards) > 1 else "".join(shards)
    unread = {n for n in files if n.startswith(tuple(ignored)) or n.endswith(_NOT_WEIGHTS)}
    surplus = [n for n in files if n not in names and n not in unread]
    misshapen = [n for n in names if n in files and stored[n] != expected[n]]
    kinds = {n: (_STEP_DTYPES if n.endswith(_STEPS) else _OTHERS).get(state[own].dtype, _FLOATS) for n, own in names.items()}
    other = [n for n in names if n in files and dtypes[n] not in kinds[n]]
    faults = {
        "missing": [f"{n} {expected[n]} (expected in {places})" for n in names if n not in files],
        "surplus": [f"{n} {stored[n]} (in {files[n].name})" for n in surplus],
        "misshapen": [f"{n} {stored[n]}, expected {expected[n]} (in {files[n].name})" for n in misshapen],
        "dtype not read here": [f"{n} {dtypes[n]}, expected {kinds[n][-1]} (in {files[n].name})" for n in other],
    }
    kinds = {kind: entries for kind, entries in faults.items() if entries}
    listed = [f"{kind}: {shortened(entries, _LONGEST // len(kinds))}" for kind, entries in kinds.items()]
    if listed:
        folder = next(iter(files.values())).parent if files else "the checkpoint"
        raise ValueError(f"{folder} does not match its config: {'. '.join(listed)}")
    return names


def shortened(items, limit=_LONGEST):
    """The first items, in about ``limit`` characters, and the number of the others. A long item is cut in the middle."""
    texts = [_cut(escaped(_cut(item))) for item in items[:_SHOWN]]  # escapes make it longer
    ends = list(itertools.accumulate(len(text) + 2 for text in texts))
    count = max(1, sum(end <= limit for end in ends))
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return "; ".join(texts[:count]) + more


def _cut(text):
    return text if len(text) <= 160 else f"{text[:100]}...{text[-57:]}"


def check_finite_values(name, tensor, file):
    """Raises: ValueError with the name of a floating tensor that has a value that is NaN or infinite."""
    if tensor.is_floating_point():
        for block in tensor.flatten().split(_BLOCK):
            if not block.isfinite().all():
                raise ValueError(f"{file}: {shown(name)} has values that are NaN or infinite: the file is damaged")


def set_param(owner, leaf, tensor):
    """Makes a tensor the parameter (without gradients) or the buffer ``leaf`` of a module."""
    if leaf in owner._parameters:
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(owner, leaf, tensor)


@one_line_errors
def load_weights(
    module, table, files, *, dtype=None, device="cpu", ignored=(), assign=set_param, part=None, mmap=False, progress=None,
    check_finite=False,
):  # fmt: skip
    """Fills a module that was built on the meta device from the files of `find_tensors`.

    Args:
        dtype: what floating tensors become; None keeps the stored dtype. Integer tensors keep theirs.
        ignored: see `check_fits`.
        assign: called as ``assign(owner, leaf, tensor)`` for each tensor in place of `set_param`.
        part: called as ``part(name in the module, tensor)``; returns the view of the tensor that is needed. Only
            this view is copied.
        mmap: leaves tensors that keep their dtype in the memory-mapped file. Loading is nearly instant and the OS may
            evict pages; the file must not be written to while the module is in use.
        progress: called as ``progress(done, total)`` after each tensor.
        check_finite: refuses weights that are NaN or infinite. It reads every weight once more.

    Raises: ValueError as `check_fits`, before any weight is read.
    """

    def stays_mapped(stored):
        return mmap and (dtype in (None, stored.dtype) if stored.is_floating_point() else stored.dtype == torch.int8)

    def put(own, stored, mapped):
        if mapped:  # load every page now, so that the first answer does not wait for the disk
            stored.flatten()[:: _PAGE // stored.itemsize].sum()
        if part is not None:
            stored = part(own, stored)
        path, _, leaf = own.rpartition(".")
        keeps = dtype is None or not stored.is_floating_point() or leaf == _STEPS
        copy = not mapped and stored.dtype != torch.uint8  # four-bit weights are reordered, which copies them
        assign(module.get_submodule(path), leaf, stored.to(device, stored.dtype if keeps else dtype, copy=copy))

    names = check_fits(module, table, files, ignored)
    wanted = [name for name in files if name in names]
    groups, pieces, done = pieces_of(names), {}, 0
    for file in sorted({files[name] for name in wanted}):
        for name, stored in read_tensors(file, [n for n in wanted if files[n] == file], stays_mapped):
            if check_finite:
                check_finite_values(name, stored, file)
            group = groups[names[name]]
            if len(group) == 1:
                put(names[name], stored, stays_mapped(stored))
            elif (whole := joined(name, stored, group, pieces)) is not None:
                put(names[name], whole, False)
            del stored  # a reference would keep this map open while the next one is read
            done += 1
            if progress:
                progress(done, len(wanted))
    return module


def read_tensors(file, names, stays_mapped):
    """Yields the name and tensor of each of ``names`` in a file, in the memory-mapped file.

    Unless ``stays_mapped(tensor)``, a tensor must be copied before the next one is taken: only then can its map be
    closed. Such tensors and those that stay mapped are read through different maps. Integers come first.
    """
    with safe_open(file, framework="pt") as opened:
        names = sorted(names, key=lambda name: opened.get_slice(name).get_dtype() in _FLOATS)
    while names:
        copied = mapped = 0
        with safe_open(file, framework="pt") as opened:
            while names and copied < _MAPPED:
                stored = opened.get_tensor(names[0])
                stays = stays_mapped(stored)
                if copied and stays or mapped and not stays:
                    del stored
                    break
                copied, mapped = (copied, mapped + 1) if stays else (copied + stored.nbytes, mapped)
                yield names.pop(0), stored
                del stored
