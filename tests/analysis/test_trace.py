"""Names and numbers: the trace holds what upstream computed, and a comparison finds the layer that was changed.

Golden numbers are upstream's own; bounds 2e-5 for the towers, 5e-5 for the decoder, exact for ids.
"""

import json
import wave
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import GOLDEN, case
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tools import dump, make_checkpoint
from vita_ref import Vita, VitaConfig
from vita_ref.analysis.trace import trace
from vita_ref.audio import encoder_position_count
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig
from vita_ref.request import Prepared

DEMO = Path(__file__).parent.parent / "weights" / "demo"
TOWER, LOGITS = {"atol": 2e-5, "rtol": 0}, {"atol": 5e-5, "rtol": 0}
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


# ---- against upstream


def test_the_eyes_layers_are_upstreams_by_name(vita):
    t, pool = case("vision"), case("pool")
    with trace(vita) as found:
        vita.encode_images(pool["images"][t["images_index"]])
    names = ["embeddings", *(f"layers.{i:02}" for i in range(len(t["hidden_states"]) - 1)), "tower", "projector"]
    assert list(found) == ["vision.0.tiles", *(f"vision.0.{name}" for name in names)]
    assert found["vision.0.tiles"].equal(pool["images"][t["images_index"]])
    for name, want in zip(names, [*t["hidden_states"], t["shuffled"], t["projected"]], strict=True):
        close(found[f"vision.0.{name}"], want, TOWER)


@pytest.mark.parametrize("name", ["audio", "audio_single"])
def test_the_ears_stages_are_upstreams_by_name_and_sound(vita, name):
    t, pool = case(name), case("pool")
    banks = pool["fbank"][t["audios_index"], : int(t["lengths"].max())]
    with trace(vita) as found:
        vita.encode_audios(banks, t["lengths"])
    assert {name.split(".")[1] for name in found} == {str(i) for i in range(len(banks))}
    for i, (n, rows) in enumerate(zip(t["lengths"].tolist(), t["lengths_for_llm"].tolist())):
        assert found[f"audio.{i}.fbank"].equal(banks[i, :n])
        close(found[f"audio.{i}.normalised"], t["cmvn_out"][i, :n], TOWER)
        close(found[f"audio.{i}.subsampled"], t["subsampling_out"][i, : encoder_position_count(n)], TOWER)
        close(found[f"audio.{i}.adapter"], t["inputs_embeds"][i, :rows], TOWER)
    close(torch.cat([found[f"audio.{i}.encoder"] for i in range(len(banks))]), t["encoder_out_valid"], TOWER)
    layers = sorted(name for name in found if name.startswith("audio.0.layers."))
    assert layers == [f"audio.0.layers.{i:02}" for i in range(vita.config.audio.num_hidden_layers)]


def test_the_decoders_layers_are_upstreams_by_name(vita):
    t, layers = case("text_single"), vita.config.decoder.num_hidden_layers
    with trace(vita, deep=True, all_logits=True) as found:
        vita(t["input_ids"])
    outputs = [f"decoder.layers.{i:02}.output" for i in range(layers - 1)]
    for name, want in zip(["spliced.inputs_embeds", *outputs, "decoder.norm"], t["hidden_states"], strict=True):
        close(found[name], want, LOGITS)
    close(found["logits"], t["logits"], LOGITS)
    assert found["spliced.attention_mask"].all() and found["spliced.position_ids"].tolist() == [list(range(17))]
    for i, weights in enumerate(t["attentions"]):  # they follow from q and k, and give v its weights
        q, k, v = (found[f"decoder.layers.{i:02}.{x}"] for x in "qkv")
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
        close(scores.softmax(-1), weights, LOGITS)
        close((weights @ v).transpose(1, 2).flatten(2), found[f"decoder.layers.{i:02}.attended"], LOGITS)


def test_keys_and_values_are_upstreams_cache(vita):
    t = case("text_incremental")
    with trace(vita, deep=True) as found:
        vita(t["input_ids"])
    for i, (keys, values) in enumerate(zip(t["key_cache"], t["value_cache"], strict=True)):
        close(found[f"decoder.layers.{i:02}.k"], keys, LOGITS)
        close(found[f"decoder.layers.{i:02}.v"], values, LOGITS)
    close(found["logits"], t["full_logits"][:, -1], LOGITS)


@pytest.mark.parametrize("name", ["e2e_image_audio", "e2e_image", "e2e_audio"])
def test_a_recorded_request_ends_in_upstreams_logits_and_tokens(vita, name):
    t, pool = case(name), case("pool")
    pictures = [pool["images"][i][None] for i in t["images_index"] if i >= 0]
    sounds = [pool["fbank"][i, : pool["fbank_lengths"][i]] for i in t["audios_index"] if i >= 0]
    found = dump.record(vita, Prepared(t["input_ids"][0], pictures, sounds), max_new_tokens=12)
    close(found["logits"], t["last_logits"], LOGITS)
    assert found["token_ids"].equal(t["input_ids"]) and found["tokens"].equal(t["generated"])
    assert ("vision.0.tiles" in found, "audio.0.fbank" in found) == (bool(pictures), bool(sounds))
    assert [*found][:: len(found) - 1] == ["token_ids", "tokens"]


def test_logits_are_those_of_the_last_real_position_on_either_side(vita):
    ids, mask = torch.tensor([[5, 6, 7, 8], [0, 9, 10, 11], [12, 13, 0, 0]]), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 0] = mask[2, 2:] = False
    with trace(vita) as found:
        vita(ids, attention_mask=mask)
    for row, real, logits in zip(ids, mask, found["logits"]):
        close(vita(row[real][None]).logits[0, -1], logits, LOGITS)
    assert found["spliced.attention_mask"].equal(mask)
    assert found["spliced.position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 0]]


# ---- what a trace is


def media(vita, tiles, sounds):
    """A prompt with a picture of each count of tiles and a sound of each length, as arguments of `Vita.inputs`."""
    generator = torch.Generator().manual_seed(7)
    pictures = [torch.randn(n, 3, 56, 56, generator=generator) for n in tiles]
    heard = [torch.randn(n, vita.config.audio.num_mel_bins, generator=generator) for n in sounds]
    ids = torch.tensor([[3, *[-200] * len(tiles), 4, *[-500] * len(sounds), 5]])
    return {"input_ids": ids, "images": pictures, "audios": {"audios": heard}}


def test_tiles_go_together_and_each_sound_stands_alone(vita):
    asked = media(vita, tiles=(1, 3, 2), sounds=(40, 95, 61))
    with trace(vita) as found:
        vita(**asked)
    assert found["vision.0.tiles"].equal(torch.cat(asked["images"])) and "vision.1.tiles" not in found
    for i, bank in enumerate(asked["audios"]["audios"]):
        assert found[f"audio.{i}.fbank"].equal(bank)
        with trace(vita) as alone:
            vita.encode_audios(bank[None], [len(bank)])
        for name in alone:
            close(found[name.replace("audio.0.", f"audio.{i}.")], alone[name], TOWER)
    rows = [found["vision.0.projector"].flatten(0, 1), *(found[f"audio.{i}.adapter"] for i in range(3))]
    embeds = found["spliced.inputs_embeds"][0]
    close(embeds[1 : 1 + len(rows[0])], rows[0], TOWER)
    close(embeds[2 + len(rows[0]) : -1], torch.cat(rows[1:]), TOWER)


def test_pictures_of_different_sizes_and_later_sounds_get_numbers_of_their_own(vita):
    with trace(vita) as found:
        vita.image_features([torch.zeros(3, 56, 56), torch.zeros(3, 84, 84)])
        vita.audio_features({"audios": [torch.zeros(40, 80), torch.zeros(50, 80)]})
        vita.audio_features({"audios": [torch.zeros(60, 80)]})
    assert [len(found[f"vision.{i}.embeddings"][0]) for i in (0, 1)] == [17, 37]
    assert [len(found[f"audio.{i}.fbank"]) for i in (0, 1, 2)] == [40, 50, 60]


def hooks(vita):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vita.modules())


def test_looking_changes_nothing_and_leaves_nothing_behind(vita):
    asked = media(vita, tiles=(2,), sounds=(70,))
    before = vita(**asked).logits
    with trace(vita, deep=True, all_logits=True) as found:
        logits = vita(**asked).logits
    assert logits.equal(before) and found["logits"].equal(before) and hooks(vita) == 0
    with pytest.raises(ValueError, match="placeholders"), trace(vita):
        vita(torch.tensor([[-200]]), images=torch.zeros(2, 3, 56, 56))
    assert hooks(vita) == 0


def test_numbers_do_not_depend_on_which_kernel_was_quickest():
    demo, ids = Vita.from_pretrained(DEMO, dtype=torch.bfloat16), torch.tensor([[9, 10, 11]])
    with patch("vita_ref.scale.products.product", side_effect=AssertionError("by the clock")):
        with trace(demo) as found:
            demo(ids)
        assert len(found) > 4 and not torch.are_deterministic_algorithms_enabled()
        with pytest.raises(AssertionError, match="by the clock"):  # what it does when nobody looks
            demo(ids)


def test_of_the_decoder_only_the_pass_over_the_prompt_is_kept(vita):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with trace(vita, deep=True) as once:
        vita(ids)
    with trace(vita, deep=True) as often:
        vita.generate(ids, max_new_tokens=4, eos_token_id=())
    assert list(once) == list(often) and all(once[name].equal(often[name]) for name in once)


def test_what_was_found_stays_when_the_input_is_written_over(vita):
    bank = torch.zeros(1, 40, 80)
    with trace(vita) as found:
        vita.encode_audios(bank, [40])
    bank.fill_(1)
    assert not found["audio.0.fbank"].any()


# ---- the program


@pytest.fixture(scope="module", params=["vita-1.5", "demo"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("some-where") / f"tiny-{request.param}"
    config = TINY if request.param == "vita-1.5" else replace(TINY, template="demo", max_tiles=3)
    make_checkpoint.write(path, request.param, seed=3, config=config)
    return path


@pytest.fixture(scope="module")
def question(tmp_path_factory):
    """Flags that show a picture of several tiles and let a sound be heard."""
    path = tmp_path_factory.mktemp("media")
    Image.linear_gradient("L").resize((90, 31)).convert("RGB").save(path / "x.png")
    samples = torch.randn(8000, generator=torch.Generator().manual_seed(1)) * 3000
    with wave.open(str(path / "x.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(samples.short().numpy().tobytes())
    flags = ["--image", path / "x.png", "--audio", path / "x.wav", "--prompt", "What, where? 你好"]
    return [str(flag) for flag in flags]


@pytest.fixture
def run(capsys):
    def call(*flags):
        try:
            status = dump.main([str(flag) for flag in flags])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_a_dump_holds_the_whole_flow_in_order_and_no_path(run, folder, question, tmp_path):
    out = tmp_path / "x.safetensors"
    status, _, err = run(out, "--model", folder, *question, "--deep", "--max-new-tokens", 3)
    assert status == 0, err
    with safe_open(out, framework="pt") as opened:
        about, held = opened.metadata(), opened.keys()
        found = {name: opened.get_slice(name).get_shape() for name in held}
    names = about["order"].split()
    assert sorted(names) == sorted(found)
    deep = ["q", "k", "v", "attended", "attention", "mlp", "output"]
    eye = ["tiles", "embeddings", "layers.00", "layers.01", "tower", "projector"]
    ear = ["fbank", "normalised", "subsampled", "input", "layers.00", "layers.01", "encoder", "adapter"]
    expected = ["token_ids", *(f"vision.0.{x}" for x in eye), *(f"audio.0.{x}" for x in ear)]
    expected += [f"spliced.{x}" for x in ("inputs_embeds", "attention_mask", "position_ids")]
    expected += [f"decoder.layers.{i:02}.{x}" for i in range(2) for x in deep]
    assert names == [*expected, "decoder.norm", "logits", "tokens"]
    length = found["spliced.inputs_embeds"][1]
    tiles = found["vision.0.tiles"][0]
    assert tiles > 1 and found["vision.0.projector"] == [tiles, 4, 24] and found["audio.0.fbank"] == [48, 80]
    assert found["decoder.layers.01.q"] == [1, 6, length, 4] and found["decoder.layers.01.k"] == [1, 3, length, 4]
    assert found["logits"] == [1, 300] and found["tokens"] == [1, 3]
    assert about["model"] == folder.name and about["prompt"] == "What, where? 你好"
    assert about["dtype"] == "float32" and about["torch"] == torch.__version__
    assert str(tmp_path.parent) not in json.dumps(about) and "some-where" not in json.dumps(about)


def test_the_same_request_twice_agrees_and_half_precision_does_not(run, folder, question, tmp_path):
    one, two, half = (tmp_path / f"{x}.safetensors" for x in ("one", "two", "half"))
    flags = ("--model", folder, *question, "--all-logits", "--max-new-tokens", 1)
    for out, *more in ((one,), (two,), (half, "--dtype", "bfloat16")):
        assert run(out, *flags, *more)[0] == 0
    status, table, _ = run("--compare", one, two)
    assert status == 0 and "OFF" not in table
    status, table, _ = run("--compare", one, half)
    assert status == 1 and table.splitlines()[-1].startswith("first off: vision.0.tiles;")
    assert {*off_names(run("--compare", one, half, "--tolerance", 10)[1])} <= {"tokens"}  # ids know no tolerance


def off_names(table):
    return [line.split()[0] for line in table.splitlines() if line.endswith("OFF")]


PLANTED = {  # a weight of the released format -> the first name that must be off
    "model.vision_tower.vision_tower.embeddings.class_embedding": "vision.0.embeddings",
    "model.vision_tower.vision_tower.encoder.layers.1.mlp.fc2.bias": "vision.0.layers.01",
    "model.mm_projector.2.weight": "vision.0.projector",
    "model.audio_encoder.encoder.global_cmvn.mean": "audio.0.normalised",
    "model.audio_encoder.encoder.enc.0.core.conv.2.weight": "audio.0.subsampled",
    "model.audio_encoder.encoder.enc.1.embed.0.bias": "audio.0.input",
    "model.audio_encoder.encoder.enc.1.encoders.0.self_attn.linear_q.weight": "audio.0.layers.00",
    "model.audio_encoder.encoder.enc.1.encoders.1.feed_forward.w_2.weight": "audio.0.layers.01",
    "model.audio_encoder.encoder.enc.1.after_norm.weight": "audio.0.encoder",
    "model.audio_encoder.adpter.conv1d2.weight": "audio.0.adapter",
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
def asked(folder, question):
    """A model, a prepared request, and its record as it should be."""
    vita = Vita.from_pretrained(folder)
    flags = dump.parser().parse_args(["out", *question])
    ready = dump.prepare(dump.generate.requests(flags)[0], vita.config, vita.tokenizer)
    return vita, ready, dump.record(vita, ready, deep=True, max_new_tokens=1)


@pytest.mark.parametrize("weight", PLANTED)
def test_a_planted_change_in_one_layer_is_named_first(run, asked, weight, tmp_path):
    vita, ready, right = asked
    state = vita.state_dict()
    own = make_checkpoint.module_names(vita, make_checkpoint.PREFIXES)[weight]
    before = state[own].clone()
    try:
        state[own] += 0.1 * torch.randn(before.shape, generator=torch.Generator().manual_seed(2))
        wrong = dump.record(vita, ready, deep=True, max_new_tokens=1)
    finally:
        state[own].copy_(before)
    for name, found in (("a", right), ("b", wrong)):
        dump.save(tmp_path / name, found, model="x", prompt="x", dtype="float32")
    status, table, _ = run("--compare", tmp_path / "a", tmp_path / "b")
    assert status == 1 and off_names(table)[0] == PLANTED[weight]
    assert table.splitlines()[-1].startswith(f"first off: {PLANTED[weight]};")
    names = [line.split()[0] for line in table.splitlines()[1:-1]]
    assert names == list(right)  # the rows stand in the order of the flow


def test_missing_and_surplus_names_and_wrong_shapes_are_told(run, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    numbers = {"z": torch.arange(6.0), "m": torch.ones(2, 3), "ids": torch.tensor([7]), "a": torch.zeros(0)}
    dump.save(a, numbers, model="x", prompt="x", dtype="float32")
    held = {"z": numbers["z"], "ids": torch.tensor([7], dtype=torch.int32), "a": torch.zeros(0), "new": torch.ones(1)}
    save_file(held, b)
    status, table, _ = run("--compare", a, b)  # b has no order of its own
    rows = dict(line.split(maxsplit=1) for line in table.splitlines())
    assert rows["m"] == "missing: only in A" and rows["new"] == "surplus: only in B"
    assert status == 1 and table.endswith("3 agree, 1 missing, 1 surplus\n")
    assert [line.split()[0] for line in table.splitlines()[1:6]] == ["z", "m", "ids", "a", "new"]
    assert run("--compare", a, a)[0] == 0
    status, table, _ = run("--compare", b, a)  # the other way about: a's order still holds
    assert [line.split()[0] for line in table.splitlines()[1:6]] == ["z", "m", "ids", "a", "new"] and status == 1
    save_file(numbers | {"m": torch.ones(3, 2)}, b)
    status, table, _ = run("--compare", a, b)
    assert status == 1 and "[2, 3], in B [3, 2]" in table and "first off: m;" in table


@pytest.mark.parametrize("other, bad", [(1000.05, False), (1000.2, True), (float("nan"), True), (float("inf"), True)])
def test_a_number_is_off_by_the_largest_of_its_tensor(run, tmp_path, other, bad):
    save_file({"x": torch.tensor([1.0, 1000.0])}, tmp_path / "a")
    save_file({"x": torch.tensor([1.0, other])}, tmp_path / "b")
    assert run("--compare", tmp_path / "a", tmp_path / "b")[0] == bad
    assert run("--compare", tmp_path / "b", tmp_path / "a")[0] == bad
    if other == float("inf"):
        assert run("--compare", tmp_path / "b", tmp_path / "b")[0] == 1


def test_ids_and_masks_agree_exactly_or_not_at_all(run, tmp_path):
    for name, ids in (("a", [1000000, 3]), ("b", [1000001, 3])):
        save_file({"ids": torch.tensor(ids), "mask": torch.tensor([True, False])}, tmp_path / name)
    status, table, _ = run("--compare", tmp_path / "a", tmp_path / "b", "--tolerance", 1)
    assert status == 1 and off_names(table) == ["ids"]


@pytest.mark.parametrize(
    "flags, said",
    [
        ((), "either a file to write or --compare"),
        (("out", "--compare", "a", "b"), "either a file to write or --compare"),
        (("--compare", "nowhere", "no"), "nowhere"),
        (("out", "--temperature", "0.5"), "does not take --temperature"),
        (("out", "--json"), "does not take --json"),
        (("out", "--model", "nowhere"), "nowhere"),
        (("out", "--max-new-tokens", "0"), "--max-new-tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, flags, said):
    status, out, err = run(*flags)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1


def test_a_file_that_cannot_be_written_is_refused(run, folder, tmp_path):
    status, _, err = run(tmp_path / "no" / "x.safetensors", "--model", folder, "--prompt", "hi")
    assert status == 2 and "cannot write" in err
