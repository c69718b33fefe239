"""The process around the command line: standard streams, signals, exit statuses, one line for user errors.

Test: ``pytest tests/cli``
"""

import contextlib
import json
import math
import os
import re
import signal
import sys
import warnings

from ..files.messages import escaped, shown

STATUS = 128  # after a signal the exit status is this plus its number: 130 after Ctrl-C


def exit_status(run, parser, argv):
    """The exit status of ``run`` with the flags in ``argv``: 0, 2 after one line for a user error, 130 after Ctrl-C."""
    with signals_raise() as stopped, first_rank_prints(), standard_streams():
        try:
            args = parser.parse_args(argv)
            with warnings.catch_warnings():
                if not args.verbose:
                    warnings.simplefilter("ignore")  # of libraries about unusual files
                run(args)
            sys.stdout.flush()
        except BrokenPipeError:
            discard_output()
        except KeyboardInterrupt as stop:
            return STATUS + (stop.args[0] if stop.args else signal.SIGINT)
        except Exception as error:
            if stopped:
                return stopped[0]
            if (message := user_message(error)) is None:
                raise
            discard_output()
            print(f"vita_ref: {message}", file=sys.stderr)
            return 2
    return 0


def user_message(error):
    """One line about an error that the user can fix; None for any other."""
    no_memory = isinstance(error, RuntimeError) and re.search("(allocate|out of|not enough) memory", str(error))
    if no_memory or isinstance(error, MemoryError):
        return "there is not enough memory: --dry-run prints what a request needs"
    if not isinstance(error, (ValueError, OSError)):
        return None
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, (str, bytes)):
        return f"{shown(error.filename)}: {error.strerror}"
    return one_line(error)


def one_line(message, limit=2000):
    """A message as one line of at most ``limit`` characters, without control characters and without very long words."""
    words = (word if len(word) <= 255 else f"{word[:80]}..." for word in str(message).split())
    text = escaped(" ".join(words))
    return text if len(text) <= limit else f"{text[:limit]}..."


def run_process(main):
    """Ends the process with the exit status of ``main()``. After a signal at once: a thread may still be computing."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the package has another one while it is imported
    try:
        status = main()
    except KeyboardInterrupt:
        status = STATUS + signal.SIGINT
    if status > STATUS:
        os._exit(status)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


# ---- standard streams


class Tolerant:
    """Standard error, which may be closed or full: what cannot be written there is dropped."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def standard_streams():
    """Inside the block, closed streams lead nowhere, and standard output takes every character.

    A file or a pipe with another encoding than UTF-8 gets UTF-8. A terminal keeps its encoding, and gets ``?`` for what
    that lacks.
    """
    for number in range(3):  # else the next files that are opened would become the standard streams
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, before = sys.stdout or nowhere, None
        encoding = (getattr(out, "encoding", None) or "utf-8").lower().replace("-", "")
        if not encoding.startswith("utf") and hasattr(out, "reconfigure"):
            before = {"encoding": out.encoding, "errors": out.errors}
            out.reconfigure(**({"errors": "replace"} if out.isatty() else {"encoding": "utf-8"}))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(Tolerant(sys.stderr or nowhere)):
                yield
        finally:
            if before:
                with contextlib.suppress(OSError):
                    out.reconfigure(**before)


def discard_output():
    """Sends the rest of standard output nowhere if it fails, so that Python's own flush at exit cannot fail."""
    try:
        sys.stdout.flush()
    except OSError:
        if sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def first_rank_prints():
    """Discards standard output and standard error of all processes of torchrun but the first."""
    size, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    if size == "1" or not (size.isdigit() and rank.isdigit() and 0 < int(rank) < int(size)):
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def json_line(value):
    """A value as one line of JSON: null for NaN and infinity, escapes for what standard output cannot encode."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        value = finite(value)
        text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text


def finite(value):
    """A JSON value with None for NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- signals


@contextlib.contextmanager
def signals_raise():
    """Inside the block, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt with their number; the second ends the process.

    Yields a list, which gets the exit status after a signal: torch may turn a KeyboardInterrupt into another error.
    A signal that is ignored, as under nohup, or for which the caller has a handler, stays as it is.
    """

    def stop(number, frame):
        stopped.append(STATUS + number)
        for each in before:
            signal.signal(each, lambda number, frame: os._exit(STATUS + number))
        raise KeyboardInterrupt(int(number))

    stopped = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: h for n in numbers if (h := signal.getsignal(n)) in (signal.SIG_DFL, signal.default_int_handler)}
    try:
        for number in before:
            signal.signal(number, stop)
    except ValueError:  # not in the main thread, which alone gets signals
        before = {}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- progress


def watched(args):
    """Whether progress and timings are printed: standard error is a terminal, or --verbose."""
    return args.verbose or getattr(sys.stderr, "isatty", bool)()


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


@contextlib.contextmanager
def reading_bar(wanted=True):
    """Yields a function that shows how much of a picture, a sound or a prompt has been read, on standard error.

    It takes what is read, the positions done, and all of them. A bar appears after a second, and goes when all are done.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        wanted = False
    bars = {}

    def report(what, done, total):
        if what not in bars and done < total:
            bars[what] = tqdm(total=total, desc=f"reading {what}", unit=" positions", delay=1.0, leave=False, file=sys.stderr)
        if what in bars:
            bars[what].update(done - bars[what].n)
        if done >= total and what in bars:
            bars.pop(what).close()

    try:
        yield report if wanted else None
    finally:
        for bar in bars.values():
            bar.close()
