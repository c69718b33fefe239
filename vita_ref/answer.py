"""The answer to one request while it is generated: token ids become text as soon as a character is complete.

Test: ``pytest tests/test_answer.py``
"""

import torch

from .files.tokenizer import StreamDecoder
from .prompt import AnswerText


class Answer:
    """One row of a batch: its new ids, its text and why it ended.

    Attributes:
        token_ids: the new ids without the one that ended the answer.
        piece: the text that the last step added; all pieces together are ``text``.
        first_logits: [V], the logits that the first token was chosen from.
        finish_reason: "stop", "length" or "error" once the answer is finished.
        error: the ValueError of an answer whose logits were not finite, otherwise None.
    """

    def __init__(self, tokenizer, template, stop_ids, segments):
        self.tokenizer, self.stop_ids, self.segments = tokenizer, stop_ids, segments
        self.stream = AnswerText(StreamDecoder(tokenizer), template)
        self.token_ids, self.piece, self.first_logits, self.finish_reason, self.error = [], "", None, None, None

    def push(self, token, logits, ended=False):
        """Adds the next id, unless the answer has ended."""
        self.piece = ""
        if ended:
            return
        if self.first_logits is None:
            self.first_logits = logits
        if self.finish_reason == "stop":
            return
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return
        self.token_ids.append(token)
        self.piece = self.stream.push(drop_unknown_ids([token], self.tokenizer))

    def finish(self, error=None):
        """Ends the answer. The last piece is the rest of the text."""
        self.piece, self.error = self.stream.flush(), error
        self.finish_reason = "error" if error else self.finish_reason or "length"

    @property
    def text(self):
        """The text so far, without a state mark."""
        return self.stream.text

    @property
    def state(self):
        """VITA's answer state (☞ ☟ ☜), None if the answer began with none."""
        return self.stream.state

    def prompt_counts(self):
        """How many positions of the prompt were text, image and audio, and their total."""
        lengths = [(kind, end - start) for kind, start, end in self.segments]
        counts = {f"{kind}_tokens": sum(n for k, n in lengths if k == kind) for kind in ("text", "image", "audio")}
        return counts | {"total": sum(counts.values())}


def drop_unknown_ids(ids, tokenizer):
    """The ids that are tokens, as a list. An embedding table may have more rows than there are tokens."""
    return [i for i in torch.as_tensor(ids).tolist() if i in tokenizer]
