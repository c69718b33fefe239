"""Gives the demo weights an ear: python tools/train_ear.py ear, then listen; --work build/demo --out weights/demo

Each stage is begun again where it stopped. In `ear` the encoder alone learns to write, at every position (80 ms)
of a spoken question, the decoder's own embedding of the word that is being said, so that the decoder can read
what it hears. In `listen` ear and decoder learn together from rows that ask one question aloud and others in
writing, with pictures, so that nothing is lost. `rehearse` is `listen` with fixed codes for pictures and
the decoder that read such codes, for when the eye is not ready. Every utterance is said anew.
"""

import argparse
import random
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import demo_speech as speech
import demo_world as world
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from train_demo import (
    END,
    IMAGE,
    Model,
    Packer,
    Stage,
    code_loss,
    make_pool,
    make_tokenizer,
    patch_labels,
    patch_loss,
    scene_codes,
)

from vita_ref.audio import AudioEncoder
from vita_ref.config import AudioConfig, VitaConfig

EAR = AudioConfig(192, 512, 4, 6, subsampling_size=96, adapter_norm="layer")
AUDIO, ALOUD = -500, -2  # the placeholder; the segment of a row that is spoken
OUT_OF_SOUND = -100  # the label of padding


class Listener(Model):
    """The demo's model and an ear, and what scores its rows against words: a row for silence, how near is near."""

    def __init__(self, config):
        super().__init__(config)
        self.audio = AudioEncoder(config.audio, config.decoder.hidden_size)
        self.blank = nn.Parameter(torch.zeros(1, config.decoder.hidden_size))
        self.nearness = nn.Parameter(torch.zeros(()))

    def hear(self, lessons, rng):
        """Rows [N, A, D], their number [N] and scores [N, A, 1 + V]; with ``rng``, warped and partly masked."""
        mean, lengths = self.audio.encoder["global_cmvn"].mean, torch.tensor([len(s.bank) for s in lessons])
        banks = pad_sequence([s.bank for s in lessons], batch_first=True)  # [N, T, M]
        bins = banks.shape[2]
        for bank, length in zip(banks, lengths.tolist() if rng else ()):
            places = torch.arange(bins) * rng.uniform(0.94, 1.06) + rng.uniform(-2, 2)  # as of a throat of another size
            low = places.clamp(0, bins - 1).long()  # [M]
            bank[:] = bank[:, low].lerp(bank[:, (low + 1).clamp(max=bins - 1)], (places - low).clamp(0, 1))
            for _ in range(2):
                low, start = rng.randrange(bins), rng.randrange(length)
                high, stop = low + rng.randint(0, 12), start + rng.randint(0, 10)
                bank[:, low:high], bank[start:stop] = mean[low:high], mean
        embeds, counts = self.audio(banks, lengths)
        words = self.decoder.embed_tokens.weight.detach()
        centres, spread = torch.cat([self.blank, words]), 0.05 * words.square().sum(1).mean() * self.nearness.exp()
        scores = (embeds.float() @ centres.T - centres.square().sum(1) / 2) / spread  # of normal distributions
        return embeds, counts, scores


def pad_labels(lessons):
    return pad_sequence([s.labels for s in lessons], batch_first=True, padding_value=OUT_OF_SOUND)  # [N, A]


def word_loss(scores, lessons):
    labels = pad_labels(lessons)
    labels = labels.where(labels == OUT_OF_SOUND, labels - speech.SILENCE)  # silence is the first
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=OUT_OF_SOUND)


@torch.no_grad()
def exact(model, lessons):
    """The share of sounds whose words come out right and in order, of how many."""
    labels = pad_labels(lessons)
    found = (model.hear(lessons, None)[2].argmax(-1) + speech.SILENCE).where(labels != OUT_OF_SOUND, OUT_OF_SOUND)

    def words(row):
        return [t for t, before in zip(row, [None, *row]) if t != before and t >= 0]

    return sum(words(a) == words(b) for a, b in zip(found.tolist(), labels.tolist())) / len(lessons)


def lessons(sp, rng, size, group=None):
    """For ever: so many lessons of about one length."""
    while True:
        made = [speech.lesson(speech.question(rng), speech.manner(rng, group), sp, rng) for _ in range(size * 6)]
        made.sort(key=lambda lesson: len(lesson.bank))
        parts = [made[i : i + size] for i in range(0, len(made), size)]
        yield from rng.sample(parts, len(parts))


def spoken_row(packer, images, pairs, written=3):
    """A row whose first question is spoken and the others written, and the lesson (None where there is no question)."""
    pairs = iter(pairs)
    asked = next((pair for pair in pairs if not speech.is_kept_out(pair[0])), None)
    ids, labels, positions, segments = packer.row(images, islice(pairs, written))
    if asked is None:
        return (ids, labels, positions, segments), None
    lesson = speech.lesson(asked[0], speech.manner(packer.rng), packer.sp, packer.rng)
    question, answer = [AUDIO] * len(lesson.labels) + [packer.assistant], [*packer.ids(asked[1]), packer.end]
    first, n = images + 1, len(question) + len(answer)
    ids[first:first], labels[first:first] = question + answer, [-100] * len(question) + answer
    positions[first:first], segments[first:first] = range(first, first + n), [ALOUD] * n
    return (ids, labels, positions, segments), lesson


def listen_loss(model, packer, features, rows):
    """Losses of the answers to what is spoken and to what is written, and of the words that are heard."""
    rows, said = zip(*rows)
    said = [lesson for lesson in said if lesson]
    heard, losses = {}, []
    for group in np.array_split(sorted(range(len(said)), key=lambda i: len(said[i].bank)), 4):  # of like length
        embeds, counts, scores = model.hear([said[i] for i in group], packer.rng)
        heard |= {i: own[:n] for i, own, n in zip(group, embeds, counts)}
        losses.append(word_loss(scores, [said[i] for i in group]))
    ids, labels, positions, visible = packer.batch(rows)
    x = model.decoder.embed_tokens(ids.clamp(min=0)).to(features.dtype)
    x = x.masked_scatter((ids == IMAGE)[..., None], features)
    x = x.masked_scatter((ids == AUDIO)[..., None], torch.cat([heard[i] for i in range(len(said))]).to(x.dtype))
    out = model.decoder(x, attention_mask=visible, position_ids=positions, output_attentions=True)
    counted = labels[:, 1:] >= 0
    aloud = pad_sequence([torch.tensor(row[3]) == ALOUD for row in rows], batch_first=True)[:, 1:][counted]
    logits = model.decoder.logits(out.last_hidden_state[:, :-1][counted]).float()
    each = F.cross_entropy(logits, labels[:, 1:][counted], reduction="none")
    return {"spoken": (each[aloud].mean(), 1.0), "written": (each[~aloud].mean(), 1.0), "words": (sum(losses) / 4, 0.3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["ear", "rehearse", "listen", "finish"])
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="pool and training state")
    parser.add_argument("--out", type=Path, default=Path("build/demo/listen"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=60000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ear-from", help="the stage whose ear to begin with", default="ear")
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    sp = make_tokenizer(a.work)
    config = VitaConfig.preset("demo")
    config = replace(config, audio=EAR, decoder=replace(config.decoder, vocab_size=sp.vocab_size()))
    config = replace(config, eos_token_ids=(sp.piece_to_id(END),))
    model, places = Listener(config), config.vision.num_positions
    trials = {group: next(lessons(sp, random.Random(group), 64, group)) for group in speech.GROUPS}

    def take(name, *kept):
        saved = torch.load(a.work / f"{name}.pt", weights_only=True)["model"]
        model.load_state_dict({k: v for k, v in saved.items() if k.split(".")[0] in kept}, strict=False)

    pixels_too = a.stage in ("listen", "finish")
    take({"listen": "joint", "finish": "eye"}.get(a.stage, "decoder"), "vision", "projector", "patches", "decoder")
    if a.stage == "finish":
        take("listen", "decoder", "audio", "blank", "nearness")
    elif a.stage != "ear":
        take(a.ear_from, "audio", "blank", "nearness")
    learning = [model.blank, model.nearness, *model.audio.parameters()]
    learning += model.decoder.parameters() if a.stage != "ear" else []
    eye = (model.vision, model.projector, model.patches) if pixels_too else ()
    learning += [p for part in eye for p in part.parameters()]
    stage = Stage(a.stage, a.work, learning, a.steps, a.rate).resume(model)
    packer = Packer(sp, a.seed + stage.first + 2)
    rng, normal = packer.rng, model.audio.encoder["global_cmvn"]
    batches = lessons(sp, rng, a.batch)
    if a.stage == "ear" and not stage.first:
        every = torch.cat([lesson.bank for _ in range(10) for lesson in next(batches)])
        normal.mean, normal.istd = every.mean(0), 1 / every.std(0)
    if pixels_too:
        pixels, scenes = make_pool(a.work / f"pool-{a.pool}-{a.seed}.npy", a.pool, a.seed)
        mirrored = [world.mirror(scene) for scene in scenes]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.vision.image_mean, config.vision.image_std))

    def look(pictures):
        return model.see((torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std)

    def losses(step):
        if step % 200 == 199:
            print("transcripts", {group: round(exact(model, said), 2) for group, said in trials.items()}, flush=True)
        if a.stage == "ear":
            said = next(batches)
            return {"words": (word_loss(model.hear(said, rng)[2], said), 1.0)}
        if clips := step % 8 == 7:
            films = [world.sample_clip(rng)[0] for _ in range(12)]
            seen = [frame for frames in films for frame in frames]
            rows = [spoken_row(packer, places * len(frames), packer.clip_pairs(frames)) for frames in films]
        else:
            picks, flip = [rng.randrange(a.pool) for _ in range(a.batch)], rng.random() < 0.5
            pool = mirrored if flip else scenes
            seen = [pool[i] for i in picks] if pixels_too else [world.sample_scene(rng) for _ in picks]
            rows = [spoken_row(packer, places, packer.pairs(scene)) for scene in seen]
            rows += [spoken_row(packer, 0, packer.pairs(None)) for _ in "ab"]
        if a.stage == "rehearse":
            features = scene_codes(seen) + 0.015 * torch.randn(len(seen), places, config.decoder.hidden_size)
            return listen_loss(model, packer, features, rows)
        if clips:
            drawn = np.stack([picture for frames in films for picture in world.clip_pictures(frames, rng)])
            found = listen_loss(model, packer, look(drawn)[1], rows)
            return {f"clips, {name}": loss for name, loss in found.items()}
        shown = pixels[picks][:, :, ::-1] if flip else pixels[picks]
        odd = [world.odd_colours(world.sample_scene(rng), rng) for _ in range(8)]
        odd += [world.odd_shapes(world.sample_scene(rng)) for _ in range(8)]
        patches, features = look(np.concatenate([shown, np.stack([world.picture(scene, rng) for scene in odd])]))
        mine, tinted, blobs = features.split([len(seen), 8, 8])
        return listen_loss(model, packer, mine, rows) | {
            "patches": (patch_loss(model.patches(patches).float(), patch_labels(seen + odd)), 0.1),
            "codes": (code_loss(mine, scene_codes(seen)), 0.05),
            "odd": (code_loss(tinted, scene_codes(odd[:8]), "colour") + code_loss(blobs, scene_codes(odd[8:]), "shape"), 0.05),
        }

    stage.run(model, losses)
    if a.stage != "ear":
        a.out.mkdir(parents=True, exist_ok=True)
        model.save(a.out, config)
        shutil.copy(a.work / "tokenizer.model", a.out)


if __name__ == "__main__":
    main()
