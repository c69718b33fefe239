"""From messages to token ids, and from token ids to the text of an answer. Templates are data, not code.

    question -> place_media    adds <image>, <video> and <audio> in front, unless the question contains them
             -> render         the conversation in the layout that the model was trained with
             -> expand_media   one <image> per frame in place of <video>, and what a template writes around each
             -> encode_prompt  ids, with a negative id where the features of an image or a sound will be inserted
    answer   -> AnswerText     ids to text as they arrive, without the state mark that VITA-1.5 writes in front

The functions are pure: the same arguments give the same result.

Test: ``pytest tests/test_prompt.py``
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch

IMAGE, VIDEO, AUDIO = "<image>", "<video>", "<audio>"
FOLDERS_OWN = ("chatml", "internvl")  # templates in whose place the folder's own is rendered, if it has one


@dataclass(frozen=True)
class Template:
    """How one family of models writes a conversation. Immutable: dicts become read-only copies, lists become tuples."""

    blocks: Mapping  # role -> (text before a message, text after it)
    separator: str  # between messages
    ends_with_separator: bool  # also after the last message, if no answer follows
    stop: tuple  # texts that end an answer, as well as the EOS token
    image_separator: str  # between the images placed in front of a question and the question
    default_system: Mapping = field(default_factory=dict)  # "image", "video" or "lang" -> the system text
    states: tuple = ()  # single characters that may begin an answer: to a spoken question, to noise, to a written one
    after_each: str = ""  # after each image and video placed in front of a question
    around_image: tuple = ("", "")  # around the positions of each image or frame
    frame: str = IMAGE  # of a video; {} is the frame's number, from 1
    frame_separator: str = ""  # between the frames of a video

    def __post_init__(self):
        blocks = {role: tuple(texts) for role, texts in self.blocks.items()}
        object.__setattr__(self, "blocks", MappingProxyType(blocks))
        object.__setattr__(self, "default_system", MappingProxyType(dict(self.default_system)))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "around_image", tuple(self.around_image))
        object.__setattr__(self, "states", tuple(self.states))


def place_media(text: str, images: int = 0, audios: int = 0, template: str = "chatml", *, videos: int = 0) -> str:
    """Puts placeholders of images, videos and audios in front of a question, unless it contains some of that kind.

    Example: ``place_media("Why?", images=2, audios=1, template="vita")`` is ``<image><image>\\n<audio>Why?``.
    """
    layout = _template(template)
    visual = (IMAGE + layout.after_each) * images * (IMAGE not in text)
    visual += (VIDEO + layout.after_each) * videos * (VIDEO not in text)
    separator = layout.image_separator if visual else ""
    return visual + separator + AUDIO * audios * (AUDIO not in text) + text


def render(
    messages: Sequence[Mapping], *, system: str | None = None, add_generation_prompt: bool = True,
    template: str = "chatml", medium: str | None = None,
) -> str:  # fmt: skip
    """The text of a conversation ``[{"role": "user", "content": "..."}, ...]`` in the layout of a template.

    ``system`` is the system text in front, unless the messages begin with one. None is the template's default, if it
    has one; "" means no system text. The default depends on ``medium``: "image", "video" or "lang" (text and sound);
    with None it depends on the placeholders in the messages.

    Raises: ValueError for an unknown template, role or medium, content that is no string, or two system texts.
    Source: upstream's conversation.py; Qwen2's chat template.
    """
    layout = _template(template)
    medium = _medium(messages) if medium is None else medium
    if medium not in ("image", "video", "lang"):
        raise ValueError(f"medium must be 'image', 'video', 'lang' or None, got {medium!r}")
    if messages and messages[0]["role"] == "system":
        if system:
            raise ValueError("there are two system texts, system= and the first message: leave one out")
    else:
        system = layout.default_system.get(medium) if system is None else system
        messages = [{"role": "system", "content": system}] * bool(system) + list(messages)
    texts = [_block(message, layout, template) for message in messages]
    if add_generation_prompt:
        texts.append(layout.blocks["assistant"][0])
    elif layout.ends_with_separator:
        texts.append("")
    return layout.separator.join(texts)


def chat_text(
    messages, tokenizer, template, *, system=None, default_system=None, medium=None, tools=None, add_generation_prompt=True
):  # fmt: skip
    """The text of a conversation as a checkpoint lays it out: by its folder's own chat template, or by `render`.

    ``tools`` are JSON schemas of functions. A ``system`` of None is the checkpoint's own text, if it has one: that of its
    config (``default_system``), or else of its chat template.
    Raises: ValueError as `render`, and for what the folder's template refuses.
    """
    begins = bool(messages) and messages[0]["role"] == "system"
    if begins and system:
        raise ValueError("there are two system texts, system= and the first message: leave one out")
    if system is None and not begins:
        system = default_system
    if own := own_template(tokenizer, template, tools, messages):
        first = [{"role": "system", "content": system}] if system is not None and not begins else []
        return own.render([*first, *messages], tools, add_generation_prompt)
    if tools:
        raise ValueError("this checkpoint has no chat template that takes tools: leave them out")
    if system is None and template in FOLDERS_OWN and not begins:
        system = tokenizer.system_prompt
    options = {"template": template, "medium": medium, "add_generation_prompt": add_generation_prompt}
    return render(messages, system=system, **options)


def own_template(tokenizer, template, tools=None, messages=()):
    """The chat template of a checkpoint's folder if it is to be rendered, None if one of `TEMPLATES` is used instead."""
    own = tokenizer.chat_template if template in FOLDERS_OWN else None  # other families keep the layout of their training
    known = {each["role"] for each in messages} <= TEMPLATES[template].blocks.keys()
    return own if own and (tools or not known or not own.is_chatml) else None


def adds_bos(tokenizer, template):
    """Whether the tokenizer may put a BOS token in front of a conversation: where no template of the folder decides it."""
    return template not in FOLDERS_OWN or not tokenizer.chat_template


def expand_media(text, template="chatml", *, images=0, frames=0):
    """Replaces ``<video>`` by one ``<image>`` per frame, and writes around each what the template has there.

    Example: two frames of the template "internvl" are ``Frame1: <img><image></img>\nFrame2: <img><image></img>``.
    Raises: ValueError if there are frames and the text does not have exactly one ``<video>``.
    """
    layout, count = _template(template), text.count(VIDEO)
    if frames and count != 1:
        raise ValueError(f"the prompt has {_placeholders(count, VIDEO)}, but 1 video was given: write {VIDEO} once")
    if frames:
        text = text.replace(VIDEO, layout.frame_separator.join(layout.frame.format(i + 1) for i in range(frames)))
    return text.replace(IMAGE, IMAGE.join(layout.around_image)) if images or frames else text


def encode_prompt(text, tokenizer, *, images=0, audios=0, image_token_index=-200, audio_token_index=-500, bos=True):
    """The ids of a prompt with ``images`` and ``audios`` placeholders, each replaced by its index.

    If no image is given, ``<image>`` is plain text; the same for audios. Without ``bos`` no BOS token is put in front.

    Raises: ValueError with both numbers if the text has another number of placeholders.
    """
    indices = {}
    for placeholder, given, index in ((IMAGE, images, image_token_index), (AUDIO, audios, audio_token_index)):
        if given:
            check_placeholders(text, placeholder, given)
            indices[placeholder] = index
    return _encode_around(text, tokenizer, indices, bos)


def check_placeholders(text, placeholder, given):
    """Raises: ValueError with both numbers if a text has not as many placeholders as media are ``given``."""
    if (count := text.count(placeholder)) != given:
        has, verb = _placeholders(count, placeholder), "was" if given == 1 else "were"
        raise ValueError(f"the prompt has {has}, but {given} {verb} given: write one {placeholder} for each")


def split_state(answer: str, template: str = "chatml") -> tuple[str | None, str]:
    """An answer as (its state mark, or None; the text without the mark and the white space around it).

    Example: ``split_state("☞ Yes.", "vita")`` is ``("☞", "Yes.")``.
    """
    stripped = answer.lstrip()
    if stripped and stripped[0] in _template(template).states:
        return stripped[0], stripped[1:].lstrip()
    return None, answer


class AnswerText:
    """The text of an answer while its ids arrive, without the state mark of the template.

    All results of `push` and `flush`, joined, are ``.text``, the second result of `split_state` for the whole answer.
    ``.state`` is the mark, or None. White space at the start is returned only when it is known that no mark follows.

    Args:
        decoder: a ``StreamDecoder``: ``push(ids)`` and ``flush()`` return text.
        template: a key of `TEMPLATES`.

    Example: tokens "\\n", "☞", " Yes", "." of the template "vita" give "", "", "Yes" and ".".
    """

    def __init__(self, decoder, template="chatml"):
        self.state = None
        self._decoder, self._template = decoder, template
        self._start = ""  # what was pushed before the text began
        self._begun = not _template(template).states
        self._pieces = []

    @property
    def text(self):
        return "".join(self._pieces)

    def push(self, ids):
        """The text that the next ids complete; it may be empty."""
        return self._add(self._decoder.push(ids), last=False)

    def flush(self):
        """The rest of the text."""
        return self._add(self._decoder.flush(), last=True)

    def _add(self, piece, last):
        if not self._begun:
            self._start += piece
            self.state, text = split_state(self._start, self._template)
            self._begun = last or bool(text.strip())
            piece = text if self._begun else ""
        self._pieces.append(piece)
        return piece


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = -200, return_tensors: str | None = None,
) -> Any:  # fmt: skip
    """The ids of a prompt with ``image_token_index`` for each ``<image>``; ``<audio>`` is plain text.

    Shapes: a list of n ints, or [n] long with ``return_tensors="pt"``.
    Source: upstream's util/mm_utils.py:45.
    """
    return _as_tensor(_encode_around(prompt, tokenizer, {IMAGE: image_token_index}), return_tensors)


def tokenizer_image_audio_token(
    prompt: str, tokenizer: Any, image_token_index: int = -200, audio_token_index: int = -500,
    return_tensors: str | None = None,
) -> Any:  # fmt: skip
    """The ids of a prompt with an index for each ``<image>`` and each ``<audio>``.

    Shapes: a list of n ints, or [n] long with ``return_tensors="pt"``.
    Source: upstream's util/mm_utils.py:72.
    """
    indices = {IMAGE: image_token_index, AUDIO: audio_token_index}
    return _as_tensor(_encode_around(prompt, tokenizer, indices), return_tensors)


def _encode_around(text, tokenizer, indices, bos=True):
    """Encodes the texts between placeholders one by one. If the tokenizer adds a BOS, the result has one, in front."""
    encode = (lambda piece: tokenizer(piece).input_ids) if bos else tokenizer.encode
    pattern = "|".join(map(re.escape, indices)) or "(?!)"
    first, *rest = re.split(f"({pattern})", text)  # text, placeholder, text, placeholder, ..., text
    # quirk: Each text between placeholders is encoded by itself, as upstream does: no token spans a placeholder.
    ids = list(encode(first))
    bos = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else None
    for placeholder, piece in zip(rest[::2], rest[1::2]):
        piece_ids = encode(piece)
        ids += [indices[placeholder], *(piece_ids[1:] if piece_ids[:1] == bos else piece_ids)]
    return ids


def _as_tensor(ids, return_tensors):
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
    return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)


def _placeholders(count, placeholder):
    return f"{count} {placeholder} placeholder{'s' * (count != 1)}"


def _template(name):
    if name not in TEMPLATES:
        raise ValueError(f"no template is named {name!r}; the templates are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _medium(messages):
    text = "".join(str(message["content"]) for message in messages)
    return "video" if VIDEO in text else "image" if IMAGE in text else "lang"


def _block(message, layout, template):
    """One message with the texts before and after it."""
    role, content = message["role"], message["content"]
    if role not in layout.blocks:
        raise ValueError(f"template {template!r} has no role {role!r}, only {', '.join(layout.blocks)}")
    if type(content) is not str:
        raise ValueError(f"the content of a {role} message must be a string, got {type(content).__name__}")
    before, after = layout.blocks[role]
    return before + content + after


_CHATML = {role: (f"<|im_start|>{role}\n", "<|im_end|>") for role in ("system", "user", "assistant")}
_INTERNVL = Template(
    _CHATML,
    "\n",
    ends_with_separator=True,
    stop=("<|im_end|>",),
    image_separator="",
    after_each="\n",
    around_image=("<img>", "</img>"),
    frame="Frame{}: <image>",
    frame_separator="\n",
)
_TOOL = {"tool": ("<|im_start|>tool\n", "<|im_end|>")}

TEMPLATES = MappingProxyType(
    {
        "chatml": Template(_CHATML | _TOOL, "\n", ends_with_separator=True, stop=("<|im_end|>",), image_separator=""),
        "vita": Template(
            _CHATML,
            "\n",
            # quirk: No newline follows a conversation that ends with an answer, as upstream's template writes it.
            ends_with_separator=False,
            stop=("<|im_start|>",),
            image_separator="\n",
            default_system={  # not upstream's words: those can be given with --system-file
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
        "internvl": replace(_INTERNVL, blocks=_CHATML | _TOOL),  # of transformers' folders
        "internvl2_5": _INTERNVL,  # this one and the next have the names of the published folders
        "Hermes-2": replace(_INTERNVL, separator="", ends_with_separator=False),
    }
)
