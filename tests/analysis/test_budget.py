"""The estimate made before loading against what a real run has: modules, files, caches, counted products, memory."""

import gc
import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_model import AUDIO, BINS, CONFIG, IMAGE, PIXELS, VOCAB, noise, tiny_vita
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tools import make_checkpoint
from vita_ref import Vita, VitaConfig
from vita_ref.analysis import budget
from vita_ref.files import checkpoint
from vita_ref.generate import main
from vita_ref.loading import demo_folder
from vita_ref.request import PreparedRequest, collate

few = settings(max_examples=7, deadline=None)
PREFIXES = {  # of the parts, in a checkpoint; the longest that matches counts
    "vision": "model.vision_tower.", "projector": "model.mm_projector.", "audio": "model.audio_encoder.",
    "embeddings": "model.embed_tokens.", "layers": "model.", "head": "lm_head.",
}  # fmt: skip
STATISTICS = ("mean", "istd")  # of the audio encoder: stored, but not parameters


def part_of(name):
    return max((p for p in PREFIXES if name.startswith(PREFIXES[p])), key=lambda p: len(PREFIXES[p]))


def request(*row, tiles=(), frames=(), size=PIXELS, bins=BINS):
    """A prepared request: its ids, the number of tiles of each image, the number of frames of each sound."""
    images = [noise(n, 3, size, size, seed=i) for i, n in enumerate(tiles)]
    return PreparedRequest(torch.tensor(row), images, [noise(n, bins, seed=i) for i, n in enumerate(frames)])


def estimate(config, *prepared, dtype=torch.float32, **options):
    return budget.estimate(config, list(prepared), dtype=dtype, **options)


# ---- weights


def test_the_parameters_of_vita_1_5_are_those_of_the_released_names_and_shapes():
    listed, want = json.loads((GOLDEN / "vita-1.5-tensors.json").read_text())["tensors"], dict.fromkeys(PREFIXES, 0)
    stored = dict(want)
    for name, entry in listed.items():
        size = entry["count"] * torch.Size(entry["shape"]).numel()
        stored[part_of(name)] += 2 * size
        want[part_of(name)] += 0 if name.endswith(STATISTICS) else size
    result = budget.count_weights(VitaConfig.preset("vita-1.5"), torch.bfloat16)
    total = result.pop("total")
    assert {k: part["parameters"] for k, part in result.items()} == want and total["parameters"] == 8_322_947_072
    assert {k: part["bytes"] for k, part in result.items()} == stored and total["bytes"] == sum(stored.values())


@pytest.mark.parametrize("name", ["demo", "qwen2-7b", "documented", "vita-1.5"])
def test_the_parameters_of_a_preset_follow_from_its_config_and_are_those_of_its_modules(name):
    config = VitaConfig.preset(name)
    with torch.device("meta"):
        vita = Vita(config)
    result, d = budget.count_weights(config, torch.float32), config.decoder
    assert result["total"]["parameters"] == sum(p.numel() for p in vita.parameters())
    heads, groups = d.num_attention_heads * d.head_dim, d.num_key_value_heads * d.head_dim
    attention = d.hidden_size * (2 * heads + 2 * groups) + heads + 2 * groups
    layer = attention + 3 * d.hidden_size * d.intermediate_size + 2 * d.hidden_size
    assert result["layers"]["parameters"] == d.num_hidden_layers * layer + d.hidden_size
    assert result["head"]["parameters"] == result["embeddings"]["parameters"] == d.vocab_size * d.hidden_size
    if name == "qwen2-7b":  # as the released index file says
        assert budget.count_weights(config, torch.bfloat16)["total"]["bytes"] == 15_231_233_024 and "vision" not in result


def test_bytes_are_those_of_the_demo_file_part_by_part():
    with open(demo_folder() / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    stored = dict.fromkeys(PREFIXES, 0)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        stored[part_of(name)] += end - begin
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    vita, disk = budget.meta_model(demo_folder())
    result = budget.count_weights(vita.config, torch.bfloat16)
    result.pop("total")
    assert {k: part["bytes"] for k, part in result.items()} == stored
    assert disk == {"bytes": (demo_folder() / "model.safetensors").stat().st_size, "dtypes": ["BF16"], "absent": None}


@pytest.mark.parametrize("dtype, quantize", [(torch.bfloat16, None), (torch.float32, "int8"), (torch.bfloat16, "int8")])
def test_bytes_are_those_of_the_loaded_model_quantised_or_not_with_its_speech_decoder(dtype, quantize):
    speech = {"speech_dir": GOLDEN / "tts"}
    loaded = Vita.from_pretrained(demo_folder(), dtype=dtype, quantize=quantize, **speech)
    vita, _ = budget.meta_model(demo_folder(), **speech)
    result = budget.count_weights(vita.config, dtype, quantize, vita.speech)
    for name, module in budget.weight_parts(loaded).items():
        assert result[name]["bytes"] == sum(t.nbytes for t in [*module.parameters(), *module.buffers()]), name
    assert result["total"]["bytes"] == sum(t.nbytes for t in [*loaded.parameters(), *loaded.buffers()])
    assert result["speech"]["dtype"] == "float32" and result["vision"]["dtype"] == str(dtype)[6:]
    assert result["head"]["dtype"] == result["layers"]["dtype"] == (quantize or str(dtype)[6:])
    assert result["embeddings"]["dtype"] == str(dtype)[6:]


def test_tied_embeddings_are_counted_once_and_never_quantised():
    d = replace(CONFIG.decoder, tie_word_embeddings=True)
    result = budget.count_weights(replace(CONFIG, decoder=d), torch.float32, "int8")
    assert "head" not in result and result["embeddings"]["bytes"] == 4 * VOCAB * d.hidden_size


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_holds_its_share_of_every_split_tensor_and_all_of_the_others(ranks, tied):
    d = replace(VitaConfig.preset("qwen2-7b").decoder, num_hidden_layers=2, tie_word_embeddings=tied)
    config = replace(CONFIG, decoder=d)
    with torch.device("meta"):
        vita = Vita(config)
    split = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")] + ["lm_head", "embed_tokens"]
    want = sum(p.numel() // (ranks if any(s in name for s in split) else 1) for name, p in vita.named_parameters())
    result = budget.count_weights(budget.rank_config(config, ranks), torch.float16)
    assert result["total"]["parameters"] == want
    full = budget.count_weights(config, torch.float16)
    for tower in ("vision", "projector", "audio"):
        assert result[tower] == full[tower]
    rank, one = (estimate(c, request(1, 2, 3), max_new_tokens=9) for c in (budget.rank_config(config, ranks), config))
    assert rank["kv_bytes"] * ranks == one["kv_bytes"]
    assert rank["flops"]["prefill"] * ranks == one["flops"]["prefill"]


def test_ranks_that_do_not_divide_the_heads_are_refused_and_an_odd_vocabulary_is_rounded_up():
    config = VitaConfig.preset("vita-1.5")
    with pytest.raises(ValueError, match="3 ranks cannot share 4 key/value heads"):
        budget.rank_config(config, 3)
    odd = replace(config, decoder=replace(config.decoder, vocab_size=151665))
    assert budget.rank_config(odd, 2).decoder.vocab_size == 75833


# ---- positions, cache and operations


@st.composite
def requests(draw):
    """Several requests of one batch, with sounds and with images of one or more tiles."""
    prepared = []
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.lists(st.sampled_from([IMAGE, AUDIO, *range(VOCAB)]), min_size=1, max_size=7))
        tiles = [draw(st.integers(1, 3)) for _ in range(row.count(IMAGE))]
        prepared.append(request(*row, tiles=tiles, frames=[draw(st.integers(7, 60)) for _ in range(row.count(AUDIO))]))
    return prepared


def count_operations(run):
    """Operations of ``run``: (a dict by the root module that they happened in, their sum)."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:  # it counts attention as two products
        run()
    result = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return result, counter.get_total_flops()


@few
@given(requests(), st.integers(1, 4), st.sampled_from(["left", "right"]), st.sampled_from([None, 3, 12]))
def test_positions_cache_and_operations_are_those_of_the_real_run(prepared, new, side, most):
    vita = tiny_vita(tokenizer_padding_side=side, tokenizer_model_max_length=most)
    result = estimate(vita.config, *prepared, max_new_tokens=new)
    segments = vita.inputs(collate(prepared)).segments
    for row, want in zip(result["requests"], segments, strict=True):
        assert [row[k] for k in ("text", "image", "audio")] == [
            sum(b - a for kind, a, b in want if kind == k) for k in ("text", "image", "audio")
        ]
        assert row["total"] == want[-1][2] - want[0][1]
    whole = estimate(replace(vita.config, tokenizer_model_max_length=None), *prepared, max_new_tokens=new)
    assert [row["total"] + row["cut"] for row in result["requests"]] == [row["total"] for row in whole["requests"]]
    assert whole["positions"]["cut"] == 0
    caches, make = [], vita.decoder.new_cache
    vita.decoder.new_cache = lambda *sizes: caches.append(make(*sizes)) or caches[-1]
    options = {"eos_token_id": (), **vars(collate(prepared))}
    first, prefilled = count_operations(lambda: vita.generate(max_new_tokens=1, **options))
    _, total = count_operations(lambda: vita.generate(max_new_tokens=new, **options))
    assert result["kv_bytes"] == caches[1].nbytes
    f = result["flops"]
    stages = {"vision": "VisionTower", "projector": "Projector", "audio": "AudioEncoder"}
    assert {k: f[k] for k in stages} == {k: first.get(module, 0) for k, module in stages.items()}
    assert f["vision"] + f["projector"] + f["audio"] + f["prefill"] == prefilled
    assert f["prefill"] + f["decode"] == total - (prefilled - f["prefill"]) and f["total"] == total


AUDIO_ENCODERS = {
    "plain": {},
    "absolute": {"position_encoding": "abs-enc"},
    "concat": {"concat_after": True, "adapter_kernel_size": 3, "num_prompts": 2},
    "chunks": {"chunk_size": 4, "left_chunks": 1},
    "bins": {"num_mel_bins": 24, "num_hidden_layers": 3, "adapter_norm": "batch"},
}


@pytest.mark.parametrize("name", AUDIO_ENCODERS)
@pytest.mark.parametrize("frames", [7, 61, 1100])  # the last one goes through in two blocks
def test_the_operations_of_every_variant_of_the_audio_encoder_are_counted(name, frames):
    config = replace(CONFIG, audio=replace(CONFIG.audio, **AUDIO_ENCODERS[name]))
    vita = tiny_vita(audio=config.audio)
    bank = noise(2, frames, config.audio.num_mel_bins)
    total = count_operations(lambda: vita.encode_audios(bank, [frames, frames]))[1]
    assert total == budget.audio_flops(config.audio, config.decoder.hidden_size, 2, frames)
    ask = request(AUDIO, 7, frames=[frames], bins=config.audio.num_mel_bins)
    assert estimate(config, ask)["requests"][0]["audio"] == vita.encode_audios(bank, [frames] * 2).lengths[0]


VISION_TOWERS = {
    "shuffled": {},
    "whole": {"shuffle": 1, "keep_class_token": True, "num_hidden_layers": 3},
    "larger": {"image_size": 42, "num_channels": 3, "intermediate_size": 31},
}


@pytest.mark.parametrize("name", VISION_TOWERS)
def test_the_operations_of_a_tile_are_those_of_the_vision_tower_for_every_size(name):
    vision = replace(CONFIG.vision, **VISION_TOWERS[name])
    vita = tiny_vita(vision=replace(vision, patch_size=7 if vision.image_size == 28 else 3))
    config = vita.config
    side = config.vision.image_size
    result = estimate(config, request(IMAGE, 7, tiles=[1], size=side))
    by_module, _ = count_operations(lambda: vita.encode_images(noise(1, 3, side, side)))
    assert result["flops"]["vision"] == result["flops"]["vision_tile"] == by_module["VisionTower"]
    wide = noise(2, 3, side, 2 * side)
    by_module, _ = count_operations(lambda: vita.encode_images(wide))
    result = estimate(config, PreparedRequest(torch.tensor([IMAGE]), [wide], []))
    assert result["flops"]["vision"] == by_module["VisionTower"]
    assert result["flops"]["projector"] == by_module["Projector"]
    assert result["positions"]["image"] == len(vita.encode_images(wide).flatten(0, 1))


def test_one_token_more_costs_one_step_after_the_longest_request():
    vita = tiny_vita()
    one, two = (estimate(vita.config, request(*range(9)), max_new_tokens=n)["flops"] for n in (5, 6))
    assert two["decode"] - one["decode"] == one["token"] and two["prefill"] == one["prefill"]
    assert estimate(vita.config, request(1), max_new_tokens=1)["flops"]["decode"] == 0


def test_groups_add_their_operations_but_only_the_largest_cache_counts():
    prepared = [request(*range(3)), request(*range(5)), request(*range(9))]  # with groups of two, the longest is alone
    result = estimate(CONFIG, *prepared, group=2, max_new_tokens=4)
    parts = [estimate(CONFIG, *prepared[:2], max_new_tokens=4), estimate(CONFIG, prepared[2], max_new_tokens=4)]
    assert result["flops"]["total"] == sum(p["flops"]["total"] for p in parts)
    assert result["kv_bytes"] == max(p["kv_bytes"] for p in parts) and result["positions"]["longest"] == 9
    assert result["positions"]["total"] == 17 and result["positions"]["with_new"] == 13


def peak_memory(run):
    """The most bytes that are allocated at one time while ``run`` runs."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


PEAKS = {
    "text": [request(*range(50), *range(50), *range(50))],
    "padded": [request(*[7] * 700), request(*[7] * 500)],
    "long": [request(*[7] * 1500)],
    "long and padded": [request(*[7] * 2000), request(*[7] * 1990)],
    "image": [request(IMAGE, 5, tiles=[60])],
    "sound": [request(AUDIO, 5, frames=[2000])],
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_near_the_memory_that_a_run_takes(name):
    wide = replace(CONFIG.decoder, hidden_size=64, intermediate_size=300, num_attention_heads=8, head_dim=8)
    vita, prepared = tiny_vita(decoder=wide), PEAKS[name]
    result = estimate(vita.config, *prepared, max_new_tokens=3)
    media = sum(x.nbytes for r in prepared for x in (*r.images, *r.sounds))
    more = result["peak_bytes"] - result["weights"]["total"]["bytes"] - media
    real = peak_memory(lambda: vita.generate(max_new_tokens=3, eos_token_id=(), **vars(collate(prepared))))
    assert 0.9 * real < more < 1.2 * real


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_peak_is_not_below_what_loading_takes(tmp_path, quantize):
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, vocab_size=30000))
    make_checkpoint.write(tmp_path, "demo", config=config)
    result = estimate(config, request(7), quantize=quantize, max_new_tokens=1)
    real = peak_memory(lambda: Vita.from_pretrained(tmp_path, quantize=quantize, mmap=False))
    mapped = (tmp_path / "model.safetensors").stat().st_size  # counted as if it were memory
    assert result["weights"]["total"]["bytes"] <= real - mapped <= result["peak_bytes"]


def resident(key):
    """A figure of this process in /proc: VmRSS is the memory it holds, VmHWM the most it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure the peak of a process")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="packing needs oneDNN")
def test_packing_takes_the_largest_matrix_beside_the_weights_as_estimated(tmp_path):
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "head_dim": 8, "num_hidden_layers": 1}
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, vocab_size=300, intermediate_size=272_000, **sizes))
    make_checkpoint.write(tmp_path, "demo", config=config)
    whole = estimate(config, request(7), pack=True, max_new_tokens=1)
    estimated, measured = whole["peak_bytes"] - whole["weights"]["total"]["bytes"], []
    for pack in (False, True):
        gc.collect()  # what other tests have left must not be freed while this is measured
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        vita = Vita.from_pretrained(tmp_path, pack=pack, mmap=False)
        measured.append(resident("VmHWM") - before)
        del vita
    assert 0.8 * estimated < measured[1] - measured[0] < 1.3 * estimated


def test_a_request_that_a_run_would_refuse_is_refused():
    with pytest.raises(ValueError, match="too short"):
        estimate(CONFIG, request(AUDIO, frames=[6]))
    with pytest.raises(ValueError, match="2 image placeholders, but 1 image was given"):
        estimate(CONFIG, request(IMAGE, IMAGE, tiles=[1]))


# ---- folders and the command line


def folder_of(path, preset, **changes):
    """A tiny checkpoint folder in one of the three formats."""
    tiny = replace(VitaConfig.preset(preset), dtype="float32", eos_token_ids=(299,), **changes)
    d = replace(CONFIG.decoder, vocab_size=300, hidden_size=24, num_attention_heads=3, num_key_value_heads=1)
    parts = {} if preset == "qwen2-7b" else {"vision": CONFIG.vision, "audio": CONFIG.audio}
    parts["audio"] = replace(parts["audio"], num_mel_bins=80) if parts else None
    make_checkpoint.write(path, preset, config=replace(tiny, decoder=d, **parts))
    return path


@pytest.fixture
def run(capsys, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a dry run must not read weights")

    monkeypatch.setattr(checkpoint, "load_weights", refuse)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def call(*flags):
        status = main(["--dry-run", *map(str, flags)])
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize("preset", ["demo", "qwen2-7b", "vita-1.5"])
def test_every_format_of_folder_gets_an_estimate_with_its_weights_and_without(run, tmp_path, preset):
    folder = folder_of(tmp_path / "model", preset)
    ask = ("--model", folder, "--prompt", "hi", "--json")
    status, out, err = run(*ask)
    result = json.loads(out)
    assert status == 0 and err == "" and result["disk"]["dtypes"][0] == "F32" and result["disk"]["absent"] is None
    assert result["weights"]["total"]["bytes"] < result["disk"]["bytes"]
    for file in folder.glob("*.safetensors"):
        file.unlink()
    again = json.loads(run(*ask)[1])
    assert "no model.safetensors" in again["disk"].pop("absent") and again["disk"]["bytes"] == 0
    assert {k: v for k, v in again.items() if k != "disk"} == {k: v for k, v in result.items() if k != "disk"}
    assert "on disk: no weights, " in run(*ask[:-1])[1]


def test_the_vocabulary_size_is_that_of_the_tensors_where_the_config_of_a_vita_folder_differs(run, tmp_path):
    folder = folder_of(tmp_path / "model", "vita-1.5")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vocab_size": 999}))
    result = json.loads(run("--model", folder, "--prompt", "hi", "--json")[1])
    assert result["weights"]["head"]["parameters"] == 300 * 24


def test_a_prompt_that_would_be_cut_off_is_refused_and_the_table_says_which_part_is_missing(run, tmp_path):
    folder = folder_of(tmp_path / "model", "vita-1.5", tokenizer_model_max_length=8)
    ask = ("--model", folder, "--prompt", "hi", "--raw")
    assert run(*ask)[0] == 0 and "without" not in run(*ask)[1]
    status, out, err = run(*ask[:3], "hi" * 5, "--raw")
    assert status == 2 and out == "" and "10 positions" in err and "at most 8" in err
    (folder / make_checkpoint.VISION_FOLDER).rename(tmp_path / "elsewhere")
    status, out, _ = run(*ask)
    assert status == 0 and "without vision: its folder" in out and "  vision  " not in out.split("KV cache")[0]


def test_weights_that_do_not_fit_the_config_are_refused_before_they_are_read(run, tmp_path):
    folder = folder_of(tmp_path / "model", "demo")
    raw = json.loads((folder / "config.json").read_text())
    raw["decoder"]["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(raw))
    status, out, err = run("--model", folder, "--prompt", "hi")
    assert status == 2 and out == "" and "gate_proj" in err and err.count("\n") == 1


def test_a_dry_run_counts_as_many_positions_as_the_answer(capsys, tmp_path):
    Image.new("RGB", (50, 40), (10, 200, 30)).save(tmp_path / "x.png")
    flags = ["--image", str(tmp_path / "x.png"), "--prompt", "hi", "--json", "--max-new-tokens", "2"]
    result = []
    for more in ([], ["--dry-run"]):
        assert main(flags + more) == 0
        result.append(json.loads(capsys.readouterr().out))
    counts, positions = result[0]["prompt"], result[1]["positions"]
    assert counts == {f"{k}_tokens": positions[k] for k in ("text", "image", "audio")} | {"total": positions["total"]}
    assert positions["with_new"] == positions["total"] + 2


def test_the_table_shows_dtype_int8_and_ranks(run, monkeypatch):
    ask = ("--prompt", "hi", "--max-new-tokens", 5)
    plain = run(*ask)[1]
    assert "ranks" not in plain and ", float32" in plain
    int8 = run(*ask, "--quantize", "int8", "--dtype", "bfloat16", "--ranks", 2)[1]
    assert "each of 2 ranks" in int8 and ", int8" in int8 and ", bfloat16" in int8
    json_of = json.loads(run(*ask, "--quantize", "int8", "--ranks", 2, "--json")[1])
    assert json_of["each_rank"]["weights"]["vision"] == json_of["weights"]["vision"]
    assert json_of["each_rank"]["kv_bytes"] * 2 == json_of["kv_bytes"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "each of 2 ranks" in run(*ask)[1]
    monkeypatch.setenv("RANK", "1")
    assert run(*ask) == (0, "", "")  # only the first rank prints


def test_a_batch_file_gets_one_estimate(run, tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "hi " * n}) for n in range(1, 11)))
    status, out, _ = run("--batch", file)
    assert status == 0 and "10 requests, the longest of" in out
    result = json.loads(run("--batch", file, "--json")[1])
    assert len(result["requests"]) == 10 and result["positions"]["total"] == sum(r["total"] for r in result["requests"])
    file.write_text('{"prompt": "hi"}\n{"images": ["nowhere.png"]}')
    status, out, err = run("--batch", file)
    assert status == 2 and out == "" and "request 2" in err


USER_ERRORS = {"heads": ("--ranks", 3), "--ranks": ("--ranks", 0), "nowhere.wav": ("--audio", "nowhere.wav")}


@pytest.mark.parametrize("message, flags", USER_ERRORS.items())
def test_user_errors_print_one_line_and_exit_with_status_2(run, message, flags):
    status, out, err = run("--prompt", "hi", *flags)
    assert status == 2 and out == "" and message in err and err.count("\n") == 1


def test_ranks_need_a_dry_run(capsys):
    assert main(["--prompt", "hi", "--ranks", "2"]) == 2 and "--ranks needs --dry-run" in capsys.readouterr().err


def test_numbers_are_printed_with_four_digits():
    printed = {0: "0 B", 999: "999 B", 1_090_000_000: "1.09 GB", 16_645_894_464: "16.65 GB"}
    assert {n: budget.short_number(n, "B") for n in printed} == printed
