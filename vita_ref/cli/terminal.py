"""Output on standard error: progress, and one line for user errors."""

import contextlib
import os
import re
import sys
import warnings


def exit_status(function, args):
    """The exit status of ``function(args)``: 0, or 2 after one line on standard error for a user error."""
    if not args.verbose:
        warnings.simplefilter("ignore")  # of libraries about unusual files
    try:
        function(args)
    except BrokenPipeError:
        return 0
    except (ValueError, OSError) as error:
        print(f"vita_ref: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not re.search("allocate memory|out of memory", str(error)):
            raise
        print("vita_ref: there is not enough memory: --dry-run prints what a request needs", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def only_first_rank_prints():
    """Discards standard output and standard error of all processes of torchrun but the first."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def watched(args):
    """Whether progress and timings are printed: standard error is a terminal, or --verbose."""
    return args.verbose or sys.stderr.isatty()


def loading_bar():
    """A progress bar if loading takes more than a second and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar = tqdm(unit=" tensors", delay=1.0, leave=False, file=sys.stderr)

    def progress(done, total):
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress
