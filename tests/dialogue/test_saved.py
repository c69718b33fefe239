"""A saved conversation goes on as the one that was saved, and a damaged or hostile file is refused in one line."""

import base64
import builtins
import json
import os
import stat
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_model import BINS, CONFIG, PIXELS, noise, tiny_vita

from vita_ref.chat import Conversation

MODEL = tiny_vita()
OPTIONS = {"max_new_tokens": 4, "eos_token_id": ()}
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)


def picture_file(folder):
    path = folder / "x.png"
    Image.fromarray(PICTURE).save(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A conversation with media of every kind, and its file. The files that it was given are gone."""
    folder = tmp_path_factory.mktemp("saved")
    chat, picture = MODEL.chat("be brief", temperature=1.0, seed=2, **OPTIONS), picture_file(folder)
    chat.ask("what is this", images=[picture, noise(3, PIXELS, PIXELS)], audios=noise(30, BINS))
    chat.ask("and this", video=noise(2, 3, PIXELS, PIXELS, seed=5))
    chat.ask("why", stop="1")
    picture.unlink()
    chat.save(folder / "c.json")
    return chat, folder / "c.json"


def load(path):
    return Conversation.load(path, MODEL)


def test_a_loaded_conversation_goes_on_as_the_saved_one(saved):
    chat, path = saved
    loaded = load(path)
    question = {"text": "so", "audios": noise(44, BINS), "details": True}
    ours, theirs = chat.ask(**question), loaded.ask(**question)
    chat.undo()
    assert theirs.token_ids == ours.token_ids
    assert theirs.prompt["cached"] == 0 and theirs.prompt["total"] == ours.prompt["total"]
    assert [m["content"] for m in loaded.messages[:6]] == [m["content"] for m in chat.messages]
    assert (loaded.system, loaded.overflow, loaded.options) == (chat.system, chat.overflow, json.loads(json.dumps(chat.options)))


def test_ids_that_are_no_tokens_come_back_too(tmp_path):
    """An embedding table may have more rows than there are tokens, and a random model answers with all of them."""
    vita = tiny_vita(seed=4)
    known = range(20)
    vita.tokenizer.__class__ = type("Few", (type(vita.tokenizer),), {"__contains__": lambda self, i: i in known})
    for seed in range(4):
        chat = vita.chat(temperature=3.0, seed=seed, **OPTIONS)
        ids = chat.ask("what", details=True).token_ids
        assert any(i not in known for i in ids)
        chat.save(tmp_path / "c.json")
        loaded = Conversation.load(tmp_path / "c.json", vita)
        assert loaded.ask("why", details=True).token_ids == chat.ask("why", details=True).token_ids


def test_tiles_of_pictures_and_other_tensors_come_back_with_the_same_bits(saved):
    chat, path = saved
    before, after = ([p.data for m in each._messages for p in m.parts if not isinstance(p, str)] for each in (chat, load(path)))
    assert len(before) == 5 and all(a.equal(b) for a, b in zip(before, after, strict=True))
    media = json.loads(path.read_text(encoding="utf-8"))["media"]
    assert [sorted(set(each) & {"png", "float32"}) for each in media] == [["png"], *[["float32"]] * 4]
    assert len(media[0]["png"]) < media[0]["shape"][0] * PIXELS**2 * 3 * 4 / 2  # of four bytes a value in base64


def test_loading_opens_no_other_file(saved, monkeypatch):
    _, path = saved
    opened, real = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *args, **options: opened.append(file) or real(file, *args, **options))
    assert load(path).messages
    assert [str(file) for file in opened] == [str(path)]


def test_messages_of_a_loaded_conversation_can_be_sent_again(saved):
    _, path = saved
    loaded = load(path)
    first = loaded.ask("so", details=True)
    again = loaded.reply(loaded.messages[:-1]).finish()
    assert again.token_ids == first.token_ids and again.prompt["cached"] == again.prompt["total"] - 1


def test_what_cannot_be_written_is_an_error_and_leaves_the_old_file(saved, tmp_path):
    chat, path = saved
    content = path.read_bytes()
    with pytest.raises(ValueError, match="cannot write .*: its folder does not exist"):
        chat.save(tmp_path / "none" / "c.json")
    wrong = MODEL.chat(tools=[{"x": {1, 2}}])
    with pytest.raises(ValueError, match="JSON cannot hold"):
        wrong.save(path)
    assert path.read_bytes() == content


def test_only_the_named_file_is_written_and_links_and_pipes_stay_what_they_are(saved, tmp_path):
    chat, _ = saved
    beside, link, pipe = tmp_path / "c.json.part", tmp_path / "link.json", tmp_path / "pipe"
    beside.write_text("mine")
    link.symlink_to(tmp_path / "c.json")
    chat.save(link)
    assert link.is_symlink() and load(tmp_path / "c.json").messages
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    chat.save(pipe)
    reader.join(30)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and got == [(tmp_path / "c.json").read_bytes()]
    assert beside.read_text() == "mine" and sorted(x.name for x in tmp_path.iterdir()) == ["c.json", "c.json.part", "link.json", "pipe"]


def test_another_checkpoint_is_refused(saved):
    _, path = saved
    for other, name in ((tiny_vita(template="vita"), "template"), (tiny_vita(decoder=replace(CONFIG.decoder, vocab_size=60)), "vocab_size")):
        with pytest.raises(ValueError, match=f"of another checkpoint: {name} is"):
            Conversation.load(path, other)


def put(*path):
    """A change of the saved object: the last of ``path`` is stored where the names before it lead."""

    def change(content):
        *names, last, value = path
        for name in names:
            content = content[name]
        content[last] = value

    return change


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
DAMAGED = [
    put("version", 2),
    put("vita_ref", "x"),
    put("messages", {}),
    put("messages", 0, "x"),
    put("messages", 0, "parts", [99]),
    put("messages", 0, "parts", [-1]),
    put("messages", 0, "parts", [True]),
    put("messages", 0, "fields", {"role": 3, "content": ""}),
    put("messages", 1, "ids", [10**9]),
    put("messages", 1, "ids", [-200]),
    put("messages", 1, "ids", "5"),
    put("messages", 1, "rest", 5),
    put("messages", 1, "state", 5),
    put("media", 0, "png", PNG),
    put("media", 0, "png", "no base64!"),
    put("media", 0, "shape", [1, 3, PIXELS, PIXELS]),
    put("media", 0, "shape", [2**30, 3, 2**30, 2**30]),
    put("media", 0, "kind", "film"),
    put("media", 1, "float32", ""),
    put("media", 1, "float32", base64.b64encode(b"\xff" * (12 * PIXELS * PIXELS)).decode()),  # NaN
    put("media", 1, "shape", [1, 3, PIXELS * PIXELS, 1]),
    put("media", 2, "shape", [BINS, 30]),
    put("options", {"temperature": -1}),
    put("options", {"unknown": 1}),
    put("overflow", "x"),
    lambda content: content.pop("system"),
]


def places(value, *path):
    """The places of all values inside a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in items:
        yield from places(each, *path, name)


ANY = st.sampled_from([None, True, 0, -1, 10**12, 1.5, "", "x", "a\ud800", "<image>", [], {}, [[]], [0], ["a"], {"a": 1}])


@settings(derandomize=True, deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), change=st.sampled_from(["replace", "remove", "add"]))
def test_a_file_that_is_changed_anywhere_is_refused_in_one_line_or_goes_on(saved, tmp_path, data, change):
    content = json.loads(saved[1].read_text(encoding="utf-8"))
    *names, last = data.draw(st.sampled_from(list(places(content))))
    inside = content
    for name in names:
        inside = inside[name]
    if change == "remove":
        del inside[last]
    elif change == "add" and isinstance(inside, list):
        inside.insert(last, data.draw(ANY))
    else:
        inside[last] = data.draw(ANY)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        chat = load(path)
        assert isinstance(chat.messages, list)
        chat.ask("so", max_new_tokens=1)
        chat.save(path)
        chat.undo()
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("change", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(saved, tmp_path, change):
    content = json.loads(saved[1].read_text(encoding="utf-8"))
    change(content)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged|is no conversation") as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 10**5, '"x"', "\ud800"])
def test_a_file_that_is_no_conversation_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for file in (path, tmp_path / "none.json"):
        with pytest.raises(ValueError, match="c.json|none.json") as caught:
            load(file)
        assert len(str(caught.value).splitlines()) == 1
