"""The demo world keeps its own rules: scenes, pixels, questions and clips. Run: pytest tests/test_demo_world.py"""

import itertools
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tools.demo import world

seeds = st.integers(0, 2**32)
NUMBER = {"Zero.": 0, "One.": 1, "Two.": 2, "Three.": 3}


def laws(test):
    return settings(deadline=None, max_examples=60)(given(seeds)(test))


def pairs_of(scene):
    return {(thing.color, thing.shape) for thing in scene.things}


@laws
def test_things_are_inside_and_apart_and_ordered_from_left_to_right(seed):
    scene = world.sample_scene(random.Random(seed))
    assert 1 <= len(scene.things) <= 3 and len(pairs_of(scene)) == len(scene.things)
    assert all(215 <= channel <= 255 for channel in scene.background)
    for thing in scene.things:
        low, high = (0.08, 0.11) if thing.size == "small" else (0.15, 0.19)
        assert low <= thing.radius <= high and abs(thing.angle) <= 10
    assert all(abs(a.x - b.x) >= 0.09 for a, b in itertools.combinations(scene.things, 2))
    assert are_clear(scene)


def are_clear(scene, side=400):
    """Whether no pixel belongs to two things, nor one at the border to any."""
    masks = []
    for thing in scene.things:
        mask = Image.new("1", (side, side))
        ImageDraw.Draw(mask).polygon((world.outline(thing) * side - 0.5).ravel().tolist(), fill=1)
        masks.append(np.asarray(mask).astype(int))
    count = sum(masks)
    return count.max() == 1 and not count[[0, -1]].any() and not count[:, [0, -1]].any()


def test_what_touches_does_not_fit():
    one = world.Thing("red", "circle", "small", 0.3, 0.5, 0.1, 0.0)
    for x, fit in ((0.52, True), (0.51, True), (0.505, False), (0.45, False)):
        assert world.fits((one, replace(one, x=x))) == fit
    assert world.gap((one, replace(one, x=0.55), replace(one, x=0.9))) == pytest.approx(0.05, abs=1e-3)
    assert world.gap((one,)) == 1 and world.gap((one, replace(one, x=0.45))) == pytest.approx(-0.05, abs=1e-3)
    for x, fit in ((0.11, True), (0.102, False), (0.898, False)):
        assert world.fits((replace(one, x=x),)) == fit
    circle = world.Thing("red", "circle", "large", 0.4, 0.4, 0.17, 0.0)
    beside = replace(circle, shape="triangle", x=0.6, y=0.6)  # with its slope to the circle
    assert math.dist((0.4, 0.4), (0.6, 0.6)) < 2 * 0.17 and world.fits((circle, beside))
    assert not world.fits((circle, replace(beside, shape="circle")))

@laws
def test_held_out_pairs_are_in_a_scene_only_when_asked_for(seed):
    rng = random.Random(seed)
    assert pairs_of(world.sample_scene(rng, held_out=True)) & world.HELD_OUT
    scene = world.sample_scene(rng)
    assert not pairs_of(scene) & world.HELD_OUT
    assert not pairs_of(world.sample_clip(rng)[0][0]) & world.HELD_OUT
    for shown in (scene, world.sample_scene(rng, held_out=True)):
        text = str(world.questions(shown, rng)).lower()
        assert not [pair for pair in world.HELD_OUT if " ".join(pair) in text]


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_outline_stays_in_its_disc_and_is_not_lopsided(shape):
    for form in range(50):
        points = world._outline(shape, form)
        assert 0.7 < np.abs(points).max() < 1.06
        assert points[:, 0].min() == pytest.approx(-points[:, 0].max(), abs=1e-2)


@laws
def test_drawn_things_have_their_colors_at_their_centres_and_leave_the_rest_plain(seed):
    rng = random.Random(seed)
    scene = world.sample_scene(rng, held_out=True)
    pixels = np.asarray(world.draw(scene, 120, rng)).astype(int)  # [H, W, 3]
    rows, columns = (np.mgrid[:120, :120] + 0.5) / 120
    free = np.ones((120, 120), bool)
    for thing in scene.things:
        found = pixels[int(thing.y * 120), int(thing.x * 120)]
        assert np.abs(found - world.COLOURS[thing.color]).max() <= 16 + 30  # tint, and five sigmas of noise
        free &= np.hypot(columns - thing.x, rows - thing.y) > 1.5 * thing.radius + 0.01
    assert np.abs(pixels[free] - scene.background).max() <= 40


@laws
def test_a_picture_is_bytes_of_the_size_asked_for_and_repeats_with_its_seed(seed):
    scene = world.sample_scene(random.Random(seed))
    first, second = (world.picture(scene, random.Random(seed), side=56) for _ in range(2))
    assert first.shape == (56, 56, 3) and first.dtype == np.uint8 and (first == second).all()


@laws
def test_answers_agree_with_an_oracle_that_reads_the_question(seed):
    rng = random.Random(seed)
    scene = world.sample_scene(rng, held_out=seed % 2 == 0)
    by_name = {f"{thing.color} {thing.shape}": thing for thing in scene.things}
    asked = world.questions(scene, rng, include_held_out=True)
    for question, answers in itertools.chain(*asked.values()):
        words = re.findall(r"[a-z]+", question.lower())
        assert answers[0] == answers[0][0] + answers[0][1:].lower() and answers[0].endswith(".")
        here = [thing for name, thing in by_name.items() if name in question]
        here.sort(key=lambda thing: question.index(f"{thing.color} {thing.shape}"))
        if words[0] == "what":
            (thing,) = (t for t in scene.things if t.color in words or t.shape in words)
            expected = f"A {thing.shape}." if words[1] == "shape" else f"{thing.color.title()}."
        elif words[:2] == ["how", "many"]:
            wanted = words[2].removesuffix("es" if words[2] == "crosses" else "s")
            count = sum(wanted in (t.color, t.shape, "object") for t in scene.things)
            assert NUMBER[answers[0]] == count
            continue
        elif words[:2] == ["is", "there"]:
            assert words[2] == ("an" if words[3] == "orange" else "a")
            expected = "Yes." if " ".join(words[3:]) in by_name else "No."
        elif words[0] == "how":
            expected = "Large." if here[0].radius > 0.13 else "Small."
        elif words[0] == "where":
            x, y = here[0].x, here[0].y
            place = ("top " if y < 0.4 else "bottom " if y > 0.6 else "") + (
                "left" if x < 0.4 else "right" if x > 0.6 else "")
            expected = f"At the {place.strip()}." if place else "In the middle."
            borders = sum(min(abs(v - 0.4), abs(v - 0.6)) <= 0.03 for v in (x, y))
            assert len(answers) == len(set(answers)) == 2**borders
        elif words[0] == "describe":
            places = [answers[0].index(f"{t.size} {t.color} {t.shape}") if len(scene.things) > 1 else 0
                      for t in sorted(scene.things, key=lambda t: t.x)]
            assert places == sorted(places) and answers[0].count("large") + answers[0].count("small") == len(places)
            continue
        else:
            a, b = here
            side = ("left of" if a.x < b.x else "right of") if "left" in words else "above" if a.y < b.y else "below"
            assert "left" in words or abs(a.y - b.y) >= 0.09
            expected = f"The {a.color} {a.shape} is {side} the {b.color} {b.shape}."
        assert answers[0] == expected


@laws
def test_half_of_the_existence_questions_are_answered_yes(seed):
    rng = random.Random(seed)
    answers = [answers for _, answers in world.questions(world.sample_scene(rng), rng)["exists"]]
    assert answers.count(("Yes.",)) == answers.count(("No.",)) > 0


def test_descriptions_have_the_three_forms_of_sentence():
    a, b, c = (world.Thing(*words, x, 0.5, 0.1, 0.0) for *words, x in (
        ("red", "circle", "large", 0.2), ("orange", "star", "small", 0.5), ("pink", "heart", "small", 0.8)))
    for things, sentence in (
            ([a], "A large red circle."),
            ([b, a], "A large red circle is left of a small orange star."),
            ([c, a, b], "From left to right: a large red circle, a small orange star and a small pink heart.")):
        assert world.describe(world.Scene(tuple(things), (255,) * 3)) == sentence


@laws
def test_nameless_things_are_asked_about_by_what_has_a_name(seed):
    rng = random.Random(seed)
    scene = world.sample_scene(rng)
    odd_ones = [(world.odd_colours(scene, rng), "count_shape"), (world.odd_shapes(scene), "count_color")]
    for odd, other in (pair for pair in odd_ones if pair[0]):
        asked = world.odd_questions(odd, rng)
        assert set(asked) == {"count", other}
        text = " ".join(question for items in asked.values() for question, _ in items)
        assert "blob" not in text and (other == "count_color" or not any(c in text for c in world.COLOURS))


@laws
def test_of_renamed_things_no_kept_out_pair_is_asked_about_under_its_own_name(seed):
    rng = random.Random(seed)
    frames = world.renamed(world.sample_clip(rng, held_out=True)[0], rng)
    (scene,) = world.renamed([world.sample_scene(rng, held_out=True)], rng)
    assert len({frame.names for frame in frames}) == 1
    for shown, asked in ((frames[0], world.clip_questions(frames)), (scene, world.questions(scene, rng))):
        words, numbers = zip(*shown.names)
        assert len(set(numbers)) == len(numbers) and all(0 <= n < world.MADE_UP for n in numbers)
        assert all(set(pair) & set(words) for pair in pairs_of(shown) & world.HELD_OUT)
        named = [pair for pair in world.HELD_OUT if " ".join(pair) in str(asked).lower()]
        assert all(set(pair) & set(words) for pair in named)


@laws
def test_in_a_clip_one_thing_moves_clearly_and_steadily_or_none_does(seed):
    rng = random.Random(seed)
    frames, kind = world.sample_clip(rng)
    assert 4 <= len(frames) <= 8 and kind in ("left", "right", "up", "down", "still")
    assert all(map(are_clear, frames))
    first = frames[0].things[0]
    steps = np.diff([(f.things[0].x, f.things[0].y) for f in frames], axis=0)
    assert np.allclose(steps, steps[0])
    total = steps.sum(0)
    ways = {"left": total[0] <= -0.199, "right": total[0] >= 0.199, "up": total[1] <= -0.199,
            "down": total[1] >= 0.199, "still": not total.any()}
    assert [way for way in ways if ways[way]] == [kind]
    asked = world.clip_questions(frames)
    way = "It stays still." if kind == "still" else f"{kind.title()}."
    assert asked["which_way"][0] == (f"Which way does the {first.color} {first.shape} move?", (way,))
    moving = [] if kind == "still" else [("What is moving?", (f"The {first.color} {first.shape}.",))]
    assert asked["moving"] == moving


@laws
def test_a_varied_question_keeps_its_letters(seed):
    question = "What color is the star?"
    varied = world.vary(question, random.Random(seed))
    assert varied.lower().replace("colour", "color").rstrip("?") == question.lower().rstrip("?")


def test_sentences_hold_every_word_and_no_held_out_pair():
    texts = set(world.sentences())
    together = "\n".join(texts)
    for word in (*world.SHAPES, *world.COLOURS, *world.SIZES, "crosses", "colour", "Zero", "Three", "In the middle",
                 "At the bottom right", "an orange", "It stays still", "From left to right", "Down"):
        assert word in together and word.upper() in together.upper()
    assert {"HOW MANY OBJECTS ARE THERE?", "how many objects are there", world.NO_PICTURE, "Hello!"} <= texts
    assert not [pair for pair in world.HELD_OUT if " ".join(pair) in together.lower()]
