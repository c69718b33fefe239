"""One answer as a stream of pieces, and its result.

    for piece in vita.stream("Why?"):       each piece of text as soon as it is certain, with its ids and log-probabilities
        print(piece.text, end="")           stream.stop(), from any thread, ends the answer

Test: ``pytest tests/test_stream.py``
"""

import contextlib
import time
from bisect import bisect_right
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Piece:
    """A part of an answer: text, and the ids that are complete with it.

    ``logprobs`` has the log-probability of each id, ``top`` the likeliest ids at its place, as (id, log-probability).
    """

    text: str
    token_ids: list
    logprobs: list
    top: list


@dataclass(frozen=True)
class Result:
    """A complete answer.

    Attributes:
        text: without the state mark, and without white space at its ends.
        token_ids: without the id that ended the answer.
        logprobs, top: as in `Piece`, for all of them.
        finish_reason: "stop", "length", "stopped" (by `Stream.stop`) or "time".
        state: VITA's answer state, or None.
        segments: (kind, start, end) of the prompt: kind is text, image or audio.
        prompt: positions of the prompt: "text_tokens", "image_tokens", "audio_tokens", "total", and "cached", those that
            earlier turns of a conversation had read.
        timing: "prefill_s", until the first token; "decode_s"; "tokens_per_s" of the tokens after the first.
        dropped: the oldest messages of a conversation that the prompt left out because the context was full.
    """

    text: str
    token_ids: list
    logprobs: list
    top: list
    finish_reason: str
    state: str | None
    segments: list
    prompt: dict
    timing: dict
    dropped: list


class Stream:
    """An iterator over the `Piece` objects of one answer, which is generated while it is iterated. ``result`` is its
    `Result` after the last piece, and None before.

    Args:
        answers: called with the options; a generator of lists of one `Answer`, after each step and once at the end.
        options: the `Sampling` options. Log-probabilities are always reported.
        control: the `Control` of the answer.
        notes: "cached" and "dropped" of a conversation's prompt, filled in while it is read.
    """

    def __init__(self, answers, options, control, notes=None):
        self.result, self._control = None, control
        self._notes = {"cached": 0, "dropped": []} if notes is None else notes
        self._pieces = self._run(answers(replace(options, top=options.top or 0)))

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece:
        """The next piece. Raises: ValueError if the answer fails."""
        return next(self._pieces)

    def stop(self) -> None:
        """Ends the answer before its next token, from any thread. The pieces end, and ``result`` is there."""
        self._control.stop()

    def finish(self) -> Result:
        """Generates the rest of the answer. Returns the `Result`."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Ends the answer where it is, as if the iteration were given up."""
        self._pieces.close()

    def _run(self, answers):
        start, times, written, sent = time.perf_counter(), [], 0, 0
        with contextlib.closing(answers):
            for [answer] in answers:
                times.append(time.perf_counter())
                if answer.error is not None:
                    raise answer.error
                complete = len(answer.ends) if answer.done else bisect_right(answer.ends, len(answer.text))
                if len(answer.text) > written or answer.done and complete > sent:
                    part = slice(sent, complete)
                    piece = answer.text[written:], answer.token_ids[part], answer.logprobs[part], answer.top[part]
                    written, sent = len(answer.text), complete
                    yield Piece(*piece)
        self.result = self._result(answer, start, times)

    def _result(self, answer, start, times):
        prefill, decode = times[0] - start, times[-1] - times[0]
        rate = (len(times) - 2) / max(decode, 1e-9)  # the first token is part of the prefill; no token has the last time
        timing = {"prefill_s": prefill, "decode_s": decode, "tokens_per_s": max(rate, 0.0)}
        values = answer.token_ids, answer.logprobs, answer.top, answer.finish_reason, answer.state, answer.segments
        prompt = answer.prompt_counts() | {"cached": self._notes["cached"]}
        return Result(answer.text.strip(), *values, prompt, timing, self._notes["dropped"])
