"""A decoder split over the processes that torchrun starts, for a model larger than one machine's or GPU's memory.

    torchrun --nproc-per-node 2 -m vita_ref.generate --prompt hi

Every process (a rank) runs the whole program on the same request, but has only its part of the decoder: its query
heads with their key/value heads and their cache, its part of the MLP, of the embeddings and of the head.

    x -> q, k, v of this rank's heads -> attention -> o_proj over these heads -> summed over the ranks -> x
    x -> gate, up: this rank's part of the width -> down_proj over this part -> summed over the ranks -> x

Norms, vision tower and audio encoder are whole on every rank. The sums have the same bits on every rank, so all ranks
choose the same tokens without communicating them, and only the first one prints.

The sums are hooks on plain tensors. Torch's own split tensors (DTensor, ``parallelize_module``) do the same but are
dispatched slowly: a token of a narrow decoder of 24 layers takes 6 ms without splitting, 8 ms with these hooks and
145 ms with DTensor.

Test: ``pytest tests/scale/test_parallel.py``
"""

import contextlib
import os
from dataclasses import replace

import torch
import torch.distributed as dist

AXIS = {  # the axis of a decoder's matrix that is split: 0 outputs, 1 inputs (of embeddings: the width)
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"), 0),
    **dict.fromkeys(("o_proj", "down_proj", "embed_tokens"), 1),
}


# ---- the weights


def own_slice(length):
    """This rank's part of ``length`` elements, as a slice. The parts of two ranks differ by one element at most."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return slice(rank * length // ranks, (rank + 1) * length // ranks)


def part(name, stored):
    """The view of a stored tensor that this rank keeps. ``name`` is the tensor's name in `Vita`."""
    axis = AXIS.get(name.split(".")[-2]) if name.startswith("decoder.") else None
    if axis is None:
        return stored
    own = own_slice(stored.shape[axis])
    return stored[own] if axis == 0 else stored[:, own]


def split(decoder):
    """Makes a decoder one of several ranks that compute together. Its weights have to be loaded with `part`.

    Raises: ValueError if the number of ranks does not divide the key/value heads.
    """
    c, ranks = decoder.config, dist.get_world_size()
    heads, groups = c.num_attention_heads, c.num_key_value_heads
    if groups % ranks:
        raise ValueError(
            f"{groups} key/value heads (shared by {heads} query heads) cannot be divided among {ranks} processes: "
            f"start a number of processes that divides {groups}"
        )
    for name, module in decoder.named_modules():
        kind = name.rpartition(".")[2]
        if kind in ("o_proj", "down_proj"):
            module.register_forward_hook(lambda module, inputs, out: all_sum(out))
        elif kind == "embed_tokens":
            module.register_forward_hook(lambda module, inputs, out: all_gather(out, c.hidden_size))
        elif kind == "lm_head" and c.tie_word_embeddings:  # the table's columns are split, so logits are partial sums
            module.register_forward_pre_hook(lambda module, inputs: inputs[0][..., own_slice(c.hidden_size)])
            module.register_forward_hook(lambda module, inputs, out: all_sum(out))
        elif kind == "lm_head":
            module.register_forward_hook(lambda module, inputs, out: all_gather(out, c.vocab_size))
    # the cache takes its number of heads from the config
    decoder.config = replace(c, num_attention_heads=heads // ranks, num_key_value_heads=groups // ranks)


# ---- the pass


def all_sum(own):
    """The sum of all ranks' tensors, in the memory of this one's if it is contiguous."""
    own = own.contiguous()  # gloo ignores strides
    with connection_errors():
        dist.all_reduce(own)
    return own


def all_gather(own, length):
    """All ranks' parts of the last axis side by side. Shapes: [..., this rank's part] -> [..., length]."""
    whole = own.new_zeros(*own.shape[:-1], length)
    whole[..., own_slice(length)] = own
    return all_sum(whole)  # a sum is simpler than a gather of parts that differ in size, and as exact


# ---- the processes


def num_processes():
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def process_group(device):
    """Joins the other ranks, if there are any. Yields the device of this rank: with ``cuda`` each has one GPU.

    Torch's default generator has the same seed on all ranks.
    """
    if num_processes() == 1:
        yield device
        return
    gpu = device == "cuda"
    with connection_errors():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu and torch.cuda.is_available() else "gloo")
    try:
        seed = torch.randint(2**62, ())
        dist.broadcast(seed, 0)
        torch.manual_seed(int(seed))
        yield f"cuda:{os.environ['LOCAL_RANK']}" if gpu else device
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def connection_errors():
    """Turns torch's error about an unreachable rank into a ValueError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"another of the {num_processes()} processes has ended or cannot be reached: {error}") from None


@contextlib.contextmanager
def all_or_none():
    """A block that either all ranks complete or none: a ValueError on one rank is raised on all."""
    error = None
    try:
        yield
    except ValueError as own:
        error = str(own)
    errors = [error]
    if num_processes() > 1:
        errors = [None] * num_processes()
        with connection_errors():
            dist.all_gather_object(errors, error)
    errors = [e for e in errors if e is not None]
    if errors:
        raise ValueError(errors[0])
