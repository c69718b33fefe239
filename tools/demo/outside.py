"""Pictures that are outside the demo world: nothing in them is one of its shapes.

Many kinds, each in ever-changing forms, so that a student learns what the world is and not what these are.
Some kinds that the page names, and others that it does not, are never drawn here: the second renderer measures with them.

Test: ``pytest tests/tools/test_demo_world.py``
"""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.demo.shapes import SHAPES, polar, turn, unit_outline

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&?!#%"
WORDS = (
    "file", "edit", "view", "help", "save", "open", "close", "cancel", "ok", "search",
    "settings", "name", "price", "total", "date", "menu", "home", "page", "next", "the",
    "of", "and", "to", "in", "is", "it", "on", "for", "with", "sale",
    "menu", "chapter", "exit", "free", "new", "error", "login", "user", "welcome",
)  # fmt: skip


def draw_outside(width, height, rng):
    """An RGB picture of one of the kinds below."""
    kinds, weights = zip(*KINDS.items())
    return rng.choices(kinds, weights)[0](width, height, rng)


def _colour(rng, far_from=None):
    """Any colour; with ``far_from``, one that can be told from it."""
    while True:
        found = tuple(rng.randrange(256) for _ in "rgb")
        if rng.random() < 0.2:
            found = (rng.choice((0, 255, rng.randrange(256))),) * 3
        if far_from is None or math.dist(found, far_from) > 80:
            return found


def _ground(rng):
    return tuple(rng.randint(215, 255) for _ in "rgb") if rng.random() < 0.6 else _colour(rng)


def _seeded(rng):
    return np.random.default_rng(rng.getrandbits(32))


def _image(pixels):
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _stretch(pixels, width, height, smooth=True):
    return _image(pixels).resize((width, height), Image.BICUBIC if smooth else Image.NEAREST)


def plain(width, height, rng):
    """One colour."""
    return Image.new("RGB", (width, height), _ground(rng))


def gradient(width, height, rng):
    """From one colour to another, straight or from a centre."""
    a, b = np.array(_colour(rng)), np.array(_colour(rng))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    if rng.random() < 0.7:
        angle = rng.uniform(0, math.tau)
        t = (x * math.cos(angle) + y * math.sin(angle)) / 2.8 + 0.5
    else:
        t = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) / rng.uniform(1.5, 3)
    return _image(a + (b - a) * t.clip(0, 1)[..., None])


def noise(width, height, rng):
    """Independent pixels or squares, grey or coloured, even or of a normal distribution."""
    step, colours = rng.choice((1, 1, 2, 3, 5, 8, 12)), rng.choice((1, 3))
    shape = (max(2, height // step), max(2, width // step), colours)
    made = _seeded(rng).random(shape) * 255 if rng.random() < 0.5 else _seeded(rng).normal(rng.uniform(60, 200), 50, shape)
    return _stretch(np.broadcast_to(made, (*shape[:2], 3)), width, height, rng.random() < 0.4)


def clouds(width, height, rng):
    """Blurred noise of one or several scales: blobs out of focus."""
    total = np.zeros((height, width, 3))
    for _ in range(rng.randint(1, 3)):
        cells = rng.randint(2, 9)
        made = _seeded(rng).random((cells, cells, rng.choice((1, 3, 3)))) * 255
        total = total * 0.5 + np.asarray(_stretch(np.broadcast_to(made, (cells, cells, 3)), width, height)) * 0.7
    return _image(total)


def stripes(width, height, rng):
    """Parallel bands or waves, sharp or soft, or two crossing sets of them."""
    y, x = np.mgrid[0:1 : height * 1j, 0:1 : width * 1j]
    a, b = np.array(_colour(rng)), np.array(_colour(rng))
    t = np.zeros((height, width))
    for _ in range(rng.choice((1, 1, 2))):
        angle, count = rng.uniform(0, math.pi), rng.uniform(2, 14)
        bend = rng.choice((0, 0, rng.uniform(0, 0.1))) * np.sin(x * rng.uniform(4, 14))
        t = np.maximum(t, np.sin(math.tau * count * ((x + bend) * math.cos(angle) + (y + bend) * math.sin(angle))))
    return _image(a + (b - a) * (t > rng.uniform(-0.5, 0.6) if rng.random() < 0.6 else t * 0.5 + 0.5)[..., None])


def landscape(width, height, rng):
    """Sky, a horizon and perhaps hills, somewhat blurred, with grain."""
    image = gradient(width, height, rng)
    pen, steps = ImageDraw.Draw(image), 24
    for _ in range(rng.randint(1, 3)):
        level, rough = rng.uniform(0.3, 0.9), rng.choice((0, rng.uniform(0.01, 0.12)))
        phase, waves = rng.uniform(0, 7), rng.uniform(1, 9)
        tops = [level + rough * math.sin(phase + waves * i / steps) + rng.uniform(-0.2, 0.2) * rough for i in range(steps + 1)]
        points = [(i * width / steps, t * height) for i, t in enumerate(tops)] + [(width, height), (0, height)]
        pen.polygon(points, fill=_colour(rng))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.02) * width))
    grain = _seeded(rng).normal(0, rng.uniform(0, 14), (height, width, 1))
    return _image(np.asarray(image) + grain)


def blobs(width, height, rng):
    """Soft spots of many colours without an edge, as of a photograph out of focus."""
    image = Image.new("RGB", (width, height), _ground(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 14)):
        x, y, a, b = rng.random() * width, rng.random() * height, *(rng.uniform(0.05, 0.4) * width for _ in "ab")
        pen.ellipse((x - a, y - b, x + a, y + b), fill=_colour(rng))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.04, 0.12) * width))


@functools.cache
def _font(size):
    return ImageFont.load_default(size)


def text(width, height, rng):
    """Letters, words or lines of text."""
    ground = _ground(rng)
    image = Image.new("RGB", (width, height), ground)
    pen, ink = ImageDraw.Draw(image), _colour(rng, ground)
    if rng.random() < 0.35:  # one to three big letters
        letters = "".join(rng.choice(LETTERS) for _ in range(rng.choice((1, 1, 2, 3))))
        size = max(8, int(rng.uniform(0.3, 0.8) * height))
        pen.text((rng.uniform(0, 0.5) * width, rng.uniform(-0.1, 0.3) * height), letters, ink, _font(size))
        return image
    size = max(7, int(rng.uniform(0.06, 0.16) * height))
    for line in range(rng.randint(1, max(1, int(height / size / 1.4)))):
        words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 7)))
        left = rng.choice((0.05, 0.05, rng.uniform(0, 0.4))) * width
        pen.text((left, (0.03 + line * 1.3 * size / height) * height), words, ink, _font(size))
    return image


def layout(width, height, rng):
    """Bars, panels and buttons with captions, as a window has them."""
    ground = _ground(rng)
    image = Image.new("RGB", (width, height), ground)
    pen, ink = ImageDraw.Draw(image), _colour(rng, ground)
    pen.rectangle((0, 0, width, rng.uniform(0.06, 0.16) * height), fill=_colour(rng, ground))
    if rng.random() < 0.6:
        pen.rectangle((0, 0.12 * height, rng.uniform(0.15, 0.35) * width, height), fill=_colour(rng, ground))
    for _ in range(rng.randint(2, 9)):
        x, y = rng.uniform(0.05, 0.7) * width, rng.uniform(0.15, 0.9) * height
        w, h = rng.uniform(0.15, 0.5) * width, rng.uniform(0.05, 0.12) * height
        box, style = (x, y, x + w, y + h), rng.random()
        if style < 0.5:
            pen.rounded_rectangle(box, h * rng.choice((0, 0.3)), fill=_colour(rng, ground), outline=ink)
        elif style < 0.7:
            pen.rectangle(box, outline=ink)
        if rng.random() < 0.7:
            pen.text((x + 2, y + 1), rng.choice(WORDS), ink, _font(max(7, int(h * 0.7))))
    return image


def _paste(image, points, fill, finer=3):
    """A polygon, anti-aliased; points are fractions of the picture."""
    big = [(x * image.width * finer, y * image.height * finer) for x, y in points]
    mask = Image.new("L", (image.width * finer, image.height * finer))
    ImageDraw.Draw(mask).polygon(big, fill=255)
    image.paste(fill, (0, 0), mask.reduce(finer))


def other_shape(width, height, rng):
    """One to three filled shapes that the world does not have."""
    ground = _ground(rng)
    image = Image.new("RGB", (width, height), ground)
    shorter, count = min(width, height), rng.choice((1, 1, 1, 2, 3))
    for i in range(count):
        points = _other_outline(rng) @ turn(rng.uniform(-40, 40))
        low, high = points.min(0), points.max(0)
        radius = rng.uniform(0.1, 0.45 if count == 1 else 0.5 / count)
        points = (points - (low + high) / 2) * (2 * radius * shorter / (high - low).max()) / (width, height)
        reach = abs(points).max(0)
        middle = [rng.uniform(r, max(r, 1 - r)) for r in reach]
        if count > 1:
            middle[0] = (i + 0.5) / count
        _paste(image, points + middle, _colour(rng, ground))
    return image


def _other_outline(rng):
    """Points of a polygon, an arrow, a thin bar, a half disc, a piece of a pie, a trapezium, an L, a zigzag or a gear."""
    kind = rng.choice(("polygon", "polygon", "arrow", "arrow", "bar", "half", "pie", "trapezium", "ell", "zigzag", "gear", "drop"))
    if kind == "polygon":
        count = rng.choice((6, 6, 6, 5, 5, 8))
        return polar(1, np.arange(count) * math.tau / count + rng.choice((0, 0.5)) * math.tau / count)
    if kind == "arrow":
        shaft, neck, head = rng.uniform(0.1, 0.35), rng.uniform(-0.1, 0.5), rng.uniform(0.45, 0.9)
        points = [(-1, -shaft), (neck, -shaft), (neck, -head), (1, 0), (neck, head), (neck, shaft), (-1, shaft)]
        return np.array(points) @ turn(rng.choice((0, 90, 180, 270, rng.uniform(0, 360))))
    if kind == "bar":
        thin = rng.uniform(0.02, 0.22)
        return np.array([(-1, -thin), (1, -thin), (1, thin), (-1, thin)]) @ turn(rng.uniform(0, 180))
    if kind in ("half", "pie"):
        span = math.pi if kind == "half" else rng.uniform(0.5, 2.4)
        arc = polar(1, np.linspace(0, span, 24)) @ turn(rng.choice((0, 90, 180, 270)))
        return arc if kind == "half" else np.concatenate([arc, [(0, 0)]])
    if kind == "trapezium":
        top, lean = rng.uniform(0.1, 0.6), rng.uniform(0.5, 1.2)
        if rng.random() < 0.5:  # a parallelogram
            return np.array([(-1 + lean, -0.5), (1 + lean, -0.5), (1 - lean, 0.5), (-1 - lean, 0.5)])
        return np.array([(-top, -0.4), (top, -0.4), (1, 0.4), (-1, 0.4)]) @ turn(rng.choice((0, 180)))
    if kind == "ell":
        arm = rng.uniform(0.25, 0.6)
        points = np.array([(-1, -1), (-1 + arm, -1), (-1 + arm, 1 - arm), (1, 1 - arm), (1, 1), (-1, 1)])
        return points @ turn(rng.choice((0, 90, 180, 270)))
    if kind == "zigzag":
        count, thick = rng.randint(4, 7), rng.uniform(0.15, 0.4)
        line = [(-1 + 2 * i / count, rng.uniform(0.3, 0.6) * (-1) ** i) for i in range(count + 1)]
        return np.array(line + [(x, y + thick) for x, y in reversed(line)])
    if kind == "drop":
        return np.concatenate([[(0, -1.8)], polar(1, np.linspace(-0.55, math.pi + 0.55, 30))])
    teeth = rng.randint(8, 16)
    return polar(np.tile([1, rng.uniform(0.6, 0.88)], teeth), np.arange(2 * teeth) * math.pi / teeth)


def ring(width, height, rng):
    """A ring, a frame or an arc: an outline that is thick, with the ground in its middle."""
    ground = _ground(rng)
    image, finer = Image.new("RGB", (width, height), ground), 3
    mask = Image.new("L", (width * finer, height * finer))
    pen, shorter = ImageDraw.Draw(mask), min(width, height) * finer
    radius = rng.uniform(0.12, 0.45) * shorter
    x, y = (rng.uniform(radius, s * finer - radius) for s in (width, height))
    thick, box = max(2, int(radius * rng.uniform(0.12, 0.5))), (x - radius, y - radius, x + radius, y + radius)
    style = rng.random()
    if style < 0.6:
        pen.ellipse(box, outline=255, width=thick)
    elif style < 0.8:
        pen.rectangle(box, outline=255, width=thick)
    else:
        start = rng.uniform(0, 360)
        pen.arc(box, start, start + rng.uniform(90, 300), fill=255, width=thick)
    image.paste(_colour(rng, ground), (0, 0), mask.reduce(finer))
    return image


def strokes(width, height, rng):
    """Line drawings: thin lines, curves, scribbles, and the outlines of shapes that are not filled."""
    ground, finer = _ground(rng), 2
    image = Image.new("RGB", (width, height), ground)
    mask = Image.new("L", (width * finer, height * finer))
    pen = ImageDraw.Draw(mask)
    thick = max(1, int(rng.uniform(0.006, 0.03) * min(width, height) * finer))
    for _ in range(rng.randint(1, 6)):
        x, y = (rng.uniform(0.1, 0.9) * s * finer for s in (width, height))
        reach, style = rng.uniform(0.1, 0.45) * min(width, height) * finer, rng.random()
        if style < 0.4:
            points = reach * unit_outline(rng.choice(SHAPES), rng.getrandbits(16), 0) + (x, y)
            pen.line([tuple(p) for p in (*points, points[0])], fill=255, width=thick)
        elif style < 0.7:
            end = [rng.random() * s * finer for s in (width, height)]
            pen.line([(x, y), tuple(end)], fill=255, width=thick)
        else:
            walk = [(x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach)) for _ in range(rng.randint(3, 12))]
            pen.line(walk, fill=255, width=thick, joint="curve")
    image.paste(_colour(rng, ground), (0, 0), mask.reduce(finer))
    return image


def collage(width, height, rng):
    """A patchwork of overlapping boxes, ellipses and lines that leaves no ground: a busy scene."""
    image = Image.new("RGB", (width, height), _colour(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(15, 45)):
        x, y, a, b = rng.random() * width, rng.random() * height, *(rng.uniform(0.05, 0.5) * width for _ in "ab")
        tool = rng.choice((pen.rectangle, pen.ellipse, pen.line))
        tool((x - a / 2, y - b / 2, x + a / 2, y + b / 2), fill=_colour(rng))
    return image.filter(ImageFilter.GaussianBlur(rng.choice((0, 0, rng.uniform(0.3, 2)))))


KINDS = {plain: 8, gradient: 6, noise: 10, clouds: 8, stripes: 7, landscape: 9, blobs: 8, text: 9, layout: 7,
         other_shape: 20, ring: 8, strokes: 10, collage: 4}  # relative frequencies  # fmt: skip
