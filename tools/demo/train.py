"""Trains the demo's eye and decoder: python tools/train_demo.py eye --work build/demo, and decoder

Apart, so that the two may run side by side: the eye learns to write what stands where as fixed random codes,
the decoder to answer from such codes, some of them of colours and shapes that are made up, so that it looks at both
and knows no pair by heart; ``train_ear.py`` then gives the model its ear and fits the parts together.
Several questions about one picture stand in one row, each seeing the picture and itself alone; the loss is
on answers. Every picture is drawn anew. A line every 20 steps, a save every 100; begun again where it stopped.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional as F

from tools.demo import world
from tools.demo.model import (
    ASSISTANT,
    END,
    USER,
    Model,
    Stage,
    as_pixels,
    code_loss,
    compile_layers,
    demo_config,
    make_tokenizer,
    odd_scenes,
    patch_labels,
    patch_loss,
    scene_codes,
)

IMAGE, UNKNOWN, ROW = -200, 1, 90  # the placeholder; a piece of its own; columns of a packed row
KINDS = {  # how often a question of each kind is put to a picture, relative to the others
    "describe": 3, "where": 3, "left_right": 3, "above_below": 3, "count_shape": 2.5, "count_color": 2.5,
    "count": 1, "exists": 2, "size": 1.5, "color": 1, "shape": 1,
}  # fmt: skip
# The decoder begins with plain scenes and mostly with questions that one look answers: told everything at once, it
# described and counted after 7,500 steps, and had not learned to find the thing that a question is about. So begun,
# it finds it after 2,000.
BEGINNING = 1 / 4  # of its steps
BEGINNERS = KINDS | {
    "describe": 1, "left_right": 2, "above_below": 2, "count_shape": 1, "count_color": 1,
    "exists": 4, "size": 3, "color": 5, "shape": 5,
}  # fmt: skip


class Packer:
    """Questions and answers as rows of ids, labels, positions and segment numbers."""

    def __init__(self, sp, seed):
        self.sp, self.rng, self.known = sp, random.Random(seed), {}
        self.user, self.assistant, self.end = (sp.piece_to_id(s) for s in (USER, ASSISTANT, END))
        # pieces of single bytes, which the world's language has no use for: two forms of each made-up colour, then shape
        self.made_up = [sp.piece_to_id(f"<0x{128 + i:02X}>") for i in range(4 * world.MADE_UP)]

    def ids(self, text):
        if text not in self.known:
            self.known[text] = self.sp.encode(text)
        return self.known[text]

    def pairs(self, scene, mixture=KINDS):
        """Questions about a scene by their ``mixture``, then chat; without end."""
        if scene is None:
            while True:
                if self.rng.random() < 0.5:
                    yield self.rng.choice(world.CHAT)
                else:
                    other = [kind for kind in world.questions(world.sample_scene(self.rng), self.rng).values() if kind]
                    yield self.rng.choice(self.rng.choice(other))[0], world.NO_PICTURE
        odd = scene.things[0].tint or scene.things[0].shape == "blob"
        found = {k: v for k, v in (world.odd_questions if odd else world.questions)(scene, self.rng).items() if v}
        kinds, weights = list(found), [mixture[k] for k in found]
        while True:
            if self.rng.random() < 0.01:
                yield self.rng.choice(world.CHAT)
            question, answers = self.rng.choice(found[self.rng.choices(kinds, weights)[0]])
            yield question, answers[0]

    def clip_pairs(self, frames):
        """Up to four questions about a clip."""
        found = [pair for items in world.clip_questions(frames).values() for pair in items]
        for question, answers in self.rng.choices(found, k=4) if found else ():
            yield question, answers[0]

    def clips(self, count):
        return [world.sample_clip(self.rng)[0] for _ in range(count)]

    def plain(self, count, places):
        """Codes of scenes, and rows about them for beginners."""
        seen = [world.sample_scene(self.rng) for _ in range(count)]
        return off(scene_codes(seen)), [self.row(places, self.pairs(s, BEGINNERS)) for s in seen] + [self.row(0, self.pairs(None))]

    def coded(self, count, places, of_clips):
        """Codes of scenes or of ``count // 2`` clips, many of what is made up, and rows about them."""
        rng = self.rng
        if of_clips:
            films = self.clips(count // 4)
            films += [world.renamed(world.sample_clip(rng, rng.random() < 0.3)[0], rng) for _ in range(count // 4)]
            rows = [self.row(places * len(frames), self.clip_pairs(frames), frames[0].names) for frames in films]
            seen = [frame for frames in films for frame in frames]
        else:
            seen = [world.sample_scene(rng) for _ in range(count // 2)]
            made_up = [world.sample_scene(rng, rng.random() < 0.3) for _ in range(count // 4)]
            seen += [frame for scene in made_up for frame in world.renamed([scene], rng)]
            seen += [scene for part in odd_scenes(count // 8, rng) for scene in part]
            rows = [self.row(places, self.pairs(scene), scene.names) for scene in seen] + [self.row(0, self.pairs(None))]
        return off(scene_codes(seen, mixed=True)), rows

    def stand_ins(self, names):
        """The pieces of words that stand for something made up -> the pieces that are written instead."""
        found = {}
        for word, number in names:
            shape = word in world.SHAPES
            forms = (f"\u2581{word}", f"\u2581{world.plural(word)}" if shape else word.capitalize())
            for i, form in enumerate(forms):
                found[self.sp.piece_to_id(form)] = self.made_up[2 * (number + shape * world.MADE_UP) + i]
        return found

    def forget(self, decoder):
        """Gives those pieces the rows of one that never stood for anything, so that none is ever answered."""
        for table in (decoder.embed_tokens.weight, decoder.lm_head.weight):
            table.data[self.made_up] = table.data[self.sp.piece_to_id("<0xFF>")].clone()

    def row(self, images, pairs, names=()):
        """One row: the pictures' places, then as many pairs as fit, with the stand-ins of a scene's ``names``."""
        swap = self.stand_ins(names)
        ids = [self.user] + [IMAGE] * images
        labels, segments, positions = [-100] * len(ids), [0] * len(ids), list(range(len(ids)))
        for segment, (question, answer) in enumerate(pairs, 1):
            question = question if names else world.vary(question, self.rng)
            asked, answered = ([swap.get(i, i) for i in self.ids(text)] for text in (question, answer))
            asked, answered = [*asked, self.assistant], [*answered, self.end]
            n = len(asked) + len(answered)
            if len(ids) + n > ROW + images:
                break
            positions += range(images + 1, images + 1 + n)
            ids, labels, segments = ids + asked + answered, labels + [-100] * len(asked) + answered, segments + [segment] * n
        return ids, labels, positions, segments

    def batch(self, rows):
        """Rows of any length -> ids, labels, positions [B, S] and which keys each query sees [B, S, S]."""
        longest = max(len(r[0]) for r in rows)
        fill = zip(*[[list(part) + [pad] * (longest - len(part)) for part, pad in zip(r, (0, -100, 0, -1))] for r in rows])
        ids, labels, positions, segments = (torch.tensor(part) for part in fill)
        same = (segments[:, :, None] == segments[:, None]) | (segments[:, None] == 0)
        return ids, labels, positions, same & torch.ones(longest, longest, dtype=torch.bool).tril()


def off(codes):
    """Codes about as far off as the eye will be."""
    return codes + 0.02 * torch.randn_like(codes)


def answer_losses(model, features, ids, labels, positions, visible):
    """The cross-entropy of every answer token, and where in ``labels[:, 1:]`` they stand: [T], [B, S - 1].

    ``features`` has the rows [n, D] that stand in the place of each placeholder. Answers are read with every
    sixth token unknown, so that a word is told by the picture, not by the word before.
    """
    ids = ids.masked_fill((labels >= 0) & (torch.rand(ids.shape) < 1 / 6), UNKNOWN)
    x = model.decoder.embed_tokens(ids.clamp(min=0))
    for placeholder, rows in features.items():
        x = x.masked_scatter((ids == placeholder)[..., None], rows.to(x.dtype))
    # asking for the maps takes the plain attention, whose backward is a third faster here
    out = model.decoder(x, attention_mask=visible, position_ids=positions, output_attentions=True)
    counted = labels[:, 1:] >= 0
    logits = model.decoder.lm_head(out.last_hidden_state[:, :-1][counted]).float()  # of those columns alone
    return F.cross_entropy(logits, labels[:, 1:][counted], reduction="none"), counted


def nearest(rng):
    """That of three scenes whose things stand nearest to each other."""
    return min((world.sample_scene(rng) for _ in range(3)), key=lambda scene: world.gap(scene.things))


def arguments(description, stages):
    """``stages``: name -> steps and rate of a run that is not told otherwise."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(stages))
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="training state")
    parser.add_argument("--seed", type=int, default=0)
    for i, (flag, kind) in enumerate((("--steps", int), ("--rate", float))):
        each = ", ".join(f"{name} {stages[name][i]}" for name in stages)
        parser.add_argument(flag, type=kind, help=f"default: {each}")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="a quarter quicker; needs a C++ compiler")
    return parser


def begun(parser, stages):
    """The arguments, with what the stage has by default; the seed is sown and torch set up."""
    a = parser.parse_args()
    a.steps, a.rate = a.steps or stages[a.stage][0], a.rate or stages[a.stage][1]
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the plain attention's products, on the CPU too
    return a


def main():
    stages = {"eye": (17000, 1e-3), "decoder": (18500, 1e-3)}
    a = begun(arguments(__doc__, stages), stages)
    sp = make_tokenizer(a.work)
    config = demo_config(sp)
    model, places = Model(config), config.vision.num_positions
    learning = [model.decoder] if a.stage == "decoder" else [model.vision, model.projector, model.patches]
    learning = [p for part in learning for p in part.parameters()]
    stage = Stage(a.stage, a.work, learning, a.steps, a.rate).resume(model)
    if a.compile:
        compile_layers(model)
    packer = Packer(sp, a.seed + stage.first)
    rng, odd = packer.rng, a.batch // 4

    def eye(step):
        seen = [world.sample_scene(rng) for _ in range(odd)]
        seen += [nearest(rng) for _ in range(a.batch - 3 * odd)]
        tinted, blobs = odd_scenes(odd, rng)
        shown = [*seen, *tinted, *blobs]
        patches, features = model.see(as_pixels([world.picture(scene, rng) for scene in shown], config))
        parts = zip(features.split([len(seen), odd, odd]), (seen, tinted, blobs), (None, "colour", "shape"))
        codes = [code_loss(written, scene_codes(scenes), kind) for written, scenes, kind in parts]
        about = patch_loss(model.patches(patches).float(), patch_labels(shown))
        return {"patches": (about, 1.0), "codes": (codes[0], 0.5), "tinted": (codes[1], 0.25), "blobs": (codes[2], 0.25)}

    def decoder(step):
        begins = step < BEGINNING * stage.steps
        codes, rows = packer.plain(a.batch, places) if begins else packer.coded(a.batch, places, step % 2)
        losses, _ = answer_losses(model, {IMAGE: codes}, *packer.batch(rows))
        return {"plain" if begins else "clips" if step % 2 else "answers": (losses.mean(), 1.0)}

    stage.run(model, {"eye": eye, "decoder": decoder}[a.stage])


if __name__ == "__main__":
    main()
