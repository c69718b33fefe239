"""The command line on a tiny random checkpoint: what it prints, where, and how it refuses."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from tools import make_checkpoint
from vita_ref import Vita, VitaConfig
from vita_ref.config import DecoderConfig, VisionConfig
from vita_ref.generate import main
from vita_ref.loading import demo_folder
from vita_ref.prompt import split_state

CONFIG = replace(
    VitaConfig.preset("demo"),
    decoder=DecoderConfig(300, 32, 40, 2, 6, 3, 4),
    vision=VisionConfig(16, 20, 1, 2, image_size=28, patch_size=7),
    audio=None,
    eos_token_ids=(299,),
    template="chatml",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make_checkpoint.write(path, "demo", seed=3, config=CONFIG)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (50, 40), (10, 200, 30)).save(path)
    return str(path)


@pytest.fixture
def run(folder, capsys):
    def call(*flags, model=folder):
        try:
            status = main(["--model", str(model), *map(str, flags)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_the_answer_and_nothing_else_goes_to_standard_output(run, picture):
    status, out, err = run("--image", picture, "--max-new-tokens", 5)
    assert status == 0 and out.endswith("\n") and err == ""


def test_streaming_prints_what_printing_at_the_end_prints(run, picture):
    flags = ("--image", picture, "--max-new-tokens", 12, "--prompt", "What? 你好")
    assert run(*flags)[1].rstrip("\n") == run(*flags, "--no-stream")[1].rstrip("\n")


def test_json_counts_the_positions_and_agrees_with_respond(run, folder, picture):
    status, out, _ = run("--image", picture, "--prompt", "hi", "--json", "--max-new-tokens", 6, "--top", 3)
    found = json.loads(out)
    assert status == 0 and out.count("\n") == 1
    assert found["prompt"]["image_tokens"] == CONFIG.vision.num_positions == 4
    assert found["prompt"]["total"] == sum(found["prompt"][f"{k}_tokens"] for k in ("text", "image", "audio"))
    assert len(found["token_ids"]) == 6 and found["finish_reason"] == "length" and found["state"] is None
    assert set(found["timing"]) == {"load_s", "prefill_s", "decode_s", "tokens_per_s"}
    vita = Vita.from_pretrained(folder)
    assert vita.respond("hi", images=[picture], max_new_tokens=6) == found["text"].strip()
    assert found["top"][0]["token_id"] == found["token_ids"][0]
    chances = [t["probability"] for t in found["top"]]
    assert chances == sorted(chances, reverse=True) and len(chances) == 3 and sum(chances) <= 1


def test_the_end_token_stops_the_answer(run, folder, picture):
    first = json.loads(run("--image", picture, "--json", "--max-new-tokens", 3)[1])["token_ids"][0]
    vita = Vita.from_pretrained(folder)
    vita.config = replace(vita.config, eos_token_ids=(first,))
    assert vita.respond(images=[picture], max_new_tokens=3) == ""


def test_a_picture_comes_from_standard_input(run, picture, monkeypatch):
    want = run("--image", picture, "--json", "--max-new-tokens", 4)[1]
    data = io.BytesIO(Path(picture).read_bytes())
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": data})())
    got = run("--image", "-", "--json", "--max-new-tokens", 4)[1]
    assert json.loads(got)["token_ids"] == json.loads(want)["token_ids"]


def test_a_seed_repeats_a_sampled_answer_and_raw_leaves_the_template_out(run):
    flags = ("--prompt", "hi", "--temperature", 1, "--json", "--max-new-tokens", 8)
    ids = [json.loads(run(*flags, "--seed", s)[1])["token_ids"] for s in (5, 5, 6)]
    assert ids[0] == ids[1] != ids[2]
    raw = json.loads(run("--prompt", "hi", "--raw", "--json", "--max-new-tokens", 1)[1])
    assert raw["prompt"] == {"text_tokens": 2, "image_tokens": 0, "audio_tokens": 0, "total": 2}


def test_a_batch_answers_each_line_as_if_it_were_alone_and_in_order(run, picture, tmp_path):
    lines = [{"prompt": f"question {i}" * i, "images": ["x.png"] * (i % 3)} for i in range(1, 11)]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    status, out, _ = run("--batch", file, "--max-new-tokens", 5)
    together = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(together) == len(lines)
    for asked, got in zip(lines, together):
        images = [f for path in asked["images"] for f in ("--image", tmp_path / path)]
        alone = json.loads(run("--prompt", asked["prompt"], *images, "--json", "--max-new-tokens", 5)[1])
        assert {k: v for k, v in got.items() if k != "timing"} == {k: v for k, v in alone.items() if k != "timing"}


def test_a_line_of_a_batch_may_hold_other_signs_that_end_lines(run, tmp_path):
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "a\u2028b\u0085c"}, ensure_ascii=False), encoding="utf-8")
    assert run("--batch", tmp_path / "asked.jsonl", "--max-new-tokens", 2)[0] == 0


def test_a_prompt_whose_end_would_be_cut_off_is_refused_before_anything_is_answered(folder, run, picture, tmp_path):
    shutil.copytree(folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text()) | {"tokenizer_model_max_length": 40}
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "b" * 99}))
    status, out, err = run("--batch", tmp_path / "asked.jsonl", model=tmp_path / "short")
    whole = json.loads(run("--prompt", "b" * 99, "--json", "--max-new-tokens", 1)[1])["prompt"]["total"]
    assert status == 2 and out == "" and "request 2" in err and f"{whole} positions" in err and "at most 40" in err
    assert run("--prompt", "b" * 99, "--dry-run", model=tmp_path / "short")[0] == 0
    with pytest.raises(ValueError, match="at most 40"):
        Vita.from_pretrained(tmp_path / "short").respond("b" * 99)


def test_a_sound_too_short_to_hear_is_refused_before_anything_is_answered(run, tmp_path):
    soundfile.write(tmp_path / "short.wav", [0.1] * 800, 16000)
    soundfile.write(tmp_path / "long.wav", [0.1] * 8000, 16000)
    lines = [{"audios": ["long.wav"]}] * 9 + [{"audios": ["short.wav"]}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, out, err = run("--batch", tmp_path / "asked.jsonl", "--max-new-tokens", 2, model=demo_folder())
    assert status == 2 and out == "" and "request 10" in err and "too short" in err


def test_int8_and_other_dtypes_answer(run):
    for flags in (("--quantize", "int8"), ("--dtype", "bfloat16"), ("--dtype", "float16")):
        assert run("--prompt", "hi", "--max-new-tokens", 2, *flags)[0] == 0


def test_packed_weights_answer_alike(run):
    asked = ("--prompt", "hi", "--max-new-tokens", 6, "--dtype", "float32")
    assert run(*asked, "--pack")[:2] == run(*asked)[:2]


BAD = {
    "nothing asked": ((), "prompt"),
    "no such picture": (("--image", "nowhere.jpg"), "nowhere.jpg"),
    "a folder that is none": (("--model", "nowhere", "--prompt", "x"), "nowhere"),
    "too many pictures": (("--prompt", "<image>", "--image", "PIC", "--image", "PIC"), "2"),
    "a sound for a deaf one": (("--audio", "x.wav"), "sounds"),
    "temperature": (("--prompt", "x", "--temperature", -1), "temperature"),
    "top-p": (("--prompt", "x", "--top-p", 2), "top_p"),
    "tokens": (("--prompt", "x", "--max-new-tokens", 0), "--max-new-tokens"),
    "a number that is none": (("--prompt", "x", "--top-k", "many"), "--top-k"),
    "an unknown flag": (("--prompt", "x", "--colour"), "--colour"),
    "packed whole numbers": (("--prompt", "x", "--pack", "--quantize", "int8"), "--pack"),
    "top without json": (("--prompt", "x", "--top", 2), "--json"),
    "two systems": (("--prompt", "x", "--system", "a", "--system-file", "b"), "--system-file"),
    "a missing system file": (("--prompt", "x", "--system-file", "nowhere.txt"), "nowhere.txt"),
    "a device": (("--prompt", "x", "--device", "toaster"), "toaster"),
    "a device without numbers": (("--prompt", "x", "--device", "meta"), "--dry-run"),
    "more than any memory": (("--prompt", "x", "--max-new-tokens", 10**12), "--dry-run"),
    "a name that no file can have": (("--prompt", "x", "--video", "a" * 300), "a" * 300),
    "a folder to speak into": (("--prompt", "x", "--speak", "/"), "folder"),
    "a missing batch": (("--batch", "nowhere.jsonl"), "nowhere.jsonl"),
    "batch and prompt": (("--batch", "x", "--prompt", "y"), "--batch"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_status_2(run, picture, name):
    flags, told = BAD[name]
    status, out, err = run(*(picture if f == "PIC" else f for f in flags))
    assert status == 2 and out == "" and err.count("\n") == 1 and told in err and "Traceback" not in err


@pytest.mark.parametrize("line", ["{", "[]", '{"picture": 1}', '{"images": "x.png"}', '{"images": ["nowhere.png"]}', '{"images": [1]}', "{}"])
def test_a_bad_line_of_a_batch_is_told_before_anything_is_answered(run, tmp_path, line):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line)
    status, out, err = run("--batch", file)
    assert status == 2 and out == "" and err.count("\n") == 1 and "request 2" in err


def test_a_picture_that_does_not_decode_is_told(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    status, out, err = run("--image", tmp_path / "broken.jpg")
    assert status == 2 and out == "" and "broken.jpg" in err and err.count("\n") == 1


def test_a_checkpoint_with_a_misshapen_tensor_is_told(run, folder, tmp_path):
    for name in ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(33)
    save_file(tensors, tmp_path / "model.safetensors")
    status, _, err = run("--prompt", "x", model=tmp_path)
    assert status == 2 and "model.norm.weight" in err and err.count("\n") == 1


SPEECH = Path(__file__).parent / "golden" / "tts"


def test_an_answer_is_spoken_into_a_file_and_printed_too(run, tmp_path):
    flags = ("--prompt", "hi", "--max-new-tokens", 12)
    status, out, err = run(*flags, "--speech-dir", SPEECH, "--speak", tmp_path / "out.wav")
    assert status == 0 and err == "" and out == run(*flags)[1]
    sound = soundfile.info(tmp_path / "out.wav")
    assert (sound.samplerate, sound.channels) == (24000, 1)
    assert [f.name for f in tmp_path.iterdir()] == ["out.wav"]


def test_speech_is_that_of_its_sentences_and_a_speed_keeps_its_length_in_proportion(folder):
    vita = Vita.from_pretrained(folder, speech_dir=SPEECH)
    assert vita.config.speech is not None
    options = {"max_tokens": 20}
    both, rate = vita.speak("Hello there. Two cats!", **options)
    each = [vita.speak(text, **options)[0] for text in ("Hello there.", "Two cats!")]
    assert rate == 24000 and both.dtype == torch.float32 and both.abs().max() <= 1
    assert both.equal(torch.cat(each)) and torch.cat(list(vita.speak_stream("Two cats!", **options))).equal(each[1])
    written = vita.speak_stream(iter(["Hello th", "ere. Two", " cats!"]), **options)
    assert torch.cat(list(written)).equal(both)
    assert abs(len(vita.speak("Two cats!", speed=2.0, **options)[0]) * 2 - len(each[1])) <= 4


def test_without_speech_weights_nothing_is_written(run, folder, tmp_path):
    status, out, err = run("--prompt", "hi", "--speak", tmp_path / "out.wav")
    assert status == 2 and out == "" and "cannot speak" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir()) and Vita.from_pretrained(folder).speech is None
    status, _, err = run("--prompt", "hi", "--speak", tmp_path / "nowhere" / "out.wav")
    assert status == 2 and "folder" in err


def test_a_state_mark_is_reported_and_not_printed():
    assert split_state("☞Yes.", "vita") == ("☞", "Yes.")
    assert split_state(" ☟", "vita") == ("☟", "")
    assert split_state("☞Yes.", "chatml") == (None, "☞Yes.")
    assert split_state("Yes ☞", "vita") == (None, "Yes ☞")
