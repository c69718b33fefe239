"""The `Look` of an answer in a conversation: ``chat.look().save("a.html")``, and ``/look`` in the terminal.

    the prompt (ids and media) and its messages -> a prepared request -> `look_at`

n ids.

Test: ``pytest tests/analysis/test_turn.py``
"""

from dataclasses import replace

import torch

from ..checks.media import check_request
from ..request import PreparedRequest, Request
from . import sources
from .look import look_at


def look_at_turn(vita, elements, messages, ids, common, **options):
    """The `Look` of an answer with these ``ids``.

    ``elements`` is its prompt, an id or a `Medium` each; ``messages`` are those before it, the question last; ``common``
    has the fields of `Request` that they leave out. Options: ``tokens``, ``passes``, ``derive`` and ``progress``.
    """
    known = [pair for message in messages for pair in known_media(message, common, vita.config)]
    about = {True: [], False: []}  # is it a sound? -> metadata
    for medium in reversed([x for x in elements if not isinstance(x, int)]):  # from the end: messages that were left out come first
        while known and known[-1][0] is not medium:
            known.pop()
        about[medium.kind == "audio"].insert(0, known.pop()[1] if known else default_metadata(medium))
    prepared = prepare_elements(elements, vita.config)
    question = messages[-1].text or "" if messages else ""
    return look_at(vita, prepared, answer_ids=ids, media=(about[False], about[True]), question=question, **options)


def prepare_elements(elements, config):
    """A prompt, an id or a `Medium` each, as a `PreparedRequest`."""
    media = [x for x in elements if not isinstance(x, int)]
    images, sounds = ([x.data for x in media if (x.kind == "audio") is wanted] for wanted in (False, True))
    index = {False: config.image_token_index, True: config.audio_token_index}
    ids = [x if isinstance(x, int) else index[x.kind == "audio"] for x in elements]
    return PreparedRequest(torch.tensor(ids), images, sounds)  # ids [n]


def known_media(message, common, config):
    """(medium, its metadata) for each medium of a message, in order. The metadata are the fields of a `Picture` or a `Sound`."""
    fields = {name: x for name, x in message.fields.items() if name in vars(Request())}
    request = check_request(Request(**{**common, **fields}))
    media = [x for x in message.parts if not isinstance(x, str)]
    of_kind = {kind: [x for x in media if x.kind == kind] for kind in ("image", "frame", "audio")}
    found = {"image": [], "frame": frame_metadata(request, config) if of_kind["frame"] else [], "audio": []}
    for source, medium in zip(request.images, of_kind["image"]):
        most = config.max_tiles if request.max_tiles is None else request.max_tiles
        found["image"].append(metadata_or_none(sources.open_picture, source, config, most))
    for source in request.audios:
        found["audio"].append(metadata_or_none(sources.open_sound, source))
    pairs = {kind: iter(each) for kind, each in found.items()}
    return [(medium, checked_metadata(next(pairs[medium.kind], None), medium)) for medium in media]


def frame_metadata(request, config):
    """The metadata of each frame of the video of a message."""
    return metadata_or_none(sources.open_video, replace(request, images=[], audios=[]), config) or []


def metadata_or_none(function, *arguments):
    """The metadata of a file, None if it cannot be read any more."""
    try:
        return function(*arguments)[1]
    except (ValueError, OSError):
        return None


def checked_metadata(about, medium):
    """The metadata of a medium; the default if its file has changed and has another number of tiles now."""
    if about is None or "grid" in about and about["grid"][0] * about["grid"][1] + about.get("thumbnail", 0) != len(medium.data):
        return default_metadata(medium)
    return about


def default_metadata(medium):
    """The metadata of a medium without a file."""
    return {"name": "sound"} if medium.kind == "audio" else {"name": "picture", "grid": (len(medium.data), 1)}
