"""How often the maps of a look point at what the answer is about, on the demo weights: `python tools/measure_look.py`

Pictures come from the renderer that training did not use (tests/tools/second_world.py): three objects of the sizes that the
weights know. Each question is about one of them: its colour, shape, size or place. A map of the whole answer (the mean over its
tokens) hits if the middle of its highest position lies inside the object's outline, grown by half a position. Chance is the
share of positions that would hit. Only right answers count: a wrong one has no object to point at. Questions whose answer another
object has too are counted apart ("shared"): among three stars, to cover one changes nothing about "A star."

Spoken questions are said by espeak-ng, which tells when each word begins. A map hits if its highest position overlaps, by
its middle, the word that says which object is meant (its colour or its shape), grown by half a position.

The best layer and head are chosen on one half of the questions and measured on the other half.

Run: ``python tools/measure_look.py --write`` (about ten minutes). Test: ``pytest tests/tools/test_measure_look.py``
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

KINDS = ("color", "shape", "size", "where")
TIMES = "## Size and time"  # the heading of what is not measured here
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


def maps_of(seen):
    """Every map of the whole answer by name, each head and each layer's mean with it. Shapes: each [T]."""
    found = {name: seen.map(name, "answer") for name in MAPS}
    for number, layer in enumerate(seen.attention):
        whole = layer.mean(0)  # [H, T]
        found[f"layer {number}"] = whole.mean(0)
        found |= {f"layer {number}, head {h}": weights for h, weights in enumerate(whole)}
    return found


def is_alone(case):
    """Whether no other object of the picture has the answer too."""
    what = {"color": lambda t: t.color, "shape": lambda t: t.shape, "size": lambda t: t.size}.get(
        case.kind, lambda t: asked.places(t.x, t.y)[0]
    )
    return [what(t) for t in case.scene.things].count(what(case.thing)) == 1


def picture_rows(vita, count, seed):
    """For each rightly answered question: (hits of each map as a dict, the share that would hit, whether it is alone)."""
    rows, questions = [], 0
    for case in cases(count, seed):
        seen = look(vita, case.text, images=[case.image])
        questions += 1
        if seen.text.strip() in case.answers:
            columns = [p.index for p in seen.positions if p.kind == "image"]
            rows.append((*score(seen, columns, hits_outline(case)), is_alone(case)))
    return rows, questions


def spoken_rows(vita, count, seed):
    """The same for spoken questions and the word that decides."""
    rng, rows, questions = random.Random(seed), [], 0
    for case in cases(count, seed + 1):
        if case.kind not in ("color", "shape"):
            continue
        word = case.thing.shape if case.kind == "color" else case.thing.color
        said = speech.speak(case.text, speech.manner(rng, "known voices"))
        seen = look(vita, "", images=[case.image], audios=[(torch.from_numpy(said.samples.copy()), said.rate)])
        questions += 1
        if seen.text.strip() in case.answers:
            start, stop = word_time(case.text, word, said)
            sound = [p for p in seen.positions if p.kind == "audio"]
            hit = np.array([start - 0.04 <= (p.start + p.end) / 2 <= stop + 0.04 for p in sound])
            rows.append((*score(seen, [p.index for p in sound], hit), is_alone(case)))
    return rows, questions


def score(seen, columns, hit):
    """Whether each map's highest of these columns hits, and the share of them that would."""
    return {name: bool(hit[np.argmax(values[columns])]) for name, values in maps_of(seen).items()}, float(hit.mean())


def word_time(text, word, said):
    """(start, end) in seconds of a word, as espeak-ng tells."""
    at, starts = text.index(f" {word}") + 1, sorted(said.words)
    heard = (np.flatnonzero(np.abs(said.samples) > 0.003)[-1] + 1) / said.rate
    [(number, start)] = [(i, time) for i, (character, time) in enumerate(starts) if character == at]
    return start, starts[number + 1][1] if number + 1 < len(starts) else heard


def shares(rows):
    """The share of hits of each map; the best layer or head is the best one on the first half, measured on the second."""
    train, test = rows[: len(rows) // 2], rows[len(rows) // 2 :]

    def share(part, name):
        return float(np.mean([hits[name] for hits, *_ in part]))

    best = max((name for name in rows[0][0] if name.startswith("layer")), key=lambda name: share(train, name))
    found = {name: share(rows, name) for name in MAPS} | {"best layer or head": share(test, best)}
    return found | {"chance": float(np.mean([chance for _, chance, _ in rows]))}, best


def report_of(rows, questions):
    """The numbers of one part: of questions whose answer one object alone has, and of those that share it."""
    parts = {"alone": [row for row in rows if row[2]], "shared": [row for row in rows if not row[2]]}
    found, best = shares(parts["alone"])
    report = {"questions": questions, "right": len(rows), "counted": len(parts["alone"]), "best": best, "shares": found}
    return report | {"shared": {"counted": len(parts["shared"]), "shares": shares(parts["shared"])[0]}}


def write(report):
    """The table as a page, and the numbers for the pages of looks."""
    columns = [report["pictures"], report["pictures"]["shared"], report["spoken"], report["spoken"]["shared"]]
    lines = [
        "# How far to trust a map",
        "",
        f"`{report['command']} --write` measures this on the demo weights; its docstring says what counts as a hit.",
        "Maps of other weights may be better or worse.",
        "",
        "| map | pictures: the peak is inside the object | the same, the answer is shared | spoken questions: the peak is on the deciding word | the same, shared |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in [*MAPS, "best layer or head", "chance"]:
        lines.append(f"| {MAPS.get(name, name)} | " + " | ".join(f"{100 * c['shares'][name]:.1f} %" for c in columns) + " |")
    lines.append("| questions | " + " | ".join(str(c["counted"]) for c in columns) + " |")
    for part in ("pictures", "spoken"):
        r = report[part]
        lines += ["", f"{part.capitalize()}: {r['questions']} questions, {r['right']} answered rightly. Best: {r['best']}."]
    rest = TABLE.read_text(encoding="utf-8").partition(TIMES)[2] if TABLE.exists() else ""  # which is written by hand
    TABLE.write_text("\n".join(lines) + f"\n\n{TIMES}{rest or chr(10)}", encoding="utf-8")
    NUMBERS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv=None):
    """Entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=45)
    parser.add_argument("--spoken", type=int, default=30, help="pictures with spoken questions")
    parser.add_argument("--seed", type=int, default=701)
    parser.add_argument("--write", action="store_true", help="write tools/look.md and the numbers that pages show")
    a = parser.parse_args(argv)
    vita, report = Vita.from_pretrained(kernels="plain"), {}
    for part, rows_of, count in (("pictures", picture_rows, a.pictures), ("spoken", spoken_rows, a.spoken)):
        rows, questions = rows_of(vita, count, a.seed)
        report[part] = report_of(rows, questions)
    report["command"] = f"python tools/measure_look.py --pictures {a.pictures} --spoken {a.spoken} --seed {a.seed}"
    if a.write:
        write(report)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
