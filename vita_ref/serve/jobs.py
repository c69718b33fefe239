"""What clients wait for: an answer, or the speech of a text. A job tells its client what happens by events.

    Progress (what has been read) -> Part (text and ids) ... -> Done, or an exception

Test: ``pytest tests/serve/test_engine.py``
"""

import time
from bisect import bisect_right
from dataclasses import dataclass, replace

from ..answer import Answer
from ..dialogue.messages import Medium, Message
from ..files.messages import counted
from .errors import ProtocolError
from .limits import MAX_SECONDS
from .prefixes import total
from .questions import room_for


@dataclass(frozen=True)
class Progress:
    """What is read ("images", "sounds" or "prompt"), the positions that are done, and all of them."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Part:
    """The next text of an answer, the ids that are complete with it, their log-probabilities, and the likeliest ids."""

    text: str
    token_ids: list
    logprobs: list
    top: list


@dataclass(frozen=True)
class Done:
    """The end of an answer, and its numbers of positions and ids."""

    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    cached_tokens: int
    audio_tokens: int
    image_tokens: int
    new_tokens: int


class Job:
    """A request that waits or is computed. ``send`` gets its events; it is called in the thread that computes."""

    nbytes = 0  # of its media

    def __init__(self, send, seconds=MAX_SECONDS):
        self.send, self.deadline, self._left = send, time.monotonic() + seconds, False

    def leave(self):
        """Ends the job before its next step, from any thread: nobody waits for it."""
        self._left = True

    @property
    def reason(self):
        """Why it must end: "stopped" or "time"; None if it may go on."""
        return "stopped" if self._left else "time" if time.monotonic() >= self.deadline else None

    def fail(self, error):
        """Ends the job with an exception."""
        self.send(error)


class PiecesJob(Job):
    """What an iterator gives, such as the speech of a text. ``pieces`` is called with the job for the iterator."""

    def __init__(self, pieces, send, seconds=MAX_SECONDS):
        super().__init__(send, seconds)
        self.pieces = pieces

    def run(self):
        """Sends the pieces, then None. Yields after each. Raises: ProtocolError if it takes too long."""
        for piece in self.pieces(self):
            if self.go_on():
                self.send(piece)
                yield
            else:
                return
        self.send(None)

    def go_on(self):
        """Whether somebody still waits for it. Raises: ProtocolError if it takes too long."""
        if self.reason == "time":
            raise ProtocolError("the time of this request is over: ask for less", 503)
        return self.reason is None


class AnswerJob(Job):
    """The answer to a `Question`.

    Attributes, from `prepare` on: elements, the prompt; most, how many new tokens the answer may have; prefix, kept and
    past: what is known of the prompt, and how many elements and positions that is.
    """

    def __init__(self, question, send, seconds=MAX_SECONDS):
        super().__init__(send, seconds)
        self.question, self.alone, self.answer, self.nbytes = question, False, None, question.nbytes

    def prepare(self, vita, encoder, prefixes):
        """Makes the prompt, with what the server knows of it. Raises: ValueError if it is too long."""
        prefixes.recall(self.question)
        self.elements, self.most = prompt_of(self.question, vita, encoder)
        self.prefix, self.kept, self.past = prefixes.find(self.elements)
        self.length = total(self.elements)

    @property
    def style(self):
        """What must be equal in answers that are generated together."""
        s = self.question.sampling
        return s.repetition_penalty, s.greedy or (s.temperature, s.top_p, s.top_k)

    def begin(self, vita, stops):
        """Makes the empty `Answer`. It reports log-probabilities only if they are wanted."""
        options = replace(self.question.sampling, top=self.question.sampling.top if self.question.logprobs else None)
        self.answer, self._written, self._sent = Answer(vita.tokenizer, vita.config.template, stops, [], options), 0, 0

    def push(self, token, logits, ended):
        """Adds the next id. Returns whether the answer has ended."""
        answer = self.answer
        answer.push(token, logits, ended)
        if not ended:
            self.send_part()
        return bool(answer.finish_reason or self.reason or len(answer.ids) >= self.most)

    def send_part(self):
        """Sends the text that is new."""
        a = self.answer
        complete = len(a.ends) if a.done else bisect_right(a.ends, len(a.text))
        if len(a.text) > self._written or complete > self._sent:
            part = slice(self._sent, complete)
            self.send(Part(a.text[self._written :], a.token_ids[part], a.logprobs[part], a.top[part]))
            self._written, self._sent = len(a.text), complete

    def finish(self, error=None):
        """Ends the answer. Returns the message that it becomes, None if there is no answer."""
        a = self.answer
        a.finish(error, self.reason)
        if error is not None:
            self.fail(error)
            return None
        self.send_part()
        media = [x for x in self.elements if isinstance(x, Medium)]
        sounds = total(x for x in media if x.kind == "audio")
        reason = "stop" if a.finish_reason == "stop" else "length"
        self.send(Done(reason, self.length, self.past, sounds, total(media) - sounds, len(a.ids)))
        message = Message({"role": "assistant", "content": ""}, [""], answer=a)
        message.settle()
        return message


def prompt_of(question, vita, encoder):
    """The prompt of a question as ids and media, and how many new tokens its answer may have.

    ``encoder`` is a `Conversation` of this model, whose template and limits hold. Raises: ValueError if it is too long.
    """
    new = question.sampling.max_new_tokens
    try:
        elements, _ = encoder.fit(question.messages, new, {"raw": False, "system": None})
    except ValueError as error:
        param, code = "messages", "context_length_exceeded" if "positions" in str(error) else None
        message = str(error).replace("give a max_new_tokens of", "give a max_tokens of").partition("; or undo a turn")[0]
        raise ProtocolError(message, param=param, code=code) from None
    most = room_for(question.sampling, total(elements), vita.config.decoder.max_position_embeddings)
    if most < 1:
        raise ProtocolError(f"the prompt leaves no room for {counted(1, 'new token')}", param="messages")
    return elements, most
