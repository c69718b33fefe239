"""The second renderer keeps to the demo world's rules, and the measuring program counts as it should.

Objects are found again in the pixels and measured there; no outline of `second_world.py` is used.

Test: ``pytest tests/tools/test_second_world.py``
"""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import second_outside as outside
import second_questions as questions
import second_world as world
from hypothesis import given, settings
from hypothesis import strategies as st
from second_world import Scene, Style, Thing

from tools.demo import measure, topics, wordings

COLORS = {
    "red": 0xD72323,
    "green": 0x28A03C,
    "blue": 0x2850D7,
    "yellow": 0xEED628,
    "orange": 0xF28A1C,
    "purple": 0x7D2DA5,
    "pink": 0xF58CBE,
    "black": 0x19191C,
}
NEVER = ["red star", "green triangle", "blue heart", "yellow circle", "purple square", "black cross"]
STYLES = list(measure.PICTURE_GROUPS.values())
seeds = st.integers(0, 2**32 - 1)
styles = st.sampled_from(STYLES)
quick = settings(deadline=None, max_examples=15)


def scene_of(seed, style=world.ORDINARY):
    return world.random_scene(np.random.default_rng(seed), style)


def small(scene, shorter=160):
    """The scene as a picture of some hundred pixels, without noise, on a plain background."""
    width, height = (round(shorter * s) for s in scene.extent)
    return replace(scene, width=width, height=height, sigma=0.0, quality=None, slope=(0.0, 0.0, 0.0))


def thing(color, shape, x=0.5, y=0.5, size="large", radius=0.17, turn=0.0, form=0.5):
    return Thing(color, shape, size, radius, x, y, turn, form, world.COLORS[color])


def plain(*things, width=300, height=300, after=True):
    return Scene(things, width, height, (240, 240, 240), box_after_turn=after)


def covered(scene):
    """[height, width] bool: where the picture is not background."""
    return (np.asarray(world.picture(scene)) != np.array(scene.background)).any(2)


@quick
@given(seeds, styles)
def test_objects_lie_inside_and_do_not_touch(seed, style):
    scene = small(scene_of(seed, style))
    alone = [covered(replace(scene, things=(t,))) for t in scene.things]
    assert np.array_equal(np.sum(alone, 0), covered(scene))  # none hides a pixel of another
    for found in alone:
        assert found.any() and not found[[0, -1]].any() and not found[:, [0, -1]].any()


@quick
@given(seeds, styles)
def test_scenes_keep_to_the_rules_and_to_their_style(seed, style):
    scene = scene_of(seed, style)
    names = [f"{t.color} {t.shape}" for t in scene.things]
    assert 1 <= len(names) == len(set(names)) <= 3
    assert bool(set(names) & set(NEVER)) == style.held_out
    assert all(b - a >= 0.09 for a, b in pairwise(sorted(t.x for t in scene.things)))
    assert 64 <= max(scene.width, scene.height) <= 2048 and 0 <= scene.sigma <= 6
    assert 0.64 < scene.width / scene.height < 1.56 and (style.format or scene.width == scene.height)
    assert scene.quality is None or 60 <= scene.quality <= 100
    pale = all(215 <= c <= 255 for c in scene.background)
    assert pale == (style.ground != "other") and max(map(abs, scene.slope)) <= 25
    assert all(np.linalg.norm(np.subtract(scene.background, t.rgb)) >= (45 if pale else 90) for t in scene.things)
    assert sum(t.size == "huge" for t in scene.things) == style.huge
    for t in scene.things:
        low, high = {"small": (0.08, 0.11), "large": (0.15, 0.20), "huge": (0.26, 0.45)}[t.size]
        assert low <= t.radius <= high and abs(t.turn) <= 10


@quick
@given(seeds)
def test_colours_in_the_picture_are_those_of_the_page(seed):
    scene = small(scene_of(seed))
    pixels = np.asarray(world.picture(scene)).astype(int)
    for t in scene.things:
        code = COLORS[t.color]
        wanted = np.array([code >> 16, code >> 8 & 255, code & 255])
        assert np.abs(pixels[int(t.y * scene.height), int(t.x * scene.width)] - wanted).max() <= 16
    assert pixels[0, 0].tolist() == list(scene.background)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("shape", world.SHAPES)
def test_the_radius_is_half_the_longer_side_of_the_box_in_shorter_sides(shape, after):
    turn = 8.0 if after else 0.0
    rows, columns = np.nonzero(covered(plain(thing("red", shape, 0.4, 0.5, turn=turn), width=900, height=600, after=after)))
    assert max(np.ptp(rows), np.ptp(columns)) / 2 == pytest.approx(102, abs=2)
    assert columns.min() + columns.max() == pytest.approx(2 * 0.4 * 900 - 1, abs=3)
    assert rows.min() + rows.max() == pytest.approx(599, abs=3)


@pytest.mark.parametrize("form", [0.0, 1.0])
@pytest.mark.parametrize(
    "shape,points", [("circle", 0), ("square", 4), ("triangle", 3), ("star", 5), ("heart", 3), ("cross", 4)]
)
def test_a_shape_has_its_points(shape, points, form):
    """Counted on a ring around the middle."""
    ring = np.linspace(0, 2 * np.pi, 2000)
    found = covered(plain(thing("red", shape, form=form, radius=0.19), width=1000, height=1000))
    radius = 0.19 * {"heart": 0.8, "star": 0.8, "square": 1.15}.get(shape, 0.9)
    middle = 0.5 + 0.19 * 0.289 * (shape == "triangle")  # that of its corners
    x, y = 0.5 + radius * np.sin(ring), middle - radius * np.cos(ring)
    along = found[(y * 1000).astype(int), (x * 1000).astype(int)]
    assert (along[1:] & ~along[:-1]).sum() == points


def test_triangles_and_stars_point_up_and_hearts_down():
    for shape, up in (("triangle", True), ("star", True), ("heart", False)):
        found = covered(plain(thing("red", shape)))
        widths = found.sum(1)[found.any(1)]
        assert (widths[2] < widths[-12]) == up
    assert np.diff(found[found.any(1)][3].astype(int)).tolist().count(1) == 2  # a heart begins with two humps


def test_edges_are_anti_aliased_and_noise_slope_and_format_are_as_asked():
    scene = plain(thing("black", "circle", 0.513, 0.487), width=64, height=64)
    assert len(np.unique(np.asarray(world.picture(scene))[..., 0])) > 10
    assert world.picture(scene).format == "PNG" and world.picture(replace(scene, quality=60)).format == "JPEG"
    noisy = np.asarray(world.picture(replace(scene, background=(220, 220, 220), sigma=6.0)))
    assert noisy[:15].std() == pytest.approx(6, abs=0.5)
    sloping = np.asarray(world.picture(replace(scene, background=(220,) * 3, slope=(20.0,) * 3))).astype(int)
    assert sloping[0, -1, 0] - sloping[0, 0, 0] == pytest.approx(20, abs=1)


def test_the_same_seed_gives_the_same_file():
    assert world.encode(scene_of(3)) == world.encode(scene_of(3))
    assert scene_of(3) != scene_of(4)


@pytest.mark.parametrize(
    "x,y,answers",
    [
        (0.2, 0.2, {"At the top left."}),
        (0.5, 0.2, {"At the top."}),
        (0.2, 0.5, {"At the left."}),
        (0.5, 0.5, {"In the middle."}),
        (0.8, 0.9, {"At the bottom right."}),
        (0.38, 0.2, {"At the top left.", "At the top."}),
        (0.42, 0.5, {"At the left.", "In the middle."}),
        (0.5, 0.62, {"At the bottom.", "In the middle."}),
        (0.59, 0.41, {"At the top.", "In the middle.", "At the right.", "At the top right."}),
        (0.64, 0.36, {"At the top right."}),
    ],
)
def test_near_a_border_either_place_will_do(x, y, answers):
    assert set(questions.places(x, y)) == answers


def test_the_plainest_place_is_the_true_one():
    assert questions.places(0.39, 0.41)[0] == "At the left."
    assert questions.places(0.41, 0.39)[0] == "At the top."
    assert questions.places(0.61, 0.61)[0] == "At the bottom right."


def test_questions_and_answers_are_worded_as_on_the_page():
    star = thing("red", "star", 0.7, 0.2, size="small", radius=0.1)
    circle = thing("orange", "circle", 0.2, 0.25)
    heart = thing("orange", "heart", 0.5, 0.8)
    asked = {q.text: q.answers[0] for q in questions.questions(plain(star, circle, heart))}
    expected = {
        "What color is the star?": "Red.",
        "What shape is the red object?": "A star.",
        "How many objects are there?": "Three.",
        "How many crosses are there?": "Zero.",
        "How many orange objects are there?": "Two.",
        "Is there an orange circle?": "Yes.",
        "Is there a red circle?": "No.",
        "How big is the red star?": "Small.",
        "Is the red star left or right of the orange circle?": "The red star is right of the orange circle.",
        "Is the orange heart above or below the red star?": "The orange heart is below the red star.",
        "Where is the orange circle?": "At the top left.",
        "Describe the image.": "From left to right: a large orange circle, a large orange heart and a small red star.",
    }
    assert expected.items() <= asked.items()
    assert "What shape is the orange object?" not in asked  # there are two
    assert "Is the red star above or below the orange circle?" not in asked  # 5 % apart
    assert questions.description(plain(star, circle)) == "A large orange circle is left of a small red star."
    assert questions.description(plain(star)) == "A small red star."


@quick
@given(seeds)
def test_there_is_a_kind_for_every_question_and_no_question_twice(seed):
    found = questions.questions(scene_of(seed))
    assert {q.kind for q in found} <= set(questions.KINDS)
    assert len({q.text for q in found}) == len(found)
    mixed = questions.mixed(found, np.random.default_rng(seed))
    assert sorted(q.text for q in mixed) == sorted(q.text for q in found)


def test_yes_and_no_come_first_equally_often():
    rng = np.random.default_rng(0)
    exists = [q for q in questions.questions(scene_of(5)) if q.kind == "exists"]
    yes = sum(questions.mixed(exists, rng)[0].answers[0] == "Yes." for _ in range(400))
    assert 160 < yes < 240


# ---- missing objects, other wordings, follow-ups, outside pictures


def test_what_is_missing_or_not_unique_is_said_as_on_the_page():
    scene = plain(thing("red", "star", 0.7, 0.2, "small", 0.1), thing("blue", "star", 0.3, 0.5), thing("blue", "heart", 0.1, 0.8))
    asked = {q.text: q.answers[0] for q in questions.troubled_questions(scene, np.random.default_rng(0))}
    assert asked["What color is the star?"] == "There are two stars: a large blue star and a small red star."
    assert asked["What shape is the blue object?"] == "There are two blue objects: a large blue heart and a large blue star."
    for text, answer in asked.items():
        if answer.startswith("There is no "):
            name = answer.removeprefix("There is no ").rstrip(".")
            assert name in text and not any(all(w in ("object", t.color, t.shape) for w in name.split()) for t in scene.things)


def test_what_is_beside_an_object_is_the_nearest_along_that_axis():
    scene = plain(thing("red", "star", 0.1, 0.5), thing("blue", "heart", 0.4, 0.1), thing("pink", "cross", 0.8, 0.55, "small", 0.1))
    star, heart, cross = scene.things
    assert questions.beside(star, "right of", scene) == "A large blue heart."
    assert questions.beside(star, "left of", scene) == "Nothing."
    assert questions.beside(cross, "left of", scene) == "A large blue heart."
    assert questions.beside(heart, "below", scene) == "A large red star."
    assert questions.beside(star, "below", scene) == "Nothing."  # 5 % apart


@quick
@given(seeds)
def test_a_reworded_question_keeps_what_it_is_about(seed):
    rng = np.random.default_rng(seed)
    for question in questions.questions(scene_of(seed))[:40]:
        text = questions.reworded(question, rng)
        assert text != question.text and "{" not in text
        assert all(word in text for word in (*world.SHAPES, *world.COLORS, "bigger", "smaller", "left of") if word in question.text)


def test_training_has_none_of_the_wordings_topics_and_pictures_that_are_measured_with():
    taught = {t for templates in (*wordings.KINDS.values(), *wordings.FOLLOW_UPS.values()) for t in templates}
    kept_out = {t for templates in questions.KEPT_OUT_WORDINGS.values() for t in templates}
    assert not taught & kept_out and len(kept_out) == 2 * len(questions.KINDS)
    assert not any(text.startswith(("I would like", "Would you say", "What number of")) for text in taught)
    rng = random.Random(0)
    assert not {topics.other_question(rng) for _ in range(5000)} & set(questions.OTHER_QUESTIONS)
    from tools.demo.outside import KINDS

    assert not {kind.__name__ for kind in KINDS} & set(outside.KEPT_OUT_KINDS)


@quick
@given(seeds)
def test_the_turns_of_a_conversation_follow_from_each_other(seed):
    scene, rng = scene_of(seed), np.random.default_rng(seed)
    said = questions.conversation(scene, rng)
    assert len(said) <= 4
    things = {t.shape: t for t in scene.things}
    current = None
    for text, answers in said:
        named = [t for t in scene.things if t.color in text and (t.shape in text or " one" in text)] or [
            things[s] for s in things if s in text]  # fmt: skip
        current = named[0] if named else current
        if text == "How big is it?":
            assert answers == (f"{current.size.capitalize()}.",)
        if text == "Where is it?":
            assert answers == questions.places(current.x, current.y)


@pytest.mark.parametrize("kind", [*outside.KNOWN_KINDS, *outside.KEPT_OUT_KINDS])
def test_outside_pictures_have_formats_of_the_world_and_differ(kind):
    rng = np.random.default_rng(0)
    made = [outside.outside_picture(kind, rng) for _ in range(3)]
    assert all(0.64 < image.width / image.height < 1.56 and image.mode == "RGB" for image in made)
    assert len({image.tobytes() for image in made}) == 3


# ---- the measuring program


@pytest.fixture
def small_pictures(monkeypatch):
    """Pictures of 64 pixels, to be quick."""
    draw = world.picture
    monkeypatch.setattr(world, "picture", lambda scene: draw(small(scene, 64)))


def tasks_of(seed=7, count=8):
    return [*measure.picture_tasks(count, seed), *measure.trouble_tasks(count, seed), *measure.film_tasks(2, seed)]


def test_the_measure_gives_all_to_a_knowing_answerer(small_pictures):
    known = iter([task.answers[-1] for task in tasks_of()])
    marks = list(measure.examine(tasks_of(), lambda asked: [next(known) for _ in asked]))
    summary = measure.summarise(marks + list(measure.refusals(marks)))
    assert {*measure.PICTURE_GROUPS, "loosened", "kept-out wordings", "troubled", "films", "inside, not refused"} <= set(summary)
    for group in summary.values():
        assert all(row["right"] == 100 for part in group.values() for row in part.values())
    for group in ("ordinary", "kept-out wordings"):
        assert set(summary[group]["kinds"]) == set(questions.KINDS)
    assert "MISSED" not in measure.bounds_table(summary)


def test_the_measure_gives_little_to_a_blind_answerer(small_pictures):
    marks = list(measure.examine(tasks_of(), lambda asked: ["Yes."] * len(asked)))
    summary = measure.summarise(marks)
    shares = {kind: row["right"] for kind, row in summary["ordinary"]["kinds"].items()}
    assert 10 <= shares.pop("exists") <= 90 and set(shares.values()) == {0}
    assert measure.bounds_table(summary).count("MISSED") >= len(measure.PICTURE_GROUPS)


def test_a_refusal_of_an_inside_picture_is_counted(small_pictures):
    marks = list(measure.examine(measure.picture_tasks(2, 1), lambda asked: [questions.NO_SHAPE] * len(asked)))
    assert measure.summarise(list(measure.refusals(marks)))["inside, not refused"]["kinds"]["all"]["right"] == 0


def test_every_outside_picture_and_other_question_has_its_own_refusal(small_pictures):
    tasks = list(measure.outside_tasks(8, 3))
    assert {t.answers for t in tasks if t.kind == "many"} == {("There are more than three objects.",)}
    assert {t.answers for t in tasks if t.group == "other questions"} == {("I can only answer questions about colored shapes.",)}
    assert {t.kind for t in tasks} >= {*outside.KNOWN_KINDS, *outside.KEPT_OUT_KINDS}


def test_a_conversation_counts_when_all_its_turns_are_right(small_pictures):
    prompts = []

    def answer(requests):
        prompts.extend(r["prompt"] for r in requests)
        return ["Yes."] * len(requests)

    marks = list(measure.converse(3, 5, answer))
    assert [right for *_, right in marks] == [False] * 3 and len(prompts) == 12
    last = prompts[-1]
    assert last.count("<image>") == 1 and last.startswith("<|user|><image>") and last.count("<|assistant|>Yes.<|end|>") == 3
    expected = iter([turn for turns in zip(*(talk for talk in talks_of(3, 5))) for turn in turns])
    right = list(measure.converse(3, 5, lambda requests: [next(expected) for _ in requests]))
    assert [ok for *_, ok in right] == [True] * 3


def talks_of(count, seed):
    """The plainest right answers of the conversations that `measure.converse` holds."""
    rng, talks = np.random.default_rng([seed, 40]), []
    while len(talks) < count:
        said = questions.conversation(world.random_scene(rng), rng, 4)
        talks += [[answers[0] for _, answers in said]] if len(said) == 4 else []
    return talks


def test_questions_about_kept_out_pictures_turn_on_a_kept_out_object():
    rng = np.random.default_rng(2)
    scenes = [world.random_scene(rng, Style(held_out=True)) for _ in range(30)]
    for scene, chosen in zip(scenes, measure.choose(scenes, True, rng)):
        strange = [t for t in scene.things if f"{t.color} {t.shape}" in NEVER]
        for question in chosen:
            said = question.text + question.answers[0]
            assert question.kind.startswith(("count", "describe")) or any(
                t.color in said.lower() or t.shape in said.lower() for t in strange
            )


def test_a_loosened_question_is_still_the_same_question():
    rng = np.random.default_rng(2)
    forms = {measure.loosen("What color is the star?", rng) for _ in range(200)}
    assert len(forms) == 12
    assert {f.lower().replace("colour", "color").rstrip("?") for f in forms} == {"what color is the star"}


# ---- films


@quick
@given(seeds)
def test_a_clip_moves_one_object_one_way_and_the_pixels_show_it(seed):
    frames, way = world.random_clip(np.random.default_rng(seed), held_out=bool(seed % 2))
    assert 4 <= len(frames) <= 8 and len({f.things[1:] for f in frames}) == 1
    middles = []
    for frame in (frames[0], frames[-1]):
        rows, columns = np.nonzero(covered(small(replace(frame, things=frame.things[:1]), 128)))
        middles.append((columns.mean() / 128, rows.mean() / 128))
    across, down = np.subtract(*middles[::-1])
    seen = "It stays still."
    if max(abs(across), abs(down)) > 0.05:
        horizontal = abs(across) > abs(down)
        seen = ("Right." if across > 0 else "Left.") if horizontal else ("Down." if down > 0 else "Up.")
        assert 0.18 < max(abs(across), abs(down)) < 0.52 and min(abs(across), abs(down)) < 0.02
    assert seen == way


def test_the_questions_about_a_clip_are_those_of_the_page():
    scene = plain(thing("blue", "star", 0.2, 0.5), thing("red", "circle", 0.7, 0.5))
    asked = {q.text: q.answers for q in questions.clip_questions([scene], "Left.")}
    assert asked["What is moving?"] == ("The blue star.",) and asked["Which way does the blue star move?"] == ("Left.",)
    assert asked["Which way does the red circle move?"] == ("It stays still.",)
    assert asked["Describe the video."] == ("A blue star moves left. A red circle stays still.",)
    still = {q.text: q.answers for q in questions.clip_questions([scene], "It stays still.")}
    assert "What is moving?" not in still and len(still["Describe the video."]) == 2  # in either order
