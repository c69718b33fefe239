"""How often the demo weights are right, on pictures that they have never seen: the table of bounds, from one command.

Pictures come from a renderer that training did not use (`tests/tools/second_world.py`), with seeds of their own. Spoken
questions are said by espeak-ng (which must be installed) in manners that training did not hear. An answer counts when it
is, to the letter, one that the demo world's description allows. A section is a generator of `Task`; the sections stand in
`SECTIONS`, the bounds in `BOUNDS`.

Run: ``python tools/demo/measure.py --pictures 300 --seed 201``. Test: ``pytest tests/tools/test_second_world.py``
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

import second_outside as outside  # from tests/tools
import second_questions as asked
import second_world as world

PICTURE_GROUPS = {
    "ordinary": world.Style(),
    "kept-out pairs": world.Style(held_out=True),
    "huge alone": world.Style(counts=(1,), huge=1),
    "huge among others": world.Style(counts=(2, 3), huge=1),
    "formats": world.Style(format=True),
    "other backgrounds": world.Style(ground="other"),
    "gradients": world.Style(ground="gradient"),
    "pure colours": world.Style(pure=True),
}
BOUNDS = {  # (group, row or None for the mean over kinds) -> the least share in %
    ("ordinary", None): 98.5, ("kept-out pairs", None): 97, ("ordinary", "describe"): 97, ("kept-out pairs", "describe"): 95,
    ("huge alone", None): 98.5, ("huge among others", None): 97, ("formats", None): 97, ("other backgrounds", None): 97,
    ("gradients", None): 97, ("pure colours", None): 97, ("kept-out wordings", None): 96, ("troubled", "missing"): 97,
    ("troubled", "ambiguous"): 97, ("ordinary", "compare"): 96, ("ordinary", "beside"): 96, ("follow-ups", None): 93,
    ("outside, kinds of training", None): 98, ("outside, other kinds", None): 90, ("inside, not refused", None): 99.5,
    ("other questions", None): 95, ("known voices", None): 96, ("strange variants", None): 94, ("strange accent", None): 90,
    ("films", "which way"): 97, ("films", "describe film"): 95,
}  # fmt: skip
REFUSALS = (asked.NO_SHAPE, asked.MANY, asked.REFUSAL)


class Task(NamedTuple):
    """One question to the model and how its answer is counted."""

    group: str  # a column of the table
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
        pools.append(asked.mixed([q for q in asked.questions(scene) if not held_out or q.about & strange], rng))
    for kind in asked.KINDS:
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


def picture_tasks(count, seed):
    """Questions of every kind about every group of pictures, and of the ordinary ones loosened and reworded."""
    for number, (group, style) in enumerate(PICTURE_GROUPS.items()):
        rng = np.random.default_rng([seed, number])
        pictures = count if number < 4 else (count + 1) // 2
        scenes = [world.random_scene(rng, style) for _ in range(pictures)]
        for scene, chosen in zip(scenes, choose(scenes, style.held_out, rng)):
            image = world.picture(scene)
            for question in chosen:
                finer = (f"describe {len(scene.things)}",) if question.kind == "describe" else ()
                yield Task(group, question.kind, finer, {"prompt": question.text, "images": [image]}, question.answers)
                if group == "ordinary":
                    for name, text in (("loosened", loosen(question.text, rng)), ("kept-out wordings", asked.reworded(question, rng))):
                        yield Task(name, question.kind, finer, {"prompt": text, "images": [image]}, question.answers)


def trouble_tasks(count, seed):
    """Questions about objects that are missing or not unique."""
    rng = np.random.default_rng([seed, 20])
    for _ in range(count):
        scene = world.random_scene(rng, world.Style(counts=(1, 2, 3)))
        image, found = world.picture(scene), asked.troubled_questions(scene, rng)
        for kind in ("missing", "ambiguous"):
            for question in asked.mixed([q for q in found if q.kind == kind], rng)[:2]:
                yield Task("troubled", kind, (), {"prompt": question.text, "images": [image]}, question.answers)


def outside_tasks(count, seed):
    """Pictures that are outside the world, asked for a description and one more question, and other questions."""
    rng = np.random.default_rng([seed, 30])
    groups = {"outside, kinds of training": outside.KNOWN_KINDS, "outside, other kinds": outside.KEPT_OUT_KINDS}
    for group, kinds in groups.items():
        for kind in kinds:
            for _ in range(max(1, count // 8)):
                image, other = outside.outside_picture(kind, rng), asked.questions(world.random_scene(rng))
                answer = asked.MANY if kind == "many" else asked.NO_SHAPE
                for text in ("Describe the image.", other[rng.integers(len(other))].text):
                    yield Task(group, kind, (), {"prompt": text, "images": [image]}, (answer,))
    for text in asked.OTHER_QUESTIONS:
        image = world.picture(world.random_scene(rng))
        strange = outside.outside_picture("noise", rng)
        for kind, images in (("with a picture", [image]), ("without one", []), ("outside picture", [strange])):
            yield Task("other questions", kind, (), {"prompt": text, "images": images}, (asked.REFUSAL,))


def film_tasks(count, seed):
    """Questions about films without and with kept-out pairs, shown as so many pictures."""
    for held_out, group in enumerate(("films", "films, kept-out pairs")):
        rng = np.random.default_rng([seed, 2, held_out])
        for _ in range(count):
            frames, way = world.random_clip(rng, bool(held_out))
            images = [world.picture(frame) for frame in frames]
            for question in asked.clip_questions(frames, way):
                if not held_out or question.about & world.KEPT_OUT:
                    details = (f"{question.kind}: {question.answers[0]}",) if question.kind == "which way" else ()
                    yield Task(group, question.kind, details, {"prompt": question.text, "images": images}, question.answers)


def spoken_tasks(count, seed):
    """Spoken questions at speeds and pitches that training lacks: known voices, strange ones, kept-out pairs; and noise."""
    from tools.demo import speech

    for i, group in enumerate((*speech.GROUPS, "spoken, kept-out pairs")):
        rng, manners = np.random.default_rng([seed, 3, i]), random.Random(f"{seed} {i}")
        held_out = i == len(speech.GROUPS)
        scenes = [world.random_scene(rng, world.Style(held_out)) for _ in range((count + 3) // 4)]
        for scene, chosen in zip(scenes, choose(scenes, held_out, rng)):
            image = world.picture(scene)
            for question in chosen:
                manner = speech.manner(manners, speech.GROUPS[0] if held_out else group)
                new = ("sentences new to it",) if speech.is_kept_out(question.text) else ()
                request = {"prompt": None, "images": [image], "audios": [recording(question.text, manner, rng)]}
                yield Task(group, question.kind, (manner.voice.partition("+")[0], *new), request, question.answers, question.text)
    for text in asked.OTHER_QUESTIONS:
        request = {"prompt": None, "audios": [recording(text, speech.manner(manners, speech.GROUPS[0]), rng)]}
        yield Task("no question", "talk", (), request, ("",), text)
        hiss = {"prompt": None, "audios": [_wav(rng.normal(0, 10 ** rng.uniform(-3, -1), 16000 * 2))]}
        yield Task("no question", "noise", (), hiss, ("",), "(noise)")


def recording(text, manner, rng):
    """A wav file, 16 kHz mono, as espeak-ng says it, with a little noise and louder or softer."""
    import soxr

    from tools.demo import speech

    said = speech.speak(text, manner)
    samples = soxr.resample(said.samples, said.rate, 16000) * rng.uniform(0.3, 1)
    return _wav(samples + rng.normal(0, rng.uniform(0, 0.005), len(samples)))


def _wav(samples):
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), 16000, format="WAV")
    file.seek(0)
    return file


SECTIONS = {"pictures": picture_tasks, "troubled": trouble_tasks, "outside": outside_tasks, "films": film_tasks, "spoken": spoken_tasks}


def examine(tasks, answer_batch, batch_size=64):
    """Yields (task, answer, right) for every task; `answer_batch` makes a list of str from a list of requests."""
    tasks = iter(tasks)
    while batch := list(islice(tasks, batch_size)):
        for task, answer in zip(batch, answer_batch([t.request for t in batch]), strict=True):
            small = task._replace(request={"prompt": task.request["prompt"]})  # the picture can go
            yield small, answer, answer.strip() in task.answers


def converse(count, seed, answer_batch, turns=4):
    """Yields (task, answers, right) of whole conversations, laid out with the demo's template and the model's own answers."""
    rng, talks = np.random.default_rng([seed, 40]), []
    while len(talks) < count:
        scene = world.random_scene(rng)
        said = asked.conversation(scene, rng, turns)
        if len(said) == turns:
            talks.append((world.picture(scene), said, []))
    for turn in range(turns):
        prompts = []
        for image, said, given in talks:
            earlier = "".join(f"<|user|>{text}<|assistant|>{answer}<|end|>" for (text, _), answer in zip(said, given))
            prompt = f"{earlier}<|user|>{said[turn][0]}<|assistant|>"
            prompts.append({"prompt": prompt.replace("<|user|>", "<|user|><image>", 1), "images": [image], "raw": True})
        for (_, _, given), answer in zip(talks, answer_batch(prompts)):
            given.append(answer.strip())
    for _, said, given in talks:
        right = [answer in answers for answer, (_, answers) in zip(given, said)]
        request, answers = {"prompt": " / ".join(text for text, _ in said)}, tuple(a[0] for _, a in said)
        task = Task("follow-ups", f"all of {turns} turns", (), request, answers)
        yield task, " / ".join(given), all(right)


def refusals(examined):
    """(task, answer, right) once more for every answer about ordinary pictures: whether it was no refusal."""
    for task, answer, _ in examined:
        if task.group in PICTURE_GROUPS:
            yield task._replace(group="inside, not refused", kind="all", details=()), answer, answer.strip() not in REFUSALS


def share(marks):
    """{name: {"asked": how many, "right": %}} from (name, whether right) pairs."""
    names = {}
    for name, right in marks:
        names.setdefault(name, []).append(right)
    return {name: {"asked": len(marks), "right": 100 * sum(marks) / len(marks)} for name, marks in names.items()}


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


def bounds_table(summary, losses=()):
    """The bounds as text: what was asked for, what was measured, of how many questions."""
    lines = [f"{'what':<42}{'bound':>8}{'measured':>10}{'asked':>8}"]
    for (group, row), least in BOUNDS.items():
        if group in summary:
            cell = summary[group]["means"]["mean over kinds"] if row is None else summary[group]["kinds"].get(row)
            if cell:
                name, mark = f"{group}{': ' + row if row else ''}", "" if cell["right"] >= least else "  MISSED"
                lines.append(f"{name:<42}{least:>8}{cell['right']:>10.1f}{cell['asked']:>8}{mark}")
    for name, most, lost in losses:
        lines.append(f"{name + ' loses, points':<42}{most:>8}{lost:>10.1f}{'':>8}{'' if lost <= most else '  MISSED'}")
    return "\n".join(lines)


def tables(summary):
    """Each group by kind and by detail, as text."""
    for group, parts in summary.items():
        yield group
        for part in parts.values():
            yield from (f"  {row:<40}{c['asked']:>8}{c['right']:>8.1f} %" for row, c in sorted(part.items()))


def measure(ask, sections, pictures, seed):
    """All marks of the sections named."""
    marks = [mark for name in sections if name in SECTIONS for mark in examine(SECTIONS[name](pictures, seed), ask)]
    if "pictures" in sections:
        marks += list(refusals(marks))
    if "follow-ups" in sections:
        marks += list(converse(pictures, seed, ask))
    return marks


def quantized_losses(load, pictures, seed, right):
    """(name, most points to lose, points lost) of the ordinary answers with int8 and int4 weights."""
    for name, most in (("int8", 0.5), ("int4", 1.5)):
        tasks = (task for task in picture_tasks(pictures, seed) if task.group == "ordinary")
        summary = summarise(list(examine(tasks, load(name))))
        yield name, most, right - summary["ordinary"]["means"]["mean over kinds"]["right"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=ROOT / "weights" / "demo", help="checkpoint folder")
    parser.add_argument("--pictures", type=int, default=200, help="in each large group; half or a quarter in others")
    parser.add_argument("--sections", nargs="+", default=[*SECTIONS, "follow-ups"], choices=[*SECTIONS, "follow-ups"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="show the first N wrong answers of each group")
    parser.add_argument("--quantized", action="store_true", help="also how many points int8 and int4 weights lose")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    from vita_ref import Vita

    def load(quantize=None):
        return partial(Vita.from_pretrained(args.model, quantize=quantize).respond_batch, max_new_tokens=64)

    marks = measure(load(), args.sections, args.pictures, args.seed)
    summary, losses = summarise(marks), ()
    if args.quantized and "ordinary" in summary:
        right = summary["ordinary"]["means"]["mean over kinds"]["right"]
        losses = list(quantized_losses(load, args.pictures, args.seed, right))
    if args.json:
        print(json.dumps({"pictures": args.pictures, "seed": args.seed, "groups": summary, "losses": losses}, indent=1))
    else:
        print("\n".join(tables(summary)), bounds_table(summary, losses), sep="\n\n")
    for group in summary:
        wrong = (mark for mark in marks if mark[0].group == group and not mark[2])
        for task, answer, _ in islice(wrong, args.wrong):
            print(f"{group}: {task.said or task.request['prompt']} {answer!r}, expected {task.answers[0]!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
