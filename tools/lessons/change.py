"""Change something: three experiments with the demo model, each a few minutes of training or none.

    projector   trains the projector anew, from random numbers, and shows which questions suffer
    colour      teaches the decoder a colour that it has never met, and shows what it forgets
    two         asks about two pictures at once; with --minutes it teaches the decoder the first and the second picture

Pictures and questions come from the demo's trainer (`tools/demo`): every one is new. Nothing is saved.

Test: ``pytest tests/tools/test_lessons_more.py``
"""

import random
import sys
import time
from dataclasses import replace

import torch

from tools.demo import draw, questions, rows, scene
from tools.demo.model import as_pixels
from tools.demo.stage import share
from vita_ref import Vita
from vita_ref.loading import demo_folder

BATCH, RATE, WARM_UP = 8, 1e-3, 20
HEIGHT, WIDTH = 10, 60  # of the curve, in characters


class World:
    """The demo model ready for training, and rows of questions about new pictures."""

    def __init__(self, seed=0):
        import sentencepiece

        self.vita = Vita.from_pretrained(dtype=torch.float32, kernels="plain", mmap=False)
        self.config = self.vita.config
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(demo_folder() / "tokenizer.model"))
        self.rng = random.Random(seed)
        torch.manual_seed(seed)
        for p in self.vita.parameters():
            p.requires_grad_(False)

    def packer(self, rng=None):
        packer = rows.Packer(self.sp, rng or self.rng)
        packer.vary = False
        return packer

    @torch.no_grad()
    def tower(self, scenes, rng=None):
        """What the vision tower gives for pictures of scenes: [N, I, width]."""
        side = self.config.vision.image_size
        pixels = as_pixels([draw.picture(s, rng or self.rng, side) for s in scenes], self.config)
        return self.vita.vision(pixels)

    def row(self, pictures, talks, packer=None):
        """One row about so many pictures, without the marks that this tokenizer does not know."""
        made = (packer or self.packer()).row(pictures * self.config.vision.num_positions, talks)
        kept = [i for i, token in enumerate(made.ids) if not (token == rows.UNKNOWN and made.labels[i] in (rows.UNKNOWN, rows.IGNORE))]
        if len(kept) == len(made.ids):
            return made
        out = rows.Row(kinds=made.kinds)
        out.ids, out.labels, out.segments = ([part[i] for i in kept] for part in (made.ids, made.labels, made.segments))
        before = {s: 0 for s in out.segments}
        first = out.segments.count(0)
        for s in out.segments:
            out.positions.append(before[s] + (first if s else 0))
            before[s] += 1
        return out

    def losses(self, features, made):
        """The mean loss of the answers of rows; features is [n, D], the rows of all pictures."""
        each, _ = rows.answer_losses(self.vita.decoder, {rows.IMAGE: features}, *rows.collate(made))
        return each.mean()

    @torch.no_grad()
    def marks(self, features, made):
        """(kind, whether right) of every answer."""
        return rows.exact_answers(self.vita.decoder, {rows.IMAGE: features}, made)


class Curve:
    """The loss on the screen: drawn again and again on a terminal, else a line now and then."""

    def __init__(self, file=None, every=10.0):
        self.file, self.every, self.values, self.last, self.drawn = file or sys.stdout, every, [], 0.0, 0
        self.live = self.file.isatty()

    def add(self, value, spent, limit):
        self.values.append(value)
        now = time.monotonic()
        if now - self.last < (0.5 if self.live else self.every):
            return
        self.last = now
        tail = self.values[-20:]
        line = f"{len(self.values)} steps, loss {sum(tail) / len(tail):.3f}, {spent / 60:.1f} of {limit / 60:.1f} minutes"
        self.show([*plot(self.values), line] if self.live else [line])

    def show(self, lines):
        up = f"\x1b[{self.drawn}A" if self.live and self.drawn else ""
        end = "\x1b[K\n" if self.live else "\n"
        self.file.write(up + end.join([*lines, ""]))
        self.file.flush()
        self.drawn = len(lines)

    def finish(self):
        """The whole curve, once more, where it is not on the screen already."""
        if not self.live and self.values:
            self.show(plot(self.values))


def plot(values, width=WIDTH, height=HEIGHT):
    """A curve as lines of text: means of equally many values from left to right, 0 at the bottom."""
    n = min(width, len(values))
    means = [sum(part) / len(part) for part in (values[len(values) * i // n : len(values) * (i + 1) // n] for i in range(n))]
    top = max(means) or 1.0
    level = [round(m / top * (height - 1)) for m in means]
    lines = ["".join("*" if at == y else " " for at in level) for y in range(height - 1, -1, -1)]
    return [f"{top:6.2f} |{lines[0]}", *(f"       |{line}" for line in lines[1:]), f"     0 +{'-' * n}> steps"]


def train(parameters, batch, minutes, rate=RATE, curve=None, steps=None):
    """Steps of AdamW until the time is over, or so many steps. ``batch()`` gives a loss. Returns the losses."""
    parameters = [p.requires_grad_(True) for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    curve, start, limit = curve or Curve(), time.monotonic(), 60 * minutes
    while True:
        spent, step = time.monotonic() - start, len(curve.values)
        if step >= steps if steps is not None else spent >= limit:
            break
        left = 1 - (step / steps if steps is not None else spent / limit)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP) * max(left, 0.05)
        loss = batch()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        curve.add(loss.item(), spent, limit)
    curve.finish()
    for p in parameters:
        p.requires_grad_(False)
    return curve.values


def percentages(marks):
    """How many % are right, and of how many, by name."""
    names = {}
    for name, right in marks:
        names.setdefault(name, []).append(right)
    return {name: (100 * sum(v) / len(v), len(v)) for name, v in sorted(names.items())}


def table(before, after, first, second):
    """Two measurements by kind of question, the largest losses first."""
    a, b = percentages(before), percentages(after)
    out = [f"{'question':16} {'answers':>7} {first:>14} {second:>14}"]
    for name in sorted(a, key=lambda n: b[n][0] - a[n][0]):
        out.append(f"{name:16} {a[name][1]:7} {a[name][0]:12.0f} % {b[name][0]:12.0f} %")
    whole = [100 * sum(right for _, right in marks) / len(marks) for marks in (before, after)]
    return [*out, f"{'all':16} {len(before):7} {whole[0]:12.0f} % {whole[1]:12.0f} %"]


# ---- the projector


def exam(world, count=48, seed="exam"):
    """What the tower gives for pictures that are not trained on, and rows with a question of each kind about them."""
    rng = random.Random(seed)
    packer, scenes = world.packer(rng), [scene.sample_scene(rng) for _ in range(count)]
    seen = world.tower(scenes, rng)
    made = [world.row(1, ([turn] for turn in every_kind(s, rng)), packer) for s in scenes]
    return seen, made


def every_kind(s, rng):
    """A question of each kind about a scene."""
    kinds = list(questions.ASKERS)
    rng.shuffle(kinds)
    return filter(None, (questions.ask(s, kind, rng) for kind in kinds))


def projector(minutes=5.0, seed=0, steps=None, count=48, show=print):
    """Trains a new projector through the frozen decoder, and measures it beside the one that came with the weights."""
    world = World(seed)
    vita, (seen, made) = world.vita, exam(world, count)
    before = world.marks(vita.projector(seen), made)
    for layer in vita.projector:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    untrained = world.marks(vita.projector(seen), made)
    show(f"The projector that came with the weights: {share([('right', ok) for _, ok in before])} %. "
         f"A new one, of random numbers: {share([('right', ok) for _, ok in untrained])} %. Training it:")

    def batch():
        scenes = [scene.sample_scene(world.rng) for _ in range(BATCH)]
        features = vita.projector(world.tower(scenes))
        packer = world.packer()
        return world.losses(features, [world.row(1, packer.turns(s, talks=False), packer) for s in scenes])

    values = train(vita.projector.parameters(), batch, minutes, curve=Curve(), steps=steps)
    after = world.marks(vita.projector(seen), made)
    show("\n".join(table(before, after, "as it came", "trained anew")))
    show("Questions at the top have lost most. Those at the bottom have recovered, or were not answered before. What have they in common?")
    if 2 * sum(ok for _, ok in before) < len(before):
        show("The weights in this checkout answer few of these questions at all: they were trained on an earlier version of the demo world. Look only at the differences.")
    return values, before, after


# ---- a colour


def colour(name="turquoise", rgb=(40, 190, 180), minutes=5.0, seed=0, steps=None, count=24, show=print):
    """Teaches the decoder one more colour, among ordinary pictures, and asks about both before and after."""
    if not name.isalpha() or not name.islower():
        raise ValueError(f"a colour is one word of small letters, got {name!r}")
    if name in scene.COLOURS:
        raise ValueError(f"{name} is a colour of the demo world already: {', '.join(scene.COLOURS)}")
    world = World(seed)
    vita = world.vita
    ordinary, rng = exam(world, count), random.Random("colour")
    new_scenes = [coloured(rng, name, rgb) for _ in range(count)]
    packer = world.packer(rng)
    new = world.tower(new_scenes, rng), [world.row(1, about(s, name, rng), packer) for s in new_scenes]

    def ask():
        groups = (("ordinary", *ordinary), (name, *new))
        return [(group, ok) for group, seen, made in groups for _, ok in world.marks(vita.projector(seen), made)]

    before = ask()
    show(f"Before: {share(before)} % right. Training the decoder, half of the pictures with something {name}:")

    def batch():
        scenes = [coloured(world.rng, name, rgb) if i % 2 else scene.sample_scene(world.rng) for i in range(BATCH)]
        packer = world.packer()
        talks = [about(s, name, world.rng) if i % 2 else packer.turns(s, talks=False) for i, s in enumerate(scenes)]
        return world.losses(vita.projector(world.tower(scenes)), [world.row(1, t, packer) for t, in zip(talks)])

    values = train(vita.decoder.parameters(), batch, minutes, rate=2e-4, steps=steps)
    after = ask()
    show("\n".join(table(before, after, "before", "after")))
    show(f"The vision tower has never been told of {name}, and did not change. What does that say about what it writes?")
    return values, before, after


def coloured(rng, name, rgb):
    """A scene in which one thing has the new colour."""
    while True:
        made = scene.sample_scene(rng)
        if sum((a - b) ** 2 for a, b in zip(rgb, made.background)) < scene.OTHER**2:
            continue
        shade = tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in rgb)
        first = replace(made.things[0], color=name, rgb=shade)
        return replace(made, things=(first, *made.things[1:]))


def about(s, name, rng):
    """Questions whose answer has the new colour in it."""
    thing = next(t for t in s.things if t.color == name)
    only = sum(t.shape == thing.shape for t in s.things) == 1
    kinds = ["describe", *(["color"] * 2 if only else []), "shape", "where"]
    rng.shuffle(kinds)
    refs = {"color": questions.Ref(None, thing.shape), "shape": questions.Ref(name), "where": questions.Ref(name, thing.shape)}
    for kind in kinds:
        if kind == "describe":
            yield [questions.ask(s, "describe", rng)]
        elif turn := questions.ask(s, kind, rng, refs[kind]):
            yield [turn]


# ---- two pictures


def two(minutes=0.0, seed=0, steps=None, count=24, show=print):
    """Asks about two pictures at once. With time, the decoder learns what "the first picture" means."""
    world = World(seed)
    vita, rng = world.vita, random.Random("two")
    pairs = [pair(rng) for _ in range(count)]
    first = pairs[0]
    images = [draw.draw(s, 224, 224, random.Random(1)) for s in first]
    for i, s in enumerate(first, 1):
        show(f"picture {i}: {questions.describe(s)}")
    question = "What color is the object?"
    for said, shown in ((f"{question} (picture 1 alone)", images[:1]), (f"{question} (picture 2 alone)", images[1:]), (f"{question} (both)", images)):
        show(f"{said:44} {vita.respond(question, images=shown, max_new_tokens=30)}")
    for which in ("first", "second"):
        asked = f"In the {which} picture, what color is the object?"
        show(f"{asked:44} {vita.respond(asked, images=images, max_new_tokens=30)}")
    packer = world.packer(rng)
    seen = world.tower([s for both in pairs for s in both], rng)
    made = [world.row(2, which_picture(both, rng), packer) for both in pairs]
    before = world.marks(vita.projector(seen), made)
    show(f"Questions about the first or the second of two pictures: {share([('right', ok) for _, ok in before])} %.")
    if not minutes and steps is None:
        show("The demo has seen single pictures and films in training. With --minutes 5 you can teach it the difference.")
        return [], before, before

    def batch():
        both = [pair(world.rng) for _ in range(BATCH)]
        features = vita.projector(world.tower([s for p in both for s in p]))
        return world.losses(features, [world.row(2, which_picture(p, world.rng), world.packer()) for p in both])

    values = train(vita.decoder.parameters(), batch, minutes, rate=2e-4, steps=steps)
    after = world.marks(vita.projector(seen), made)
    show("\n".join(table(before, after, "before", "after")))
    return values, before, after


def pair(rng):
    """Two scenes of one object each, of different colours."""
    while True:
        made = [scene.sample_scene(rng, count=1) for _ in "ab"]
        if made[0].things[0].color != made[1].things[0].color:
            return made


def which_picture(both, rng):
    """Questions about the first or the second picture."""
    while True:
        i = rng.randrange(2)
        thing = both[i].things[0]
        kind, answer = rng.choice((("color", questions.color_answers), ("shape", questions.shape_answers), ("size", questions.size_answers)))
        text = f"In the {('first', 'second')[i]} picture, what {kind} is the object?"
        yield [questions.Turn(kind, text, answer(thing))]


EXPERIMENTS = {"projector": projector, "colour": colour, "two": two}
