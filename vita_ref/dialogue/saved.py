"""A conversation as a JSON file, with its media in it.

    Conversation -> {"vita_ref": "conversation", "messages": [...], "media": [...], ...} -> Conversation

Pictures and frames whose pixels were 8-bit integers are stored as PNG, other media as float32 numbers in base64; both
come back with the same bits. The file is data only: reading it opens no other file and runs nothing.

N tiles, X, Y width and height, J frames, M mel bins.

Test: ``pytest tests/dialogue/test_saved.py``
"""

import base64
import io
import json
import os
from math import prod

import numpy as np
import torch

from ..checks.media import check_pixels, check_sound
from ..files.messages import one_line_errors, shown
from ..files.output import complete_file
from ..files.values import check_depth, read_text
from .messages import Medium, Message, medium

KIND, VERSION = "conversation", 1
MOST_PIXELS = 500_000_000  # of all media of a file


def save(chat, path):
    """Writes a conversation. A file that is there is replaced once the new one is complete; a device or a pipe is written to."""
    media = list(dict.fromkeys(p for message in chat._messages for p in message.parts if isinstance(p, Medium)))
    place = {each: i for i, each in enumerate(media)}
    options = {name: x for name, x in chat.options.items() if name != "generator"}
    content = {"vita_ref": KIND, "version": VERSION, "template": chat.vita.config.template}
    content |= {"vocab_size": chat.vita.config.decoder.vocab_size, "system": chat.system, "overflow": chat.overflow}
    content |= {"tools": chat.tools, "options": options}
    content["messages"] = [message_json(message, place) for message in chat._messages]
    content["media"] = [medium_json(each, chat.vita.config) for each in media]
    try:
        text = json.dumps(content, ensure_ascii=False, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the conversation has a value that JSON cannot hold: {error}") from None
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"a conversation is saved to a path, got {shown(path)}")  # noqa: TRY004
    with complete_file(path, "cannot write") as name, open(name, "wb") as file:
        file.write(text)


def message_json(message, place):
    """A message with the numbers of its media in place of them."""
    fields = {name: x for name, x in message.fields.items() if name not in ("images", "audios", "video")}
    parts = [place[part] if isinstance(part, Medium) else part for part in message.parts]
    return {"fields": fields, "parts": parts, "ids": message.ids, "rest": message.rest, "state": message.state}


def medium_json(each, config):
    """A medium as PNG, or as numbers."""
    data = each.data.detach().cpu().float().contiguous()
    about = {"kind": each.kind, "shape": list(data.shape)}
    if each.kind != "audio" and (pixels := as_bytes(data, config.vision)) is not None:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return about | {"png": base64.b64encode(file.getvalue()).decode()}
    return about | {"float32": base64.b64encode(data.numpy().astype("<f4").tobytes()).decode()}


def as_bytes(data, vision):
    """The pixels [N*Y, X, 3] of which the tiles were made, None if they were no 8-bit integers. Shapes: [N, 3, Y, X]."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (vision.image_mean, vision.image_std))
    pixels = ((data * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)  # [N, 3, Y, X]
    pixels = pixels.permute(0, 2, 3, 1).flatten(0, 1).numpy()  # below each other
    return pixels if from_bytes(pixels, data.shape, vision).equal(data) else None


def from_bytes(pixels, shape, vision):
    """Tiles [N, 3, Y, X] from their pixels [N*Y, X, 3], as `vita_ref.image` normalises them."""
    n, _, height, width = shape
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (vision.image_mean, vision.image_std))
    tiles = torch.from_numpy(pixels.reshape(n, height, width, 3).copy()).permute(0, 3, 1, 2)  # [N, 3, Y, X]
    return (tiles.float() / 255 - mean) / std


@one_line_errors
def load(cls, path, vita):
    """A conversation of class ``cls`` from a file that `save` wrote.

    Raises: ValueError if the file is damaged, or is of another kind of checkpoint.
    """
    where, content = shown(path), read_object(path)
    sizes = {"template": vita.config.template, "vocab_size": vita.config.decoder.vocab_size}
    for name, expected in sizes.items():
        if content.get(name) != expected:
            got = shown(content.get(name))
            raise ValueError(f"{where} is a conversation of another checkpoint: {name} is {got}, this one's is {expected!r}")
    try:
        chat = cls(vita, content["system"], overflow=content["overflow"], tools=content["tools"], **content["options"])
        media = [read_medium(each, vita.config, chat._media) for each in checked(content["media"], list)]
        chat._messages = [restore(each, media, vita) for each in checked(content["messages"], list)]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where} is damaged: {reason}") from None
    return chat


def read_object(path):
    """The object in a saved file. Raises: ValueError."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"a conversation is loaded from a path, got {shown(path)}")  # noqa: TRY004
    try:
        content = json.loads(read_text(path, "conversation"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{shown(path)} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{shown(path)} has too many lists or objects inside each other") from None
    if not isinstance(content, dict) or content.get("vita_ref") != KIND or content.get("version") != VERSION:
        raise ValueError(f"{shown(path)} is no conversation that this version of vita_ref can read")
    return check_depth(content, shown(path))


def checked(value, kind):
    """The value, which must be of this type. Raises: ValueError."""
    if type(value) is not kind:
        raise ValueError(f"expected a {kind.__name__}, got {shown(value)}")
    return value


def read_medium(about, config, known):
    """A medium from its JSON. Raises: ValueError if it does not fit the checkpoint."""
    kind, shape = about["kind"], checked(about["shape"], list)
    if kind not in ("image", "frame", "audio") or not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise ValueError(f"a medium must have a kind and a shape, got {shown(kind)} and {shown(shape)}")
    if len(shape) != (2 if kind == "audio" else 4) or prod(shape) > 3 * MOST_PIXELS:
        raise ValueError(f"a medium of kind {kind} cannot have the shape {shown(shape)}")
    if config.audio is None and config.vision is None or kind != "audio" and config.vision is None:
        raise ValueError(f"this checkpoint takes no medium of kind {kind}")
    if "png" in about:
        data = from_bytes(read_png(about["png"], shape), shape, config.vision)
    else:
        values = decode(about["float32"])
        if len(values) != 4 * prod(shape):
            raise ValueError(f"a medium of {shown(shape)} has {len(values)} bytes")
        data = torch.from_numpy(np.frombuffer(values, "<f4").reshape(shape).astype(np.float32))  # as `shape` says
    data = check_sound(data, config) if kind == "audio" else check_pixels(data, config.vision, "a medium", (4,))
    return medium(kind, data, config, known)


def read_png(text, shape):
    """The pixels of a PNG that has the size of these tiles. Shapes: [N*Y, X, 3] uint8."""
    from PIL import Image

    n, _, height, width = shape
    try:
        with Image.open(io.BytesIO(decode(text)), formats=["PNG"]) as image:
            if image.size != (width, n * height) or image.mode != "RGB":
                raise ValueError(f"a medium of {shown(shape)} has a picture of {image.mode} {image.size}")
            return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture cannot be read: {type(error).__name__}") from None


def decode(text):
    """The bytes of a base64 text. Raises: ValueError."""
    return base64.b64decode(checked(text, str), validate=True)


def restore(saved, media, vita):
    """A message from its JSON. Raises: ValueError for texts, media and ids that it cannot have."""
    fields, parts, ids = checked(saved["fields"], dict), checked(saved["parts"], list), saved["ids"]
    if not isinstance(fields.get("role"), str) or not isinstance(fields.get("content", 0), (str, type(None))):
        raise ValueError(f"a message must have a role and a content, got {shown(fields)}")  # noqa: TRY004
    if not all(type(part) in (str, int) for part in parts) or any(type(p) is int and p < 0 for p in parts):
        raise ValueError(f"the parts of a message must be texts and numbers of media, got {shown(parts)}")
    rows = vita.config.decoder.vocab_size  # of the embedding; there may be fewer tokens
    if ids is not None and not all(type(i) is int and 0 <= i < rows for i in checked(ids, list)):
        raise ValueError("the ids of an answer are no ids of this checkpoint")
    state = saved["state"]
    if not isinstance(saved["rest"], str) or not isinstance(state, (str, type(None))):
        raise ValueError("the rest and the state of an answer must be texts")  # noqa: TRY004
    if ids is not None and fields["content"] is None:
        raise ValueError("an answer must have a content")
    parts = [media[part] if type(part) is int else part for part in parts]
    by_kind = {kind: [p.data for p in parts if isinstance(p, Medium) and p.kind == kind] for kind in ("image", "audio", "frame")}
    given = {"images": by_kind["image"], "audios": by_kind["audio"]}
    given["video"] = torch.cat(by_kind["frame"]) if by_kind["frame"] else None
    fields = {name: x for name, x in fields.items() if name not in given} | {k: v for k, v in given.items() if v is not None and len(v)}
    return Message(fields, parts, ids, saved["rest"], state)
