"""The outlines of the demo world's shapes, and whether objects lie inside a picture and apart from each other.

Points are [n, 2], x to the right and y down. A unit outline has its bounding box around the origin, and half the
longer side of that box is 1. In a picture the shorter side has length 1: a picture with ``aspect`` = width / height
is ``extent(aspect)`` long and high.

Test: ``pytest tests/tools/test_demo_world.py``
"""

import functools
import itertools
import math
import random

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
MARGIN, GAP = 0.005, 0.01  # to the border, and between two objects, in shorter sides
DIRECTIONS = np.stack([f(np.arange(36) * math.pi / 36) for f in (np.cos, np.sin)])  # [2, 36]


def extent(aspect):
    """Width and height of a picture in shorter sides."""
    return np.array([max(1.0, aspect), max(1.0, 1 / aspect)])


def polar(radius, angles):
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)


def turn(degrees):
    a = math.radians(degrees)
    return np.array([(math.cos(a), math.sin(a)), (-math.sin(a), math.cos(a))])


def centred(points):
    """The points with their bounding box around the origin, half its longer side 1."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (2 / (high - low).max())


@functools.lru_cache(256)  # an object that moves is drawn in every frame
def unit_outline(shape, form, degrees):
    """One of many outlines of a shape, chosen by ``form`` and turned."""
    makers = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart,
              "cross": _cross, "blob": _blob}  # fmt: skip
    return centred(makers[shape](random.Random(form)) @ turn(degrees))


def _circle(rng):
    return polar(1, np.arange(72) * math.tau / 72)


def _square(rng):
    return polar(1, (np.arange(4) + 0.5) * math.tau / 4)


def _triangle(rng):
    height = rng.choice((math.sqrt(3), 2.0, rng.uniform(1.5, 2.2)))  # equilateral, as high as wide, between
    return np.array([(0, -height / 2), (1, height / 2), (-1, height / 2)])


def _star(rng):
    return polar(np.tile([1, rng.uniform(0.36, 0.52)], 5), np.arange(10) * math.tau / 10 - math.pi / 2)


def _cross(rng):
    arm = rng.uniform(0.22, 0.42)
    corner = [(arm, -arm), (1, -arm), (1, arm), (arm, arm)]  # the right arm, then turned by quarters
    return np.concatenate([np.array(corner) @ turn(90 * i) for i in range(4)])


def _heart(rng):
    if rng.random() < 0.5:  # the well-known curve
        t = np.arange(60) * math.tau / 60
        down = 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t) - 13 * np.cos(t)
        points = np.stack([16 * np.sin(t) ** 3, down], 1)
    else:  # two discs at (-c, 0) and (c, 0), and the lines from them down to a tip at (0, d)
        c, d = rng.uniform(0.7, 1), rng.uniform(1.7, 2.3)
        tangent = math.atan2(d, -c) - math.acos(1 / math.hypot(c, d))
        right = polar(1, np.linspace(math.acos(c) - math.pi, tangent, 30)) + (c, 0)
        points = np.concatenate([right, [(0, d)], right[::-1] * (-1, 1)])
    return points * (rng.uniform(0.85, 1), rng.uniform(0.85, 1))


def _blob(rng):
    """A smooth shape that has no name."""
    angles = np.arange(60) * math.tau / 60
    waves = sum(rng.uniform(0, 0.22) * np.cos(k * angles + rng.uniform(0, math.tau)) for k in range(2, 7))
    return polar(1 + waves, angles)


def outline(thing, aspect=1.0):
    """[n, 2] points in the picture, in shorter sides."""
    return thing.radius * unit_outline(thing.shape, thing.form, thing.angle) + (thing.x, thing.y) * extent(aspect)


def gap(things, aspect=1.0):
    """The width of the straight strip that separates the two nearest objects; not above 0 where none does."""
    spans = [(span.min(0), span.max(0)) for span in (outline(thing, aspect) @ DIRECTIONS for thing in things)]
    pairs = itertools.combinations(spans, 2)
    return min((max((a[0] - b[1]).max(), (b[0] - a[1]).max()) for a, b in pairs), default=1.0)


def fits(things, aspect=1.0):
    """Whether all lie wholly inside and a strip of GAP separates any two."""
    size = extent(aspect)
    for thing in things:
        points = outline(thing, aspect)
        if points.min() < MARGIN or (points > size - MARGIN).any():
            return False
    return gap(things, aspect) >= GAP
