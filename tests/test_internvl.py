"""InternVL against what transformers gives for the same tiny random weights: pixels, prompts, features, logits, tokens.

tests/golden/internvl has them in both layouts; its cases.json has the questions.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from cli.command_line import call, check_user_error
from conftest import GOLDEN
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tools import dump, make_checkpoint
from vita_ref import Vita
from vita_ref.analysis import budget
from vita_ref.image import load_tiles
from vita_ref.request import Request, prepare_request
from vita_ref.scale.int8 import Int8Linear, quantize

HERE = GOLDEN / "internvl"
CASES, WANT = json.loads((HERE / "cases.json").read_text()), load_file(HERE / "expected.safetensors")
NUMBERS = range(len(CASES))


@pytest.fixture(scope="module", params=["hf", "chat"])
def vita(request):
    return Vita.from_pretrained(HERE / request.param)


@pytest.fixture(scope="module")
def hf():
    return Vita.from_pretrained(HERE / "hf")


def pictures(number):
    return [HERE / name for name in CASES[number]["images"]]


def prepared(vita, number, **request):
    """A case as ids with placeholders and tiles."""
    case = CASES[number]
    request = {"system": case["system"], "images": pictures(number)} | request
    return prepare_request(Request(case["question"], **request), vita.config, vita.tokenizer)


def expanded(vita, prepared):
    """Ids with the context token for each position of each picture, as transformers writes a prompt."""
    counts = iter([len(tiles) * vita.config.vision.num_positions for tiles in prepared.images])
    context, index = vita.tokenizer.id_of("<IMG_CONTEXT>"), vita.config.image_token_index
    return [i for each in prepared.ids.tolist() for i in ([context] * next(counts) if each == index else [each])]


def question(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


# ---- against transformers


@pytest.mark.parametrize("number", [n for n in NUMBERS if f"{n}.pixels" in WANT])
def test_tiles_are_theirs_to_the_bit(number):
    tiles = [load_tiles(picture, tile=56, max_tiles=6) for picture in pictures(number)]
    assert [len(each) for each in tiles] == CASES[number]["tiles"]
    assert torch.cat(tiles).equal(WANT[f"{number}.pixels"])


@pytest.mark.parametrize("number", NUMBERS)
def test_prompts_are_theirs(vita, number):
    got = prepared(vita, number)
    assert expanded(vita, got) == WANT[f"{number}.ids"].tolist()
    assert [len(tiles) for tiles in got.images] == CASES[number]["tiles"]


@pytest.mark.parametrize("number", NUMBERS)
def test_features_logits_and_tokens_are_theirs(vita, number):
    got = prepared(vita, number)
    with torch.inference_mode():
        for features in [vita.encode_images(torch.cat(got.images))] if got.images else []:
            assert (features - WANT[f"{number}.features"]).abs().max() < 1e-5
        logits = vita(got.ids[None], images=got.images or None).logits[0]
    assert logits.shape == WANT[f"{number}.logits"].shape and (logits - WANT[f"{number}.logits"]).abs().max() < 1e-4
    options = {"images": got.images or None, "max_new_tokens": 12, "eos_token_id": ()}
    assert vita.generate(got.ids[None], **options)[0].tolist() == WANT[f"{number}.new"].tolist()


def test_the_command_line_gives_their_tokens_and_counts_their_positions():
    flags = [flag for picture in pictures(3) for flag in ("--image", picture)]
    limits = ("--max-new-tokens", 12, "--dtype", "float32", "--json")
    status, out, _ = call("--model", HERE / "hf", CASES[3]["question"], *flags, *limits)
    said = json.loads(out)
    assert status == 0 and said["prompt"]["total"] == len(WANT["3.ids"]) and said["prompt"]["image_tokens"] == 20
    new = said["token_ids"]
    assert new and new == WANT["3.new"].tolist()[: len(new)]


# ---- prompts


def test_pictures_without_placeholders_stand_one_a_line_in_front_of_the_question(vita):
    got = prepared(vita, 3, images=pictures(3), system="S.")
    one = prepare_request(Request("Hi", images=pictures(3), system="S."), vita.config, vita.tokenizer)
    index, text = vita.config.image_token_index, "<img>•</img>\n<img>•</img>\nHi"
    want = [vita.tokenizer(part).input_ids for part in f"<|im_start|>system\nS.<|im_end|>\n{question(text)}".split("•")]
    assert one.ids.tolist() == [*want[0], index, *want[1], index, *want[2]]
    assert [len(tiles) for tiles in one.images] == [len(tiles) for tiles in got.images] == CASES[3]["tiles"]


def test_frames_of_a_video_are_numbered_and_stretched_to_one_tile_each(vita, tmp_path):
    for i, color in enumerate(("red", "blue", "white")):
        frame = Image.new("RGB", (90, 40), color)
        frame.paste((0, 255, 0), (0, 0, 10, 40))  # a stripe at the edge, which cutting out the middle would lose
        frame.save(tmp_path / f"{i}.png")
    got = prepare_request(Request("Hi", video=str(tmp_path)), vita.config, vita.tokenizer)
    index, text = vita.config.image_token_index, "".join(f"Frame{i}: <img>•</img>\n" for i in (1, 2, 3)) + "Hi"
    first, *rest = [vita.tokenizer(part).input_ids for part in question(text).split("•")]
    assert got.ids.tolist() == first + [i for part in rest for i in (index, *part)]
    for i, tiles in enumerate(got.images):
        assert tiles.equal(load_tiles(tmp_path / f"{i}.png", tile=56, max_tiles=1)) and len(tiles) == 1


def test_the_least_number_of_tiles_and_the_thumbnail_follow_the_config(vita):
    picture = Image.new("RGB", (50, 50))
    for (least, thumbnail, flag), count in {(1, True, None): 1, (4, True, None): 5, (4, False, None): 4, (4, True, 1): 1}.items():
        config = replace(vita.config, min_tiles=least, use_thumbnail=thumbnail)
        request = Request("Hi", images=[picture], max_tiles=flag)
        assert len(prepare_request(request, config, vita.tokenizer).images[0]) == count


def test_a_system_text_of_the_folder_is_used_unless_one_is_given(vita):
    config = replace(vita.config, default_system="Mine.")
    own, given, none = (
        prepare_request(Request("Hi", system=system), config, vita.tokenizer).ids.tolist() for system in (None, "Yours.", "")
    )
    start = "<|im_start|>system\n{}<|im_end|>\n" + question("Hi")
    assert own == vita.tokenizer(start.format("Mine.")).input_ids
    assert given == vita.tokenizer(start.format("Yours.")).input_ids
    assert none == vita.tokenizer(question("Hi")).input_ids


def test_a_raw_prompt_has_the_tags_of_a_picture_and_nothing_else(vita):
    got = prepare_request(Request("a<image>b", images=pictures(1), raw=True), vita.config, vita.tokenizer)
    before, after = (vita.tokenizer(text).input_ids for text in ("a<img>", "</img>b"))
    assert got.ids.tolist() == [*before, vita.config.image_token_index, *after]


def test_a_sound_is_refused_in_one_line(tmp_path):
    status, out, err = call("--model", HERE / "chat", "--audio", tmp_path / "x.wav")
    check_user_error(status, out, err)
    assert "this checkpoint cannot take sounds" in err


# ---- what the other folders have


def test_int8_gives_the_logits_of_rounded_weights(hf):
    got, want = Vita.from_pretrained(HERE / "chat", quantize="int8"), Vita.from_pretrained(HERE / "hf", mmap=False)
    names = [name for name, module in got.named_modules() if isinstance(module, Int8Linear)]
    for name in names:
        linear = want.get_submodule(name)
        rounded, scale = quantize(linear.weight)
        linear.weight.data = rounded * scale[:, None]
    row = prepared(hf, 0)
    with torch.inference_mode():
        ours, theirs, exact = (each(row.ids[None], images=row.images).logits for each in (got, want, hf))
    assert len(names) == 7 * 3 and (ours - theirs).abs().max() < 1e-4 < (ours - exact).abs().max()


def test_a_dry_run_counts_the_weights_and_positions_of_the_folder(vita):
    folder = HERE / ("hf" if vita.config.template == "internvl" else "chat")
    empty, disk = budget.meta_model(folder)
    assert empty.config == vita.config and disk["absent"] is None
    report = budget.estimate(empty.config, [prepared(vita, 3)], dtype=torch.float32)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert report["weights"]["total"]["parameters"] == stored
    assert report["positions"]["total"] == len(WANT["3.ids"])


def test_a_dump_has_their_features_and_logits(tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    flags = ["--model", HERE / "hf", "--prompt", CASES[1]["question"], "--image", pictures(1)[0]]
    assert dump.main([str(out), *map(str, flags)]) == 0, capsys.readouterr().err
    record = load_file(out)
    assert (record["vision.0.projector"] - WANT["1.features"]).abs().max() < 1e-5
    assert (record["logits"][0] - WANT["1.logits"][-1]).abs().max() < 1e-4


def test_the_folders_of_the_tool_load(tmp_path):
    c = make_checkpoint.INTERNVL3
    vision = replace(c.vision, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    decoder = replace(c.decoder, vocab_size=311, hidden_size=24, intermediate_size=30, num_hidden_layers=2, head_dim=4)
    decoder = replace(decoder, num_attention_heads=6)
    config = replace(c, decoder=decoder, vision=vision, eos_token_ids=(300,), bos_token_id=298)
    make_checkpoint.write(tmp_path, "internvl3-1b", config=config)
    vita = Vita.from_pretrained(tmp_path)
    assert vita.config == config
    assert isinstance(vita.respond("Hi", images=pictures(1), max_new_tokens=2), str)


def test_a_conversation_reads_the_prompts_that_single_questions_have(vita, tmp_path):
    for i in range(2):
        Image.new("RGB", (40, 60), (i * 99, 0, 200)).save(tmp_path / f"{i}.png")
    index = vita.config.image_token_index
    for case in ({"images": pictures(3)}, {"images": pictures(1), "video": str(tmp_path)}):
        question = CASES[3]["question"] if "video" not in case else "<image>Now <video> <b>"
        chat = vita.chat(system="S.")
        chat.ask(question, max_new_tokens=2, eos_token_id=(), **case)
        want = prepare_request(Request(question, system="S.", **case), vita.config, vita.tokenizer).ids.tolist()
        assert chat.ids[: len(want)] == want and len(chat.ids) == len(want) + 2 and want.count(index) >= 2


def test_the_chat_template_of_a_transformers_folder_is_rendered_and_that_of_a_published_one_is_not(tmp_path):
    template = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    for layout in ("hf", "chat"):
        folder = tmp_path / layout
        shutil.copytree(HERE / layout, folder)
        (folder / "chat_template.jinja").write_text(template)
        vita = Vita.from_pretrained(folder)
        got = prepare_request(Request("Hi", images=pictures(1)), vita.config, vita.tokenizer).ids.tolist()
        written = "[user: <img>•</img>\nHi]>" if layout == "hf" else question("<img>•</img>\nHi")
        before, after = (vita.tokenizer(text).input_ids for text in written.split("•"))
        assert got == [*before, vita.config.image_token_index, *after]
