"""What a trace records: upstream's numbers by name, what the model used and nothing else; and the program that dumps it.

The golden numbers are upstream's own. Bounds: 2e-5 for the towers, 5e-5 for the decoder; ids are exact.
"""

import fnmatch
import json
import re
import wave
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from conftest import GOLDEN, case
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tools import dump, make_checkpoint
from vita_ref import KVCache, Vita, VitaConfig, decoder, generate, vision
from vita_ref.analysis.trace import trace
from vita_ref.audio import Adapter, encoder_position_count
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig
from vita_ref.inputs import audio_features, image_features
from vita_ref.masks import SEE_ALL
from vita_ref.request import PreparedRequest

TOWER, LOGITS = {"atol": 2e-5, "rtol": 0}, {"atol": 5e-5, "rtol": 0}
IMAGE, AUDIO = -200, -500
TINY = replace(
    VitaConfig.preset("vita-1.5"),
    decoder=DecoderConfig(300, 24, 40, 2, 6, 3, 4),
    vision=VisionConfig(16, 20, 2, 2, image_size=28, patch_size=7),
    audio=AudioConfig(12, 18, 2, 3, subsampling_size=14),
    bos_token_id=None,
    eos_token_ids=(299,),
    dtype="float32",
)


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained(GOLDEN / "checkpoint")


def close(got, want, bounds):
    torch.testing.assert_close(got, want, **bounds)


def media_request(vita, tiles, sounds):
    """Arguments of `Vita.generate`: an image of each number of tiles, and a sound of each number of frames."""
    generator = torch.Generator().manual_seed(7)
    side = vita.config.vision.image_size
    images = [torch.randn(n, 3, side, side, generator=generator) for n in tiles]
    banks = [torch.randn(n, vita.config.audio.num_mel_bins, generator=generator) for n in sounds]
    ids = torch.tensor([[3, *[IMAGE] * len(tiles), 4, *[AUDIO] * len(sounds), 5]])
    return {"input_ids": ids, "images": images, "audios": {"audios": banks}}


# ---- against upstream


def test_the_layers_of_the_vision_tower_are_upstreams_by_name(vita):
    t, pool = case("vision"), case("pool")
    with trace(vita) as record:
        vita.encode_images(pool["images"][t["images_index"]])
    names = ["embeddings", *(f"layers.{i:02}" for i in range(len(t["hidden_states"]) - 1)), "tower", "projector"]
    assert list(record) == ["vision.0.tiles", *(f"vision.0.{name}" for name in names)]
    assert record["vision.0.tiles"].equal(pool["images"][t["images_index"]])
    for name, want in zip(names, [*t["hidden_states"], t["shuffled"], t["projected"]], strict=True):
        close(record[f"vision.0.{name}"], want, TOWER)


@pytest.mark.parametrize("name", ["audio", "audio_single"])
def test_the_stages_of_the_audio_encoder_are_upstreams_by_name_and_sound(vita, name):
    t, pool = case(name), case("pool")
    banks = pool["fbank"][t["audios_index"], : int(t["lengths"].max())]
    with trace(vita) as record:
        vita.encode_audios(banks, t["lengths"])
    assert {name.split(".")[1] for name in record} == {str(i) for i in range(len(banks))}
    for i, (n, rows) in enumerate(zip(t["lengths"].tolist(), t["lengths_for_llm"].tolist())):
        assert record[f"audio.{i}.fbank"].equal(banks[i, :n])
        close(record[f"audio.{i}.normalised"], t["cmvn_out"][i, :n], TOWER)
        close(record[f"audio.{i}.subsampled"], t["subsampling_out"][i, : encoder_position_count(n)], TOWER)
        close(record[f"audio.{i}.adapter"], t["inputs_embeds"][i, :rows], TOWER)
    close(torch.cat([record[f"audio.{i}.encoder"] for i in range(len(banks))]), t["encoder_out_valid"], TOWER)
    layers = sorted(name for name in record if name.startswith("audio.0.layers."))
    assert layers == [f"audio.0.layers.{i:02}" for i in range(vita.config.audio.num_hidden_layers)]


def test_the_layers_of_the_decoder_and_the_logits_are_upstreams_by_name(vita):
    t, layers = case("text_single"), vita.config.decoder.num_hidden_layers
    with trace(vita, deep=True, all_logits=True) as record:
        vita(t["input_ids"])
    outputs = [f"decoder.layers.{i:02}.output" for i in range(layers - 1)]
    for name, want in zip(["spliced.inputs_embeds", *outputs, "decoder.norm"], t["hidden_states"], strict=True):
        close(record[name], want, LOGITS)
    close(record["logits"], t["logits"], LOGITS)


def test_attention_maps_are_upstreams_and_multiply_the_recorded_values(vita):
    t = case("text_single")
    with trace(vita, deep=True, maps=True) as record:
        vita(t["input_ids"])
    for i, want in enumerate(t["attentions"]):
        weights, v = (record[f"decoder.layers.{i:02}.{name}"] for name in ("attention_map", "v"))
        close(weights, want, LOGITS)
        v = v.repeat_interleave(weights.shape[1] // v.shape[1], 1)
        close((weights @ v).transpose(1, 2).flatten(2), record[f"decoder.layers.{i:02}.attended"], LOGITS)


def test_keys_and_values_are_upstreams_cache(vita):
    t = case("text_incremental")
    with trace(vita, deep=True) as record:
        vita(t["input_ids"])
    for i, (keys, values) in enumerate(zip(t["key_cache"], t["value_cache"], strict=True)):
        close(record[f"decoder.layers.{i:02}.k"], keys, LOGITS)
        close(record[f"decoder.layers.{i:02}.v"], values, LOGITS)
    close(record["logits"], t["full_logits"][:, -1], LOGITS)


@pytest.mark.parametrize("name", ["e2e_image_audio", "e2e_image", "e2e_audio"])
def test_a_recorded_request_ends_in_upstreams_logits_and_tokens(vita, name):
    t, pool = case(name), case("pool")
    images = [pool["images"][i][None] for i in t["images_index"] if i >= 0]
    sounds = [pool["fbank"][i, : pool["fbank_lengths"][i]] for i in t["audios_index"] if i >= 0]
    record = dump.record_request(vita, PreparedRequest(t["input_ids"][0], images, sounds), max_new_tokens=12)
    close(record["logits"], t["last_logits"], LOGITS)
    assert record["token_ids"].equal(t["input_ids"]) and record["tokens"].equal(t["generated"])
    assert ("vision.0.tiles" in record, "audio.0.fbank" in record) == (bool(images), bool(sounds))
    assert next(iter(record)) == "token_ids" and list(record)[-1] == "tokens"


# ---- what is recorded is what was used: the model is broken in one place, and the trace says where


def wrapped(function, change):
    """The function with its result changed."""
    return lambda *args, **options: change(function(*args, **options))


def break_rope(vita, patch):
    patch(decoder, "apply_rope", lambda x, angles: x)


def break_angles(vita, patch):
    angles = decoder.rope_angles
    patch(decoder, "rope_angles", lambda positions, head_dim, theta, yarn: angles(positions, head_dim, 10))


def break_scale(vita, patch):
    for name in ("fused_attention", "eager_attention"):
        original = getattr(decoder, name)
        patch(decoder, name, lambda q, k, v, mask, original=original: original(2 * q, k, v, mask))


def break_mask(vita, patch):
    patch(decoder, "Mask", lambda past=None, real=None, allowed=None: SEE_ALL)


def break_mask_use(vita, patch):
    for name in ("fused_attention", "eager_attention"):
        original = getattr(decoder, name)
        patch(decoder, name, lambda q, k, v, mask, original=original: original(q, k, v, SEE_ALL))


def break_key_cache(vita, patch):
    patch(KVCache, "write", wrapped(KVCache.write, lambda both: (both[0].roll(1, 2), both[1])))


def break_head_order(vita, patch):
    forward = decoder.AttentionCore.forward
    patch(decoder.AttentionCore, "forward", wrapped(forward, lambda both: (both[0].flip(1), both[1])))


def break_norm(vita, patch):
    patch(decoder.RMSNorm, "forward", lambda norm, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps))


def break_class_token(vita, patch):
    patch(vision.Embeddings, "forward", wrapped(vision.Embeddings.forward, lambda x: x.roll(-1, 1)))


def break_shuffle(vita, patch):
    shuffle = vision.pixel_shuffle
    patch(vision, "pixel_shuffle", lambda x, factor: shuffle(x.transpose(1, 2), factor))


def break_projector(vita, patch):
    first, _, second = vita.projector
    patch(vita.projector, "forward", lambda x: second(first(x).relu()))


def break_adapter(vita, patch):
    forward = Adapter.forward
    patch(Adapter, "forward", lambda adapter, x, lengths: forward(adapter, x.roll(1, 1), lengths))


def break_vision_mlp(vita, patch):
    mlp = vita.vision.encoder.layers[1].mlp
    patch(mlp, "forward", wrapped(mlp.forward, lambda x: 2 * x))


def break_audio_mlp(vita, patch):
    mlp = vita.audio.encoder["enc"][1].encoders[1].feed_forward
    patch(mlp, "forward", wrapped(mlp.forward, lambda x: 2 * x))


def break_head(vita, patch):
    patch(vita.decoder.lm_head, "forward", wrapped(vita.decoder.lm_head.forward, lambda x: x.roll(1, -1)))


BREAKS = {  # what is broken: the first name that differs in a deep trace, and in a plain one
    break_rope: ("decoder.layers.00.q", "decoder.layers.00.output"),
    break_angles: ("decoder.rope.cos", "decoder.rope.cos"),
    break_scale: ("decoder.layers.00.attended", "decoder.layers.00.output"),
    break_mask: ("decoder.mask", "decoder.layers.00.output"),
    break_mask_use: ("decoder.layers.00.attended", "decoder.layers.00.output"),
    break_key_cache: ("decoder.layers.00.k", "decoder.layers.00.output"),
    break_head_order: ("decoder.layers.00.attended", "decoder.layers.00.output"),
    break_norm: ("decoder.layers.00.q", "decoder.layers.00.output"),
    break_class_token: ("vision.0.embeddings", "vision.0.embeddings"),
    break_shuffle: ("vision.0.tower", "vision.0.tower"),
    break_projector: ("vision.0.projector", "vision.0.projector"),
    break_adapter: ("audio.0.adapter.activation", "audio.0.adapter"),
    break_vision_mlp: ("vision.0.layers.01.mlp", "vision.0.layers.01"),
    break_audio_mlp: ("audio.0.layers.01.mlp", "audio.0.layers.01"),
    break_head: ("logits", "logits"),
}


@pytest.fixture(scope="module")
def random_vita():
    """A tiny model with weights large enough that every break shows in the logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vita = Vita(TINY).eval().requires_grad_(False)
        for weight in vita.parameters():
            scale = 0.2 if weight.dim() == 1 else 0.5 / weight.shape[-1] ** 0.5 + 0.15
            weight.copy_(weight * (weight.dim() == 1) + torch.randn_like(weight) * scale)
    return vita


def record_answer(vita, **options):
    """The trace of one request with an image of three tiles and a sound."""
    with trace(vita, **options) as record:
        vita.generate(**media_request(vita, tiles=(3,), sounds=(90,)), max_new_tokens=1, eos_token_id=())
    return record


def first_difference(good, bad):
    assert list(good) == list(bad)
    return next(name for name in good if not good[name].equal(bad[name]))


@pytest.fixture(scope="module")
def good(random_vita):
    """The deep and the plain trace of the unharmed model."""
    return {deep: record_answer(random_vita, deep=deep) for deep in (True, False)}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_the_first_name_that_differs_is_the_first_one_downstream_of_a_break(random_vita, good, damage, monkeypatch):
    deep, plain = BREAKS[damage]
    damage(random_vita, partial(monkeypatch.setattr, raising=True))
    bad = {deep: record_answer(random_vita, deep=deep) for deep in (True, False)}
    assert (first_difference(good[True], bad[True]), first_difference(good[False], bad[False])) == (deep, plain)
    assert (good[True]["logits"] - bad[True]["logits"]).abs().max() > 0.01


@pytest.mark.parametrize("damage", [break_scale, break_mask_use])
def test_a_break_inside_attention_shows_in_the_map_that_was_used(random_vita, damage, monkeypatch):
    good = record_answer(random_vita, deep=True, maps=True)
    damage(random_vita, monkeypatch.setattr)
    assert first_difference(good, record_answer(random_vita, deep=True, maps=True)) == "decoder.layers.00.attention_map"


def test_the_same_request_gives_the_same_bits(random_vita):
    options = {"deep": True, "maps": True, "all_logits": True}
    first, second = record_answer(random_vita, **options), record_answer(random_vita, **options)
    assert list(first) == list(second) and all(first[name].equal(second[name]) for name in first)


def test_maps_sum_to_one_hide_what_the_mask_hides_and_leave_the_logits_within_rounding(random_vita):
    fused, eager = record_answer(random_vita), record_answer(random_vita, maps=True)
    assert set(eager) - set(fused) == {"decoder.mask", *(f"decoder.layers.{i:02}.attention_map" for i in range(2))}
    visible = eager["decoder.mask"]
    for i in range(2):
        weights = eager[f"decoder.layers.{i:02}.attention_map"]
        close(weights.sum(-1), torch.ones(weights.shape[:-1]), LOGITS)
        assert not weights.masked_select(~visible).any() and weights.masked_select(visible).all()
    close(fused["logits"], eager["logits"], LOGITS)


def test_maps_are_not_added_to_what_the_caller_gets(vita):
    with trace(vita, maps=True):
        assert vita(torch.tensor([[3, 1, 4]])).attentions is None


def test_the_logits_are_the_ones_that_the_token_was_chosen_from(vita):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    whole = vita(ids).logits  # [B, S, V]
    with trace(vita, all_logits=True) as record:
        [[token]] = vita.generate(ids, max_new_tokens=1, eos_token_id=())
    assert record["logits"].shape == (1, whole.shape[2]) and record["logits"].argmax() == token
    close(record["derived.all_logits"], whole, LOGITS)
    with trace(vita, all_logits=True) as record:
        logits = vita(ids).logits
    assert record["logits"].equal(logits) and "derived.all_logits" not in record


def test_logits_are_those_of_the_last_real_position_on_either_side(vita):
    ids, mask = torch.tensor([[5, 6, 7, 8], [0, 9, 10, 11], [12, 13, 0, 0]]), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 0] = mask[2, 2:] = False
    with trace(vita) as record:
        logits = vita(ids, attention_mask=mask).logits
    assert record["logits"].equal(logits[torch.arange(3), torch.tensor([3, 3, 1])])
    with trace(vita) as record:
        vita.generate(ids, attention_mask=mask, max_new_tokens=1)
    for row, real, got in zip(ids, mask, record["logits"]):
        close(vita(row[real][None]).logits[0, -1], got, LOGITS)
    assert record["spliced.attention_mask"].equal(mask)
    assert record["spliced.position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 0]]
    assert record["decoder.rope.cos"][:, 0, :, 0].equal(record["spliced.position_ids"].float().cos())


def test_a_pass_that_continues_a_cache_records_all_keys_and_its_own_positions(vita):
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with trace(vita, deep=True) as whole:
        vita(ids)
    cache = vita(ids[:, :4]).cache
    with trace(vita, deep=True) as rest:
        vita(ids[:, 4:], cache=cache)
    assert rest["spliced.position_ids"].tolist() == [[4, 5]] and rest["spliced.attention_mask"].tolist() == [[True, True]]
    assert rest["decoder.mask"].equal(whole["decoder.mask"][:, :, 4:])
    for name in ("k", "v"):
        close(rest[f"decoder.layers.01.{name}"], whole[f"decoder.layers.01.{name}"], LOGITS)
    close(rest["decoder.layers.01.q"], whole["decoder.layers.01.q"][:, :, 4:], LOGITS)


def test_without_a_cache_mask_and_positions_are_recorded_as_given_and_never_made_up(vita):
    embeds, ids = torch.randn(2, 3, vita.config.decoder.hidden_size), torch.tensor([[4, 5, 6]])
    with trace(vita) as record:
        vita.decoder(embeds)
    assert not {"spliced.attention_mask", "spliced.position_ids"} & set(record)
    with trace(vita) as record:
        vita.decoder(embeds, position_ids=ids, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert record["spliced.position_ids"].equal(ids.expand(2, 3))
    assert record["spliced.attention_mask"].equal(torch.tensor([[False, True, True], [True, True, True]]))
    assert record["decoder.rope.sin"][0, 0, :, 0].equal(ids[0].float().sin())


# ---- names and numbering


def test_tiles_go_together_and_each_sound_is_recorded_as_if_it_were_alone(vita):
    request = media_request(vita, tiles=(1, 3, 2), sounds=(40, 95, 61))
    with trace(vita, deep=True) as record:
        vita(**request)
    assert record["vision.0.tiles"].equal(torch.cat(request["images"])) and "vision.1.tiles" not in record
    for i, bank in enumerate(request["audios"]["audios"]):
        assert record[f"audio.{i}.fbank"].equal(bank)
        with trace(vita, deep=True) as alone:
            vita.encode_audios(bank[None], [len(bank)])
        assert [name for name in record if name.startswith(f"audio.{i}.")] == [
            name.replace("audio.0.", f"audio.{i}.") for name in alone
        ]
        for name in alone:
            close(record[name.replace("audio.0.", f"audio.{i}.")], alone[name], TOWER)
    rows = [record["vision.0.projector"].flatten(0, 1), *(record[f"audio.{i}.adapter"] for i in range(3))]
    embeds = record["spliced.inputs_embeds"][0]
    close(embeds[1 : 1 + len(rows[0])], rows[0], TOWER)
    close(embeds[2 + len(rows[0]) : -1], torch.cat(rows[1:]), TOWER)


def test_images_of_different_sizes_and_later_sounds_get_numbers_of_their_own(vita):
    with trace(vita) as record:
        image_features(vita, [torch.zeros(3, 56, 56), torch.zeros(3, 84, 84)])
        audio_features(vita, {"audios": [torch.zeros(40, 80), torch.zeros(50, 80)]})
        audio_features(vita, {"audios": [torch.zeros(60, 80)]})
    assert [len(record[f"vision.{i}.embeddings"][0]) for i in (0, 1)] == [17, 37]
    assert [len(record[f"audio.{i}.fbank"]) for i in (0, 1, 2)] == [40, 50, 60]


def test_of_the_decoder_only_the_pass_over_the_prompt_is_recorded(vita):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with trace(vita, deep=True) as once:
        vita.generate(ids, max_new_tokens=1, eos_token_id=())
    with trace(vita, deep=True) as often:
        vita.generate(ids, max_new_tokens=4, eos_token_id=())
        vita(ids[:, :2])
    assert list(once) == list(often) and all(once[name].equal(often[name]) for name in once)


def test_logits_of_a_later_pass_are_not_taken_for_those_of_the_first(vita):
    embeds = torch.randn(2, 1, 3, vita.config.decoder.hidden_size)
    with trace(vita) as record:
        vita.decoder(embeds[0])
        hidden = vita.decoder(embeds[1]).last_hidden_state
        vita.decoder.lm_head(hidden)
    assert record["spliced.inputs_embeds"].equal(embeds[0]) and "logits" not in record


# ---- a trace only looks


def count_hooks(vita):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vita.modules())


def test_a_trace_changes_no_bit_and_leaves_no_hook(vita):
    request = media_request(vita, tiles=(2,), sounds=(70,))
    expected = vita(**request).logits
    with trace(vita, deep=True, all_logits=True) as record:
        logits = vita(**request).logits
    assert logits.equal(expected) and record["logits"].equal(expected) and count_hooks(vita) == 0


def test_a_pass_that_fails_leaves_no_hook_and_no_empty_name(vita, monkeypatch):
    with pytest.raises(ValueError, match="1 image placeholder, but 2"), trace(vita):
        vita(torch.tensor([[IMAGE]]), images=torch.zeros(2, 3, 56, 56))
    assert count_hooks(vita) == 0
    monkeypatch.setattr(vita.decoder.layers[1].mlp.down_proj, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError), trace(vita) as record:
        vita(torch.tensor([[3, 1, 4]]))
    assert count_hooks(vita) == 0
    assert list(record) == ["spliced.inputs_embeds", "decoder.rope.cos", "decoder.rope.sin", "decoder.layers.00.output"]


def test_a_trace_switches_no_global_state_of_torch(vita):
    with trace(vita, deep=True, maps=True):
        vita(torch.tensor([[3, 1, 4]]))
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.mkldnn.enabled
        assert torch.get_num_threads() == 1  # as conftest.py sets it


def test_a_record_keeps_its_numbers_when_the_input_is_overwritten(vita):
    bank = torch.zeros(1, 40, 80)
    with trace(vita) as record:
        vita.encode_audios(bank, [40])
    bank.fill_(1)
    assert not record["audio.0.fbank"].any()


# ---- the program


@pytest.fixture(scope="module", params=["vita-1.5", "demo"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("private-folder") / f"tiny-{request.param}"
    config = TINY if request.param == "vita-1.5" else replace(TINY, template="demo", max_tiles=3)
    make_checkpoint.write(path, request.param, seed=3, config=config)
    return path


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags for a question with an image of several tiles and a sound."""
    path = tmp_path_factory.mktemp("media")
    Image.linear_gradient("L").resize((90, 31)).convert("RGB").save(path / "x.png")
    samples = torch.randn(8000, generator=torch.Generator().manual_seed(1)) * 3000
    with wave.open(str(path / "x.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(samples.short().numpy().tobytes())
    return ["--image", str(path / "x.png"), "--audio", str(path / "x.wav"), "--prompt", "What, where? 你好"]


@pytest.fixture
def run(capsys):
    """The program: flags -> (exit status, standard output, standard error)."""

    def call(*flags):
        try:
            status = dump.main([str(flag) for flag in flags])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def numbered(name, count, *parts):
    return [f"{name}.{i:02}{part}" for i in range(count) for part in parts]


def test_a_dump_holds_the_whole_flow_in_order_and_no_path(run, folder, flags, tmp_path):
    out = tmp_path / "x.safetensors"
    status, _, err = run(out, "--model", folder, *flags, "--deep", "--maps", "--all-logits", "--max-new-tokens", 3)
    assert status == 0, err
    with safe_open(out, framework="pt") as file:
        about, names = file.metadata(), file.keys()
        shapes = {name: file.get_slice(name).get_shape() for name in names}
    order = about["order"].split()
    assert sorted(order) == sorted(shapes)
    inside, tower = [".attended", ".attention", ".mlp", ""], [".attended", ".attention", ".norm2", ".hidden", ".mlp", ""]
    expected = ["token_ids", "vision.0.tiles", "vision.0.embeddings"]
    expected += numbered("vision.0.layers", 2, ".norm1", ".q", ".k", ".v", *tower) + ["vision.0.tower", "vision.0.projector"]
    expected += [f"audio.0.{name}" for name in ("fbank", "normalised", "subsampled", "input")]
    expected += numbered("audio.0.layers", 2, ".norm1", ".q", ".k", ".v", ".bias", *tower)
    expected += ["audio.0.encoder", "audio.0.adapter.activation", "audio.0.adapter"]
    expected += [f"spliced.{name}" for name in ("inputs_embeds", "attention_mask", "position_ids")]
    expected += ["decoder.rope.cos", "decoder.rope.sin", "decoder.mask"]
    expected += numbered("decoder.layers", 2, ".q", ".k", ".v", ".attention_map", *inside[:-1], ".output")
    assert order == [*expected, "decoder.norm", "logits", "derived.all_logits", "tokens"]
    tiles, length, positions = shapes["vision.0.tiles"][0], shapes["spliced.inputs_embeds"][1], encoder_position_count(48)
    assert tiles > 1 and shapes["vision.0.projector"] == [tiles, 4, 24] and shapes["audio.0.fbank"] == [48, 80]
    assert shapes["vision.0.layers.01.k"] == [tiles, 2, 17, 8] and shapes["audio.0.layers.01.k"] == [3, positions, 4]
    assert shapes["decoder.layers.01.q"] == [1, 6, length, 4] and shapes["decoder.layers.01.k"] == [1, 3, length, 4]
    assert shapes["decoder.layers.00.attention_map"] == [1, 6, length, length]
    assert shapes["logits"] == [1, 300] and shapes["derived.all_logits"] == [1, length, 300]
    assert about["model"] == folder.name and about["prompt"] == "What, where? 你好"
    assert about["dtype"] == "float32" and about["torch"] == torch.__version__
    assert str(tmp_path.parent) not in json.dumps(about) and "private-folder" not in json.dumps(about)


def test_the_first_token_of_a_dump_is_the_likeliest_one(folder):
    vita = Vita.from_pretrained(folder)
    prepared = PreparedRequest(torch.tensor([3, IMAGE, 4]), [torch.randn(2, 3, 28, 28)], [])
    record = dump.record_request(vita, prepared, max_new_tokens=5)
    logits = vita(prepared.ids[None], images=prepared.images).logits[0, -1]
    assert record["tokens"][0, 0] == logits.argmax() and 1 <= record["tokens"].shape[1] <= 5


def test_the_same_request_twice_agrees_and_half_precision_does_not(run, folder, flags, tmp_path):
    one, two, half = (tmp_path / f"{x}.safetensors" for x in ("one", "two", "half"))
    request = ("--model", folder, *flags, "--all-logits", "--max-new-tokens", 1)
    for out, *more in ((one,), (two,), (half, "--dtype", "bfloat16")):
        assert run(out, *request, *more)[0] == 0
    status, table, _ = run("--compare", one, two, "--tolerance", 0)
    assert status == 0 and "OFF" not in table
    status, table, _ = run("--compare", one, half)
    assert status == 1 and table.splitlines()[-1].startswith("first off: vision.0.tiles;")
    assert {*off_names(run("--compare", one, half, "--tolerance", 10)[1])} <= {"tokens"}  # ids have no tolerance


def off_names(table):
    return [line.split()[0] for line in table.splitlines() if line.endswith("OFF")]


PLANTED = {  # a weight of the released format: the first name that must be off
    "model.vision_tower.vision_tower.embeddings.class_embedding": "vision.0.embeddings",
    "model.vision_tower.vision_tower.encoder.layers.0.attn.qkv.bias": "vision.0.layers.00.q",
    "model.vision_tower.vision_tower.encoder.layers.0.attn.proj.bias": "vision.0.layers.00.attention",
    "model.vision_tower.vision_tower.encoder.layers.0.norm1.weight": "vision.0.layers.00.norm1",
    "model.vision_tower.vision_tower.encoder.layers.1.norm2.bias": "vision.0.layers.01.norm2",
    "model.vision_tower.vision_tower.encoder.layers.1.mlp.fc1.weight": "vision.0.layers.01.hidden",
    "model.vision_tower.vision_tower.encoder.layers.1.mlp.fc2.bias": "vision.0.layers.01.mlp",
    "model.vision_tower.vision_tower.encoder.layers.1.ls2": "vision.0.layers.01",
    "model.mm_projector.2.weight": "vision.0.projector",
    "model.audio_encoder.encoder.global_cmvn.mean": "audio.0.normalised",
    "model.audio_encoder.encoder.enc.0.core.conv.2.weight": "audio.0.subsampled",
    "model.audio_encoder.encoder.enc.1.embed.0.bias": "audio.0.input",
    "model.audio_encoder.encoder.enc.1.encoders.0.self_attn.linear_q.weight": "audio.0.layers.00.q",
    "model.audio_encoder.encoder.enc.1.encoders.0.self_attn.linear_pos.weight": "audio.0.layers.00.k",
    "model.audio_encoder.encoder.enc.1.encoders.1.self_attn.pos_bias_u": "audio.0.layers.01.bias",
    "model.audio_encoder.encoder.enc.1.encoders.0.self_attn.linear_out.weight": "audio.0.layers.00.attention",
    "model.audio_encoder.encoder.enc.1.encoders.1.feed_forward.w_2.weight": "audio.0.layers.01.mlp",
    "model.audio_encoder.encoder.enc.1.after_norm.weight": "audio.0.encoder",
    "model.audio_encoder.encoder.enc.1.encoders.0.feed_forward.w_1.weight": "audio.0.layers.00.hidden",
    "model.audio_encoder.adpter.conv1d2.weight": "audio.0.adapter.activation",
    "model.audio_encoder.adpter.project.weight": "audio.0.adapter",
    "model.embed_tokens.weight": "spliced.inputs_embeds",
    "model.layers.0.self_attn.q_proj.bias": "decoder.layers.00.q",
    "model.layers.1.self_attn.k_proj.weight": "decoder.layers.01.k",
    "model.layers.1.self_attn.v_proj.bias": "decoder.layers.01.v",
    "model.layers.0.self_attn.o_proj.weight": "decoder.layers.00.attention",
    "model.layers.1.mlp.down_proj.weight": "decoder.layers.01.mlp",
    "model.norm.weight": "decoder.norm",
    "lm_head.weight": "logits",
}


@pytest.fixture(scope="module")
def recorded(folder, flags, tmp_path_factory):
    """A model, a prepared request, its record as it should be, and the file of that record."""
    vita, [prepared], _ = generate.load(dump.parser().parse_args(["out", "--model", str(folder), *flags]))
    right, file = dump.record_request(vita, prepared, deep=True, max_new_tokens=1), tmp_path_factory.mktemp("right") / "a"
    dump.save(file, right, model="x", prompt="x", dtype="float32")
    return vita, prepared, right, file


@pytest.mark.parametrize("weight", PLANTED)
def test_a_comparison_names_the_layer_whose_weight_was_changed(run, recorded, weight, tmp_path):
    vita, prepared, right, file = recorded
    state = vita.state_dict()
    own = make_checkpoint.module_names(vita, make_checkpoint.PREFIXES)[weight]
    before = state[own].clone()
    try:
        state[own] += 0.1 * torch.randn(before.shape, generator=torch.Generator().manual_seed(2))
        wrong = dump.record_request(vita, prepared, deep=True, max_new_tokens=1)
    finally:
        state[own].copy_(before)
    dump.save(tmp_path / "b", wrong, model="x", prompt="x", dtype="float32")
    status, table, _ = run("--compare", file, tmp_path / "b")
    assert status == 1 and off_names(table)[0] == PLANTED[weight]
    assert table.splitlines()[-1].startswith(f"first off: {PLANTED[weight]};")
    assert [line.split()[0] for line in table.splitlines()[1:-1]] == list(right)  # in the order of the flow


def test_missing_and_surplus_names_and_wrong_shapes_are_reported(run, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    numbers = {"z": torch.arange(6.0), "m": torch.ones(2, 3), "ids": torch.tensor([7]), "a": torch.zeros(0)}
    dump.save(a, numbers, model="x", prompt="x", dtype="float32")
    others = {"z": numbers["z"], "ids": torch.tensor([7], dtype=torch.int32), "a": torch.zeros(0), "new": torch.ones(1)}
    save_file(others, b)
    status, table, _ = run("--compare", a, b)  # b stores no order
    rows = dict(line.split(maxsplit=1) for line in table.splitlines())
    assert rows["m"] == "missing: only in A" and rows["new"] == "surplus: only in B"
    assert status == 1 and table.endswith("3 agree, 1 missing, 1 surplus\n")
    assert [line.split()[0] for line in table.splitlines()[1:6]] == ["z", "m", "ids", "a", "new"]
    assert run("--compare", a, a)[0] == 0
    status, table, _ = run("--compare", b, a)  # the order of a holds here too
    assert [line.split()[0] for line in table.splitlines()[1:6]] == ["z", "m", "ids", "a", "new"] and status == 1
    save_file(numbers | {"m": torch.ones(3, 2)}, b)
    status, table, _ = run("--compare", a, b)
    assert status == 1 and "[2, 3], in B [3, 2]" in table and "first off: m;" in table


@pytest.mark.parametrize("other, bad", [(1000.05, False), (1000.2, True), (float("nan"), True), (float("inf"), True)])
def test_the_tolerance_is_relative_to_the_largest_number_of_a_tensor(run, tmp_path, other, bad):
    save_file({"x": torch.tensor([1.0, 1000.0])}, tmp_path / "a")
    save_file({"x": torch.tensor([1.0, other])}, tmp_path / "b")
    assert run("--compare", tmp_path / "a", tmp_path / "b")[0] == bad
    assert run("--compare", tmp_path / "b", tmp_path / "a")[0] == bad
    if other == float("inf"):
        assert run("--compare", tmp_path / "b", tmp_path / "b")[0] == 1


def test_ids_and_masks_must_be_equal_whatever_the_tolerance(run, tmp_path):
    for name, ids in (("a", [1000000, 3]), ("b", [1000001, 3])):
        save_file({"ids": torch.tensor(ids), "mask": torch.tensor([True, False])}, tmp_path / name)
    status, table, _ = run("--compare", tmp_path / "a", tmp_path / "b", "--tolerance", 1)
    assert status == 1 and off_names(table) == ["ids"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "either a file to write or --compare"),
        (("out", "--compare", "a", "b"), "either a file to write or --compare"),
        (("--compare", "nowhere", "no"), "nowhere"),
        (("out", "--temperature", "0.5"), "--temperature does not apply"),
        (("out", "--json"), "--json does not apply"),
        (("out", "--model", "nowhere"), "nowhere"),
        (("out", "--max-new-tokens", "0"), "--max-new-tokens"),
    ],
)
def test_user_errors_print_one_line_and_exit_with_status_2(run, flags, message):
    status, out, err = run(*flags)
    assert status == 2 and out == "" and message in err and err.count("\n") == 1


def test_a_file_that_cannot_be_written_is_a_user_error(run, folder, tmp_path):
    status, _, err = run(tmp_path / "no" / "x.safetensors", "--model", folder, "--prompt", "hi")
    assert status == 2 and "cannot write" in err


def test_a_trace_takes_plain_products_and_leaves_the_model_as_it_was(vita):
    """With the default kernels, generation alone takes the fast products: a trace of it must not."""
    entered = []

    @contextmanager
    def fast():
        entered.append(True)
        yield

    vita.generation_products = fast
    with trace(vita):
        vita.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, eos_token_id=())
    assert not entered and vita.generation_products is fast
    vita.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, eos_token_id=())
    assert entered
    vita.generation_products = nullcontext


# ---- a porter's first hour: upstream's own tiny folder, which has no tokenizer


@pytest.fixture(scope="module")
def upstream_flags(tmp_path_factory):
    """Flags of a request to the folder of the golden cases, in token ids."""
    path = tmp_path_factory.mktemp("media")
    Image.linear_gradient("L").resize((40, 40)).convert("RGB").save(path / "x.png")
    with wave.open(str(path / "x.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes((torch.arange(8000) % 97 * 50).short().numpy().tobytes())
    return ["--model", GOLDEN / "checkpoint", "--image", path / "x.png", "--audio", path / "x.wav", "--max-tiles", "1"]


def test_a_folder_without_a_tokenizer_is_dumped_with_token_ids(run, upstream_flags, tmp_path, vita):
    out = tmp_path / "x.safetensors"
    status, _, err = run(out, *upstream_flags, "--ids", "3, -200 17,-500,9", "--deep", "--max-new-tokens", 2)
    assert status == 0, err
    with safe_open(out, framework="pt") as file:
        assert file.get_tensor("token_ids").tolist() == [[3, IMAGE, 17, AUDIO, 9]]
        tiles, bank = file.get_tensor("vision.0.tiles"), file.get_tensor("audio.0.fbank")
        want = vita(torch.tensor([[3, IMAGE, 17, AUDIO, 9]]), images=[tiles], audios={"audios": [bank]}).logits[:, -1]
        close(file.get_tensor("logits"), want, LOGITS)
        assert file.get_tensor("tokens")[0, 0] == want.argmax()


@pytest.mark.parametrize(
    "ids, more, message",
    [
        ("3,-200,4", (), "1 sound was given|1 audio was given|0 audio placeholders"),
        ("3,-200,-200,-500", (), "2 image placeholders"),
        ("3,x", (), "expected integers"),
        ("", (), "--ids is empty|placeholders"),
        ("3,-200,-500", ("--prompt", "hi"), "--ids is the whole prompt"),
        ("3,-200,-500,99999", (), "token ids must be in 0"),
    ],
)
def test_ids_that_do_not_fit_are_refused_in_one_line(run, upstream_flags, tmp_path, ids, more, message):
    status, out, err = run(tmp_path / "x", *upstream_flags, "--ids", ids, *more)
    assert status == 2 and out == "" and err.count("\n") == 1
    assert re.search(message, err), err


# ---- comparing with a port


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
@pytest.mark.parametrize("kind", [torch.float32, torch.long])
def test_a_comparison_gives_the_index_of_the_number_that_differs_most(run, tmp_path, shape, kind):
    for place in range(torch.Size(shape).numel()):
        x = torch.arange(torch.Size(shape).numel()).reshape(shape).to(kind)
        y = x.clone()
        y.view(-1)[place] += 5
        y.view(-1)[place - 1] -= 3
        save_file({"x": x}, tmp_path / "a")
        save_file({"x": y}, tmp_path / "b")
        status, table, _ = run("--compare", tmp_path / "a", tmp_path / "b")
        index = next(list(i) for i in product(*map(range, shape)) if y[i] == x[i] + 5)
        assert status == 1 and f"  {index}  OFF" in table


@pytest.mark.parametrize("left_out", [1, 2])
def test_a_missing_batch_axis_is_no_difference(run, tmp_path, left_out):
    x = torch.randn(1, 1, 3, 4) if left_out == 2 else torch.randn(1, 3, 4)
    y = x.reshape(3, 4).contiguous()
    save_file({"x": x}, tmp_path / "a")
    save_file({"x": y}, tmp_path / "b")
    for pair in (("a", "b"), ("b", "a")):
        status, table, _ = run("--compare", *(tmp_path / name for name in pair))
        assert status == 0 and "in B [" in table and table.endswith("1 agree, 0 missing, 0 surplus\n")
    y[2, 1] += 1
    save_file({"x": y}, tmp_path / "b")
    assert "[2, 1]  OFF" in run("--compare", tmp_path / "a", tmp_path / "b")[1]
    save_file({"x": x.reshape(-1, 3, 2)}, tmp_path / "b")  # another shape, not a missing axis
    assert run("--compare", tmp_path / "a", tmp_path / "b")[0] == 1


def test_common_compares_what_both_files_have(run, tmp_path):
    save_file({"x": torch.ones(2), "only_a": torch.ones(1)}, tmp_path / "a")
    save_file({"x": torch.ones(2), "only_b": torch.ones(1)}, tmp_path / "b")
    save_file({"y": torch.ones(2)}, tmp_path / "other")
    status, table, _ = run("--compare", tmp_path / "a", tmp_path / "b", "--common")
    assert status == 0 and "only_a" not in table and "1 agree, 1 missing, 1 surplus, which --common passes over" in table
    assert run("--compare", tmp_path / "a", tmp_path / "b")[0] == 1
    save_file({"x": torch.zeros(2)}, tmp_path / "b")
    assert run("--compare", tmp_path / "a", tmp_path / "b", "--common")[0] == 1
    status, _, err = run("--compare", tmp_path / "a", tmp_path / "other", "--common")
    assert status == 2 and "no tensor in common" in err
    assert run(tmp_path / "out", "--common")[0] == 2


PORTING = (GOLDEN / "README.md").read_text(encoding="utf-8").partition("## Port VITA in a day")[2]


def test_the_commands_of_the_first_hour_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(GOLDEN.parents[1])
    commands = [line.split()[2:] for line in PORTING.splitlines() if line.startswith("python tools/dump.py ")]
    *writing, comparing = commands
    for out, *request in writing:
        status, _, err = run(tmp_path / out, *request)
        assert status == 0, err
    with safe_open(tmp_path / writing[0][0], framework="pt") as file:
        port = {name: file.get_tensor(name) for name in list(file.keys())[:5]}
    port = {name: t[0].contiguous() if t.dim() and t.shape[0] == 1 else t for name, t in port.items()}
    save_file(port, tmp_path / "port.safetensors")
    flags = [str(tmp_path / word) if word.endswith(".safetensors") else word for word in comparing]
    status, table, _ = run(*flags)
    assert status == 0 and table.splitlines()[-1].startswith("5 agree")


def test_the_recipe_names_tensors_and_cases_that_exist(vita):
    rows = [line for line in PORTING.splitlines() if line.startswith("| ") and line[2].isdigit()]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[3])}
    tensors = {*record_answer(vita, deep=True), "tokens", "token_ids"}
    cases = {file.stem for file in (GOLDEN / "cases").iterdir()}
    for name in named - {"ours", "image"}:
        found = fnmatch.filter(tensors | cases, name) or [t for t in tensors if t.endswith(name)]
        assert found, name
