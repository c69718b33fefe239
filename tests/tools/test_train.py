"""What the demo's trainers teach: rows of questions, codes for the eye, losses, stages, and nothing kept out."""

import itertools
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import sentencepiece
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tools.demo import model as demo_model
from tools.demo import train as train_demo
from tools.demo import world
from tools.demo.model import (
    CODES,
    MADE_UP_TRAITS,
    PLACES,
    TRAITS,
    Model,
    Stage,
    code_loss,
    odd_scenes,
    patch_labels,
    scene_codes,
)
from tools.demo.train import IMAGE, ROW, UNKNOWN, Packer, answer_losses
from vita_ref import Vita
from vita_ref.config import DecoderConfig
from vita_ref.decoder import Decoder
from vita_ref.files.tokenizer import load_tokenizer
from vita_ref.request import Request, prepare

DEMO = Path(__file__).parents[2] / "weights" / "demo"
SP = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
CONFIG = demo_model.demo_config(SP)
U, A, E, I = 1, 2, 3, IMAGE
LETTERS = SimpleNamespace(  # a tokenizer to read: each letter is its own id
    piece_to_id={demo_model.USER: U, demo_model.ASSISTANT: A, demo_model.END: E}.get,
    encode=lambda text: [ord(letter) for letter in text],
)
seeds = st.integers(0, 2**32)
spots = st.floats(0, 0.999)
things = st.builds(
    world.Thing,
    st.sampled_from(list(world.COLOURS)),
    st.sampled_from(world.SHAPES),
    st.sampled_from(list(world.SIZES)),
    x=spots,
    y=spots,
    radius=st.just(0.1),
    angle=st.just(0.0),
)


def laws(examples=20):
    return settings(deadline=None, max_examples=examples)


def scene_of(*things):
    return world.Scene(things, (255, 255, 255))


def as_written():
    """Questions are asked in the words of the world, in no other spelling."""
    return mock.patch.object(world, "vary", lambda question, rng: question)


def nothing_lost():
    """Every token of an answer is read."""
    return mock.patch.object(torch, "rand", torch.ones)


def small_reader(width=24):
    """A decoder with the demo's vocabulary and otherwise tiny, where `answer_losses` looks for one."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(SP.vocab_size(), width, 40, 2, 6, 3, 8))
    return SimpleNamespace(decoder=decoder.requires_grad_(False))


def rows_of(packer, seed):
    """Rows as the trainer makes them: of scenes with names, without and with made-up ones, of a clip, of no picture."""
    rng = random.Random(seed)
    scenes = [world.sample_scene(rng), *itertools.chain(*odd_scenes(1, rng))]
    scenes += world.renamed([world.sample_scene(rng, held_out=True)], rng)
    frames, _ = world.sample_clip(rng)
    rows = [(16, packer.pairs(scene), scene.names) for scene in scenes]
    rows += [(16 * len(frames), packer.clip_pairs(frames)), (0, packer.pairs(None))]
    return [(images, packer.row(images, *asked)) for images, *asked in rows]


def conversations(row):
    """The (question ids, answer ids) of a row, found by its marks alone."""
    ids = row[0]
    text = ids[1 + ids.count(IMAGE) :]
    user, assistant, end = (SP.piece_to_id(s) for s in (demo_model.USER, demo_model.ASSISTANT, demo_model.END))
    assert ids[0] == user and (not text or text[-1] == end)
    while text:
        middle, last = text.index(assistant), text.index(end)
        yield text[:middle], text[middle + 1 : last]
        text = text[last + 1 :]


# ---- rows


def test_a_row_looks_like_this():
    packer = Packer(LETTERS, 0)
    packer.rng = SimpleNamespace(random=lambda: 0.0)  # questions as they are
    a, b, c, d, e = (ord(letter) for letter in "abcde")
    rows = [packer.row(2, [("ab", "c"), ("d", "e")]), packer.row(0, [("a", "b")])]
    ids, labels, positions, visible = packer.batch(rows)
    assert ids.tolist() == [[U, I, I, a, b, A, c, E, d, A, e, E], [U, a, A, b, E, 0, 0, 0, 0, 0, 0, 0]]
    assert labels[0].tolist() == [-100] * 6 + [c, E] + [-100] * 2 + [e, E]
    assert labels[1].tolist() == [-100] * 3 + [b, E] + [-100] * 7
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6]
    assert positions[1, :5].tolist() == [0, 1, 2, 3, 4]
    picture = """
        1 . . . . . . . . . . .
        1 1 . . . . . . . . . .
        1 1 1 . . . . . . . . .
        1 1 1 1 . . . . . . . .
        1 1 1 1 1 . . . . . . .
        1 1 1 1 1 1 . . . . . .
        1 1 1 1 1 1 1 . . . . .
        1 1 1 1 1 1 1 1 . . . .
        1 1 1 . . . . . 1 . . .
        1 1 1 . . . . . 1 1 . .
        1 1 1 . . . . . 1 1 1 .
        1 1 1 . . . . . 1 1 1 1
    """
    assert visible[0].tolist() == [[mark == "1" for mark in line.split()] for line in picture.split("\n")[1:-1]]
    assert visible[1, :5, :5].equal(torch.ones(5, 5, dtype=torch.bool).tril())
    assert not visible[1, :5, 5:].any() and visible.any(2).all()  # no padding is seen, no softmax is empty


@given(seeds)
@laws()
def test_a_row_holds_whole_questions_as_many_as_fit_with_labels_on_answers_alone(seed):
    packer = Packer(SP, seed)
    for images, (ids, labels, positions, segments) in rows_of(packer, seed):
        assert len(ids) == len(labels) == len(positions) == len(segments) <= ROW + images
        said = list(conversations((ids,)))
        counted = [*itertools.chain(*([*answer, SP.piece_to_id(demo_model.END)] for _, answer in said))]
        assert counted and [label for label in labels if label != -100] == counted
        assert all(label in (-100, token) for token, label in zip(ids, labels))
        assert max(segments) == len(said) and ids.count(IMAGE) == images
        begins = [i for i in range(1, len(ids)) if segments[i] != segments[i - 1]]
        assert begins[0] == images + 1 and all(positions[i] == images + 1 for i in begins)
        steps = [positions[i] - positions[i - 1] for i in range(1, len(ids)) if i not in begins]
        assert set(steps) <= {1}


def test_a_question_that_does_not_fit_ends_its_row():
    packer = Packer(LETTERS, 0)
    packer.rng = SimpleNamespace(random=lambda: 0.0)
    one = len("ab" "c") + 2  # with its two marks
    fits = (ROW - 1) // one
    row = packer.row(16, itertools.repeat(("ab", "c")))
    assert max(row[3]) == fits and len(row[0]) == 1 + 16 + fits * one
    assert packer.row(0, [("a" * ROW, "b"), ("a", "b")])[3] == [0]


@given(seeds, st.sampled_from([0, 1, 3]))
@laws(10)
def test_a_row_of_one_question_is_the_prompt_that_the_model_will_be_given(seed, pictures):
    packer = Packer(SP, seed)
    question, answer = next(packer.pairs(world.sample_scene(packer.rng)))
    with as_written():
        ids = packer.row(pictures, [(question, answer)])[0]
    images = [torch.zeros(3, 112, 112)] * pictures
    prompt = prepare(Request(question, images=images), CONFIG, load_tokenizer(DEMO)).ids.tolist()
    assert ids == [*prompt, *SP.encode(answer), *CONFIG.eos_token_ids]
    assert CONFIG.image_token_index == IMAGE and SP.unk_id() == UNKNOWN


# ---- losses


@given(seeds)
@laws(4)
def test_questions_packed_in_rows_have_the_losses_that_each_has_alone(seed):
    packer, reader = Packer(SP, seed), small_reader()
    rng = random.Random(seed)
    frames, _ = world.sample_clip(rng)
    about, of_clip = itertools.islice(packer.pairs(world.sample_scene(rng)), 3), packer.clip_pairs(frames)
    asked = [(16, list(about)), (0, [world.CHAT[0], world.CHAT[9]]), (16 * len(frames), list(of_clip))]
    features = [torch.randn(images, 24) for images, _ in asked]
    with as_written(), nothing_lost():
        rows = [packer.row(images, pairs) for images, pairs in asked]
        packed, counted = answer_losses(reader, {IMAGE: torch.cat(features)}, *packer.batch(rows))
        alone = []
        for (images, pairs), seen, row in zip(asked, features, rows):
            each = [packer.row(images, [pair]) for pair in pairs[: max(row[3])]]
            alone.append(answer_losses(reader, {IMAGE: seen.repeat(len(each), 1)}, *packer.batch(each))[0])
    assert counted.sum() == len(packed)
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-5, rtol=1e-5)


def test_the_loss_of_one_question_is_that_of_predicting_its_answer():
    packer, reader = Packer(SP, 3), small_reader()
    pair, features = next(packer.pairs(world.sample_scene(packer.rng))), torch.randn(16, 24)
    with as_written(), nothing_lost():
        row = packer.row(16, [pair])
        found, counted = answer_losses(reader, {IMAGE: features}, *packer.batch([row]))
    decoder, text = reader.decoder, torch.tensor(row[0][17:])
    embeds = torch.cat([decoder.embed_tokens(torch.tensor(row[0][:1])), features, decoder.embed_tokens(text)])
    logits = decoder.lm_head(decoder(embeds[None]).last_hidden_state)[0]
    answer = len(SP.encode(pair[1])) + 1
    torch.testing.assert_close(found, F.cross_entropy(logits[-answer - 1 : -1], text[-answer:], reduction="none"))
    assert counted[0].nonzero().flatten().tolist() == list(range(len(row[0]) - 1 - answer, len(row[0]) - 1))


def test_the_rows_of_each_placeholder_stand_in_its_own_places():
    packer, reader, sound = Packer(SP, 4), small_reader(), -500
    rows = [packer.row(16, packer.pairs(world.sample_scene(packer.rng))) for _ in range(3)]
    ids, *rest = packer.batch(rows)
    features = torch.randn(3, 16, 24)
    mixed = ids.clone()
    mixed[:, 6:11] = sound  # of places 1 to 16
    with nothing_lost():
        one, _ = answer_losses(reader, {IMAGE: features.flatten(0, 1)}, ids, *rest)
        apart = {sound: features[:, 5:10].flatten(0, 1), IMAGE: features[:, [*range(5), *range(10, 16)]].flatten(0, 1)}
        two, _ = answer_losses(reader, apart, mixed, *rest)
    assert one.equal(two)


def test_words_that_are_lost_are_those_of_answers_about_one_in_six():
    packer, reader = Packer(SP, 5), small_reader()
    rows = [packer.row(16, packer.pairs(world.sample_scene(packer.rng))) for _ in range(12)]
    features = {IMAGE: torch.randn(12 * 16, 24)}
    ids, labels, positions, visible = packer.batch(rows)
    given_ids, embed = [], reader.decoder.embed_tokens
    hook = embed.register_forward_hook(lambda module, given, out: given_ids.append(given[0]))
    torch.manual_seed(1)
    answer_losses(reader, features, ids, labels, positions, visible)
    hook.remove()
    lost = given_ids[0] != ids.clamp(min=0)
    assert (given_ids[0][lost] == UNKNOWN).all() and (labels[lost] >= 0).all()
    assert 0.1 < lost.sum() / (labels >= 0).sum() < 0.25
    with mock.patch.object(torch, "rand", torch.zeros):  # all are lost, and what is asked for is the same
        found, counted = answer_losses(reader, features, ids, labels, positions, visible)
    with nothing_lost():
        hidden = ids.where(labels < 0, UNKNOWN)
        expected, _ = answer_losses(reader, features, hidden, labels, positions, visible)
    assert found.equal(expected) and counted.equal(labels[:, 1:] >= 0)


def test_made_up_names_are_pieces_of_their_own_in_the_place_of_words():
    packer = Packer(SP, 0)
    words = (*world.COLOURS, *world.SHAPES)
    every = [packer.stand_ins([(word, n)]) for word in ("red", "star") for n in range(world.MADE_UP)]
    assert [list(each) for each in every[:: world.MADE_UP]] == [
        [SP.piece_to_id(piece) for piece in pair] for pair in (("\u2581red", "Red"), ("\u2581star", "\u2581stars"))]
    made_up = [piece for each in every for piece in each.values()]
    assert len(made_up) == len(set(made_up)) == 4 * world.MADE_UP and all(map(SP.is_byte, made_up))
    plain = ("How many stars are there?", "Zero."), ("What color is the star?", "Red."), ("Is there a red star?", "Yes.")
    names = (("red", 3), ("star", 5))
    row = packer.row(0, plain, names)[0]
    assert not set(row) & packer.stand_ins([(word, 0) for word in words]).keys()
    back = {new: old for old, new in packer.stand_ins(names).items()}
    with as_written():
        assert [back.get(i, i) for i in row] == packer.row(0, plain)[0]


# ---- codes


def written_in(code):
    """What of the fixed rows a position [256] adds up to: traits [4, 19] and places [4, 2]."""
    found = torch.linalg.lstsq(CODES[1:].T.double(), (code - CODES[0]).double()[:, None]).solution[:, 0]
    return found[:76].view(4, 19), found[76:].view(4, 2)


@given(things)
@laws(60)
def test_a_thing_is_written_at_its_one_position_and_can_be_read_there(thing):
    codes = scene_codes([scene_of(thing)])[0]
    place = int(thing.y * 4) * 4 + int(thing.x * 4)
    assert codes.shape == (16, 256)
    assert [i for i in range(16) if not codes[i].equal(CODES[0])] == [place]
    traits, places = written_in(codes[place])
    quarter = int(thing.y * 8) % 2 * 2 + int(thing.x * 8) % 2
    expected, where = torch.zeros(4, 19, dtype=torch.double), torch.zeros(4, 2, dtype=torch.double)
    shape, size = world.SHAPES.index(thing.shape), list(world.SIZES).index(thing.size)
    expected[quarter, [list(world.COLOURS).index(thing.color), 8 + shape, 14 + size, 16]] = 1
    expected[quarter, 17:] = torch.tensor([thing.x * 8 % 1, thing.y * 8 % 1]) * 2 - 1
    where[quarter] = torch.tensor([thing.x, thing.y]) * 4 - 2
    torch.testing.assert_close(traits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(places, where, atol=1e-4, rtol=0)


@given(things, st.integers(0, world.MADE_UP - 1))
@laws()
def test_a_made_up_name_has_a_row_of_its_own_in_the_place_of_the_words(thing, number):
    place, quarter = int(thing.y * 4) * 4 + int(thing.x * 4), int(thing.y * 8) % 2 * 2 + int(thing.x * 8) % 2
    scene, colour, shape = scene_of(thing), list(world.COLOURS).index(thing.color), world.SHAPES.index(thing.shape)
    for word, own, new in ((thing.color, colour, number), (thing.shape, 8 + shape, world.MADE_UP + number)):
        named, renamed = scene_codes([scene, replace(scene, names=((word, number),))])
        expected = named.clone()
        expected[place] += MADE_UP_TRAITS[quarter, new] - TRAITS[quarter, own]
        torch.testing.assert_close(renamed, expected, atol=1e-5, rtol=0)


@given(st.lists(things, min_size=2, max_size=3))
@laws()
def test_codes_of_several_things_are_the_sum_of_each_ones(several):
    alone = scene_codes([scene_of(thing) for thing in several]) - CODES[0]
    together = scene_codes([scene_of(*several)])[0] - CODES[0]
    torch.testing.assert_close(together, alone.sum(0), atol=1e-5, rtol=0)


@given(things, st.sampled_from(["colour", "shape"]))
@laws()
def test_what_has_no_name_adds_nothing_or_a_mixture_of_all_names_of_its_kind(thing, odd):
    names = slice(0, 8) if odd == "colour" else slice(8, 14)
    nameless = replace(thing, tint=(0, 0, 0)) if odd == "colour" else replace(thing, shape="blob")
    place, quarter = int(thing.y * 4) * 4 + int(thing.x * 4), int(thing.y * 8) % 2 * 2 + int(thing.x * 8) % 2
    scenes = [scene_of(thing), scene_of(nameless)]
    (named, _), (bare, _) = (written_in(codes[place]) for codes in scene_codes(scenes))
    same, mixed = scene_codes(scenes, mixed=True)
    assert same.equal(scene_codes(scenes)[0])
    mixed, _ = written_in(mixed[place])
    assert bare[quarter, names].abs().max() < 1e-4
    assert 0 < mixed[quarter, names].min() + 1e-4 and 1e-3 < mixed[quarter, names].max() < 1 + 1e-4
    for found in (bare, mixed):  # all else is as it was
        found[quarter, names] = named[quarter, names]
        torch.testing.assert_close(found, named, atol=1e-4, rtol=0)


OWN = {"colour": TRAITS[:, :8].flatten(0, 1), "shape": TRAITS[:, 8:14].flatten(0, 1)}
OTHERS = {
    "colour": torch.cat([TRAITS[:, 8:].flatten(0, 1), PLACES.flatten(0, 1)]),
    "shape": torch.cat([TRAITS[:, :8].flatten(0, 1), TRAITS[:, 14:].flatten(0, 1), PLACES.flatten(0, 1)]),
}


@given(st.sampled_from(["colour", "shape"]), seeds)
@laws()
def test_an_error_along_the_codes_of_what_has_no_name_does_not_count_and_every_other_does(odd, seed):
    rng, numbers = random.Random(seed), torch.Generator().manual_seed(seed)
    codes = scene_codes(odd_scenes(1, rng)[odd == "shape"])
    assert code_loss(codes, codes) == code_loss(codes, codes, odd) == 0
    error = torch.randn(16, len(OWN[odd]), generator=numbers) @ OWN[odd]
    assert code_loss(codes + error, codes) > 1
    assert code_loss(codes + error, codes, odd) < 1e-8
    for row in OTHERS[odd]:  # random rows of 256 numbers lie nearly across each other: most of each is left
        assert code_loss(codes + row, codes, odd) > 0.6 * code_loss(codes + row, codes)
    both = code_loss(codes + error + row, codes, odd).item()
    assert both == pytest.approx(code_loss(codes + row, codes, odd).item(), 1e-3)
    across = torch.randn(256, generator=numbers)
    across -= OWN[odd].T @ torch.linalg.lstsq(OWN[odd].T, across[:, None]).solution[:, 0]
    assert code_loss(codes + across, codes, odd).item() == pytest.approx(code_loss(codes + across, codes).item(), 1e-4)


def test_an_error_where_something_stands_counts_four_times():
    codes = scene_codes([scene_of(world.Thing("red", "circle", "small", 0.1, 0.1, 0.1, 0.0))])
    at, beside = torch.zeros(1, 16, 1), torch.zeros(1, 16, 1)
    at[:, 0], beside[:, 1] = 0.05, 0.05
    assert code_loss(codes + beside, codes) == pytest.approx(1 / 16)  # one position of 16 off by the codes' spread
    assert code_loss(codes + at, codes) == pytest.approx(4 / 16)


@given(seeds)
@laws()
def test_patches_are_labelled_by_what_stands_in_them(seed):
    rng = random.Random(seed)
    scene = next(s for s in iter(lambda: world.sample_scene(rng), None) if world.odd_shapes(s))
    tinted, blobs = world.odd_colours(scene, rng), world.odd_shapes(scene)
    labels, of_tinted, of_blobs = patch_labels([scene, tinted, blobs]).view(3, 8, 8, 3)
    for thing in scene.things:
        here = int(thing.y * 8), int(thing.x * 8)
        colour, shape = 1 + list(world.COLOURS).index(thing.color), 1 + world.SHAPES.index(thing.shape)
        size = 1 + list(world.SIZES).index(thing.size)
        assert labels[here].tolist() == [colour, shape, size]
        assert of_tinted[here].tolist() == [-100, shape, size] and of_blobs[here].tolist() == [colour, -100, size]
    middles = [(x / 8 + 1 / 16, y / 8 + 1 / 16) for y in range(8) for x in range(8)]
    far = [all(math.dist(m, (t.x, t.y)) > max(t.radius, 0.1) for t in scene.things) for m in middles]
    assert not labels.view(64, 3)[torch.tensor(far)].any()


# ---- what is kept out


def shows_kept_out(scene):
    """The things that are of a kept-out pair, or of its shape in a colour that is near; not what is made up."""
    for thing in scene.things:
        if {thing.color, thing.shape} & dict(scene.names).keys():
            continue
        colours = [world.COLOURS[colour] for colour, shape in world.HELD_OUT if shape == thing.shape]
        if any(math.dist(thing.tint or world.COLOURS[thing.color], colour) <= 60 for colour in colours):
            yield thing


def names_kept_out(row):
    text = " ".join(SP.decode(part) for pair in conversations(row) for part in pair).lower()
    return [pair for pair in world.HELD_OUT if " ".join(pair) in text]


def test_the_search_for_what_is_kept_out_finds_it():
    red_star = world.Thing("red", "star", "small", 0.5, 0.5, 0.1, 0.0)
    assert len(list(shows_kept_out(scene_of(red_star, replace(red_star, tint=(200, 60, 30)))))) == 2
    assert not list(shows_kept_out(scene_of(replace(red_star, tint=(0, 0, 255)), replace(red_star, shape="blob"))))
    with as_written():
        assert names_kept_out(Packer(SP, 0).row(0, [("HOW BIG IS THE RED STAR?", "Small.")]))
        assert names_kept_out(Packer(SP, 0).row(0, [("What is it?", "A large red star.")]))


@given(seeds)
@laws(60)
def test_no_row_names_what_is_kept_out(seed):
    packer = Packer(SP, seed)
    for _, row in rows_of(packer, seed):
        assert not names_kept_out(row)


@given(seeds)
@laws(60)
def test_no_scene_shows_what_is_kept_out_and_half_of_the_odd_ones_have_no_colours_half_no_shapes(seed):
    rng = random.Random(seed)
    tinted, blobs = odd_scenes(2, rng)
    scenes = [world.sample_scene(rng), *world.sample_clip(rng)[0], *tinted, *blobs]
    assert not [thing for scene in scenes for thing in shows_kept_out(scene)]
    assert len(tinted) == len(blobs) == 2
    assert all(thing.tint and thing.shape != "blob" for scene in tinted for thing in scene.things)
    assert all(not thing.tint and thing.shape == "blob" for scene in blobs for thing in scene.things)


def test_of_what_has_no_name_only_that_is_asked_which_can_be_answered():
    packer = Packer(SP, 0)
    for tinted, blobs in zip(*odd_scenes(15, packer.rng)):
        for scene, words in ((tinted, (*world.COLOURS, "blob")), (blobs, (*world.SHAPES, "blob"))):
            for question, answer in itertools.islice(packer.pairs(scene), 15):
                said = f"{question} {answer}".lower()
                assert (question, answer) in world.CHAT or not re.search(rf"\b({'|'.join(words)})", said), said


# ---- stages


def a_stage(folder, steps, rate=0.01):
    """A stage that fits a line, and what its losses were asked for."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return Stage("line", folder, model.parameters(), steps, rate).resume(model), model, []


def fit(stage, model, asked, stop=None):
    def losses(step):
        if step == stop:
            raise KeyboardInterrupt
        asked.append((step, stage.optimiser.param_groups[0]["lr"]))
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return {"line": ((model(x).float() - x[:, :2]).square().mean(), 1.0)}

    stage.run(model, losses)


def test_a_stage_that_was_stopped_goes_on_from_its_last_save_as_if_it_had_not_been(tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    stage, whole, asked = a_stage(tmp_path / "whole", 150)
    fit(stage, whole, asked)
    stage, cut, before = a_stage(tmp_path / "cut", 150)
    with pytest.raises(KeyboardInterrupt):
        fit(stage, cut, before, stop=120)
    stage, cut, after = a_stage(tmp_path / "cut", 150)
    saved = torch.load(tmp_path / "cut" / "line.pt", weights_only=True)
    assert stage.first == saved["step"] == 100 and cut.weight.equal(saved["model"]["weight"])
    fit(stage, cut, after)
    assert before[:100] + after == asked and [step for step, _ in asked] == list(range(150))
    assert cut.weight.equal(whole.weight) and cut.bias.equal(whole.bias)
    stage, again, nothing = a_stage(tmp_path / "cut", 150)
    fit(stage, again, nothing)
    assert not nothing and again.weight.equal(whole.weight)
    assert [f.name for f in (tmp_path / "cut").iterdir()] == ["line.pt"]


def test_the_rate_goes_up_over_a_hundred_steps_and_down_to_nothing(tmp_path):
    stage, model, asked = a_stage(tmp_path, 200, rate=1.0)
    fit(stage, model, asked)
    rates = [rate for _, rate in asked]
    assert rates[0] == pytest.approx(0.01) and max(rates) == rates[99] == pytest.approx(1 - 99 / 200)
    assert rates[:100] == sorted(rates[:100]) and rates[99:] == sorted(rates[99:])[::-1]
    assert rates[-1] == pytest.approx(1 / 200)


def test_a_weight_of_a_loss_is_its_share(tmp_path):
    stage, model, _ = a_stage(tmp_path, 1)
    start = model.weight.detach().clone()
    stage.optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    stage.run(model, lambda step: {"a": (model.weight.sum(), 0.25), "b": (model.weight.sum(), 0.125)})
    # the first step is taken at a hundredth of the rate
    torch.testing.assert_close(start - model.weight.detach(), torch.full((2, 3), 0.375 * 0.01 / 100), rtol=0.01, atol=0)


def test_a_batch_whose_gradient_is_no_number_is_passed_over(tmp_path):
    stage, model, _ = a_stage(tmp_path, 1)
    start = model.weight.detach().clone()
    stage.run(model, lambda step: {"a": (model.weight.sum() * math.nan, 1.0)})
    assert model.weight.equal(start)


# ---- the trainer and what it leaves


def small_config(sp):
    layers = {"num_hidden_layers": 1}
    return replace(CONFIG, decoder=replace(CONFIG.decoder, **layers), vision=replace(CONFIG.vision, **layers))


@pytest.mark.parametrize("stage", ["eye", "decoder"])
def test_a_trainer_shows_and_says_nothing_that_is_kept_out_and_goes_on_where_it_stopped(stage, tmp_path, monkeypatch):
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    scenes, rows, drawn, taught, mixtures = [], [], [], [], []
    pack, picture = Packer.batch, world.picture

    def codes(shown, mixed=False):
        scenes.extend(shown)
        mixtures.append(mixed)
        return scene_codes(shown, mixed)

    def loss(features, codes, odd):
        taught.append((odd, scenes[-1].things[0]))
        return code_loss(features, codes, odd)

    monkeypatch.setattr(train_demo, "scene_codes", codes)
    monkeypatch.setattr(train_demo, "code_loss", loss)
    monkeypatch.setattr(train_demo, "demo_config", small_config)
    monkeypatch.setattr(Packer, "batch", lambda self, made: rows.extend(made) or pack(self, made))
    monkeypatch.setattr(world, "picture", lambda scene, rng: drawn.append(scene) or picture(scene, rng))
    for steps in ("4", "5"):
        options = ["--work", tmp_path, "--steps", steps, "--batch", 8]
        monkeypatch.setattr("sys.argv", ["train_demo.py", stage, *map(str, options)])
        train_demo.main()
        assert torch.load(tmp_path / f"{stage}.pt", weights_only=True)["step"] == int(steps)
    if stage == "eye":
        assert len(drawn) == 5 * 8 and drawn == scenes and not rows
        assert sum(scene.things[0].tint is not None for scene in drawn) == 5 * 2
        assert sum(scene.things[0].shape == "blob" for scene in drawn) == 5 * 2
        assert [odd for odd, _ in taught] == [None, "colour", "shape"] * 5
        assert all((odd == "colour") == (thing.tint is not None) for odd, thing in taught)
    else:
        assert len(rows) == 3 * (8 + 1) + 2 * 4 and not drawn  # each picture's and one without; later clips every other step
    assert mixtures == ([False] + [True] * 4 if stage == "decoder" else [False] * 3 * 5)  # begins with what has names
    assert not [thing for scene in scenes for thing in shows_kept_out(scene)]
    assert not [name for row in rows for name in names_kept_out(row)]


@given(seeds, st.sampled_from([k for k in train_demo.KINDS if k not in ("left_right", "above_below")]))
@settings(max_examples=20, deadline=None)
def test_questions_come_by_their_mixture(seed, kind):
    scene, packer = world.sample_scene(random.Random(seed)), Packer(SP, seed)
    assume(world.questions(scene, random.Random(seed))[kind])  # no colour to ask for where two have the same shape
    asked = list(itertools.islice(packer.pairs(scene, dict.fromkeys(train_demo.KINDS, 0) | {kind: 1}), 20))
    of_that_kind = {question for question, _ in world.questions(scene, random.Random(seed))[kind]}
    chat = {question for question, _ in world.CHAT}
    if kind != "exists":  # which asks about what is not there, drawn anew
        assert {question for question, _ in asked} <= of_that_kind | chat
    assert {question for question, _ in asked} - chat
    assert train_demo.BEGINNERS.keys() == train_demo.KINDS.keys()


def test_beginners_see_scenes_of_what_has_names(monkeypatch):
    seen = []
    monkeypatch.setattr(train_demo, "scene_codes", lambda scenes: seen.extend(scenes) or scene_codes(scenes))
    codes, rows = Packer(SP, 3).plain(12, 16)
    assert codes.shape == (12, 16, 256) and len(rows) == 13 and len(seen) == 12
    assert (codes - scene_codes(seen)).std() == pytest.approx(0.02, rel=0.05)
    assert not any(scene.names or scene.things[0].tint or scene.things[0].shape == "blob" for scene in seen)


def test_the_eye_is_taught_codes_at_the_places_where_its_features_end_up():
    """Of a picture that is grey but for one patch, only that patch's position differs, with attention switched off."""
    torch.manual_seed(0)
    model = Model(small_config(SP)).eval().requires_grad_(False)
    model.vision.encoder.layers[0].ls1.zero_()
    for x, y in ((0.06, 0.06), (0.94, 0.06), (0.4, 0.7)):
        pixels = torch.zeros(2, 3, 112, 112)
        row, column = int(y * 8) * 14, int(x * 8) * 14
        pixels[1, :, row : row + 14, column : column + 14] = 1
        patches, features = model.see(pixels)
        thing = world.Thing("red", "circle", "small", x, y, 0.1, 0.0)
        expected = scene_codes([scene_of(thing)])[0].ne(CODES[0]).any(1)
        assert (features[0] - features[1]).abs().amax(1).gt(1e-4).equal(expected)
        labelled = patch_labels([scene_of(replace(thing, radius=0.01))])[0, :, 0].gt(0)  # a disc of 0.075
        assert labelled[(patches[0] - patches[1]).abs().amax(1).gt(1e-4)].all()


def test_what_is_saved_loads_strictly_and_is_the_model_that_was_trained(tmp_path):
    torch.manual_seed(0)
    model = Model(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():  # norms and biases too
        parameter.copy_((parameter + 0.1 * torch.randn(parameter.shape)).bfloat16())
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    model.save(tmp_path, CONFIG)
    vita = Vita.from_pretrained(tmp_path, dtype=torch.float32)
    assert vita.config == CONFIG
    pixels, ids = torch.randn(2, 3, 112, 112), torch.randint(0, SP.vocab_size(), (2, 9))
    with torch.inference_mode():
        patches, features = model.see(pixels)
        torch.testing.assert_close(vita.encode_images(pixels), features, atol=1e-5, rtol=1e-5)
        hidden = model.decoder(model.decoder.embed_tokens(ids)).last_hidden_state
        torch.testing.assert_close(vita(ids).logits, model.decoder.lm_head(hidden), atol=1e-4, rtol=1e-5)
    assert patches.shape == (2, 64, CONFIG.vision.hidden_size) and features.shape == (2, 16, CONFIG.decoder.hidden_size)
