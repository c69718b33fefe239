"""What is told before loading, against what is there after it: real modules, files, caches and counted products."""

import itertools
import json
import struct
from dataclasses import replace

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
from vita_ref.generate import demo_folder, main
from vita_ref.request import Prepared, batch

few = settings(max_examples=10, deadline=None)
PREFIXES = {  # of the parts, in a checkpoint; the longest that fits counts
    "vision": "model.vision_tower.", "projector": "model.mm_projector.", "audio": "model.audio_encoder.",
    "embeddings": "model.embed_tokens.", "layers": "model.", "head": "lm_head.",
}  # fmt: skip
MEAN = ("mean", "istd")  # the ear's statistics: stored, and no parameters


def part_of(name):
    return max((p for p in PREFIXES if name.startswith(PREFIXES[p])), key=lambda p: len(PREFIXES[p]))


def asked(*row, tiles=(), frames=(), size=PIXELS, bins=BINS):
    """A prepared request: ids, the tiles of each picture, the frames of each sound."""
    pictures = [noise(n, 3, size, size, seed=i) for i, n in enumerate(tiles)]
    return Prepared(torch.tensor(row), pictures, [noise(n, bins, seed=i) for i, n in enumerate(frames)])


def needs(config, *ready, dtype=torch.float32, **options):
    return budget.needs(config, list(ready), dtype=dtype, **options)


# ---- weights


def test_the_parameters_of_vita_1_5_are_those_of_the_released_names_and_shapes():
    listed, want = json.loads((GOLDEN / "vita-1.5-tensors.json").read_text())["tensors"], dict.fromkeys(PREFIXES, 0)
    stored = dict(want)
    for name, entry in listed.items():
        size = entry["count"] * torch.Size(entry["shape"]).numel()
        stored[part_of(name)] += 2 * size
        want[part_of(name)] += 0 if name.endswith(MEAN) else size
    found = budget.weights(VitaConfig.preset("vita-1.5"), torch.bfloat16)
    total = found.pop("total")
    assert {k: part["parameters"] for k, part in found.items()} == want and total["parameters"] == 8_322_947_072
    assert {k: part["bytes"] for k, part in found.items()} == stored and total["bytes"] == sum(stored.values())


@pytest.mark.parametrize("name", ["demo", "qwen2-7b", "documented", "vita-1.5"])
def test_the_parameters_of_a_preset_are_those_of_its_figures_and_of_its_modules(name):
    config = VitaConfig.preset(name)
    with torch.device("meta"):
        vita = Vita(config)
    found, d = budget.weights(config, torch.float32), config.decoder
    assert found["total"]["parameters"] == sum(p.numel() for p in vita.parameters())
    heads, groups = d.num_attention_heads * d.head_dim, d.num_key_value_heads * d.head_dim
    attention = d.hidden_size * (2 * heads + 2 * groups) + heads + 2 * groups
    layer = attention + 3 * d.hidden_size * d.intermediate_size + 2 * d.hidden_size
    assert found["layers"]["parameters"] == d.num_hidden_layers * layer + d.hidden_size
    assert found["head"]["parameters"] == found["embeddings"]["parameters"] == d.vocab_size * d.hidden_size
    if name == "qwen2-7b":  # what its own index says
        assert budget.weights(config, torch.bfloat16)["total"]["bytes"] == 15_231_233_024 and "vision" not in found


def test_bytes_are_those_of_the_demo_file_part_by_part():
    with open(demo_folder() / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    stored = dict.fromkeys(PREFIXES, 0)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        stored[part_of(name)] += end - begin
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    vita, disk = budget.outline(demo_folder())
    found = budget.weights(vita.config, torch.bfloat16)
    found.pop("total")
    assert {k: part["bytes"] for k, part in found.items()} == stored
    assert disk == {"bytes": (demo_folder() / "model.safetensors").stat().st_size, "dtypes": ["BF16"], "absent": None}


@pytest.mark.parametrize("dtype, quantize", [(torch.bfloat16, None), (torch.float32, "int8"), (torch.bfloat16, "int8")])
def test_bytes_are_those_of_the_loaded_model_quantised_or_not_and_of_its_voice(dtype, quantize):
    speech = {"speech_dir": GOLDEN / "tts"}
    loaded = Vita.from_pretrained(demo_folder(), dtype=dtype, quantize=quantize, **speech)
    vita, _ = budget.outline(demo_folder(), **speech)
    found = budget.weights(vita.config, dtype, quantize, vita.speech)
    for name, module in budget.parts(loaded).items():
        assert found[name]["bytes"] == sum(t.nbytes for t in [*module.parameters(), *module.buffers()]), name
    assert found["total"]["bytes"] == sum(t.nbytes for t in [*loaded.parameters(), *loaded.buffers()])
    assert found["speech"]["dtype"] == "float32" and found["vision"]["dtype"] == str(dtype)[6:]
    assert found["head"]["dtype"] == found["layers"]["dtype"] == (quantize or str(dtype)[6:])
    assert found["embeddings"]["dtype"] == str(dtype)[6:]


def test_tied_embeddings_are_counted_once_and_quantised_ones_not_at_all():
    d = replace(CONFIG.decoder, tie_word_embeddings=True)
    found = budget.weights(replace(CONFIG, decoder=d), torch.float32, "int8")
    assert "head" not in found and found["embeddings"]["bytes"] == 4 * VOCAB * d.hidden_size


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_holds_its_slice_of_every_split_tensor_and_the_whole_of_all_others(ranks, tied):
    d = replace(VitaConfig.preset("qwen2-7b").decoder, num_hidden_layers=2, tie_word_embeddings=tied)
    config = replace(CONFIG, decoder=d)
    with torch.device("meta"):
        vita = Vita(config)
    split = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")] + ["lm_head", "embed_tokens"]
    want = sum(p.numel() // (ranks if any(s in name for s in split) else 1) for name, p in vita.named_parameters())
    found = budget.weights(budget.share(config, ranks), torch.float16)
    assert found["total"]["parameters"] == want
    full = budget.weights(config, torch.float16)
    for tower in ("vision", "projector", "audio"):
        assert found[tower] == full[tower]
    rank, one = (needs(c, asked(1, 2, 3), max_new_tokens=9) for c in (budget.share(config, ranks), config))
    assert rank["kv_bytes"] * ranks == one["kv_bytes"]
    assert rank["flops"]["prefill"] * ranks == one["flops"]["prefill"]


def test_ranks_that_do_not_divide_the_heads_are_told_and_an_odd_vocabulary_is_rounded_up():
    config = VitaConfig.preset("vita-1.5")
    with pytest.raises(ValueError, match="3 ranks cannot share 4 key/value heads"):
        budget.share(config, 3)
    odd = replace(config, decoder=replace(config.decoder, vocab_size=151665))
    assert budget.share(odd, 2).decoder.vocab_size == 75833


# ---- positions, cache and operations


@st.composite
def requests(draw):
    """Several requests of one batch, with pictures of one or several tiles and sounds."""
    ready = []
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.lists(st.sampled_from([IMAGE, AUDIO, *range(VOCAB)]), min_size=1, max_size=7))
        tiles = [draw(st.integers(1, 3)) for _ in range(row.count(IMAGE))]
        ready.append(asked(*row, tiles=tiles, frames=[draw(st.integers(7, 60)) for _ in range(row.count(AUDIO))]))
    return ready


def counted(run):
    """Operations of what ``run`` does, by the root module they happened in, and in all."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:  # attention as two products, which it can count
        run()
    found = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return found, counter.get_total_flops()


@few
@given(requests(), st.integers(1, 4), st.sampled_from(["left", "right"]), st.sampled_from([None, 3, 12]))
def test_positions_cache_and_operations_are_those_of_the_real_run(ready, new, side, most):
    vita = tiny_vita(tokenizer_padding_side=side, tokenizer_model_max_length=most)
    found = needs(vita.config, *ready, max_new_tokens=new)
    segments = vita.inputs(**batch(ready)).segments
    for row, want in zip(found["requests"], segments, strict=True):
        assert [row[k] for k in ("text", "image", "audio")] == [
            sum(b - a for kind, a, b in want if kind == k) for k in ("text", "image", "audio")
        ]
        assert row["total"] == want[-1][2] - want[0][1]
    whole = needs(replace(vita.config, tokenizer_model_max_length=None), *ready, max_new_tokens=new)
    assert [row["total"] + row["cut"] for row in found["requests"]] == [row["total"] for row in whole["requests"]]
    assert whole["positions"]["cut"] == 0
    caches, make = [], vita.decoder.new_cache
    vita.decoder.new_cache = lambda *sizes: caches.append(make(*sizes)) or caches[-1]
    options = {"eos_token_id": (), **batch(ready)}
    first, prefilled = counted(lambda: vita.generate(max_new_tokens=1, **options))
    _, total = counted(lambda: vita.generate(max_new_tokens=new, **options))
    assert found["kv_bytes"] == caches[1].nbytes
    f = found["flops"]
    stages = {"vision": "VisionTower", "projector": "Projector", "audio": "AudioEncoder"}
    assert {k: f[k] for k in stages} == {k: first.get(module, 0) for k, module in stages.items()}
    assert f["vision"] + f["projector"] + f["audio"] + f["prefill"] == prefilled
    assert f["prefill"] + f["decode"] == total - (prefilled - f["prefill"]) and f["total"] == total


EARS = {
    "plain": {},
    "absolute": {"position_encoding": "abs-enc"},
    "concat": {"concat_after": True, "adapter_kernel_size": 3, "num_prompts": 2},
    "chunks": {"chunk_size": 4, "left_chunks": 1},
    "bins": {"num_mel_bins": 24, "num_hidden_layers": 3, "adapter_norm": "batch"},
}


@pytest.mark.parametrize("name", EARS)
@pytest.mark.parametrize("frames", [7, 61, 1100])  # the last one goes through in two blocks
def test_the_operations_of_every_kind_of_ear_are_counted(name, frames):
    config = replace(CONFIG, audio=replace(CONFIG.audio, **EARS[name]))
    vita = tiny_vita(audio=config.audio)
    bank = noise(2, frames, config.audio.num_mel_bins)
    total = counted(lambda: vita.encode_audios(bank, [frames, frames]))[1]
    assert total == budget.audio_flops(config.audio, config.decoder.hidden_size, 2, frames)
    ask = asked(AUDIO, 7, frames=[frames], bins=config.audio.num_mel_bins)
    assert needs(config, ask)["requests"][0]["audio"] == vita.encode_audios(bank, [frames] * 2).lengths[0]


EYES = {
    "shuffled": {},
    "whole": {"shuffle": 1, "keep_class_token": True, "num_hidden_layers": 3},
    "larger": {"image_size": 42, "num_channels": 3, "intermediate_size": 31},
}


@pytest.mark.parametrize("name", EYES)
def test_the_operations_of_a_tile_are_those_of_the_eye_whatever_its_size(name):
    vision = replace(CONFIG.vision, **EYES[name])
    vita = tiny_vita(vision=replace(vision, patch_size=7 if vision.image_size == 28 else 3))
    config = vita.config
    side = config.vision.image_size
    found = needs(config, asked(IMAGE, 7, tiles=[1], size=side))
    by_module, _ = counted(lambda: vita.encode_images(noise(1, 3, side, side)))
    assert found["flops"]["vision"] == found["flops"]["vision_tile"] == by_module["VisionTower"]
    wide = noise(2, 3, side, 2 * side)
    by_module, _ = counted(lambda: vita.encode_images(wide))
    found = needs(config, Prepared(torch.tensor([IMAGE]), [wide], []))
    assert found["flops"]["vision"] == by_module["VisionTower"]
    assert found["flops"]["projector"] == by_module["Projector"]
    assert found["positions"]["image"] == len(vita.encode_images(wide).flatten(0, 1))


def test_a_token_is_one_step_behind_the_longest_request():
    vita = tiny_vita()
    one, two = (needs(vita.config, asked(*range(9)), max_new_tokens=n)["flops"] for n in (5, 6))
    assert two["decode"] - one["decode"] == one["token"] and two["prefill"] == one["prefill"]
    assert needs(vita.config, asked(1), max_new_tokens=1)["flops"]["decode"] == 0


def test_requests_in_groups_add_their_operations_and_share_no_cache():
    ready = [asked(*range(3)), asked(*range(5)), asked(*range(9))]  # the longest has a cache of its own
    found = needs(CONFIG, *ready, group=2, max_new_tokens=4)
    parts = [needs(CONFIG, *ready[:2], max_new_tokens=4), needs(CONFIG, ready[2], max_new_tokens=4)]
    assert found["flops"]["total"] == sum(p["flops"]["total"] for p in parts)
    assert found["kv_bytes"] == max(p["kv_bytes"] for p in parts) and found["positions"]["longest"] == 9
    assert found["positions"]["total"] == 17 and found["positions"]["with_new"] == 13


def most_alive(run):
    """Bytes of the tensors that ``run`` makes, where they are most."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


PEAKS = {
    "text": [asked(*range(50), *range(50), *range(50))],
    "padded": [asked(*[7] * 700), asked(*[7] * 500)],
    "picture": [asked(IMAGE, 5, tiles=[60])],
    "sound": [asked(AUDIO, 5, frames=[2000])],
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_about_what_a_run_takes(name):
    wide = replace(CONFIG.decoder, hidden_size=64, intermediate_size=300, num_attention_heads=8, head_dim=8)
    vita, ready = tiny_vita(decoder=wide), PEAKS[name]
    found = needs(vita.config, *ready, max_new_tokens=3)
    media = sum(x.nbytes for r in ready for x in (*r.images, *r.sounds))
    more = found["peak_bytes"] - found["weights"]["total"]["bytes"] - media
    real = most_alive(lambda: vita.generate(max_new_tokens=3, eos_token_id=(), **batch(ready)))
    assert 0.9 * real < more < 1.2 * real


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_peak_is_not_below_what_loading_takes(tmp_path, quantize):
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, vocab_size=30000))
    make_checkpoint.write(tmp_path, "demo", config=config)
    found = needs(config, asked(7), quantize=quantize, max_new_tokens=1)
    real = most_alive(lambda: Vita.from_pretrained(tmp_path, quantize=quantize, mmap=False))
    mapped = (tmp_path / "model.safetensors").stat().st_size  # counted as if it were memory
    assert found["weights"]["total"]["bytes"] <= real - mapped <= found["peak_bytes"]


def test_packing_holds_the_largest_matrix_twice_for_a_moment():
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, vocab_size=30000))
    plain, packed = (needs(config, asked(7), pack=pack, max_new_tokens=1) for pack in (False, True))
    largest = 4 * 30000 * CONFIG.decoder.hidden_size
    assert packed["peak_bytes"] == packed["weights"]["total"]["bytes"] + largest > plain["peak_bytes"]


def test_what_a_real_run_would_refuse_is_refused():
    with pytest.raises(ValueError, match="too short"):
        needs(CONFIG, asked(AUDIO, frames=[6]))
    with pytest.raises(ValueError, match="2 image placeholders, but 1 images"):
        needs(CONFIG, asked(IMAGE, IMAGE, tiles=[1]))


# ---- folders and the command line


def folder_of(path, preset, **changes):
    """A tiny folder in one of the three formats."""
    tiny = replace(VitaConfig.preset(preset), dtype="float32", eos_token_ids=(299,), **changes)
    d = replace(CONFIG.decoder, vocab_size=300, hidden_size=24, num_attention_heads=3, num_key_value_heads=1)
    parts = {} if preset == "qwen2-7b" else {"vision": CONFIG.vision, "audio": CONFIG.audio}
    parts["audio"] = replace(parts["audio"], num_mel_bins=80) if parts else None
    make_checkpoint.write(path, preset, config=replace(tiny, decoder=d, **parts))
    return path


@pytest.fixture
def run(capsys, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a dry run reads no weights")

    monkeypatch.setattr(checkpoint, "load_weights", refuse)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def call(*flags):
        status = main(["--dry-run", *map(str, flags)])
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize("preset", ["demo", "qwen2-7b", "vita-1.5"])
def test_every_kind_of_folder_is_answered_with_its_weights_and_without(run, tmp_path, preset):
    folder = folder_of(tmp_path / "model", preset)
    ask = ("--model", folder, "--prompt", "hi", "--json")
    status, out, err = run(*ask)
    found = json.loads(out)
    assert status == 0 and err == "" and found["disk"]["dtypes"][0] == "F32" and found["disk"]["absent"] is None
    assert found["weights"]["total"]["bytes"] < found["disk"]["bytes"]
    for file in folder.glob("*.safetensors"):
        file.unlink()
    again = json.loads(run(*ask)[1])
    assert "no model.safetensors" in again["disk"].pop("absent") and again["disk"]["bytes"] == 0
    assert {k: v for k, v in again.items() if k != "disk"} == {k: v for k, v in found.items() if k != "disk"}
    assert "on disk: nothing to be read, " in run(*ask[:-1])[1]


def test_the_vocabulary_is_that_of_the_tensors_where_a_vita_folder_says_another(run, tmp_path):
    folder = folder_of(tmp_path / "model", "vita-1.5")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vocab_size": 999}))
    found = json.loads(run("--model", folder, "--prompt", "hi", "--json")[1])
    assert found["weights"]["head"]["parameters"] == 300 * 24


def test_what_is_cut_off_and_what_is_not_there_is_told(run, tmp_path):
    folder = folder_of(tmp_path / "model", "vita-1.5", tokenizer_model_max_length=8)
    ask = ("--model", folder, "--prompt", "hi", "--raw")
    assert "cut off" not in run(*ask)[1] and "without" not in run(*ask)[1]
    assert "2 more do not fit" in run(*ask[:3], "hi" * 5, "--raw")[1]
    (folder / make_checkpoint.VISION_FOLDER).rename(tmp_path / "elsewhere")
    status, out, _ = run(*ask)
    assert status == 0 and "without vision: its folder" in out and "  vision  " not in out.split("KV cache")[0]


def test_weights_that_do_not_fit_the_config_are_told_before_they_are_read(run, tmp_path):
    folder = folder_of(tmp_path / "model", "demo")
    raw = json.loads((folder / "config.json").read_text())
    raw["decoder"]["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(raw))
    status, out, err = run("--model", folder, "--prompt", "hi")
    assert status == 2 and out == "" and "gate_proj" in err and err.count("\n") == 1


def test_a_dry_run_counts_the_positions_that_the_answer_counts(capsys, tmp_path):
    Image.new("RGB", (50, 40), (10, 200, 30)).save(tmp_path / "x.png")
    flags = ["--image", str(tmp_path / "x.png"), "--prompt", "hi", "--json", "--max-new-tokens", "2"]
    found = []
    for more in ([], ["--dry-run"]):
        assert main(flags + more) == 0
        found.append(json.loads(capsys.readouterr().out))
    counts, positions = found[0]["prompt"], found[1]["positions"]
    assert counts == {f"{k}_tokens": positions[k] for k in ("text", "image", "audio")} | {"total": positions["total"]}
    assert positions["with_new"] == positions["total"] + 2


def test_dtype_int8_and_ranks_change_the_table(run, monkeypatch):
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
    assert run(*ask) == (0, "", "")  # the first says it for all


def test_a_batch_is_told_as_a_whole(run, tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "hi " * n}) for n in range(1, 11)))
    status, out, _ = run("--batch", file)
    assert status == 0 and "10 requests, the longest of" in out
    found = json.loads(run("--batch", file, "--json")[1])
    assert len(found["requests"]) == 10 and found["positions"]["total"] == sum(r["total"] for r in found["requests"])
    file.write_text('{"prompt": "hi"}\n{"images": ["nowhere.png"]}')
    status, out, err = run("--batch", file)
    assert status == 2 and out == "" and "request 2" in err


MEND = {"heads": ("--ranks", 3), "--ranks": ("--ranks", 0), "nowhere.wav": ("--audio", "nowhere.wav")}


@pytest.mark.parametrize("told, flags", MEND.items())
def test_what_can_be_mended_gets_one_line(run, told, flags):
    status, out, err = run("--prompt", "hi", *flags)
    assert status == 2 and out == "" and told in err and err.count("\n") == 1


def test_ranks_are_for_dry_runs(capsys):
    assert main(["--prompt", "hi", "--ranks", "2"]) == 2 and "--ranks needs --dry-run" in capsys.readouterr().err


def test_numbers_are_told_in_four_figures():
    told = {0: "0 B", 999: "999 B", 1_090_000_000: "1.09 GB", 16_645_894_464: "16.65 GB"}
    assert {n: budget.short(n, "B") for n in told} == told
