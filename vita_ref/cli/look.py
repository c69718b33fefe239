"""``--page`` and ``--explain``: one answer, with what it was made of.

Test: ``pytest tests/cli/test_page_flags.py``
"""

import itertools
import os
import sys

from ..analysis.look import look_at_request
from ..files.output import complete_file
from .flags import sampling_options
from .terminal import watched


def show_look(vita, requests, load_seconds, args):
    """Answers the request, prints the answer (after the table, with --explain), and writes the page."""
    options = vars(sampling_options(args))
    look = look_at_request(vita, requests[0], tokens=args.page_tokens, passes=args.page_passes, derive=bool(args.page),
                           progress=reporter() if watched(args) else None, **options)  # fmt: skip
    if args.explain:
        print(look.table() + "\n")
    print(look.text, flush=True)
    if args.page:
        write_page(look, args.page, "--page")
    if watched(args):
        print(f"load_s {load_seconds:.4f}, {len(look.positions)} positions, {look.plan}", file=sys.stderr)


def write_page(look, path, flag):
    """Writes the page, which is complete or not there; ``flag`` is what named it. Raises: ValueError."""
    with complete_file(path, flag) as file:
        look.save(file)


def free_name(path):
    """The name of a file, or where there is one already, the next with a number: look.html, look-2.html, ..."""
    stem, end = os.path.splitext(path)
    names = (f"{stem}-{i}{end}" if i > 1 else path for i in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def reporter():
    """Prints the cost before the slow part, and then every tenth of it, on standard error."""
    printed = 0

    def progress(message, total=None):
        nonlocal printed
        if total is None:
            print(message, file=sys.stderr, flush=True)
        elif 10 * message // total > printed:
            printed = 10 * message // total
            print(f"  {message} of {total} passes", file=sys.stderr, flush=True)

    return progress
