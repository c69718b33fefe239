"""The command line with a tiny random checkpoint: what it prints, where it prints it, and what it refuses."""

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import GOLDEN
from PIL import Image
from safetensors.torch import load_file, save_file

from tools import make_checkpoint
from vita_ref import Vita, VitaConfig
from vita_ref.config import DecoderConfig, VisionConfig
from vita_ref.generate import main
from vita_ref.loading import demo_folder
from vita_ref.model import Step
from vita_ref.request import Request
from vita_ref.sampling import Sampling

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


@pytest.fixture(scope="module")
def vita_folder(tmp_path_factory):
    """The same checkpoint with VITA's template, whose answers may begin with a state mark."""
    path = tmp_path_factory.mktemp("vita")
    make_checkpoint.write(path, "demo", seed=3, config=replace(CONFIG, template="vita"))
    return path


@pytest.fixture
def image_file(tmp_path):
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


# ---- what is printed


@pytest.mark.parametrize("flags", [(), ("--no-stream",), ("--verbose",), ("--verbose", "--no-stream")])
def test_the_answer_and_a_newline_are_all_that_standard_output_gets(run, folder, image_file, flags):
    status, out, err = run("What? 你好", "--image", image_file, "--max-new-tokens", 12, *flags)
    vita = Vita.from_pretrained(folder)
    prepared = vita.prepare(Request("What? 你好", [image_file]))
    text = vita.text(vita.generate([prepared.ids], images=prepared.images, max_new_tokens=12)[0])
    assert status == 0 and len(text) > 5 and out == text + "\n"
    if "--verbose" in flags:
        assert all(name in err for name in ("load_s", "prefill_s", "decode_s", "tokens_per_s", "positions"))
    else:
        assert err == ""


def test_json_gives_the_answer_of_respond_its_tokens_and_the_positions_of_the_prompt(run, folder, image_file):
    status, out, _ = run("--image", image_file, "--prompt", "hi", "--json", "--max-new-tokens", 6, "--top", 3)
    found = json.loads(out)
    assert status == 0 and out.count("\n") == 1
    template = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    text_tokens = len(template.encode()) - sum(len(text) - 1 for text in re.findall(r"<\|.*?\|>", template))
    counts = {"text_tokens": text_tokens, "image_tokens": 4, "audio_tokens": 0}  # (28 / 7 / 2)² = 4
    assert found["prompt"] == counts | {"total": text_tokens + 4}
    vita = Vita.from_pretrained(folder)
    prepared = vita.prepare(Request("hi", [image_file]))
    new = vita.generate([prepared.ids], images=prepared.images, max_new_tokens=6)[0]
    assert found["token_ids"] == new.tolist() and len(new) == 6
    assert found["text"] == vita.text(new)
    assert vita.respond("hi", images=[image_file], max_new_tokens=6) == vita.text(new).strip()
    assert found["finish_reason"] == "length" and found["state"] is None
    assert set(found["timing"]) == {"load_s", "prefill_s", "decode_s", "tokens_per_s"}


def test_top_gives_the_likeliest_first_tokens_with_their_probabilities(run, folder):
    found = json.loads(run("--prompt", "hi", "--json", "--max-new-tokens", 2, "--top", 3)[1])
    vita = Vita.from_pretrained(folder)
    probabilities = vita(vita.prepare(Request("hi")).ids[None]).logits[0, -1].softmax(-1)
    likeliest = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:3]
    assert [each["token_id"] for each in found["top"]] == likeliest and likeliest[0] == found["token_ids"][0]
    assert [each["probability"] for each in found["top"]] == pytest.approx(probabilities[likeliest].tolist(), rel=1e-4)
    assert [each["token"] for each in found["top"]] == [vita.text([i], False) for i in likeliest]


@pytest.mark.parametrize(
    "text, printed, state",
    [
        ("☞ Hello", "Hello", "☞"),
        ("\n☟ x\n", "x\n", "☟"),
        ("☜", "", "☜"),
        ("Hello ☞", "Hello ☞", None),
        (" Hello", " Hello", None),
    ],
)
def test_streaming_no_stream_json_and_respond_give_the_same_text_after_a_state_mark(
    monkeypatch, run, vita_folder, text, printed, state
):
    """The loop is replaced by one that gives the bytes of a text, each a token of this tokenizer, and then the end token."""

    def scripted_steps(self, x, options, errors, **more):
        for token in [*text.encode(), 299]:
            yield Step(torch.tensor([token]), torch.zeros(1, 300), torch.tensor([False]))

    monkeypatch.setattr(Vita, "steps", scripted_steps)
    found = json.loads(run("hi", "--json", model=vita_folder)[1])
    assert (found["text"], found["state"], found["finish_reason"]) == (printed, state, "stop")
    assert found["token_ids"] == list(text.encode())
    assert run("hi", model=vita_folder) == run("hi", "--no-stream", model=vita_folder) == (0, printed + "\n", "")
    assert Vita.from_pretrained(vita_folder).respond("hi") == printed.strip()


def test_an_answer_ends_at_the_stop_text_of_the_template(monkeypatch, run, vita_folder):
    """VITA's template ends an answer at <|im_start|>, which is none of the checkpoint's end tokens."""
    vita = Vita.from_pretrained(vita_folder)
    stop = vita.tokenizer.id_of("<|im_start|>")
    assert stop is not None and stop not in vita.config.eos_token_ids
    text = "yes"

    def scripted_steps(self, x, options, errors, **more):
        for token in [*text.encode(), stop, *b"no"]:
            yield Step(torch.tensor([token]), torch.zeros(1, 300), torch.tensor([False]))

    monkeypatch.setattr(Vita, "steps", scripted_steps)
    found = json.loads(run("hi", "--json", model=vita_folder)[1])
    assert (found["text"], found["finish_reason"], found["token_ids"]) == (text, "stop", list(text.encode()))


def test_the_loop_stops_at_the_stop_text_of_the_template(vita_folder):
    vita = Vita.from_pretrained(vita_folder)
    stop = vita.tokenizer.id_of("<|im_start|>")
    assert stop in vita.stop_ids
    bias = torch.zeros(vita.config.decoder.vocab_size)
    bias[stop] = 1e4  # it is the likeliest token from the first step on
    vita.decoder.lm_head.register_forward_hook(lambda head, args, logits: logits + bias)
    assert vita.respond("hi", max_new_tokens=9) == ""
    [prepared] = [vita.prepare(Request("hi"))]
    steps = [[answer.token_ids for answer in answers] for answers in vita.answer([prepared], Sampling(max_new_tokens=9))]
    assert len(steps) == 2  # the step of the stop token, and the end


def test_a_streamed_answer_is_printed_piece_by_piece(monkeypatch, run):
    """At each step, all text that is complete so far has been printed: UTF-8 characters need several tokens here."""
    printed, output = [], io.StringIO()

    def scripted_steps(self, x, options, errors, **more):
        for token in [*"é ok".encode(), 299]:
            yield Step(torch.tensor([token]), torch.zeros(1, 300), torch.tensor([False]))
            printed.append(output.getvalue())

    monkeypatch.setattr(Vita, "steps", scripted_steps)
    monkeypatch.setattr(sys, "stdout", output)
    assert run("hi")[0] == 0
    assert printed == ["", "é", "é ", "é o", "é ok", "é ok"]


def test_an_end_token_of_the_config_stops_the_answer_and_is_not_in_it(run, folder, tmp_path):
    flags = ("--prompt", "hi", "--json", "--max-new-tokens", 6)
    ids = json.loads(run(*flags)[1])["token_ids"]
    end = next(i for i in range(1, 6) if ids[i] not in ids[:i])
    shutil.copytree(folder, tmp_path / "ends")
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_ids": [ids[end]]}
    (tmp_path / "ends" / "config.json").write_text(json.dumps(config))
    found = json.loads(run(*flags, model=tmp_path / "ends")[1])
    assert found["token_ids"] == ids[:end] and found["finish_reason"] == "stop"


# ---- flags


def test_loading_flags_are_passed_on(monkeypatch, run, folder):
    """What each option does is shown in test_loading.py, scale/ and files/."""
    given = {}

    def from_pretrained(folder=None, **options):
        given.update(options, folder=folder)
        raise ValueError("stop here")

    monkeypatch.setattr(Vita, "from_pretrained", from_pretrained)
    run("hi")
    assert given.pop("progress") is None
    defaults = {"dtype": None, "device": "cpu", "quantize": None, "kernels": "auto", "vision_dir": None, "audio_dir": None}
    defaults |= {"speech_dir": None, "split": False, "pack": False, "mmap": True, "folder": str(folder)}
    assert given == defaults
    for flags, expected in [
        (("--dtype", "bfloat16", "--quantize", "int8"), {"dtype": torch.bfloat16, "quantize": "int8"}),
        (("--kernels", "plain", "--pack", "--no-mmap"), {"kernels": "plain", "pack": True, "mmap": False}),
        (("--vision-dir", "v", "--audio-dir", "a"), {"vision_dir": "v", "audio_dir": "a"}),
        (("--speech-dir", "s"), {"speech_dir": "s"}),
    ]:
        given.clear()
        run("hi", *flags)
        assert given | {"progress": None} == defaults | expected | {"progress": None}


def test_request_flags_are_passed_on(monkeypatch, run, tmp_path):
    (tmp_path / "system.txt").write_text("be brief")
    requests = []

    def prepare(self, request, max_new_tokens):
        requests.append(request)
        raise ValueError("stop here")

    monkeypatch.setattr(Vita, "prepare", prepare)
    run("--prompt", "hi")
    run("hi", "--image", "a", "--image", "b", "--audio", "c", "--video", "d", "--system", "be long", "--raw")
    run("hi", "--max-tiles", 3, "--fps", 2, "--max-frames", 5, "--system-file", tmp_path / "system.txt")
    assert requests == [
        Request("hi"),
        Request("hi", ["a", "b"], ["c"], "d", "be long", raw=True),
        Request("hi", system="be brief", max_tiles=3, fps=2.0, max_frames=5),
    ]


def test_sampling_flags_are_passed_on(run, folder):
    flags = ("--temperature", 1.5, "--top-p", 0.9, "--top-k", 40, "--repetition-penalty", 1.2, "--max-new-tokens", 8)
    found = json.loads(run("--prompt", "hi", "--json", "--seed", 5, *flags)[1])
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "max_new_tokens": 8}
    vita = Vita.from_pretrained(folder)
    ids, generator = vita.prepare(Request("hi")).ids[None], torch.Generator().manual_seed(5)
    assert found["token_ids"] == vita.generate(ids, **options, generator=generator)[0].tolist()


def test_threads_sets_the_number_of_threads(run):
    before = torch.get_num_threads()
    try:
        run("hi", "--max-new-tokens", 1, "--threads", before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_image_may_come_from_standard_input(run, image_file, monkeypatch):
    expected = json.loads(run("--image", image_file, "--json", "--max-new-tokens", 4)[1])
    data = io.BytesIO(Path(image_file).read_bytes())
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": data})())
    got = json.loads(run("--image", "-", "--json", "--max-new-tokens", 4)[1])
    assert got["token_ids"] == expected["token_ids"] and got["prompt"] == expected["prompt"]


def test_a_seed_repeats_a_sampled_answer(run):
    flags = ("--prompt", "hi", "--temperature", 1, "--json", "--max-new-tokens", 8)
    ids = [json.loads(run(*flags, "--seed", seed)[1])["token_ids"] for seed in (5, 5, 6)]
    assert ids[0] == ids[1] != ids[2]


def test_raw_leaves_the_chat_template_out(run):
    raw = json.loads(run("--prompt", "hi", "--raw", "--json", "--max-new-tokens", 1)[1])
    assert raw["prompt"] == {"text_tokens": 2, "image_tokens": 0, "audio_tokens": 0, "total": 2}


# ---- batches


def test_each_line_of_a_batch_has_the_answer_that_it_has_alone_in_the_order_of_the_lines(run, image_file, tmp_path):
    lines = [{"prompt": f"question {i}" * i, "images": ["x.png"] * (i % 3)} for i in range(1, 11)]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    status, out, _ = run("--batch", file, "--max-new-tokens", 5)
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(answers) == len(lines)
    for request, got in zip(lines, answers):
        images = [f for path in request["images"] for f in ("--image", tmp_path / path)]
        alone = json.loads(run("--prompt", request["prompt"], *images, "--json", "--max-new-tokens", 5)[1])
        assert {k: v for k, v in got.items() if k != "timing"} == {k: v for k, v in alone.items() if k != "timing"}


def test_a_line_of_a_batch_may_contain_unicode_line_separators(run, tmp_path):
    prompt = "a\u2028b\u0085c"
    (tmp_path / "requests.jsonl").write_text(json.dumps({"prompt": prompt}, ensure_ascii=False), encoding="utf-8")
    status, out, _ = run("--batch", tmp_path / "requests.jsonl", "--max-new-tokens", 2)
    alone = json.loads(run("--prompt", prompt, "--json", "--max-new-tokens", 2)[1])
    assert status == 0 and out.count("\n") == 1
    assert all(json.loads(out)[name] == alone[name] for name in ("prompt", "token_ids"))


def test_a_prompt_whose_end_would_be_cut_off_is_refused(folder, run, image_file, tmp_path):
    shutil.copytree(folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text()) | {"tokenizer_model_max_length": 40}
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    (tmp_path / "requests.jsonl").write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "b" * 99}))
    status, out, err = run("--batch", tmp_path / "requests.jsonl", model=tmp_path / "short")
    whole = json.loads(run("--prompt", "b" * 99, "--json", "--max-new-tokens", 1)[1])["prompt"]["total"]
    assert status == 2 and "request 2" in err and f"{whole} positions" in err and "at most 40" in err
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True]
    for more in ((), ("--dry-run",)):
        status, out, err = run("--prompt", "b" * 99, *more, model=tmp_path / "short")
        assert status == 2 and out == "" and f"{whole} positions" in err and "at most 40" in err
    with pytest.raises(ValueError, match="at most 40"):
        Vita.from_pretrained(tmp_path / "short").respond("b" * 99)


def test_a_sound_that_is_too_short_is_refused(run, tmp_path):
    soundfile.write(tmp_path / "short.wav", [0.1] * 800, 16000)
    soundfile.write(tmp_path / "long.wav", [0.1] * 8000, 16000)
    lines = [{"audios": ["long.wav"]}] * 9 + [{"audios": ["short.wav"]}]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, out, err = run("--batch", tmp_path / "requests.jsonl", "--max-new-tokens", 2, model=demo_folder())
    assert status == 2 and "request 10" in err and "it has 50 ms; a sound needs at least 85 ms" in err
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False] * 9 + [True]


# ---- dtypes, int8 and packed weights


@pytest.mark.parametrize(
    "flags, options, difference",
    [
        (("--quantize", "int8"), {"quantize": "int8"}, 0.02),
        (("--dtype", "bfloat16"), {"dtype": torch.bfloat16}, 0.02),
        (("--dtype", "float16"), {"dtype": torch.float16}, 0.002),
    ],
)
def test_int8_and_half_precision_change_the_probabilities_a_little(run, folder, flags, options, difference):
    """The command line has the probabilities of a model loaded with these options; they are near those of float32, not equal."""
    found = json.loads(run("--prompt", "hi", "--max-new-tokens", 1, "--json", "--top", 300, *flags)[1])["top"]
    got = torch.tensor([each["probability"] for each in sorted(found, key=lambda each: each["token_id"])])
    models = [Vita.from_pretrained(folder, **each) for each in (options, {"dtype": torch.float32})]
    ids = models[0].prepare(Request("hi")).ids[None]
    same, exact = (model(ids).logits[0, -1].float().softmax(-1) for model in models)
    torch.testing.assert_close(got, same, atol=1e-4, rtol=0.02)
    assert 0 < (got - exact).abs().max() < difference


def test_packed_weights_give_the_same_answer(run):
    flags = ("--prompt", "hi", "--max-new-tokens", 6, "--dtype", "float32")
    assert run(*flags, "--pack")[:2] == run(*flags)[:2]


# ---- wrong input


WRONG = {
    "no prompt and no media": ((), "prompt"),
    "an image that does not exist": (("--image", "nowhere.jpg"), "nowhere.jpg"),
    "a model folder that does not exist": (("--model", "nowhere", "--prompt", "x"), "nowhere"),
    "more images than placeholders": (("--prompt", "<image>", "--image", "IMAGE", "--image", "IMAGE"), "2"),
    "a sound without an audio encoder": (("--audio", "x.wav"), "sounds"),
    "a negative temperature": (("--prompt", "x", "--temperature", -1), "temperature"),
    "top-p above 1": (("--prompt", "x", "--top-p", 2), "top_p"),
    "no new tokens": (("--prompt", "x", "--max-new-tokens", 0), "--max-new-tokens"),
    "a text for a number": (("--prompt", "x", "--top-k", "many"), "--top-k"),
    "an unknown flag": (("--prompt", "x", "--colour"), "--colour"),
    "unknown kernels": (("--prompt", "x", "--kernels", "faster"), "--kernels"),
    "packed int8 weights": (("--prompt", "x", "--pack", "--quantize", "int8"), "--pack"),
    "top without json": (("--prompt", "x", "--top", 2), "--json"),
    "two system texts": (("--prompt", "x", "--system", "a", "--system-file", "b"), "--system-file"),
    "a system file that does not exist": (("--prompt", "x", "--system-file", "nowhere.txt"), "nowhere.txt"),
    "an unknown device": (("--prompt", "x", "--device", "toaster"), "toaster"),
    "a processor with a number": (("--prompt", "x", "--device", "cpu:1"), "cpu:1"),
    "a vision folder for a checkpoint of another kind": (("--prompt", "x", "--vision-dir", "/nope"), "--vision-dir"),
    "an audio folder for a checkpoint of another kind": (("--prompt", "x", "--audio-dir", "/nope"), "--audio-dir"),
    "the meta device": (("--prompt", "x", "--device", "meta"), "--dry-run"),
    "more tokens than any context has": (("--prompt", "x", "--max-new-tokens", 10**12), "1000000"),
    "a file name that is too long": (("--prompt", "x", "--video", "a" * 300), "a" * 40),
    "a folder for the speech file": (("--prompt", "x", "--speak", "/"), "folder"),
    "a batch file that does not exist": (("--batch", "nowhere.jsonl"), "nowhere.jsonl"),
    "a batch and a prompt": (("--batch", "x", "--prompt", "y"), "--batch"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_prints_one_line_and_exits_with_status_2(run, image_file, name):
    flags, message = WRONG[name]
    status, out, err = run(*(image_file if f == "IMAGE" else f for f in flags))
    assert status == 2 and out == "" and err.count("\n") == 1 and message in err and "Traceback" not in err


def test_an_image_that_cannot_be_decoded_is_refused(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    status, out, err = run("--image", tmp_path / "broken.jpg")
    assert status == 2 and out == "" and "broken.jpg" in err and err.count("\n") == 1


def test_a_checkpoint_with_a_tensor_of_the_wrong_shape_is_refused(run, folder, tmp_path):
    for name in ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(33)
    save_file(tensors, tmp_path / "model.safetensors")
    status, _, err = run("--prompt", "x", model=tmp_path)
    assert status == 2 and "model.norm.weight" in err and err.count("\n") == 1


# ---- speech

SPEECH = GOLDEN / "tts"


def test_speak_writes_the_speech_of_the_printed_answer(run, folder, tmp_path, monkeypatch):
    stream = Vita.speak_stream  # random weights speak each sentence to the limit
    monkeypatch.setattr(Vita, "speak_stream", lambda self, text, **options: stream(self, text, max_tokens=60, **options))
    flags = ("--prompt", "hi", "--max-new-tokens", 12)
    status, out, err = run(*flags, "--speech-dir", SPEECH, "--speak", tmp_path / "out.wav")
    assert status == 0 and err == "" and out == run(*flags)[1]
    samples, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    waveform, expected_rate = Vita.from_pretrained(folder, speech_dir=SPEECH).speak(out)
    assert rate == expected_rate == 24000 and len(waveform) > 0
    torch.testing.assert_close(torch.from_numpy(samples), waveform, atol=1 / 32768, rtol=0)  # 16-bit samples
    assert [file.name for file in tmp_path.iterdir()] == ["out.wav"]


def test_speech_is_that_of_its_sentences_and_its_length_is_inverse_to_the_speed(folder):
    vita = Vita.from_pretrained(folder, speech_dir=SPEECH)
    assert vita.config.speech is not None
    options = {"max_tokens": 20}
    both, rate = vita.speak("Hello there. Two cats!", **options)
    first, second = (vita.speak(text, **options)[0] for text in ("Hello there.", "Two cats!"))
    assert rate == 24000 and both.dtype == torch.float32 and both.abs().max() <= 1
    assert both.equal(torch.cat([first, second])) and torch.cat(list(vita.speak_stream("Two cats!", **options))).equal(second)
    pieces = vita.speak_stream(iter(["Hello th", "ere. Two", " cats!"]), **options)
    assert torch.cat(list(pieces)).equal(both)
    assert abs(len(vita.speak("Two cats!", speed=2.0, **options)[0]) * 2 - len(second)) <= 4


def test_without_speech_weights_or_a_folder_for_the_file_nothing_is_written(run, folder, tmp_path):
    status, out, err = run("--prompt", "hi", "--speak", tmp_path / "out.wav")
    assert status == 2 and out == "" and "cannot speak" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir()) and Vita.from_pretrained(folder).speech is None
    status, _, err = run("--prompt", "hi", "--speak", tmp_path / "nowhere" / "out.wav")
    assert status == 2 and "folder" in err


def test_a_rank_beyond_the_number_of_processes_is_told(monkeypatch, run):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "5")
    status, out, err = run("hi")
    assert status == 2 and out == "" and err.count("\n") == 1 and "RANK" in err


@pytest.mark.parametrize("value", [5, None, b"hi", ["hi"]])
def test_only_a_string_is_encoded(folder, value):
    with pytest.raises(TypeError, match=f"a text must be a str, got {type(value).__name__}"):
        Vita.from_pretrained(folder).tokenizer.encode(value)
