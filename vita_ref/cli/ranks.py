"""The command line in several processes that torchrun has started: all compute, the first one prints."""

from ..scale import parallel


@parallel.only_first_rank_prints()
def run_ranks(args, load, answer_all):
    """Loads in all processes, or fails in all of them with the same message; then answers."""
    with parallel.process_group(args.device) as args.device:
        with parallel.all_or_none():
            loaded = load(args)
        answer_all(*loaded, args)
