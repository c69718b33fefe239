"""What the tests of the demo's trainer share: its tokenizer, its sizes, rows of every sort, and searches for what is kept out."""

import fcntl
import functools
import os
import random
import tempfile
from pathlib import Path

from tools.demo import model as demo_model
from tools.demo.batches import odd_scenes
from tools.demo.rows import ASSISTANT, END, IMAGE, USER, Packer
from tools.demo.scene import (
    HELD_OUT,
    OUTSIDE,
    renamed,
    sample_clip,
    sample_many,
    sample_scene,
)


@functools.cache
def tokenizer_folder():
    """A folder of this run of the tests: its processes share one tokenizer, which takes seconds to make."""
    if run := os.environ.get("PYTEST_XDIST_TESTRUNUID"):
        folder = Path(tempfile.gettempdir()) / f"demo-tokenizer-{run}"
        folder.mkdir(exist_ok=True)
        return folder
    return Path(tempfile.mkdtemp(prefix="demo-tokenizer-"))


@functools.cache
def tokenizer():
    with open(tokenizer_folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second process waits for the first
        return demo_model.make_tokenizer(tokenizer_folder())


@functools.cache
def config(size="smallest"):
    return demo_model.demo_config(tokenizer(), size)


def rows_of(seed):
    """(pictures, row) as the trainer makes them: of scenes of every sort, of a film, of no picture."""
    rng = random.Random(seed)
    packer = Packer(tokenizer(), rng)
    scenes = [sample_scene(rng), sample_many(rng), OUTSIDE, *(part[0] for part in odd_scenes(1, rng))]
    scenes += renamed([sample_scene(rng, held_out=True)], rng)
    frames, _ = sample_clip(rng)
    rows = [(16, packer.row(16, packer.turns(scene), scene.names)) for scene in scenes]
    rows += [(16 * len(frames), packer.row(16 * len(frames), packer.clip_turns(frames)))]
    return [*rows, (0, packer.row(0, packer.turns(None)))]


def conversations(row):
    """The (question ids, answer ids) of a row, found by its marks alone."""
    sp = tokenizer()
    user, assistant, end = (sp.piece_to_id(s) for s in (USER, ASSISTANT, END))
    assert row.ids[0] == user
    text = row.ids[1 + row.ids.count(IMAGE) :]
    while text:
        middle, last = text.index(assistant), text.index(end)
        yield text[:middle], text[middle + 1 : last]
        text = text[last + 1 :]
        text = text[1:] if text and text[0] == user else text


def names_kept_out(row):
    """The kept-out pairs that a row names."""
    said = " ".join(tokenizer().decode([i for i in part if i >= 0]) for pair in conversations(row) for part in pair).lower()
    return [pair for pair in HELD_OUT if " ".join(pair) in said]
