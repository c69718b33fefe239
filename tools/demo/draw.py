"""Draws the demo world's scenes as the teacher shows them: in changing sizes, tints, noise and file formats.

A scene or a kind of outside picture -> an RGB picture of some size -> perhaps JPEG -> pixels [112, 112, 3], as the
vision tower gets them. Run ``python tools/demo/draw.py sheet.png`` for a contact sheet.
Test: ``pytest tests/tools/test_demo_world.py``
"""

import argparse
import io
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image, ImageDraw

from tools.demo.outside import draw_outside
from tools.demo.scene import sample_many, sample_scene
from tools.demo.shapes import extent, outline


def picture(scene, rng, side=112):
    """Pixels, uint8 [side, side, 3]: drawn at some size, sometimes through JPEG, then stretched to a square (bicubic)."""
    low, high = (64, 400) if rng.random() < 0.15 else (90, 200)
    longer = math.exp(rng.uniform(math.log(low), math.log(high)))
    width, height = (max(8, round(longer * s / max(extent(scene.aspect)))) for s in extent(scene.aspect))
    image = draw_outside(width, height, rng) if scene.outside == "none" else draw(scene, width, height, rng)
    if rng.random() < 0.5:
        image = add_noise(image, rng)
    if rng.random() < 0.4:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(60, 95))
        image = Image.open(file)
    return np.array(image.resize((side, side)))


def draw(scene, width, height, rng):
    """The scene as an anti-aliased RGB image, perhaps on a soft gradient."""
    image = background(scene.background, width, height, rng)
    shorter = min(width, height)
    finer = max(1, min(4, round(400 / shorter)))
    for thing in scene.things:
        points = outline(thing, scene.aspect) * shorter
        low = np.floor(points.min(0)).astype(int)
        size = np.ceil(points.max(0)).astype(int) - low + 1
        mask = Image.new("L", tuple(int(n) * finer for n in size))
        corners = (points - low) * finer - 0.5  # 0.5: Pillow counts from pixel centres
        ImageDraw.Draw(mask).polygon(corners.ravel().tolist(), fill=255)
        image.paste(thing.rgb, tuple(low.tolist()), mask.reduce(finer) if finer > 1 else mask)
    return image


def background(colour, width, height, rng):
    """A plain picture, or one that changes by at most 25 from side to side."""
    if rng.random() < 0.75:
        return Image.new("RGB", (width, height), tuple(colour))
    angle, change = rng.uniform(0, math.tau), np.array([rng.uniform(-12, 12) for _ in "rgb"])
    if rng.random() < 0.5:
        change[:] = change[0]
    x, y = np.linspace(-1, 1, width)[None, :, None], np.linspace(-1, 1, height)[:, None, None]
    slope = (x * math.cos(angle) + y * math.sin(angle)) / (abs(math.cos(angle)) + abs(math.sin(angle)))
    return Image.fromarray((np.array(colour) + slope * change + 0.5).clip(0, 255).astype(np.uint8))


def add_noise(image, rng):
    pixels = np.asarray(image)
    shape = (*pixels.shape[:2], rng.choice((1, 3, 3)))
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(shape, dtype=np.float32) * rng.uniform(0, 6)
    return Image.fromarray((pixels + noise + 0.5).clip(0, 255).astype(np.uint8))


def clip_pictures(frames, rng, side=112):
    """Pixels of a clip's frames, each drawn in the same style."""
    seed = rng.getrandbits(32)
    return [picture(frame, random.Random(seed), side) for frame in frames]


def main(path):
    """Save 48 pictures, drawn at random and as the student sees them: scenes, crowded ones and outside ones."""
    from tools.demo.scene import OUTSIDE

    rng, sheet = random.Random(), Image.new("RGB", (8 * 120, 6 * 120), "white")
    for i in range(48):
        scene = sample_scene(rng, held_out=i >= 18) if i < 24 else sample_many(rng) if i < 30 else OUTSIDE
        sheet.paste(Image.fromarray(picture(scene, rng)), (i % 8 * 120 + 4, i // 8 * 120 + 4))
    sheet.save(path)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("path", metavar="SHEET.png", help="the image to write")
    main(arguments.parse_args().path)
