"""The events of a job as OpenAI's objects: a completion, or the chunks of a stream.

Test: ``pytest tests/serve/test_protocol.py``
"""

import json
import secrets
import time

from .errors import as_protocol_error, error_object
from .jobs import Done, Part, Progress


class Reply:
    """One completion. Text has no white space at its ends, whether it is streamed or not.

    ``choice`` of a stream and of a whole completion differ; the id, the time and the model are the same.
    """

    def __init__(self, model, question, tokenizer):
        self.question, self.tokenizer = question, tokenizer
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._begun, self._held = False, ""  # white space that may be the end of the text

    def whole(self, parts, done):
        """A completion, from all parts."""
        text = "".join(self._trimmed(part.text) for part in parts)
        logprobs = self._logprobs(parts) if self.question.logprobs else None
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": done.finish_reason}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": usage(done)}

    def chunks(self, event):
        """The chunks of a stream that an event becomes, as a list."""
        if isinstance(event, Progress):
            progress = {"what": event.what, "done": event.done, "total": event.total}
            return [self._chunk(choices=[], vita={"progress": progress})] if self.question.progress else []
        if isinstance(event, Part):
            text, logprobs = self._trimmed(event.text), self.question.logprobs and event.token_ids
            return [self._delta({"content": text}, self._logprobs([event]) if logprobs else None)] if text or logprobs else []
        if isinstance(event, Done):
            last = [self._delta({}, None, event.finish_reason)]
            return last + ([self._chunk(choices=[], usage=usage(event))] if self.question.usage else [])
        return [error_object(as_protocol_error(event))]

    def first(self):
        """The chunk that begins a stream."""
        return self._delta({"role": "assistant", "content": ""}, None)

    def _delta(self, delta, logprobs, reason=None):
        return self._chunk(choices=[{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])

    def _chunk(self, **fields):
        return {**self.head, "object": "chat.completion.chunk", **({"usage": None} if self.question.usage else {}), **fields}

    def _trimmed(self, text):
        """The text without white space at the beginning of the answer; that at its end waits for more text."""
        text = self._held + text
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        end = len(text.rstrip())
        self._held = text[end:]
        return text[:end]

    def _logprobs(self, parts):
        rows = [row for part in parts for row in zip(part.token_ids, part.logprobs, part.top)]
        content = [self._token(i, p) | {"top_logprobs": [self._token(*each) for each in top]} for i, p, top in rows]
        return {"content": content, "refusal": None}

    def _token(self, token_id, logprob):
        """A token with its bytes, which may be a part of a character. An id that is no token has none."""
        piece = self.tokenizer.piece(token_id) if token_id in self.tokenizer else b""
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}


def usage(done):
    """The numbers of tokens of an answer."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.new_tokens,
        "total_tokens": done.prompt_tokens + done.new_tokens,
        "prompt_tokens_details": {
            "cached_tokens": done.cached_tokens,
            "audio_tokens": done.audio_tokens,
            "image_tokens": done.image_tokens,
        },
    }


def sse(data):
    """An object as an event of a stream."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode("utf-8", "replace")
