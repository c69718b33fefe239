"""Questions about the demo world's scenes and films, in many wordings, with all answers that are right.

    Ref                   what a question calls an object: "red star", "star" or "red object"
    ask(scene, kind, rng) one question of a kind -> Turn, or None where the scene allows none

Conversations are in ``conversation.py``, questions about films in ``films.py``.
Answers carry no state mark here. Test: ``pytest tests/tools/test_demo_world.py``
"""

from dataclasses import dataclass

from tools.demo import wordings
from tools.demo.scene import CLEAR, COLOURS, PAIRS, barred
from tools.demo.shapes import SHAPES

NUMBERS = ("Zero.", "One.", "Two.", "Three.")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ODD_COLOUR_KINDS, ODD_SHAPE_KINDS = ("count", "count_shape"), ("count", "count_color")


@dataclass(frozen=True)
class Ref:
    """What a question calls an object; None is what it leaves open."""

    color: str | None = None
    shape: str | None = None

    def __str__(self):
        return f"{self.color or ''} {self.shape or 'object'}".strip()

    @property
    def plural(self):
        return f"{self.color or ''} {plural(self.shape) if self.shape else 'objects'}".strip()

    def matches(self, scene):
        """The objects that it names, from left to right."""
        found = (t for t in scene.things if self.color in (None, t.color) and self.shape in (None, t.shape))
        return sorted(found, key=lambda t: t.x)


@dataclass(frozen=True)
class Turn:
    """A question with the answers that are right, the best first, and what a later turn may refer to."""

    kind: str
    text: str
    answers: tuple
    thing: object = None  # the one object that it is about, if there is one
    direction: str = ""  # of "beside"


def plural(shape):
    return "crosses" if shape == "cross" else f"{shape}s"


def article(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentence(words):
    return f"{words[0].upper()}{words[1:]}."


def sized(thing):
    return article(f"{thing.size} {thing.name}")


def listing(things):
    names = [sized(thing) for thing in things]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def say(templates, rng, **words):
    """One of the templates, filled in; mostly as it is, sometimes with a phrase before or behind it."""
    text = rng.choice(templates).format(**words)
    text = text[0].upper() + text[1:]
    chance = rng.random()
    if chance < 0.08:
        return rng.choice(wordings.BEFORE) + text[0].lower() + text[1:]
    if chance < 0.11 and text[-1] in "?.":
        return text[:-1] + rng.choice(wordings.AFTER)
    return text


def object_words(ref, rng):
    """The words for it in a question: "red star", "star", or "red object", "red one" and the like."""
    return str(ref) if ref.shape else f"{ref.color} {rng.choice(wordings.OBJECTS)}"


def sample_ref(scene, rng, forms=("pair", "pair", "shape", "color"), missing=0.13):
    """What a question calls some object of the scene, or with a chance of ``missing`` one that is not there."""
    form = rng.choice(forms)
    thing = rng.choice(scene.things)
    if rng.random() >= missing:
        return Ref(*{"pair": (thing.color, thing.shape), "shape": (None, thing.shape), "color": (thing.color, None)}[form])
    if form == "pair":
        return Ref(*sample_absent(scene, rng))
    present = {t.shape if form == "shape" else t.color for t in scene.things}
    word = rng.choice([w for w in (SHAPES if form == "shape" else COLOURS) if w not in present])
    return Ref(None, word) if form == "shape" else Ref(word, None)


def sample_absent(scene, rng):
    """A pair that is not there, mostly of a color or a shape (or both) that is."""
    pairs, closed = {(t.color, t.shape) for t in scene.things}, barred(scene)
    colors, shapes = {c for c, _ in pairs}, {s for _, s in pairs}
    likeness = rng.choices((0, 1, 2), (15, 45, 40))[0]
    for wanted in (likeness, 1, 0):
        found = [p for p in PAIRS if p not in pairs and p not in closed and (p[0] in colors) + (p[1] in shapes) == wanted]
        if found:
            return rng.choice(found)


def trouble(ref, scene):
    """The answer where the object is missing or not unique, else None."""
    found = ref.matches(scene)
    if not found:
        return f"There is no {ref}."
    return f"There are {NUMBERS[len(found)].lower()[:-1]} {ref.plural}: {listing(found)}." if len(found) > 1 else None


# ---- one question


def ask(scene, kind, rng, ref=None):
    """One question of a kind about a scene, or None where it allows none or only with a kept-out pair in it."""
    turn = ASKERS[kind](scene, rng, ref) if ref else ASKERS[kind](scene, rng)
    return turn if turn and not names_barred(turn, scene) else None


def names_barred(turn, scene):
    """Whether the question or its answer names a pair that may not be named."""
    said = f"{turn.text} {' '.join(turn.answers)}".lower()
    return any(f"{c} {s}" in said or f"{c} {plural(s)}" in said for c, s in barred(scene))


def _about_one(kind, forms, answers):
    """An asker for a question about one object; ``answers`` gives what is right of it."""

    def asker(scene, rng, ref=None):
        ref = ref or sample_ref(scene, rng, forms)
        text = say(wordings.KINDS[kind], rng, x=object_words(ref, rng), s=ref.shape, c=ref.color)
        wrong = trouble(ref, scene)
        thing = None if wrong else ref.matches(scene)[0]
        return Turn(kind, text, (wrong,) if wrong else answers(thing), thing)

    return asker


def color_answers(thing):
    return (sentence(thing.color),)


def shape_answers(thing):
    return (sentence(article(thing.shape)),)


def size_answers(thing):
    """The word, and between two words the other one too."""
    if not thing.between_words:
        return (sentence(thing.size),)
    others = ("small", "large") if thing.radius < 0.175 else ("large", "huge")
    return (sentence(thing.size), *(sentence(word) for word in others if word != thing.size))


def where_answers(thing):
    """The answers to where a thing is; within 3 % of a border both sides of it are right."""
    across, down = (_bands(value, words) for value, words in
                    ((thing.x, ("left", "", "right")), (thing.y, ("top", "", "bottom"))))  # fmt: skip
    spots = [f"{v} {h}".strip() for v in down for h in across]
    return tuple(f"At the {spot}." if spot else "In the middle." for spot in spots)


def _bands(value, words):
    own = words[(value >= 0.4) + (value > 0.6)]
    near = [word for i, border in ((0, 0.4), (1, 0.6)) if abs(value - border) <= 0.03 for word in words[i : i + 2]]
    return [own] + [word for word in near if word != own]


def _count(scene, rng):
    return Turn("count", say(wordings.KINDS["count"], rng), (NUMBERS[len(scene.things)],), _only(scene))


def _count_some(kind, trait):
    def asker(scene, rng, ref=None):
        words = SHAPES if trait == "shape" else tuple(COLOURS)
        word = getattr(rng.choice(scene.things), trait) if rng.random() < 0.62 else rng.choice(words)
        ref = ref or Ref(**{trait: word})
        word, found = getattr(ref, trait), len(ref.matches(scene))
        text = say(wordings.KINDS[kind], rng, ss=plural(word) if trait == "shape" else "", c=word)
        return Turn(kind, text, (NUMBERS[found],))

    return asker


def exists(scene, rng, ref=None):
    ref = ref or sample_ref(scene, rng, ("pair", "pair", "pair", "shape", "color"), missing=0.5)
    words = object_words(ref, rng)
    many = ref.plural
    text = say(wordings.KINDS["exists"], rng, a=article(words), x=words, xs=many)
    found = ref.matches(scene)
    return Turn("exists", text, ("Yes." if found else "No.",), found[0] if len(found) == 1 else None)


def _two(scene, rng):
    """Two different objects by their names in a question, one of which may be missing or not unique."""
    if len(scene.things) < 2:
        return None
    forms = ("pair", "pair", "pair", "shape", "color")
    for _ in range(5):
        first, second = (sample_ref(scene, rng, forms, 0.07) for _ in "xy")
        one, two = first.matches(scene), second.matches(scene)
        if str(first) != str(second) and not (len(one) == len(two) == 1 and one == two):
            return first, second
    return None


def _relation(kind, first, second):
    def asker(scene, rng):
        refs = _two(scene, rng)
        if not refs:
            return None
        text = say(wordings.KINDS[kind], rng, x=object_words(refs[0], rng), y=object_words(refs[1], rng))
        if wrong := trouble(refs[0], scene) or trouble(refs[1], scene):
            return Turn(kind, text, (wrong,))
        (a,), (b,) = (ref.matches(scene) for ref in refs)
        one, two = (a.x, b.x) if kind == "left_right" else (a.y, b.y)
        if abs(one - two) < CLEAR:
            return None
        side = first if one < two else second
        return Turn(kind, text, (f"The {a.name} is {side}{' of' if kind == 'left_right' else ''} the {b.name}.",))

    return asker


def beside_answer(thing, direction, scene):
    """The nearest object on that side along the axis, "Nothing.", or None where it is a close call."""
    axis, sign = ("x" if direction in ("left", "right") else "y"), (1 if direction in ("right", "below") else -1)
    away = sorted((sign * (getattr(t, axis) - getattr(thing, axis)), i) for i, t in enumerate(scene.things) if t != thing)
    if any(CLEAR - 0.01 < d < CLEAR for d, _ in away):
        return None
    away = [(d, i) for d, i in away if d >= CLEAR]
    if len(away) > 1 and away[1][0] - away[0][0] < 0.02:
        return None
    return sentence(sized(scene.things[away[0][1]])) if away else "Nothing."


def _beside(scene, rng, ref=None, direction=None):
    direction = direction or rng.choice(tuple(OPPOSITE))
    ref = ref or sample_ref(scene, rng)
    words = rng.choice(wordings.DIRECTIONS[direction])
    text = say(wordings.KINDS["beside"], rng, x=object_words(ref, rng), d=words)
    if wrong := trouble(ref, scene):
        return Turn("beside", text, (wrong,), None, direction)
    (thing,) = ref.matches(scene)
    answer = beside_answer(thing, direction, scene)
    return answer and Turn("beside", text, (answer,), thing, direction)


def _bigger(scene, rng):
    refs = _two(scene, rng)
    if not refs:
        return None
    word = rng.choice(tuple(wordings.COMPARED))
    said = rng.choice(wordings.COMPARED[word])
    text = say(wordings.KINDS["bigger"], rng, x=object_words(refs[0], rng), y=object_words(refs[1], rng), b=said)
    if wrong := trouble(refs[0], scene) or trouble(refs[1], scene):
        return Turn("bigger", text, (wrong,))
    (a,), (b,) = (ref.matches(scene) for ref in refs)
    if a.between_words or b.between_words:
        return None
    if a.size == b.size:
        return Turn("bigger", text, ("They are equally big.",))
    chosen = max(a, b, key=lambda t: t.radius) if word == "bigger" else min(a, b, key=lambda t: t.radius)
    return Turn("bigger", text, (f"The {chosen.name}.",))


def describe(scene):
    """The whole scene in one sentence, from left to right."""
    names = [sized(thing) for thing in sorted(scene.things, key=lambda thing: thing.x)]
    if len(names) == 3:
        return f"From left to right: {names[0]}, {names[1]} and {names[2]}."
    return sentence(" is left of ".join(names))


def _describe(scene, rng):
    return Turn("describe", say(wordings.KINDS["describe"], rng), (describe(scene),), _only(scene))


def _only(scene):
    return scene.things[0] if len(scene.things) == 1 else None


ASKERS = {
    "color": _about_one("color", ("shape",), color_answers),
    "shape": _about_one("shape", ("color",), shape_answers),
    "size": _about_one("size", ("pair", "pair", "shape", "color"), size_answers),
    "where": _about_one("where", ("pair", "pair", "shape", "color"), where_answers),
    "count": _count,
    "count_shape": _count_some("count_shape", "shape"),
    "count_color": _count_some("count_color", "color"),
    "exists": exists,
    "left_right": _relation("left_right", "left", "right"),
    "above_below": _relation("above_below", "above", "below"),
    "beside": _beside,
    "bigger": _bigger,
    "describe": _describe,
}
