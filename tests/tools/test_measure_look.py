"""What counts as a hit in the measurement of the maps, and that the table and the pages have the same numbers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import second_world as world

from tools import measure_look
from tools.measure_look import (
    NUMBERS,
    TABLE,
    distance,
    hits_outline,
    inside,
    is_alone,
    shares,
    word_time,
)
from vita_ref.analysis.look import MAPS

SQUARE = np.array([[0.2, 0.2], [0.6, 0.2], [0.6, 0.6], [0.2, 0.6]])


def thing(x=0.5, y=0.5, radius=0.1, shape="circle", color="red", size="small"):
    return world.Thing(color, shape, size, radius, x, y, 0.0, 0.5, (255, 0, 0))


def case_of(kind, *things, width=100):
    return SimpleNamespace(kind=kind, thing=things[0], scene=world.Scene(things, width, 100, (250, 250, 250)))


def test_a_point_is_inside_a_square_or_as_far_from_it_as_geometry_says():
    assert inside((0.3, 0.5), SQUARE) and not inside((0.7, 0.5), SQUARE)
    assert distance(np.array([0.7, 0.5]), SQUARE) == pytest.approx(0.1)
    assert distance(np.array([0.9, 0.2]), SQUARE) == pytest.approx(0.3)
    assert distance(np.array([0.7, 0.7]), SQUARE) == pytest.approx(2**0.5 / 10)


def test_positions_hit_up_to_half_a_position_around_the_outline():
    """A circle of radius 0.1 around the middle of the picture: the four middles next to it are 0.177 away, all others 0.3 and more."""
    hit = hits_outline(case_of("size", thing())).reshape(4, 4)
    assert hit[1:3, 1:3].all() and hit.sum() == 4
    assert hits_outline(case_of("size", thing(x=0.125, y=0.125))).reshape(4, 4)[0, 0]
    assert hits_outline(case_of("size", thing(radius=0.02))).sum() == 0  # 0.157 from each of the four


def test_an_answer_is_shared_if_another_object_has_it_too():
    pair = thing(0.2, 0.2), thing(0.8, 0.8, shape="star", color="blue", size="large")
    for kind in measure_look.KINDS:
        assert is_alone(case_of(kind, *pair))
        assert not is_alone(case_of(kind, *pair, pair[0]))


def test_the_time_of_a_word_is_from_its_start_to_the_next_one():
    said = SimpleNamespace(words=((0, 0.0), (5, 0.3), (12, 0.5), (16, 0.7)), samples=np.ones(1000), rate=1000)
    assert word_time("What color is a star?", "color", said) == (0.3, 0.5)
    assert word_time("What color is a star?", "star", said) == (0.7, 1.0)


def test_the_best_head_is_chosen_on_other_questions_than_it_is_measured_on():
    def row(first, second):
        return dict.fromkeys(MAPS, True) | {"layer 0": first, "layer 1, head 0": second}, 0.25, True

    found, best = shares([row(True, False), row(True, False), row(False, True), row(False, True)])
    assert best == "layer 0" and found["best layer or head"] == 0 and found["chance"] == 0.25 and found["occlusion"] == 1


def test_the_table_and_the_pages_have_the_same_numbers():
    report, page = json.loads(NUMBERS.read_text(encoding="utf-8")), TABLE.read_text(encoding="utf-8")
    assert f"`{report['command']} --write`" in page
    for name in [*MAPS, "best layer or head", "chance"]:
        [line] = [line for line in page.splitlines() if line.startswith(f"| {MAPS.get(name, name)} |")]
        assert f"{100 * report['pictures']['shares'][name]:.1f} %" in line
        assert f"{100 * report['spoken']['shared']['shares'][name]:.1f} %" in line
