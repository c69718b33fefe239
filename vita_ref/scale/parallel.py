"""A decoder split over the processes that torchrun starts, for a model larger than one machine's memory, or one GPU's.

    torchrun --nproc-per-node 2 -m vita_ref.generate --prompt hi

Every process (a rank) runs the whole program on the same request, but holds only its part of the decoder: its
query heads with their key/value heads and their cache, its part of the MLP, of the embeddings and of the head.

    x -> q, k, v of my heads -> attention -> o over my heads -> summed over the ranks -> x
    x -> gate, up: my part of the width -> down over my part -> summed over the ranks -> x

Norms, the eye and the ear are whole in each. The sums are the same bits everywhere, so every rank draws the same
token without being told, and only the first one prints.

The sums are hooks on plain tensors. Torch's tensors that know how they are split (DTensor, ``parallelize_module``)
do the same, but their dispatch is slow: of a narrow decoder of 24 layers a token takes 6 ms as a whole, 8 ms with
these hooks and 145 ms with those.

Test: ``pytest tests/test_parallel.py``
"""

import contextlib
import functools
import os
from dataclasses import replace

import torch
import torch.distributed as dist

from ..scale.products import linear

AXIS = {  # which axis of a decoder's matrix is dealt out: 0 what it gives, 1 what it takes (of embeddings: the width)
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"), 0),
    **dict.fromkeys(("o_proj", "down_proj", "embed_tokens"), 1),
}


# ---- the weights


def share(length):
    """This rank's part of ``length`` things, as a slice; parts differ by one at most."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return slice(rank * length // ranks, (rank + 1) * length // ranks)


def part(name, stored):
    """What this rank keeps of a tensor, by its name in `Vita`: a view."""
    axis = AXIS.get(name.split(".")[-2]) if name.startswith("decoder.") else None
    if axis is None:
        return stored
    mine = share(stored.shape[axis])
    return stored[mine] if axis == 0 else stored[:, mine]


def split(decoder):
    """Makes a decoder one of several ranks that compute together; its weights are to be read with `part`.

    Raises: ValueError where the heads cannot be dealt out evenly.
    """
    c, ranks = decoder.config, dist.get_world_size()
    heads, groups = c.num_attention_heads, c.num_key_value_heads
    if groups % ranks:
        raise ValueError(
            f"{groups} key/value heads (shared by {heads} query heads) cannot be dealt out to {ranks} processes: "
            f"start a number of processes that divides {groups}"
        )
    for name, module in decoder.named_modules():
        kind = name.rpartition(".")[2]
        if kind in ("o_proj", "down_proj"):
            module.register_forward_hook(lambda module, given, out: summed(out))
        elif kind == "embed_tokens":
            module.register_forward_hook(lambda module, given, out: gathered(out, c.hidden_size))
        elif kind == "lm_head":
            module.register_forward_hook(lambda module, given, out: gathered(out, c.vocab_size))
    if c.tie_word_embeddings:
        decoder.lm_head = functools.partial(tied_head, decoder.embed_tokens)
    mine = {"num_attention_heads": heads // ranks, "num_key_value_heads": groups // ranks}  # the cache asks for them
    decoder.config = replace(c, tie_word_embeddings=False, **mine)


# ---- the pass


def summed(mine):
    """The sum of all ranks' tensors, in the memory of this one's."""
    with reached():
        dist.all_reduce(mine)
    return mine


def gathered(mine, length):
    """All ranks' parts of the last axis side by side. Shapes: [..., this rank's share] -> [..., length]."""
    whole = mine.new_zeros(*mine.shape[:-1], length)
    whole[..., share(length)] = mine
    return summed(whole)  # parts may differ in size: then this is simpler than a gather, and as exact


def tied_head(table, hidden):
    """Logits from this rank's columns of the embeddings. Shapes: [..., D] -> [..., V]."""
    return summed(linear(hidden[..., share(hidden.shape[-1])], table.weight))


# ---- the processes


def world():
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined(device):
    """Joins the other ranks, if there are any, and gives the device of this one: ``cuda`` is one GPU each.

    Torch's own random numbers are the same on all of them.
    """
    if world() == 1:
        yield device
        return
    gpu = device == "cuda"
    with reached():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu and torch.cuda.is_available() else "gloo")
    try:
        seed = torch.randint(2**62, ())
        dist.broadcast(seed, 0)
        torch.manual_seed(int(seed))
        yield f"cuda:{os.environ['LOCAL_RANK']}" if gpu else device
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def reached():
    """Tells in one line that another rank is not there, or is there no more."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"another of the {world()} processes has ended or cannot be reached: {error}") from None


@contextlib.contextmanager
def agreed():
    """A block that all ranks get through, or none: what one raises as ValueError, all raise."""
    error = None
    try:
        yield
    except ValueError as mine:
        error = str(mine)
    errors = [error]
    if world() > 1:
        errors = [None] * world()
        with reached():
            dist.all_gather_object(errors, error)
    if told := [e for e in errors if e is not None]:
        raise ValueError(told[0])


@contextlib.contextmanager
def first_speaks():
    """Lets only the first rank write to standard output and standard error."""
    with contextlib.ExitStack() as stack:
        if world() > 1 and os.environ.get("RANK", "0") != "0":
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
