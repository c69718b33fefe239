"""Every wrong version that a lesson's check knows is told from the others: its numbers give its own name."""

import pytest

from tools.lessons import run
from tools.lessons.check import check


@pytest.mark.parametrize("number", [n for n in range(1, run.COUNT + 1) if n != 12])
def test_every_wrong_version_of_a_lesson_is_recognised(number):
    lesson = run.lesson_of(number)
    for mistake in lesson.mistakes:
        for parts in (mistake.parts, *mistake.also):
            report = check(lesson, lesson.reference | parts)
            assert report.mistake == mistake.name, report.lines
