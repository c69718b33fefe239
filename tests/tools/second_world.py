"""A second drawing of the demo world: scenes and pictures to examine a trained model with.

Written from the description of the demo world alone and sharing no line with the program that drew the training
pictures, so that a score on these pictures does not lean on one renderer's habits. Shapes are signed distances in pixels
here, not filled polygons. Where the description leaves room, this file varies what it draws: how pointed a star and how
thick a cross is, and whether a size is that of the box around the object before or after its turn (`box_after_turn`).

What flows: a numpy Generator and a `Style` -> `random_scene` -> `picture` (a PIL image that has been through PNG or
JPEG). Films likewise: `random_clip` gives the scenes of its frames. Questions are in `second_questions.py`, pictures
outside the world in `second_outside.py`.

x is a fraction of the width, y of the height, a radius of the shorter side, until `draw` makes pixels.

Test: ``pytest tests/tools/test_second_world.py``
"""

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

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
PURE = {
    "red": [(255, 0, 0)],
    "green": [(0, 128, 0), (0, 200, 0)],
    "blue": [(0, 0, 255)],
    "yellow": [(255, 255, 0)],
    "orange": [(255, 165, 0)],
    "purple": [(128, 0, 128)],
    "pink": [(255, 192, 203)],
    "black": [(0, 0, 0)],
}
RADII = {"small": (0.08, 0.11), "large": (0.15, 0.20), "huge": (0.26, 0.45)}
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
APART = 0.09  # least distance between centres, across; and down, where a question turns on it
GAP = 0.01  # least distance between two outlines, and from an outline to the border, in shorter sides
PALE_APART, OTHER_APART = 45, 90  # least distances of backgrounds from objects in RGB
DIRECTIONS = np.stack([np.cos(np.arange(36) * np.pi / 36), np.sin(np.arange(36) * np.pi / 36)])  # [2, 36]


@dataclass(frozen=True)
class Thing:
    """One filled object."""

    color: str
    shape: str
    size: str  # "small", "large" or "huge"
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
    width: int  # pixels
    height: int
    background: tuple
    slope: tuple = (0.0, 0.0, 0.0)  # how much the background changes from side to side
    sigma: float = 0.0  # of the noise, in 255ths
    quality: int | None = None  # of the JPEG; None is a PNG
    box_after_turn: bool = True  # see `outline`
    noise_seed: int = 0

    @property
    def extent(self):
        """Width and height in shorter sides."""
        return np.array([self.width, self.height]) / min(self.width, self.height)


@dataclass(frozen=True)
class Style:
    """What kind of picture is wanted."""

    held_out: bool = False  # at least one object of a kept-out pair, otherwise none
    counts: tuple = (1, 2, 3)
    huge: int = 0  # so many of the objects are huge, the others are not
    format: bool = False  # from 2:3 to 3:2, else square
    ground: str = "pale"  # or "other", or "gradient"
    pure: bool = False  # colours


# Outlines


def _corners(count, first, radius=1.0):
    """`count` points on a circle, the first one `first` degrees from straight up."""
    angles = np.deg2rad(first + np.arange(count) * 360 / count)
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _unit_outline(shape, form):
    """The outline of a shape that is not turned, of no particular size."""
    if shape == "circle":
        return _corners(128, 0)
    if shape == "square":
        return _corners(4, 45)
    if shape == "triangle":
        return _corners(3, 0)
    if shape == "star":
        return np.stack([_corners(5, 0), _corners(5, 36, 0.38 + 0.1 * form)], axis=1).reshape(10, 2)
    if shape == "cross":
        t = 0.26 + 0.14 * form  # half the thickness of an arm whose half length is 1
        arm = np.array([[-t, -1], [t, -1], [t, -t]])
        quarter_turns = [np.linalg.matrix_power([[0, -1], [1, 0]], k) for k in range(4)]
        return np.concatenate([arm @ turn.T for turn in quarter_turns])
    s = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    across = 16 * np.sin(s) ** 3
    up = 13 * np.cos(s) - 5 * np.cos(2 * s) - 2 * np.cos(3 * s) - np.cos(4 * s)
    return np.stack([across, -up * (0.95 + 0.15 * form)], axis=1)


def _boxed(points):
    """The points with their bounding box around the origin, half its longer side 1."""
    points = points - (points.min(0) + points.max(0)) / 2
    return points / np.abs(points).max()


def outline(thing, scene):
    """[n, 2] points around an object, in shorter sides.

    The box whose longer side is twice the radius is upright: around the object as it stands, or as it stood before it
    was turned.
    """
    c, s = np.cos(np.deg2rad(thing.turn)), np.sin(np.deg2rad(thing.turn))
    points = _boxed(_unit_outline(thing.shape, thing.form)) @ np.array([[c, s], [-s, c]])
    if scene.box_after_turn:
        points = _boxed(points)
    return thing.radius * points + scene.extent * (thing.x, thing.y)


# Drawing


def _coverage(points, width, height):
    """How much of each pixel [height, width] a polygon in pixels covers: its signed distance to the edges, cut to 0..1."""
    x, y = np.arange(width, dtype=np.float32)[None] + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    nearest = np.full((height, width), np.inf, np.float32)
    inside = np.zeros((height, width), bool)
    for (ax, ay), (bx, by) in zip(points.astype(np.float32), np.roll(points, -1, 0).astype(np.float32)):
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
        np.minimum(nearest, (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2, out=nearest)
        if ay != by:
            crosses = (y < ay) != (y < by)
            inside ^= crosses & (x < ax + (y - ay) * (dx / dy))
    return np.clip(np.where(inside, 0.5, -0.5) * 2 * np.sqrt(nearest) + 0.5, 0, 1)


def draw(scene):
    """The scene as an RGB image, before it is written to a file."""
    across = np.linspace(-0.5, 0.5, scene.width, dtype=np.float32)[None, :, None]
    pixels = np.array(scene.background, np.float32) + across * np.array(scene.slope, np.float32)
    pixels = np.broadcast_to(pixels, (scene.height, scene.width, 3)).copy()
    for thing in scene.things:
        points = outline(thing, scene) * min(scene.width, scene.height)
        (left, top), (right, bottom) = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 1
        left, top = max(left, 0), max(top, 0)
        part = pixels[top:bottom, left:right]
        share = _coverage(points - (left, top), part.shape[1], part.shape[0])[..., None]
        part += share * (np.array(thing.rgb, np.float32) - part)
    if scene.sigma:
        pixels += scene.sigma * np.random.default_rng(scene.noise_seed).standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


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


def _random_rgb(rng, color, pure):
    if pure:
        return PURE[color][rng.integers(len(PURE[color]))]
    return tuple(int(np.clip(c + rng.integers(-16, 17), 0, 255)) for c in COLORS[color])


def _random_thing(rng, pair, size, scene, pure):
    """An object of this colour and shape anywhere inside the picture, or None where it is too large for it."""
    color, shape = pair
    rgb, radius = _random_rgb(rng, color, pure), rng.uniform(*RADII[size])
    thing = Thing(color, shape, size, radius, 0.0, 0.0, rng.uniform(-10, 10), rng.uniform(), rgb)
    points = outline(thing, scene)
    low, high = GAP - points.min(0), scene.extent - GAP - points.max(0)
    if (low > high).any():
        return None
    x, y = rng.uniform(low, high) / scene.extent
    return replace(thing, x=float(x), y=float(y))


def _fit(a, b, scene):
    """Whether two objects may stand in one picture: a straight line runs between them, GAP wide."""
    if abs(a.x - b.x) < APART:
        return False
    one, two = outline(a, scene) @ DIRECTIONS, outline(b, scene) @ DIRECTIONS  # [n, 36]
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


def _random_size(rng, style):
    """Width and height: the longer side 64 to 2048, as often below 362 as above."""
    longer, shape = 64 * 32 ** rng.uniform(), (2 / 3) ** rng.uniform(-1, 1) if style.format else 1.0
    return [int(np.rint(longer * min(1, s))) for s in (shape, 1 / shape)]


def random_background(rng, style, colors):
    """A colour and its slope, far enough from all these colours at both ends."""
    least = OTHER_APART if style.ground == "other" else PALE_APART
    while True:
        ground = rng.integers(0 if style.ground == "other" else 215, 256, 3)
        if style.ground == "other" and (ground >= 215).all():
            continue
        slope = np.full(3, rng.uniform(-25, 25)) if style.ground == "gradient" else np.zeros(3)
        ends = [np.clip(ground + half * slope, 0, 255) for half in (-0.5, 0.5)]
        if all(np.linalg.norm(end - rgb) >= least for end in ends for rgb in colors):
            return tuple(ground.tolist()), tuple(slope.tolist())


ORDINARY = Style()


def random_scene(rng, style=ORDINARY):
    """One to three objects, by the rules of the demo world."""
    while True:
        pairs = _random_pairs(rng, int(rng.choice(style.counts)), style.held_out)
        sizes = ["huge"] * style.huge + [str(rng.choice(["small", "large"])) for _ in pairs[style.huge :]]
        width, height = _random_size(rng, style)
        scene = Scene((), width, height, (0, 0, 0), box_after_turn=bool(rng.integers(2)))
        things = []
        for _ in range(60):
            new = _random_thing(rng, pairs[len(things)], sizes[len(things)], scene, style.pure)
            if new and all(_fit(new, old, scene) for old in things):
                things.append(new)
            if len(things) == len(pairs):
                break
        else:
            continue  # no room: begin anew
        background, slope = random_background(rng, style, [t.rgb for t in things])
        return replace(
            scene,
            things=tuple(things[i] for i in rng.permutation(len(things))),
            background=background,
            slope=slope,
            sigma=float(rng.choice([0.0, rng.uniform(0, 6)])),
            quality=None if rng.integers(2) else int(rng.integers(60, 101)),
            noise_seed=int(rng.integers(2**32)),
        )


WAYS = {"Left.": (-1, 0), "Right.": (1, 0), "Up.": (0, -1), "Down.": (0, 1), "It stays still.": (0, 0)}


def random_clip(rng, held_out=False):
    """Four to eight scenes of one or two objects, one of which moves steadily, or none; and which way, as in WAYS."""
    way, steps = list(WAYS)[rng.integers(5)], int(rng.integers(3, 8))
    while True:
        scene = random_scene(rng, Style(held_out, counts=(1, 2)))
        mover, *others = scene.things
        across, down = (rng.uniform(0.2, 0.5) * c for c in WAYS[way])
        places = [(mover.x + across * i / steps, mover.y + down * i / steps) for i in range(steps + 1)]
        frames = [replace(scene, things=(replace(mover, x=x, y=y), *others)) for x, y in places]
        if all(_inside(f.things[0], f) and all(_fit(f.things[0], o, f) for o in others) for f in frames):
            side = min(scene.width, 320)
            return [replace(f, width=side, height=side, noise_seed=f.noise_seed + i) for i, f in enumerate(frames)], way


def _inside(thing, scene):
    points = outline(thing, scene)
    return points.min() >= GAP and (points <= scene.extent - GAP).all()
