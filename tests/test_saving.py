"""A saved model is the model: the same values, config, tokenizer and answers, quantised or not."""

import json

import pytest
import torch
from conftest import GOLDEN
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vita_ref import Vita
from vita_ref.files import saving
from vita_ref.files.checkpoint import find_tensors

FOLDER = GOLDEN / "checkpoint"


def logits(vita):
    with torch.inference_mode():
        return vita(torch.arange(1, 12)[None]).logits


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int4", "dtype": "bfloat16"}])
def test_what_was_saved_is_read_again_without_flags(tmp_path, options):
    vita = Vita.from_pretrained(FOLDER, **options)
    vita.save_pretrained(tmp_path / "a")
    again = Vita.from_pretrained(tmp_path / "a")
    assert logits(again).equal(logits(vita)) and not again.training
    method = options.get("quantize")
    assert (again.config.quantization and again.config.quantization.method) == method
    assert again.config.dtype == options.get("dtype", "float32")
    again.save_pretrained(tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_the_demo_keeps_its_tokenizer_template_and_answers(tmp_path):
    vita = Vita.from_pretrained()
    vita.save_pretrained(tmp_path)
    again, picture = Vita.from_pretrained(tmp_path), "weights/demo/example.jpg"
    assert again.config == vita.config and again.respond("What color is the star?", [picture]) == "Blue."


def test_many_shards_are_listed_in_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SHARD", 20_000)
    vita = Vita.from_pretrained(FOLDER)
    vita.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = find_tensors(tmp_path)
    assert len(set(files.values())) > 2 and {name: file.name for name, file in files.items()} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in vita.state_dict().values())
    assert logits(Vita.from_pretrained(tmp_path)).equal(logits(vita))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("shard", [1, 2])
def test_a_folder_that_cannot_be_finished_is_not_left_behind(tmp_path, monkeypatch, shard, error, there):
    def save(tensors, path, metadata):
        if path.name == f"shard-{shard}":
            path.write_bytes(b"half")
            raise error
        save_file(tensors, path, metadata)

    monkeypatch.setattr(saving, "SHARD", 20_000)
    monkeypatch.setattr(saving, "save_file", save)
    if there:
        (tmp_path / "out").mkdir()
    kind = ValueError if isinstance(error, SafetensorError) else type(error)
    with pytest.raises(kind, match="cannot be written: No space" if kind is ValueError else None):
        Vita.from_pretrained(FOLDER).save_pretrained(tmp_path / "out")
    assert [*tmp_path.rglob("*")] == ([tmp_path / "out"] if there else [])


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("loaded", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("converted", [torch.float32, torch.bfloat16, torch.float16])
def test_a_quantised_model_that_is_converted_keeps_its_steps_and_can_be_saved(tmp_path, method, loaded, converted):
    vita = Vita.from_pretrained(FOLDER, quantize=method, dtype=loaded)
    head = vita.decoder.lm_head
    head.weight_scale *= 2.0**-20  # too small for float16
    before = head.weight_scale.clone()
    vita.to(converted)
    assert head.weight_scale.equal(before) and head.weight_scale.dtype == before.dtype
    vita.save_pretrained(tmp_path)
    for dtype in ("bfloat16", "float32"):
        assert logits(Vita.from_pretrained(tmp_path, dtype=dtype)).abs().max() > 0
    assert logits(Vita.from_pretrained(tmp_path)).equal(logits(vita))


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_steps_of_another_dtype_are_refused_by_name(tmp_path, method, dtype):
    Vita.from_pretrained(FOLDER, quantize=method).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    right = tensors["lm_head.weight_scale"].dtype
    tensors["lm_head.weight_scale"] = tensors["lm_head.weight_scale"].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    if dtype == right:
        assert Vita.from_pretrained(tmp_path)
    else:
        with pytest.raises(ValueError, match=r"dtype not read here: lm_head\.weight_scale .*, expected B?F(16|32) "):
            Vita.from_pretrained(tmp_path)


def test_a_folder_that_is_not_empty_and_a_model_from_no_folder_are_refused(tmp_path):
    vita = Vita.from_pretrained(FOLDER)
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        vita.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        vita.save_pretrained(tmp_path / "x")
    vita.folder, vita.tokenizer = None, object()
    with pytest.raises(ValueError, match="not read from a folder"):
        vita.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_quantised_folder_is_read_strictly_and_excludes_other_options(tmp_path):
    Vita.from_pretrained(FOLDER, quantize="int4").save_pretrained(tmp_path)
    assert Vita.from_pretrained(tmp_path, quantize="int4").config.quantization.method == "int4"
    for options, message in (
        ({"quantize": "int8"}, "weights are int4 already"),
        ({"pack": True}, "int4 and cannot be packed"),
        ({"split": True}, "int4 and cannot be split"),
    ):
        with pytest.raises(ValueError, match=message):
            Vita.from_pretrained(tmp_path, **options)
    config = json.loads((tmp_path / "config.json").read_text())
    for changed, message in (
        ({"method": "int8"}, "dtype not read here|misshapen"),
        ({"method": "int4", "group_size": 64}, "misshapen"),
        ({"method": "int3"}, "method must be one of int8, int4"),
        ({"method": "int4"}, "group_size must be an even number for int4"),
        (None, "surplus"),
    ):
        config["quantization"] = changed
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            Vita.from_pretrained(tmp_path)
