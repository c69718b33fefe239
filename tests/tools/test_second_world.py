"""The second renderer keeps to the demo world's rules, and the measuring program counts as it should.

Objects are found again in the pixels and measured there; no outline of `second_world.py` is used.

Test: ``pytest tests/test_second_world.py``
"""

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import second_world as world
from hypothesis import given, settings
from hypothesis import strategies as st
from second_world import Scene, Thing

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
seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=30)


def scene_of(seed, held_out=False):
    return world.random_scene(np.random.default_rng(seed), held_out)


def thing(color, shape, x=0.5, y=0.5, size="large", radius=0.17, turn=0.0, form=0.5):
    return Thing(color, shape, size, radius, x, y, turn, form, world.COLORS[color])


def plain(*things, side=300, by_box=False):
    return Scene(things, side, (240, 240, 240), 0.0, None, by_box, 0)


def covered(scene):
    """[side, side] bool: where the picture is not background."""
    clean = replace(scene, sigma=0.0, quality=None)
    return (np.asarray(world.picture(clean)) != np.array(scene.background)).any(2)


def measure():
    path = Path(__file__).resolve().parents[2] / "tools" / "demo" / "measure.py"
    spec = importlib.util.spec_from_file_location("measure_demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@quick
@given(seeds)
def test_objects_lie_inside_and_do_not_touch(seed):
    scene = replace(scene_of(seed), side=256)
    alone = [covered(replace(scene, things=(t,))) for t in scene.things]
    assert np.array_equal(np.sum(alone, 0), covered(scene))  # none hides a pixel of another
    for found in alone:
        assert not found[[0, -1]].any() and not found[:, [0, -1]].any()
        # all of it is there: an object in the middle of a larger picture covers as much
    for t, found in zip(scene.things, alone):
        middle = replace(scene, things=(replace(t, x=0.5, y=0.5),))
        edge = 2.5 * found.sum() ** 0.5  # where a pixel's centre falls: about half a pixel along the outline
        assert abs(int(covered(middle).sum()) - int(found.sum())) <= edge


@quick
@given(seeds, st.booleans())
def test_scenes_keep_to_the_rules(seed, held_out):
    scene = scene_of(seed, held_out)
    names = [f"{t.color} {t.shape}" for t in scene.things]
    assert 1 <= len(names) == len(set(names)) <= 3
    assert bool(set(names) & set(NEVER)) == held_out
    across = sorted(t.x for t in scene.things)
    assert all(b - a >= 0.09 for a, b in pairwise(across))
    assert 64 <= scene.side <= 2048 and 0 <= scene.sigma <= 6
    assert scene.quality is None or 60 <= scene.quality <= 100
    assert all(215 <= c <= 255 for c in scene.background)
    for t in scene.things:
        assert {"small": 0.08, "large": 0.15}[t.size] <= t.radius <= {"small": 0.11, "large": 0.19}[t.size]
        assert abs(t.turn) <= 10


@quick
@given(seeds)
def test_colours_in_the_picture_are_those_of_the_page(seed):
    scene = replace(scene_of(seed), side=200, sigma=0.0, quality=None)
    pixels = np.asarray(world.picture(scene)).astype(int)
    for t in scene.things:
        code = COLORS[t.color]
        wanted = np.array([code >> 16, code >> 8 & 255, code & 255])
        assert np.abs(pixels[int(t.y * 200), int(t.x * 200)] - wanted).max() <= 16
    assert pixels[0, 0].tolist() == list(scene.background)


@pytest.mark.parametrize("by_box", [False, True])
@pytest.mark.parametrize("shape", world.SHAPES)
def test_the_radius_is_what_it_is_said_to_be(shape, by_box):
    rows, columns = np.nonzero(covered(plain(thing("red", shape), side=1000, by_box=by_box)))
    if by_box:
        extent = max(np.ptp(rows), np.ptp(columns)) / 2
        assert columns.min() + columns.max() == pytest.approx(999, abs=3)
        assert rows.min() + rows.max() == pytest.approx(999, abs=3)
    else:
        extent = np.hypot(rows - 499.5, columns - 499.5).max()
    assert extent == pytest.approx(170, abs=2)


@pytest.mark.parametrize("form", [0.0, 1.0])
@pytest.mark.parametrize(
    "shape,points", [("circle", 0), ("square", 4), ("triangle", 3), ("star", 5), ("heart", 3), ("cross", 4)]
)
def test_a_shape_has_its_points(shape, points, form):
    """Counted on a ring a little inside the radius."""
    ring = np.linspace(0, 2 * np.pi, 2000)
    found = covered(plain(thing("red", shape, form=form, radius=0.19), side=1000))
    radius = 0.19 * {"heart": 0.75, "star": 0.8, "triangle": 0.8}.get(shape, 0.9)
    x, y = 0.5 + radius * np.sin(ring), 0.5 - radius * np.cos(ring)
    along = found[(y * 1000).astype(int), (x * 1000).astype(int)]
    assert (along[1:] & ~along[:-1]).sum() == points


def test_triangles_and_stars_point_up_and_hearts_down():
    for shape, up in (("triangle", True), ("star", True), ("heart", False)):
        found = covered(plain(thing("red", shape)))
        widths = found.sum(1)[found.any(1)]
        assert (widths[2] < widths[-12]) == up
    assert np.diff(found[found.any(1)][3].astype(int)).tolist().count(1) == 2  # a heart begins with two humps


def test_edges_are_anti_aliased_and_noise_and_format_are_as_asked():
    scene = plain(thing("black", "circle"), side=64)
    assert len(np.unique(np.asarray(world.picture(scene))[..., 0])) > 10
    assert world.picture(scene).format == "PNG" and world.picture(replace(scene, quality=60)).format == "JPEG"
    noisy = np.asarray(world.picture(replace(scene, background=(220, 220, 220), sigma=6.0)))
    assert noisy[:15].std() == pytest.approx(6, abs=0.5)


def test_the_same_seed_gives_the_same_file():
    small = replace(scene_of(3), side=80, sigma=2.0)
    assert world.encode(small) == world.encode(replace(scene_of(3), side=80, sigma=2.0))
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
    assert set(world.places(x, y)) == answers


def test_the_plainest_place_is_the_true_one():
    assert world.places(0.39, 0.41)[0] == "At the left."
    assert world.places(0.41, 0.39)[0] == "At the top."
    assert world.places(0.61, 0.61)[0] == "At the bottom right."


def test_questions_and_answers_are_worded_as_on_the_page():
    star = thing("red", "star", 0.7, 0.2, size="small", radius=0.1)
    circle = thing("orange", "circle", 0.2, 0.25)
    heart = thing("orange", "heart", 0.5, 0.8)
    asked = {q.text: q.answers[0] for q in world.questions(plain(star, circle, heart))}
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
    assert world.description(plain(star, circle)) == "A large orange circle is left of a small red star."
    assert world.description(plain(star)) == "A small red star."


@quick
@given(seeds)
def test_there_is_a_kind_for_every_question_and_no_question_twice(seed):
    found = world.questions(scene_of(seed))
    assert {q.kind for q in found} <= set(world.KINDS)
    assert len({q.text for q in found}) == len(found)
    mixed = world.mixed(found, np.random.default_rng(seed))
    assert sorted(q.text for q in mixed) == sorted(q.text for q in found)


def test_yes_and_no_come_first_equally_often():
    rng = np.random.default_rng(0)
    exists = [q for q in world.questions(scene_of(5)) if q.kind == "exists"]
    yes = sum(world.mixed(exists, rng)[0].answers[0] == "Yes." for _ in range(400))
    assert 160 < yes < 240


@pytest.fixture
def small_pictures(monkeypatch):
    """Pictures of 64 pixels, to be quick."""
    draw = world.picture
    monkeypatch.setattr(world, "picture", lambda scene: draw(replace(scene, side=64)))


def test_the_measure_gives_all_to_a_knowing_answerer(small_pictures):
    tool = measure()
    known = iter([t.answers[-1] for t in tool.picture_tasks(20, 7, loose=True)])
    examined = tool.examine(tool.picture_tasks(20, 7, loose=True), lambda asked: [next(known) for _ in asked])
    summary = tool.summarise(list(examined))
    assert set(summary) == {"ordinary", "ordinary, loose", "kept out", "kept out, loose"}
    for group in summary.values():
        assert set(group["kinds"]) == set(world.KINDS)
        assert all(row["right"] == 100 for part in group.values() for row in part.values())


def test_the_measure_gives_little_to_a_blind_answerer(small_pictures):
    tool = measure()
    examined = tool.examine(tool.picture_tasks(20, 7, loose=False), lambda asked: ["Yes."] * len(asked))
    summary = tool.summarise(list(examined))
    for group in summary.values():
        shares = {kind: row["right"] for kind, row in group["kinds"].items()}
        assert 10 <= shares.pop("exists") <= 90
        assert set(shares.values()) == {0}
    assert "describe" in tool.table(summary)


def test_questions_about_kept_out_pictures_turn_on_a_kept_out_object():
    tool, rng = measure(), np.random.default_rng(2)
    scenes = [world.random_scene(rng, held_out=True) for _ in range(30)]
    for scene, chosen in zip(scenes, tool.choose(scenes, True, rng)):
        strange = [t for t in scene.things if f"{t.color} {t.shape}" in NEVER]
        for question in chosen:
            said = question.text + question.answers[0]
            assert question.kind.startswith(("count", "describe")) or any(
                t.color in said.lower() or t.shape in said.lower() for t in strange
            )


def test_a_loosened_question_is_still_the_same_question():
    tool, rng = measure(), np.random.default_rng(2)
    forms = {tool.loosen("What color is the star?", rng) for _ in range(200)}
    assert len(forms) == 12
    assert {f.lower().replace("colour", "color").rstrip("?") for f in forms} == {"what color is the star"}


@quick
@given(seeds)
def test_a_clip_moves_one_object_one_way_and_the_pixels_show_it(seed):
    frames, way = world.random_clip(np.random.default_rng(seed), held_out=bool(seed % 2))
    assert 4 <= len(frames) <= 8 and len({f.things[1:] for f in frames}) == 1
    middles = []
    for frame in (frames[0], frames[-1]):
        rows, columns = np.nonzero(covered(replace(frame, things=frame.things[:1], side=128)))
        middles.append((columns.mean() / 128, rows.mean() / 128))
    across, down = np.subtract(*middles[::-1])
    seen = "It stays still."
    if max(abs(across), abs(down)) > 0.05:
        horizontal = abs(across) > abs(down)
        seen = ("Right." if across > 0 else "Left.") if horizontal else ("Down." if down > 0 else "Up.")
        assert 0.18 < max(abs(across), abs(down)) < 0.52 and min(abs(across), abs(down)) < 0.02
    assert seen == way


def test_the_questions_about_a_clip_are_those_of_the_page():
    frames, _ = world.random_clip(np.random.default_rng(4))
    asked = {q.text: q.answers for q in world.clip_questions(frames, "Up.")}
    name = frames[0].things[0].name
    assert asked["What is moving?"] == (f"The {name}.",) and asked[f"Which way does the {name} move?"] == ("Up.",)
    assert "What is moving?" not in {q.text for q in world.clip_questions(frames, "It stays still.")}
