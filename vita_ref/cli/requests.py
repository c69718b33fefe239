"""The request that the flags describe, and those in the lines of a --batch file."""

import difflib
import io
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

from ..files.hints import check_no_address
from ..files.messages import shown
from ..request import Request
from .terminal import one_line, user_message

SYSTEM_LIMIT, BATCH_LIMIT, IMAGE_LIMIT = 2**20, 2**26, 2**28  # characters, characters and bytes; --help names them
KINDS = {"prompt": str, "images": list, "audios": list, "video": str, "id": (str, int, float)}

JSON_TYPES = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}


class Line(NamedTuple):
    """A line of a --batch file: its number among those that are not empty, its id, and a `Request` or a ValueError."""

    number: int
    id: object
    request: Request | ValueError


def read_requests(a):
    """A list of one `Request`, or of the `Line` objects of a --batch file. Raises: ValueError that names the file."""
    system = a.system if a.system_file is None else read_text(a.system_file, SYSTEM_LIMIT)
    common = {"system": system, "raw": a.raw, "max_tiles": a.max_tiles, "fps": a.fps, "max_frames": a.max_frames}
    if a.batch:
        lines = [line for line in read_text(a.batch, BATCH_LIMIT, "surrogateescape").split("\n") if line.strip()]
        if not lines:
            raise ValueError(f"{shown(a.batch)} has no requests")
        return [read_line(line, number, Path(a.batch).parent, common) for number, line in enumerate(lines, 1)]
    images = [standard_input() if path == "-" else path for path in a.image]
    return [check_prompt(Request(a.prompt, images, a.audio, a.video, **common))]


def check_prompt(request):
    """Returns the request unchanged. Raises: ValueError if it asks nothing."""
    if request.prompt == "" and not (request.images or request.audios or request.video):
        raise ValueError("the prompt is empty: ask something, or give an image, a sound or a video")
    return request


def read_text(path, limit, errors="strict"):
    """The content of a text file of at most ``limit`` characters. ``errors`` as in `open`. Raises: ValueError."""
    try:
        with open(path, encoding="utf-8-sig", errors=errors) as file:
            text = file.read(limit + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > limit:
        raise ValueError(f"cannot read {shown(path)}: it is longer than {limit:,} characters")
    return text


def standard_input():
    """The bytes of standard input as a file. Raises: ValueError."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise ValueError("--image - reads an image from standard input, which is closed or a text: send a file to it")
    try:
        data = stream.read(IMAGE_LIMIT + 1)
    except OSError as error:
        raise ValueError(f"--image - reads an image from standard input: {error.strerror or error}") from None
    if not data or len(data) > IMAGE_LIMIT:
        problem = f"is larger than {IMAGE_LIMIT:,} bytes" if data else "is empty"
        raise ValueError(f"--image - reads an image from standard input, which {problem}: send a file to it")
    return io.BytesIO(data)


# ---- the lines of a --batch file


def read_line(line, number, folder, common):
    """A line of a --batch file as a `Line`. Its paths are relative to the file's folder."""
    raw = None
    try:
        raw = parse_line(line)
        paths = {name: [join(folder, path) for path in raw.get(name) or []] for name in ("images", "audios")}
        paths["video"] = None if raw.get("video") is None else join(folder, raw["video"])
        return Line(number, raw.get("id"), check_prompt(Request(raw.get("prompt"), **paths, **common)))
    except ValueError as error:
        return Line(number, line_id(raw or line), error)


def parse_line(line):
    """The fields of a line. Raises: ValueError for one that is not an object with these fields."""
    try:
        line.encode()
        raw = json.loads(line, parse_constant=refuse_constant, parse_float=finite_float)
    except UnicodeEncodeError as error:
        raise ValueError(f"not UTF-8 text: byte 0x{ord(line[error.start]) & 255:02x} behind {error.start} characters") from None
    except RecursionError:
        raise ValueError("not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {one_line(error, 160)}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object with {', '.join(KINDS)}, got {type(raw).__name__}")  # noqa: TRY004
    if unknown := [name for name in raw if name not in KINDS]:
        near = difflib.get_close_matches(unknown[0].lower(), KINDS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown key {shown(unknown[0])}: {hint}the keys are {', '.join(KINDS)}")
    for name, kind in KINDS.items():
        value = raw.get(name)
        if value is not None and not isinstance(value, kind):
            expected = {"id": "a text or a number", "images": "a list of paths", "audios": "a list of paths"}.get(name, "a text")
            raise ValueError(f"{name} must be {expected}, got {JSON_TYPES.get(type(value), 'a number')}")
        if isinstance(value, list) and not all(isinstance(path, str) for path in value):
            raise ValueError(f"{name} must be a list of paths, got {shown(value)}")
    return raw


def refuse_constant(name):
    """Refuses NaN and Infinity, which Python's parser takes."""
    raise ValueError(f"{name} is no number in JSON")


def finite_float(text):
    """A number in JSON. Raises: ValueError for one that would become infinite."""
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {shown(text)[1:-1]} is too large")
    return value


def line_id(line):
    """The id of a line that has an error, None if it cannot be read."""
    try:
        raw = json.loads(line) if isinstance(line, str) else line
        return raw["id"] if isinstance(raw["id"], KINDS["id"]) else None
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def join(folder, path):
    """A path in a line as one that can be opened. Raises: ValueError."""
    if not path or "\0" in path:
        raise ValueError("the name of a file must not be empty or contain a zero byte")
    try:
        check_no_address(path)
    except ValueError as error:
        raise ValueError(f"cannot read {shown(path)}: {error}") from None
    return str(folder / path)


def prepare_lines(lines, prepare):
    """``prepare`` of the request of each line; a ValueError in its place if it has an error."""
    prepared = []
    for line in lines:
        try:
            prepared.append(line.request if isinstance(line.request, ValueError) else prepare(line.request))
        except Exception as error:
            if (message := user_message(error)) is None:
                raise
            prepared.append(ValueError(message))
    return prepared
