"""Questions about the scenes of `second_world.py`, with all their right answers, written from the page alone.

    questions(scene)             every question that the scene allows, in the page's first wording
    troubled_questions(scene)    about an object that is missing or not unique
    reworded(question, rng)      the same in a wording that training keeps out
    conversation(scene, rng)     turns that refer to earlier ones
    clip_questions(frames, way)  about a film
    OTHER_QUESTIONS              on topics that training keeps out

Test: ``pytest tests/tools/test_second_world.py``
"""

from dataclasses import dataclass, field

import numpy as np
from second_world import APART, COLORS, PAIRS, SHAPES

KINDS = (
    "color", "shape", "count objects", "count shapes", "count colors", "exists", "size", "left or right", "above or below",
    "beside", "compare", "where", "describe",
)  # fmt: skip
NUMBERS = ("Zero.", "One.", "Two.", "Three.")
NO_SHAPE, MANY = "I see none of the shapes I know.", "There are more than three objects."
REFUSAL = "I can only answer questions about colored shapes."
KEPT_OUT_WORDINGS = {  # two of each kind that training does not have
    "color": ("Could you say which color the {s} has got?", "I would like to know the color of the {s}."),
    "shape": ("Could you say which shape the {c} object has got?", "I would like to know the shape of the {c} object."),
    "count objects": ("What number of objects can be seen?", "I would like to know how many objects there are."),
    "count shapes": ("What number of {ss} can be seen?", "I would like to know how many {ss} there are."),
    "count colors": ("What number of {c} objects can be seen?", "I would like to know how many {c} objects there are."),
    "exists": ("Could there be {a} in it?", "I would like to know if there is {a}."),
    "size": ("How big would you say the {x} is?", "I would like to know the size of the {x}."),
    "left or right": ("Would you say the {x} is left or right of the {y}?", "I would like to know if the {x} is left or right of the {y}."),
    "above or below": ("Would you say the {x} is above or below the {y}?", "I would like to know if the {x} is above or below the {y}."),
    "beside": ("Could you say what is {d} the {x}?", "I would like to know what is {d} the {x}."),
    "compare": ("Would you say the {x} or the {y} is {b}?", "I would like to know which is {b}, the {x} or the {y}."),
    "where": ("Could you point out the place of the {x}?", "I would like to know where the {x} is."),
    "describe": ("Could you put the image into words?", "I would like a description of the image."),
}  # fmt: skip
OTHER_QUESTIONS = (
    "How do I bake bread?", "What is a good recipe for soup?", "How long must I boil an egg?", "How much salt goes into the dough?",
    "Is pasta healthy?", "How do you fry potatoes?", "What do I need for a cake?", "Can you cook dinner?", "Who won the football match?",
    "How many players has a hockey team?", "What is offside?", "Which team is the best?", "How do I train for a marathon?",
    "When is the next tennis game?", "Who holds the record in swimming?", "What are the rules of baseball?", "Which song is number one?",
    "Who plays the guitar in this band?", "How do I tune a violin?", "What is a chord?", "Who composed this symphony?",
    "Can you hum a melody?", "Which singer do you like?", "How many strings has a cello?", "How much does a pizza cost?",
    "What is the exchange rate of the dollar?", "How do I pay my taxes?", "Should I buy shares?", "What is inflation?",
    "Where is the nearest bank?", "How high is the rent?", "Can you lend me some coins?",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question, all the answers that count as right (the plainest first), and whom it is about."""

    kind: str
    text: str
    answers: tuple
    about: frozenset  # of (color, shape): the objects in the picture that decide the answer
    words: dict = field(default_factory=dict, compare=False)  # what `KEPT_OUT_WORDINGS` fill in


def a(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def sentence(words):
    return words[0].upper() + words[1:] + "."


def plural(shape):
    return shape + ("es" if shape.endswith("s") else "s")


def reworded(question, rng):
    """The same question in one of the wordings that training keeps out."""
    template = KEPT_OUT_WORDINGS[question.kind][rng.integers(2)]
    return template.format(**question.words)


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


def sized(thing):
    return a(f"{thing.size} {thing.name}")


def description(scene):
    """What the answer to "Describe the image." is."""
    named = [sized(t) for t in sorted(scene.things, key=lambda t: t.x)]
    if len(named) < 3:
        return sentence(" is left of ".join(named))
    return sentence(f"from left to right: {named[0]}, {named[1]} and {named[2]}")


def beside(thing, way, scene):
    """The answer to what is left of (right of, above, below) a thing, or None where it is too close to call."""
    sign, axis = {"left of": (-1, "x"), "right of": (1, "x"), "above": (-1, "y"), "below": (1, "y")}[way]
    away = sorted((sign * (getattr(t, axis) - getattr(thing, axis)), i) for i, t in enumerate(scene.things) if t is not thing)
    if any(APART - 0.02 < d < APART for d, _ in away):
        return None
    away = [(d, i) for d, i in away if d >= APART]
    if len(away) == 2 and away[1][0] - away[0][0] < 0.02:
        return None
    return sentence(sized(scene.things[away[0][1]])) if away else "Nothing."


class _Found(list):
    """Questions as they are collected."""

    def take(self, kind, text, answers, about, **words):
        answers = answers if isinstance(answers, tuple) else (answers,)
        self.append(Question(kind, text, answers, frozenset(about), words))


def questions(scene):
    """Every question that this scene allows and that has a plain answer, in a fixed order."""
    found = _Found()
    _count_questions(scene, found)
    for color, shape in sorted(PAIRS):
        pairs = {t.pair for t in scene.things}
        there = (color, shape) in pairs
        about = [(color, shape)] if there else [p for p in pairs if p[0] == color or p[1] == shape]
        name = a(f"{color} {shape}")
        found.take("exists", f"Is there {name}?", "Yes." if there else "No.", about, a=name)
    for t in scene.things:
        found.take("size", f"How big is the {t.name}?", sentence(t.size), [t.pair], x=t.name)
        found.take("where", f"Where is the {t.name}?", places(t.x, t.y), [t.pair], x=t.name)
        for way in ("left of", "right of", "above", "below"):
            if answer := beside(t, way, scene):
                about = [t.pair, *(o.pair for o in scene.things if o.name in answer)]
                found.take("beside", f"What is {way} the {t.name}?", answer, about, x=t.name, d=way)
        for other in scene.things:
            if other is not t:
                _pair_questions(t, other, found)
    found.take("describe", "Describe the image.", description(scene), {t.pair for t in scene.things})
    return list(found)


def _count_questions(scene, found):
    things = scene.things
    found.take("count objects", "How many objects are there?", NUMBERS[len(things)], [t.pair for t in things])
    for shape in SHAPES:
        same = [t for t in things if t.shape == shape]
        many = plural(shape)
        found.take("count shapes", f"How many {many} are there?", NUMBERS[len(same)], [t.pair for t in same], ss=many)
        if len(same) == 1:
            found.take("color", f"What color is the {shape}?", sentence(same[0].color), [same[0].pair], s=shape)
    for color in COLORS:
        same = [t for t in things if t.color == color]
        found.take("count colors", f"How many {color} objects are there?", NUMBERS[len(same)], [t.pair for t in same], c=color)
        if len(same) == 1:
            found.take("shape", f"What shape is the {color} object?", sentence(a(same[0].shape)), [same[0].pair], c=color)


def _pair_questions(t, other, found):
    both, words = [t.pair, other.pair], {"x": t.name, "y": other.name}
    side = "left" if t.x < other.x else "right"
    asked = f"Is the {t.name} left or right of the {other.name}?"
    found.take("left or right", asked, f"The {t.name} is {side} of the {other.name}.", both, **words)
    if abs(t.y - other.y) >= APART:
        side = "above" if t.y < other.y else "below"
        asked = f"Is the {t.name} above or below the {other.name}?"
        found.take("above or below", asked, f"The {t.name} is {side} the {other.name}.", both, **words)
    order = ("small", "large", "huge")
    larger = order.index(t.size) - order.index(other.size)
    for word, sign in (("bigger", 1), ("smaller", -1)):
        winner = t if sign * larger > 0 else other
        answer = f"The {winner.name}." if larger else "They are equally big."
        found.take("compare", f"Which object is {word}, the {t.name} or the {other.name}?", answer, both, b=word, **words)


def troubled_questions(scene, rng):
    """Questions about an object that is missing, and about one that is not unique."""
    found, pairs = _Found(), {t.pair for t in scene.things}
    colors, shapes = {c for c, _ in pairs}, {s for _, s in pairs}
    gone = [str(rng.choice([s for s in SHAPES if s not in shapes])), str(rng.choice([c for c in COLORS if c not in colors]))]
    near = sorted(p for p in PAIRS if p not in pairs and (p[0] in colors) + (p[1] in shapes) == 1)
    color, shape = near[rng.integers(len(near))]
    found.take("missing", f"What color is the {gone[0]}?", f"There is no {gone[0]}.", ())
    found.take("missing", f"What shape is the {gone[1]} object?", f"There is no {gone[1]} object.", ())
    for text in (f"How big is the {color} {shape}?", f"Where is the {color} {shape}?", f"What is left of the {color} {shape}?"):
        found.take("missing", text, f"There is no {color} {shape}.", ())
    for trait, text in ((1, "What color is the {}?"), (0, "What shape is the {} object?")):
        for word in sorted({p[trait] for p in pairs}):
            same = sorted((t for t in scene.things if t.pair[trait] == word), key=lambda t: t.x)
            if len(same) > 1:
                named = [sized(t) for t in same]
                listed = ", ".join(named[:-1]) + f" and {named[-1]}"
                several = plural(word) if trait else f"{word} objects"
                answer = f"There are {NUMBERS[len(same)].lower()[:-1]} {several}: {listed}."
                found.take("ambiguous", text.format(word), answer, [t.pair for t in same])
    return list(found)


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


# Follow-ups


def conversation(scene, rng, turns=4):
    """(text, answers) of so many turns: a question about one object, then such as refer to it or to what was asked.

    Empty or shorter where the scene does not allow it.
    """
    thing = scene.things[rng.integers(len(scene.things))]
    kind = str(rng.choice(["color", "size", "where"]))
    said = [_turn(kind, f"the {thing.name}" if kind != "color" else f"the {thing.shape}", thing, scene)]
    for _ in range(20):
        if len(said) == turns or not said[0][1]:
            break
        others = [t for t in scene.things if t is not thing and (kind != "color" or _unique(t, 1, scene))]
        step = rng.integers(4)
        if step == 0 and others and kind in ("color", "size", "where"):
            thing = others[rng.integers(len(others))]
            words = ("And the {}?", "What about the {}?")[rng.integers(2)]
            name = thing.shape if _unique(thing, 1, scene) else thing.name
            if kind != "color" and _unique(thing, 0, scene) and rng.integers(2):
                name = f"{thing.color} one"
            said.append((words.format(name), _turn(kind, "", thing, scene)[1]))
        elif step == 1:
            nearest = _nearest(thing, scene)
            if kind != "next" and nearest:
                kind = "next"
                said.append(("What is next to it?", (nearest,)))
        else:
            new = ("size", "where")[step - 2]
            if new != kind:
                kind = new
                said.append(_turn(kind, "it", thing, scene))
    return said if said[0][1] else []


def _unique(thing, trait, scene):
    return sum(t.pair[trait] == thing.pair[trait] for t in scene.things) == 1


def _turn(kind, name, thing, scene):
    if kind == "color":
        answer = (sentence(thing.color),)
        if not _unique(thing, 1, scene):
            answer = ()
        return f"What color is {name}?", answer
    if kind == "size":
        return f"How big is {name}?", (sentence(thing.size),)
    return f"Where is {name}?", places(thing.x, thing.y)


def _nearest(thing, scene):
    """The answer to what is next to a thing; None where two are about as near."""
    others = [t for t in scene.things if t is not thing]
    away = sorted((np.hypot(t.x - thing.x, t.y - thing.y), i) for i, t in enumerate(others))
    if len(away) == 2 and away[1][0] < 1.25 * away[0][0]:
        return None
    return sentence(sized(others[away[0][1]])) if away else "Nothing."


# Films


def clip_questions(frames, way):
    """Every question about a clip whose first object moves that way."""
    still, found = "It stays still.", _Found()
    described = []
    for i, t in enumerate(frames[0].things):
        moves = way if i == 0 else still
        found.take("which way", f"Which way does the {t.name} move?", moves, [t.pair])
        if moves != still:
            found.take("what moves", "What is moving?", f"The {t.name}.", [t.pair])
        does = "stays still" if moves == still else f"moves {moves.lower()[:-1]}"
        described.append((moves == still, t.x, f"{sentence(a(t.name))[:-1]} {does}."))
    if way == still:
        orders = {tuple(sorted(described)), tuple(sorted(described, reverse=True))}
    else:
        orders = {tuple(sorted(described))}
    answers = tuple(" ".join(text for _, _, text in order) for order in sorted(orders))
    found.take("describe film", "Describe the video.", answers, [t.pair for t in frames[0].things])
    return list(found)
