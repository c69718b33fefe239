"""The codes that vision tower and decoder learn apart on, the stages, and the trainer from nothing to weights.

Rows are tested in ``test_rows.py``, sound in ``test_train_audio.py``. Test: ``pytest tests/tools/test_train.py``
"""

import ctypes.util
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from demo_parts import config, names_kept_out, tokenizer, tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.demo import batches, train
from tools.demo.batches import odd_scenes
from tools.demo.codes import (
    CODES,
    COLOUR_ROWS,
    FLAGS,
    MADE_UP_TRAITS,
    PLACES,
    PRESENT,
    SHAPE_ROWS,
    TRAITS,
    code_loss,
    patch_labels,
    read_flags,
    scene_codes,
    size_weights,
)
from tools.demo.model import Model
from tools.demo.scene import (
    COLOURS,
    HELD_OUT,
    MADE_UP,
    OUTSIDE,
    Scene,
    Thing,
    odd_colours,
    odd_shapes,
    sample_many,
    sample_scene,
)
from tools.demo.shapes import SHAPES
from tools.demo.stage import Batches, Stage, Stopped
from vita_ref import Vita

TRAINER = train.__file__
needs_espeak = pytest.mark.skipif(not ctypes.util.find_library("espeak-ng"), reason="espeak-ng is not installed")
seeds = st.integers(0, 2**32)
spots = st.floats(0, 0.999)
things = st.builds(Thing, st.sampled_from(list(COLOURS)), st.sampled_from(SHAPES), x=spots, y=spots,
                   radius=st.sampled_from([0.1, 0.17, 0.3, 0.13]))  # fmt: skip


def examples(count=20):
    return settings(deadline=None, max_examples=count)


# ---- codes


def written_in(code):
    """What of the fixed rows a position [D] adds up to: traits [4, rows], places [4, 2], flags [2]."""
    found = torch.linalg.lstsq(CODES[1:].T.double(), (code - CODES[0]).double()[:, None]).solution[:, 0]
    traits = TRAITS.shape[0] * TRAITS.shape[1]
    return found[:traits].view(4, -1), found[traits:-2].view(4, 2), found[-2:]


def position_of(thing):
    """The position of a thing and which of its four patches it is centred in."""
    return int(thing.y * 4) * 4 + int(thing.x * 4), int(thing.y * 8) % 2 * 2 + int(thing.x * 8) % 2


@given(things)
@examples(60)
def test_an_object_is_written_at_its_one_position_and_can_be_read_there(thing):
    codes, occupied = scene_codes([Scene((thing,))])
    place, quarter = position_of(thing)
    assert codes.shape == (1, 16, 256) and occupied[0].nonzero().flatten().tolist() == [place]
    assert [i for i in range(16) if not codes[0, i].equal(CODES[0])] == [place]
    traits, places, flags = written_in(codes[0, place])
    expected, where = torch.zeros_like(traits), torch.zeros(4, 2, dtype=torch.double)
    expected[quarter, [list(COLOURS).index(thing.color), 8 + SHAPES.index(thing.shape), PRESENT]] = 1
    expected[quarter, 14:17] = torch.tensor(size_weights(thing.radius)).double()
    expected[quarter, 18:] = torch.tensor([thing.x * 8 % 1, thing.y * 8 % 1]).double() * 2 - 1
    where[quarter] = torch.tensor([thing.x, thing.y]).double() * 4 - 2
    torch.testing.assert_close(traits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(places, where, atol=1e-4, rtol=0)
    assert flags.abs().max() < 1e-4


@pytest.mark.parametrize("radius, weights", [
    (0.06, (1, 0, 0)), (0.11, (1, 0, 0)), (0.13, (0.5, 0.5, 0)), (0.15, (0, 1, 0)), (0.2, (0, 1, 0)), (0.23, (0, 0.5, 0.5)),
    (0.26, (0, 0, 1)), (0.5, (0, 0, 1))])  # fmt: skip
def test_a_size_between_two_words_is_a_mixture_of_both(radius, weights):
    assert size_weights(radius) == pytest.approx(weights)


@given(things, st.integers(0, MADE_UP - 1))
@examples()
def test_a_made_up_name_has_a_row_of_its_own_in_the_place_of_the_words(thing, number):
    place, quarter = position_of(thing)
    shown, colour, shape = Scene((thing,)), list(COLOURS).index(thing.color), SHAPES.index(thing.shape)
    for word, own, new in ((thing.color, colour, number), (thing.shape, 8 + shape, MADE_UP + number)):
        named, renamed = scene_codes([shown, replace(shown, names=((word, number),))])[0]
        expected = named.clone()
        expected[place] += MADE_UP_TRAITS[quarter, new] - TRAITS[quarter, own]
        torch.testing.assert_close(renamed, expected, atol=1e-5, rtol=0)


@given(st.lists(things, min_size=2, max_size=5))
@examples()
def test_codes_of_several_objects_are_the_sum_of_each_ones(several):
    alone = scene_codes([Scene((thing,)) for thing in several])[0] - CODES[0]
    together = scene_codes([Scene(tuple(several))])[0][0] - CODES[0]
    torch.testing.assert_close(together, alone.sum(0), atol=1e-5, rtol=0)


def test_outside_and_crowded_pictures_are_flagged_at_every_position():
    crowded = sample_many(random.Random(0))
    codes, occupied = scene_codes([OUTSIDE, crowded, replace(crowded, outside="")])
    assert not occupied[0].any() and codes[0].equal(CODES[0] + FLAGS[0].expand(16, -1))
    torch.testing.assert_close(codes[1] - codes[2], FLAGS[1].expand(16, -1))
    assert (read_flags(codes) > 0.5).tolist() == [[True, False], [False, True], [False, False]]
    torch.testing.assert_close(read_flags(codes[:2]), torch.eye(2), atol=0.3, rtol=0)


@given(things, st.sampled_from(["colour", "shape"]))
@examples()
def test_what_has_no_name_adds_nothing_or_a_mixture_of_all_names_of_its_kind(thing, odd):
    names = COLOUR_ROWS if odd == "colour" else SHAPE_ROWS
    nameless = replace(thing, named=False) if odd == "colour" else replace(thing, shape="blob")
    place, quarter = position_of(thing)
    shown = [Scene((thing,)), Scene((nameless,))]
    (named, *_), (bare, *_) = (written_in(codes[place]) for codes in scene_codes(shown)[0])
    same, mixed = scene_codes(shown, mixed=True)[0]
    expected = named.clone()
    expected[quarter, names] = 0
    torch.testing.assert_close(bare, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(written_in(same[place])[0], named, atol=1e-4, rtol=0)
    mixture = written_in(mixed[place])[0]
    assert (mixture[quarter, names] > -1e-4).all() and (mixture[quarter, names] > 1e-3).sum() > 1
    mixture[quarter, names] = 0
    torch.testing.assert_close(mixture, expected, atol=1e-4, rtol=0)


OWN = {"colour": torch.cat([TRAITS[:, COLOUR_ROWS].flatten(0, 1), FLAGS]), "shape": torch.cat([TRAITS[:, SHAPE_ROWS].flatten(0, 1), FLAGS])}
OTHERS = {"colour": TRAITS[0, SHAPE_ROWS], "shape": TRAITS[0, COLOUR_ROWS]}


@given(st.sampled_from(["colour", "shape"]), seeds)
@examples()
def test_an_error_along_the_codes_of_what_has_no_name_does_not_count_and_every_other_does(odd, seed):
    rng, numbers = random.Random(seed), torch.Generator().manual_seed(seed)
    codes, occupied = scene_codes(odd_scenes(1, rng)[odd == "shape"])

    def loss(error, nameless=None):
        return code_loss(codes + error, codes, occupied, nameless).item()

    assert loss(0) == loss(0, odd) == 0
    error = torch.randn(16, len(OWN[odd]), generator=numbers) @ OWN[odd]
    assert loss(error) > 1 and loss(error, odd) < 1e-6
    for row in (*OTHERS[odd], *PLACES[0]):  # random rows of 256 numbers lie nearly across each other: most of each is left
        assert loss(row, odd) > 0.6 * loss(row)
    assert loss(error + row, odd) == pytest.approx(loss(row, odd), 1e-3)


def test_an_error_where_an_object_stands_counts_four_times():
    codes, occupied = scene_codes([Scene((Thing("red", "circle", 0.1, 0.1, 0.1),))])
    at, beside = torch.zeros(1, 16, 1), torch.zeros(1, 16, 1)
    at[:, 0], beside[:, 1] = 0.05, 0.05
    assert code_loss(codes + beside, codes, occupied).item() == pytest.approx(1 / 16)  # one position of 16 off by the codes' spread
    assert code_loss(codes + at, codes, occupied).item() == pytest.approx(4 / 16)


@given(seeds)
@examples()
def test_patches_are_labelled_by_what_stands_in_them(seed):
    rng = random.Random(seed)
    shown = next(s for s in iter(lambda: sample_scene(rng), None) if odd_shapes(s))
    tinted, blobs = odd_colours(shown, rng), odd_shapes(shown)
    labels, of_tinted, of_blobs = patch_labels([shown, tinted, blobs]).view(3, 8, 8, 3)
    for thing in shown.things:
        here = int(thing.y * 8), int(thing.x * 8)
        colour, shape = 1 + list(COLOURS).index(thing.color), 1 + SHAPES.index(thing.shape)
        size = 1 + ("small", "large", "huge").index(thing.size)
        assert labels[here].tolist() == [colour, shape, size]
        assert of_tinted[here].tolist() == [-100, shape, size] and of_blobs[here].tolist() == [colour, -100, size]
    middles = [(x / 8 + 1 / 16, y / 8 + 1 / 16) for y in range(8) for x in range(8)]
    far = [all(math.dist(m, (t.x, t.y)) > max(t.radius, 0.1) for t in shown.things) for m in middles]
    assert not labels.view(64, 3)[torch.tensor(far)].any()


def test_the_vision_tower_is_taught_codes_at_the_places_where_its_features_end_up():
    """Of a picture that is grey but for one patch, only that patch's position differs, with attention switched off."""
    torch.manual_seed(0)
    model = Model(config()).eval().requires_grad_(False)
    model.vision.encoder.layers[0].ls1.zero_()
    for x, y in ((0.06, 0.06), (0.94, 0.06), (0.4, 0.7)):
        pixels = torch.zeros(2, 3, 112, 112)
        row, column = int(y * 8) * 14, int(x * 8) * 14
        pixels[1, :, row : row + 14, column : column + 14] = 1
        patches, features = model.see(pixels)
        shown = Scene((Thing("red", "circle", x, y, 0.01),))
        assert (features[0] - features[1]).abs().amax(1).gt(1e-4).equal(scene_codes([shown])[1][0])
        labelled = patch_labels([shown])[0, :, 0].gt(0)
        assert labelled[(patches[0] - patches[1]).abs().amax(1).gt(1e-4)].all()


# ---- batches


def shows_kept_out(shown):
    """The objects that are of a kept-out pair, or of its shape in a colour that is near; not what is made up."""
    for thing in shown.things:
        if not {thing.color, thing.shape} & dict(shown.names).keys() and thing.shape != "blob":
            colours = [COLOURS[colour] for colour, shape in HELD_OUT if shape == thing.shape]
            near = any(math.dist(thing.rgb, colour) <= 60 for colour in colours)
            if (thing.color, thing.shape) in HELD_OUT if thing.named else near:
                yield thing


def test_no_batch_shows_or_names_what_is_kept_out(monkeypatch):
    shown = []
    monkeypatch.setattr(batches, "scene_codes", lambda scenes, mixed=False: shown.extend(scenes) or scene_codes(scenes, mixed))
    rows = []
    for step in range(6):
        batches.vision_batch(random.Random(step), 16, config())
        rows += batches.decoder_batch(random.Random(step), step, 16, 10, tokenizer(), 16).rows
    assert len(shown) > 100 and len(rows) > 60
    assert not [thing for scene in shown for thing in shows_kept_out(scene)]
    assert not [row for row in rows if names_kept_out(row)]


def test_a_vision_batch_has_every_sort_of_picture(monkeypatch):
    shown = []
    monkeypatch.setattr(batches, "scene_codes", lambda scenes: shown.extend(scenes) or scene_codes(scenes))
    batch = batches.vision_batch(random.Random(0), 32, config())
    assert batch.pixels.shape == (32, 3, 112, 112) and sum(batch.counts) == len(shown) == 32
    plain, tinted, blobs = (shown[: batch.counts[0]], shown[batch.counts[0] : -batch.counts[2]], shown[-batch.counts[2] :])
    assert {s.outside for s in plain} == {"", "none", "many"}
    assert all(not t.named for s in tinted for t in s.things) and all(t.shape == "blob" for s in blobs for t in s.things)
    assert all(t.named and t.shape != "blob" for s in plain for t in s.things)


def test_the_decoder_begins_with_plain_scenes_and_goes_on_with_all_sorts():
    kinds = [batches.decoder_batch(random.Random(step), step, 8, 20, tokenizer(), 16).kind for step in range(12)]
    assert kinds == ["plain"] * 4 + ["films"] + ["scenes"] * 4 + ["films"] + ["scenes"] * 2


def test_a_batch_depends_on_the_seed_the_stage_and_the_step_alone():
    made = Batches(lambda rng, step: (rng.random(), torch.rand(1).item()), "vision", 0, 5)
    again = Batches(made.make, "vision", 0, 5)
    assert [made[i] for i in range(5)] == [again[i] for i in reversed(range(5))][::-1]
    assert list(made.since(2, 0)) == [made[i] for i in (2, 3, 4)] == [tuple(one) for one in made.since(2, 2)]
    assert len({made[0], made[1], Batches(made.make, "audio", 0, 5)[0], Batches(made.make, "vision", 1, 5)[0]}) == 4


# ---- stages


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(3, 2)


def a_stage(folder, steps, rate=0.01):
    model = Line()
    return Stage("line", folder, model, ("line",), steps, rate).resume(), model


def fit(stage, model, asked, stop=None):
    def losses(step):
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        asked.append((step, stage.optimiser.param_groups[0]["lr"]))
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return {"line": ((model.line(x) - x[:, :2]).square().mean() + torch.rand(()) * model.line.bias.sum(), 1.0)}

    stage.run(Batches(lambda rng, step: step, "line", 0, stage.steps).since(stage.first, 0), losses)


def test_a_stage_that_was_told_to_end_saves_and_goes_on_as_if_it_had_not_been(tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    stage, whole = a_stage(tmp_path / "whole", 150)
    fit(stage, whole, asked := [])
    stage, cut = a_stage(tmp_path / "cut", 150)
    with pytest.raises(Stopped, match="after step 121"):
        fit(stage, cut, before := [], stop=120)
    stage, cut = a_stage(tmp_path / "cut", 150)
    assert stage.first == 121 and not stage.done
    fit(stage, cut, after := [])
    assert before + after == asked and [step for step, _ in asked] == list(range(150))
    assert cut.line.weight.equal(whole.line.weight) and cut.line.bias.equal(whole.line.bias)
    stage, again = a_stage(tmp_path / "cut", 150)
    fit(stage, again, nothing := [])
    assert stage.done and not nothing and again.line.weight.equal(whole.line.weight)
    assert [f.name for f in (tmp_path / "cut").iterdir()] == ["line.pt"]


def test_the_rate_goes_up_over_a_hundred_steps_and_down_to_nothing(tmp_path):
    stage, model = a_stage(tmp_path, 200, rate=1.0)
    fit(stage, model, asked := [])
    rates = [rate for _, rate in asked]
    assert rates[0] == pytest.approx(0.01) and max(rates) == rates[99] == pytest.approx(1 - 99 / 200)
    assert rates[:100] == sorted(rates[:100]) and rates[99:] == sorted(rates[99:])[::-1]
    assert rates[-1] == pytest.approx(1 / 200)


def test_a_weight_of_a_loss_is_its_share(tmp_path):
    stage, model = a_stage(tmp_path, 1)
    start = model.line.weight.detach().clone()
    stage.optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    stage.run([0], lambda step: {"a": (model.line.weight.sum(), 0.25), "b": (model.line.weight.sum(), 0.125)})
    # the first step is taken at a hundredth of the rate
    torch.testing.assert_close(start - model.line.weight.detach(), torch.full((2, 3), 0.375 * 0.01 / 100), rtol=0.01, atol=0)


def test_a_batch_whose_gradient_is_no_number_is_passed_over(tmp_path):
    stage, model = a_stage(tmp_path, 1)
    start = model.line.weight.detach().clone()
    stage.run([0], lambda step: {"a": (model.line.weight.sum() * math.nan, 1.0)})
    assert model.line.weight.equal(start)


def test_only_the_parts_of_a_stage_learn(tmp_path):
    model = torch.nn.ModuleDict({"decoder": torch.nn.Linear(2, 2), "audio": torch.nn.Linear(2, 2)})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stage = Stage("one", tmp_path, model, ("audio",), 3, 0.1)
    stage.run(range(3), lambda step: {"a": (sum(p.sum() for p in model.parameters()), 1.0)})
    changed = {k.split(".")[0] for k, v in model.state_dict().items() if not v.equal(before[k])}
    assert changed == {"audio"}


# ---- the trainer and what it leaves


def test_what_is_saved_loads_strictly_and_is_the_model_that_was_trained(tmp_path):
    torch.manual_seed(0)
    sizes = config("full")
    model = Model(sizes).eval().requires_grad_(False)
    for parameter in model.parameters():  # norms and biases too
        parameter.copy_((parameter + 0.1 * torch.randn(parameter.shape)).bfloat16())
    tokenizer(), shutil.copy(tokenizer_folder() / "tokenizer.model", tmp_path)
    model.save(tmp_path, sizes)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 22e6
    vita = Vita.from_pretrained(tmp_path, dtype=torch.float32)
    assert vita.config == sizes
    pixels, ids = torch.randn(2, 3, 112, 112), torch.randint(0, tokenizer().vocab_size(), (2, 9))
    with torch.inference_mode():
        patches, features = model.see(pixels)
        torch.testing.assert_close(vita.encode_images(pixels), features, atol=1e-5, rtol=1e-5)
        hidden = model.decoder(model.decoder.embed_tokens(ids)).last_hidden_state
        torch.testing.assert_close(vita(ids).logits, model.decoder.lm_head(hidden), atol=1e-4, rtol=1e-5)
    assert patches.shape == (2, 64, sizes.vision.hidden_size) and features.shape == (2, 16, sizes.decoder.hidden_size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of one command in a process of its own, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, TRAINER, "--work", str(folder), "--smallest", "--seed", "3", "--threads", "1"]
    one = os.environ | {"OMP_NUM_THREADS": "1"}  # as here, also while modules are imported, which compute the table of codes
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=one)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def saved(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


@needs_espeak
def test_one_command_trains_the_smallest_setting_from_nothing_to_weights_that_answer(trained):
    folder, printed = trained
    assert re.findall(r"^(\w+) \d+ .*\[?kept out", printed, re.MULTILINE)[:2] == ["vision", "decoder"]  # accuracies are logged
    states = {name: saved(folder, name) for name in ("vision", "decoder", "audio", "finish")}
    assert {name: state["step"] for name, state in states.items()} == {"vision": 6, "decoder": 10, "audio": 4, "finish": 8}
    vita = Vita.from_pretrained(folder / "out")
    assert isinstance(vita.respond("Is it red?", max_new_tokens=3), str)
    for table in (vita.decoder.embed_tokens.weight, vita.decoder.lm_head.weight):  # what was made up is forgotten
        alike = [i for i in range(len(table)) if table[i].equal(table[tokenizer().piece_to_id("<0xFF>")])]
        assert [tokenizer().id_to_piece(i) for i in alike] == [f"<0x{byte:02X}>" for byte in (*range(0x80, 0xE0), 0xFF)]
    finish, decoder = states["finish"]["model"], states["decoder"]["model"]
    assert all(finish[k].equal(v) for k, v in states["vision"]["model"].items() if k.startswith(("vision", "projector")))
    assert not finish["decoder.norm.weight"].equal(decoder["decoder.norm.weight"])


@needs_espeak
def test_the_tokenizer_and_the_weights_of_a_seed_are_the_same_in_another_process(trained, tmp_path, monkeypatch):
    folder, _ = trained
    tokenizer(), shutil.copy(tokenizer_folder() / "tokenizer.model", tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    for name in ("vision", "decoder"):
        monkeypatch.setattr(sys, "argv", ["train.py", "--work", str(tmp_path), "--smallest", "--seed", "3", "--threads", "1", "--only", name])
        train.main()
        again, first = (saved(place, name)["model"] for place in (tmp_path, folder))
        assert again.keys() == first.keys() and all(again[k].equal(v) for k, v in first.items())
