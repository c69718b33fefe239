"""The figure of the flow: current, made of what the modules give, and readable without any other file."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tools.draw_flow import OUT, draw, observe


@pytest.fixture(scope="module")
def run():
    return observe()


def without_colours(svg):
    """The figure without the pixels of the example: how a JPEG is decoded may differ by one level."""
    start, end = svg.index('<g id="picture"'), svg.index("</g>")
    return svg[:start] + svg[end:]


def test_the_figure_is_that_of_a_run_today(run):
    drawn = OUT.read_text(encoding="utf-8")
    assert without_colours(draw(run)) == without_colours(drawn), "run: python tools/draw_flow.py"


def test_the_numbers_of_the_run_fit_together(run):
    start, end = run.rows
    assert run.embeds == [1, len(run.text) + end - start, run.projected[2]] and end - start == run.projected[1]
    assert run.tower == [1, run.patches[2] * run.patches[3] + 1, run.patches[1]]
    assert run.features[1] * run.features[2] == run.patches[2] * run.patches[3] * run.patches[1]
    assert run.cached == run.embeds[1] and run.step == [1, 1, run.embeds[2]]
    *words, (_, last) = run.new
    assert run.answer.replace(" ", "") == "".join(piece for _, piece in words) and last not in run.answer


def test_each_shape_of_the_run_stands_in_the_figure(run):
    figure = ElementTree.fromstring(draw(run))
    words = [x.text for x in figure.iter("{http://www.w3.org/2000/svg}text")]
    shapes = ("tile", "patches", "tower", "features", "projected", "embeds", "logits")
    assert {str(getattr(run, name)) for name in shapes} <= set(words)
    assert f"{run.size[0]} x {run.size[1]} pixels" in words and f"the next input: {run.step}" in words


def test_another_run_gives_another_figure(run):
    assert draw(replace(run, cached=run.cached + 1)) != draw(run)


def test_the_figure_needs_no_other_file_and_has_its_own_background():
    svg = OUT.read_text(encoding="utf-8")
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<image|<script|url\(|@import", svg)
    assert 'class="page"' in svg and "prefers-color-scheme: dark" in svg
