"""A look: what it observes is what the trace has, and what it derives is what the formulas give on a second way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vita_ref import Vita, VitaConfig
from vita_ref.analysis import look as look_module
from vita_ref.analysis import occlusion, sources
from vita_ref.analysis.look import default_tokens, look_at
from vita_ref.analysis.positions import words
from vita_ref.analysis.trace import trace
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig
from vita_ref.request import PreparedRequest, Request, collate, prepare_request

TINY = replace(
    VitaConfig.preset("vita-1.5"),
    decoder=DecoderConfig(300, 24, 40, 3, 6, 3, 4),
    vision=VisionConfig(16, 20, 2, 2, image_size=28, patch_size=7),
    audio=AudioConfig(12, 18, 2, 3, subsampling_size=14),
    bos_token_id=None,
    eos_token_ids=(299,),
    dtype="float32",
)
ANSWER = [7, 250, 11]
NEAR = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def vita():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        vita = Vita(TINY).eval()
        for parameter in vita.decoder.layers.parameters():
            parameter.data.mul_(1.5)  # so that attention is not nearly uniform
    return vita


@pytest.fixture(scope="module")
def prepared():
    draw = torch.Generator().manual_seed(3)
    images = [torch.randn(3, 3, 28, 28, generator=draw), torch.randn(1, 3, 28, 28, generator=draw)]
    sound = torch.randn(90, 80, generator=draw)
    return PreparedRequest(torch.tensor([3, -200, 4, 40, -500, 5, -200, 6, 60]), images, [sound])


MEDIA = ([{"name": "a", "size": (56, 28), "grid": (2, 1), "thumbnail": True}, {"name": "b", "seconds": 1.5}], [{"name": "c"}])


@pytest.fixture(scope="module")
def seen(vita, prepared):
    return look_at(vita, prepared, answer_ids=ANSWER, media=MEDIA, passes=400)


@pytest.fixture(scope="module")
def whole(vita, prepared):
    """One pass over the prompt and the answer, with gradients: embeddings, output of the decoder."""
    with torch.no_grad():
        x = vita.inputs(collate([prepared]))
    embeds = torch.cat([x.embeds, vita.decoder.embed_tokens(torch.tensor([ANSWER[:-1]]))], 1).detach().requires_grad_()
    return embeds, vita.decoder(embeds, output_attentions=True, output_hidden_states=True)


def points(seen):
    return [len(seen.positions) - len(ANSWER) + t for t in range(len(ANSWER))]


def log_odds(vita, whole, point, token):
    logits = vita.decoder.lm_head(whole[1].last_hidden_state[0, point])
    others = torch.cat([logits[:token], logits[token + 1 :]])
    return logits[token] - others.logsumexp(0)


# ---- observed


def test_what_is_observed_of_the_prompt_is_what_a_trace_has(vita, prepared, seen):
    with trace(vita, deep=True, maps=True) as record, torch.no_grad():
        vita.generate(**vars(collate([prepared])), max_new_tokens=1, eos_token_id=())
    n = record["spliced.inputs_embeds"].shape[1]
    for layer in range(3):
        name = f"decoder.layers.{layer:02}"
        np.testing.assert_allclose(seen.attention[layer][0, :, :n], record[f"{name}.attention_map"][0, :, -1], **NEAR)
        assert not seen.attention[layer][0, :, n:].any()
        np.testing.assert_allclose(seen.norms[0, layer + 1], record[f"{name}.output"][0, -1].norm(), rtol=1e-4)
        np.testing.assert_allclose(seen.attention_norms[0, layer], record[f"{name}.attention"][0, -1].norm(), rtol=1e-4)
        np.testing.assert_allclose(seen.mlp_norms[0, layer], record[f"{name}.mlp"][0, -1].norm(), rtol=1e-4)
    probs = record["logits"][0].softmax(-1)
    assert seen.tokens[0].probability == pytest.approx(float(probs[ANSWER[0]]), rel=1e-3)
    assert [i for i, *_ in seen.tokens[0].top] == probs.topk(5).indices.tolist()
    assert [p.position_id for p in seen.positions[:n]] == record["spliced.position_ids"][0].tolist()


def test_the_attention_of_every_token_is_that_of_one_pass_over_the_prompt_and_the_answer(seen, whole):
    for layer, maps in enumerate(whole[1].attentions):
        for t, point in enumerate(points(seen)):
            np.testing.assert_allclose(seen.attention[layer][t], maps[0, :, point].detach(), **NEAR)


def test_the_rows_of_attention_sum_to_one_and_the_average_is_their_mean(seen):
    for layer in seen.attention:
        np.testing.assert_allclose(layer.sum(-1), 1, rtol=1e-4)
    np.testing.assert_allclose(seen.average, sum(layer.mean(1) for layer in seen.attention) / 3, rtol=1e-5)


def test_the_maps_of_the_towers_are_those_of_their_cores(vita, prepared, seen):
    with trace(vita, deep=True) as record, torch.no_grad():
        vita.inputs(collate([prepared]))
    tiles = {(each.number, each.layer): each.weights for each in seen.towers if each.kind == "image"}
    assert set(tiles) == {(tile, layer) for tile in range(4) for layer in range(2)}
    q, k = (record[f"vision.0.layers.01.{name}"] for name in "qk")
    want = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)
    for tile in range(4):
        np.testing.assert_allclose(tiles[tile, 1], want[tile], **NEAR)
    [sound] = [each.weights for each in seen.towers if each.kind == "audio" and each.layer == 1]
    q, k, bias = (record[f"audio.0.layers.01.{name}"] for name in ("q", "k", "bias"))
    want = (q @ k.mT * q.shape[-1] ** -0.5 + bias[:, None]).softmax(-1).mean(0)
    np.testing.assert_allclose(sound, want, **NEAR)


def test_a_head_that_adds_nothing_shows_zero_there(vita, prepared):
    weight = vita.decoder.layers[1].self_attn.o_proj.weight
    kept = weight.data.clone()
    try:
        weight.data[:, 2 * 4 : 3 * 4] = 0  # head 2
        norms = look_at(vita, prepared, answer_ids=ANSWER, derive=False).head_norms
    finally:
        weight.data.copy_(kept)
    assert not norms[:, 1, 2].any()
    norms[:, 1, 2] = 1
    assert (norms > 0).all()


def test_the_road_has_the_shapes_of_the_run_and_times(vita, prepared, seen):
    stages = {stage["name"]: stage for stage in seen.road}
    length = len(seen.positions) - len(ANSWER) + 1
    assert stages["vision tower"]["shape"] == [4, 4, 4 * 16]
    assert stages["decoder over the prompt, and the head"]["shape"] == [1, length, 24]
    assert stages["2 more tokens, one pass each"]["shape"] == [1, 1, 24]
    assert stages["KV cache of the prompt"]["bytes"] == 3 * 2 * 3 * length * 4 * 4
    assert all(stages[name]["ms"] > 0 and stages[name]["operations"] > 0 for name in ("vision tower", "projector", "audio encoder"))


def test_without_derived_maps_no_tensor_grows_with_the_square_of_the_prompt(vita, largest):
    prompt = PreparedRequest(torch.arange(700) % 290, [], [])
    with largest:
        seen = look_at(vita, prompt, answer_ids=ANSWER, derive=False)
    assert seen.rollout is seen.relevance is seen.occlusion is None
    assert largest.count < 700 * 700 * 4  # a map of one head


# ---- derived


def test_rollout_is_the_product_of_the_mixed_maps(seen, whole):
    product = torch.eye(len(seen.positions))
    for maps in whole[1].attentions:
        product = (0.5 * maps[0].mean(0) + 0.5 * torch.eye(len(product))) @ product
    np.testing.assert_allclose(seen.rollout, product[points(seen)].detach(), **NEAR)


def test_relevance_and_gradient_are_those_of_one_backward_pass(vita, seen, whole):
    embeds, out = whole
    for t, (point, token) in enumerate(zip(points(seen), ANSWER)):
        score = log_odds(vita, whole, point, token)
        to_embeds, *to_maps = torch.autograd.grad(score, (embeds, *out.attentions), retain_graph=True)
        product = torch.eye(len(seen.positions))
        for maps, grads in zip(out.attentions, to_maps):
            product = product + (maps * grads)[0].clamp(min=0).mean(0) @ product
        want = product[point].detach()
        want[point] -= 1
        np.testing.assert_allclose(seen.relevance[t], want, atol=1e-5, rtol=1e-3)
        np.testing.assert_allclose(seen.gradient[t], (to_embeds * embeds).sum(-1)[0].detach(), atol=1e-4, rtol=1e-3)


def test_the_lens_ends_with_the_probability_of_the_token(seen):
    np.testing.assert_allclose(seen.lens[:, -1], [token.probability for token in seen.tokens], rtol=1e-4)
    for token, top in zip(seen.tokens, seen.lens_top):
        assert [text for text, _ in top[-1]] == [text for _, text, _ in token.top[:3]]


def scores(vita, prepared, mask=None):
    """The log-probabilities of the answer behind another prompt, on the slow way."""
    with torch.no_grad():
        x = vita.inputs(collate([prepared]))
        embeds = torch.cat([x.embeds, vita.decoder.embed_tokens(torch.tensor([ANSWER[:-1]]))], 1)
        seen = None if mask is None else mask[None]
        ids = torch.arange(embeds.shape[1])[None]
        hidden = vita.decoder(embeds, attention_mask=seen, position_ids=ids).last_hidden_state[0, x.embeds.shape[1] - 1 :]
        return vita.decoder.lm_head(hidden).log_softmax(-1)[range(len(ANSWER)), ANSWER]


def fall_of(seen, label):
    [number] = [i for i, unit in enumerate(seen.plan.units) if unit.label == label]
    return seen.falls[:, number]


def test_the_fall_of_a_covered_word_is_that_of_hiding_its_columns(vita, prepared, seen):
    mask = torch.ones(len(seen.positions), dtype=torch.bool)
    mask[[p.index for p in seen.positions if p.token_id in (4, 40)]] = False  # without a tokenizer they are one word
    want = scores(vita, prepared) - scores(vita, prepared, mask)
    np.testing.assert_allclose(fall_of(seen, "[4][40]"), want, **NEAR)
    assert want.abs().max() > 1e-4


def test_a_covered_place_of_a_picture_is_covered_in_its_tile_and_in_the_thumbnail(vita, prepared, seen):
    unit = next(u for u in seen.plan.units if u.kind == "image" and u.medium == 0)
    left, top, right, bottom = unit.box
    tiles = prepared.images[0].clone()
    middle = tiles.transpose(0, 1).flatten(1).median(1).values[:, None, None]
    assert right <= 0.5  # in the first of two tiles
    tiles[0, :, round(top * 28) : round(bottom * 28), round(left * 56) : round(right * 56)] = middle
    tiles[2, :, round(top * 28) : round(bottom * 28), round(left * 28) : round(right * 28)] = middle
    covered = replace(prepared, images=[tiles, prepared.images[1]])
    np.testing.assert_allclose(fall_of(seen, unit.label), scores(vita, prepared) - scores(vita, covered), **NEAR)


def test_a_covered_stretch_of_a_sound_is_made_quiet(vita, prepared, seen):
    unit = [u for u in seen.plan.units if u.kind == "audio"][3]
    sound = prepared.sounds[0].clone()
    sound[unit.frames[0] : unit.frames[1]] = prepared.sounds[0].quantile(0.1, 0)
    covered = replace(prepared, sounds=[sound])
    np.testing.assert_allclose(fall_of(seen, unit.label), scores(vita, prepared) - scores(vita, covered), **NEAR)


def test_the_map_of_falls_has_a_value_for_every_position_of_the_prompt_and_none_for_the_answer(seen):
    covered = ~np.isnan(seen.occlusion)
    n = len(seen.positions) - len(ANSWER) + 1
    assert covered[:, :n].all() and not covered[:, n:].any()


@pytest.mark.parametrize("most", [8, 20, 30])
def test_neighbours_are_joined_until_the_passes_are_as_few_as_wanted(vita, prepared, seen, most):
    pictures, sounds = sources.describe(prepared, *MEDIA)
    prompt = [p for p in seen.positions if p.kind != "answer"]
    plan = occlusion.plan(vita, prompt, pictures, sounds, len(ANSWER), passes=most)
    assert plan.passes - 1 <= most
    assert {i for unit in plan.units for i in unit.positions} == {p.index for p in prompt}


def test_the_cost_is_told_before_the_first_pass(vita, prepared):
    told = []
    seen = look_at(vita, prepared, answer_ids=ANSWER, passes=9, progress=lambda *args: told.append(args))
    assert len(told[0]) == 1 and told[0][0].startswith(f"occlusion: {seen.plan.passes} passes of {len(seen.positions)} positions")
    assert told[-1] == (seen.plan.passes, seen.plan.passes)


# ---- positions


def test_the_positions_of_a_picture_tile_it_and_hold_every_patch_once(seen):
    first = [p for p in seen.positions if p.kind == "image" and p.medium == 0]
    assert [p.tile for p in first] == [0] * 4 + [1] * 4 + [2] * 4
    for tile in range(3):
        own = [p for p in first if p.tile == tile]
        assert sorted(i for p in own for i in p.patches) == list(range(16))
    area = sum((p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) for p in first if p.tile < 2)
    assert area == pytest.approx(1)
    assert first[0].box == (0, 0, 0.25, 0.5) and first[0].patches == (0, 1, 4, 5)
    assert first[-1].box == (0.5, 0.5, 1, 1) and first[-1].patches == (10, 11, 14, 15)


def test_the_times_of_a_sound_advance_by_80_ms_and_lie_in_what_is_read(seen):
    own = [p for p in seen.positions if p.kind == "audio"]
    middles = [(p.start + p.end) / 2 for p in own]
    np.testing.assert_allclose(np.diff(middles), 0.08, atol=1e-9)
    for i, middle in enumerate(middles):  # position i reads the frames 8i to 8i + 22, of 25 ms every 10 ms
        assert middle == pytest.approx((0.08 * i + 0.08 * i + 0.22 + 0.025) / 2)


def test_words_begin_at_spaces_and_at_special_tokens():
    demo = Vita.from_pretrained(kernels="plain")
    seen = demo.look("What color is it?", derive=False, max_new_tokens=1)
    texts = ["".join(seen.positions[i].text for i in group) for group in words(seen.positions)]
    assert texts == ["<|user|>", "What", " color", " is", " it", "?", "<|assistant|>"]


# ---- whole requests


@pytest.fixture(scope="module")
def demo():
    return Vita.from_pretrained(kernels="plain")


def noise_picture(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_opened_media_give_the_same_request(demo, tmp_path):
    picture = noise_picture((90, 40))
    picture.save(tmp_path / "a.png")
    folder = tmp_path / "film"
    folder.mkdir()
    for i in range(3):
        noise_picture((30, 30), i).save(folder / f"{i}.png")
    wave = torch.sin(torch.arange(9000) / 9), 16000
    request = Request("<image> <video>?", [tmp_path / "a.png"], [wave], folder, max_tiles=4)
    opened, pictures, sounds = sources.open_media(request, demo.config)
    one, other = (prepare_request(r, demo.config, demo.tokenizer) for r in (request, opened))
    assert one.ids.equal(other.ids)
    assert all(a.equal(b) for a, b in zip(one.images + one.sounds, other.images + other.sounds, strict=True))
    assert [p.get("seconds") for p in pictures] == [None, 0, 1, 2] and pictures[0]["grid"] != (1, 1)
    assert sounds[0]["seconds"] == pytest.approx(9000 / 16000)


def test_a_look_gives_the_answer_of_respond_and_leaves_the_model_as_it_was(demo):
    picture = noise_picture((40, 40))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in demo.modules()]
    seen = demo.look("What color is the star?", images=[picture], derive=False)
    assert seen.text.strip() == demo.respond("What color is the star?", images=[picture])
    assert "".join(token.text for token in seen.tokens[:-1]).strip() == seen.text.strip()
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in demo.modules()]


def test_a_sampled_answer_that_exists_is_explained_as_it_is(demo):
    prepared = demo.prepare(Request("Hello!"))
    seen = look_at(demo, prepared, answer_ids=[318, 263], derive=False)
    assert [token.id for token in seen.tokens] == [318, 263] and seen.forced


def test_the_table_has_a_line_for_each_position_and_the_answer(demo):
    seen = demo.look("What\tcolor?", images=[noise_picture((40, 40))], max_new_tokens=2, derive=False)
    lines = seen.table().splitlines()
    assert len(lines) >= len(seen.positions) + 2 and all(line.isprintable() for line in lines)
    shares = [float(line.split()[-2]) for line in lines[1 : 1 + len(seen.positions)]]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


@pytest.mark.parametrize("options", [{"tokens": 0}, {"tokens": True}, {"passes": -1}, {"passes": 2.5}])
def test_counts_out_of_range_are_refused(demo, options):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        demo.look("Hello!", **options)


def test_a_map_that_was_left_out_is_an_error_that_names_the_others(demo):
    seen = demo.look("Hello!", derive=False, max_new_tokens=1)
    with pytest.raises(ValueError, match="there is no map 'occlusion'; this look has average"):
        seen.map("occlusion")


def test_maps_that_need_too_much_memory_are_left_out_with_a_reason(vita, prepared, monkeypatch):
    monkeypatch.setattr(look_module, "INPUT_BYTES", 1000)
    seen = look_at(vita, prepared, answer_ids=ANSWER)
    assert seen.relevance is seen.rollout is seen.gradient is None and "left out" in seen.notes[0]
    assert not np.isnan(seen.occlusion[:, 0]).any()  # it needs no such map


def test_the_more_positions_the_fewer_tokens_are_explained():
    seven = VitaConfig.preset("qwen2-7b").decoder
    counts = [default_tokens(seven, n) for n in (10, 100, 1000, 4000)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 32 and counts[-1] == 4
    numbers = seven.num_hidden_layers * seven.num_attention_heads * 4000 * counts[-1]
    assert math.log10(numbers) < 8


def test_a_prompt_that_is_read_in_parts_gives_the_same_look(vita, prepared, seen, monkeypatch):
    monkeypatch.setattr(vita, "prompt_chunk", 7)
    parts = look_at(vita, prepared, answer_ids=ANSWER, media=MEDIA, passes=3)
    for name in ("average", "rollout", "relevance", "gradient", "norms", "lens"):
        np.testing.assert_allclose(getattr(parts, name), getattr(seen, name), atol=1e-4, rtol=1e-3)
    assert [p.position_id for p in parts.positions] == [p.position_id for p in seen.positions]
    shapes = [[stage["shape"] for stage in look.road] for look in (parts, seen)]
    assert shapes[0] == shapes[1]
