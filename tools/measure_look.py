"""How often the maps of a look point at what the answer is about, on the demo weights: `python tools/measure_look.py`

Pictures come from the renderer that training did not use (tests/tools/second_world.py): three objects of the sizes that the
weights know. For each question about one of them, the token that says its colour, shape, size or place is explained. A map
hits if the middle of its highest position lies inside the object's outline, grown by half a position. Chance is the share of
positions that would hit. Only right answers count: a wrong one has no object to point at.

Spoken questions are said by espeak-ng, which tells when each word begins. A map hits if its highest position overlaps, by
its middle, the word that says which object is meant (its colour or its shape), grown by half a position.

The best layer and head are chosen on one half of the questions and measured on the other half.

Run: ``python tools/measure_look.py --pictures 60 --write``. Test: ``pytest tests/tools/test_measure_look.py``
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

import second_questions as asked  # from tests/tools
import second_world as world

from tools.demo import speech
from vita_ref import Vita
from vita_ref.analysis.look import MAPS, look
from vita_ref.analysis.positions import words

KINDS = ("color", "shape", "size", "where")
TABLE, NUMBERS = ROOT / "tools/look.md", ROOT / "vita_ref/analysis/measured.json"


class Case(NamedTuple):
    """A question, the right answers, and the object that it is about."""

    kind: str
    text: str
    answers: tuple
    scene: world.Scene
    thing: world.Thing
    image: object


def cases(count, seed):
    """Questions about one object among three: one of each kind for each picture."""
    rng = np.random.default_rng([seed, 21])
    for _ in range(count):
        scene = world.random_scene(rng, world.Style(counts=(3,)))
        image, found = world.picture(scene), asked.questions(scene)
        for kind in KINDS:
            fitting = [q for q in found if q.kind == kind]
            if fitting:
                q = fitting[rng.integers(len(fitting))]
                [pair] = q.about
                [thing] = [t for t in scene.things if t.pair == pair]
                yield Case(kind, q.text, q.answers, scene, thing, image)


def deciding_token(case, tokens):
    """The number of the token that says the colour, the shape, the size or the place; None if there is none."""
    said = {"color": [case.thing.color], "shape": [case.thing.shape], "size": [case.thing.size]}.get(
        case.kind, ["left", "right", "top", "bottom", "middle"]
    )
    return next((i for i, token in enumerate(tokens) if token.text.strip().lower() in said), None)


def hits_outline(case, grid=4):
    """Which positions of a picture hit: [grid * grid] bool, by the distance of their middle to the object's outline."""
    points = world.outline(case.thing, case.scene) / case.scene.extent  # 0..1 across and down
    middles = np.array([((c + 0.5) / grid, (r + 0.5) / grid) for r in range(grid) for c in range(grid)])
    return np.array([inside(middle, points) or distance(middle, points) <= 0.5 / grid for middle in middles])


def inside(point, polygon):
    """Whether a point is inside a polygon: the number of edges to its right is odd."""
    (x, y), odd = point, False
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, 0)):
        if (y < ay) != (y < by) and x < ax + (y - ay) * (bx - ax) / (by - ay):
            odd = not odd
    return odd


def distance(point, polygon):
    """The distance of a point to the nearest edge."""
    a, b = polygon, np.roll(polygon, -1, 0)
    along = ((point - a) * (b - a)).sum(1) / np.maximum(((b - a) ** 2).sum(1), 1e-12)
    return np.linalg.norm(point - a - np.clip(along, 0, 1)[:, None] * (b - a), axis=1).min()


def maps_of(seen, token):
    """Every map of one token by name, each head and each layer's mean with it. Shapes: each [T]."""
    found = {name: seen.map(name, token) for name in MAPS}
    for number, layer in enumerate(seen.attention):
        found[f"layer {number}"] = layer[token].mean(0)
        found |= {f"layer {number}, head {h}": weights for h, weights in enumerate(layer[token])}
    return found


def picture_rows(vita, count, seed):
    """For each rightly answered question: (hits of each map as a dict, the share of positions that would hit)."""
    rows, asked_count = [], 0
    for case in cases(count, seed):
        seen = look(vita, case.text, images=[case.image])
        asked_count += 1
        token = deciding_token(case, seen.tokens)
        if seen.text.strip() not in case.answers or token is None:
            continue
        columns = [p.index for p in seen.positions if p.kind == "image"]
        hit = hits_outline(case)
        rows.append(({name: bool(hit[np.argmax(m[columns])]) for name, m in maps_of(seen, token).items()}, hit.mean()))
    return rows, asked_count


def spoken_rows(vita, count, seed):
    """The same for spoken questions and the word that decides."""
    rng, rows, asked_count = random.Random(seed), [], 0
    for case in cases(count, seed + 1):
        if case.kind not in ("color", "shape"):
            continue
        word = case.thing.shape if case.kind == "color" else case.thing.color
        said = speech.speak(case.text, speech.manner(rng, "known voices"))
        asked_count += 1
        seen = look(vita, "", images=[case.image], audios=[(torch.from_numpy(said.samples), said.rate)])
        token = deciding_token(case, seen.tokens)
        if seen.text.strip() not in case.answers or token is None:
            continue
        start, stop = word_time(case.text, word, said)
        sound = [p for p in seen.positions if p.kind == "audio"]
        hit = np.array([start - 0.04 <= (p.start + p.end) / 2 <= stop + 0.04 for p in sound])
        columns = [p.index for p in sound]
        rows.append(({name: bool(hit[np.argmax(m[columns])]) for name, m in maps_of(seen, token).items()}, hit.mean()))
    return rows, asked_count


def word_time(text, word, said):
    """(start, end) in seconds of a word, as espeak-ng tells."""
    at, starts = text.index(f" {word}") + 1, sorted(said.words)
    heard = (np.flatnonzero(np.abs(said.samples) > 0.003)[-1] + 1) / said.rate
    [(number, start)] = [(i, time) for i, (character, time) in enumerate(starts) if character == at]
    return start, starts[number + 1][1] if number + 1 < len(starts) else heard


def shares(rows):
    """The share of hits of each map on the second half; the best layer or head is the best one on the first half."""
    half = len(rows) // 2
    train, test = rows[:half], rows[half:]
    singles = [name for name in rows[0][0] if name.startswith("layer")]

    def share(part, name):
        return float(np.mean([hits[name] for hits, _ in part]))

    best = max(singles, key=lambda name: share(train, name))
    found = {name: share(rows, name) for name in MAPS}
    found |= {"best layer or head": share(test, best), "chance": float(np.mean([chance for _, chance in rows]))}
    return found, best


def write(report):
    """The table as a page, and the numbers for the pages of looks."""
    lines = [
        "# How far to trust a map",
        "",
        "`python tools/measure_look.py` measures this on the demo weights, and its docstring says what counts. A map of another",
        "model may be better or worse.",
        "",
        "| map | pictures: the peak is inside the object | spoken questions: the peak is on the deciding word |",
        "| --- | --- | --- |",
    ]
    names = [*MAPS, "best layer or head", "chance"]
    for name in names:
        values = [f"{100 * report[part]['shares'][name]:.1f} %" for part in ("pictures", "spoken")]
        lines.append(f"| {MAPS.get(name, name)} | {values[0]} | {values[1]} |")
    for part in ("pictures", "spoken"):
        r = report[part]
        lines += ["", f"{part.capitalize()}: {r['questions']} questions, {r['right']} answered rightly and counted. Best: {r['best']}."]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    NUMBERS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv=None):
    """Entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=701)
    parser.add_argument("--write", action="store_true", help="write tools/look.md and the numbers that pages show")
    a = parser.parse_args(argv)
    vita, report = Vita.from_pretrained(kernels="plain"), {}
    for part, rows_of in (("pictures", picture_rows), ("spoken", spoken_rows)):
        rows, questions = rows_of(vita, a.pictures, a.seed)
        found, best = shares(rows)
        report[part] = {"questions": questions, "right": len(rows), "best": best, "shares": found}
    report["command"] = f"python tools/measure_look.py --pictures {a.pictures} --seed {a.seed}"
    if a.write:
        write(report)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
