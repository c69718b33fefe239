"""From messages to the ids that a model reads: chat templates, placeholders, and the text between them.

    place_media    puts <image>, <video> and <audio> in front of a question that does not place them itself
    render         lays messages out as the model was trained to read them
    expand_video   makes one <image> a frame of <video>
    encode_prompt  text to ids, with a negative id where a picture or a sound will be spliced in

Each is pure: the same arguments give the same result. A template is data, not code.

Test: ``pytest tests/test_prompt.py``
"""

import re
from dataclasses import dataclass, field

import torch

IMAGE, VIDEO, AUDIO = "<image>", "<video>", "<audio>"


@dataclass(frozen=True)
class Template:
    """How one family of models writes a conversation down."""

    blocks: dict  # role -> (what opens a block, what closes it)
    separator: str  # between blocks
    ends_with_separator: bool  # and after the last one, where no answer is asked for
    stop: tuple  # texts that end an answer, besides the EOS token
    image_separator: str  # between the pictures put in front of a question and the question
    default_system: dict = field(default_factory=dict)  # "image", "video" or "lang" -> the system text
    states: tuple = ()  # marks that may stand in front of an answer: to a spoken question, to noise, to a written one


CHATML = {role: (f"<|im_start|>{role}\n", "<|im_end|>") for role in ("system", "user", "assistant")}

TEMPLATES = {
    "chatml": Template(CHATML, "\n", True, stop=("<|im_end|>",), image_separator=""),
    "vita": Template(
        CHATML,
        "\n",
        ends_with_separator=False,  # quirk: a conversation that ends in an answer has no newline behind it
        stop=("<|im_start|>",),
        image_separator="\n",
        # Not upstream's own words: those are given with --system-file.
        default_system={
            "image": "You look at pictures and listen to speech, and answer briefly and truthfully.",
            "video": "You watch the frames of a video and listen to speech, and answer briefly and truthfully.",
            "lang": "You read and listen, and answer briefly and truthfully.",
        },
        states=("☞", "☟", "☜"),
    ),
    "demo": Template(
        {"user": ("<|user|>", ""), "assistant": ("<|assistant|>", "<|end|>")},
        "",
        ends_with_separator=False,
        stop=("<|end|>",),
        image_separator="",
    ),
}


def render(messages, *, system=None, add_generation_prompt=True, template="chatml", medium=None):
    """The text of a conversation, ``[{"role": "user", "content": "..."}, ...]``, in a model's own layout.

    ``system`` comes first, unless the messages begin with a system text themselves; None is the
    template's default, if it has one, and "" is no system block. The default is chosen by
    ``medium`` ("image", "video" or "lang"); None looks for placeholders. Sound does not count.

    Raises: ValueError for a template, role, content or medium that is not known, or a second system text.
    Source: upstream's conversation.py; Qwen2's chat template.
    """
    layout = _template(template)
    medium = _medium(messages) if medium is None else medium
    if medium not in ("image", "video", "lang"):
        raise ValueError(f"medium must be 'image', 'video', 'lang' or None, got {medium!r}")
    if messages and messages[0]["role"] == "system":
        if system:
            raise ValueError("there are two system texts: system= and the first message; leave one out")
    else:
        system = layout.default_system.get(medium) if system is None else system
        messages = [{"role": "system", "content": system}] * bool(system) + list(messages)
    texts = [_block(message, layout, template) for message in messages]
    if add_generation_prompt:
        texts.append(layout.blocks["assistant"][0])
    elif layout.ends_with_separator:
        texts.append("")
    return layout.separator.join(texts)


def place_media(text, images=0, audios=0, template="chatml", *, videos=0):
    """Puts placeholders in front of a text, images, then videos, then audios, of each kind that it has none of."""
    seen = IMAGE * images * (IMAGE not in text) + VIDEO * videos * (VIDEO not in text)
    heard = AUDIO * audios * (AUDIO not in text)
    return seen + _template(template).image_separator * bool(seen) + heard + text


def expand_video(text, frames):
    """Replaces ``<video>`` by one ``<image>`` a frame; without frames the text stays as it is.

    Raises: ValueError where there are frames and the text has not exactly one ``<video>``.
    """
    if frames and text.count(VIDEO) != 1:
        raise ValueError(f"the prompt has {text.count(VIDEO)} {VIDEO} placeholders, but 1 video was given")
    return text.replace(VIDEO, IMAGE * frames) if frames else text


def encode_prompt(text, tokenizer, *, images=0, audios=0, image_token_index=-200, audio_token_index=-500):
    """The ids of a prompt that goes with so many images and audios, one placeholder each.

    A placeholder of a kind of which none is given is plain text.

    Raises: ValueError where the text has another number of placeholders; it gives both counts.
    """
    given = {IMAGE: (images, image_token_index), AUDIO: (audios, audio_token_index)}
    indices = {}
    for placeholder, (count, index) in given.items():
        if count and text.count(placeholder) != count:
            raise ValueError(
                f"the prompt has {text.count(placeholder)} {placeholder} placeholders, but {count} were given"
            )
        if count:
            indices[placeholder] = index
    return _encode_around(text, tokenizer, indices)


def split_state(answer, template="chatml"):
    """An answer as (its state mark or None, the text without it)."""
    found = answer.lstrip()[:1]
    if found and found in _template(template).states:
        return found, answer.lstrip()[1:].lstrip()
    return None, answer


def tokenizer_image_token(prompt, tokenizer, image_token_index=-200, return_tensors=None):
    """The ids of a prompt with ``image_token_index`` for each ``<image>``; ``<audio>`` is plain text.

    Shapes: a list of S ints, or [S] long with ``return_tensors="pt"``.
    Source: upstream's util/mm_utils.py:45.
    """
    return _as(_encode_around(prompt, tokenizer, {IMAGE: image_token_index}), return_tensors)


def tokenizer_image_audio_token(prompt, tokenizer, image_token_index=-200, audio_token_index=-500, return_tensors=None):
    """The ids of a prompt with an index for each ``<image>`` and each ``<audio>``.

    Shapes: a list of S ints, or [S] long with ``return_tensors="pt"``.
    Source: upstream's util/mm_utils.py:72.
    """
    indices = {IMAGE: image_token_index, AUDIO: audio_token_index}
    return _as(_encode_around(prompt, tokenizer, indices), return_tensors)


def _encode_around(text, tokenizer, indices):
    """Encodes the text between placeholders piece by piece, with one BOS at the very start if there is any."""
    pattern = "|".join(map(re.escape, indices)) or "(?!)"
    first, *rest = re.split(f"({pattern})", text)  # text, placeholder, text, placeholder, ..., text
    # quirk: each piece is encoded by itself, so nothing merges across a placeholder
    ids = list(tokenizer(first).input_ids)
    bos = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else None
    for placeholder, piece in zip(rest[::2], rest[1::2]):
        found = tokenizer(piece).input_ids
        ids += [indices[placeholder], *(found[1:] if found[:1] == bos else found)]
    return ids


def _as(ids, return_tensors):
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
    return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)


def _template(name):
    if name not in TEMPLATES:
        raise ValueError(f"no template {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _medium(messages):
    text = "".join(str(message["content"]) for message in messages)
    return "video" if VIDEO in text else "image" if IMAGE in text else "lang"


def _block(message, layout, template):
    role, content = message["role"], message["content"]
    if role not in layout.blocks:
        raise ValueError(f"template {template!r} has no {role!r} text, only {', '.join(layout.blocks)}")
    if type(content) is not str:
        raise ValueError(f"the content of a {role} message must be a string, got {type(content).__name__}")
    opening, closing = layout.blocks[role]
    return opening + content + closing
