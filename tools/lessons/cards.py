"""Find the bug: planted bugs of `tools/mutants.py` as cards.

A card has a copy of the package with one wrong line, and a probe: a few calls whose results differ from those of the
unharmed package. The probe says what is wrong, not where. A bug is fixed when the probe gives what it should.

Test: ``pytest tests/tools/test_lessons_more.py``
"""

import functools
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from tools.mutants import MUTANTS, plant
from vita_ref.loading import demo_folder

ROOT = Path(__file__).resolve().parents[2]
NAME = "vita_ref_with_a_bug"  # what the copy is imported as, beside the package itself


class Card(NamedTuple):
    """A planted bug by its name in `tools/mutants.py`, the probe that shows it, how hard it is, and a hint for the search."""

    title: str
    mutant: str
    level: str
    probe: object
    hint: str


# ---- probes: (package, model) -> results by name. ``package`` is vita_ref or a copy of it.


def example():
    return demo_folder() / "example.jpg"


def describes(package, vita):
    """Answers about the JPEG, and the logits of the first token."""
    prepared = vita.prepare(sys.modules[f"{package.__name__}.request"].Request(images=[example()]))
    logits = vita(prepared.ids[None], images=prepared.images).logits[0, -1]
    return {
        "the description of example.jpg": vita.respond(images=[example()], max_new_tokens=40),
        "What color is the star?": vita.respond("What color is the star?", images=[example()], max_new_tokens=40),
        "logits of the first token": logits,
    }


def rows_of_text(vita):
    return [vita.tokenizer(text).input_ids for text in ("How many objects are there?", "Hi!", "What is left of the blue star?")]


def padded(rows, side):
    """Rows as a batch with a mask, padded on a side."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width).long(), torch.zeros(len(rows), width).bool()
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), True
    return ids, mask


def last_logits(vita, ids, mask=None):
    """Logits of each row's last real column."""
    out = vita(ids, attention_mask=mask).logits
    last = torch.full((len(ids),), ids.shape[1] - 1) if mask is None else (mask * torch.arange(1, ids.shape[1] + 1)).argmax(1)
    return out[torch.arange(len(ids)), last]


def batches(package, vita):
    """Greedy tokens of rows together and alone."""
    rows = rows_of_text(vita)
    alone = [vita.generate(torch.tensor([row]), max_new_tokens=6, eos_token_id=()) for row in rows]
    out = {"greedy tokens of each row alone": torch.cat(alone)}
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        out[f"greedy tokens of a batch, padding on the {side}"] = vita.generate(ids, attention_mask=mask, max_new_tokens=6, eos_token_id=())
        out[f"logits of the prompts, padding on the {side}"] = last_logits(vita, ids, mask)
        following = torch.full((len(rows), 1), rows[0][0])
        cache = vita(ids, attention_mask=mask).cache
        out[f"logits of one more token, padding on the {side}"] = vita(following, cache=cache).logits[:, -1]
    return out


def chunks(package, vita):
    """Logits of a prompt in one pass and in chunks."""
    ids = torch.tensor([rows_of_text(vita)[2] * 2])
    out, cache = {"logits of the last token, one pass": last_logits(vita, ids)}, None
    for part in ids.split((5, 4, 1, ids.shape[1] - 10), 1):
        step = vita(part, cache=cache)
        cache = step.cache
    out["logits of the last token, four chunks"] = step.logits[:, -1]
    back, cache = vita(ids), None
    back.cache.truncate(ids.shape[1] - 1)
    out["logits after truncate and the last token again"] = vita(ids[:, -1:], cache=back.cache).logits[:, -1]
    return out


def long_prompts(package, vita):
    """Logits behind prompts of more than 512 tokens."""
    words = torch.arange(560)[None] * 7 % (vita.config.decoder.vocab_size - 10) + 5
    mask = torch.ones(1, 560).bool()
    mask[:, :60] = False
    first = vita(words[:, :530])
    return {
        "500 tokens": last_logits(vita, words[:, :500]),
        "560 tokens": last_logits(vita, words),
        "560 tokens, the first 60 of them padding": last_logits(vita, words, mask),
        "30 tokens behind 530 cached ones": vita(words[:, 530:], cache=first.cache).logits[:, -1],
    }


def two_pictures(package, vita):
    """The splice of two different pictures, and position ids that pictures share."""
    table = torch.arange(10.0)[:, None].expand(10, 2)
    features = [torch.full((n, 2), -float(n)) for n in (2, 3)]
    join = sys.modules[f"{package.__name__}.splice"].splice
    options = {"image_token": -200, "audio_token": -500}
    rows = [torch.tensor([4, -200, 5, -200, 6]), torch.tensor([7, 8])]
    touching = torch.tensor([[-200, -200, 1]])
    out = {}
    for side in ("right", "left"):
        spliced = join(rows, lambda ids: table[ids], features, padding_side=side, **options)
        out[f"embeddings, padding on the {side}"] = spliced.inputs_embeds
        out[f"position ids, padding on the {side}"] = spliced.position_ids
    odd = [torch.zeros(3, 2), torch.zeros(3, 2)]
    out["position ids, two to an id"] = join(touching, lambda ids: table[ids], odd, shared_v_pid_stride=2, **options).position_ids
    return out


def samples(package, vita):
    """Filters on four tokens of probabilities 1, 2, 4 and 8 fifteenths, and the penalty."""
    s = sys.modules[f"{package.__name__}.sampling"]
    four, mixed = torch.tensor([[1.0, 2, 4, 8]]).log(), torch.tensor([[-2.0, 1, 3, 0.5]])
    generators = s.row_generators(torch.Generator().manual_seed(0), 3)
    return {
        "top-k 2": s.filter_top_k(four, 2).softmax(-1),
        "top-p 0.7": s.filter_top_p(four, 0.7).softmax(-1),
        "penalty 2 on tokens 0 and 2": s.repetition_penalty(mixed, torch.tensor([[True, False, True, False]]), 2.0),
        "three rows draw": torch.stack([torch.rand(4, generator=g) for g in generators]),
    }


CARDS = (
    Card("Half of the picture is missing", "rope halves interleaved", "warm-up", describes, "Which tensor is the first that `dump --deep --compare` calls OFF?"),
    Card("All answers are right, the logits are not", "height and width swapped in the shuffle", "warm-up", describes, "Is the vision tower right? The shuffle? The projector?"),
    Card("It sees things that are not there", "the last patch dropped for the class token", "warm-up", describes, "The shapes are all right."),
    Card("Nearly the right logits", "k bias dropped", "medium", describes, "Compare with --deep, and look at q, k and v separately."),
    Card("The nucleus is too small", "top-p drops the token that reaches p", "medium", samples, "Compute top-p by hand for four tokens."),
    Card("Whose picture is it?", "media order swapped", "medium", two_pictures, "One picture is answered well."),
    Card("Alone it is right", "padding attended", "medium", batches, "What does a row of a batch have that it lacks alone?"),
    Card("One pass is right, chunks are not", "causal mask lost on a second chunk", "medium", chunks, "Is it the mask, the cache or the position?"),
    Card("The first word is right", "position off by one after the prompt", "medium", chunks, "`dump` records the first pass alone. What differs afterwards?"),
    Card("Fast and wrong", "heads share the wrong keys in decoding", "hard", batches, "Prompts are read well; `dump --compare` finds only the tokens. What is special about a pass of one token?"),
    Card("Only long ones, only padded ones", "queries of a later block counted from the first", "hard", long_prompts, "Find the shortest prompt that is wrong. Where does that number stand in the code?"),
    Card("It depends on the neighbours", "positions go on behind the padding", "hard", batches, "Which of the rows are right, and with padding on which side? Print position ids, in every pass."),
)  # fmt: skip


# ---- planting


def mutant_of(card):
    """The planted bug of a card."""
    return next(m for m in MUTANTS if m.name == card.mutant)


def write(card, folder):
    """Copies the package into a folder, with the bug in it, and what is needed to search for it."""
    final, folder = Path(folder), Path(f"{folder}.new")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    shutil.copytree(ROOT / "vita_ref", folder / "vita_ref", dirs_exist_ok=True)
    (folder / "tools").mkdir(exist_ok=True)
    for name in ("__init__.py", "dump.py"):
        shutil.copy(ROOT / "tools" / name, folder / "tools")
    (folder / "vita_ref" / mutant_of(card).file).write_text(plant(mutant_of(card), ROOT), encoding="utf-8")
    if not (folder / "weights").exists():
        (folder / "weights").mkdir()
        try:
            (folder / "weights" / "demo").symlink_to(demo_folder(), target_is_directory=True)
        except OSError:
            shutil.copytree(demo_folder(), folder / "weights" / "demo")
    if final.is_dir():
        final.rmdir()
    folder.replace(final)  # atomic: an interrupted run leaves no incomplete card


def load(folder):
    """The package in a folder, imported under another name, and the demo model made by it."""
    forget()
    spec = importlib.util.spec_from_file_location(NAME, Path(folder) / "vita_ref" / "__init__.py", submodule_search_locations=[str(Path(folder) / "vita_ref")])
    package = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(package)
        for name in ("request", "sampling", "splice", "loading", "model"):
            importlib.import_module(f"{NAME}.{name}")
        return package, package.Vita.from_pretrained(demo_folder(), kernels="plain")
    finally:
        sys.dont_write_bytecode = before


def forget():
    """Removes the modules of a copy, so that the next one is read anew."""
    for name in [n for n in sys.modules if n == NAME or n.startswith(f"{NAME}.")]:
        del sys.modules[name]


@functools.cache
def expected_of(probe):
    """What a probe gives for the unharmed package."""
    import vita_ref
    from tools.lessons.demo import demo

    return probe(vita_ref, demo())


@torch.inference_mode()
def symptoms(card, folder):
    """(what was probed, whether it is right, the difference in words) for each result of a copy."""
    expected = expected_of(card.probe)
    try:
        got = card.probe(*load(folder))
    except Exception as error:  # noqa: BLE001, of a copy that a learner is working on
        return [("the probe", False, f"{type(error).__name__}: {error}")]
    finally:
        forget()
    return [(name, *shown(got[name], expected[name])) for name in expected]


def shown(got, expected):
    """Whether two results are equal within rounding, and the difference in words."""
    if isinstance(expected, str):
        return got == expected, f"{got!r}, expected {expected!r}"
    if got.shape != expected.shape:
        return False, f"a tensor {list(got.shape)}, expected {list(expected.shape)}"
    off = float((got.double() - expected.double()).abs().nan_to_num(torch.inf).max())
    if not expected.is_floating_point():
        return off == 0, f"{int((got != expected).sum())} of {got.numel()} differ"
    largest = max(1.0, float(expected.double().abs().max()))
    return off <= 1e-4 * largest, f"off by at most {off:.2g}, where the largest is {largest:.2g}"


def distance(card, folder, place):
    """How near a place like decoder.py:88 is to the bug, in words, and whether it is the place.

    The line is counted in the learner's copy, as it was given out.
    """
    mutant = mutant_of(card)
    file, _, number = place.rpartition(":")
    if not file or not number.isdecimal():
        raise ValueError(f"--line must be a file and a line such as decoder.py:88, got {place!r}")
    file = file.replace("\\", "/").split("vita_ref/")[-1]
    if file != mutant.file:
        return False, "Another file."
    planted = plant(mutant, ROOT)
    before = (ROOT / "vita_ref" / mutant.file).read_text(encoding="utf-8").split(mutant.old)[0].count("\n") + 1
    last = before + max(mutant.new.strip("\n").count("\n"), mutant.old.strip("\n").count("\n"))
    if before <= int(number) <= last:
        line = planted.splitlines()[before - 1].strip()
        return True, f"That is the line: {line}"
    away = min(abs(int(number) - before), abs(int(number) - last))
    return False, "The right file, and within ten lines." if away <= 10 else "The right file, another place."
