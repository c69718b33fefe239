"""The page about an answer: of the conversation that was sent, with the ids that were generated, and kept for a while only."""

import base64
import http.client
import io
import json
from urllib.request import urlopen

import pytest
from PIL import Image
from serving import image_part, served, sound_part, text_part, tiny_vita, user, wav

from vita_ref.request import Request
from vita_ref.serve import looks
from vita_ref.serve.engine import Engine
from vita_ref.serve.jobs import PiecesJob
from vita_ref.serve.limits import MAX_LOOKS


@pytest.fixture(scope="module")
def vita(tmp_path_factory):
    return tiny_vita(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(vita):
    with served(vita) as server:
        yield server


def send(server, path, *messages, **options):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"model": "tiny", "messages": list(messages), **options}
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.load(response)


def test_the_page_of_an_answer_is_one_click_away_and_can_do_nothing_but_show_it(server):
    question = user(image_part(), text_part("What is it?"))
    _, answer = send(server, "/v1/chat/completions", question, max_tokens=4)
    said = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
    status, made = send(server, "/v1/look", question, said)
    assert status == 200 and made["url"].startswith("/look/")
    with urlopen(server.url + made["url"]) as response:
        rules, html = response.headers["content-security-policy"], response.read().decode()
    assert html.lower().startswith("<!doctype html>") and "What is it?" in html
    assert "sandbox allow-scripts" in rules and "default-src 'none'" in rules
    assert send(server, "/v1/look", question)[0] == 400
    assert send(server, "/v1/look", question, {"role": "assistant", "content": ""})[0] == 400


def found(vita, monkeypatch, *messages):
    """The arguments that the analysis gets for a conversation whose last message is an answer, behind two that were answered."""
    engine, given = Engine(vita), []
    monkeypatch.setattr(looks, "look_at", lambda vita, prepared, **options: given.append((prepared, options)) or io.StringIO())
    arguments = looks.read_look({"messages": list(messages), "max_tiles": 4}, vita)
    with pytest.raises(AttributeError, match="html"):
        next(looks.look_page(*arguments, engine, PiecesJob(None, None)))
    engine.close()
    return given[0]


def test_the_prompt_and_the_media_are_those_of_the_conversation(vita, monkeypatch):
    messages = [
        user(sound_part(), text_part("And "), image_part(size=(90, 30)), text_part("?")),
        {"role": "assistant", "content": "Ah."},
    ]
    prepared, options = found(vita, monkeypatch, *messages)
    picture = Image.new("RGB", (90, 30), (10, 200, 30))
    expected = vita.prepare(Request("<audio>And <image>?", [picture], [io.BytesIO(base64.b64decode(wav()))], max_tiles=4))
    assert prepared.ids.tolist() == expected.ids.tolist()
    assert [x.shape for x in prepared.images] == [x.shape for x in expected.images] and len(prepared.images[0]) > 1
    [[shown], [heard]] = options["media"]
    assert shown["size"] == (90, 30) and shown["grid"] == (3, 1) and shown["thumbnail"]
    assert heard["rate"] == 16000 and heard["seconds"] == 0.5
    assert options["answer_ids"] == list(b"Ah.")


def test_only_the_last_pages_are_kept():
    pages = looks.Looks()
    names = [pages.add(f"page {i}") for i in range(MAX_LOOKS + 2)]
    assert len(set(names)) == MAX_LOOKS + 2 and min(map(len, names)) > 30
    assert pages.get(names[-1]) == f"page {MAX_LOOKS + 1}"
    with pytest.raises(ValueError, match="not there any more"):
        pages.get(names[1])
