"""What each stage of the demo's training learns from, batch by batch.

    vision_batch    pictures as pixels, and the codes that are to be written for them
    decoder_batch   codes of scenes or films, and rows of questions about them
    audio_batch     sounds and the words in them
    finish_batch    pixels or codes, rows, and the sounds of their spoken questions

A batch is made of plain tensors, rows and lessons, so that another process may prepare it.
Test: ``pytest tests/tools/test_train.py`` and ``tests/tools/test_train_audio.py``
"""

import itertools
from dataclasses import dataclass, field

import torch

from tools.demo import speech
from tools.demo.codes import off, patch_labels, scene_codes
from tools.demo.draw import clip_pictures, picture
from tools.demo.model import as_pixels
from tools.demo.questions import Turn
from tools.demo.rows import BEGINNERS, KINDS, Packer
from tools.demo.scene import (
    OUTSIDE,
    odd_colours,
    odd_shapes,
    renamed,
    sample_clip,
    sample_many,
    sample_scene,
)
from tools.demo.shapes import gap

BEGINNING = 1 / 5  # of the decoder's steps: plain scenes, mostly questions that one look answers


@dataclass
class Batch:
    """Pixels [N, 3, H, W] or codes [N, V, D], rows of text about them, and the lessons of the spoken rows."""

    kind: str
    shown: torch.Tensor
    rows: list
    lessons: list = field(default_factory=list)


@dataclass
class VisionBatch:
    """Pixels, patch labels, and the codes of pictures with names, with nameless colours and with nameless shapes."""

    pixels: torch.Tensor
    labels: torch.Tensor
    codes: torch.Tensor
    occupied: torch.Tensor
    counts: tuple  # pictures with names, with nameless colours, with nameless shapes


def odd_scenes(count, rng):
    """So many scenes in nameless colours, then as many of nameless shapes: what is learned of one is not tied to the other."""
    tinted = [odd_colours(sample_scene(rng), rng) for _ in range(count)]
    blobs = filter(None, (odd_shapes(sample_scene(rng)) for _ in itertools.count()))
    return tinted, list(itertools.islice(blobs, count))


def nearest(rng):
    """That of three scenes whose objects stand nearest to each other."""
    return min((sample_scene(rng) for _ in range(3)), key=lambda scene: gap(scene.things, scene.aspect))


def vision_batch(rng, size, config):
    """Of 32 pictures 12 are of any scene, 4 of one with near objects, 4 crowded, 6 outside, 6 nameless."""
    odd, many, outside = max(1, size * 3 // 32), max(1, size // 8), max(1, size * 6 // 32)
    plain = max(1, size - 2 * odd - many - outside)
    seen = [nearest(rng) if i % 4 == 3 else sample_scene(rng) for i in range(plain)]
    seen += [sample_many(rng) for _ in range(many)] + [OUTSIDE] * outside
    tinted, blobs = odd_scenes(odd, rng)
    shown = [*seen, *tinted, *blobs]
    pixels = as_pixels([picture(scene, rng) for scene in shown], config)
    codes, occupied = scene_codes(shown)
    labels = patch_labels(shown)
    return VisionBatch(pixels, labels, codes, occupied, (len(seen), len(tinted), len(blobs)))


def decoder_batch(rng, step, size, steps, sp, places):
    """Codes in place of pictures; made-up names in a part of them; every fifth batch is of films."""
    packer = Packer(sp, rng)
    if step < BEGINNING * steps:
        seen = [sample_scene(rng) for _ in range(size)]
        rows = [packer.row(places, packer.turns(s, BEGINNERS, talks=False)) for s in seen]
        return Batch("plain", off(scene_codes(seen)[0]), rows + [packer.row(0, packer.turns(None))])
    if step % 5 == 4:
        return coded_films(packer, size, places)
    return coded_scenes(packer, size, places)


def coded_scenes(packer, size, places):
    """Scenes with names, with made-up names, without names, crowded and outside, and no picture."""
    rng, eighth = packer.rng, max(1, size // 8)
    seen = [sample_scene(rng) for _ in range(size - 4 * eighth)]
    made_up = [sample_scene(rng, rng.random() < 0.3) for _ in range(2 * eighth)]
    seen += [frame for scene in made_up for frame in renamed([scene], rng)]
    seen += [scene for part in odd_scenes(max(1, eighth // 4), rng) for scene in part]
    seen += [sample_many(rng) for _ in range(eighth // 2)] + [OUTSIDE] * (eighth // 2)
    rows = [packer.row(places, packer.turns(scene, KINDS), scene.names) for scene in seen]
    rows += [packer.row(0, packer.turns(None)) for _ in range(1 + size // 32)]
    return Batch("scenes", off(scene_codes(seen, mixed=True)[0]), rows)


def coded_films(packer, size, places):
    """Films, half of them with made-up names."""
    rng = packer.rng
    films = [sample_clip(rng)[0] for _ in range(max(1, size // 4))]
    films += [renamed(sample_clip(rng, rng.random() < 0.3)[0], rng) for _ in range(max(1, size // 4 - 1))]
    films += [[OUTSIDE] * rng.randint(4, 8)]
    rows = [packer.row(places * len(frames), packer.clip_turns(frames), frames[0].names) for frames in films]
    seen = [frame for frames in films for frame in frames]
    return Batch("films", off(scene_codes(seen, mixed=True)[0]), rows)


# ---- sound


def some_lessons(sp, rng, count, group=None):
    """Spoken questions; a few sounds say nothing unless a group of voices to measure with is named."""
    return [
        speech.noise_lesson(rng) if not group and rng.random() < 0.04 else
        speech.lesson(speech.question(rng), speech.manner(rng, group), sp, rng)
        for _ in range(count)
    ]  # fmt: skip


def audio_batch(rng, size, sp):
    """So many sounds, shorter ones beside each other."""
    return sorted(some_lessons(sp, rng, size), key=lambda lesson: len(lesson.bank))


def spoken_row(packer, images, talks, written=3):
    """A row whose first question is spoken and the others written; and the sound, None where there is no question."""
    talks, rng = iter(talks), packer.rng
    turn = next((turns[0] for turns in itertools.islice(talks, 20) if not speech.is_kept_out(turns[0].text)), None)
    if turn is None:
        return packer.row(images, talks), None
    if rng.random() < 0.06:
        turn, lesson = Turn("noise", "", ("",)), speech.noise_lesson(rng)
    else:
        lesson = speech.lesson(turn.text, speech.manner(rng), packer.sp, rng)
    spoken = len(lesson.labels), turn
    return packer.row(images, itertools.islice(talks, written), spoken=spoken, room=200), lesson


def finish_batch(rng, step, size, sp, config):
    """Of four batches two are pictures and one films, seen as pixels; the fourth is codes, written questions alone."""
    packer, places = Packer(sp, rng), config.vision.num_positions
    if step % 4 == 3:
        made = coded_films if step % 8 == 7 else coded_scenes
        batch = made(packer, size, places)
        return Batch(f"coded {batch.kind}", batch.shown, batch.rows)
    return films_as_pixels(packer, size, config) if step % 4 == 1 else pictures_as_pixels(packer, size, config)


def pictures_as_pixels(packer, size, config):
    """Pictures, a part of them crowded or outside; half of the rows begin with a spoken question."""
    rng, places, eighth = packer.rng, config.vision.num_positions, max(1, size // 8)
    seen = [sample_scene(rng) for _ in range(size - eighth - max(1, eighth // 2))]
    seen += [OUTSIDE] * eighth + [sample_many(rng) for _ in range(max(1, eighth // 2))]
    rows = [
        spoken_row(packer, places, packer.turns(scene)) if i % 2 else (packer.row(places, packer.turns(scene)), None)
        for i, scene in enumerate(seen)
    ]
    rows += [spoken_row(packer, 0, packer.turns(None)) for _ in range(max(1, eighth // 2))]
    return _pixels("pictures", [picture(scene, rng) for scene in seen], rows, config)


def films_as_pixels(packer, size, config):
    """Films with a spoken question each."""
    rng, places = packer.rng, config.vision.num_positions
    films = [sample_clip(rng)[0] for _ in range(max(1, size // 3))] + [[OUTSIDE] * 4]
    rows = [spoken_row(packer, places * len(frames), packer.clip_turns(frames)) for frames in films]
    return _pixels("films", [p for frames in films for p in clip_pictures(frames, rng)], rows, config)


def _pixels(kind, pictures, rows, config):
    rows, lessons = zip(*rows)
    return Batch(kind, as_pixels(pictures, config), list(rows), [lesson for lesson in lessons if lesson])
