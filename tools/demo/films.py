"""Questions about the demo world's films, in many wordings, with the answers that are right.

Test: ``pytest tests/tools/test_demo_world.py``
"""

from tools.demo import wordings
from tools.demo.questions import (
    Turn,
    article,
    names_barred,
    object_words,
    sample_ref,
    say,
    sentence,
    trouble,
)

WAYS = {"left": "Left.", "right": "Right.", "up": "Up.", "down": "Down.", "still": "It stays still."}
CLIP_KINDS = ("moving", "which_way", "describe_video")


def ways(frames):
    """(thing, way) of every object, the moving one first, else from left to right."""
    found = []
    for thing, last in zip(frames[0].things, frames[-1].things):
        dx, dy = last.x - thing.x, last.y - thing.y
        way = ("left" if dx < 0 else "right") if dx else ("up" if dy < 0 else "down") if dy else "still"
        found.append((thing, way))
    return sorted(found, key=lambda pair: (pair[1] == "still", pair[0].x))


def ask_clip(frames, kind, rng):
    """One question about a film, or None where it would name a kept-out pair."""
    seen, scene = ways(frames), frames[0]
    if kind == "moving":
        moves = [thing for thing, way in seen if way != "still"]
        turn = Turn(kind, say(wordings.KINDS[kind], rng), (f"The {moves[0].name}." if moves else "Nothing.",))
    elif kind == "describe_video":
        parts = (f"{sentence(article(t.name))[:-1]} {'stays still' if way == 'still' else f'moves {way}'}." for t, way in seen)
        turn = Turn(kind, say(wordings.KINDS[kind], rng), (" ".join(parts),))
    else:
        ref = sample_ref(scene, rng, ("pair", "pair", "pair", "shape", "color"), missing=0.1)
        text, wrong = say(wordings.KINDS[kind], rng, x=object_words(ref, rng)), trouble(ref, scene)
        thing = None if wrong else ref.matches(scene)[0]
        turn = Turn(kind, text, (wrong or WAYS[next(way for t, way in seen if t is thing)],), thing)
    return None if names_barred(turn, scene) else turn
