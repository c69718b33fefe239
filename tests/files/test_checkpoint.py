"""Loading weights: exact names, exact shapes, no second copy; every fault names its tensor and its file."""

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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from vita_ref import Vita, VitaConfig
from vita_ref.config import DecoderConfig
from vita_ref.decoder import Decoder
from vita_ref.files import checkpoint
from vita_ref.files.names import PREFIXES as VITA_PREFIXES

INDEX = "model.safetensors.index.json"
PREFIXES = {"decoder.": "model.", "decoder.lm_head.": "lm_head.", "stats.": "measured."}
MAPS = Path("/proc/self/maps")
sees_maps = pytest.mark.skipif(not MAPS.exists(), reason="needs Linux to see which files are mapped")
few = settings(max_examples=15, deadline=None)
shardings = st.integers(1, 4)


class Small(nn.Module):
    """A decoder, and a batch norm, whose buffers are two floating tensors and one integer."""

    def __init__(self, tied=False):
        super().__init__()
        self.decoder = Decoder(DecoderConfig(29, 6, 11, 2, 2, 1, 4, tie_word_embeddings=tied))
        self.stats = nn.BatchNorm1d(5)


def on_meta(tied=False):
    with torch.device("meta"):
        return Small(tied)


def checkpoint_name(own):
    """What `PREFIXES` make of a name of `Small`, written out."""
    if own.startswith("decoder.lm_head."):
        return own.removeprefix("decoder.")
    if own.startswith("decoder."):
        return "model." + own.removeprefix("decoder.")
    return "measured." + own.removeprefix("stats.")


def make_tensors(tied=False):
    """Random tensors for `Small` under their checkpoint names."""
    tensors = {}
    for own, empty in on_meta(tied).state_dict().items():
        random = torch.randn(empty.shape, generator=torch.Generator().manual_seed(len(tensors)))
        tensors[checkpoint_name(own)] = torch.tensor(77) if empty.dtype == torch.long else random
    return tensors


NAMES = sorted(make_tensors())


def write(folder, tensors, shards=1):
    """Writes one file, or several with their index; gives tensor name -> file name."""
    folder = Path(folder)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return dict.fromkeys(tensors, "model.safetensors")
    where = {n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(tensors)}
    for file in set(where.values()):
        save_file({n: t for n, t in tensors.items() if where[n] == file}, folder / file)
    write_index(folder, where)
    return where


def write_index(folder, where):
    (Path(folder) / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def load(folder, module=None, **options):
    return checkpoint.load_weights(module or on_meta(), PREFIXES, checkpoint.find_tensors(folder), **options)


def loaded_tensors(module):
    """The tensors of a loaded module under their checkpoint names."""
    return {checkpoint_name(own): tensor for own, tensor in module.state_dict().items()}


def refused(call, *arguments, **options):
    """The message of the ValueError of a call, which is one line."""
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- loading


@few
@given(st.booleans(), shardings)
def test_every_tensor_is_loaded_from_whichever_file_holds_it(tied, shards):
    expected = make_tensors(tied)
    with tempfile.TemporaryDirectory() as folder:
        write(folder, expected, shards)
        module = load(folder, on_meta(tied))
    loaded = loaded_tensors(module)
    assert loaded.keys() == expected.keys() and ("lm_head.weight" in loaded) != tied
    for name, tensor in loaded.items():
        assert tensor.equal(expected[name]) and tensor.dtype == expected[name].dtype
    assert not any(p.requires_grad for p in module.parameters())


def test_the_longest_matching_prefix_gives_the_checkpoint_name():
    names = checkpoint.module_names(on_meta(), PREFIXES)
    assert names["lm_head.weight"] == "decoder.lm_head.weight"
    assert names["model.norm.weight"] == "decoder.norm.weight"
    assert names == {checkpoint_name(own): own for own in on_meta().state_dict()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, None])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_floating_tensors_get_the_dtype_and_integers_keep_theirs(tmp_path, dtype, stored):
    tensors = {n: t.to(stored) if t.is_floating_point() else t for n, t in make_tensors().items()}
    write(tmp_path, tensors)
    for name, tensor in loaded_tensors(load(tmp_path, dtype=dtype)).items():
        expected = tensors[name]
        if name != "measured.num_batches_tracked":
            expected = expected.to(dtype or stored)
        assert tensor.dtype == expected.dtype and tensor.equal(expected)


def test_a_single_file_is_read_although_the_index_of_an_older_save_is_next_to_it(tmp_path):
    write(tmp_path, {n: t + 1 for n, t in make_tensors().items()}, shards=2)
    save_file(make_tensors(), tmp_path / "model.safetensors")
    assert load(tmp_path).decoder.norm.weight.equal(make_tensors()["model.norm.weight"])


def test_progress_counts_every_tensor_once(tmp_path):
    write(tmp_path, make_tensors(), shards=3)
    calls = []
    load(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, len(NAMES)) for i in range(len(NAMES))]


def test_assign_gets_owner_leaf_and_tensor_in_place_of_set_param(tmp_path):
    write(tmp_path, make_tensors())
    module, calls = on_meta(), {}
    load(tmp_path, module, assign=lambda owner, leaf, tensor: calls.update({(id(owner), leaf): tensor}))
    assert len(calls) == len(NAMES)
    assert calls[id(module.decoder.norm), "weight"].equal(make_tensors()["model.norm.weight"])
    assert module.decoder.norm.weight.is_meta


@pytest.mark.parametrize("mmap", [False, True])
def test_part_gives_the_view_of_each_tensor_that_is_loaded(tmp_path, mmap):
    write(tmp_path, make_tensors(), shards=2)

    def first_two_rows(name, tensor):
        return tensor[:2] if name.endswith("q_proj.weight") else tensor

    loaded = loaded_tensors(load(tmp_path, part=first_two_rows, mmap=mmap))
    for name, tensor in make_tensors().items():
        assert loaded[name].equal(tensor[:2] if name.endswith("q_proj.weight") else tensor)


# ---- memory


def maps_of(file):
    """The lines of this process's memory map that belong to a file."""
    return [line for line in MAPS.read_text().splitlines() if line.endswith(str(file))]


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_copied_weights_do_not_depend_on_the_file_any_more(tmp_path, dtype):
    write(tmp_path, make_tensors())
    module = load(tmp_path, dtype=dtype)
    file = tmp_path / "model.safetensors"
    if MAPS.exists():
        assert maps_of(file) == []
    with open(file, "r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert module.decoder.norm.weight.equal(make_tensors()["model.norm.weight"])
    module.decoder.norm.weight.data.add_(1)  # they can be written to


@sees_maps
@few
@given(st.booleans(), shardings, st.sampled_from([None, torch.float32]))
def test_mapped_weights_keep_their_values_when_they_are_written_to_or_the_file_is_replaced(tied, shards, dtype):
    expected = make_tensors(tied)
    with tempfile.TemporaryDirectory() as folder:
        where = write(folder, expected, shards)
        module = load(folder, on_meta(tied), dtype=dtype, mmap=True)
        files = sorted(Path(folder) / name for name in {*where.values()})
        for file in files:  # one map for each file with a floating tensor
            floating = [n for n, name in where.items() if name == file.name and expected[n].is_floating_point()]
            assert len(maps_of(file)) == (1 if floating else 0)
        contents = {file: file.read_bytes() for file in files}
        module.decoder.norm.weight.add_(1)
        assert {file: file.read_bytes() for file in files} == contents
        for file in files:  # replaced by zeros as a download would: a new file takes the name
            (new := file.with_suffix(".new")).write_bytes(bytes(len(contents[file])))
            new.replace(file)
    loaded = loaded_tensors(module)
    assert loaded.pop("model.norm.weight").equal(expected["model.norm.weight"] + 1)
    assert all(tensor.equal(expected[name]) for name, tensor in loaded.items())


@sees_maps
def test_weights_that_change_their_dtype_are_copied_and_the_map_is_closed(tmp_path):
    write(tmp_path, make_tensors())
    module = load(tmp_path, dtype=torch.bfloat16, mmap=True)
    assert maps_of(tmp_path / "model.safetensors") == []
    assert module.decoder.norm.weight.equal(make_tensors()["model.norm.weight"].bfloat16())


@sees_maps
@pytest.mark.parametrize("options", [{}, {"mmap": False}, {"quantize": "int8"}, {"dtype": torch.bfloat16}])
def test_a_model_is_mapped_by_default_and_copied_where_asked_for_or_its_numbers_change(tmp_path, options):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "model")
    vita = Vita.from_pretrained(tmp_path / "model", **options)
    assert bool(maps_of(tmp_path / "model" / "model-00001-of-00005.safetensors")) == (options == {})
    assert vita.decoder.norm.weight.equal(Vita.from_pretrained(GOLDEN / "checkpoint", **options).decoder.norm.weight)


COUNT, SIZE = 12, 4 << 20  # tensors, and numbers in each
LOADING = """
import re, sys
from pathlib import Path
import torch
from torch import nn
from vita_ref.files import checkpoint

folder, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def resident():  # bytes of memory, with pages of mapped files that were read
    lines = re.findall(r"Rss(?:Anon|File):\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * sum(map(int, lines))

for mmap in (True, False):
    with torch.device("meta"):
        module = nn.ModuleList(nn.Module() for _ in range(count))
        for layer in module:
            layer.weight = nn.Parameter(torch.empty(size))
    files, added = checkpoint.find_tensors(folder), []
    before = resident()
    measure = lambda done, total: added.append(resident() - before)
    checkpoint.load_weights(module, {"": ""}, files, mmap=mmap, progress=measure)
    print("mapped" if mmap else "copied", len(added), max(added))
    del module, layer
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """How loading 12 tensors of 16 MB went, mapped and copied: (how many were loaded, most bytes of memory)."""
    folder = tmp_path_factory.mktemp("large")
    save_file({f"{i}.weight": torch.full((SIZE,), float(i)) for i in range(COUNT)}, folder / "model.safetensors")
    command = [sys.executable, "-c", LOADING, str(folder), str(COUNT), str(SIZE)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {kind: (int(loaded), int(most)) for kind, loaded, most in map(str.split, lines)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see the memory of a process")
@pytest.mark.parametrize("kind", ["copied", "mapped"])
def test_loading_takes_the_memory_of_the_weights_and_no_second_copy(measured, kind):
    loaded, most = measured[kind]
    weights, one_map, one_tensor = COUNT * SIZE * 4, 2**26, SIZE * 4
    assert loaded == COUNT
    assert weights / 2 < most < weights + one_map + 2 * one_tensor


# ---- a checkpoint that does not match


@few
@given(st.sampled_from(NAMES), shardings)
def test_a_missing_tensor_is_named_with_the_files_before_anything_is_read(name, shards):
    with tempfile.TemporaryDirectory() as folder:
        where = write(folder, {n: t for n, t in make_tensors().items() if n != name}, shards)
        module = on_meta()
        message = refused(load, folder, module)
        assert all(tensor.is_meta for tensor in module.state_dict().values())
    first, last = min(where.values()), max(where.values())
    places = first if shards == 1 else f"{first} to {last}"
    assert f"missing: {name} {list(make_tensors()[name].shape)} (expected in {places})" in message
    assert "surplus" not in message and "misshapen" not in message and folder in message


@few
@given(st.sampled_from(["model.layers.2.mlp.up_proj.weight", "other", "lm_head.bias"]), shardings)
def test_a_surplus_tensor_is_named_with_its_file_unless_its_prefix_is_ignored(name, shards):
    with tempfile.TemporaryDirectory() as folder:
        where = write(folder, make_tensors() | {name: torch.zeros(3, 13)}, shards)
        message = refused(load, folder)
        load(folder, ignored=[name[:5]])
    assert f"surplus: {name} [3, 13] (in {where[name]})" in message
    assert "missing" not in message and "misshapen" not in message


@few
@given(st.sampled_from(NAMES), shardings, st.sampled_from(["longer", "flat", "transposed"]))
def test_a_misshapen_tensor_is_named_with_both_shapes_and_its_file(name, shards, change):
    tensors = make_tensors()
    old = tensors[name]
    new = old[None] if old.dim() == 0 else torch.cat([old, old])
    if change == "flat" and old.dim() == 2:
        new = old.flatten()
    if change == "transposed" and old.dim() == 2 and old.shape[0] != old.shape[1]:
        new = old.T.contiguous()
    with tempfile.TemporaryDirectory() as folder:
        where = write(folder, tensors | {name: new}, shards)
        message = refused(load, folder)
    assert f"misshapen: {name} {list(new.shape)}, expected {list(old.shape)} (in {where[name]})" in message
    assert "missing" not in message and "surplus" not in message


def test_one_error_lists_faults_of_all_kinds(tmp_path):
    tensors = make_tensors() | {"other": torch.zeros(2), "model.norm.weight": torch.zeros(7)}
    del tensors["lm_head.weight"]
    write(tmp_path, tensors)
    message = refused(load, tmp_path)
    for fault in ("missing: lm_head.weight", "surplus: other", "misshapen: model.norm.weight"):
        assert fault in message


def test_a_long_list_of_faults_is_shortened_and_says_how_many_are_left_out(tmp_path):
    write(tmp_path, {"other": torch.zeros(2)})
    message = refused(load, tmp_path)
    listed = sum(f"{name} [" in message for name in NAMES)
    assert 0 < listed < len(NAMES) and f"and {len(NAMES) - listed} more" in message


def test_a_tied_model_refuses_a_head_and_an_untied_one_needs_it(tmp_path):
    write(tmp_path, make_tensors(tied=False))
    assert "surplus: lm_head.weight" in refused(load, tmp_path, on_meta(tied=True))
    write(tmp_path, make_tensors(tied=True))
    assert "missing: lm_head.weight" in refused(load, tmp_path, on_meta(tied=False))


@pytest.mark.parametrize("listed", [0, 1])
def test_of_two_shards_with_the_same_tensor_the_one_in_the_index_counts(tmp_path, listed):
    name = "model.norm.weight"
    where = write(tmp_path, make_tensors(), shards=2)
    files = sorted({*where.values()})
    for file, tensor in ((files[listed], make_tensors()[name]), (files[1 - listed], torch.zeros(2, 7))):
        save_file(load_file(tmp_path / file) | {name: tensor}, tmp_path / file)
    write_index(tmp_path, where | {name: files[listed]})
    assert load(tmp_path).decoder.norm.weight.equal(make_tensors()[name])


# ---- damaged folders


def test_a_folder_without_weights_says_which_files_were_looked_for(tmp_path):
    message = refused(checkpoint.find_tensors, tmp_path)
    assert "model.safetensors" in message and INDEX in message and str(tmp_path) in message


def test_a_missing_shard_is_named(tmp_path):
    where = write(tmp_path, make_tensors(), shards=3)
    lost = where["model.norm.weight"]
    (tmp_path / lost).unlink()
    assert f"{tmp_path} has no {lost}" in refused(checkpoint.find_tensors, tmp_path)


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path):
    where = write(tmp_path, make_tensors(), shards=3)
    other = next(file for file in where.values() if file != where["model.norm.weight"])
    write_index(tmp_path, where | {"model.norm.weight": other})
    assert f"{other} does not hold model.norm.weight" in refused(checkpoint.find_tensors, tmp_path)


def test_a_tensor_that_is_not_in_the_index_counts_as_surplus(tmp_path):
    where = write(tmp_path, make_tensors() | {"other": torch.zeros(3)}, shards=3)
    write_index(tmp_path, {name: file for name, file in where.items() if name != "other"})
    assert f"surplus: other [3] (in {where['other']})" in refused(load, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "3"])
def test_an_index_of_another_form_is_refused(tmp_path, text):
    write(tmp_path, make_tensors(), shards=2)
    (tmp_path / INDEX).write_text(text)
    assert INDEX in refused(checkpoint.find_tensors, tmp_path)


def test_a_file_without_tensors_is_refused_because_all_are_missing(tmp_path):
    write(tmp_path, {})
    assert f"missing: {next(iter(make_tensors()))}" in refused(load, tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("damage", ["empty", "no header", "half", "one byte short"])
def test_a_damaged_file_is_named(tmp_path, damage, shards):
    where = write(tmp_path, make_tensors(), shards)
    file = tmp_path / where["model.norm.weight"]
    content = file.read_bytes()
    damaged = {
        "empty": b"",
        "no header": b"x" * 500,
        "half": content[: len(content) // 2],
        "one byte short": content[:-1],
    }
    file.write_bytes(damaged[damage])
    assert f"{file} is not a safetensors file, or it is damaged" in refused(load, tmp_path)


# ---- whole models


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_tensor_of_a_vita_folder_that_is_missing_or_misshapen_is_named(data):
    files = {file.name: load_file(file) for file in sorted((GOLDEN / "checkpoint").glob("*.safetensors"))}
    file = data.draw(st.sampled_from(sorted(files)))
    name = data.draw(st.sampled_from(sorted(files[file])))
    fault = data.draw(st.sampled_from(["missing", "misshapen"]))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(GOLDEN / "checkpoint", folder, dirs_exist_ok=True)
        where = json.loads((Path(folder) / INDEX).read_text())["weight_map"]
        tensor = files[file].pop(name)
        if fault == "missing":
            del where[name]
        else:
            files[file][name] = torch.zeros(*tensor.shape, 2)
        write_index(folder, where)
        save_file(files[file], Path(folder) / file)
        message = refused(Vita.from_pretrained, folder)
    assert f"{fault}: {name} {list(tensor.shape) if fault == 'missing' else [*tensor.shape, 2]}" in message
    assert fault == "missing" or f"(in {file})" in message


def test_a_vita_folder_may_have_another_vocabulary_than_its_config_says(tmp_path):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            tensors[name] = tensors[name][:-9].contiguous()
        save_file(tensors, file)
    vita = Vita.from_pretrained(tmp_path)
    assert vita.config.decoder.vocab_size == len(vita.decoder.embed_tokens.weight) == 311


def test_a_loaded_model_is_in_eval_mode_without_gradients_and_in_the_given_dtype():
    vita = Vita.from_pretrained(GOLDEN / "checkpoint", dtype=torch.bfloat16)
    assert not vita.training and not any(p.requires_grad for p in vita.parameters())
    assert all(t.dtype == torch.bfloat16 for t in vita.state_dict().values() if t.is_floating_point())


def test_the_full_size_model_has_the_names_and_shapes_of_the_released_one():
    listed = json.loads((GOLDEN / "vita-1.5-tensors.json").read_text())
    expected = {}
    for pattern, entry in listed["tensors"].items():  # "*" is a layer number
        expected |= {pattern.replace("*", str(i)): entry["shape"] for i in range(entry["count"])}
    with torch.device("meta"):
        vita = Vita(VitaConfig.preset("vita-1.5"))
    state = vita.state_dict()
    built = {name: list(state[own].shape) for name, own in checkpoint.module_names(vita, VITA_PREFIXES).items()}
    assert built == expected and len(built) == listed["n_tensors"] == 1159
    assert sum(t.numel() for t in state.values()) == listed["total_elements"] == 8_322_947_232


def count_decoder_parameters(name):
    with torch.device("meta"):
        return sum(p.numel() for p in Vita(VitaConfig.preset(name)).decoder.parameters())


def test_qwen2_7b_has_as_many_parameters_as_its_released_index_says():
    assert count_decoder_parameters("qwen2-7b") == 15_231_233_024 // 2  # bytes in bfloat16


def test_the_documented_decoder_has_the_7_72_billion_parameters_that_follow_from_its_figures():
    d, f, layers, v = 4096, 11008, 32, 151936
    layer = 4 * d * d + 3 * d + 3 * d * f + 2 * d  # q, k, v, o; biases of q, k, v; the MLP; two norms
    assert count_decoder_parameters("documented") == 2 * v * d + layers * layer + d
    assert math.isclose(count_decoder_parameters("documented"), 7.72e9, rel_tol=1e-3)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=400), min_size=1, max_size=40), st.integers(200, 900))
@example(["\U000e0001" * 400] * 9, 200)
def test_a_list_of_any_names_is_short_and_counts_those_that_it_leaves_out(names, limit):
    text = checkpoint.shortened(names, limit)
    assert text.isprintable() and len(text) <= limit + len(" and 40 more")
    if len(names) > 8:
        assert re.search(r" and \d+ more$", text)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(min_size=1, max_size=3000), st.integers(0, 60), min_size=1, max_size=30))
def test_a_checkpoint_with_any_tensors_of_any_shape_is_refused_in_at_most_1000_characters(tensors):
    with tempfile.TemporaryDirectory() as folder:
        names = [name.encode("utf-8", "replace").decode() for name in tensors]
        wrong = {name: torch.zeros([1] * dims) for name, dims in zip(names, tensors.values())}
        wrong |= {name: torch.zeros([1] * 60) for name in checkpoint.module_names(on_meta(), PREFIXES)}
        save_file(wrong, Path(folder) / "model.safetensors")
        files = checkpoint.find_tensors(folder)
        with pytest.raises(ValueError) as error:
            checkpoint.check_fits(on_meta(), PREFIXES, files)
    assert str(error.value).isprintable() and len(str(error.value)) <= 1000
