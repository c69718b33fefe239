"""The weights that come with the project look, answer in every batch alike, and know what they are not."""

from pathlib import Path

import numpy as np
import pytest
import second_world as world

from vita_ref import Vita
from vita_ref.generate import main
from vita_ref.loading import demo_folder

FOLDER = Path(__file__).parent.parent / "weights" / "demo"


@pytest.fixture(scope="module")
def demo():
    return Vita.from_pretrained(FOLDER)


def asked(seed, scenes, held_out):
    """Requests about new pictures of the second renderer, with the answers that are right."""
    rng = np.random.default_rng(seed)
    for _ in range(scenes):
        scene = world.random_scene(rng, held_out)
        image = world.picture(scene)
        for question in world.questions(scene)[:6]:
            yield {"prompt": question.text, "images": [image]}, question.answers


# floors for a small sample, under the card's figures; the world's bounds are measured by tools/measure_demo.py
@pytest.mark.parametrize("held_out, least", [(False, 0.96), (True, 0.95)])
def test_it_answers_about_pictures_that_it_has_never_seen(demo, held_out, least):
    requests, answers = zip(*asked(7, 25, held_out))
    found = demo.respond_batch(requests, max_new_tokens=48)
    right = [text in good for text, good in zip(found, answers)]
    assert sum(right) / len(right) >= least, [(r["prompt"], t) for r, t, ok in zip(requests, found, right) if not ok]


def test_an_answer_is_the_same_alone_and_in_a_batch(demo):
    requests = [r for r, _ in asked(8, 3, False)][:9] + [{"prompt": "Hello!"}]
    alone = [demo.respond_batch([r], max_new_tokens=48)[0] for r in requests]
    assert demo.respond_batch(requests, max_new_tokens=48) == alone


def test_case_and_the_final_mark_do_not_matter(demo):
    image = str(FOLDER / "example.jpg")
    for question in ("What color is the star?", "what color is the star", "What colour is the star?"):
        assert demo.respond(question, images=[image]) == "Blue."


def test_it_is_polite_and_asks_for_a_picture_where_there_is_none(demo):
    assert "picture" in demo.respond("What color is the star?").lower()
    for text in ("Hello!", "Thank you.", "What are you?"):
        assert len(demo.respond(text)) > 5


def test_the_command_line_finds_the_weights_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo_folder() == FOLDER
    assert main(["--image", str(FOLDER / "example.jpg"), "--prompt", "How many objects are there?"]) == 0
    assert capsys.readouterr().out == "Two.\n"


def test_the_weights_are_small_enough_to_come_along():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 25e6
