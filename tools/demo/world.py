"""The demo world: scenes of one to three shapes, the teacher that draws them, and every question about them.

A ``Scene`` is the truth; ``draw`` and ``picture`` turn it into pixels in ever-changing styles, so that a
student learns the shapes and not this renderer; ``questions`` says what can be asked of it and what is right.

Units: positions and radii are fractions of the picture's side, x to the right and y down; angles in degrees.
A contact sheet: ``python tools/demo_world.py sheet.png``. Test: ``pytest tests/test_demo_world.py``
"""

import functools
import io
import itertools
import math
import random
import sys
import textwrap
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = {"red": (215, 35, 35), "green": (40, 160, 60), "blue": (40, 80, 215), "yellow": (238, 214, 40),
           "orange": (242, 138, 28), "purple": (125, 45, 165), "pink": (245, 140, 190), "black": (25, 25, 28)}
SIZES = {"small": (0.08, 0.11), "large": (0.15, 0.19)}  # radius
HELD_OUT = {("red", "star"), ("green", "triangle"), ("blue", "heart"),
            ("yellow", "circle"), ("purple", "square"), ("black", "cross")}  # never in training
PAIRS = [(color, shape) for color in COLOURS for shape in SHAPES]
NUMBERS = ("Zero.", "One.", "Two.", "Three.")
MADE_UP = 24  # so many colours, and shapes, that nobody has seen
DIRECTIONS = np.stack([f(np.arange(36) * math.pi / 36) for f in (np.cos, np.sin)])  # [2, 36]
CLEAR = 0.09  # two centres differ by this much before a question turns on it
NO_PICTURE = "Please show me a picture first."
_WHO = "I am a small VITA that looks at pictures of simple shapes."
_CAN = "I can tell you the color, shape, size and place of things in a picture."
_HELLO, _WELCOME, _BYE = "Hello! Show me a picture and ask me about it.", "You are welcome.", "Goodbye!"
CHAT = [(question, answer) for answer, asked in {
    _HELLO: ("Hello!", "Hello.", "Hello there!", "Hi!", "Hi there!", "Hey!", "Good morning.", "Good evening."),
    _WELCOME: ("Thanks!", "Thank you.", "Thank you!", "Thank you very much.", "Many thanks!"),
    _WHO: ("Who are you?", "What are you?", "What is your name?", "Are you a robot?", "Tell me about yourself."),
    _CAN: ("What can you do?", "What do you do?", "Can you help me?", "Help!", "How can you help me?"),
    _BYE: ("Goodbye!", "Goodbye.", "Bye!", "Bye bye!", "See you!"),
    "I am fine, thank you.": ("How are you?", "How are you today?", "How do you do?")}.items() for question in asked]


@dataclass(frozen=True)
class Thing:
    """One filled object, about ``radius`` in reach; ``form`` picks one of many outlines of its shape."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    form: int = 0
    tint: tuple | None = None  # an RGB without a name, in the place of the colour

    @property
    def name(self):
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One to three things, in no order, on a plain pale background; some words may stand for made-up colours and shapes."""

    things: tuple
    background: tuple
    names: tuple = ()  # (word, number of what it stands for)


def sample_scene(rng, held_out=False, wanted=None):
    """One to three things that are apart; with a held-out pair among them, or without any.

    ``wanted`` may say how many there are and which size the first has.
    """
    while True:
        pairs = _sample_pairs(rng, rng.choices((1, 2, 3), (20, 40, 40))[0], held_out)
        sizes = [rng.choice(list(SIZES)) for _ in pairs]
        if wanted and (len(pairs), sizes[0]) != wanted:
            continue
        radii = [rng.uniform(*SIZES[size]) for size in sizes]
        for _ in range(20):
            if centres := _place(radii, rng):
                things = tuple(Thing(*pair, size, *centre, radius, rng.uniform(-10, 10), rng.getrandbits(32))
                               for pair, size, radius, centre in zip(pairs, sizes, radii, centres))
                if fits(things):
                    return Scene(things, _background(rng))


def _sample_pairs(rng, count, held_out):
    """Distinct (color, shape) pairs, a good part of them sharing a color or a shape."""
    allowed = PAIRS if held_out else [pair for pair in PAIRS if pair not in HELD_OUT]
    pairs = [rng.choice(sorted(HELD_OUT) if held_out else allowed)]
    shared = rng.choices((None, 0, 1), (84, 8, 8))[0]  # all of one color (0), all of one shape (1)
    while len(pairs) < count:
        pair = rng.choice(allowed)
        if pair not in pairs and (shared is None or pair[shared] == pairs[0][shared]):
            pairs.append(pair)
    return rng.sample(pairs, count)


def _place(radii, rng):
    """Centres for these radii, or None where they would not fit."""
    centres = []
    for radius in radii:
        x, y = (rng.uniform(radius + 0.01, 0.99 - radius) for _ in "xy")
        if any(abs(x - u) < CLEAR for u, _ in centres):
            return None
        if any(abs(y - v) < CLEAR for _, v in centres) and rng.random() < 0.4:
            return None
        centres.append((x, y))
    return centres


def outline(thing):
    """[n, 2] points in the picture; the same thing always has the same."""
    points = _outline(thing.shape, thing.form) @ _turn(thing.angle)
    return thing.radius * points + (thing.x, thing.y)


def gap(things):
    """The width of the straight strip that parts the two nearest things; not above 0 where none does."""
    spans = [(span.min(0), span.max(0)) for span in (outline(thing) @ DIRECTIONS for thing in things)]
    pairs = itertools.combinations(spans, 2)
    return min((max((a[0] - b[1]).max(), (b[0] - a[1]).max()) for a, b in pairs), default=1.0)


def fits(things):
    """Whether they lie wholly inside and a strip of 1 % of the side parts any two."""
    return all(((0.005 <= points) & (points <= 0.995)).all() for points in map(outline, things)) and gap(things) >= 0.01


def _background(rng):
    if rng.random() < 0.3:
        return (rng.choice((255, rng.randint(215, 255))),) * 3
    return tuple(rng.randint(215, 255) for _ in "rgb")


def odd_colours(scene, rng):
    """The scene in colours that have no name, none near a kept-out one: shapes are learned apart from colours."""
    def tint(shape):
        avoided = [COLOURS[c] for c, s in HELD_OUT if s == shape] + [scene.background]
        while True:
            drawn = tuple(rng.randrange(256) for _ in range(3))
            if all(math.dist(drawn, other) > 60 for other in avoided):
                return drawn
    return replace(scene, things=tuple(replace(t, tint=tint(t.shape)) for t in scene.things))


def odd_shapes(scene):
    """The scene with blobs in the place of its shapes, None where they touch: colours are learned apart from shapes."""
    things = tuple(replace(t, shape="blob") for t in scene.things)
    return replace(scene, things=things) if fits(things) else None


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


@functools.lru_cache(64)  # one that moves is asked for again in every frame
def _outline(shape, form):
    """One of many outlines of a shape, as points around its centre with a radius of about 1; none is lopsided."""
    rng = random.Random(form)
    if shape == "blob":
        angles = np.arange(60) * math.tau / 60
        waves = sum(rng.uniform(0, 0.22) * np.cos(k * angles + rng.uniform(0, math.tau)) for k in range(2, 7))
        return _polar((1 + waves) * rng.uniform(0.85, 1), angles)
    if shape == "circle":
        return _polar(1, np.arange(80) * math.tau / 80)
    if shape == "square":
        reach = rng.choice((1, math.sqrt(2), rng.uniform(1, math.sqrt(2))))  # to its corners, to its sides, between
        return _polar(reach, (np.arange(4) + 0.5) * math.tau / 4)
    if shape == "triangle":
        if rng.random() < 0.5:  # its corners on a circle; equilateral at 30 degrees
            base = math.radians(rng.choice((30, rng.uniform(22, 38))))
            return _polar(1, np.array([-math.pi / 2, base, math.pi - base]))
        width, height = rng.uniform(0.78, 1), rng.uniform(0.78, 1)  # in a box
        return np.array([(0, -height), (width, height), (-width, height)])
    if shape == "star":
        return _polar(np.tile([1, rng.uniform(0.36, 0.5)], 5), np.arange(10) * math.tau / 10 - math.pi / 2)
    scale = rng.uniform(0.85, 1.05)
    if shape == "cross":
        arm = rng.uniform(0.26, 0.42)
        corner = [(arm, -arm), (1, -arm), (1, arm), (arm, arm)]  # the right arm, then turned by quarters
        return scale * np.concatenate([np.array(corner) @ _turn(90 * i) for i in range(4)])
    if rng.random() < 0.5:  # heart: the well-known curve
        t = np.arange(60) * math.tau / 60
        points = np.stack([16 * np.sin(t) ** 3, 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
                           - 13 * np.cos(t)], 1)
    else:  # heart: two discs at (-c, 0) and (c, 0), and the lines from them down to a tip at (0, d)
        c, d = rng.uniform(0.7, 1), rng.uniform(1.8, 2.3)
        tangent = math.atan2(d, -c) - math.acos(1 / math.hypot(c, d))
        right = _polar(1, np.linspace(math.acos(c) - math.pi, tangent, 30)) + (c, 0)
        points = np.concatenate([right, [(0, d)], right[::-1] * (-1, 1)])
    points = points * (rng.uniform(0.82, 1), rng.uniform(0.82, 1))
    low, high = points.min(0), points.max(0)
    return scale * (points - (low + high) / 2) / (high - low).max() * 2


def _polar(radius, angles):
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)


def _turn(degrees):
    a = math.radians(degrees)
    return np.array([(math.cos(a), math.sin(a)), (-math.sin(a), math.cos(a))])


def draw(scene, side, rng):
    """The scene as an RGB image in a style drawn from ``rng``: tints and noise; anti-aliased."""
    finer = 4 if side <= 128 else 3 if side <= 220 else 2
    image = Image.new("RGB", (side * finer, side * finer), scene.background)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        points = outline(thing) * (side * finer) - 0.5  # 0.5: Pillow counts from pixel centres
        tint = thing.tint or tuple(min(255, max(0, c + rng.randint(-16, 16))) for c in COLOURS[thing.color])
        canvas.polygon(points.ravel().tolist(), fill=tint)
    image = image.reduce(finer)
    if rng.random() < 0.5:
        return image
    shape = (side, side, rng.choice((1, 3, 3)))
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(shape, dtype=np.float32) * rng.uniform(0, 6)
    return Image.fromarray((np.asarray(image) + noise + 0.5).clip(0, 255).astype(np.uint8))


def picture(scene, rng, side=112):
    """Pixels, uint8 [side, side, 3]: drawn at some size, sometimes through JPEG, then resized (bicubic)."""
    low, high = (64, 400) if rng.random() < 0.15 else (90, 200)
    image = draw(scene, round(math.exp(rng.uniform(math.log(low), math.log(high)))), rng)
    if rng.random() < 0.4:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(60, 95))
        image = Image.open(file)
    return np.array(image.resize((side, side)))


def questions(scene, rng, include_held_out=False):
    """What can be asked of a scene: kind -> list of (question, acceptable answers, the best first).

    Every kind is a key, if only of an empty list. Everything that is there is asked about; of what is not there
    about as much, picked by ``rng``. Unless ``include_held_out``, no question or answer names a held-out pair.
    """
    barred = () if include_held_out else _held_out(scene)
    things = sorted(scene.things, key=lambda thing: thing.x)
    pairs = [(thing.color, thing.shape) for thing in things]
    colors, shapes = ([pair[i] for pair in pairs] for i in (0, 1))
    asked = {
        "color": [(f"What color is the {s}?", f"{c.capitalize()}.") for c, s in pairs if shapes.count(s) == 1],
        "shape": [(f"What shape is the {c} object?", f"A {s}.") for c, s in pairs if colors.count(c) == 1],
        "count": [("How many objects are there?", NUMBERS[len(things)])],
        "count_shape": [(f"How many {plural(s)} are there?", NUMBERS[shapes.count(s)])
                        for s in _some(shapes, SHAPES, rng)],
        "count_color": [(f"How many {c} objects are there?", NUMBERS[colors.count(c)])
                        for c in _some(colors, COLOURS, rng)],
        "exists": [(f"Is there {article(f'{c} {s}')}?", "Yes." if (c, s) in pairs else "No.")
                   for c, s in pairs + _absent(pairs, rng, barred)],
        "size": [(f"How big is the {thing.name}?", f"{thing.size.capitalize()}.") for thing in things],
        "left_right": [_relation(a, b, "left", "right", a.x < b.x) for a in things for b in things if a != b],
        "above_below": [_relation(a, b, "above", "below", a.y < b.y) for a in things for b in things
                        if abs(a.y - b.y) >= CLEAR],
        "where": [(f"Where is the {thing.name}?", _places(thing)) for thing in things],
        "describe": [("Describe the image.", describe(scene))],
    }
    return _finish(asked, barred)


def odd_questions(scene, rng):
    """What `questions` has that can be answered although no thing's colour, or shape, has a name."""
    kinds = ("count", "count_shape") if scene.things[0].tint else ("count", "count_color")
    return {kind: asked for kind, asked in questions(scene, rng).items() if kind in kinds}


def _held_out(scene):
    """The pairs that no question about the scene may name: those of which neither word has been renamed."""
    return [pair for pair in sorted(HELD_OUT) if not set(pair) & dict(scene.names).keys()]


def _finish(asked, barred):
    """Answers as tuples, and what names a barred pair left out."""
    barred = [f"{color} {shape}" for color, shape in barred]
    asked = {kind: [(q, (a,) if isinstance(a, str) else a) for q, a in items] for kind, items in asked.items()}
    return {kind: [(q, a) for q, a in items if not any(name in f"{q} {a[0]}".lower() for name in barred)]
            for kind, items in asked.items()}


def plural(shape):
    return "crosses" if shape == "cross" else f"{shape}s"


def article(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _some(present, all_words, rng):
    """Each word that is present once, and as many that are absent."""
    present = sorted(set(present))
    return present + rng.sample([word for word in all_words if word not in present], len(present))


def _absent(pairs, rng, barred):
    """As many pairs that are not there as ``pairs``, mostly of a color or a shape (or both) that is."""
    colors, shapes = ({pair[i] for pair in pairs} for i in (0, 1))
    absent = [pair for pair in PAIRS if pair not in pairs and pair not in barred]
    alike = {n: [p for p in absent if (p[0] in colors) + (p[1] in shapes) == n] for n in (0, 1, 2)}
    chosen = []
    while len(chosen) < len(pairs):
        pair = rng.choice(alike[rng.choices((0, 1, 2), (15, 35, 50))[0]] or alike[1])
        chosen += [pair] if pair not in chosen else []
    return chosen


def _relation(a, b, first, second, is_first):
    of = " of" if first == "left" else ""
    return (f"Is the {a.name} {first} or {second}{of} the {b.name}?",
            f"The {a.name} is {first if is_first else second}{of} the {b.name}.")


def _places(thing):
    """The answers to where a thing is; within 3 % of a border both sides of it will do."""
    across, down = (_bands(value, words) for value, words in
                    ((thing.x, ("left", "", "right")), (thing.y, ("top", "", "bottom"))))
    spots = [f"{v} {h}".strip() for v in down for h in across]
    return tuple(f"At the {spot}." if spot else "In the middle." for spot in spots)


def _bands(value, words):
    found = words[(value >= 0.4) + (value > 0.6)]
    near = [word for i, border in ((0, 0.4), (1, 0.6)) if abs(value - border) <= 0.03 for word in words[i:i + 2]]
    return [found] + [word for word in near if word != found]


def describe(scene):
    """The whole scene in one sentence, from left to right."""
    things = sorted(scene.things, key=lambda thing: thing.x)
    names = [article(f"{thing.size} {thing.name}") for thing in things]
    if len(names) == 3:
        return f"From left to right: {names[0]}, {names[1]} and {names[2]}."
    return " is left of ".join(names).capitalize() + "."


def sample_clip(rng, held_out=False):
    """A clip: 4 to 8 scenes of one or two things, and left, right, up, down (one moves steadily) or still."""
    kind, steps = rng.choice(("left", "right", "up", "down", "still")), rng.randint(3, 7)
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[kind]
    wanted = rng.choice((1, 2)), rng.choice(list(SIZES))  # rejection alone would favour the few and the small
    while True:
        scene = sample_scene(rng, held_out, wanted)
        way = rng.uniform(0.2, 0.5) / steps
        mover, others = scene.things[0], scene.things[1:]
        frames = [replace(scene, things=(replace(mover, x=mover.x + dx * way * i, y=mover.y + dy * way * i), *others))
                  for i in range(steps + 1)]
        if all(fits(frame.things) for frame in reversed(frames)):  # it leaves the picture at the end, if at all
            return frames, kind


def clip_pictures(frames, rng, side=112):
    """Pixels of a clip's frames, each drawn in the same style."""
    seed = rng.getrandbits(32)
    return [picture(frame, random.Random(seed), side) for frame in frames]


def clip_questions(frames, include_held_out=False):
    """What can be asked of a clip, as ``questions`` has it."""
    asked = {"moving": [], "which_way": []}
    for thing, last in zip(frames[0].things, frames[-1].things):
        dx, dy = last.x - thing.x, last.y - thing.y
        way = ("Left." if dx < 0 else "Right.") if dx else ("Up." if dy < 0 else "Down.") if dy else "It stays still."
        asked["which_way"].append((f"Which way does the {thing.name} move?", way))
        if dx or dy:
            asked["moving"].append(("What is moving?", f"The {thing.name}."))
    return _finish(asked, () if include_held_out else _held_out(frames[0]))


def vary(question, rng):
    """The question as somebody might type it: mostly as it is, else in other cases, spelling and ending."""
    if rng.random() < 0.6:
        return question
    if rng.random() < 0.6:
        question = question.lower()
    if rng.random() < 0.6:
        question = question.rstrip(".?!")
    if rng.random() < 0.5:
        question = question.replace("color", "colour")
    return (question.upper() if rng.random() < 0.075 else question).strip()


def sentences():
    """Every wording of questions, answers and chat, without held-out pairs, to train a tokenizer on."""
    rng, pairs = random.Random(0), CHAT + [("Describe the image.", NO_PICTURE)]
    for _ in range(600):
        for asked in (questions(sample_scene(rng), rng), clip_questions(sample_clip(rng)[0])):
            pairs += [(question, answer) for items in asked.values() for question, answers in items
                      for answer in answers]
    for question, answer in pairs:
        bare = question.lower().rstrip(".?!")
        yield from (question, answer, bare, question.upper())
        if "color" in bare:
            yield from (question.replace("color", "colour"), bare.replace("color", "colour"), bare.upper())


def main(path):
    """Save 24 pictures, drawn at random and as the student sees them, with their descriptions."""
    rng, sheet = random.Random(), Image.new("RGB", (6 * 200, 4 * 200), "white")
    for i in range(24):
        scene, corner = sample_scene(rng, held_out=i >= 18), (i % 6 * 200 + 10, i // 6 * 200 + 10)
        sheet.paste(Image.fromarray(picture(scene, rng)), corner)
        text = textwrap.fill(describe(scene), 32)
        ImageDraw.Draw(sheet).text((corner[0], corner[1] + 118), text, fill="black")
    sheet.save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
