"""Writes a file completely or not at all: under another name, and renamed at the end.

Test: ``pytest tests/cli/test_speak_file.py``
"""

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from .messages import shown


def check_output(path, flag="--speak"):
    """Checks that a file can be written. Returns whether it exists as a device or a pipe.

    Raises: ValueError, which begins with ``flag``, the option that named the file.
    """
    with output_errors(path, flag):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            mode = None
        folder = Path(os.path.realpath(path)).parent
        if mode is None and not folder.is_dir():
            raise ValueError(f"{flag} {shown(path)}: its folder does not exist")
        if os.fspath(path).endswith(os.sep) or mode is not None and stat.S_ISDIR(mode):
            raise ValueError(f"{flag} {shown(path)}: this is a folder, give a file name")
        is_device = mode is not None and not stat.S_ISREG(mode)
        if not os.access(path if mode else folder, os.W_OK) or not (is_device or os.access(folder, os.W_OK)):
            raise ValueError(f"{flag} {shown(path)}: you may not write there")
    return is_device


@contextlib.contextmanager
def complete_file(path, flag="--speak"):
    """Yields the name of a new file to write. If the block ends without an exception it becomes ``path``, else it is removed.

    A symbolic link is followed. If ``path`` is a device or a pipe, the content is copied into it at the end.
    Raises: ValueError, which begins with ``flag``, if the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        is_device, target = check_output(path, flag), os.path.realpath(path)
        with output_errors(path, flag):
            device = stack.enter_context(open(path, "wb")) if is_device else None
            temporary = new_file(tempfile.gettempdir() if device else os.path.dirname(target))
        stack.callback(remove, temporary)
        yield temporary
        with output_errors(path, flag):
            if device:
                with open(temporary, "rb") as complete:
                    shutil.copyfileobj(complete, device)
                device.close()
            else:
                if os.path.exists(target):
                    shutil.copymode(target, temporary)
                os.replace(temporary, target)


def new_file(folder):
    """The name of a new empty file in a folder. No other file has it."""
    path = os.path.join(folder, f".vita_ref-{secrets.token_hex(8)}.part")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return path


def remove(path):
    """Removes a file if it is still there."""
    with contextlib.suppress(OSError):
        os.unlink(path)


@contextlib.contextmanager
def output_errors(path, flag):
    """Turns an OSError into a ValueError that names the flag."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{flag} {shown(path)}: {error.strerror or error}") from None
