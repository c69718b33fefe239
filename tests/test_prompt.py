"""Chat templates, placeholders and ids against upstream's tables; the text of an answer without its state mark."""

import copy
import json
import zlib
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vita_ref.files.tokenizer import StreamDecoder
from vita_ref.prompt import (
    TEMPLATES,
    AnswerText,
    Template,
    encode_prompt,
    expand_media,
    place_media,
    render,
    split_state,
    tokenizer_image_audio_token,
    tokenizer_image_token,
)

CASES = Path(__file__).parent / "golden/cases"
PROMPTS = json.loads((CASES / "prompts.json").read_text())
TOKENIZE = json.loads((CASES / "tokenize.json").read_text())


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


class WordTokenizer:
    """The tokenizer of the golden tables: the id of a word is a checksum; BOS in front of every text, if there is one."""

    def __init__(self, bos_token_id=None):
        self.bos_token_id = bos_token_id

    def __call__(self, text):
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        return SimpleNamespace(input_ids=bos + [10 + zlib.crc32(word.encode()) % 200 for word in text.split()])


# ---- layouts


@pytest.mark.parametrize("case", PROMPTS["cases"], ids=lambda c: f"{c['modality']}-{c['length']}")
def test_a_vita_prompt_is_as_long_as_upstreams_apart_from_the_system_text(case):
    medium, messages = case["modality"], [{"role": role, "content": text} for role, text in case["messages"]]
    asks_for_an_answer = messages[-1]["content"] is None  # upstream writes an open turn as a message without a text
    if asks_for_an_answer:
        messages.pop()
    text = render(messages, add_generation_prompt=asks_for_an_answer, template="vita", medium=medium)
    our_system_text = len(TEMPLATES["vita"].default_system[medium])
    their_system_text = PROMPTS["system_texts"][medium]["length"]
    assert len(text) - our_system_text == case["length"] - their_system_text


def test_a_vita_prompt_letter_by_letter():
    question = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(user("Hi"), system="S", template="vita") == question
    answered = [*user("Hi"), *assistant("Yes.")]
    assert render(answered, system="S", template="vita", add_generation_prompt=False) == question + "Yes.<|im_end|>"


@pytest.mark.parametrize(
    "question, medium",
    [
        ("<image>", "image"),
        ("<video>", "video"),
        ("no placeholder", "lang"),
        ("<audio>", "lang"),
        ("<audio><image>", "image"),
        ("<image><video>", "video"),
    ],
)
def test_the_default_system_text_of_vita_depends_on_images_and_videos_but_not_on_sounds(question, medium):
    expected = TEMPLATES["vita"].default_system[medium]
    others = {*TEMPLATES["vita"].default_system.values()} - {expected}
    assert len(others) == 2
    for messages in (user(question), [*user(question), *user("and a later message")]):
        text = render(messages, template="vita")
        assert expected in text and not any(other in text for other in others)


def test_the_medium_can_be_given_where_the_placeholders_do_not_say_it():
    texts = TEMPLATES["vita"].default_system
    assert texts["video"] in render(user("<image><image>"), template="vita", medium="video")


def test_chatml_is_the_template_of_qwen2():
    jinja2 = pytest.importorskip("jinja2")
    source = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if more %}<|im_start|>assistant\n{{ '' }}{% endif %}"
    )
    qwen2 = jinja2.Environment(keep_trailing_newline=True).from_string(source)
    conversation = [*user("Hi"), *assistant("Ja"), *user("So?")]
    for count in (1, 2, 3):
        for more in (True, False):
            messages = [{"role": "system", "content": "S"}, *conversation[:count]]
            expected = qwen2.render(messages=messages, more=more)
            assert render(messages, add_generation_prompt=more) == expected
            assert render(conversation[:count], system="S", add_generation_prompt=more) == expected


def test_an_empty_system_text_leaves_the_system_block_out():
    assert render(user("Hi"), system="", template="vita") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(user("Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"  # chatml has no default


def test_a_demo_prompt_letter_by_letter():
    messages = [*user("<image>Hi"), *assistant("Yes."), *user("So?")]
    conversation = "<|user|><image>Hi<|assistant|>Yes.<|end|><|user|>So?"
    assert render(messages, template="demo") == conversation + "<|assistant|>"
    assert render(messages, template="demo", add_generation_prompt=False) == conversation
    with pytest.raises(ValueError, match="'demo' has no role 'system', only user, assistant"):
        render(messages, template="demo", system="S")


@pytest.mark.parametrize("template", TEMPLATES)
def test_render_changes_neither_its_messages_nor_the_result_of_later_calls(template):
    messages = [*user("<image>Hi"), *assistant("Yes.")]
    before = copy.deepcopy(messages)
    alone = render(user("Who?"), template=template)
    render(messages, template=template)
    assert messages == before
    assert render(user("Who?"), template=template) == alone


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_cannot_be_changed_at_any_depth(name):
    template = TEMPLATES[name]
    with pytest.raises(TypeError):
        TEMPLATES[name] = None
    with pytest.raises(FrozenInstanceError):
        template.separator = ""
    for mapping in (template.blocks, template.default_system):
        with pytest.raises(TypeError):
            mapping["user"] = ""
    for value in (*template.blocks.values(), template.stop, template.states):
        assert type(value) is tuple and all(type(text) is str for text in value)
    assert all(type(text) is str for text in template.default_system.values())


def test_a_template_keeps_copies_of_what_it_was_built_from():
    blocks, system, states = {"user": ["<", ">"]}, {"lang": "S"}, ["!"]
    template = Template(blocks, "", False, ["."], "", system, states)
    blocks["user"][0] = blocks["other"] = system["lang"] = states[0] = "changed"
    assert dict(template.blocks) == {"user": ("<", ">")}
    assert dict(template.default_system) == {"lang": "S"} and template.states == ("!",) and template.stop == (".",)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"messages": user("x"), "template": "llama"}, "no template is named 'llama'; .* chatml, vita, demo"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "no role 'critic', only system, user, assistant, tool"),
        ({"messages": [{"role": "tool", "content": "x"}], "template": "vita"}, "no role 'tool', only system, user, assistant"),
        ({"messages": user(None)}, "user message must be a string, got NoneType"),
        ({"messages": user("x"), "medium": "sound"}, "got 'sound'"),
        ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "two system texts"),
    ],
)
def test_messages_that_cannot_be_rendered_are_refused_with_the_reason(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        render(**arguments)


roles = st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["chatml", "vita"]), st.sampled_from(["", "Be brief."]), roles, st.sampled_from([None, "", "Other."]))
def test_a_conversation_with_a_system_text_of_its_own_has_that_one_and_no_other(template, own, roles, given):
    messages = [{"role": "system", "content": own}] + [{"role": role, "content": "..."} for role in roles]
    if given:
        with pytest.raises(ValueError, match="two system texts"):
            render(messages, system=given, template=template)
        return
    text = render(messages, system=given, template=template)
    assert text.count("<|im_start|>system") == 1 and text.startswith(f"<|im_start|>system\n{own}<|im_end|>")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["chatml", "vita"]), roles, st.sampled_from([None, "", "Other."]))
def test_any_other_conversation_has_the_given_or_the_default_system_text_once_in_front(template, roles, given):
    text = render([{"role": role, "content": "..."} for role in roles], system=given, template=template)
    expected = TEMPLATES[template].default_system.get("lang", "") if given is None else given
    assert text.count("<|im_start|>system") == bool(expected)
    assert text.startswith(f"<|im_start|>system\n{expected}<|im_end|>" if expected else f"<|im_start|>{roles[0]}")


# ---- placeholders and ids


@pytest.mark.parametrize("case", TOKENIZE, ids=lambda c: f"{c['bos_token_id']}-{c['prompt'][:24]!r}")
def test_ids_around_placeholders_are_those_of_upstream(case):
    tokenizer = WordTokenizer(case["bos_token_id"])
    assert tokenizer_image_token(case["prompt"], tokenizer) == case["image_token"]
    assert tokenizer_image_audio_token(case["prompt"], tokenizer) == case["image_audio_token"]
    as_tensor = tokenizer_image_audio_token(case["prompt"], tokenizer, return_tensors="pt")
    assert as_tensor.dtype == torch.long
    assert as_tensor.tolist() == case["image_audio_token"]


def test_each_text_beside_a_placeholder_is_encoded_by_itself():  # quirk
    tokenizer = WordTokenizer(None)
    [to], [day] = tokenizer("to").input_ids, tokenizer("day").input_ids
    assert tokenizer_image_token("to<image>day", tokenizer, image_token_index=-3) == [to, -3, day]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["<image>", "<audio>", " word ", "two words", "<im", "age>"]), max_size=8))
def test_encode_prompt_gives_the_ids_of_upstreams_function_where_images_and_audios_are_given(parts):
    text = "<image>" + "".join(parts) + "<audio>"
    images, audios = text.count("<image>"), text.count("<audio>")
    indices = {"image_token_index": -3, "audio_token_index": -4}
    ids = encode_prompt(text, WordTokenizer(7), images=images, audios=audios, **indices)
    assert ids == tokenizer_image_audio_token(text, WordTokenizer(7), **indices)
    assert ids[0] == 7 and ids.count(7) == 1  # one BOS, in front
    assert ids.count(-3) == images and ids.count(-4) == audios


def test_a_placeholder_is_plain_text_if_nothing_of_its_kind_is_given():
    tokenizer = WordTokenizer()
    assert encode_prompt("see <image> ok", tokenizer) == tokenizer("see <image> ok").input_ids
    only_images = tokenizer_image_token("see <image> or <audio>", tokenizer)
    assert encode_prompt("see <image> or <audio>", tokenizer, images=1) == only_images


@pytest.mark.parametrize(
    "images, audios, reason",
    [
        (3, 1, "has 2 <image> placeholders, but 3 were given: write one <image> for each"),
        (1, 1, "has 2 <image> placeholders, but 1 was given: write one <image> for each"),
        (2, 2, "has 1 <audio> placeholder, but 2 were given: write one <audio> for each"),
    ],
)
def test_a_wrong_number_of_placeholders_is_refused_with_both_numbers(images, audios, reason):
    with pytest.raises(ValueError, match=reason):
        encode_prompt("<image><image><audio>x", WordTokenizer(), images=images, audios=audios)


@pytest.mark.parametrize("function", [tokenizer_image_token, tokenizer_image_audio_token])
def test_other_tensors_than_those_of_torch_are_refused(function):
    with pytest.raises(ValueError, match="return_tensors must be None or 'pt', got 'np'"):
        function("x", WordTokenizer(), return_tensors="np")


@pytest.mark.parametrize(
    "text, media, template, expected",
    [
        ("Hi", {"images": 2, "audios": 1}, "vita", "<image><image>\n<audio>Hi"),
        ("Hi", {"images": 2, "audios": 1}, "demo", "<image><image><audio>Hi"),
        ("Hi", {"audios": 2}, "vita", "<audio><audio>Hi"),
        ("Hi", {"images": 1, "videos": 1}, "vita", "<image><video>\nHi"),
        ("Hi", {}, "vita", "Hi"),
        ("A <image> and", {"images": 2, "audios": 1}, "vita", "<audio>A <image> and"),
        ("Hear <audio>", {"images": 1, "audios": 1}, "vita", "<image>\nHear <audio>"),
        ("In <video>", {"videos": 1}, "vita", "In <video>"),
        ("Hi", {"images": 2}, "internvl", "<image>\n<image>\nHi"),
        ("Hi", {"images": 1, "videos": 1}, "internvl2_5", "<image>\n<video>\nHi"),
        ("Image-1: <image>\nHi", {"images": 1}, "Hermes-2", "Image-1: <image>\nHi"),
    ],
)
def test_placeholders_are_put_in_front_of_a_question_that_has_none_of_their_kind(text, media, template, expected):
    assert place_media(text, template=template, **media) == expected


def test_a_video_is_expanded_to_one_image_per_frame():
    assert expand_media("a <video> b", frames=3) == "a <image><image><image> b"
    assert expand_media("a <video> b") == "a <video> b"


def test_internvl_has_tags_around_each_image_and_numbers_frames():
    """Source: transformers' InternVLProcessor, replace_image_token and replace_video_token."""
    assert expand_media("<image>\nHi", "internvl", images=1) == "<img><image></img>\nHi"
    want = "<img><image></img>\nFrame1: <img><image></img>\nFrame2: <img><image></img>\nHi"
    assert expand_media("<image>\n<video>\nHi", "internvl", images=1, frames=2) == want
    assert expand_media("a <image> b", "internvl") == "a <image> b"  # without images it is plain text


@pytest.mark.parametrize("text, count", [("none", "0 <video> placeholders"), ("<video><video>", "2 <video> placeholders")])
def test_a_video_without_exactly_one_placeholder_is_refused(text, count):
    with pytest.raises(ValueError, match=f"has {count}, but 1 video was given"):
        expand_media(text, frames=4)


def test_the_published_templates_of_internvl_differ_in_the_newline_between_messages():
    """Source: conversation.py of the published folders, sep of Hermes-2 and internvl2_5."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "So"}]
    start, end = "<|im_start|>", "<|im_end|>"
    for template, newline in (("internvl2_5", "\n"), ("internvl", "\n"), ("Hermes-2", "")):
        parts = [f"system\nS{end}", f"user\nHi{end}", f"assistant\nYes{end}", f"user\nSo{end}", "assistant\n"]
        assert render(messages, system="S", template=template) == start + (newline + start).join(parts)
        assert render(messages[:1], template=template, add_generation_prompt=False).startswith(f"{start}user\nHi{end}")


# ---- the text of an answer


class ByteTokenizer:
    """Every byte of UTF-8 is a token, so that characters arrive in parts; a tokenizer as `StreamDecoder` needs it."""

    special_ids, leading_spaces = frozenset(), 0

    def piece(self, token_id):
        return bytes([token_id])


class Pieces:
    """A decoder whose ids are the texts themselves: what `AnswerText` gets from a `StreamDecoder`, written out."""

    def push(self, texts):
        return "".join(texts)

    def flush(self):
        return ""


MARKS = TEMPLATES["vita"].states
answers = st.lists(st.sampled_from([*MARKS, " ", "\n", "\u2003", "a", "猫", "😀"]), max_size=8).map("".join)


def cut(items, places):
    """A sequence in pieces, cut at the places."""
    places = sorted(place % (len(items) + 1) for place in places)
    return [items[start:stop] for start, stop in zip([0, *places], [*places, len(items)])]


@settings(max_examples=300, deadline=None)
@given(answers, st.lists(st.integers(0, 99), max_size=8), st.sampled_from([*TEMPLATES]))
@example("☞ Hello", [3], "vita")
@example("\n☞ x", [1, 4], "vita")
@example(" \n", [1], "vita")
@example("☞", [1, 2], "vita")
def test_a_streamed_answer_is_that_of_split_state_wherever_its_bytes_are_cut(answer, places, template):
    stream = AnswerText(StreamDecoder(ByteTokenizer()), template)
    pieces = [stream.push(ids) for ids in cut(list(answer.encode()), places)] + [stream.flush()]
    assert (stream.state, "".join(pieces)) == split_state(answer, template)
    assert stream.text == "".join(pieces)


@pytest.mark.parametrize(
    "tokens, pieces, state",
    [
        (["☞", " Hello"], ["", "Hello"], "☞"),
        (["\n", "☞", " x"], ["", "", "x"], "☞"),
        (["☟ ", " ", "a", " b "], ["", "", "a", " b "], "☟"),
        (["☞"], [""], "☞"),
        ([" ", "Hi", "☞"], ["", " Hi", "☞"], None),  # not in front: no mark, and nothing is dropped
        (["☞", "☟ x"], ["", "☟ x"], "☞"),  # only the first is a mark
    ],
)
def test_text_is_returned_as_soon_as_it_is_certain_and_the_mark_is_dropped(tokens, pieces, state):
    stream = AnswerText(Pieces(), "vita")
    assert [stream.push([token]) for token in tokens] == pieces
    assert stream.flush() == "" and stream.state == state


def test_white_space_is_held_back_until_the_end_where_no_mark_comes():
    stream = AnswerText(Pieces(), "vita")
    assert [stream.push(["\n"]), stream.push([" "]), stream.flush()] == ["", "", "\n "]
    assert stream.text == "\n " and stream.state is None


def test_a_template_without_states_holds_nothing_back():
    stream = AnswerText(Pieces(), "demo")
    assert [stream.push(["\n"]), stream.push(["☞ x"]), stream.flush()] == ["\n", "☞ x", ""]
    assert stream.state is None


@pytest.mark.parametrize("call", [lambda: split_state("Yes.", "llama"), lambda: AnswerText(Pieces(), "llama")])
def test_an_unknown_template_of_an_answer_is_refused(call):
    with pytest.raises(ValueError, match="no template is named 'llama'"):
        call()
