"""The page that shows how an answer came about (`vita_ref.analysis`), made from the conversation that a client sends.

Test: ``pytest tests/serve/test_looks.py``
"""

import secrets
import time
from collections import OrderedDict

from ..analysis.look import look_at
from ..analysis.sources import open_picture, open_sound
from ..analysis.turn import prepare_elements
from ..dialogue.messages import Medium, Message
from .errors import ProtocolError
from .jobs import prompt_of
from .limits import MAX_LOOKS
from .questions import read_question

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src data:; sandbox allow-scripts allow-downloads"


class Looks:
    """The last pages, by names that cannot be guessed."""

    def __init__(self):
        self._pages = OrderedDict()

    def add(self, html):
        """Keeps a page. Returns its name."""
        name = secrets.token_urlsafe(24)
        self._pages[name] = html
        while len(self._pages) > MAX_LOOKS:
            self._pages.popitem(last=False)
        return name

    def get(self, name):
        """A page. Raises: ProtocolError if it is not there any more."""
        if name not in self._pages:
            raise ProtocolError("this page is not there any more: ask for it again", 404)
        return self._pages[name]


def read_look(body, vita):
    """The question, the text of the answer, which is the last message of a body, and the most tiles. Raises: ProtocolError."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    text = last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None
    if not isinstance(text, str) or not text:
        raise ProtocolError("the last message must be an answer of the assistant, as a text", param="messages")
    question = read_question(body | {"messages": messages[:-1]}, vita, sources={})
    return question, text, body.get("max_tiles", vita.config.max_tiles)


def look_page(question, text, most_tiles, engine, job):
    """Yields the page of an answer. The ids are those that were generated, if the server still knows them."""
    vita, fresh = engine.vita, dict(question.media)
    answer = Message({"role": "assistant", "content": text}, [text])
    question.messages.append(answer)
    engine.prefixes.recall(question)
    question.messages.pop()
    elements, _ = prompt_of(question, vita, engine.encoder)
    whole = {each: fresh[key] for key, each in question.media.items()}  # remembered media have features, but no values
    elements = [whole[x] if isinstance(x, Medium) else x for x in elements]
    media = [x for x in elements if isinstance(x, Medium)]
    images, sounds = ([x for x in media if (x.kind == "audio") is wanted] for wanted in (False, True))
    prepared = prepare_elements(elements, vita.config)
    shown = [about_picture(x, question.sources[x], vita.config, most_tiles) for x in images]
    heard = [open_sound(question.sources[x])[1] for x in sounds]
    ids = answer.ids or vita.tokenizer.encode(text)
    found = look_at(
        vita, prepared, answer_ids=ids, media=(shown, heard), question=question.messages[-1].text, progress=taking_turns(engine, job)
    )
    yield found.html()


def about_picture(medium, file, config, most_tiles):
    """The metadata of a picture: its name, its size, and its grid of tiles."""
    file.seek(0)
    return open_picture(file, config, most_tiles if len(medium.data) > 1 else 1)[1]


def taking_turns(engine, job):
    """A progress callback that gives the other jobs half of the time, and ends the page if its client has left.

    Raises: ProtocolError.
    """
    began = time.monotonic()

    def progress(*at):
        nonlocal began
        engine.give_way(time.monotonic() - began)
        if not job.go_on():
            raise ProtocolError("the client has left", 499)
        began = time.monotonic()

    return progress
