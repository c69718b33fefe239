"""Occlusion: cover a part of the prompt, run the model again, and see how much the tokens' log-probabilities fall.

    a cell of a picture   its pixels become the picture's median colour, in the thumbnail too; and once more with half a cell
                          around it, because an object seldom ends where a cell does
    a stretch of a sound  its frames become quiet: the 10 % quantile of each mel bin of this sound
    a word                no later position sees its tokens; the position ids stay

This is the only map here that changes the cause and measures the effect. Each `Unit` takes one pass over the prompt and the
answer, which gives the fall of all explained tokens together. `plan` says beforehand how many passes there will be.

n explained tokens, T positions, D width, V vocabulary, B units in one batch; J frames, M mel bins.

Test: ``pytest tests/analysis/test_look.py``
"""

import math
from dataclasses import dataclass

import torch

from ..inputs import audio_features
from .budget import decoder_flops
from .positions import middle_frame, tile_boxes, words

FLOPS = 3e13  # operations of all passes together, by default: about a minute at 500 GFLOP/s
LEAST, MOST = 24, 400  # passes, by default
AROUND = (0.0, 0.5)  # cells on each side of a covered cell; only the first if cells were joined
WIDTH = 3  # positions of a sound that are covered together: 0.24 s
ROWS, TILES = 4096, 8  # positions of all rows of a batch, and tiles that are encoded together


@dataclass(frozen=True)
class Unit:
    """What is covered in one pass. ``positions`` are the columns that it stands for in a map."""

    kind: str
    label: str
    positions: tuple
    medium: int | None = None
    box: tuple | None = None  # of a picture: the place that is covered
    frames: tuple | None = None  # of a sound: first and last + 1


@dataclass(frozen=True)
class Plan:
    """The passes of an occlusion, known before the first of them."""

    units: tuple
    passes: int
    length: int  # positions of each pass
    flops: float  # of the decoder, in all passes
    seconds: float | None = None  # an estimate from the measured first pass; None if there is none

    def __str__(self):
        time = "" if self.seconds is None else f", about {self.seconds:,.3g} s"
        return f"occlusion: {self.passes} passes of {self.length:,} positions{time}"


def plan(vita, positions, pictures, sounds, answer, passes=None, seconds_each=None):
    """The `Plan` for a prompt and so many tokens of its answer. With more units than ``passes``, neighbours are joined."""
    length, d = len(positions) + answer - 1, vita.config.decoder
    flops = decoder_flops(d, length, length) + 2 * answer * d.hidden_size * d.vocab_size
    most = min(MOST, max(LEAST, int(FLOPS / flops))) if passes is None else passes
    join = 1
    while len(units := units_of(vita, positions, pictures, sounds, join)) > most and join < 4096:
        join += 1
    seconds = None if seconds_each is None else (len(units) + 1) * seconds_each
    return Plan(tuple(units), len(units) + 1, length, flops * (len(units) + 1), seconds)


def units_of(vita, positions, pictures, sounds, join=1):
    """All units of a prompt; ``join`` of them, about, become one."""
    found = []
    groups = words(positions)
    for i in range(0, len(groups), join):
        columns = [c for group in groups[i : i + join] for c in group]
        found.append(Unit("text", "".join(positions[c].text for c in columns).strip() or "space", tuple(columns)))
    for number, picture in enumerate(pictures):
        found += picture_units(positions, number, picture, join)
    for number, sound in enumerate(sounds):
        found += sound_units(vita.config, positions, number, sound, join)
    return found


def picture_units(positions, number, picture, join):
    """A grid of cells over a picture: those of its positions, or squares of them."""
    own = [p for p in positions if p.medium == number and p.kind == "image" and p.row is not None]
    tile = [p for p in own if p.tile == 0]
    step = math.isqrt(join - 1) + 1  # positions of a side: 1, then 2 for up to 4 and so on
    columns = -(-(1 + max(p.column for p in tile)) * picture.grid[0] // step)
    rows = -(-(1 + max(p.row for p in tile)) * picture.grid[1] // step)
    for r in range(rows):
        for c in range(columns):
            box = (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows)
            inside = [p.index for p in own if overlaps(p.box, box)]
            for wide in AROUND if join == 1 else AROUND[:1]:
                left, top, right, bottom = c - wide, r - wide, c + 1 + wide, r + 1 + wide
                cover = (max(0.0, left / columns), max(0.0, top / rows), min(1.0, right / columns), min(1.0, bottom / rows))
                label = f"picture {number + 1}, cell {r + 1}, {c + 1}" + ", wide" * (wide > 0)
                yield Unit("image", label, tuple(inside), number, cover)


def overlaps(one, other):
    """Whether the middle of one box is in the other, either way."""

    def holds(box, of):
        x, y = (of[0] + of[2]) / 2, (of[1] + of[3]) / 2
        return box[0] <= x < box[2] and box[1] <= y < box[3]

    return holds(one, other) or holds(other, one)


def sound_units(config, positions, number, sound, join):
    """Stretches around each position of a sound, or around every ``join``-th."""
    own = [p for p in positions if p.kind == "audio" and p.medium == number and p.start is not None]
    first, kernel = own[0].index if own else 0, config.audio.adapter_kernel_size if config.audio else 0
    for i in range(0, len(own), join):
        group = own[i : i + join]
        middle = sum(middle_frame(p.index - first, kernel) for p in group) / len(group)
        half = 4 * max(WIDTH, join + 1)
        frames = max(0, round(middle - half)), min(len(sound.bank), round(middle + half))
        label = f"sound {number + 1}, {group[0].start:.2f} to {group[-1].end:.2f} s"
        yield Unit("audio", label, tuple(p.index for p in group), number, None, frames)


# ---- covering


def cover_picture(picture, box):
    """The tiles with one place covered by the median colour, and which of them changed."""
    tiles, changed = picture.tiles.clone(), []
    colour = tiles.transpose(0, 1).flatten(1).float().median(1).values.to(tiles.dtype)  # [3]
    height, width = tiles.shape[2:]
    for number, (left, top, right, bottom) in enumerate(tile_boxes(picture)):
        x0, x1 = (round((min(max(x, left), right) - left) / (right - left) * width) for x in (box[0], box[2]))
        y0, y1 = (round((min(max(y, top), bottom) - top) / (bottom - top) * height) for y in (box[1], box[3]))
        if x0 < x1 and y0 < y1:
            tiles[number, :, y0:y1, x0:x1] = colour[:, None, None]
            changed.append(number)
    return tiles, changed


def cover_sound(bank, frames):
    """The filter bank with a stretch of quiet: [J, M] -> [J, M]."""
    covered = bank.clone()
    covered[frames[0] : frames[1]] = bank.float().quantile(0.1, dim=0).to(bank.dtype)
    return covered


class Covering:
    """Makes the embeddings and the mask of a covered prompt from those of the run."""

    def __init__(self, vita, embeds, positions, pictures, sounds):
        self.vita, self.embeds, self.pictures, self.sounds = vita, embeds, pictures, sounds
        self.columns = {}
        for p in positions:
            if p.medium is not None:
                self.columns.setdefault((p.kind, p.medium), []).append(p.index)

    def rows(self, units):
        """Embeddings [B, T, D] and which columns are seen [B, T]. The towers take what changed in all units together."""
        rows = self.embeds.repeat(len(units), 1, 1)  # [B, T, D]
        seen = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)  # [B, T]
        for i, unit in enumerate(units):
            if unit.kind == "text":
                seen[i, list(unit.positions)] = False
        self.cover_pictures(units, rows)
        heard = [(i, unit) for i, unit in enumerate(units) if unit.kind == "audio"]
        banks = [cover_sound(self.sounds[unit.medium].bank, unit.frames) for _, unit in heard]
        features = audio_features(self.vita, {"audios": banks, "kind": "fbank"}) if banks else []
        for (i, unit), part in zip(heard, features):
            rows[i, self.columns["audio", unit.medium]] = part.to(rows)
        return rows, seen

    def cover_pictures(self, units, rows):
        """Writes the features of covered tiles into ``rows`` [B, T, D]."""
        tiles, places = [], []
        for i, unit in enumerate(units):
            if unit.kind == "image":
                covered, changed = cover_picture(self.pictures[unit.medium], unit.box)
                columns = self.columns["image", unit.medium]
                size = len(columns) // len(covered)
                tiles += [covered[number] for number in changed]
                places += [(i, columns[number * size : (number + 1) * size]) for number in changed]
        for start in range(0, len(tiles), TILES):
            part = tiles[start : start + TILES]
            same = len({tile.shape for tile in part}) == 1
            groups = [torch.stack(part)] if same else [tile[None] for tile in part]
            features = [row for group in groups for row in self.vita.encode_images(group, checked=True)]
            for (i, columns), row in zip(places[start:], features):
                rows[i, columns] = row.to(rows)


@torch.no_grad()
def occlude(vita, run, plan, points, token_ids, positions, pictures, sounds, progress=None):
    """How much each covered unit lowers the log-probability of each explained token, in nats.

    Shapes: points and token_ids n each -> falls [n, units] and the log-probabilities without cover [n], float32.
    """
    like = vita.decoder.norm.weight
    embeds = run.layer_inputs(0).to(like.device)  # [T, D]
    ids = torch.tensor([[p.position_id for p in positions]], device=like.device)
    ids = torch.cat([ids, ids[:, -1:] + 1 + torch.arange(len(embeds) - len(positions), device=like.device)[None]], 1)
    covering = Covering(vita, embeds, positions, pictures, sounds)
    everything = Unit("text", "nothing", ())
    todo, size, found = [everything, *plan.units], max(1, min(8, ROWS // len(embeds))), []
    for start in range(0, len(todo), size):
        rows, seen = covering.rows(todo[start : start + size])
        out = vita.decoder(rows, attention_mask=None if seen.all() else seen, position_ids=ids).last_hidden_state
        logits = vita.decoder.lm_head(out[:, points]).float()  # [B, n, V]
        chosen = torch.tensor(token_ids, device=logits.device)[None, :, None].expand(len(logits), -1, 1)  # [B, n, 1]
        scores = logits.log_softmax(-1).gather(2, chosen)[..., 0]  # [B, n]
        found.append(scores.cpu())
        if progress:
            progress(min(start + size, len(todo)), len(todo))
    scores = torch.cat(found)  # [units+1, n]
    return (scores[:1] - scores[1:]).T.contiguous(), scores[0]


def to_positions(falls, units, length):
    """Falls of units as a map of the columns: the mean over the units that a column belongs to, NaN where there is none.

    Shapes: [n, units] -> [n, T].
    """
    total, count = torch.zeros(len(falls), length), torch.zeros(length)  # [n, T]
    for fall, unit in zip(falls.T, units):
        columns = list(unit.positions)
        total[:, columns] += fall[:, None]
        count[columns] += 1
    return torch.where(count > 0, total / count.clamp(min=1), math.nan)

