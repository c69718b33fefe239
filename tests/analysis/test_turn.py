"""A look at an answer of a conversation: the prompt is that of the answer, and the media are those of their messages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_model import BINS, CONFIG, PIXELS, VIEW, noise, tiny_vita

from vita_ref.analysis.sources import describe, open_media
from vita_ref.chat import Conversation
from vita_ref.request import Request, prepare_request

VITA = tiny_vita(max_tiles=4)
FAST = {"derive": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of several shapes by name, and a folder of frames."""
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(1)
    for i, size in enumerate([(60, 30), (40, 90), (30, 30)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "clip").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (50, 20, 3), dtype=np.uint8)).save(folder / "clip" / f"{i}.png")
    return folder


names = st.lists(st.sampled_from(["0.png", "1.png", "2.png", "sound", "clip"]), max_size=3, unique=True)


def media_of(files, names):
    images = [str(files / name) for name in names if name.endswith("png")]
    sounds = [noise(40, BINS)] * ("sound" in names)
    return {"images": images, "audios": sounds, "video": str(files / "clip") if "clip" in names else None}


@settings(derandomize=True, deadline=None, max_examples=12)
@given(turns=st.lists(names, min_size=1, max_size=4), undone=st.integers(0, 3), saved=st.booleans(), end=st.sampled_from([(), None]))
def test_the_prompt_and_the_tokens_are_those_of_the_last_answer(files, tmp_path_factory, turns, undone, saved, end):
    chat, results, prompts = VITA.chat(overflow="drop_oldest", eos_token_id=end), [], []
    for i, names in enumerate(turns):
        results.append(chat.ask(f"and {i}", **media_of(files, names), max_new_tokens=3, details=True))
        prompts.append(chat.ids)
    for _ in range(min(undone, len(turns) - 1)):
        chat.undo()
        results.pop()
    if saved:
        path = tmp_path_factory.mktemp("saved") / "c.json"
        chat.save(path)
        chat = Conversation.load(path, VITA)
    result, before = results[-1], chat.messages
    if not result.token_ids:
        with pytest.raises(ValueError, match="the last answer is empty"):
            chat.look(**FAST)
        return
    look = chat.look(**FAST)
    prompt, n = prompts[len(results) - 1], result.prompt["total"]
    assert [token.id for token in look.tokens] == result.token_ids and look.question == f"and {len(results) - 1}"
    texts = [i for i in prompt if i >= 0][: result.prompt["text_tokens"]]
    assert [p.token_id for p in look.positions[:n] if p.kind == "text"] == texts
    np.testing.assert_allclose([token.logprob for token in look.tokens], result.logprobs, atol=5e-5)
    assert chat.messages == before or saved
    if not saved:
        wanted = [name for names in turns[: len(results)] for name in names if name != "sound"]
        found = [picture.name for picture in look.pictures]
        assert sorted(found) == sorted(name for each in wanted for name in [each] * (3 if each == "clip" else 1))
        assert all(len(p.tiles) == p.grid[0] * p.grid[1] + p.thumbnail for p in look.pictures)


def test_turns_that_were_left_out_are_not_on_the_page(files):
    vita = tiny_vita(decoder=replace(CONFIG.decoder, max_position_embeddings=24))
    chat = vita.chat(overflow="drop_oldest", max_new_tokens=4, eos_token_id=())
    for name in ("0.png", "1.png", "2.png"):
        result = chat.ask("what", images=files / name, max_tiles=1, details=True)
    assert result.dropped
    left = result.prompt["image_tokens"] // VIEW
    assert 0 < left < 3 and [p.name for p in chat.look(**FAST).pictures] == ["0.png", "1.png", "2.png"][-left:]


def test_files_that_are_gone_have_no_names_and_no_answer_is_an_error(files, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes((files / "0.png").read_bytes())
    chat = VITA.chat(max_new_tokens=2, eos_token_id=())
    with pytest.raises(ValueError, match="there is no answer to look at"):
        chat.look()
    chat.ask("what", images=path)
    assert chat.look(**FAST).pictures[0].name == "x.png"
    path.unlink()
    [picture] = chat.look(**FAST).pictures
    assert picture.name == "picture" and picture.grid == (len(picture.tiles), 1)


def test_progress_can_end_it_before_the_gradients_and_during_occlusion(files):
    chat = VITA.chat(max_new_tokens=2, eos_token_id=())
    chat.ask("what", images=files / "2.png")
    reports = []
    chat.look(progress=lambda *at: reports.append(at))
    assert (0, reports[-1][1]) in reports and isinstance(reports[0][0], str)
    for end in (1, 2, len(reports) - 1):
        left = iter(range(end))
        with pytest.raises(StopIteration):
            chat.look(progress=lambda *at, left=left: next(left))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    least=st.integers(1, 4), most=st.integers(1, 4), given_most=st.sampled_from([None, 1, 3, 6]), thumbnail=st.booleans(),
    fit=st.sampled_from(["square", "pad", "stretch"]), names=names,
)  # fmt: skip
def test_opened_media_give_the_tiles_that_the_request_gives(files, least, most, given_most, thumbnail, fit, names):
    """Also where the checkpoint has a least number of tiles, no thumbnails, and frames that are stretched, as InternVL."""
    least = min(least, most)
    config = replace(CONFIG, min_tiles=least, max_tiles=most, use_thumbnail=thumbnail, image_aspect_ratio=fit)
    request = Request("what", **media_of(files, names), max_tiles=given_most)
    request_opened, *media = open_media(request, config)
    expected, got = (prepare_request(r, config, VITA.tokenizer) for r in (request, request_opened))
    assert [x.shape for x in got.images] == [x.shape for x in expected.images]
    assert all(torch.equal(a, b) for a, b in zip(got.images, expected.images))
    pictures, _ = describe(got, *media)
    assert all(len(p.tiles) == p.grid[0] * p.grid[1] + p.thumbnail for p in pictures)
    assert all(p.tiles.shape[-1] == PIXELS for p in pictures)
