"""How often the demo weights are right, on pictures that they have never seen.

The pictures come from a renderer that training did not use (`tests/second_world.py`), one group of
ordinary ones and one of pictures with a kept-out pair of colour and shape, where only questions that
turn on such an object are asked. Films come from there too; spoken questions are said by espeak-ng (which
must be installed) in manners that training did not hear. An answer counts when it is, to the letter, one that the demo
world's description allows. A section is a generator of `Task` that stands in the list in `main`.

Run: ``python tools/measure_demo.py --pictures 400``. Test: ``pytest tests/test_second_world.py``
"""

import argparse
import io
import json
import random
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

import second_world as world  # from tests/


class Task(NamedTuple):
    """One question to the model and how its answer is counted."""

    group: str  # a pair of columns of the table
    kind: str  # a row of the table
    details: tuple  # finer rows, which the means leave out
    request: dict  # as `Vita.respond_batch` takes it
    answers: tuple  # all that count as right
    said: str = ""  # the question, where it is spoken


def choose(scenes, held_out, rng):
    """About as many questions of each kind as there are scenes: one a scene, more where few scenes have any."""
    pools, chosen = [], [[] for _ in scenes]
    for scene in scenes:
        strange = world.KEPT_OUT & {t.pair for t in scene.things}
        pools.append(world.mixed([q for q in world.questions(scene) if not held_out or q.about & strange], rng))
    for kind in world.KINDS:
        room = len(scenes)
        for turn in range(3):
            for mine, pool in zip(chosen, pools):
                of_kind = [q for q in pool if q.kind == kind]
                if room and len(of_kind) > turn:
                    mine.append(of_kind[turn])
                    room -= 1
    return chosen


def loosen(text, rng):
    """The same question with what the model must not mind: colour for color, other case, no final mark."""
    if rng.integers(2):
        text = text.replace("color", "colour")
    if rng.integers(2):
        text = text[:-1]
    return (text, text.lower(), text.upper())[rng.integers(3)]


def picture_tasks(pictures, seed, loose):
    """Questions about ordinary pictures and about ones with kept-out pairs, drawn as they are needed."""
    for held_out, group in enumerate(("ordinary", "kept out")):
        rng = np.random.default_rng([seed, held_out])
        scenes = [world.random_scene(rng, bool(held_out)) for _ in range(pictures)]
        for scene, chosen in zip(scenes, choose(scenes, held_out, rng)):
            image = world.picture(scene)
            reading = "radius is half the box" if scene.by_box else "radius to the farthest point"
            for question in chosen:
                finer = {"describe": f"describe {len(scene.things)}", "size": f"size, {reading}"}
                details = (reading, finer.get(question.kind, ""))
                request = {"prompt": question.text, "images": [image]}
                yield Task(group, question.kind, details, request, question.answers)
                if loose:
                    request = request | {"prompt": loosen(question.text, rng)}
                    yield Task(f"{group}, loose", question.kind, details, request, question.answers)


def video_tasks(clips, seed):
    """Questions about clips without and with kept-out pairs, shown as so many pictures."""
    for held_out, group in enumerate(("ordinary", "kept out")):
        rng = np.random.default_rng([seed, 2, held_out])
        for _ in range(clips):
            frames, way = world.random_clip(rng, bool(held_out))
            images = [world.picture(frame) for frame in frames]
            for question in world.clip_questions(frames, way):
                if not held_out or question.about & world.KEPT_OUT:
                    details = (f"{question.kind}: {question.answers[0]}" if question.kind == "which way" else "",)
                    request = {"prompt": question.text, "images": images}
                    yield Task(group, question.kind, details, request, question.answers)


def spoken_tasks(pictures, seed):
    """Spoken questions at speeds and pitches that training lacks: known voices, strange ones, and kept-out pairs."""
    from tools.demo import speech

    for i, group in enumerate((*speech.GROUPS, "kept-out pairs")):
        rng, manners = np.random.default_rng([seed, 3, i]), random.Random(f"{seed} {i}")
        held_out = i == len(speech.GROUPS)
        scenes = [world.random_scene(rng, held_out) for _ in range(pictures)]
        for scene, chosen in zip(scenes, choose(scenes, held_out, rng)):
            image = world.picture(scene)
            for question in chosen:
                manner = speech.manner(manners, speech.GROUPS[0] if held_out else group)
                new = "sentences new to the ear" if speech.is_kept_out(question.text) else ""
                details = (manner.voice.partition("+")[0], new)
                request = {"prompt": None, "images": [image], "audios": [recording(question.text, manner, rng)]}
                yield Task(group, question.kind, details, request, question.answers, question.text)


def recording(text, manner, rng):
    """A wav file, 16 kHz mono, as espeak-ng says it, with a little noise and louder or softer."""
    import soundfile
    import soxr

    from tools.demo import speech

    said, file = speech.speak(text, manner), io.BytesIO()
    samples = soxr.resample(said.samples, said.rate, 16000) * rng.uniform(0.3, 1)
    samples += rng.normal(0, rng.uniform(0, 0.005), len(samples))
    soundfile.write(file, samples.clip(-1, 1), 16000, format="WAV")
    file.seek(0)
    return file


def examine(tasks, answer_batch, batch_size=64):
    """Yields (task, answer, right) for every task; `answer_batch` makes a list of str from a list of requests."""
    tasks = iter(tasks)
    while batch := list(islice(tasks, batch_size)):
        for task, answer in zip(batch, answer_batch([t.request for t in batch]), strict=True):
            asked = task._replace(request={"prompt": task.request["prompt"]})  # the picture can go
            yield asked, answer, answer.strip() in task.answers


def share(marks):
    """{name: {"asked": how many, "right": %}} from (name, whether right) pairs."""
    names = {}
    for name, right in marks:
        names.setdefault(name, []).append(right)
    return {name: {"asked": len(found), "right": 100 * sum(found) / len(found)} for name, found in names.items()}


def summarise(examined):
    """For each group: what `share` gives for its kinds, for the means over both, and for its details."""
    summary = {}
    for group in dict.fromkeys(task.group for task, _, _ in examined):
        mine = [(task, right) for task, _, right in examined if task.group == group]
        kinds = share((task.kind, right) for task, right in mine)
        means = share(("mean over questions", right) for _, right in mine)
        means["mean over kinds"] = {"asked": len(mine), "right": np.mean([k["right"] for k in kinds.values()]).item()}
        details = share((name, right) for task, right in mine for name in filter(None, task.details))
        summary[group] = {"kinds": kinds, "means": means, "details": details}
    return summary


def table(summary):
    """The summary as text: how many were asked and how many % right, by kind, over all, and by detail."""
    lines = [" " * 28 + "".join(f"{group:>22}" for group in summary)]
    for part in ("kinds", "means", "details"):
        for row in sorted({name for groups in summary.values() for name in groups[part]}):
            cells = [groups[part].get(row) for groups in summary.values()]
            shown = [f"{c['asked']:>13}{c['right']:>7.1f} %" if c else f"{'-':>22}" for c in cells]
            lines.append(f"{row:<28}" + "".join(shown))
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=ROOT / "weights" / "demo", help="checkpoint folder")
    parser.add_argument("--pictures", type=int, default=400, help="in each group; as many clips; a quarter, spoken")
    parser.add_argument("--sections", nargs="+", default=["pictures"], choices=["pictures", "video", "spoken"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loose", action="store_true", help="ask again in other case, as colour, without final mark")
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="show the first N wrong answers")
    parser.add_argument("--quantize", choices=["int8"], help="how many answers are lost with whole-number weights")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    from vita_ref import Vita

    ask = partial(Vita.from_pretrained(args.model, quantize=args.quantize).respond_batch, max_new_tokens=48)
    sections = {
        "pictures": picture_tasks(args.pictures, args.seed, args.loose),
        "video": video_tasks(args.pictures, args.seed),
        "spoken": spoken_tasks(args.pictures // 4, args.seed),
    }
    sections = {name: sections[name] for name in args.sections}
    examined = {name: list(examine(tasks, ask)) for name, tasks in sections.items()}
    summaries = {name: summarise(found) for name, found in examined.items()}
    if args.json:
        print(json.dumps({"pictures": args.pictures, "seed": args.seed, "sections": summaries}, indent=1))
    else:
        print("\n".join(f"{name}\n{table(summary)}" for name, summary in summaries.items()))
    wrong = (asked[:2] for found in examined.values() for asked in found if not asked[2])
    for task, answer in islice(wrong, args.wrong):
        question = task.said or task.request["prompt"]
        print(f"{task.group}: {question} {answer!r}, expected {task.answers[0]!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
