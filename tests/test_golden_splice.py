"""Text, images and sounds through the splice and the whole model: equal to what upstream's code gives.

Upstream needs a dummy image and a dummy sound for a sample without one; the cases mark them with the index -1. This
project takes no dummies, so they are left out here. Bounds: 5e-5 for embeddings and logits; ids, masks, positions,
labels and lengths are equal.
"""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN, case
from safetensors.torch import load_file, save_file

from vita_ref import Vita, splice
from vita_ref.inputs import audio_features, image_features
from vita_ref.splice import shared_position_ids

CLOSE = {"atol": 5e-5, "rtol": 0}
IMAGE, AUDIO, DUMMY = -200, -500, -1
SPLICES = sorted(path.stem for path in (GOLDEN / "cases").glob("*splice_*.safetensors"))
ANSWERS = sorted(path.stem for path in (GOLDEN / "cases").glob("e2e_*.safetensors"))


def table(name):
    return json.loads((GOLDEN / f"cases/{name}.json").read_text())


CONFIGS = {name: row["config"] for name, row in table("cases").items() if "config" in row}
POOL = case("pool")  # the images and filter banks that the cases name by index


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained(GOLDEN / "checkpoint")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """The checkpoint with learned rows in front of every sound: the folder and its variant, merged."""
    folder, variant = tmp_path_factory.mktemp("variant") / "checkpoint", GOLDEN / "variants/audio_prompt"
    shutil.copytree(GOLDEN / "checkpoint", folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    config |= json.loads((variant / "config_overrides.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    extra = load_file(variant / "extra.safetensors")
    save_file(extra, folder / "extra.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(extra, "extra.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return Vita.from_pretrained(folder)


def images(t):
    """The images of a case in the order of its placeholders: [3, H, W] each, or [F, 3, H, W] for a list of tiles."""
    pool, index = POOL["images"], t["images_index"]
    if "images_split" in t:
        return [pool[tiles] for tiles in index.split(t["images_split"].tolist()) if DUMMY not in tiles]
    return list(pool[index[index != DUMMY]])


def sounds(t):
    """The filter banks of a case with their lengths, None if it has no sound."""
    index = t["audios_index"][t["audios_index"] != DUMMY]
    if len(index) == 0:
        return None
    lengths = POOL["fbank_lengths"][index]
    banks = [POOL["fbank"][i, :length] for i, length in zip(index, lengths)]
    return {"audios": banks, "lengths": lengths, "lengths_for_llm": POOL["lengths_for_llm"][index]}


@pytest.mark.parametrize("name", SPLICES)
def test_the_splice_is_upstreams(name, vita, request):
    model = request.getfixturevalue("prompted") if "audio_prompt" in name else vita
    t, config = case(name), CONFIGS[name]
    side = config["tokenizer_padding_side"]
    state_labels = t["state_labels"][t["audios_index"] != DUMMY] if "state_labels" in t else None
    got = splice(
        t["input_ids"],
        model.embed,
        image_features(model, images(t)),
        audio_features(model, sounds(t)),
        t.get("in_attention_mask"),
        t.get("in_labels"),
        image_token=IMAGE,
        audio_token=AUDIO,
        padding_side=side,
        max_length=config["tokenizer_model_max_length"],
        shared_v_pid_stride=None if side == "left" else config["shared_v_pid_stride"],  # upstream ignores it on the left
        state_labels=state_labels,
    )
    torch.testing.assert_close(got.inputs_embeds, t["inputs_embeds"], **CLOSE)
    real = t["inputs_embeds"].ne(0).any(-1)  # [B, S]: padding is zeros; without a mask upstream returns none
    assert got.attention_mask.equal(real) and got.lengths.equal(real.sum(1))
    if "attention_mask" in t:
        assert got.attention_mask.equal(t["attention_mask"].bool())
    if "position_ids" in t:
        assert got.position_ids.equal(t["position_ids"])
    if "labels" in t:
        assert got.labels.equal(t["labels"])
    else:
        assert got.labels is None


@pytest.mark.parametrize("name", ANSWERS)
def test_the_logits_and_the_answer_are_upstreams(name, vita):
    t = case(name)
    pictures = images(t)
    given = {
        "images": torch.stack(pictures) if pictures else None,
        "audios": sounds(t),
        "attention_mask": t.get("in_attention_mask"),
        "shared_v_pid_stride": CONFIGS[name]["shared_v_pid_stride"],
    }
    assert vita.generate(t["input_ids"], max_new_tokens=12, eos_token_id=(), **given).equal(t["generated"])
    out = vita(t["input_ids"], **given)
    last = [segments[-1][2] - 1 for segments in out.segments]  # the last real column of each row
    steps = [out.logits[range(len(last)), last]]  # [B, V]
    torch.testing.assert_close(steps[0], t["last_logits"], **CLOSE)
    for ids in t["generated"][:, :-1].split(1, 1):  # [B, 1]
        out = vita(ids, cache=out.cache)
        steps.append(out.logits[:, 0])
    torch.testing.assert_close(torch.stack(steps, 1), t["step_logits"], **CLOSE)


def test_shared_positions_are_upstreams_where_upstreams_sum_is_exact():
    exact = [row for row in table("shared_positions") if row.get("equals_exact_arithmetic", True)]
    assert len(exact) > 10
    for row in exact:
        assert shared_position_ids(row["spans"], row["length"], row["stride"]).tolist() == row["positions"]


@pytest.mark.parametrize("row", table("merge_spans"), ids=lambda row: str(row["spans"]))
def test_spans_that_touch_count_as_one(row):
    """With a stride that is longer than every span, a merged span has one position id."""
    length = max((end for _, end in row["spans"]), default=0) + 1
    positions = shared_position_ids(row["spans"], length, 100).tolist()
    for start, end in row["merged"]:
        assert len(set(positions[start:end])) == 1
    assert positions[-1] + 1 == len(set(positions)) == length - sum(end - start - 1 for start, end in row["merged"])
