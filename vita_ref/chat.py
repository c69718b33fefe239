"""A conversation: messages, and a cache that goes on where the last answer ended. It uses the one generation loop.

    messages -> chat template -> texts, media, and answers as the ids that were generated -> ids
             -> the ids that the cache begins with stay in it, the others are read -> Vita.steps -> the next answer

    chat = vita.chat()
    chat.ask("What is this?", images=["x.jpg"]);  chat.ask("And what color is it?");  chat.undo();  chat.save("c.json")

A message is a dict as everywhere, ``{"role": "user", "content": "What is this?", "images": ["x.jpg"]}``: its media are
those of a `Request`. ``python -m vita_ref.chat`` is a conversation in the terminal.

N tiles, X, Y width and height, J frames, M mel bins, I, A positions of a medium, D decoder width; n ids.

Test: ``pytest tests/test_chat.py``
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .answer import Control, run_answers
from .checks.media import check_text
from .checks.rows import DEFAULT_NEW_TOKENS
from .dialogue.messages import (
    READING,
    Medium,
    Message,
    oldest_turn,
    read_message,
    text_pieces,
    without_noise,
)
from .files.messages import shown
from .inputs import (
    Batch,
    audio_features,
    image_features,
    spliced_inputs,
    split_options,
)
from .prompt import TEMPLATES, adds_bos, encode_prompt
from .request import Request, check_positions
from .sampling import Sampling
from .stream import Stream

MOST_UNUSED = 8  # media that no message has any more, and that are kept because they may be asked about again


class Conversation:
    """Questions and answers, each of which continues those before it. `Vita.chat` makes one.

    Args:
        system: the system text; None is the checkpoint's own, if it has one.
        overflow: what happens when the context is full: "error", or "drop_oldest", which leaves the oldest questions and
            answers out of the prompt and names them in `Result.dropped`.
        tools: JSON schemas of functions, for chat templates that take them.
        options: the defaults of every question: fields of `Request` (``raw``, ``max_tiles``, ...) and of `Sampling`.
    """

    def __init__(self, vita, system=None, *, overflow="error", tools=None, **options):
        if overflow not in ("error", "drop_oldest"):
            raise ValueError(f"overflow must be 'error' or 'drop_oldest', got {shown(overflow)}")
        check_text(system, "system")
        if not (tools is None or isinstance(tools, (list, tuple)) and all(isinstance(each, Mapping) for each in tools)):
            raise ValueError(f"tools must be a list of JSON schemas, got {shown(tools)}")
        turn_options(options)
        self.vita, self.system, self.overflow, self.tools, self.options = vita, system, overflow, tools, options
        self._messages, self._media, self._stream = [], {}, None
        self._last = None, None  # the last answer as a message, and its prompt
        self._lock = threading.Lock()  # held while a question is read: a second thread stops the first one's answer, or is refused
        self._cache, self._read, self._answer = vita.decoder.new_cache(1), [], None  # what is in the cache

    # ---- what a user does

    def ask(
        self, text: str | None = None, images: Any = (), audios: Any = (), video: Any = None, *,
        details: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        """The answer to the next question, as `Vita.respond` gives it. ``role`` may be another one, such as "tool"."""
        result = self.stream(text, images, audios, video, **options).finish()
        if result is None:
            raise ValueError("this question was not answered: another thread asked the next one before it began")
        return result if details else result.text

    def stream(
        self, text: str | None = None, images: Any = (), audios: Any = (), video: Any = None, *, role: str = "user",
        progress: Callable | None = None, **options: Any,
    ) -> Stream:  # fmt: skip
        """The answer to the next question as a `Stream`. If it is stopped, the conversation goes on with what there is.

        Options are as for `Vita.stream`; they hold for this question.
        Raises: ValueError if the question cannot be answered; the conversation is then as before.
        """
        own = {name: value for name, value in options.items() if name in READING}
        given = {"role": role, "content": text, "images": images, "audios": audios, "video": video} | own
        with self._lock:
            self._settle()
            return self._start([*self._messages, self._message(given, options)], progress, options)

    def reply(self, messages: Sequence[Mapping], *, progress: Callable | None = None, **options: Any) -> Stream:
        """The answer to a whole list of messages, as a client of a server sends it, as a `Stream`.

        The list replaces the messages of this conversation. What it has in common with them is not read again, and an
        answer that comes back unchanged keeps the ids that were generated.
        """
        if not isinstance(messages, (list, tuple)) or not messages:
            raise ValueError(f"messages must be a list of at least one message, got {shown(messages)}")
        with self._lock:
            self._settle()
            read = [self._message(given, options) for given in messages]
            for new, old in zip(read, self._messages):
                if new.role == old.role == "assistant" and new.text.strip() == old.text.strip():
                    new.ids, new.rest, new.state = old.ids, old.rest, old.state
            return self._start(read, progress, options)

    @property
    def messages(self) -> list[dict]:
        """The messages as a list of dicts. `reply` takes it."""
        return [message.as_dict() for message in self._messages]

    @property
    def ids(self) -> list[int]:
        """The ids of the last prompt and its answer, with the checkpoint's placeholder for each medium."""
        return [self._id(each) for each in self._read + (self._answer.ids if self._answer else [])]

    def undo(self) -> None:
        """Removes the last question and what followed it. Raises: ValueError if there is none."""
        with self._lock:
            self._settle()
            places = [i for i, message in enumerate(self._messages) if message.role == "user"]
            if not places:
                raise ValueError("there is no question to undo")
            del self._messages[places[-1] :]

    def look(self, **options: Any) -> Any:
        """What the last answer was made of, as `Vita.look` gives it. Raises: ValueError if there is no answer.

        Options: ``tokens``, ``passes``, ``derive`` and ``progress``, as for `Vita.look`.
        """
        from .analysis.turn import look_at_turn

        self._settle()
        i = next((i for i, m in reversed([*enumerate(self._messages)]) if m.role == "assistant"), None)
        if i is None:
            raise ValueError("there is no answer to look at")
        answer, before, (common, sampling) = self._messages[i], self._messages[:i], turn_options(self.options)
        prompt = {"raw": common.get("raw", False), "system": common.pop("system", self.system)}
        elements = self._last[1] if self._last[0] is answer else self.fit(before, sampling.max_new_tokens, prompt)[0]
        ids = answer.ids or self.vita.tokenizer.encode(answer.text)
        if not ids:
            raise ValueError("the last answer is empty: there is nothing to look at")
        return look_at_turn(self.vita, elements, before, ids, common, **options)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the conversation as JSON, with its media in it. The generator of the options is left out."""
        from .dialogue.saved import save

        self._settle()
        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, vita: nn.Module) -> "Conversation":
        """A conversation that `save` wrote. No other file is opened; its next answer reads the whole conversation once.

        Raises: ValueError if the file is damaged, or does not fit this checkpoint.
        """
        from .dialogue.saved import load

        return load(cls, path, vita)

    # ---- from messages to a stream

    def _message(self, given, options):
        """A dict as a `Message`, whose media are those that are known already, if they have the same values."""
        common = {name: x for name, x in {**self.options, **options}.items() if name in READING}
        return read_message(given, common, self.vita, self._media)

    def _start(self, messages, progress, options):
        request, sampling = turn_options({**self.options, **options})
        prompt = {"raw": request.get("raw", False), "system": request.get("system", self.system)}
        elements, dropped = self.fit(messages, sampling.max_new_tokens, prompt)
        used = {part for message in messages for part in message.parts}
        unused = [key for key, medium in self._media.items() if medium not in used]
        for key in unused[:-MOST_UNUSED]:
            del self._media[key]
        notes, control = {"cached": 0, "dropped": dropped}, Control(progress)
        self._stream = Stream(lambda o: self._turn(messages, elements, o, control, notes), sampling, control, notes)
        return self._stream

    def fit(self, messages, new, prompt):
        """The prompt as elements, an id or a `Medium` each, and the oldest messages that were dropped so that it fits."""
        kept, dropped = without_noise(messages, TEMPLATES[self.vita.config.template].states), []
        if self.overflow == "drop_oldest" and new is None:
            new = min(DEFAULT_NEW_TOKENS, self.vita.config.decoder.max_position_embeddings // 4)
        while True:
            elements = self._encode(text_pieces(kept, self.vita, self.tools, **prompt), prompt["raw"])
            try:
                check_positions(self.vita.config, sum(map(size, elements)), new)
                return elements, [message.as_dict() for message in dropped]
            except ValueError as error:
                oldest = oldest_turn(kept)
                if self.overflow == "error" or not oldest:
                    advice = "; or undo a turn, begin a new conversation, or use overflow='drop_oldest'"
                    raise ValueError(f"{error}{advice * (len(kept) > 1)}") from None
            kept, dropped = [message for message in kept if message not in oldest], dropped + oldest

    def _encode(self, pieces, raw):
        """Texts, media and lists of ids as one list of ids and media."""
        tokenizer, elements = self.vita.tokenizer, []
        bos = raw or adds_bos(tokenizer, self.vita.config.template)
        for piece in pieces:
            if isinstance(piece, str):
                ids = encode_prompt(piece, tokenizer, bos=bos)
                again = bos and elements and ids and ids[0] == tokenizer.bos_token_id
                elements += ids[1:] if again else ids
            else:
                elements += [piece] if isinstance(piece, Medium) else piece
        if not elements:
            raise ValueError("the prompt is empty: there is nothing to answer")
        return elements

    # ---- one answer

    def _turn(self, messages, elements, options, control, notes):
        """Generates the answer to a list of messages, which become those of the conversation together with it."""
        before, reply, answer = self._messages, Message({"role": "assistant", "content": ""}, [""]), None
        self._messages, self._last = [*messages, reply], (reply, elements)
        try:
            for [answer] in run_answers(
                self.vita, lambda: self._inputs(elements, control, notes), 1, options, control, self._cache
            ):
                reply.answer = self._answer = answer
                yield [answer]
        except Exception:
            answer = None
            raise
        finally:  # also when the iteration is given up
            if answer is None or answer.error is not None:
                self._messages = before
            else:
                if not answer.done:
                    answer.finish(reason="stopped")
                reply.settle()

    def _inputs(self, elements, control, notes):
        """Encodes new media, goes back to what the cache has in common with the prompt, and makes the rest `Inputs`."""
        vita, known = self.vita, self._read + (self._answer.ids if self._answer else [])
        self._read, self._answer = known, None
        kept, past = common_prefix(known, elements, self._cache.length)
        new = elements[kept:]
        encode([each for each in dict.fromkeys(new) if isinstance(each, Medium)], vita, control.progress)
        self._cache.truncate(past)
        self._read, notes["cached"] = elements, past
        device = vita.decoder.norm.weight.device
        whole, ids = (torch.tensor([self._id(x) for x in part], device=device) for part in (elements, new))  # [n]
        images = [x.features for x in new if isinstance(x, Medium) and x.kind != "audio"]
        sounds = [x.features for x in new if isinstance(x, Medium) and x.kind == "audio"]
        x = spliced_inputs(vita, Batch([ids]), images, sounds, cache=self._cache)
        return x._replace(batch=Batch([whole]), segments=[segments(elements)])

    def _id(self, element):
        """The id of an element of a prompt; of a medium, the checkpoint's placeholder."""
        if not isinstance(element, Medium):
            return element
        return self.vita.config.audio_token_index if element.kind == "audio" else self.vita.config.image_token_index

    def _settle(self):
        """Ends an answer whose iteration was given up. Raises: ValueError if another thread is generating it."""
        try:
            if self._stream is not None:
                self._stream.close()
        except ValueError:  # "generator already executing"
            raise ValueError("this conversation is answering already: stop that answer, or wait for its end") from None
        self._stream = None


def turn_options(options):
    """Options of a question as a dict of fields of `Request` and as `Sampling`. Raises: TypeError, ValueError."""
    request, sampling = split_options(options, Request, Sampling)
    if wrong := request.keys() - {"system", "raw", *READING}:
        raise TypeError(f"{min(wrong)!r} belongs to a message, not to the options of a conversation")
    return request, Sampling(**sampling).check()


def size(element):
    """The positions of an element of a prompt."""
    return element.positions if isinstance(element, Medium) else 1


def common_prefix(known, elements, length):
    """How many elements of a prompt, and positions, a cache of ``length`` positions with the ``known`` elements begins with.

    The last element is never among them, because its hidden state is needed.
    """
    count = past = 0
    for old, new in zip(known, elements[:-1]):
        if old != new or past + size(new) > length:
            break
        count, past = count + 1, past + size(new)
    return count, past


def encode(media, vita, progress):
    """Encodes media that have no features yet: images together, and sounds together."""
    media = [each for each in media if each.features is None]
    images, sounds = ([each for each in media if (each.kind == "audio") is audio] for audio in (False, True))
    if images:
        for each, features in zip(images, image_features(vita, [x.data for x in images], progress=progress)):
            each.features = features
    if sounds:
        for each, features in zip(sounds, audio_features(vita, {"audios": [x.data for x in sounds]}, progress=progress)):
            each.features = features


def segments(elements):
    """(kind, start, end) of each piece of text and each medium of a prompt."""
    found, end = [], 0
    for element in elements:
        kind = ("audio" if element.kind == "audio" else "image") if isinstance(element, Medium) else "text"
        start, end = end, end + size(element)
        if kind == "text" and found and found[-1][0] == "text":
            start = found.pop()[1]
        found.append((kind, start, end))
    return found


def main(argv=None):
    """Entry point of ``python -m vita_ref.chat``; returns the exit status."""
    from .cli import talk

    return talk.main(argv)


def run():
    """Runs `main` as a process."""
    from .cli.terminal import run_process

    run_process(main)


if __name__ == "__main__":
    run()
