"""``python -m vita_ref.serve``: a page at http://127.0.0.1:8000/, and OpenAI's protocol under ``/v1/``.

Test: ``pytest tests/serve/test_server_process.py``
"""

import argparse
import os
import socket

from ..cli.flags import (
    Parser,
    add_model_flags,
    check_device,
    check_ranges,
    loading_options,
    world_size,
)
from ..cli.terminal import exit_status, loading_bar, run_process, watched
from ..files.messages import shown

KEY = "VITA_REF_API_KEY"
EPILOG = """The environment variable VITA_REF_API_KEY is the API key that clients must give; another --host than this machine's own
(127.0.0.1, localhost) needs one. Example, with the openai package:

    OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").chat.completions.create(model="demo", messages=[...])

Without a temperature answers are greedy. Pictures are data URLs, sounds base64: no address is fetched, no file is read. Ctrl-C
and SIGTERM let running answers go on for 10 seconds. The limits are in tools/limits.md of the project.

exit status: 2 for errors that you can fix, with one line on standard error; 130 after Ctrl-C, 143 after SIGTERM.
"""


def parser():
    """The flags of the server, with their defaults."""
    p = Parser(prog="python -m vita_ref.serve", description="A local page, and a server for OpenAI's protocol.",
               epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    p.add_argument("--port", type=int, default=8000, help="the port; 0 takes a free one (default: 8000)")
    p.add_argument("--allow-host", metavar="NAME", action="append", default=[],
                   help="a name by which clients may call the server; repeatable")  # fmt: skip
    p.add_argument("--name", help="the name of the model for clients (default: that of its folder)")
    add_model_flags(p)
    return p


def main(argv=None):
    """Entry point; returns the exit status."""
    return exit_status(run, parser(), argv)


def run(args):
    """Loads the model and serves until a signal ends it."""
    key = check(args)
    try:
        from .guard import allowed_hosts, is_local
        from .start import serve
    except ImportError as error:
        raise ValueError(f"the server needs starlette and uvicorn: pip install 'vita-ref[serve]' ({error.name})") from None
    if not is_local(args.host) and key is None:
        raise ValueError(f"--host {args.host} lets other machines in, which needs an API key: set {KEY}")
    listening = listen(args.host, args.port)  # before the model is loaded, so that a port in use is told at once
    with listening:
        vita = load(args)
        hosts = allowed_hosts(args.host, args.allow_host)
        port = listening.getsockname()[1]
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{host}:{port}/ (OpenAI's protocol: http://{host}:{port}/v1; Ctrl-C stops)", flush=True)
        serve(vita, args.name, listening, hosts=hosts, addresses=not is_local(args.host), key=key, verbose=args.verbose)


def check(args):
    """Refuses flags that are out of range. Returns the API key, or None. Raises: ValueError."""
    check_ranges(args)
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port must be 0 to 65535, got {shown(args.port)}")
    if world_size() > 1:
        raise ValueError("a server runs in one process: start it without torchrun")
    if args.pack and args.quantize:
        raise ValueError("--pack and --quantize cannot be combined")
    check_device(args.device)
    key = os.environ.get(KEY)
    if key is not None and (not key.strip() or not key.isascii() or not key.isprintable()):
        raise ValueError(f"the environment variable {KEY} must be printable ASCII and not empty: unset it for no key")
    return key and key.strip()


def listen(host, port):
    """A socket that listens. Raises: ValueError if it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(*family[:2])
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(family[4])
        listening.listen(128)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise ValueError(f"cannot listen on {shown(host)} port {port}: {reason} (--host and --port choose another)") from None
    return listening


def load(args):
    """The model. ``args.name`` becomes its name."""
    import torch

    from ..loading import demo_folder
    from ..model import Vita

    if args.threads:
        torch.set_num_threads(args.threads)
    vita = Vita.from_pretrained(args.model, **loading_options(args, loading_bar() if watched(args) else None))
    if vita.tokenizer is None:
        raise ValueError(f"{shown(args.model)} has no tokenizer, which a server needs")
    folder = os.path.abspath(args.model or demo_folder())
    args.name = args.name or os.path.basename(folder) or "vita"
    return vita


if __name__ == "__main__":
    run_process(main)
