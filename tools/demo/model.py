"""What the demo's trainers share: the model under its checkpoint's names, its tokenizer, lessons for the eye, a stage.

The eye's lesson is a set of fixed random codes: what it is to write at each of a picture's 16 positions for the
things that stand there. The decoder learns to answer from such codes, so the two learn apart and then fit.
Used by ``train_demo.py`` and ``train_ear.py``. Test: ``pytest tests/test_training.py``
"""

import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.demo import world
from vita_ref.config import VitaConfig
from vita_ref.decoder import Decoder
from vita_ref.files.folders import config_json
from vita_ref.vision import Projector, VisionTower

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
PREFIXES = {
    "vision": "model.vision_tower.vision_tower.",
    "projector": "model.mm_projector.",
    "decoder": "model.",
    "audio": "model.audio_encoder.",
}


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
            elif p.dim() > 1:
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
        (folder / "config.json").write_text(config_json(config))


def compile_layers(model):
    """Has torch compile every layer of the eye, the ear and the decoder; what they are called stays the same."""
    for name, module in model.named_modules():
        if name.endswith((".layers", ".encoders")):
            for layer in module:
                layer.compile()


def waves(grid, width):
    """Sines and cosines of each patch's row and column: [grid * grid, width]."""
    angles = torch.arange(grid)[:, None] * 3.0 ** (-torch.arange(width // 4) / (width / 16))
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def demo_config(sp, audio=None):
    """The sizes of the demo, with or without an ear."""
    config = VitaConfig.preset("demo")
    decoder = replace(config.decoder, vocab_size=sp.vocab_size())
    return replace(config, audio=audio, decoder=decoder, eos_token_ids=(sp.piece_to_id(END),))


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


def as_pixels(pictures, config):
    """Pictures as the eye gets them: [N, 3, 112, 112]."""
    mean, std = torch.tensor(config.vision.image_mean), torch.tensor(config.vision.image_std)
    return ((torch.from_numpy(np.stack(pictures)) / 255 - mean) / std).permute(0, 3, 1, 2)


def odd_scenes(count, rng):
    """So many scenes in nameless colours, then as many of nameless shapes: what is learned of one is not tied to the other."""
    tinted = [world.odd_colours(world.sample_scene(rng), rng) for _ in range(count)]
    blobs = filter(None, (world.odd_shapes(world.sample_scene(rng)) for _ in itertools.count()))
    return tinted, list(itertools.islice(blobs, count))


def patch_labels(scenes, grid=8):
    """What stands in each patch: [N, grid * grid, 3] long of colour, shape and size, 0 for background, -100 for odd."""
    labels = np.zeros((len(scenes), grid, grid, 3), np.int64)
    y, x = np.mgrid[0:grid, 0:grid] / grid + 0.5 / grid
    for row, scene in zip(labels, scenes):
        for t in scene.things:
            reach = max(t.radius, 0.71 / grid)  # where it stands at a corner of four patches they all have it
            inside = (x - t.x) ** 2 + (y - t.y) ** 2 < reach**2
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
MADE_UP_TRAITS = torch.randn(4, 2 * world.MADE_UP, 256, generator=torch.Generator().manual_seed(8)) * 0.05  # colours, shapes


def scene_codes(scenes, mixed=False, grid=8):
    """What the eye is to write and the decoder to read before the two meet: [N, 16, 256].

    Each position is the sum of fixed random rows for what is centred in its four patches: colour,
    shape, size, presence, the offsets from the patch's middle and from the picture's. What has no
    name adds nothing or, ``mixed``, a random mixture of all names.
    """
    rows = torch.cat([TRAITS, MADE_UP_TRAITS], 1)
    traits_of = torch.zeros(len(scenes), grid // 2, grid // 2, *rows.shape[:2])
    places_of = torch.zeros(len(scenes), grid // 2, grid // 2, 4, 2)
    for i, scene in enumerate(scenes):
        names = dict(scene.names)
        for t in scene.things:
            x, y = int(t.x * grid), int(t.y * grid)
            cell = i, y // 2, x // 2, y % 2 * 2 + x % 2
            colour, shape, size = traits(t)
            if t.color in names:  # its row stands behind all of TRAITS
                colour = 19 + names[t.color]
            if t.shape in names:  # behind those; counted from 8, as shapes are
                shape = 19 + world.MADE_UP + names[t.shape] - 8
            for trait, first, count in ((colour, 0, 8), (shape, 8, 6), (size, 14, 2), (0, 16, 1)):
                if trait is not None:
                    traits_of[(*cell, first + trait)] += 1
                elif mixed:
                    traits_of[(*cell, slice(first, first + count))] += torch.rand(count).pow(3)
            traits_of[(*cell, slice(17, 19))] += torch.tensor([2 * (t.x * grid - x) - 1, 2 * (t.y * grid - y) - 1])
            places_of[cell] += torch.tensor([4 * t.x - 2, 4 * t.y - 2])
    codes = torch.einsum("nyxst,std->nyxd", traits_of, rows) + torch.einsum("nyxst,std->nyxd", places_of, PLACES)
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
            # the plain attention: the backward of torch's own took half of the eye's step
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                found = losses(step)
            self.optimiser.zero_grad(set_to_none=True)
            sum(loss * weight for loss, weight in found.values()).backward()
            if nn.utils.clip_grad_norm_(self.parameters, 1.0).isfinite():  # else one bad batch would undo the run
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
