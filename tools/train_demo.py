"""Trains the weights that come with the project: python tools/train_demo.py --work build/demo --out weights/demo

Three stages, each begun again where it stopped. The eye learns to write what stands where as fixed random
codes, and the decoder learns to answer from such codes: apart, so that the two may run side by side. Then
both learn together from pixels to answers. Several questions about one picture stand in one row, each
seeing the picture and itself alone; the loss is on answers. A line every 20 steps, a save every 100.
"""

import argparse
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import demo_world as world
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from vita_ref.config import VitaConfig
from vita_ref.decoder import Decoder
from vita_ref.vision import Projector, VisionTower

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
IMAGE, ROW = -200, 90  # the placeholder; columns of a packed row
PREFIXES = {
    "vision": "model.vision_tower.vision_tower.",
    "projector": "model.mm_projector.",
    "decoder": "model.",
    "audio": "model.audio_encoder.",
}
KINDS = {  # how often a question of each kind is put to a picture, relative to the others
    "describe": 3, "where": 3, "left_right": 4, "above_below": 4, "count_shape": 1.5, "count_color": 1.5,
    "count": 0.7, "exists": 2, "size": 1.2, "color": 1, "shape": 1,
}  # fmt: skip


class Model(nn.Module):
    """The parts of Vita under the names of its checkpoint prefixes, and a head for patches."""

    def __init__(self, config):
        super().__init__()
        self.vision, self.decoder = VisionTower(config.vision), Decoder(config.decoder)
        self.projector = Projector(config.vision.feature_size, config.decoder.hidden_size)
        self.patches = nn.Linear(config.vision.hidden_size, 9 + 7 + 3)  # colour, shape, size; 0 is background
        for name, p in self.named_parameters():
            if name.endswith(("ls1", "ls2")):
                nn.init.constant_(p, 0.5)
            elif p.dim() > 1 or name.endswith("class_embedding"):
                nn.init.normal_(p, std=0.02 if p.dim() != 2 else min(0.02 * 3, p.shape[-1] ** -0.5))
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        # small random positions are lost beside the patches: the eye stayed blind to places for 3,000 steps
        self.vision.embeddings.position_embedding.data[0, 1:] = waves(config.vision.grid, config.vision.hidden_size)

    def see(self, pixels):
        """Patches [N, P, C] and what the decoder gets of them [N, V, D]."""
        seen = {}
        hook = self.vision.encoder.register_forward_hook(lambda m, i, out: seen.update(patches=out[:, 1:]))
        features = self.projector(self.vision(pixels))
        hook.remove()
        return seen["patches"], features

    def save(self, folder, config):
        """Writes what `Vita.from_pretrained` reads, in bfloat16."""
        tensors = {}
        for part, module in self.named_children():
            for name, p in module.state_dict().items() if part in PREFIXES else ():
                own = name if name.startswith("lm_head") else PREFIXES[part] + name
                tensors[own] = p.detach().to(torch.bfloat16).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(config.to_json())


def waves(grid, width):
    """Sines and cosines of each patch's row and column: [grid * grid, width]."""
    angles = torch.arange(grid)[:, None] * 3.0 ** (-torch.arange(width // 4) / (width / 16))
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def make_tokenizer(folder):
    """A sentencepiece model of the world's words, other text falling back to bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.model"
    if not path.exists():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(world.sentences()), model_prefix=str(path.with_suffix("")), vocab_size=900,
            model_type="bpe", byte_fallback=True, hard_vocab_limit=False, add_dummy_prefix=False, character_coverage=1.0,
            user_defined_symbols=[USER, ASSISTANT, END], pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, minloglevel=2,
            normalization_rule_name="nmt_nfkc", num_threads=1,
        )  # fmt: skip
        path.with_suffix(".vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def make_pool(path, count, seed):
    """``count`` pictures [count, 112, 112, 3] uint8 and their scenes."""
    rng = random.Random(seed)
    scenes = [world.sample_scene(rng) for _ in range(count)]
    if path.exists():
        return np.load(path, mmap_mode="r"), scenes
    drawing, start = random.Random(seed + 1), time.time()
    pixels = np.empty((count, 112, 112, 3), np.uint8)
    for i, scene in enumerate(scenes):
        pixels[i] = world.picture(scene, drawing)
        if i % 5000 == 0:
            print(f"drawn {i} of {count}, {time.time() - start:.0f} s", flush=True)
    np.save(path, pixels)
    return pixels, scenes


def patch_labels(scenes, grid=8):
    """What stands in each patch: [N, grid * grid, 3] long of colour, shape and size, 0 for background, -100 for odd."""
    labels = np.zeros((len(scenes), grid, grid, 3), np.int64)
    y, x = np.mgrid[0:grid, 0:grid] / grid + 0.5 / grid
    for row, scene in zip(labels, scenes):
        for t in scene.things:
            inside = (x - t.x) ** 2 + (y - t.y) ** 2 < max(t.radius, 0.075) ** 2
            row[inside] = [-100 if i is None else 1 + i for i in traits(t)]
    return torch.from_numpy(labels.reshape(len(scenes), -1, 3))


def traits(t):
    """The numbers of a thing's colour, shape and size; None where it has no name."""
    colour = None if t.tint else list(world.COLOURS).index(t.color)
    return colour, None if t.shape == "blob" else world.SHAPES.index(t.shape), int(t.size == "large")


def patch_loss(scores, labels):
    return sum(F.cross_entropy(s.flatten(0, 1), labels[..., i].flatten()) for i, s in enumerate(scores.split([9, 7, 3], -1)))


CODES = torch.randn(1 + 4 * 19 + 4 * 2, 256, generator=torch.Generator().manual_seed(7)) * 0.05
BLANK, TRAITS, PLACES = CODES[0], CODES[1:77].view(4, 19, 256), CODES[77:].view(4, 2, 256)


def scene_codes(scenes, grid=8):
    """What the eye is to write and the decoder to read before the two meet: [N, 16, 256].

    Each position is the sum of fixed random rows for what is centred in its four patches: colour,
    shape, size, presence, the offsets from the patch's middle and from the picture's.
    """
    traits_of = torch.zeros(len(scenes), grid // 2, grid // 2, 4, 19)
    places_of = torch.zeros(len(scenes), grid // 2, grid // 2, 4, 2)
    for i, scene in enumerate(scenes):
        for t in scene.things:
            x, y = int(t.x * grid), int(t.y * grid)
            cell = i, y // 2, x // 2, y % 2 * 2 + x % 2
            colour, shape, size = traits(t)
            for trait, first in ((colour, 0), (shape, 8), (size, 14), (0, 16)):
                if trait is not None:
                    traits_of[(*cell, first + trait)] += 1
            traits_of[(*cell, slice(17, 19))] += torch.tensor([2 * (t.x * grid - x) - 1, 2 * (t.y * grid - y) - 1])
            places_of[cell] += torch.tensor([4 * t.x - 2, 4 * t.y - 2])
    codes = torch.einsum("nyxst,std->nyxd", traits_of, TRAITS) + torch.einsum("nyxst,std->nyxd", places_of, PLACES)
    return codes.flatten(1, 2) + BLANK


def deaf_to(rows):
    """The projection [256, 256] that takes out whatever lies along some rows [..., 256]."""
    basis, _ = torch.linalg.qr(rows.flatten(0, -2).T)
    return torch.eye(256) - basis @ basis.T


DEAF = {"colour": deaf_to(TRAITS[:, :8]), "shape": deaf_to(TRAITS[:, 8:14])}


def code_loss(features, codes, odd=None):
    """Squared error in units of the codes' own spread, positions that hold something counting four times.

    ``odd`` names what has no name in these scenes, "colour" or "shape": errors along its codes do not count.
    """
    weight = 1 + 3 * (codes - BLANK).abs().amax(-1, keepdim=True).gt(0)
    error = features.float() - codes
    return ((error if odd is None else error @ DEAF[odd]) ** 2 * weight).mean() / 0.05**2


class Packer:
    """Questions and answers as rows of ids, labels, positions and segment numbers."""

    def __init__(self, sp, seed):
        self.sp, self.rng, self.known = sp, random.Random(seed), {}
        self.user, self.assistant, self.end = (sp.piece_to_id(s) for s in (USER, ASSISTANT, END))

    def ids(self, text):
        if text not in self.known:
            self.known[text] = self.sp.encode(text)
        return self.known[text]

    def pairs(self, scene):
        """Questions about a scene in the mixture of KINDS, then chat; without end."""
        if scene is None:
            while True:
                if self.rng.random() < 0.5:
                    yield self.rng.choice(world.CHAT)
                else:
                    other = [kind for kind in world.questions(world.sample_scene(self.rng), self.rng).values() if kind]
                    yield self.rng.choice(self.rng.choice(other))[0], world.NO_PICTURE
        found = {k: v for k, v in world.questions(scene, self.rng).items() if v}
        kinds, weights = list(found), [KINDS[k] for k in found]
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

    def clips(self, count, places):
        """Clips as their frames one after the other, and a row for each."""
        clips = [world.sample_clip(self.rng)[0] for _ in range(count)]
        return clips, [self.row(places * len(frames), self.clip_pairs(frames)) for frames in clips]

    def row(self, images, pairs):
        """One row: the pictures' places, then as many pairs as fit."""
        ids = [self.user] + [IMAGE] * images
        labels, segments, positions = [-100] * len(ids), [0] * len(ids), list(range(len(ids)))
        for segment, (question, answer) in enumerate(pairs, 1):
            asked = [*self.ids(world.vary(question, self.rng)), self.assistant]
            answered = [*self.ids(answer), self.end]
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


def answer_loss(model, features, ids, labels, positions, visible):
    """Cross-entropy of every answer token, the head run on those columns alone."""
    x = model.decoder.embed_tokens(ids.clamp(min=0)).to(features.dtype)
    x = x.masked_scatter((ids == IMAGE)[..., None], features)
    # asking for the maps takes the plain attention, whose backward is a third faster here
    out = model.decoder(x, attention_mask=visible, position_ids=positions, output_attentions=True)
    counted = labels[:, 1:] >= 0
    return F.cross_entropy(model.decoder.logits(out.last_hidden_state[:, :-1][counted]).float(), labels[:, 1:][counted])


class Stage:
    """A schedule of steps over some parameters that saves and goes on: rate up over 100 steps, then down to zero."""

    def __init__(self, name, work, parameters, steps, rate):
        self.path, self.steps, self.rate, self.first = work / f"{name}.pt", steps, rate, 0
        self.parameters, self.name = list(parameters), name
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)

    def resume(self, model):
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.first = saved["step"]
        return self

    def run(self, model, losses):
        """``losses(step)`` gives the losses to add, by name with their weights."""
        log, start = [], time.time()
        for step in range(self.first, self.steps):
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * min(1, (step + 1) / 100) * (1 - step / self.steps)
            with torch.autocast("cpu", torch.bfloat16):
                found = losses(step)
            self.optimiser.zero_grad(set_to_none=True)
            sum(loss * weight for loss, weight in found.values()).backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            log.append({k: loss.item() for k, (loss, _) in found.items()})
            if step % 20 == 19:
                left = (self.steps - step - 1) * (time.time() - start) / (step - self.first + 1) / 60
                seen = {k: [x[k] for x in log if k in x] for entry in log for k in entry}
                means = " ".join(f"{k} {sum(v) / len(v):.4f}" for k, v in seen.items())
                print(f"{self.name} {step + 1}/{self.steps} {means} {left:.0f} min left", flush=True)
                log = []
            if step % 100 == 99 or step + 1 == self.steps:
                kept = {"model": model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": step + 1}
                torch.save(kept, self.path.with_suffix(".tmp"))
                self.path.with_suffix(".tmp").replace(self.path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["eye", "decoder", "joint", "all"], nargs="?", default="all")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="pool and training state")
    parser.add_argument("--out", type=Path, default=Path("weights/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=60000)
    parser.add_argument("--eye-steps", type=int, default=4000)
    parser.add_argument("--decoder-steps", type=int, default=6000)
    parser.add_argument("--joint-steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    a.work.mkdir(parents=True, exist_ok=True)
    sp = make_tokenizer(a.work)
    config = VitaConfig.preset("demo")
    config = replace(config, audio=None, decoder=replace(config.decoder, vocab_size=sp.vocab_size()))
    config = replace(config, eos_token_ids=(sp.piece_to_id(END),))
    model, places = Model(config), config.vision.num_positions
    eye_parameters = [*model.vision.parameters(), *model.projector.parameters(), *model.patches.parameters()]

    def normalised(pictures):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.vision.image_mean, config.vision.image_std))
        return (pictures.permute(0, 3, 1, 2) / 255 - mean) / std

    def picture_batch(rng, pixels, scenes, mirrored, count):
        picks, flip = [rng.randrange(len(scenes)) for _ in range(count)], rng.random() < 0.5
        batch = normalised(torch.from_numpy(pixels[picks]))
        return (batch.flip(3), [mirrored[i] for i in picks]) if flip else (batch, [scenes[i] for i in picks])

    if a.stage in ("eye", "all"):
        stage = Stage("eye", a.work, eye_parameters, a.eye_steps, 1e-3).resume(model)
        pixels, scenes = make_pool(a.work / f"pool-{a.pool}-{a.seed}.npy", a.pool, a.seed)
        rng, mirrored = random.Random(a.seed + stage.first), [world.mirror(s) for s in scenes]

        def odd_batch():
            made = [world.sample_scene(rng) for _ in range(a.batch // 2)]
            half = len(made) // 2
            made = [world.odd_colours(scene, rng) for scene in made[:half]] + [world.odd_shapes(scene) for scene in made[half:]]
            return normalised(torch.from_numpy(np.stack([world.picture(scene, rng) for scene in made]))), made, half

        def eye(step):
            batch, seen = picture_batch(rng, pixels, scenes, mirrored, a.batch // 2)
            odd, odd_seen, half = odd_batch()
            patches, features = model.see(torch.cat([batch, odd]))
            parts = features.split([len(seen), half, len(odd_seen) - half])
            shown = (seen, odd_seen[:half], odd_seen[half:])
            codes = [code_loss(f, scene_codes(s), kind) for f, s, kind in zip(parts, shown, (None, "colour", "shape"))]
            about = patch_loss(model.patches(patches).float(), patch_labels(seen + odd_seen))
            return {"patches": (about, 1.0), "codes": (codes[0], 0.5), "odd colours": (codes[1], 0.25), "odd shapes": (codes[2], 0.25)}

        stage.run(model, eye)

    if a.stage in ("decoder", "all"):
        stage = Stage("decoder", a.work, model.decoder.parameters(), a.decoder_steps, 1e-3).resume(model)
        packer = Packer(sp, a.seed + stage.first)

        def decoder(step):
            if step % 4 == 3:
                clips, rows = packer.clips(12, places)
                codes = scene_codes([frame for frames in clips for frame in frames])
                return {"clips": (answer_loss(model, codes, *packer.batch(rows)), 1.0)}
            seen = [world.sample_scene(packer.rng) for _ in range(a.batch // 2)]
            codes = scene_codes(seen)
            codes = codes + 0.015 * torch.randn_like(codes)
            rows = [packer.row(places, packer.pairs(s)) for s in seen] + [packer.row(0, packer.pairs(None))]
            return {"answers": (answer_loss(model, codes, *packer.batch(rows)), 1.0)}

        stage.run(model, decoder)

    if a.stage in ("joint", "all"):
        for name, kept in (("eye", ("vision", "projector", "patches")), ("decoder", ("decoder",))):
            saved = torch.load(a.work / f"{name}.pt", weights_only=True)["model"]
            model.load_state_dict({k: v for k, v in saved.items() if k.split(".")[0] in kept}, strict=False)
        stage = Stage("joint", a.work, model.parameters(), a.joint_steps, 5e-4).resume(model)
        pixels, scenes = make_pool(a.work / f"pool-{a.pool}-{a.seed}.npy", a.pool, a.seed)
        rng, packer = random.Random(a.seed + stage.first + 1), Packer(sp, a.seed + stage.first + 1)
        mirrored = [world.mirror(s) for s in scenes]

        def joint(step):
            if step % 4 == 3:
                clips, rows = packer.clips(12, places)
                drawn = np.stack([picture for frames in clips for picture in world.clip_pictures(frames, rng)])
                _, features = model.see(normalised(torch.from_numpy(drawn)))
                return {"clips": (answer_loss(model, features, *packer.batch(rows)), 1.0)}
            batch, seen = picture_batch(rng, pixels, scenes, mirrored, a.batch)
            patches, features = model.see(batch)
            rows = [packer.row(places, packer.pairs(s)) for s in seen] + [packer.row(0, packer.pairs(None))]
            return {
                "answers": (answer_loss(model, features, *packer.batch(rows)), 1.0),
                "patches": (patch_loss(model.patches(patches).float(), patch_labels(seen)), 0.1),
                "codes": (code_loss(features, scene_codes(seen)), 0.1),
            }

        stage.run(model, joint)
        a.out.mkdir(parents=True, exist_ok=True)
        model.save(a.out, config)
        shutil.copy(a.work / "tokenizer.model", a.out)


if __name__ == "__main__":
    main()
