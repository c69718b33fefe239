"""Loading: exact names, exact shapes, one copy; every fault told with its tensor and its file."""

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from vita_ref import Vita, VitaConfig
from vita_ref.config import DecoderConfig
from vita_ref.decoder import Decoder
from vita_ref.files import checkpoint
from vita_ref.model import TABLE

INDEX = "model.safetensors.index.json"
PREFIXES = {"decoder.": "model.", "decoder.lm_head.": "lm_head.", "stats.": "measured."}
few = settings(max_examples=30, deadline=None)
shardings = st.integers(1, 4)


class Small(nn.Module):
    """A decoder, and a norm with buffers of which one is an integer."""

    def __init__(self, tied=False):
        super().__init__()
        self.decoder = Decoder(DecoderConfig(29, 6, 11, 2, 2, 1, 4, tie_word_embeddings=tied))
        self.stats = nn.BatchNorm1d(5)


def on_meta(tied=False):
    with torch.device("meta"):
        return Small(tied)


def named(tied=False):
    """Checkpoint names and random tensors for `Small`."""
    found = {}
    for own, tensor in on_meta(tied).state_dict().items():
        name = own.removeprefix("decoder.")
        name = name if name.startswith("lm_head") else name.replace("stats.", "measured.")
        name = name if name.startswith(("lm_head", "measured")) else "model." + name
        rows = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(found)))
        found[name] = torch.tensor(77) if tensor.dtype == torch.long else rows
    return found


NAMES = sorted(named())


def written(folder, tensors, shards=1):
    """The tensors as one file, or dealt out to shards with their index; gives name -> file name."""
    folder = Path(folder)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return dict.fromkeys(tensors, "model.safetensors")
    where = {n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(tensors)}
    for file in set(where.values()):
        save_file({n: t for n, t in tensors.items() if where[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def load(folder, module=None, **options):
    return checkpoint.load_weights(module or on_meta(), PREFIXES, checkpoint.find_tensors(folder), **options)


def complaint(call, *arguments, **options):
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what comes in


@few
@given(st.booleans(), shardings)
def test_every_tensor_comes_in_whatever_file_it_lies_in(tied, shards):
    with tempfile.TemporaryDirectory() as folder:
        written(folder, named(tied), shards)
        module = load(folder, on_meta(tied))
    want = named(tied)
    assert len(want) == len(module.state_dict())
    for name, own in checkpoint.module_names(module, PREFIXES).items():
        got = module.get_parameter(own) if own in dict(module.named_parameters()) else module.get_buffer(own)
        assert got.equal(want[name]) and not got.requires_grad and got.dtype == want[name].dtype
    assert ("lm_head.weight" in want) != tied


def test_the_longest_prefix_that_fits_gives_the_name():
    names = checkpoint.module_names(on_meta(), PREFIXES)
    assert names["lm_head.weight"] == "decoder.lm_head.weight"
    assert names["model.norm.weight"] == "decoder.norm.weight"
    assert sorted(names) == NAMES and len(set(names.values())) == len(names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, None])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_floating_tensors_take_the_dtype_and_integers_stay(tmp_path, dtype, stored):
    tensors = {n: t.to(stored) if t.is_floating_point() else t for n, t in named().items()}
    written(tmp_path, tensors)
    module = load(tmp_path, dtype=dtype)
    for name, own in checkpoint.module_names(module, PREFIXES).items():
        got = module.state_dict()[own]
        integer = name.endswith("num_batches_tracked")
        assert got.dtype == (torch.long if integer else dtype or stored)
        assert got.equal(tensors[name] if integer else tensors[name].to(dtype or stored))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_weights_have_nothing_more_to_do_with_the_file(tmp_path, dtype):
    written(tmp_path, named())
    module = load(tmp_path, dtype=dtype)
    file = tmp_path / "model.safetensors"
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(file) not in maps.read_text()
    with open(file, "r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert module.decoder.norm.weight.equal(named()["model.norm.weight"])
    module.decoder.norm.weight.data.add_(1)  # and they can be written to


def maps_of(file):
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see what is mapped")
@few
@given(st.booleans(), shardings, st.sampled_from([None, torch.float32]))
def test_mapped_weights_are_those_of_the_file_whatever_becomes_of_its_name(tied, shards, dtype):
    with tempfile.TemporaryDirectory() as folder:
        where, want = written(folder, named(tied), shards), named(tied)
        module = load(folder, on_meta(tied), dtype=dtype, mmap=True)
        files = {Path(folder) / name for name in where.values()}
        held = {file for name, file in where.items() if want[name].is_floating_point()}
        assert [len(maps_of(f)) for f in sorted(files)] == [f.name in held for f in sorted(files)]
        sizes = {f: f.read_bytes() for f in files}
        module.decoder.norm.weight.add_(1)  # they may be written to; the file stays as it is
        assert {f: f.read_bytes() for f in files} == sizes
        for file in files:  # as a download replaces them
            (new := file.with_suffix(".new")).write_bytes(bytes(len(sizes[file])))
            new.replace(file)
    module.decoder.norm.weight.sub_(1)
    for name, own in checkpoint.module_names(module, PREFIXES).items():
        got = module.state_dict()[own]
        torch.testing.assert_close(got, want[name], atol=1e-6 if own == "decoder.norm.weight" else 0, rtol=0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see what is mapped")
def test_what_needs_another_dtype_is_copied_and_the_map_let_go(tmp_path):
    written(tmp_path, named())
    module = load(tmp_path, dtype=torch.bfloat16, mmap=True)
    assert not maps_of(tmp_path / "model.safetensors")
    assert module.decoder.norm.weight.equal(named()["model.norm.weight"].bfloat16())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see what is mapped")
@pytest.mark.parametrize("options", [{}, {"mmap": False}, {"quantize": "int8"}, {"dtype": torch.bfloat16}])
def test_a_model_stays_in_its_file_unless_told_otherwise_or_its_numbers_change(tmp_path, options):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "model")
    vita = Vita.from_pretrained(tmp_path / "model", **options)
    assert bool(maps_of(tmp_path / "model" / "model-00001-of-00005.safetensors")) == (not options)
    assert vita.decoder.norm.weight.equal(Vita.from_pretrained(GOLDEN / "checkpoint", **options).decoder.norm.weight)


LOADING = """
import re, sys
from pathlib import Path
import torch
from torch import nn
from vita_ref.files import checkpoint

folder, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with torch.device("meta"):
    module = nn.ModuleList(nn.Module() for _ in range(count))
    for part in module:
        part.weight = nn.Parameter(torch.empty(size))

def held():  # bytes of memory, what is mapped and was read too
    lines = re.findall(r"Rss(?:Anon|File):\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * sum(map(int, lines))

files, seen = checkpoint.find_tensors(folder), []
before = held()
mmap = sys.argv[4] == "mapped"
checkpoint.load_weights(module, {"": ""}, files, mmap=mmap, progress=lambda done, total: seen.append(held() - before))
print(len(seen), max(seen))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see the memory of a process")
@pytest.mark.parametrize("kind", ["copied", "mapped"])
def test_loading_takes_the_memory_of_the_weights_and_no_second_copy(tmp_path, kind):
    count, size = 12, 4 << 20
    save_file({f"{i}.weight": torch.full((size,), float(i)) for i in range(count)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", LOADING, str(tmp_path), str(count), str(size), kind]
    told, most = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    weights = count * size * 4
    assert told == count and weights / 2 < most < weights + 2**26 + 2 * size * 4


def test_a_single_file_is_read_even_where_the_index_of_an_older_save_lies_beside_it(tmp_path):
    written(tmp_path, {n: t + 1 for n, t in named().items()}, 2)
    save_file(named(), tmp_path / "model.safetensors")
    assert load(tmp_path).decoder.norm.weight.equal(named()["model.norm.weight"])


def test_progress_counts_every_tensor_once(tmp_path):
    written(tmp_path, named(), 3)
    told = []
    load(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, len(NAMES)) for i in range(len(NAMES))]


def test_another_way_to_put_a_tensor_in_place_gets_module_name_and_tensor(tmp_path):
    written(tmp_path, named())
    got = {}
    module = on_meta()
    load(tmp_path, module, assign=lambda owner, leaf, tensor: got.update({(id(owner), leaf): tensor}))
    assert len(got) == len(NAMES)
    assert got[id(module.decoder.norm), "weight"].equal(named()["model.norm.weight"])
    assert module.decoder.norm.weight.is_meta


# ---- what does not fit


@few
@given(st.sampled_from(NAMES), shardings)
def test_a_tensor_that_is_missing_is_named_with_the_files(name, shards):
    with tempfile.TemporaryDirectory() as folder:
        tensors = {n: t for n, t in named().items() if n != name}
        where, module = written(folder, tensors, shards), on_meta()
        told = complaint(load, folder, module)
        assert all(p.is_meta for p in module.state_dict().values())  # nothing was read
    assert "missing" in told and name in told and str(list(named()[name].shape)) in told
    assert "surplus" not in told and "misshapen" not in told
    assert min(where.values()) in told and max(where.values()) in told and folder in told


@few
@given(st.sampled_from(["model.layers.2.mlp.up_proj.weight", "other", "lm_head.bias"]), shardings)
def test_a_tensor_too_many_is_named_with_its_file(name, shards):
    with tempfile.TemporaryDirectory() as folder:
        where = written(folder, named() | {name: torch.zeros(3, 13)}, shards)
        told = complaint(load, folder)
        assert checkpoint.find_tensors(folder)[name].name == where[name]
        load(folder, ignored=[name[:5]])  # unless its beginning is ignored
    assert re.search(rf"surplus: {name} \[3, 13\] \(in {where[name]}\)", told)
    assert "missing" not in told and "misshapen" not in told


@few
@given(st.sampled_from(NAMES), shardings, st.sampled_from(["longer", "flat", "turned"]))
def test_a_misshapen_tensor_is_named_with_both_shapes_and_its_file(name, shards, change):
    tensors = named()
    old = tensors[name]
    new = old[None] if old.dim() == 0 else torch.cat([old, old])
    if change == "flat" and old.dim() == 2:
        new = old.flatten()
    if change == "turned" and old.dim() == 2 and old.shape[0] != old.shape[1]:
        new = old.T.contiguous()
    with tempfile.TemporaryDirectory() as folder:
        where = written(folder, tensors | {name: new}, shards)
        told = complaint(load, folder)
    assert f"misshapen: {name} {list(new.shape)}, expected {list(old.shape)} (in {where[name]})" in told
    assert "missing" not in told and "surplus" not in told


def test_all_faults_stand_in_one_error(tmp_path):
    tensors = named() | {"other": torch.zeros(2), "model.norm.weight": torch.zeros(7)}
    del tensors["lm_head.weight"]
    written(tmp_path, tensors)
    told = complaint(load, tmp_path)
    for kind, name in (("missing", "lm_head.weight"), ("surplus", "other"), ("misshapen", "model.norm.weight")):
        assert f"{kind}: {name}" in told


def test_a_long_list_of_faults_is_cut_and_counted(tmp_path):
    written(tmp_path, {"other": torch.zeros(2)})
    told = complaint(load, tmp_path)
    listed = sum(name in told for name in NAMES)
    assert f"and {len(NAMES) - listed} more" in told and len(told) < 2000


def test_a_tied_model_refuses_a_head_and_an_untied_one_asks_for_it(tmp_path):
    written(tmp_path, named(tied=False))
    assert "surplus: lm_head.weight" in complaint(load, tmp_path, on_meta(tied=True))
    written(tmp_path, named(tied=True))
    assert "missing: lm_head.weight" in complaint(load, tmp_path, on_meta(tied=False))


# ---- files that are not as they should be


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    told = complaint(checkpoint.find_tensors, tmp_path)
    assert "model.safetensors" in told and INDEX in told and str(tmp_path) in told


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(tmp_path):
    where = written(tmp_path, named(), 3)
    lost = where["model.norm.weight"]
    (tmp_path / lost).unlink()
    assert lost in complaint(checkpoint.find_tensors, tmp_path)


def test_a_tensor_that_is_not_in_the_shard_of_the_index_is_named(tmp_path):
    where = written(tmp_path, named(), 3)
    other = next(f for f in where.values() if f != where["model.norm.weight"])
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where | {"model.norm.weight": other}}))
    told = complaint(checkpoint.find_tensors, tmp_path)
    assert "model.norm.weight" in told and other in told


def test_a_tensor_that_the_index_forgets_is_surplus_all_the_same(tmp_path):
    where = written(tmp_path, named() | {"other": torch.zeros(3)}, 3)
    listed = {n: f for n, f in where.items() if n != "other"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": listed}))
    assert f"surplus: other [3] (in {where['other']})" in complaint(load, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "3"])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    written(tmp_path, named(), 2)
    (tmp_path / INDEX).write_text(text)
    assert INDEX in complaint(checkpoint.find_tensors, tmp_path)


def test_a_file_without_tensors_lacks_them_all(tmp_path):
    written(tmp_path, {})
    assert f"missing: {next(iter(named()))}" in complaint(load, tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("harm", ["empty", "no header", "half", "short by a byte"])
def test_a_damaged_file_is_named(tmp_path, harm, shards):
    where = written(tmp_path, named(), shards)
    file = tmp_path / where["model.norm.weight"]
    content = file.read_bytes()
    harmed = {"empty": b"", "no header": b"x" * 500, "half": content[: len(content) // 2]}
    file.write_bytes(harmed.get(harm, content[:-1]))
    assert file.name in complaint(load, tmp_path)


# ---- whole folders


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_one_tensor_of_a_vita_folder_is_asked_for_by_name(data):
    files = {f.name: load_file(f) for f in sorted((GOLDEN / "checkpoint").glob("*.safetensors"))}
    file = data.draw(st.sampled_from(sorted(files)))
    name = data.draw(st.sampled_from(sorted(files[file])))
    drop = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(GOLDEN / "checkpoint", folder, dirs_exist_ok=True)
        index = json.loads((Path(folder) / INDEX).read_text())
        old = files[file].pop(name)
        if drop:
            del index["weight_map"][name]
        else:
            files[file][name] = torch.zeros(*old.shape, 2)
        (Path(folder) / INDEX).write_text(json.dumps(index))
        save_file(files[file], Path(folder) / file)
        told = complaint(Vita.from_pretrained, folder)
    assert f"{'missing' if drop else 'misshapen'}: {name} " in told and (drop or f"(in {file})" in told)


def test_a_vita_folder_may_have_another_vocabulary_than_its_config_says(tmp_path):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            tensors[name] = tensors[name][:-9].contiguous()
        save_file(tensors, file)
    vita = Vita.from_pretrained(tmp_path)
    assert vita.config.decoder.vocab_size == len(vita.decoder.embed_tokens.weight) == 311


def test_loaded_parameters_want_no_gradients_and_the_model_is_in_eval_mode():
    vita = Vita.from_pretrained(GOLDEN / "checkpoint", dtype=torch.bfloat16)
    assert not vita.training and not any(p.requires_grad for p in vita.parameters())
    assert all(t.dtype == torch.bfloat16 for t in vita.state_dict().values() if t.is_floating_point())


def test_the_full_size_model_has_the_names_and_shapes_of_the_released_one():
    listed = json.loads((GOLDEN / "vita-1.5-tensors.json").read_text())
    want = {}
    for pattern, entry in listed["tensors"].items():
        want |= {pattern.replace("*", str(i)): entry["shape"] for i in range(entry["count"])}
    with torch.device("meta"):
        vita = Vita(VitaConfig.preset("vita-1.5"))
    state = vita.state_dict()
    got = {name: list(state[own].shape) for name, own in checkpoint.module_names(vita, TABLE).items()}
    assert got == want and len(got) == listed["n_tensors"] == 1159
    assert sum(t.numel() for t in state.values()) == listed["total_elements"] == 8_322_947_232


def count(name):
    with torch.device("meta"):
        return sum(p.numel() for p in Vita(VitaConfig.preset(name)).decoder.parameters())


def test_the_other_presets_have_as_many_parameters_as_their_figures_say():
    assert count("qwen2-7b") == 7_615_616_512  # what Qwen2-7B's own index gives, in bfloat16: 15,231,233,024 bytes
    d, f, layers, v = 4096, 11008, 32, 151936  # the documented decoder: as many key/value heads as query heads
    layer = 4 * d * d + 3 * d + 3 * d * f + 2 * d
    assert count("documented") == 2 * v * d + layers * layer + d
    assert math.isclose(count("documented"), 7.72e9, rel_tol=1e-3)
