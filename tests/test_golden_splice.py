"""Upstream's own splices and answers: what it made of text, images and sounds, made again here.

Upstream needs a dummy for each medium that a sample lacks (an index of -1); here those are left out.
Bounds: 5e-5 for floats, exact for ids, masks, positions, labels and lengths.
"""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vita_ref import Vita, splice
from vita_ref.splice import shared_position_ids

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases/cases.json").read_text())
CLOSE = {"atol": 5e-5, "rtol": 0}
IMAGE, AUDIO = -200, -500
LENGTHS = {"lengths": "fbank_lengths", "lengths_for_llm": "lengths_for_llm"}
SPLICES = sorted(path.stem for path in (GOLDEN / "cases").glob("*splice_*.safetensors"))
ANSWERS = sorted(path.stem for path in (GOLDEN / "cases").glob("e2e_*.safetensors"))
POOL = load_file(GOLDEN / "cases/pool.safetensors")


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained(GOLDEN / "checkpoint")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """The checkpoint with learned rows in front of every sound, as the variant folder has them."""
    folder, variant = tmp_path_factory.mktemp("variant") / "checkpoint", GOLDEN / "variants/audio_prompt"
    shutil.copytree(GOLDEN / "checkpoint", folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    config |= json.loads((variant / "config_overrides.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    extra = {name: tensor for file in variant.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file(extra, folder / "extra.safetensors")
    index["weight_map"] |= dict.fromkeys(extra, "extra.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return Vita.from_pretrained(folder)


@cache
def case(name):
    return load_file(GOLDEN / f"cases/{name}.safetensors"), CASES[name]["config"]


def media(t):
    """The pictures and sounds that the placeholders take, dummies left out."""
    sizes = t["images_split"].tolist() if "images_split" in t else [1] * len(t["images_index"])
    groups = [part for part in t["images_index"].split(sizes) if -1 not in part]
    pictures = [POOL["images"][part if "images_split" in t else part[0]] for part in groups]
    heard = t["audios_index"][t["audios_index"] >= 0]
    banks = [POOL["fbank"][i, : POOL["fbank_lengths"][i]] for i in heard]
    sounds = {"audios": banks} | {name: POOL[key][heard] for name, key in LENGTHS.items()}
    return pictures, sounds if len(heard) else None


def spliced(vita, t, config):
    pictures, sounds = media(t)
    mask = t.get("in_attention_mask")
    states = t["state_labels"][t["audios_index"] >= 0] if "state_labels" in t else None
    left = config["tokenizer_padding_side"] == "left"
    return splice(
        t["input_ids"],
        vita.embed,
        vita.image_features(pictures),
        vita.audio_features(sounds),
        mask,
        t.get("in_labels"),
        image_token=IMAGE,
        audio_token=AUDIO,
        padding_side=config["tokenizer_padding_side"],
        max_length=config["tokenizer_model_max_length"],
        shared_v_pid_stride=None if left else config["shared_v_pid_stride"],  # upstream ignores it on the left
        state_labels=states,
    )


@pytest.mark.parametrize("name", SPLICES)
def test_the_splice_is_upstreams(name, vita, request):
    t, config = case(name)
    model = request.getfixturevalue("prompted") if "audio_prompt" in name else vita
    got = spliced(model, t, config)
    torch.testing.assert_close(got.inputs_embeds, t["inputs_embeds"], **CLOSE)
    real = t["inputs_embeds"].ne(0).any(-1)  # padding is zeros; upstream gives no mask where none came in
    assert got.attention_mask.equal(real) and got.lengths.equal(real.sum(1))
    if "attention_mask" in t:
        assert got.attention_mask.equal(t["attention_mask"].bool())
    if "position_ids" in t:
        assert got.position_ids.equal(t["position_ids"])
    assert ("labels" in t) == (got.labels is not None)
    assert got.labels is None or got.labels.equal(t["labels"])


@pytest.mark.parametrize("name", ANSWERS)
def test_the_answer_is_upstreams(name, vita):
    t, config = case(name)
    pictures, sounds = media(t)
    options = {
        "images": torch.stack(pictures) if pictures else None,
        "audios": sounds,
        "attention_mask": t.get("in_attention_mask"),
        "shared_v_pid_stride": config["shared_v_pid_stride"],
    }
    out = vita(t["input_ids"], **options)
    ends = [segments[-1][2] - 1 for segments in out.segments]  # the last real column of each row
    last = torch.stack([logits[end] for logits, end in zip(out.logits, ends)])
    torch.testing.assert_close(last, t["last_logits"], **CLOSE)
    assert vita.generate(t["input_ids"], max_new_tokens=12, eos_token_id=(), **options).equal(t["generated"])
    later = [vita(ids, cache=out.cache).logits[:, 0] for ids in t["generated"][:, :-1].split(1, 1)]
    steps = torch.stack([last, *later], 1)
    torch.testing.assert_close(steps, t["step_logits"], **CLOSE)


def table(name):
    return json.loads((GOLDEN / f"cases/{name}.json").read_text())


def test_shared_positions_are_upstreams_where_its_sum_is_exact():
    exact = [row for row in table("shared_positions") if row.get("equals_exact_arithmetic", True)]
    assert len(exact) > 10
    for row in exact:
        assert shared_position_ids(row["spans"], row["length"], row["stride"]).tolist() == row["positions"]


@pytest.mark.parametrize("row", table("merge_spans"), ids=lambda row: str(row["spans"]))
def test_spans_that_touch_count_as_one(row):
    """With a stride longer than all of them, each merged span is one position."""
    length = max((end for _, end in row["spans"]), default=0) + 1
    positions = shared_position_ids(row["spans"], length, 100).tolist()
    inside = [positions[start:end] for start, end in row["merged"]]
    assert all(len(set(span)) == 1 for span in inside)
    assert positions[-1] + 1 == length - sum(end - start - 1 for start, end in row["merged"])
