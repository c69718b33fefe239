"""The demo's model under the names of its checkpoint, its sizes, and its tokenizer.

    Model      vision tower, projector, decoder and audio encoder, with the heads that only training needs
    demo_config, make_tokenizer, as_pixels

Test: ``pytest tests/tools/test_train.py`` and ``tests/tools/test_train_audio.py``
"""

import io
import os
import random
from dataclasses import replace

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tools.demo import wordings
from tools.demo.codes import HEADS
from tools.demo.conversation import converse, vary
from tools.demo.films import CLIP_KINDS, ask_clip
from tools.demo.questions import ASKERS, ask
from tools.demo.rows import ASSISTANT, END, NOISE, SPOKEN, USER, WRITTEN
from tools.demo.scene import COLOURS, sample_clip, sample_scene
from tools.demo.shapes import SHAPES
from tools.demo.topics import other_question
from vita_ref.audio import AudioEncoder
from vita_ref.config import VitaConfig
from vita_ref.decoder import Decoder
from vita_ref.files.folders import config_json
from vita_ref.vision import Projector, VisionTower

PREFIXES = {
    "vision": "model.vision_tower.vision_tower.",
    "projector": "model.mm_projector.",
    "decoder": "model.",
    "audio": "model.audio_encoder.",
}
PARTS = {  # what each stage trains
    "vision": ("vision", "projector", "patches"),
    "decoder": ("decoder",),
    "audio": ("audio", "blank", "nearness"),
}
VOCABULARY = 1400
SIZES = {  # layers of the vision tower, the decoder and the audio encoder
    "full": {"vision": 6, "decoder": 5, "audio": 4},
    "smallest": {"vision": 1, "decoder": 1, "audio": 1},
}
SILENCE, PADDING = -1, -100  # labels of a position at which nothing is said, and of one behind the end


class Model(nn.Module):
    """The parts of Vita under the names of its checkpoint prefixes, and what scores patches and sounds in training."""

    def __init__(self, config):
        super().__init__()
        width = config.decoder.hidden_size
        self.vision, self.decoder = VisionTower(config.vision), Decoder(config.decoder)
        self.projector = Projector(config.vision.feature_size, width)
        self.patches = nn.Linear(config.vision.hidden_size, sum(HEADS))
        for name, p in self.named_parameters():
            if name.endswith(("ls1", "ls2")):
                nn.init.constant_(p, 0.5)
            elif p.dim() > 1:
                nn.init.normal_(p, std=0.02 if p.dim() != 2 else min(0.06, p.shape[-1] ** -0.5))
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        # small random positions are lost beside the patches: the tower did not see places for 3,000 steps
        self.vision.embeddings.position_embedding.data[0, 1:] = waves(config.vision.grid, config.vision.hidden_size)
        self.audio = AudioEncoder(config.audio, width)
        self.blank = nn.Parameter(torch.zeros(1, width))  # the row of silence
        self.nearness = nn.Parameter(torch.zeros(()))

    def see(self, pixels):
        """Patches [N, P, C] and the rows that the decoder gets of them [N, V, D]."""
        kept = {}
        hook = self.vision.encoder.register_forward_hook(lambda module, given, out: kept.update(patches=out[:, 1:]))
        features = self.projector(self.vision(pixels))
        hook.remove()
        return kept["patches"], features

    def listen(self, banks, rng=None):
        """Rows [N, A, D], their number [N], scores [N, A, 1 + V] of filter banks [J, M]; with ``rng``, of warped ones."""
        normal = self.audio.encoder["global_cmvn"]
        lengths = torch.tensor([len(bank) for bank in banks])
        padded = pad_sequence(list(banks), batch_first=True)  # [N, J, M]
        if rng:
            for bank, length in zip(padded, lengths.tolist()):
                warp(bank, length, normal.mean.cpu(), rng)
        embeds, counts = self.audio(padded.to(normal.mean.device), lengths)
        words = self.decoder.embed_tokens.weight.detach()
        centres, spread = torch.cat([self.blank, words]), 0.05 * words.square().sum(1).mean() * self.nearness.exp()
        scores = (embeds.float() @ centres.T - centres.square().sum(1) / 2) / spread  # of normal distributions
        return embeds, counts, scores

    def take(self, path, part):
        """Loads one part as a stage has left it."""
        saved = torch.load(path, map_location="cpu", weights_only=True)["model"]
        self.load_state_dict({k: v for k, v in saved.items() if k.split(".")[0] in PARTS[part]}, strict=False)

    def save(self, folder, config):
        """Writes what `Vita.from_pretrained` reads, in bfloat16."""
        tensors = {}
        for part, module in self.named_children():
            for name, p in module.state_dict().items() if part in PREFIXES else ():
                own = name if name.startswith("lm_head") else PREFIXES[part] + name
                tensors[own] = p.detach().cpu().to(torch.bfloat16).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(config_text(config), encoding="utf-8")


def config_text(config):
    """The text of config.json."""
    return config_json(config)


def warp(bank, length, mean, rng):
    """Changes a filter bank [J, M] in place: as of a throat of another size, and parts of it without sound."""
    bins = bank.shape[1]
    places = torch.arange(bins) * rng.uniform(0.94, 1.06) + rng.uniform(-2, 2)
    low = places.clamp(0, bins - 1).long()  # [M]
    bank[:] = bank[:, low].lerp(bank[:, (low + 1).clamp(max=bins - 1)], (places - low).clamp(0, 1))
    for _ in range(2):
        first, start = rng.randrange(bins), rng.randrange(length)
        last, stop = first + rng.randint(0, 12), start + rng.randint(0, 10)
        bank[:, first:last], bank[start:stop] = mean[first:last], mean


def word_loss(scores, labels):
    """Cross-entropy of the words at every position; labels is a list of [A]."""
    padded = pad_sequence(labels, batch_first=True, padding_value=PADDING).to(scores.device)
    padded = padded.where(padded == PADDING, padded - SILENCE)  # silence is the first class
    return F.cross_entropy(scores.flatten(0, 1), padded.flatten(), ignore_index=PADDING)


def transcripts_right(scores, labels):
    """For each sound whether its words come out right and in order."""
    padded = pad_sequence(labels, batch_first=True, padding_value=PADDING)
    heard = (scores.argmax(-1).cpu() + SILENCE).where(padded != PADDING, PADDING)

    def words(row):
        return [t for t, before in zip(row, [None, *row]) if t != before and t >= 0]

    return [words(a) == words(b) for a, b in zip(heard.tolist(), padded.tolist())]


def waves(grid, width):
    """Sines and cosines of each patch's row and column: [grid * grid, width]."""
    angles = torch.arange(grid)[:, None] * 3.0 ** (-torch.arange(width // 4) / (width / 16))
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def demo_config(sp, size="full"):
    """The sizes of the demo."""
    config = VitaConfig.preset("demo")
    parts = {part: replace(getattr(config, part), num_hidden_layers=layers) for part, layers in SIZES[size].items()}
    parts["decoder"] = replace(parts["decoder"], vocab_size=sp.vocab_size())
    return replace(config, **parts, eos_token_ids=(sp.piece_to_id(END),))


def tokenizer_sentences():
    """Every wording of questions, answers, chat and other questions, without held-out pairs."""
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(1200)]
    clips = [sample_clip(rng)[0] for _ in range(300)]
    yield from sentences_about(rng, scenes, clips)
    for _ in range(4000):
        yield other_question(rng)
    for _ in range(20):
        for question, answer in wordings.CHAT:
            yield from (vary(question, rng), question, answer)
        yield from (wordings.NO_PICTURE, wordings.REFUSAL, wordings.NOTHING_KNOWN, wordings.TOO_MANY)
    for word in (*COLOURS, *SHAPES):  # each is one piece, wherever it stands
        many = "crosses" if word == "cross" else f"{word}s"
        for form in (word, word.capitalize(), word.upper(), *((many, many.capitalize()) if word in SHAPES else ())):
            yield from [form, f"a {form}"] * 400


def sentences_about(rng, scenes, clips):
    """Questions and answers about these scenes and films, as they are and varied, without kept-out pairs."""
    for scene in scenes:
        for kind in ASKERS:
            for turn in filter(None, (ask(scene, kind, rng) for _ in range(3))):
                yield from (turn.text, vary(turn.text, rng), *turn.answers)
        pick = lambda scene=scene: ask(scene, rng.choice(tuple(ASKERS)), rng)
        yield from (text for turn in converse(scene, pick, rng, 5) for text in (turn.text, *turn.answers))
    for frames in clips:
        for kind in CLIP_KINDS:
            if turn := ask_clip(frames, kind, rng):
                yield from (turn.text, *turn.answers)


def make_tokenizer(folder):
    """A sentencepiece model of the world's words; other text falls back to bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.model"
    if not path.exists():
        made = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(tokenizer_sentences()), model_writer=made, vocab_size=VOCABULARY,
            model_type="bpe", byte_fallback=True, hard_vocab_limit=False, add_dummy_prefix=False, character_coverage=1.0,
            user_defined_symbols=[USER, ASSISTANT, END, SPOKEN, NOISE, WRITTEN], pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
            minloglevel=2, normalization_rule_name="nmt_nfkc", num_threads=1,
        )  # fmt: skip
        unfinished = folder / f"tokenizer.{os.getpid()}"
        unfinished.write_bytes(made.getvalue())
        unfinished.replace(path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def as_pixels(pictures, config):
    """Pictures as the vision tower gets them: [N, 3, 112, 112]."""
    mean, std = torch.tensor(config.vision.image_mean), torch.tensor(config.vision.image_std)
    return ((torch.from_numpy(np.stack(pictures)) / 255 - mean) / std).permute(0, 3, 1, 2)


def compile_layers(model):
    """Has torch compile every layer of the three parts; their names stay the same."""
    for name, module in model.named_modules():
        if name.endswith((".layers", ".encoders")):
            for layer in module:
                layer.compile()
