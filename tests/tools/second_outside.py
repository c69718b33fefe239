"""Pictures that are outside the demo world, drawn by numpy from the page alone: of kinds that training has, and of others.

    outside_picture(kind, rng)   a PIL image; kinds are the keys of KNOWN_KINDS and KEPT_OUT_KINDS

"many" shows more than three of the world's own objects. Test: ``pytest tests/tools/test_second_world.py``
"""

import numpy as np
from PIL import Image
from second_world import (
    COLORS,
    KEPT_OUT,
    PAIRS,
    Scene,
    Style,
    _coverage,
    _fit,
    _random_thing,
    draw,
    random_background,
    random_scene,
)


def outside_picture(kind, rng):
    """A picture of 96 to 640 pixels, from 2:3 to 3:2."""
    longer, shape = 96 * 6.67 ** rng.uniform(), (2 / 3) ** rng.uniform(-1, 1)
    width, height = (int(longer * min(1, s)) for s in (shape, 1 / shape))
    if kind == "many":
        return many(rng)
    pixels = (KNOWN_KINDS | KEPT_OUT_KINDS)[kind](width, height, rng)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def many(rng):
    """Four to seven objects that do not touch, none of a kept-out pair."""
    allowed, count = sorted(PAIRS - KEPT_OUT), int(rng.integers(4, 8))
    while True:
        scene = random_scene(rng, Style(counts=(1,)))
        scene = Scene((), min(scene.width, 640), min(scene.height, 640), (255, 255, 255))
        things = []
        for _ in range(300):
            pair = allowed[rng.integers(len(allowed))]
            new = _random_thing(rng, pair, "small" if rng.integers(3) else "large", scene, False)
            if new and all(_apart(new, old, scene) for old in things):
                things.append(new)
            if len(things) == count:
                background, _ = random_background(rng, Style(), [t.rgb for t in things])
                return draw(Scene(tuple(things), scene.width, scene.height, background))


def _apart(a, b, scene):
    return _fit(a, b, scene) or (abs(a.x - b.x) < 0.09 and np.hypot(a.x - b.x, a.y - b.y) > 1.5 * (a.radius + b.radius))


def _color(rng, away=None):
    while True:
        found = rng.integers(0, 256, 3).astype(float)
        if away is None or np.linalg.norm(found - away) > 110:
            return found


def _ground(width, height, rng):
    color = rng.integers(215, 256, 3).astype(float)
    return np.broadcast_to(color, (height, width, 3)).copy(), color


def _paint(pixels, points, color):
    """Fills a polygon of fractions of the picture."""
    height, width = pixels.shape[:2]
    share = _coverage(np.asarray(points, float) * (width, height), width, height)[..., None]
    pixels += share * (color - pixels)


def _grid(width, height):
    """x and y of every pixel, 0 to 1."""
    return np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)


def _smooth(cells, width, height, rng, channels=3):
    """Random values between the points of a grid, interpolated: [height, width, channels], 0 to 1."""
    values = rng.uniform(size=(cells + 1, cells + 1, channels))
    x, y = (v * cells for v in _grid(width, height))
    i, j = np.minimum(x.astype(int), cells - 1), np.minimum(y.astype(int), cells - 1)
    fx, fy = ((3 * f * f - 2 * f**3)[..., None] for f in (x - i, y - j))
    top = values[j, i] * (1 - fx) + values[j, i + 1] * fx
    return top * (1 - fy) + (values[j + 1, i] * (1 - fx) + values[j + 1, i + 1] * fx) * fy


def noise(width, height, rng):
    return rng.uniform(0, 255, (height, width, int(rng.choice([1, 3])))) * np.ones(3)


def texture(width, height, rng):
    """Waves in one direction."""
    x, y = _grid(width, height)
    turn, count = rng.uniform(0, np.pi), rng.uniform(4, 15)
    wave = np.sin(2 * np.pi * count * (x * np.cos(turn) + y * np.sin(turn)))[..., None]
    a, b = _color(rng), _color(rng)
    return a + (b - a) * (wave * 0.5 + 0.5 if rng.integers(2) else wave > 0)


def gradient(width, height, rng):
    x, y = _grid(width, height)
    a = _color(rng)
    b = _color(rng, a)
    return a + (b - a) * (x if rng.integers(2) else y)[..., None]


def blank(width, height, rng):
    return _ground(width, height, rng)[0]


def text(width, height, rng):
    """Rows of words made of small upright and level bars."""
    pixels, ground = _ground(width, height, rng)
    ink, size = _color(rng, ground), rng.uniform(0.05, 0.12)
    for top in np.arange(0.06, 0.9, size * 1.9):
        left = 0.06
        while left < 0.85:
            for _ in range(int(rng.integers(2, 4))):
                x, y = left + rng.uniform(0, 0.4) * size, top + rng.uniform(0, 0.8) * size
                w, h = (0.12, 1.0) if rng.integers(2) else (0.5, 0.12)
                _block(pixels, x, y if w > h else top, w * size, h * size, ink)
            left += size * rng.choice([0.75, 0.75, 0.75, 1.4])
    return pixels


def _block(pixels, x, y, w, h, color):
    height, width = pixels.shape[:2]
    pixels[int(y * height) : max(int((y + h) * height), int(y * height) + 1),
           int(x * width) : max(int((x + w) * width), int(x * width) + 1)] = color  # fmt: skip


def window(width, height, rng):
    """A title bar, a side panel, buttons and lines of text."""
    pixels, ground = _ground(width, height, rng)
    _block(pixels, 0, 0, 1, rng.uniform(0.07, 0.13), _color(rng, ground))
    _block(pixels, 0, 0.13, rng.uniform(0.2, 0.3), 1, ground - 25)
    for _ in range(int(rng.integers(3, 7))):
        _block(pixels, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.9), rng.uniform(0.15, 0.28), 0.06, _color(rng, ground))
    for top in np.arange(0.2, 0.9, 0.09):
        _block(pixels, 0.03, top, rng.uniform(0.08, 0.16), 0.02, ground - 120)
    return pixels


def blurred(width, height, rng):
    """Spots of colour out of focus."""
    return 255 * _smooth(int(rng.integers(3, 8)), width, height, rng)


def horizon(width, height, rng):
    """A sky that fades, a line of hills and a darker ground, with grain."""
    y = _grid(width, height)[1]
    hills = rng.uniform(0.4, 0.7) + 0.06 * (_smooth(6, width, 1, rng, 1)[0, :, 0] - 0.5)[None]
    sky, land = _color(rng) * 0.5 + 120, _color(rng) * 0.5
    made = np.where((y < hills)[..., None], sky + 60 * y[..., None], land + 40 * (1 - y)[..., None])
    return made + rng.normal(0, rng.uniform(2, 9), (height, width, 1))


def lines(width, height, rng):
    """A few thin lines."""
    pixels, ground = _ground(width, height, rng)
    ink = _color(rng, ground)
    for _ in range(int(rng.integers(1, 6))):
        a, b = rng.uniform(0.05, 0.95, (2, 2))
        across = np.array([a[1] - b[1], b[0] - a[0]])
        across *= 0.006 / np.linalg.norm(across)
        _paint(pixels, [a - across, b - across, b + across, a + across], ink)
    return pixels


def _shape_alone(points, width, height, rng):
    """One polygon of pixels around the origin, of some size and place."""
    pixels, _ = _ground(width, height, rng)
    points = np.asarray(points, float) / np.abs(points).max()
    reach = rng.uniform(0.12, 0.42) * min(width, height)
    middle = [rng.uniform(reach, s - reach) for s in (width, height)]
    color = np.array(list(COLORS.values()), float)[rng.integers(8)]
    _paint(pixels, (points * reach + middle) / (width, height), color)
    return pixels


def _round(count, radius=1.0, first=0.0, last=2 * np.pi):
    t = np.linspace(first, last, count, endpoint=last - first < 6)
    return np.stack([radius * np.sin(t), -radius * np.cos(t)], 1)


def hexagon(width, height, rng):
    return _shape_alone(_round(6), width, height, rng)


def arrow(width, height, rng):
    points = np.array([(-1, -0.2), (0.2, -0.2), (0.2, -0.6), (1, 0), (0.2, 0.6), (0.2, 0.2), (-1, 0.2)])
    quarter = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), int(rng.integers(4)))
    return _shape_alone(points @ quarter, width, height, rng)


def ring(width, height, rng):
    pixels, ground = _ground(width, height, rng)
    x, y = (v * s for v, s in zip(_grid(width, height), (width, height)))
    radius = rng.uniform(0.15, 0.42) * min(width, height)
    middle = [rng.uniform(radius, s - radius) for s in (width, height)]
    away = np.hypot(x - middle[0], y - middle[1])
    thick = radius * rng.uniform(0.15, 0.4)
    share = np.clip(radius - away, 0, 1) * np.clip(away - radius + thick, 0, 1)
    return pixels + share[..., None] * (_color(rng, ground) - pixels)


# kinds that training does not have


def crescent(width, height, rng):
    outer = _round(60, 1.0, 0.6, 2 * np.pi - 0.6)
    inner = _round(60, 0.8, 0.7, 2 * np.pi - 0.7)[::-1] + (0, -0.28)
    return _shape_alone(np.concatenate([outer, inner]), width, height, rng)


def ellipse(width, height, rng):
    """Three times as long as wide."""
    points = _round(96) * ((1, 1 / 3) if rng.integers(2) else (1 / 3, 1))
    return _shape_alone(points, width, height, rng)


def foliage(width, height, rng):
    """Leaf-like noise of several scales in greens and browns."""
    total = sum(_smooth(cells, width, height, rng, 1) / (1 + i) for i, cells in enumerate((6, 14, 33, 70)))
    sharp = (total > np.median(total)) * 0.4 + total / total.max() * 0.6
    return sharp * np.array([rng.uniform(60, 160), rng.uniform(120, 220), rng.uniform(20, 90)])


def checkerboard(width, height, rng):
    x, y = _grid(width, height)
    count = int(rng.integers(3, 12))
    odd = ((x * count).astype(int) + (y * count).astype(int)) % 2
    a = _color(rng)
    return a + (_color(rng, a) - a) * odd[..., None]


def spiral(width, height, rng):
    pixels, ground = _ground(width, height, rng)
    x, y = (2 * v - 1 for v in _grid(width, height))
    arms = (np.hypot(x, y) * rng.uniform(2.5, 5) + np.arctan2(y, x) / (2 * np.pi)) % 1
    share = ((arms < 0.35) & (np.hypot(x, y) < 0.9))[..., None]
    return pixels + share * (_color(rng, ground) - pixels)


def bars(width, height, rng):
    """A chart of upright bars."""
    pixels, ground = _ground(width, height, rng)
    count, ink = int(rng.integers(5, 11)), _color(rng, ground)
    for i in range(count):
        top = rng.uniform(0.15, 0.8)
        _block(pixels, 0.08 + 0.84 * i / count, top, 0.5 / count, 0.9 - top, ink)
    return pixels


KNOWN_KINDS = {
    "noise": noise, "texture": texture, "gradient": gradient, "blank": blank, "text": text, "window": window,
    "blurred": blurred, "horizon": horizon, "lines": lines, "hexagon": hexagon, "arrow": arrow, "ring": ring, "many": many,
}  # fmt: skip
KEPT_OUT_KINDS = {
    "crescent": crescent, "ellipse": ellipse, "foliage": foliage, "checkerboard": checkerboard, "spiral": spiral, "bars": bars,
}  # fmt: skip
