"""Questions and answers as rows of token ids, and the loss on their answers.

A row is one picture, film or nothing, then segments: conversations of one or more turns, each seeing the picture and
itself alone, so that one row of the batch teaches several. The loss is on answers.

    <|user|> picture... | question <|assistant|> mark answer <|end|> <|user|> question ... | question ...

B rows, S columns. Test: ``pytest tests/tools/test_train.py``
"""

import functools
import random
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from tools.demo import wordings
from tools.demo.conversation import converse, vary
from tools.demo.films import CLIP_KINDS, ask_clip
from tools.demo.questions import ODD_COLOUR_KINDS, ODD_SHAPE_KINDS, Turn, ask, plural
from tools.demo.scene import MADE_UP, Scene, sample_scene
from tools.demo.shapes import SHAPES
from tools.demo.topics import other_question

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SPOKEN, NOISE, WRITTEN = "☞", "☟", "☜"  # the marks before an answer: to a spoken question, to noise, to a written one
IMAGE, AUDIO, UNKNOWN, IGNORE = -200, -500, 1, -100  # placeholders; a piece of its own; a label that does not count
ROW = 120  # columns of a row without those of its picture
KINDS = {  # how often a question of each kind is put to a picture, relative to the others
    "describe": 3, "where": 2.5, "left_right": 2.5, "above_below": 2.5, "beside": 4, "bigger": 3, "count_shape": 2,
    "count_color": 2, "count": 1, "exists": 2, "size": 1.8, "color": 1.5, "shape": 1.5,
}  # fmt: skip
# The decoder begins with plain scenes and mostly with questions that one look answers: told everything at once, it
# described and counted after 7,500 steps, and had not learned to find the object that a question is about. So begun,
# it finds it after 2,000.
BEGINNERS = KINDS | {
    "describe": 1, "left_right": 2, "above_below": 2, "beside": 1, "bigger": 1, "count_shape": 1, "count_color": 1,
    "exists": 4, "size": 4, "where": 3, "color": 5, "shape": 5,
}  # fmt: skip
CLIP_SHARES = {"moving": 1, "which_way": 2, "describe_video": 1.5}


@dataclass
class Row:
    """Token ids, labels, positions and segment numbers of one row, and the kind of each of its answers."""

    ids: list = field(default_factory=list)
    labels: list = field(default_factory=list)
    positions: list = field(default_factory=list)
    segments: list = field(default_factory=list)
    kinds: list = field(default_factory=list)

    def extend(self, ids, labels, start, segment):
        self.ids += ids
        self.labels += labels
        self.positions += range(start, start + len(ids))
        self.segments += [segment] * len(ids)


class Packer:
    """Makes rows. All chance comes from ``rng``."""

    def __init__(self, tokenizer, rng=None):
        self.sp, self.rng = tokenizer, rng or random.Random(0)
        self.user, self.assistant, self.end = (tokenizer.piece_to_id(s) for s in (USER, ASSISTANT, END))
        self.mark_ids = {mark: tokenizer.piece_to_id(mark) for mark in (SPOKEN, NOISE, WRITTEN)}
        # pieces of single bytes, which the world's language does not use: two forms of each made-up colour, then shape
        self.made_up = [tokenizer.piece_to_id(f"<0x{128 + i:02X}>") for i in range(4 * MADE_UP)]
        self.encode = functools.lru_cache(20_000)(tokenizer.encode)

    # ---- what is asked

    def turns(self, scene, shares=KINDS, talks=True):
        """Lists of turns about a scene, or about no picture for None, without end."""
        while True:
            chance = self.rng.random()
            if chance < 0.03:
                yield [self.chat()]
            elif chance < 0.1:
                yield [self.other()]
            elif scene is None:
                yield [self.without_picture()]
            elif talks and chance < 0.36 and not nameless(scene):
                if said := self.talk(scene, shares):
                    yield said
            elif turn := self.one(scene, shares):
                yield [turn]

    def chat(self):
        return Turn("chat", *_pair(self.rng.choice(wordings.CHAT)))

    def other(self):
        return Turn("other", other_question(self.rng), (wordings.REFUSAL,))

    def without_picture(self):
        turn = None
        while turn is None:
            turn = self.one(sample_scene(self.rng), KINDS)
        return Turn("no picture", turn.text, (wordings.NO_PICTURE,))

    def one(self, scene, shares):
        """One question about a scene by their shares, or None where this one does not go."""
        kinds = ODD_COLOUR_KINDS if not all(t.named for t in scene.things) else tuple(shares)
        kinds = ODD_SHAPE_KINDS if any(t.shape == "blob" for t in scene.things) else kinds
        kind = self.rng.choices(kinds, [shares[k] for k in kinds])[0]
        if not scene.outside:
            return ask(scene, kind, self.rng)
        few = self.rng.sample(scene.things, 3) if scene.things else ()
        asked = ask(Scene(tuple(few)) if few and self.rng.random() < 0.5 else sample_scene(self.rng), kind, self.rng)
        answer = {"none": wordings.NOTHING_KNOWN, "many": wordings.TOO_MANY}[scene.outside]
        return asked and Turn(scene.outside, asked.text, (answer,))

    def talk(self, scene, shares):
        """A conversation of two to six turns."""
        count = self.rng.choices((2, 3, 4, 5, 6), (25, 25, 25, 12, 13))[0]
        if scene.outside:
            said = filter(None, (self.one(scene, shares) for _ in range(count)))
        else:
            said = converse(scene, lambda: self.one(scene, shares), self.rng, count)
        said = list(said)
        if self.rng.random() < 0.12:
            said.insert(self.rng.randrange(len(said) + 1), self.rng.choice((self.chat, self.other))())
        return said

    def clip_turns(self, frames):
        """Up to five questions about a film."""
        for _ in range(5):
            if self.rng.random() < 0.04:
                yield [self.other()]
            elif frames[0].outside:
                kind = self.rng.choice(("moving", "describe_video", "describe"))
                yield [Turn("none", self.rng.choice(wordings.KINDS[kind]), (wordings.NOTHING_KNOWN,))]
            else:
                kind = self.rng.choices(CLIP_KINDS, [CLIP_SHARES[k] for k in CLIP_KINDS])[0]
                if turn := ask_clip(frames, kind, self.rng):
                    yield [turn]

    # ---- how it is laid out

    def stand_ins(self, names):
        """The pieces of words that mean something made up -> the pieces that are written instead."""
        swap = {}
        for word, number in names:
            shape = word in SHAPES
            first = 2 * (number + shape * MADE_UP)
            forms = (word, plural(word)) if shape else (word, word.capitalize())
            for i, form in enumerate(forms):
                # "Red" is an answer of its own; "Star" is how a question may begin
                pieces = (f"\u2581{form}", form, form.capitalize()) if shape else (f"\u2581{form}", form)
                swap |= {self.sp.piece_to_id(piece): self.made_up[first + i] for piece in pieces}
        swap.pop(UNKNOWN, None)
        return swap

    def forget(self, decoder):
        """Gives those pieces the rows of one that never meant anything, so that none is ever answered."""
        for table in (decoder.embed_tokens.weight, decoder.lm_head.weight):
            table.data[self.made_up] = table.data[self.sp.piece_to_id("<0xFF>")].clone()

    def row(self, images, talks, names=(), spoken=None, room=ROW):
        """One row: the picture's positions, a spoken turn if there is one, then as many conversations as there is room for.

        ``spoken`` is (positions of its sound, Turn). ``names`` are those of a scene with made-up words.
        """
        row, swap, first = Row(), self.stand_ins(names) if names else {}, images + 1
        row.extend([self.user] + [IMAGE] * images, [IGNORE] * first, 0, 0)
        if spoken:
            positions, turn = spoken
            mark = NOISE if turn.kind in ("other", "noise") else SPOKEN
            answer = [self.mark_ids[mark], *(self.encode(turn.answers[0]) if mark == SPOKEN else ()), self.end]
            asked = [AUDIO] * positions + [self.assistant]
            row.extend(asked + answer, [IGNORE] * len(asked) + answer, first, 1)
            row.kinds.append(f"spoken {turn.kind}")
        misses = 0
        for segment, turns in enumerate(talks, 2):
            ids, labels = self.conversation(turns, swap, varied=not names)
            if len(row.ids) + len(ids) > room + images:
                misses += 1
                if misses == 4:  # little room is left
                    break
                continue
            row.extend(ids, labels, first, segment)
            row.kinds += [turn.kind for turn in turns]
        return row

    def conversation(self, turns, swap, varied):
        """Ids and labels of turns; in half of the conversations earlier answers have lost their mark, as in a chat."""
        ids, labels, marked = [], [], self.rng.random() < 0.5
        for i, turn in enumerate(turns):
            text = vary(turn.text, self.rng) if varied else turn.text
            asked = [swap.get(t, t) for t in self.encode(text)] + [self.assistant]
            answer = [swap.get(t, t) for t in self.encode(turn.answers[0])] + [self.end]
            label = list(answer)
            if marked or i == len(turns) - 1:
                answer = label = [self.mark_ids[WRITTEN], *answer]
            else:
                label[0] = IGNORE  # else it would learn to leave out the mark
            before = [self.user] * (i > 0)
            ids += before + asked + answer
            labels += [IGNORE] * (len(before) + len(asked)) + label
        return ids, labels


def _pair(chat):
    return chat[0], (chat[1],)


def nameless(scene):
    return any(not t.named or t.shape == "blob" for t in scene.things)


def collate(rows):
    """Rows of any length -> ids, labels, positions [B, S] and which keys each query sees [B, S, S]."""
    longest = max(len(r.ids) for r in rows)

    def padded(parts, pad):
        return torch.tensor([part + [pad] * (longest - len(part)) for part in parts])

    ids, labels = padded([r.ids for r in rows], 0), padded([r.labels for r in rows], IGNORE)
    positions, segments = padded([r.positions for r in rows], 0), padded([r.segments for r in rows], -1)
    same = (segments[:, :, None] == segments[:, None]) | (segments[:, None] == 0)
    return ids, labels, positions, same & torch.ones(longest, longest, dtype=torch.bool).tril()


def answer_logits(decoder, features, ids, labels, positions, visible):
    """Logits [T, V] of every answer token and where in ``labels[:, 1:]`` they stand [B, S - 1].

    ``features`` has the rows [n, D] that stand in the place of each placeholder.
    """
    x = decoder.embed_tokens(ids.clamp(min=0))
    for placeholder, rows in features.items():
        x = x.masked_scatter((ids == placeholder)[..., None], rows.to(x.dtype))
    # asking for the maps takes the plain attention, whose backward is a third faster on a CPU
    out = decoder(x, attention_mask=visible, position_ids=positions, output_attentions=x.device.type == "cpu")
    counted = labels[:, 1:] >= 0
    return decoder.lm_head(out.last_hidden_state[:, :-1][counted]).float(), counted


def answer_losses(decoder, features, ids, labels, positions, visible):
    """The cross-entropy of every answer token, and where in ``labels[:, 1:]`` they stand: [T], [B, S - 1].

    Answers are read with every sixth token unknown, so that a word is told by the picture, not by the word before.
    """
    ids = ids.masked_fill((labels >= 0) & (torch.rand(ids.shape, device=ids.device) < 1 / 6), UNKNOWN)
    logits, counted = answer_logits(decoder, features, ids, labels, positions, visible)
    return F.cross_entropy(logits, labels[:, 1:][counted], reduction="none"), counted


@torch.no_grad()
def exact_answers(decoder, features, rows, device="cpu"):
    """(kind, whether every token of the answer comes first) for all answers of the rows, each read with the right words before."""
    batch = [part.to(device) for part in collate(rows)]
    logits, counted = answer_logits(decoder, features, *batch)
    labels = batch[1][:, 1:]
    right = torch.ones_like(labels, dtype=torch.bool)
    right[counted] = logits.argmax(-1) == labels[counted]
    ends = labels == last_label(rows[0])
    marks = []
    for row, good, last in zip(rows, right.cpu(), ends.cpu()):
        start = 0
        for kind, stop in zip(row.kinds, last.nonzero().flatten().tolist()):
            marks.append((kind, bool(good[start : stop + 1].all())))
            start = stop + 1
    return marks


def last_label(row):
    """The id that ends every answer."""
    return next(label for label in reversed(row.labels) if label != IGNORE)
