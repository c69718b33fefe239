"""Trains the demo from nothing to weights: python tools/demo/train.py --work build/demo

    vision    the tower learns to write what stands where as fixed codes, with made-up colours and shapes among them
    decoder   learns to answer from such codes, with made-up names among them, so that it knows no pair by heart
    audio     the encoder learns to write the decoder's own embedding of the word that is being said
    finish    decoder and audio encoder are fitted to what the finished tower writes; it stays as it is, for learning
              from answers it grew worse at pairs of colour and shape that it had not met

One stage follows the other. Each saves every few minutes and goes on where it stopped: SIGTERM saves and ends the run,
``kill -STOP`` and ``kill -CONT`` pause it. The same seed gives the same weights on the same machine and number of threads.
Processes that share a folder divide the stages: ``--only decoder`` may run beside ``--only vision``. Every picture,
question and utterance is new.

Test: ``pytest tests/tools/test_train.py``
"""

import argparse
import random
import shutil
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn.utils.rnn import pad_sequence

from tools.demo import batches, speech
from tools.demo.codes import (
    HEADS,
    code_loss,
    patch_labels,
    patch_loss,
    read_flags,
    scene_codes,
)
from tools.demo.draw import picture
from tools.demo.model import (
    PARTS,
    Model,
    as_pixels,
    compile_layers,
    demo_config,
    make_tokenizer,
    transcripts_right,
    word_loss,
)
from tools.demo.rows import (
    AUDIO,
    IMAGE,
    KINDS,
    Packer,
    answer_losses,
    collate,
    exact_answers,
)
from tools.demo.scene import OUTSIDE, sample_many, sample_scene
from tools.demo.stage import Batches, Stage, Stopped, locked, share

STAGES = {  # steps, rate, batch
    "full": {"vision": (15000, 1e-3, 32), "decoder": (18000, 1e-3, 24), "audio": (3000, 1e-3, 32), "finish": (4500, 4e-4, 24)},
    "smallest": {"vision": (6, 1e-3, 8), "decoder": (10, 1e-3, 8), "audio": (4, 1e-3, 4), "finish": (8, 4e-4, 8)},
}  # fmt: skip
ALOUD, GROUP = 1, 12  # the segment of a row that is spoken; sounds that are encoded together


class Trainer:
    """A folder, the sizes in it, and the four stages."""

    def __init__(self, work, size, seed, device, workers=0, compiled=False):
        self.work, self.size, self.seed, self.workers = work, size, seed, workers
        self.device, self.compiled = torch.device(device), compiled
        self.sp = make_tokenizer(work)
        self.config = demo_config(self.sp, size)

    def start(self, name, parts):
        """The stage, its model begun from the seed or from its last save."""
        torch.manual_seed(self.seed)
        model = Model(self.config).to(self.device)
        steps, rate, batch = STAGES[self.size][name]
        stage = Stage(name, self.work, model, parts, steps, rate, self.seed)
        return stage, model, steps, batch

    def go(self, stage, model, make, losses, check):
        if self.compiled:
            compile_layers(model)
        made = Batches(make, stage.name, self.seed, stage.steps)
        stage.run(made.since(stage.first, self.workers), losses, check)

    def run(self, name):
        """One stage, from where it stands to its end."""
        with locked(self.work / f"{name}.lock"):
            getattr(self, name)()

    # ---- the stages

    def vision(self):
        stage, model, _, size = self.start("vision", PARTS["vision"])
        stage.resume()

        def losses(batch):
            patches, features = model.see(batch.pixels.to(self.device))
            found = {"patches": (patch_loss(model.patches(patches), batch.labels.to(self.device)), 1.0)}
            codes, occupied = batch.codes.to(self.device), batch.occupied.to(self.device)
            parts = [part.split(batch.counts) for part in (features, codes, occupied)]
            for name, weight, nameless, one in zip(("codes", "tinted", "blobs"), (0.5, 0.25, 0.25), (None, "colour", "shape"), zip(*parts)):
                found[name] = (code_loss(*one, nameless), weight)
            return found

        self.go(stage, model, lambda rng, step: batches.vision_batch(rng, size, self.config), losses, partial(self.check_vision, model))

    def decoder(self):
        stage, model, steps, size = self.start("decoder", PARTS["decoder"])
        stage.resume()
        places = self.config.vision.num_positions

        def losses(batch):
            shown = batch.shown.to(self.device)
            each, _ = answer_losses(model.decoder, {IMAGE: shown}, *(part.to(self.device) for part in collate(batch.rows)))
            return {batch.kind: (each.mean(), 1.0)}

        def make(rng, step):
            return batches.decoder_batch(rng, step, size, steps, self.sp, places)

        self.go(stage, model, make, losses, partial(self.check_answers, model, False))

    def audio(self):
        stage, model, _, size = self.start("audio", PARTS["audio"])
        model.take(self.work / "decoder.pt", "decoder")
        normal = model.audio.encoder["global_cmvn"]
        every = torch.cat([lesson.bank for lesson in batches.some_lessons(self.sp, random.Random(self.seed), 10 * size)])
        normal.mean, normal.istd = (t.to(self.device) for t in (every.mean(0), 1 / every.std(0)))
        stage.resume()

        def losses(made):
            rng, lessons = made
            return {"words": (word_loss(model.listen([s.bank for s in lessons], rng)[2], [s.labels for s in lessons]), 1.0)}

        def make(rng, step):
            lessons = batches.audio_batch(rng, size, self.sp)
            return rng, lessons

        self.go(stage, model, make, losses, partial(self.check_audio, model))

    def finish(self):
        stage, model, _, size = self.start("finish", (*PARTS["audio"], *PARTS["decoder"]))
        for part in PARTS:
            model.take(self.work / f"{part}.pt", part)
        stage.resume()

        def losses(made):
            rng, batch = made
            features = {IMAGE: batch.shown.to(self.device)}
            if batch.shown.dim() == 4:
                with torch.no_grad():
                    features[IMAGE] = model.see(features[IMAGE])[1]
            found = {}
            if batch.lessons:
                features[AUDIO], found["words"] = self.listen_all(model, batch.lessons, rng)
            each, counted = answer_losses(model.decoder, features, *(part.to(self.device) for part in collate(batch.rows)))
            segments = pad_sequence([torch.tensor(row.segments) for row in batch.rows], batch_first=True)[:, 1:]
            aloud = (segments == ALOUD).to(self.device)[counted]
            found |= {f"{batch.kind} written": (each[~aloud].mean(), 2.0)}
            if batch.lessons:
                found[f"{batch.kind} spoken"] = (each[aloud].mean(), 1.0)
            return found

        def make(rng, step):
            batch = batches.finish_batch(rng, step, size, self.sp, self.config)
            return rng, batch

        def check():
            return f"{self.check_answers(model, True)} | {self.check_audio(model)}"

        self.go(stage, model, make, losses, check)

    @staticmethod
    def listen_all(model, lessons, rng):
        """The rows of all sounds in their order [A, D], and the loss of their words; sounds of like length together."""
        order, heard, losses = sorted(range(len(lessons)), key=lambda i: len(lessons[i].bank)), {}, []
        for start in range(0, len(order), GROUP):
            group = order[start : start + GROUP]
            embeds, counts, scores = model.listen([lessons[i].bank for i in group], rng)
            heard |= {i: own[:n] for i, own, n in zip(group, embeds, counts)}
            losses.append(word_loss(scores, [lessons[i].labels for i in group]))
        return torch.cat([heard[i] for i in range(len(lessons))]), (sum(losses) / len(losses), 0.3)

    def write(self, folder):
        """The finished weights as `Vita.from_pretrained` reads them."""
        model = Model(self.config)
        model.load_state_dict(torch.load(self.work / "finish.pt", map_location="cpu", weights_only=True)["model"])
        Packer(self.sp).forget(model.decoder)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder, self.config)
        shutil.copy(self.work / "tokenizer.model", folder)

    # ---- quick accuracies for the log, on scenes of a seed of their own

    def scenes(self, count=96):
        """Ordinary scenes, scenes with kept-out pairs, crowded ones and outside pictures, the same every time."""
        rng, count = random.Random("check"), count if self.size == "full" else 4
        made = {"ordinary": [sample_scene(rng) for _ in range(count)], "kept out": [sample_scene(rng, True) for _ in range(count)]}
        return made | {"many": [sample_many(rng) for _ in range(count // 2)], "outside": [OUTSIDE] * (count // 2)}

    @torch.no_grad()
    def see(self, model, scenes):
        pixels = as_pixels([picture(scene, random.Random(i)) for i, scene in enumerate(scenes)], self.config)
        return model.see(pixels.to(self.device))

    @torch.no_grad()
    def check_vision(self, model):
        """How often colour, shape and size at an object's middle are right, and what is outside is flagged."""
        marks = []
        for group, scenes in self.scenes().items():
            patches, features = self.see(model, scenes)
            flags = read_flags(features).cpu() > 0.5
            wanted = torch.tensor([[s.outside == "none", s.outside == "many"] for s in scenes])
            marks += [(f"{group}: flags", bool(ok)) for ok in (flags == wanted).all(1)]
            if group in ("ordinary", "kept out"):
                best = torch.stack([part.argmax(-1) for part in model.patches(patches).float().split(HEADS, -1)], -1).cpu()
                labels = patch_labels(scenes)
                for i, scene in enumerate(scenes):
                    cells = [int(t.y * 8) * 8 + int(t.x * 8) for t in scene.things]
                    right = (best[i, cells] == labels[i, cells]).all(0)
                    marks += [(f"{group}: {name}", bool(ok)) for name, ok in zip(("color", "shape", "size"), right)]
        return share(marks)

    @torch.no_grad()
    def check_answers(self, model, from_pixels):
        """How many written answers are right to the last token, by kind; of kept-out pairs all kinds together."""
        marks, places = [], self.config.vision.num_positions
        for group, scenes in self.scenes().items():
            packer = Packer(self.sp, random.Random(group))
            features = self.see(model, scenes)[1] if from_pixels else scene_codes(scenes)[0].to(self.device)
            rows = [packer.row(places, packer.turns(scene, KINDS)) for scene in scenes]
            found = exact_answers(model.decoder, {IMAGE: features}, rows, self.device)
            if group == "ordinary":
                marks += found
            marks += [(f"[{group}]", right) for _, right in found]
        return share(marks)

    @torch.no_grad()
    def check_audio(self, model):
        """How many transcripts are right, by group of voices."""
        marks = []
        for group in speech.GROUPS:
            lessons = batches.some_lessons(self.sp, random.Random(group), 48 if self.size == "full" else 4, group)
            right = transcripts_right(model.listen([s.bank for s in lessons])[2], [s.labels for s in lessons])
            marks += [(group, ok) for ok in right]
        return share(marks)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="states of the run; it goes on from them")
    parser.add_argument("--out", type=Path, help="where the weights are written (default: WORK/out)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smallest", action="store_true", help="one layer a part and few steps: a test that takes a minute")
    parser.add_argument("--only", choices=list(STAGES["full"]), help="one stage; another process may train another one")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 and so on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches (default: none)")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    return parser


def main():
    a = arguments().parse_args()
    torch.set_num_threads(a.threads)
    size = "smallest" if a.smallest else "full"
    trainer = Trainer(a.work, size, a.seed, a.device, a.workers, a.compile)
    try:
        for name in [a.only] if a.only else STAGES[size]:
            trainer.run(name)
    except Stopped as stopped:
        print(stopped, flush=True)
        return
    if not a.only or a.only == "finish":
        trainer.write(a.out or a.work / "out")
        print(f"the weights are in {a.out or a.work / 'out'}", flush=True)


if __name__ == "__main__":
    main()
