"""The requests that the flags or a --batch file describe."""

import io
import json
import sys
from pathlib import Path

from ..request import Request

GROUP = 8  # requests of a --batch file that are answered together


def read_requests(a):
    """A list of `Request`. Raises: ValueError that names the file, and the request in it."""
    system = a.system if a.system_file is None else read_text(a.system_file)
    common = {"system": system, "raw": a.raw, "max_tiles": a.max_tiles, "fps": a.fps, "max_frames": a.max_frames}
    if not a.batch:
        images = [io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path for path in a.image]
        return [Request(a.prompt, images, a.audio, a.video, **common)]
    lines = [line for line in read_text(a.batch).split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{a.batch} has no requests")
    requests = []
    for number, line in enumerate(lines, 1):
        try:
            requests.append(Request(**parse_line(line, Path(a.batch).parent), **common))
        except ValueError as error:
            raise ValueError(f"{a.batch} request {number}: {error}") from None
    return requests


def read_text(path):
    """The content of a text file. Raises: ValueError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def parse_line(line, folder):
    """The fields of one line of a --batch file. Its paths are relative to the file's folder."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(raw, dict) or not set(raw) <= {"prompt", "images", "audios", "video"}:
        raise ValueError("expected an object with prompt, images, audios, video")
    for name, kind in (("prompt", str), ("video", str), ("images", list), ("audios", list)):
        if raw.get(name) is not None and not isinstance(raw[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {type(raw[name]).__name__}")
    for name in ("images", "audios"):
        if not all(isinstance(path, str) for path in raw.get(name) or []):
            raise ValueError(f"{name} must be a list of paths, got {json.dumps(raw[name])}")
    paths = {name: [str(folder / path) for path in raw.get(name) or []] for name in ("images", "audios")}
    video = None if raw.get("video") is None else str(folder / raw["video"])
    return {"prompt": raw.get("prompt"), "video": video} | paths


def prepare_requests(requests, prepare, batch=None):
    """``prepare`` of each request. An error says which request of the --batch file it is about."""
    prepared = []
    for number, request in enumerate(requests, 1):
        try:
            prepared.append(prepare(request))
        except ValueError as error:
            raise ValueError(f"{batch} request {number}: {error}" if batch else str(error)) from None
    return prepared
