"""Scenes of the demo world: what a picture or a film of the teacher shows, before it is drawn.

    sample_scene   one to three objects            odd_colours, odd_shapes   objects without a name
    sample_many    more than three                 renamed                   words that mean something made up
    sample_clip    the scenes of a film's frames

Units: x is a fraction of the picture's width, y of its height, radius of its shorter side; angles in degrees.
Test: ``pytest tests/tools/test_demo_world.py``
"""

import math
from dataclasses import dataclass, replace

from tools.demo.shapes import SHAPES, extent, fits, unit_outline

COLOURS = {"red": (215, 35, 35), "green": (40, 160, 60), "blue": (40, 80, 215), "yellow": (238, 214, 40),
           "orange": (242, 138, 28), "purple": (125, 45, 165), "pink": (245, 140, 190), "black": (25, 25, 28)}  # fmt: skip
PURE = {"red": ((255, 0, 0),), "green": ((0, 128, 0), (0, 200, 0)), "blue": ((0, 0, 255),), "yellow": ((255, 255, 0),),
        "orange": ((255, 165, 0),), "purple": ((128, 0, 128),), "pink": ((255, 192, 203),), "black": ((0, 0, 0),)}  # fmt: skip
SIZES = {"small": (0.08, 0.11), "large": (0.15, 0.20), "huge": (0.26, 0.45)}  # radius
BORDERS = (0.135, 0.238)  # between the words, in the gaps where either will do
HELD_OUT = {("red", "star"), ("green", "triangle"), ("blue", "heart"),
            ("yellow", "circle"), ("purple", "square"), ("black", "cross")}  # never in training  # fmt: skip
PAIRS = [(color, shape) for color in COLOURS for shape in SHAPES]
MADE_UP = 24  # so many colours, and so many shapes, have a made-up name
CLEAR = 0.09  # the least distance of two centres before a question turns on it
PALE, OTHER = 45, 90  # the least distance in RGB of a pale, and of any other, background from every object


@dataclass(frozen=True)
class Thing:
    """One filled object. ``form`` picks one of many outlines of its shape; ``named`` is whether its colour has a name."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    form: int = 0
    rgb: tuple = (0, 0, 0)
    named: bool = True

    @property
    def name(self):
        return f"{self.color} {self.shape}"

    @property
    def size(self):
        """The word for its size; between the words the nearer one."""
        return tuple(SIZES)[(self.radius >= BORDERS[0]) + (self.radius >= BORDERS[1])]

    @property
    def between_words(self):
        """Whether two size words are right."""
        return not any(low <= self.radius <= high for low, high in SIZES.values())


@dataclass(frozen=True)
class Scene:
    """Objects on a background. ``names`` says which words mean something made up; ``outside`` is "none", "many" or ""."""

    things: tuple
    background: tuple = (255, 255, 255)
    aspect: float = 1.0  # width / height
    names: tuple = ()  # (word, number of what it means)
    outside: str = ""


def sample_scene(rng, held_out=False, count=None, largest=0.45):
    """One to three objects; with a held-out pair among them, or without any."""
    while True:
        number = count or rng.choices((1, 2, 3), (24, 36, 40))[0]
        pairs, aspect = _sample_pairs(rng, number, held_out), sample_aspect(rng)
        radii = [min(_sample_radius(rng, number), largest) for _ in pairs]
        for _ in range(6):
            if things := _place(pairs, radii, aspect, rng):
                return Scene(tuple(things), sample_background(rng, [t.rgb for t in things]), aspect)


def _sample_pairs(rng, count, held_out):
    """Distinct (color, shape) pairs, a good part of them sharing a color or a shape."""
    allowed = PAIRS if held_out else [pair for pair in PAIRS if pair not in HELD_OUT]
    pairs = [rng.choice(sorted(HELD_OUT) if held_out else allowed)]
    shared = rng.choices((None, 0, 1), (74, 13, 13))[0]  # all of one color (0), all of one shape (1)
    while len(pairs) < count:
        pair = rng.choice(allowed)
        if pair not in pairs and (shared is None or pair[shared] == pairs[0][shared]):
            pairs.append(pair)
    return rng.sample(pairs, count)


def _sample_radius(rng, count):
    """Alone an object is often huge; beside others it takes what room there is."""
    weights = (22, 20, 46, 12) if count == 1 else (34, 32, 22, 12)
    kind = rng.choices((*SIZES, "gap"), weights)[0]
    if kind == "huge":
        return rng.uniform(0.26, 0.45 if count == 1 else 0.4)
    return rng.uniform(*(SIZES[kind] if kind in SIZES else rng.choice(((0.11, 0.15), (0.20, 0.26)))))


def sample_aspect(rng):
    """Width / height: square in two of five pictures, else between 2:3 and 3:2."""
    chance = rng.random()
    if chance < 0.4:
        return 1.0
    if chance < 0.6:
        return rng.choice((2 / 3, 3 / 4, 4 / 3, 3 / 2))
    return math.exp(rng.uniform(math.log(2 / 3), math.log(3 / 2)))


def sample_rgb(color, rng):
    """One of the pixel values that have this name."""
    base = rng.choice(PURE[color]) if rng.random() < 0.25 else COLOURS[color]
    spread = 0 if base != COLOURS[color] and rng.random() < 0.5 else 16
    return tuple(min(255, max(0, c + rng.randint(-spread, spread))) for c in base)


def sample_background(rng, colours):
    """Mostly pale, else any colour that is far from every object."""
    while True:
        pale, chance = rng.random() < 0.72, rng.random()
        if pale and chance < 0.3:
            found = (rng.choice((255, 255, rng.randint(215, 255))),) * 3
        elif pale:
            found = tuple(rng.randint(215, 255) for _ in "rgb")
        elif chance < 0.35:
            found = (rng.choice((0, rng.randint(0, 255))),) * 3
        else:
            found = tuple(rng.randint(0, 255) for _ in "rgb")
        if all(math.dist(found, other) >= (PALE if pale else OTHER) for other in colours):
            return found


def _place(pairs, radii, aspect, rng):
    """Objects of these radii that fit, the largest placed first, or None."""
    size, things = extent(aspect), []
    for index in sorted(range(len(pairs)), key=lambda i: -radii[i]):
        color, shape = pairs[index]
        form, angle = rng.getrandbits(24), round(rng.uniform(-10, 10), 1)
        reach = (radii[index] * abs(unit_outline(shape, form, angle)).max(0) + 0.006) / size
        if (reach > 0.5).any():
            return None
        for _ in range(12):
            x, y = (rng.uniform(r, 1 - r) for r in reach.tolist())
            if any(abs(x - t.x) < CLEAR for t in things):
                continue
            if any(abs(y - t.y) < CLEAR for t in things) and rng.random() < 0.4:
                continue
            new = Thing(color, shape, x, y, radii[index], angle, form, sample_rgb(color, rng))
            if fits((*things, new), aspect):
                things.append(new)
                break
        else:
            return None
    return rng.sample(things, len(things))


def sample_many(rng):
    """More than three objects, of any sizes that fit; some may look alike."""
    allowed = [pair for pair in PAIRS if pair not in HELD_OUT]
    while True:
        aspect, things = sample_aspect(rng), []
        size, count = extent(aspect), rng.choices(range(4, 11), (30, 20, 15, 10, 10, 8, 7))[0]
        pool = [rng.choice(allowed) for _ in range(rng.randint(1, 6))] if rng.random() < 0.4 else allowed
        top = rng.uniform(0.08, min(0.3, 0.9 / count**0.5 - 0.12))
        for _ in range(40 * count):
            radius, (color, shape) = rng.uniform(0.06, top), rng.choice(pool)
            x, y = (rng.uniform(radius / s, 1 - radius / s) for s in size.tolist())
            new = Thing(color, shape, x, y, radius, rng.uniform(-10, 10), rng.getrandbits(24), sample_rgb(color, rng))
            if fits((*things, new), aspect):
                things.append(new)
            if len(things) == count:
                return Scene(tuple(things), sample_background(rng, [t.rgb for t in things]), aspect, outside="many")


OUTSIDE = Scene((), outside="none")  # any picture without the world's shapes


def odd_colours(scene, rng):
    """The scene in colours that have no name, none near a kept-out one: shapes are learned apart from colours."""

    def tint(shape):
        avoided = [COLOURS[c] for c, s in HELD_OUT if s == shape]
        while True:
            drawn = tuple(rng.randrange(256) for _ in range(3))
            if math.dist(drawn, scene.background) > 75 and all(math.dist(drawn, other) > 60 for other in avoided):
                return drawn

    return replace(scene, things=tuple(replace(t, rgb=tint(t.shape), named=False) for t in scene.things))


def odd_shapes(scene):
    """The scene with blobs in the place of its shapes, None where they touch: colours are learned apart from shapes."""
    things = tuple(replace(t, shape="blob") for t in scene.things)
    return replace(scene, things=things) if fits(things, scene.aspect) else None


def renamed(frames, rng):
    """The frames with half of the words for made-up colours and shapes, and no kept-out pair called by its name.

    Among so many pairs the decoder cannot learn each by heart. The scenes can be asked about and coded, not drawn.
    """
    words = {word for word in (*COLOURS, *SHAPES) if rng.random() < 0.5}
    pairs = [(thing.color, thing.shape) for thing in frames[0].things]
    words |= {rng.choice(pair) for pair in pairs if pair in HELD_OUT and not words & set(pair)}
    words = sorted(words - {"orange"})  # the one with another article
    names = tuple(zip(words, rng.sample(range(MADE_UP), len(words))))
    return [replace(frame, names=names) for frame in frames]


def barred(scene):
    """The pairs that no question about the scene may name: those of which neither word has been renamed."""
    return [pair for pair in sorted(HELD_OUT) if not set(pair) & dict(scene.names).keys()]


def sample_clip(rng, held_out=False):
    """A clip: 4 to 8 scenes of one or two objects, and left, right, up, down (one moves steadily) or still."""
    kind, steps = rng.choice(("left", "right", "up", "down", "still")), rng.randint(3, 7)
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[kind]
    count = rng.choice((1, 2))
    while True:
        scene = sample_scene(rng, held_out, count, largest=rng.uniform(0.09, 0.3))
        way = rng.uniform(0.2, 0.5) / steps
        mover, others = scene.things[0], scene.things[1:]
        frames = [replace(scene, things=(replace(mover, x=mover.x + dx * way * i, y=mover.y + dy * way * i), *others))
                  for i in range(steps + 1)]  # fmt: skip
        if all(fits(frame.things, frame.aspect) for frame in reversed(frames)):  # it leaves the picture last, if at all
            return frames, kind
