"""A second drawing of the demo world: scenes, pictures and questions to examine a trained model with.

Written from the description of the demo world alone and sharing no line with the program that drew
the training pictures, so that a score on these pictures does not lean on one renderer's habits.
Where the description leaves room, this file varies what it draws: how pointed a star and how thick a
cross is, and both readings of "radius" (`by_box`).

What flows: a numpy Generator -> `random_scene` -> `picture` (a PIL image that has been through PNG
or JPEG) and `questions` (every question that the scene allows, with all its right answers). Films
likewise: `random_clip` gives the scenes of its frames, `clip_questions` what can be asked of them.

Lengths are fractions of the picture's side, x to the right and y down, until `draw` makes pixels.

Test: ``pytest tests/test_second_world.py``
"""

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLORS = {
    "red": (215, 35, 35),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (238, 214, 40),
    "orange": (242, 138, 28),
    "purple": (125, 45, 165),
    "pink": (245, 140, 190),
    "black": (25, 25, 28),
}
RADII = {"small": (0.08, 0.11), "large": (0.15, 0.19)}
PAIRS = frozenset((color, shape) for color in COLORS for shape in SHAPES)
KEPT_OUT = frozenset(
    [
        ("red", "star"),
        ("green", "triangle"),
        ("blue", "heart"),
        ("yellow", "circle"),
        ("purple", "square"),
        ("black", "cross"),
    ]
)
KINDS = (
    "color",
    "shape",
    "count objects",
    "count shapes",
    "count colors",
    "exists",
    "size",
    "left or right",
    "above or below",
    "where",
    "describe",
)
APART = 0.09  # least distance between centres, across; and down, where a question turns on it
GAP = 0.01  # least distance between two outlines, and from an outline to the border
DIRECTIONS = np.stack([np.cos(np.arange(36) * np.pi / 36), np.sin(np.arange(36) * np.pi / 36)])  # [2, 36]


@dataclass(frozen=True)
class Thing:
    """One filled object."""

    color: str
    shape: str
    size: str  # "small" or "large"
    radius: float
    x: float
    y: float
    turn: float  # degrees
    form: float  # 0 to 1: how pointed a star, how thick a cross, how tall a heart
    rgb: tuple

    @property
    def pair(self):
        return self.color, self.shape

    @property
    def name(self):
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """All that a picture is drawn from, so that the same scene always gives the same picture."""

    things: tuple  # of Thing
    side: int  # pixels
    background: tuple
    sigma: float  # of the noise, in 255ths
    quality: int | None  # of the JPEG; None is a PNG
    by_box: bool  # see `outline`
    noise_seed: int


@dataclass(frozen=True)
class Question:
    """A question, all the answers that count as right (the plainest first), and whom it is about."""

    kind: str
    text: str
    answers: tuple
    about: frozenset  # of (color, shape): the objects in the picture that decide the answer


# Drawing


def _corners(count, first, radius=1.0):
    """`count` points on a circle, the first one `first` degrees from straight up."""
    angles = np.deg2rad(first + np.arange(count) * 360 / count)
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _unit_outline(shape, form):
    """The outline of a shape that is not turned, of no particular size."""
    if shape == "circle":
        return _corners(256, 0)
    if shape == "square":
        return _corners(4, 45)
    if shape == "triangle":
        return _corners(3, 0)
    if shape == "star":
        inner = 0.38 + 0.1 * form
        return np.stack([_corners(5, 0), _corners(5, 36, inner)], axis=1).reshape(10, 2)
    if shape == "cross":
        t = 0.28 + 0.12 * form  # half the thickness of an arm whose half length is 1
        arm = np.array([[-t, -1], [t, -1], [t, -t]])
        quarter_turns = [np.linalg.matrix_power([[0, -1], [1, 0]], k) for k in range(4)]
        return np.concatenate([arm @ turn.T for turn in quarter_turns])
    s = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    across = 16 * np.sin(s) ** 3
    up = 13 * np.cos(s) - 5 * np.cos(2 * s) - 2 * np.cos(3 * s) - np.cos(4 * s)
    heart = np.stack([across, -up * (0.95 + 0.15 * form)], axis=1)
    return heart - (heart.min(0) + heart.max(0)) / 2


def outline(thing, by_box):
    """[n, 2] points around an object, in fractions of the side.

    The radius of what is not round can be read in two ways: the farthest point from the middle (a
    triangle's middle is that of the circle through its corners), or half the longer side of the box
    that just holds the upright shape, whose middle is then the object's centre.
    """
    points = _unit_outline(thing.shape, thing.form)
    if by_box:
        points = points - (points.min(0) + points.max(0)) / 2
        points = points / np.abs(points).max()
    else:
        points = points / np.linalg.norm(points, axis=1).max()
    c, s = np.cos(np.deg2rad(thing.turn)), np.sin(np.deg2rad(thing.turn))
    return thing.radius * points @ np.array([[c, s], [-s, c]]) + (thing.x, thing.y)


def draw(scene):
    """The scene as an RGB image, before it is written to a file."""
    image = Image.new("RGB", (scene.side, scene.side), scene.background)
    fine = 4 if scene.side > 512 else 8  # anti-aliasing: this many lines to a pixel
    for thing in scene.things:
        points = outline(thing, scene.by_box) * scene.side
        low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
        mask = Image.new("L", tuple((high - low) * fine))
        # ImageDraw counts from the middle of a pixel
        ImageDraw.Draw(mask).polygon([tuple(p) for p in (points - low) * fine - 0.5], fill=255)
        image.paste(thing.rgb, tuple(low), mask.reduce(fine))
    if scene.sigma:
        noise = np.random.default_rng(scene.noise_seed).standard_normal((scene.side, scene.side, 3), dtype=np.float32)
        pixels = np.asarray(image) + scene.sigma * noise
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return image


def encode(scene):
    """The bytes of the picture's file."""
    file = io.BytesIO()
    if scene.quality is None:
        draw(scene).save(file, "PNG", compress_level=1)
    else:
        draw(scene).save(file, "JPEG", quality=scene.quality)
    return file.getvalue()


def picture(scene):
    """The picture as one gets it by opening its file: a PIL image."""
    image = Image.open(io.BytesIO(encode(scene)))
    image.load()
    return image


# Scenes


def _random_thing(rng, pair, by_box):
    """An object of this colour and shape anywhere inside the picture."""
    color, shape = pair
    size = str(rng.choice(list(RADII)))
    rgb = tuple(int(np.clip(c + rng.integers(-16, 17), 0, 255)) for c in COLORS[color])
    radius, turn, form = rng.uniform(*RADII[size]), rng.uniform(-10, 10), rng.uniform()
    thing = Thing(color, shape, size, radius, 0.0, 0.0, turn, form, rgb)
    points = outline(thing, by_box)
    x, y = rng.uniform(GAP - points.min(0), 1 - GAP - points.max(0))
    return replace(thing, x=float(x), y=float(y))


def _fit(a, b, by_box):
    """Whether two objects may stand in one picture: a straight line runs between them, GAP wide."""
    if abs(a.x - b.x) < APART:
        return False
    one, two = outline(a, by_box) @ DIRECTIONS, outline(b, by_box) @ DIRECTIONS  # [n, 36]
    return max((one.min(0) - two.max(0)).max(), (two.min(0) - one.max(0)).max()) >= GAP


def _random_pairs(rng, count, held_out):
    """Different (color, shape) pairs; every other one shares its colour or shape with an earlier one."""
    allowed = sorted(PAIRS if held_out else PAIRS - KEPT_OUT)
    pairs = [tuple(rng.choice(sorted(KEPT_OUT) if held_out else allowed).tolist())]
    while len(pairs) < count:
        likeness = rng.integers(4)  # 0: the same colour, 1: the same shape, else: any
        like = pairs[rng.integers(len(pairs))]
        fitting = [p for p in allowed if p not in pairs and (likeness > 1 or p[likeness] == like[likeness])]
        pairs.append(fitting[rng.integers(len(fitting))])
    return pairs


def random_scene(rng, held_out=False):
    """One to three objects on a pale ground, by the rules of the demo world.

    With `held_out` at least one of them is of a kept-out pair, otherwise none is.
    """
    by_box = bool(rng.integers(2))
    pairs = _random_pairs(rng, rng.integers(1, 4), held_out)
    things = []
    for attempt in range(10_000):
        if len(things) == len(pairs):
            break
        if attempt % 50 == 49:
            things = []  # no room left: begin anew
        new = _random_thing(rng, pairs[len(things)], by_box)
        if all(_fit(new, old, by_box) for old in things):
            things.append(new)
    else:
        raise RuntimeError(f"found no room for {pairs}")
    return Scene(
        things=tuple(things),
        side=int(np.rint(64 * 32 ** rng.uniform())),  # 64 to 2048, as many below 362 as above
        background=tuple(rng.integers(215, 256, 3).tolist()),
        sigma=float(rng.choice([0.0, rng.uniform(0, 6)])),
        quality=None if rng.integers(2) else int(rng.integers(60, 101)),
        by_box=by_box,
        noise_seed=int(rng.integers(2**32)),
    )


WAYS = {"Left.": (-1, 0), "Right.": (1, 0), "Up.": (0, -1), "Down.": (0, 1), "It stays still.": (0, 0)}


def random_clip(rng, held_out=False):
    """Four to eight scenes of one or two objects, one of which moves steadily, or none; and which way, as in WAYS."""
    way, steps = list(WAYS)[rng.integers(5)], int(rng.integers(3, 8))
    while True:
        scene = random_scene(rng, held_out)
        if len(scene.things) > 2:
            continue
        mover, *others = scene.things
        across, down = (rng.uniform(0.2, 0.5) * c for c in WAYS[way])
        places = [(mover.x + across * i / steps, mover.y + down * i / steps) for i in range(steps + 1)]
        frames = [replace(scene, things=(replace(mover, x=x, y=y), *others)) for x, y in places]
        if all(_inside(f.things[0], f.by_box) and all(_fit(f.things[0], o, f.by_box) for o in others) for f in frames):
            return [replace(f, side=min(f.side, 320), noise_seed=f.noise_seed + i) for i, f in enumerate(frames)], way


def _inside(thing, by_box):
    points = outline(thing, by_box)
    return points.min() >= GAP and points.max() <= 1 - GAP


# Questions


def clip_questions(frames, way):
    """Every question about a clip whose first object moves that way."""
    still = "It stays still."
    found = []
    for i, t in enumerate(frames[0].things):
        moves = way if i == 0 else still
        found.append(Question("which way", f"Which way does the {t.name} move?", (moves,), frozenset([t.pair])))
        if moves != still:
            found.append(Question("what moves", "What is moving?", (f"The {t.name}.",), frozenset([t.pair])))
    return found


def _a(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def _sentence(words):
    return words[0].upper() + words[1:] + "."


def _plural(shape):
    return shape + ("es" if shape.endswith("s") else "s")


def _thirds(value, words):
    """The words for a coordinate, the true one first, and its neighbour within 3 % of a border."""
    low, middle, high = words
    true = low if value < 0.4 else high if value > 0.6 else middle
    near = [w for w, border in ((low, 0.4), (high, 0.6)) if abs(value - border) <= 0.03]
    return [true, *({middle, *near} - {true} if near else ())]


def places(x, y):
    """Every answer that is right for an object whose centre is there, the plainest first."""
    found = []
    for vertical in _thirds(y, ("top", "", "bottom")):
        for horizontal in _thirds(x, ("left", "", "right")):
            words = " ".join(filter(None, [vertical, horizontal]))
            found.append(f"At the {words}." if words else "In the middle.")
    return tuple(found)


def description(scene):
    """What the answer to "Describe the image." is."""
    named = [_a(f"{t.size} {t.name}") for t in sorted(scene.things, key=lambda t: t.x)]
    if len(named) == 1:
        return _sentence(named[0])
    if len(named) == 2:
        return _sentence(f"{named[0]} is left of {named[1]}")
    return _sentence(f"from left to right: {named[0]}, {named[1]} and {named[2]}")


def questions(scene):
    """Every question that this scene allows, in a fixed order."""
    things, found = scene.things, []
    pairs = {t.pair for t in things}

    def add(kind, text, answers, about):
        found.append(Question(kind, text, answers if isinstance(answers, tuple) else (answers,), frozenset(about)))

    def add_count(kind, what, counted):
        number = ("Zero.", "One.", "Two.", "Three.")[len(counted)]
        add(kind, f"How many {what} are there?", number, [t.pair for t in counted])

    add_count("count objects", "objects", things)
    for shape in SHAPES:
        same = [t for t in things if t.shape == shape]
        add_count("count shapes", _plural(shape), same)
        if len(same) == 1:
            add("color", f"What color is the {shape}?", _sentence(same[0].color), [same[0].pair])
    for color in COLORS:
        same = [t for t in things if t.color == color]
        add_count("count colors", f"{color} objects", same)
        if len(same) == 1:
            add("shape", f"What shape is the {color} object?", _sentence(_a(same[0].shape)), [same[0].pair])
    for color, shape in sorted(PAIRS):
        there = (color, shape) in pairs
        about = [(color, shape)] if there else [p for p in pairs if p[0] == color or p[1] == shape]
        add("exists", f"Is there {_a(f'{color} {shape}')}?", "Yes." if there else "No.", about)
    for t in things:
        add("size", f"How big is the {t.name}?", _sentence(t.size), [t.pair])
        add("where", f"Where is the {t.name}?", places(t.x, t.y), [t.pair])
        for other in things:
            if other == t:
                continue
            both = [t.pair, other.pair]
            side = "left" if t.x < other.x else "right"
            asked = f"Is the {t.name} left or right of the {other.name}?"
            add("left or right", asked, f"The {t.name} is {side} of the {other.name}.", both)
            if abs(t.y - other.y) >= APART:
                side = "above" if t.y < other.y else "below"
                asked = f"Is the {t.name} above or below the {other.name}?"
                add("above or below", asked, f"The {t.name} is {side} the {other.name}.", both)
    add("describe", "Describe the image.", description(scene), pairs)
    return found


def mixed(found, rng):
    """The questions in random order, in which each next one is as likely to have any answer as any other."""
    by_answer = {}
    for i in rng.permutation(len(found)):
        by_answer.setdefault(found[i].answers[0], []).append(found[i])
    order = []
    while by_answer:
        answer = list(by_answer)[rng.integers(len(by_answer))]
        order.append(by_answer[answer].pop())
        if not by_answer[answer]:
            del by_answer[answer]
    return order
