"""Conversations about one picture, in which a turn may refer to the one before, and questions as somebody might type them.

    converse(...)     several turns: fresh questions, "How big is it?", "And the circle?"
    vary(text, rng)   the same question in other case, spelling and ending

"It" is the one object that the turn before is about. Test: ``pytest tests/tools/test_demo_world.py``
"""

import math

from tools.demo import wordings
from tools.demo.questions import (
    ASKERS,
    OPPOSITE,
    Ref,
    Turn,
    article,
    beside_answer,
    color_answers,
    exists,
    names_barred,
    object_words,
    sample_ref,
    say,
    sentence,
    shape_answers,
    size_answers,
    sized,
    where_answers,
)
from tools.demo.scene import COLOURS
from tools.demo.shapes import SHAPES, extent

SAME = ("color", "shape", "size", "where", "beside", "exists", "count_shape", "count_color")  # kinds that go on: "And the circle?"


def next_answer(thing, scene):
    """The object nearest to it, "Nothing.", or None where two are about as near, in pixels or in fractions."""
    nearest = set()
    others = [t for t in scene.things if t != thing]
    for scale in ((1, 1), tuple(extent(scene.aspect))):
        away = sorted((math.hypot((t.x - thing.x) * scale[0], (t.y - thing.y) * scale[1]), i) for i, t in enumerate(others))
        if len(away) > 1 and away[1][0] < 1.12 * away[0][0]:
            return None
        nearest |= {i for _, i in away[:1]}
    if len(nearest) > 1:
        return None
    return sentence(sized(others[nearest.pop()])) if nearest else "Nothing."


def follow_up(scene, last, rng):
    """A turn that refers to the object or to the kind of question of the turn before, or None."""
    if last.thing and rng.random() < 0.6:
        return _about_it(scene, last, rng)
    return _same_kind(scene, last, rng) if last.kind in SAME else None


def _about_it(scene, last, rng):
    thing, kind = last.thing, rng.choice(("size", "size", "where", "where", "color", "shape", "next", "next", "beside"))
    if kind == last.kind and kind != "beside":
        return None
    direction = rng.choice(tuple(OPPOSITE)) if kind == "beside" else ""
    words = rng.choice(wordings.DIRECTIONS[direction]) if direction else ""
    text = say(wordings.FOLLOW_UPS[kind], rng, d=words)
    if kind in ("next", "beside"):
        answer = next_answer(thing, scene) if kind == "next" else beside_answer(thing, direction, scene)
        return answer and Turn(kind, text, (answer,), thing, direction)
    given = {"size": size_answers, "where": where_answers, "color": color_answers, "shape": shape_answers}[kind]
    return Turn(kind, text, given(thing), thing)


def _same_kind(scene, last, rng):
    """The question of the turn before about another object: "And the circle?" """
    if last.kind in ("count_shape", "count_color"):
        trait = "shape" if last.kind == "count_shape" else "color"
        ref = Ref(**{trait: rng.choice(SHAPES if trait == "shape" else tuple(COLOURS))})
        if rng.random() < 0.6:
            ref = Ref(**{trait: getattr(rng.choice(scene.things), trait)})
        turn = ASKERS[last.kind](scene, rng, ref)
        return Turn(last.kind, say(wordings.FOLLOW_UPS["same_count"], rng, n=ref.plural), turn.answers)
    forms = {"color": ("shape",), "shape": ("color",)}.get(last.kind, ("pair", "shape", "color"))
    ref = sample_ref(scene, rng, forms, missing=0.5 if last.kind == "exists" else 0.12)
    if last.thing and ref.matches(scene) == [last.thing]:
        return None
    words = object_words(ref, rng) if ref.shape or rng.random() < 0.3 else f"{ref.color} one"
    if last.kind == "exists":
        turn, text = exists(scene, rng, ref), say(wordings.FOLLOW_UPS["same_exists"], rng, a=article(words))
    else:
        more = {"direction": last.direction} if last.kind == "beside" else {}
        turn, text = ASKERS[last.kind](scene, rng, ref, **more), say(wordings.FOLLOW_UPS["same"], rng, x=words)
    return turn and Turn(turn.kind, text, turn.answers, turn.thing, turn.direction)


def converse(scene, pick, rng, turns):
    """So many turns about one picture, about half of them follow-ups; ``pick()`` gives a fresh Turn."""
    said = []
    for _ in range(40):
        turn = follow_up(scene, said[-1], rng) if said and rng.random() < 0.65 else None
        turn = turn if turn and not names_barred(turn, scene) else pick() if rng.random() < 0.35 or not said else None
        if turn:
            said.append(turn)
        if len(said) == turns:
            break
    return said


def vary(text, rng):
    """The question as it is, or in other case, spelling and ending, sometimes with a typo of one letter."""
    if rng.random() < 0.5:
        return text
    if rng.random() < 0.55:
        text = text.lower()
    if rng.random() < 0.5:
        text = text.rstrip(".?!")
    if rng.random() < 0.4:
        text = text.replace("color", "colour")
    if rng.random() < 0.14:
        text = typo(text, rng)
    return (text.upper() if rng.random() < 0.06 else text).strip()


def typo(text, rng):
    """One letter of a longer word lost, doubled, replaced, or exchanged with the next."""
    spans = [i for i in range(1, len(text) - 2) if text[i - 1 : i + 3].isalpha()]
    if not spans:
        return text
    i, kind = rng.choice(spans), rng.randrange(4)
    new = ("", text[i] * 2, rng.choice("abcdefghijklmnoprstuvwy"), text[i + 1] + text[i])[kind]
    return text[:i] + new + text[i + (2 if kind == 3 else 1) :]
