"""The messages of a conversation: dicts become texts and media, and those become the text of the whole prompt.

    {"role": "user", "content": "Why?", "images": ["x.jpg"]} -> Message, with the parts [Medium, "Why?"]
    several of them -> the chat template -> ["<|im_start|>user\\n", Medium, "Why?<|im_end|>...", ids of an answer, ...]

N tiles, X, Y width and height, J frames, M mel bins, I, A positions of a medium, D decoder width.

Test: ``pytest tests/test_chat.py``
"""

import hashlib
import re
from dataclasses import dataclass, field

import torch

from ..checks.media import check_request
from ..files.messages import shown
from ..prompt import (
    AUDIO,
    IMAGE,
    VIDEO,
    chat_text,
    check_placeholders,
    expand_media,
    place_media,
)
from ..request import (
    DESCRIBE,
    Request,
    audio_positions,
    check_parts,
    image_positions,
    load_audio,
    load_image,
    load_video,
)

READING = ("max_tiles", "fps", "max_frames")  # how the media of a message are read
MEDIA = ("images", "audios", "video", *READING)  # what a message may have besides what its template sees
TYPES = {"image": "images", "audio": "audios", "video": "video"}  # of the parts of a content that is a list


@dataclass(eq=False)
class Medium:
    """An image, a frame of a video, or a sound: its values, and its features [I, D] or [A, D] once it is encoded.

    Shapes: data [N, 3, Y, X], or [J, M] of a sound.
    """

    kind: str  # "image", "frame" or "audio"
    data: torch.Tensor
    positions: int  # in the prompt
    features: torch.Tensor | None = None


@dataclass(eq=False)
class Message:
    """A message: the dict that was given, its texts and media, and of an answer the ids that were generated.

    An answer that a stop text ended inside a token has the text behind its last whole token in ``rest``. While it is
    generated, ``answer`` is its `Answer`.
    """

    fields: dict
    parts: list = field(default_factory=list)
    ids: list | None = None
    rest: str = ""
    state: str | None = None
    answer: object = None

    @property
    def role(self):
        return self.fields["role"]

    @property
    def text(self):
        """The content, with placeholders where the user has written them."""
        return self.fields["content"] if self.answer is None else self.answer.text.strip()

    def as_dict(self):
        """The message as it was given; an answer with its state, if it has one."""
        state = self.state if self.answer is None else self.answer.state
        return self.fields | {"content": self.text} | ({} if state is None else {"state": state})

    def settle(self):
        """Keeps what is needed of the finished ``answer``."""
        answer, self.answer = self.answer, None
        whole = sum(end <= len(answer.text) for end in answer.ends)
        self.ids, self.state = answer.token_ids[:whole], answer.state
        self.rest = answer.text[answer.ends[whole - 1] if whole else 0 :] if answer.cut else ""
        self.fields, self.parts = self.fields | {"content": answer.text.strip()}, [answer.text.strip()]


def read_message(given, common, vita, known):
    """A dict as a `Message`. ``common`` has what the dict leaves out of `READING`; ``known`` maps the values of media that
    were read before to them, and gets the new ones.

    Raises: ValueError for a message that is damaged, or media that cannot be read.
    """
    fields = joined_parts(given)
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, str) or not role:
        raise ValueError(f"a message must have a role such as 'user', got {shown(role)}")
    options = common | {name: fields[name] for name in MEDIA if fields.get(name) is not None}
    request = check_request(Request(content, **options))
    check_parts(request, vita.config, vita.tokenizer)
    if content is None and role == "user":
        content = default_content(request)
    fields = {name: x for name, x in fields.items() if name not in MEDIA or options.get(name) is not None and len_of(x)}
    state = fields.pop("state", None)
    fields |= {"role": role, "content": content}
    return Message(fields, split_content(content or "", request, vita, known), state=state)


def len_of(given):
    """Whether a field of media has any."""
    return not (isinstance(given, (list, tuple)) and len(given) == 0)


def joined_parts(given):
    """A message whose content is a list of parts, ``{"type": "image", "image": ...}`` and so on, with texts and media apart.

    Media in front of all texts have no placeholders, as in a `Request`; others have theirs where they stand. A user's
    message of media alone has no content, and gets `default_content`.
    """
    if not isinstance(given, dict):
        raise ValueError(f"a message must be a dict with role and content, got {shown(given)}")  # noqa: TRY004
    content = given.get("content")
    if not isinstance(content, (list, tuple)):
        return dict(given)
    texts, media = [], {}
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", *TYPES) or kind not in part:
            form = '{"type": "text", "text": "..."} or the same with image, audio or video'
            raise ValueError(f"a part of a message must be {form}, got {shown(part)}")
        if kind == "text":
            texts.append(str(part["text"]))
        else:
            media.setdefault(TYPES[kind], []).append(part[kind])
            texts.append({"image": IMAGE, "audio": AUDIO, "video": VIDEO}[kind])
    if len(media.get("video", [])) > 1:
        raise ValueError(f"a message can have one video, got {len(media['video'])}")
    media |= {"video": media["video"][0]} if "video" in media else {}
    text = "".join(texts)
    leading = re.match(f"(?:{IMAGE}|{AUDIO}|{VIDEO})*", text).end()
    count = sum(map(len, (x if isinstance(x, list) else [x] for x in media.values())))
    in_front = len(re.findall(f"{IMAGE}|{AUDIO}|{VIDEO}", text[:leading])) == count
    if media and in_front and given.get("role") == "user" and all(part["type"] != "text" for part in content):
        return {**given, **media, "content": None}
    return {**given, **media, "content": text[leading:] if in_front else text}


def default_content(request):
    """The question of a message without one, as for a `Request`."""
    if request.audios:
        return ""
    if request.video is not None:
        return DESCRIBE["video"]
    if request.images:
        return DESCRIBE["image"]
    raise ValueError("a message of a user needs a content if it has no image, video or sound")


def split_content(content, request, vita, known):
    """The texts and media of a message, in order."""
    config, has_video = vita.config, request.video is not None
    counts = {IMAGE: len(request.images), VIDEO: int(has_video), AUDIO: len(request.audios)}
    text = place_media(content, counts[IMAGE], counts[AUDIO], config.template, videos=counts[VIDEO])
    for placeholder, n in counts.items():
        if n:
            check_placeholders(text, placeholder, n)
    images = [medium("image", load_image(x, request, config), config, known) for x in request.images]
    frames = [medium("frame", x, config, known) for x in load_video(request, config)] if has_video else []
    sounds = [medium("audio", load_audio(x, config), config, known) for x in request.audios]
    before = text.partition(VIDEO)[0].count(IMAGE)
    text = expand_media(text, config.template, images=len(images), frames=len(frames))
    media = {IMAGE: [*images[:before], *frames, *images[before:]], AUDIO: sounds}
    placeholders = [placeholder for placeholder, given in media.items() if given]
    for placeholder in placeholders:
        check_placeholders(text, placeholder, len(media[placeholder]))
    left, parts = {placeholder: iter(given) for placeholder, given in media.items()}, []
    for piece in re.split(f"({'|'.join(placeholders)})", text) if placeholders else [text]:
        parts += [next(left[piece])] if piece in placeholders else [piece] * bool(piece)
    return parts


def medium(kind, data, config, known):
    """A `Medium`: the one in ``known`` with the same values, or a new one."""
    values = data.detach().to("cpu", torch.float32).contiguous().numpy()
    key = (kind, tuple(data.shape), hashlib.blake2b(values, digest_size=16).digest())
    if key not in known:
        positions = audio_positions(config, data) if kind == "audio" else image_positions(config.vision, data)
        known[key] = Medium(kind, data, positions)
    return known[key]


# ---- from messages to the prompt


def text_pieces(messages, vita, tools=None, *, system=None, raw=False):
    """The prompt of a conversation as a list of texts, media, and lists of ids: those of answers, as they were generated.

    An answer that the chat template changes (one may leave out what was thought) is a text as the template writes it.
    """
    media = list(dict.fromkeys(part for message in messages for part in message.parts if isinstance(part, Medium)))
    mark = unused_character([system or "", *(text for message in messages for text in texts_of(message))])
    names = {each: f"{mark}{i}{mark}" for i, each in enumerate(media)}
    dicts = [template_fields(message, names) for message in messages]
    medium = "video" if any(m.kind == "frame" for m in media) else "image" if any(m.kind == "image" for m in media) else "lang"

    def write(count):
        if raw:
            return "".join(each["content"] or "" for each in dicts[:count])
        options = {"system": system, "default_system": vita.config.default_system, "medium": medium, "tools": tools}
        return chat_text(dicts[:count], vita.tokenizer, vita.config.template, **options)

    whole, pieces, end = write(len(dicts)), [], 0
    for i, message in enumerate(messages):
        if not message.ids:
            continue
        before = write(i)
        if len(before) >= end and whole.startswith(before + message.text):
            pieces += [*split_marks(whole[end : len(before)], mark, media), message.ids, message.rest]
            end = len(before) + len(message.text)
    pieces += split_marks(whole[end:], mark, media)
    return [piece for piece in pieces if isinstance(piece, Medium) or len(piece)]


def split_marks(text, mark, media):
    """A text with marks in it as texts and media."""
    pieces = text.split(mark)
    return [media[int(piece)] if i % 2 else piece for i, piece in enumerate(pieces)]


def template_fields(message, names):
    """A message as its chat template gets it: without media, whose names stand in its content."""
    content = message.text
    if message.parts:
        content = "".join(names[part] if isinstance(part, Medium) else part for part in message.parts)
    return {name: x for name, x in message.fields.items() if name not in MEDIA} | {"content": content}


def texts_of(message):
    """The texts of a message in which a mark could occur."""
    return [part for part in message.parts if isinstance(part, str)]


def unused_character(texts):
    """A character for private use that occurs in none of the texts."""
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if not any(c in text for text in texts))


def oldest_turn(messages):
    """The first question that is not the last one, and what follows it up to the next. Empty if there is none."""
    questions = [i for i, message in enumerate(messages) if message.role == "user"]
    return messages[questions[0] : questions[1]] if len(questions) > 1 else []


def without_noise(messages, states):
    """The messages without turns whose answer state says that the sound was noise, as upstream's demo forgets them."""
    noise, kept = states[1] if len(states) > 1 else None, []
    for message in messages:
        kept.append(message)
        if noise is not None and message.role == "assistant" and message.state == noise:
            while kept and kept.pop().role != "user":
                pass
    return kept
