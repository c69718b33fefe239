"""The body of ``/v1/chat/completions`` as what the model needs: messages with their media, and sampling options.

    {"messages": [{"role": "user", "content": [...]}], "temperature": 0.7, "stream": true} -> Question

Every field is checked here. A field that this server does not have is refused, unless it cannot change the answer.

Test: ``pytest tests/serve/test_protocol.py``
"""

import json
from dataclasses import dataclass
from numbers import Real

from ..dialogue.messages import Medium, read_message
from ..files.messages import escaped, shown
from ..sampling import TINY, Sampling
from .errors import ProtocolError
from .limits import (
    DEFAULT_NEW_TOKENS,
    MAX_DEPTH,
    MAX_MESSAGES,
    MAX_NEW_TOKENS,
    MAX_PICTURES,
    MAX_SOUND_SECONDS,
    MAX_SOUNDS,
    MAX_TEXT,
)
from .media import picture, sound

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IGNORED = {  # what cannot change an answer
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier",
    "store", "user",
}  # fmt: skip
NEUTRAL = {  # values of fields that this server does not have, with which they change nothing
    "audio": (None,), "frequency_penalty": (0,), "function_call": ("none", "auto"), "functions": ([],),
    "logit_bias": ({},), "modalities": (["text"],), "n": (1,), "prediction": (None,), "presence_penalty": (0,),
    "reasoning_effort": ("none",), "response_format": ({"type": "text"},), "tool_choice": ("none", "auto"),
    "tools": ([],), "verbosity": ("medium",), "web_search_options": (None,),
}  # fmt: skip


@dataclass
class Question:
    """A request that can be answered.

    ``media`` maps keys to the media of the messages (see `dialogue.messages.medium`).
    """

    messages: list
    media: dict
    sampling: Sampling
    stream: bool = False
    usage: bool = False  # whether a stream ends with the numbers of tokens
    progress: bool = False  # whether a stream reports what has been read
    logprobs: bool = False
    sources: dict | None = None  # of each medium, a file object or (waveform, rate); if they are asked for

    @property
    def nbytes(self):
        """Bytes of the values of its media."""
        return sum(each.data.nbytes for each in self.media.values() if each.data is not None)


@dataclass
class Left:
    """What the messages of a request may still have."""

    pictures: int = MAX_PICTURES
    sounds: int = MAX_SOUNDS
    seconds: float = MAX_SOUND_SECONDS
    characters: int = MAX_TEXT

    def take(self, name, n, most, param):
        """Takes ``n``. Raises: ProtocolError if there are not so many left."""
        setattr(self, name, getattr(self, name) - n)
        if getattr(self, name) < 0:
            raise ProtocolError(f"the messages have more than {most:,} {name}: begin a new conversation", param=param)


def read_json(content):
    """The object in a body. Raises: ProtocolError if it is no JSON object, or is nested too deeply."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProtocolError(f"the body is not valid JSON: {reason}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ProtocolError(f"the body must be a JSON object, got {shown(body)}", code="invalid_json")
    level = [body]
    for _ in range(MAX_DEPTH):
        values = (x for each in level for x in (each.values() if isinstance(each, dict) else each))
        level = [x for x in values if isinstance(x, (dict, list))]
    if level:
        raise ProtocolError(f"the body has more than {MAX_DEPTH} lists or objects inside each other", code="invalid_json")
    return {name: value for name, value in body.items() if value is not None}


def read_question(body, vita, media=None, *, sources=None):
    """A body as a `Question`. ``media`` has media that are known already; their values are not encoded again. ``sources``
    is an empty dict if the question must have them.

    Raises: ProtocolError, or ValueError for what the checkpoint refuses.
    """
    check_names(body)
    stream = typed(body, "stream", bool, False)
    options = typed(body, "stream_options", dict, {})
    if options and not stream:
        raise ProtocolError("stream_options needs stream: true", param="stream_options")
    known = dict(media or {})
    messages = read_messages(body.get("messages"), vita, known, typed(body, "max_tiles", int, None), sources)
    used = {part for message in messages for part in message.parts if isinstance(part, Medium)}
    return Question(
        messages, {key: each for key, each in known.items() if each in used}, read_sampling(body), stream,
        *(bool(typed(options, name, bool, None)) for name in ("include_usage", "include_progress")),
        typed(body, "logprobs", bool, False), sources,
    )  # fmt: skip


def check_names(body):
    """Refuses fields that this server does not have."""
    own = {"model", "messages", "stream", "stream_options", "max_tiles", *SAMPLING, "max_tokens", "logprobs"}
    for name, value in body.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise ProtocolError(f"{name} is not supported here, except {shown(NEUTRAL[name][0])}", param=name)
        if name not in own and name not in NEUTRAL and name not in IGNORED:
            raise ProtocolError(f"Unrecognized request argument supplied: {shown(name)}", param=escaped(name)[:80])


def typed(body, name, kind, default):
    """A field of a type, or the default. Raises: ProtocolError for another type."""
    value = body.get(name, default)
    is_number = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if value is not default and not is_number:
        names = {bool: "true or false", dict: "an object", int: "an integer", Real: "a number", str: "a string"}
        raise ProtocolError(f"{name} must be {names[kind]}, got {shown(value)}", param=name)
    return value


# ---- sampling

SAMPLING = {  # field -> (type, lowest, highest)
    "temperature": (Real, 0, 2),
    "top_p": (Real, 0, 1),
    "top_k": (int, 0, 2**31 - 1),
    "repetition_penalty": (Real, 0.01, 100),
    "seed": (int, -(2**63), 2**63 - 1),
    "max_completion_tokens": (int, 1, MAX_NEW_TOKENS),
    "top_logprobs": (int, 0, 20),
    "stop": None,
}


def read_sampling(body):
    """The sampling options of a body. Without a temperature the answer is greedy, as everywhere in this project."""
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise ProtocolError("max_tokens and max_completion_tokens are the same: give one", param="max_tokens")
    values = {}
    for name, bounds in SAMPLING.items():
        given = "max_tokens" if name == "max_completion_tokens" and "max_tokens" in body else name
        if name == "stop" or given not in body:
            continue
        kind, low, high = bounds
        value = typed(body, given, kind, None)
        if not low <= value <= high:  # also false for NaN
            raise ProtocolError(f"{given} must be {low} to {high}, got {shown(value)}", param=given)
        values[name] = value
    top = values.pop("top_logprobs", None)
    if top is not None and not body.get("logprobs"):
        raise ProtocolError("top_logprobs needs logprobs: true", param="top_logprobs")
    if "top_p" in values:
        values["top_p"] = max(values["top_p"], TINY)
    new = values.pop("max_completion_tokens", None)
    return Sampling(**values, max_new_tokens=new, stop=read_stop(body.get("stop")), top=top or 0, errors="return").check()


def read_stop(stop):
    """The stop texts as a tuple. Raises: ProtocolError."""
    texts = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(x, str) and 0 < len(x) <= 1000 for x in texts):
        raise ProtocolError(f"stop must be a text, or a list of at most 4 texts, got {shown(stop)}", param="stop")
    return tuple(texts)


def room_for(sampling, positions, limit):
    """How many new tokens an answer may have behind a prompt of so many positions."""
    return min(DEFAULT_NEW_TOKENS, limit - positions) if sampling.max_new_tokens is None else sampling.max_new_tokens


# ---- messages


def read_messages(given, vita, known, max_tiles=None, sources=None):
    """The ``messages`` of a body, as those of a conversation. ``known`` gets new media, and ``sources`` what they are of."""
    if not isinstance(given, list) or not given or len(given) > MAX_MESSAGES:
        raise ProtocolError(f"messages must be a list of 1 to {MAX_MESSAGES} messages, got {shown(given)}", param="messages")
    left, messages, positions = Left(), [], 0
    common = {} if max_tiles is None else {"max_tiles": max_tiles}
    for i, each in enumerate(given):
        fields = read_fields(each, f"messages[{i}]", left)
        try:
            message = read_message(fields, common, vita, known)
        except ProtocolError:
            raise
        except ValueError as error:
            raise ProtocolError(f"messages[{i}]: {error}", param=f"messages[{i}]") from None
        if sources is not None:
            add_sources(sources, message, fields["content"])
        positions += sum(part.positions for part in message.parts if isinstance(part, Medium))
        if positions > (most := vita.config.decoder.max_position_embeddings):
            reason = f"the pictures and sounds take more than the {most} positions of this model: send fewer or smaller ones"
            raise ProtocolError(reason, param="messages", code="context_length_exceeded")
        message.fields = {"role": fields["role"], "content": message.fields["content"]}  # without the media
        messages.append(message)
    if messages[-1].role != "user":
        raise ProtocolError("the last message must be one of the user", param="messages")
    return messages


def add_sources(sources, message, content):
    """Adds what the media of a message are of. Pictures may have moved in front of sounds, but each kind keeps its order."""
    parts = content if isinstance(content, list) else []
    for name, is_audio in (("image", False), ("audio", True)):
        media = [part for part in message.parts if isinstance(part, Medium) and (part.kind == "audio") is is_audio]
        sources.update(zip(media, (part[name] for part in parts if name in part)))


def read_fields(given, param, left):
    """A message of a body as a dict with role and content, whose parts have file objects and waveforms."""
    role = given.get("role") if isinstance(given, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ProtocolError(
            f"{param}.role must be system, developer, user or assistant, got {shown(role)}", param=f"{param}.role"
        )
    for name in ("tool_calls", "function_call"):
        if given.get(name):
            raise ProtocolError(f"{param}.{name} is not supported: this model calls no functions", param=f"{param}.{name}")
    content = given.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        left.take("characters", len(content), MAX_TEXT, param)
        return {"role": ROLES[role], "content": content}
    if not isinstance(content, list) or not content:
        raise ProtocolError(
            f"{param}.content must be a text or a list of parts, got {shown(content)}", param=f"{param}.content"
        )
    parts = [read_part(part, f"{param}.content[{i}]", left) for i, part in enumerate(content)]
    details = {part.pop("detail") for part in parts if "detail" in part}
    if len(details) > 1 and "low" in details:
        raise ProtocolError(f"{param}: give all pictures of a message the same detail", param=f"{param}.content")
    return {"role": ROLES[role], "content": parts} | ({"max_tiles": 1} if details == {"low"} else {})


def read_part(given, param, left):
    """A part of a content: a text, a picture as a file object, or a sound as (waveform, rate)."""
    kind = given.get("type") if isinstance(given, dict) else None
    value = given.get(kind) if isinstance(kind, str) else None
    if kind in ("text", "refusal") and isinstance(value, str):
        left.take("characters", len(value), MAX_TEXT, param)
        return {"type": "text", "text": value}
    if kind == "image_url" and isinstance(value, dict) and isinstance(value.get("url"), str):
        left.take("pictures", 1, MAX_PICTURES, param)
        detail = value.get("detail") or "auto"
        if detail not in ("auto", "low", "high"):
            raise ProtocolError(f"{param}.image_url.detail must be auto, low or high, got {shown(detail)}", param=param)
        return {"type": "image", "image": picture(value["url"], f"{param}.image_url"), "detail": detail}
    if kind == "input_audio" and isinstance(value, dict) and isinstance(value.get("data"), str):
        left.take("sounds", 1, MAX_SOUNDS, param)
        waveform, rate = sound(value["data"], value.get("format"), left.seconds, f"{param}.input_audio")
        left.seconds -= waveform.shape[1] / rate
        return {"type": "audio", "audio": (waveform, rate)}
    forms = 'a part with type "text", "image_url" or "input_audio", and a field of that name'
    raise ProtocolError(f"{param} must be {forms}, got {shown(given)}", param=param)
