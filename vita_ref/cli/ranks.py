"""The command line in several processes that torchrun has started: all compute, the first one prints."""

import torch.distributed as dist

from ..scale import parallel


def run_ranks(args, load, answer_all):
    """Loads in all processes, or fails in all of them with the same message; then answers."""
    with parallel.process_group(args.device) as args.device:
        with parallel.all_or_none():
            loaded = load(args)
        answer_all(*loaded, args)


def same_errors(prepared):
    """Prepared requests, with a ValueError in place of each that any process could not prepare."""
    own = [str(each) if isinstance(each, ValueError) else None for each in prepared]
    every = [None] * dist.get_world_size()
    with parallel.connection_errors():
        dist.all_gather_object(every, own)
    first = [next(filter(None, messages), None) for messages in zip(*every)]
    return [each if message is None else ValueError(message) for each, message in zip(prepared, first)]
