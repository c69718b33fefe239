"""The answer to one request while it is generated: token ids become text as soon as it is certain.

    Vita.steps -> run_answers -> Answer.push, for each row of the batch -> text, without state mark and stop text

B batch rows, V vocabulary.

Test: ``pytest tests/test_answer.py``
"""

import threading
import time
from dataclasses import replace

import torch

from .files.tokenizer import StreamDecoder
from .inputs import check_inputs
from .prompt import AnswerText


class Stopped(Exception):
    """Ends an answer, wherever it is read or generated. Its argument is the finish reason, "stopped" or "time"."""


class Control:
    """What ends an answer from outside: `stop`, from any thread, or a time limit. It also reports what has been read.

    ``report`` is called with what is read ("images", "sounds" or "prompt"), the positions done, and all of them.
    """

    def __init__(self, report=None):
        self._stop, self._deadline, self._report = threading.Event(), None, report

    def start(self, max_seconds):
        """Starts the clock; None is no limit."""
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds

    def stop(self):
        """Ends the answer before its next token."""
        self._stop.set()

    @property
    def reason(self):
        """Why the answer must end, "stopped" or "time"; None if it may go on."""
        if self._stop.is_set():
            return "stopped"
        return "time" if self._deadline is not None and time.monotonic() >= self._deadline else None

    def progress(self, what, done, total):
        """Reports. Raises: Stopped if the answer must end."""
        if self.reason:
            raise Stopped(self.reason)
        if self._report is not None:
            self._report(what, done, total)


@torch.inference_mode()
def run_answers(vita, read, rows, options, control, cache=None):
    """Generates the answers to a batch: yields its `Answer` objects after every step, and once at the end.

    ``read()`` gives the `Inputs` of the batch. With a ``cache``, they follow what is in it.
    """
    stops = vita.stop_ids if options.eos_token_id is None else vita.eos_ids(options.eos_token_id)
    options, errors, reason = replace(options, eos_token_id=stops), {}, None
    answers = [Answer(vita.tokenizer, vita.config.template, stops, [], options) for _ in range(rows)]
    control.start(options.max_seconds)
    try:
        if control.reason:
            raise Stopped(control.reason)
        with vita.generation_products():
            x = read()
        check_inputs(x)
        for each, segments in zip(answers, x.segments):
            each.segments = segments
        for step in vita.steps(x, options, errors, cache=cache, progress=control.progress):
            for i, pushed in enumerate(zip(step.ids.tolist(), step.logits, step.ended.tolist())):
                answers[i].push(*pushed)
                if answers[i].finish_reason:
                    step.ended[i] = True
            yield answers
            if control.reason:
                raise Stopped(control.reason)
    except Stopped as stopped:
        reason = stopped.args[0]
    for i, each in enumerate(answers):
        each.finish(errors.get(i), reason)
    yield answers


class Answer:
    """One row of a batch: its new ids, its text and why it ended.

    Attributes:
        token_ids: the ids of the text, without the one that ended the answer.
        ids: all ids that were generated.
        ends: for each of ``token_ids``, the length of the text that is complete with it.
        logprobs, top: for each of ``token_ids`` its log-probability, and (id, log-probability) of the likeliest ids at
            its place, if ``options.top`` is a number. They are those of the model, before temperature and filters.
        piece: the text that the last step added; all pieces together are ``text``.
        first_logits: [V], the logits that the first token was chosen from.
        finish_reason: "stop", "length", "stopped", "time" or "error" once the answer is finished.
        error: the ValueError of an answer whose logits were not finite, otherwise None.
    """

    def __init__(self, tokenizer, template, stop_ids, segments, options=None):
        self.tokenizer, self.stop_ids, self.segments = tokenizer, stop_ids, segments
        self.stream = AnswerText(StreamDecoder(tokenizer), template)
        self.stops, self.count = (options.stops, options.top) if options else ((), None)
        self.ids, self.token_ids, self.ends, self.logprobs, self.top = [], [], [], [], []
        self.text = self.piece = self._held = ""  # held: text that may be the beginning of a stop text
        self.cut = self.done = False  # whether a stop text ended it, and whether it is finished
        self.first_logits, self.finish_reason, self.error = None, None, None

    def push(self, token, logits, ended=False):
        """Adds the next id, unless the answer has ended."""
        self.piece = ""
        if ended:
            return
        if self.first_logits is None:
            self.first_logits = logits
        if self.finish_reason == "stop":
            return
        self.ids.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return
        self.token_ids.append(token)
        if self.count is not None:
            self._add_logprobs(token, logits.float().log_softmax(-1))
        piece = self.stream.push(drop_unknown_ids([token], self.tokenizer))
        self.ends.append(len(self.stream.text))
        self._add_text(piece)

    def finish(self, error=None, reason=None):
        """Ends the answer, because of ``reason`` if it had not ended. The last piece is the rest of the text."""
        self.piece, self.error = "", error
        if not self.cut:
            self._add_text(self.stream.flush(), last=True)
        self.finish_reason = "error" if error else self.finish_reason or reason or "length"
        self.done = True

    def _add_logprobs(self, token, logprobs):
        self.logprobs.append(float(logprobs[token]))
        likeliest = logprobs.topk(min(self.count, len(logprobs)))
        self.top.append(list(zip(likeliest.indices.tolist(), likeliest.values.tolist())))

    def _add_text(self, text, last=False):
        """Adds text as far as it is certain that it does not belong to a stop text, which ends the answer."""
        waiting = self._held + text
        found = [at for at in map(waiting.find, self.stops) if at >= 0]
        n = 0 if last else possible_stop(waiting, self.stops)
        end = min(found) if found else len(waiting) - n
        self.piece, self._held = waiting[:end], waiting[end:]
        self.text += self.piece
        if found:
            self.cut, self.finish_reason = True, "stop"
            starts = [0, *self.ends[:-1]]  # of the text of each token
            kept = sum(start < len(self.text) for start in starts)
            for each in (self.token_ids, self.logprobs, self.top, self.ends):
                del each[kept:]

    @property
    def state(self):
        """VITA's answer state (☞ ☟ ☜), None if the answer began with none."""
        return self.stream.state

    def prompt_counts(self):
        """How many positions of the prompt were text, image and audio, and their total."""
        lengths = [(kind, end - start) for kind, start, end in self.segments]
        counts = {f"{kind}_tokens": sum(n for k, n in lengths if k == kind) for kind in ("text", "image", "audio")}
        return counts | {"total": sum(counts.values())}


def possible_stop(text, stops):
    """How many characters at the end of a text may be the beginning of a stop text."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    ends = range(min(longest, len(text)), 0, -1)
    return next((n for n in ends if any(len(stop) > n and stop.startswith(text[-n:]) for stop in stops)), 0)


def drop_unknown_ids(ids, tokenizer):
    """The ids that are tokens, as a list. An embedding table may have more rows than there are tokens."""
    return [i for i in torch.as_tensor(ids).tolist() if i in tokenizer]
