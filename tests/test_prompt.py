"""Chat layouts against the lengths of upstream's prompts, and ids around placeholders against its tables."""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.prompt import (
    TEMPLATES,
    encode_prompt,
    expand_video,
    place_media,
    render,
    tokenizer_image_audio_token,
    tokenizer_image_token,
)

CASES = Path(__file__).parent / "golden/cases"
PROMPTS = json.loads((CASES / "prompts.json").read_text())
TOKENIZE = json.loads((CASES / "tokenize.json").read_text())


def user(text):
    return [{"role": "user", "content": text}]


class WordTokenizer:
    """The golden tables' tokenizer: a word's id comes from its checksum; BOS in front of every text."""

    def __init__(self, bos_token_id=None):
        self.bos_token_id = bos_token_id

    def __call__(self, text):
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        return SimpleNamespace(input_ids=bos + [10 + zlib.crc32(word.encode()) % 200 for word in text.split()])


@pytest.mark.parametrize("case", PROMPTS["cases"], ids=lambda c: f"{c['modality']}-{c['length']}")
def test_the_vita_layout_is_as_long_as_upstreams_once_the_system_texts_are_taken_away(case):
    messages = [{"role": role, "content": text} for role, text in case["messages"] if text is not None]
    open_turn = case["messages"][-1][1] is None
    got = render(messages, add_generation_prompt=open_turn, template="vita", medium=case["modality"])
    ours = len(TEMPLATES["vita"].default_system[case["modality"]])
    assert len(got) - ours == case["length"] - PROMPTS["system_texts"][case["modality"]]["length"]


def test_the_vita_layout_letter_by_letter():
    messages = [*user("Hi"), {"role": "assistant", "content": "Yes."}]
    wanted = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(user("Hi"), system="S", template="vita") == wanted
    assert render(messages, system="S", template="vita", add_generation_prompt=False) == wanted + "Yes.<|im_end|>"


def test_the_vita_system_text_goes_by_what_is_seen_and_not_by_what_is_heard():
    texts = TEMPLATES["vita"].default_system
    assert len(set(texts.values())) == 3
    for text, medium in [("<image>", "image"), ("<video>", "video"), ("<audio>", "lang"), ("<audio><image>", "image")]:
        assert texts[medium] in render(user(text), template="vita")
    assert texts["video"] in render(user("<image><image>"), template="vita", medium="video")
    assert texts["image"] in render([*user("<image>"), *user("more")], template="vita")


def test_chatml_is_qwen2s_own_template():
    jinja2 = pytest.importorskip("jinja2")
    source = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if more %}<|im_start|>assistant\n{{ '' }}{% endif %}"
    )
    qwen2 = jinja2.Environment(keep_trailing_newline=True).from_string(source)
    messages = [{"role": "system", "content": "S"}, *user("Hi"), {"role": "assistant", "content": "Ja"}, *user("So?")]
    for count in (2, 3, 4):
        for more in (True, False):
            wanted = qwen2.render(messages=messages[:count], more=more)
            assert render(messages[:count], add_generation_prompt=more) == wanted
            assert render(messages[1:count], system="S", add_generation_prompt=more) == wanted


def test_an_empty_system_text_leaves_the_block_out():
    assert "system" not in render(user("Hi")) + render(user("Hi"), system="", template="vita")


def test_the_demo_layout():
    messages = [*user("<image>Hi"), {"role": "assistant", "content": "Yes."}, *user("So?")]
    wanted = "<|user|><image>Hi<|assistant|>Yes.<|end|><|user|>So?"
    assert render(messages, template="demo") == wanted + "<|assistant|>"
    assert render(messages, template="demo", add_generation_prompt=False) == wanted
    with pytest.raises(ValueError, match="'demo' has no 'system'"):
        render(messages, template="demo", system="S")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_same_arguments_give_the_same_text_and_are_left_as_they_were(template):
    messages = user("<image>Hi")
    before = json.dumps(messages)
    assert render(messages, template=template) == render(messages, template=template)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"messages": user("x"), "template": "llama"}, "no template 'llama'; there are chatml, vita, demo"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "no 'tool' text"),
        ({"messages": user(None)}, "must be a string, got NoneType"),
        ({"messages": user("x"), "medium": "sound"}, "got 'sound'"),
        ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "two system texts"),
    ],
)
def test_what_cannot_be_rendered_is_refused_with_the_reason(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        render(**arguments)


@pytest.mark.parametrize("case", TOKENIZE, ids=lambda c: f"{c['bos_token_id']}-{c['prompt'][:24]!r}")
def test_ids_around_placeholders_are_upstreams(case):
    tokenizer = WordTokenizer(case["bos_token_id"])
    assert tokenizer_image_token(case["prompt"], tokenizer) == case["image_token"]
    assert tokenizer_image_audio_token(case["prompt"], tokenizer) == case["image_audio_token"]
    as_tensor = tokenizer_image_audio_token(case["prompt"], tokenizer, return_tensors="pt")
    assert as_tensor.dtype == torch.long
    assert as_tensor.tolist() == case["image_audio_token"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["<image>", "<audio>", " word ", "two words", "<im", "age>"]), max_size=8))
def test_encode_prompt_is_upstreams_call_where_both_kinds_are_given(parts):
    text = "<image>" + "".join(parts) + "<audio>"
    counts = {"images": text.count("<image>"), "audios": text.count("<audio>")}
    wanted = tokenizer_image_audio_token(text, WordTokenizer(7), image_token_index=-3, audio_token_index=-4)
    got = encode_prompt(text, WordTokenizer(7), **counts, image_token_index=-3, audio_token_index=-4)
    assert got == wanted
    assert got.count(7) == 1 and got[0] == 7
    assert (got.count(-3), got.count(-4)) == tuple(counts.values())


def test_a_placeholder_of_a_kind_that_was_not_given_is_text():
    plain = WordTokenizer()
    assert encode_prompt("see <image> ok", plain) == plain("see <image> ok").input_ids
    wanted = tokenizer_image_token("see <image> or <audio>", plain)
    assert encode_prompt("see <image> or <audio>", plain, images=1) == wanted


@pytest.mark.parametrize("images, audios, counts", [(3, 1, ("2 <image>", "3")), (2, 2, ("1 <audio>", "2"))])
def test_a_count_that_does_not_match_is_refused_with_both_counts(images, audios, counts):
    with pytest.raises(ValueError, match=f"has {counts[0]} placeholders, but {counts[1]} were given"):
        encode_prompt("<image><image><audio>x", WordTokenizer(), images=images, audios=audios)


def test_only_lists_and_torch_tensors_are_given():
    for call in (tokenizer_image_token, tokenizer_image_audio_token):
        with pytest.raises(ValueError, match="return_tensors must be None or 'pt', got 'np'"):
            call("x", WordTokenizer(), return_tensors="np")


@pytest.mark.parametrize(
    "text, media, template, wanted",
    [
        ("Hi", {"images": 2, "audios": 1}, "vita", "<image><image>\n<audio>Hi"),
        ("Hi", {"images": 2, "audios": 1}, "demo", "<image><image><audio>Hi"),
        ("Hi", {"audios": 2}, "vita", "<audio><audio>Hi"),
        ("Hi", {"images": 1, "videos": 1}, "vita", "<image><video>\nHi"),
        ("Hi", {}, "vita", "Hi"),
        ("A <image> and", {"images": 2, "audios": 1}, "vita", "<audio>A <image> and"),
        ("Hear <audio>", {"images": 1, "audios": 1}, "vita", "<image>\nHear <audio>"),
        ("In <video>", {"videos": 1}, "vita", "In <video>"),
    ],
)
def test_missing_placeholders_go_in_front_and_the_users_own_stay(text, media, template, wanted):
    assert place_media(text, template=template, **media) == wanted


def test_a_video_is_one_image_a_frame():
    assert expand_video("a <video> b", 3) == "a <image><image><image> b"
    assert expand_video("a <video> b", 0) == "a <video> b"
    for text, count in (("none", 0), ("<video><video>", 2)):
        with pytest.raises(ValueError, match=f"has {count} <video> .* 1 video"):
            expand_video(text, 4)
