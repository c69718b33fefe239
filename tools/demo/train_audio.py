"""Gives the demo its ear and fits its parts together: python tools/train_ear.py ear --work build/demo, then finish

In `ear` the encoder alone learns to write, at every position (80 ms) of a spoken question, the decoder's own
embedding of the word that is being said, so that the decoder can read what it hears. In `finish` ear and decoder
learn from rows that ask one question aloud and others in writing, about pictures as the finished eye sees them, and go
on with codes, made-up ones among them; the eye itself stays, for learning from answers it grew worse at pairs of
colour and shape that it had not met.
Every picture is drawn and every utterance said anew. Begun again where it stopped.
"""

import itertools
import random
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset

from tools.demo import speech, world
from tools.demo.model import (
    Model,
    Stage,
    as_pixels,
    compile_layers,
    demo_config,
    make_tokenizer,
    odd_scenes,
)
from tools.demo.train import IMAGE, Packer, answer_losses, arguments, begun
from vita_ref.audio import AudioEncoder
from vita_ref.config import VitaConfig

EAR = VitaConfig.preset("demo").audio
AUDIO, ALOUD, GROUP = -500, -2, 12  # the placeholder; the segment of a row that is spoken; sounds heard together
OUT_OF_SOUND = -100  # the label of padding
EYE = "vision", "projector", "patches"


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


def some_lessons(sp, rng, count, group=None):
    return [speech.lesson(speech.question(rng), speech.manner(rng, group), sp, rng) for _ in range(count)]


def lessons(sp, rng, size):
    """For ever: so many lessons of about one length."""
    while True:
        made = some_lessons(sp, rng, size * 6)
        made.sort(key=lambda lesson: len(lesson.bank))
        parts = [made[i : i + size] for i in range(0, len(made), size)]
        yield from rng.sample(parts, len(parts))


def spoken_row(packer, images, pairs, written=3):
    """A row whose first question is spoken and the others written, and the lesson (None where there is no question)."""
    pairs = iter(pairs)
    asked = next((pair for pair in pairs if not speech.is_kept_out(pair[0])), None)
    ids, labels, positions, segments = packer.row(images, itertools.islice(pairs, written))
    if asked is None:
        return (ids, labels, positions, segments), None
    lesson = speech.lesson(asked[0], speech.manner(packer.rng), packer.sp, packer.rng)
    question, answer = [AUDIO] * len(lesson.labels) + [packer.assistant], [*packer.ids(asked[1]), packer.end]
    first, n = images + 1, len(question) + len(answer)
    ids[first:first], labels[first:first] = question + answer, [-100] * len(question) + answer
    positions[first:first], segments[first:first] = range(first, first + n), [ALOUD] * n
    return (ids, labels, positions, segments), lesson


class Questions(IterableDataset):
    """Without end: kind, what is seen, rows and the spoken questions in them.

    Of four batches two are pictures and one clips, seen by the eye as pixels [N, 3, H, W]; the fourth is codes [N, V, D]
    of the one or the other by turns, in writing alone.
    """

    def __init__(self, packer, config, size):
        self.packer, self.config, self.size = packer, config, size

    def __iter__(self):
        for step in itertools.count():
            if step % 4 < 3:
                yield self.clips() if step % 4 == 1 else self.pictures()
            else:
                of_clips = step % 8 == 7
                codes, rows = self.packer.coded(self.size, self.config.vision.num_positions, of_clips)
                yield "coded clips, " if of_clips else "coded, ", codes, rows, []

    def pictures(self):
        """So many pictures with a question aloud for every other one, and some of what has no name."""
        packer, places, half = self.packer, self.config.vision.num_positions, self.size // 2
        seen = [world.sample_scene(packer.rng) for _ in range(2 * half)]
        nameless = [scene for part in odd_scenes(self.size // 8, packer.rng) for scene in part]
        rows = [spoken_row(packer, places, packer.pairs(scene)) for scene in seen[:half]]
        rows += [(packer.row(places, packer.pairs(scene)), None) for scene in seen[half:] + nameless]
        rows += [spoken_row(packer, 0, packer.pairs(None)) for _ in "ab"]
        return self.made("", [world.picture(scene, packer.rng) for scene in seen + nameless], rows)

    def clips(self):
        packer, places = self.packer, self.config.vision.num_positions
        films = packer.clips(self.size // 2)
        rows = [spoken_row(packer, places * len(frames), packer.clip_pairs(frames)) for frames in films]
        return self.made("clips, ", [p for frames in films for p in world.clip_pictures(frames, packer.rng)], rows)

    def made(self, kind, pictures, rows):
        rows, said = zip(*rows)
        return kind, as_pixels(pictures, self.config), rows, [lesson for lesson in said if lesson]


def hear_all(model, said, rng):
    """What the ear makes of each lesson, [A_i, D], and the loss of its words; lessons of like length together."""
    order, heard, losses = sorted(range(len(said)), key=lambda i: len(said[i].bank)), {}, []
    for start in range(0, len(order), GROUP):
        group = order[start : start + GROUP]
        embeds, counts, scores = model.hear([said[i] for i in group], rng)
        heard |= {i: own[:n] for i, own, n in zip(group, embeds, counts)}
        losses.append(word_loss(scores, [said[i] for i in group]))
    return [heard[i] for i in range(len(said))], sum(losses) / len(losses)


def main():
    stages = {"ear": (2400, 1e-3), "finish": (4500, 4e-4)}
    parser = arguments(__doc__, stages)
    parser.add_argument("--out", type=Path, default=Path("weights/demo"))
    a = begun(parser, stages)
    sp = make_tokenizer(a.work)
    config = demo_config(sp, EAR)
    model = Listener(config)
    trials = {group: some_lessons(sp, random.Random(group), 64, group) for group in speech.GROUPS}

    def take(name, *kept):
        saved = torch.load(a.work / f"{name}.pt", weights_only=True)["model"]
        model.load_state_dict({k: v for k, v in saved.items() if k.split(".")[0] in kept}, strict=False)

    learning, fixed = [model.blank, model.nearness, *model.audio.parameters()], ("decoder", "decoder")
    take(*fixed)
    if a.stage == "finish":
        take("ear", "audio", "blank", "nearness")
        learning, fixed = [*learning, *model.decoder.parameters()], ("eye", *EYE)
    stage = Stage(a.stage, a.work, learning, a.steps, a.rate).resume(model)
    if a.compile:
        compile_layers(model)
    packer = Packer(sp, a.seed + stage.first + 2)
    rng, normal = packer.rng, model.audio.encoder["global_cmvn"]
    batches = lessons(sp, rng, a.batch)
    if a.stage == "ear" and not stage.first:
        every = torch.cat([lesson.bank for _ in range(10) for lesson in next(batches)])
        normal.mean, normal.istd = every.mean(0), 1 / every.std(0)

    def ear(step):
        said = next(batches)
        return {"words": (word_loss(model.hear(said, rng)[2], said), 1.0)}

    if a.stage == "finish":  # a process of its own draws and speaks while this one learns
        prepared = iter(DataLoader(Questions(packer, config, a.batch), batch_size=None, num_workers=1))

    def finish(step):
        kind, shown, rows, said = next(prepared)
        if not said:
            each, _ = answer_losses(model, {IMAGE: shown}, *packer.batch(rows))
            return {f"{kind}written": (each.mean(), 2.0)}
        with torch.no_grad():
            features = model.see(shown)[1]
        heard, words = hear_all(model, said, rng)
        each, counted = answer_losses(model, {IMAGE: features, AUDIO: torch.cat(heard)}, *packer.batch(rows))
        aloud = pad_sequence([torch.tensor(row[3]) == ALOUD for row in rows], batch_first=True)[:, 1:][counted]
        found = {"spoken": (each[aloud].mean(), 1.0), "written": (each[~aloud].mean(), 2.0), "words": (words, 0.3)}
        return {f"{kind}{name}": loss for name, loss in found.items()}

    def losses(step):
        if (step - stage.first) % 200 == 0:  # what stays as it is here may learn on beside this
            take(*fixed)
        if step % 200 == 199:
            print("transcripts", {group: round(exact(model, said), 2) for group, said in trials.items()}, flush=True)
        return ear(step) if a.stage == "ear" else finish(step)

    stage.run(model, losses)
    if a.stage == "finish":
        take(*fixed)
        a.out.mkdir(parents=True, exist_ok=True)
        packer.forget(model.decoder)
        model.save(a.out, config)
        shutil.copy(a.work / "tokenizer.model", a.out)


if __name__ == "__main__":
    main()
