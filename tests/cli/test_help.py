"""--help shows every flag once, in groups; questions and batch lines that are nearly right are answered with a hint."""

import json
import re
import shlex

import pytest
from command_line import call, check_user_error, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.cli import flags, talk
from vita_ref.cli.help import GROUPS
from vita_ref.cli.requests import KINDS, parse_line

few = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def sections(text):
    """Title -> the flags that its lines begin with."""
    parts = re.split(r"^([a-z ]+):$", text.split("\nexamples:")[0], flags=re.MULTILINE)
    return {title: re.findall(r"^  (?:-h, )?(--[a-z-]+)", body, re.MULTILINE) for title, body in zip(parts[1::2], parts[2::2])}


parsers = pytest.mark.parametrize("parser", [flags.parser, talk.parser], ids=["generate", "chat"])


@parsers
def test_every_flag_is_in_one_group_of_the_help(parser):
    found = sections(parser().format_help())
    options = [action.option_strings[-1] for action in parser()._actions if action.option_strings]
    assert sorted(flag for names in found.values() for flag in names) == sorted(options)
    assert list(found) == [title for title in GROUPS if title in found], "a flag has no group in GROUPS"
    named = {name for names in GROUPS.values() for name in names}
    assert {action.dest for action in parser()._actions} <= named


def test_a_flag_without_a_group_is_shown_too():
    p = flags.parser()
    p.add_argument("--new", help="a flag of tomorrow")
    assert sections(p.format_help())["more"] == ["--new"]


@parsers
def test_the_three_examples_can_be_parsed(parser):
    p = parser()
    lines = [line.partition(p.prog)[2] for line in p.format_help().splitlines()[1:] if p.prog in line]
    assert len(lines) == 3
    for line in lines:
        assert p.parse_args(shlex.split(line.partition("   ")[0]))


def test_help_says_which_flags_may_be_given_several_times():
    text, p = flags.parser().format_help(), flags.parser()
    for action in p._actions:
        if type(action).__name__ == "_AppendAction":
            assert re.search(rf"{action.option_strings[0]}\b.*may be given several times", text)


# ---- a question without --prompt

words = st.text("abc ?!", min_size=1, max_size=20).filter(lambda text: text.strip())
others = st.lists(st.sampled_from([("--image", "x.png"), ("--json",), ("--seed", "3"), ("--audio", "a.wav")]), max_size=3)


@few
@given(words, others, st.integers(0, 3))
def test_a_question_anywhere_among_the_flags_is_the_prompt(question, others, place):
    argv = [word for flag in others[:place] for word in flag] + [question] + [word for flag in others[place:] for word in flag]
    assert flags.parser().parse_args(argv).question == question


def test_a_question_without_quotes_is_told_about_them(folder):
    status, out, err = call("--model", folder, "What", "is", "this?")
    check_user_error(status, out, err)
    assert "in quotes" in err and "is this?" in err
    status, out, err = call("--model", folder, "hi", "--nonsense")
    check_user_error(status, out, err)
    assert "in quotes" not in err and "--nonsense" in err


# ---- the keys of a batch line

VALUES = {str: "text", list: ["a"], dict: {"a": 1}, int: 3, float: 0.5, bool: True}
FITS = {"prompt": (str,), "images": (list,), "audios": (list,), "video": (str,), "id": (str, int, float)}
WRONG = [(key, kind) for key in KINDS for kind in VALUES if kind not in FITS[key] and (key, kind) != ("id", bool)]


@pytest.mark.parametrize("key, kind", WRONG)
def test_a_wrong_value_is_blamed_on_its_key_and_on_no_other(key, kind):
    line = {"prompt": "p", "images": ["a.png"], "audios": ["a.wav"], "video": "v.mp4", "id": 1} | {key: VALUES[kind]}
    with pytest.raises(ValueError) as caught:
        parse_line(json.dumps(line))
    text = str(caught.value)
    assert text.startswith(f"{key} must be ")
    assert not [other for other in KINDS if other != key and re.search(rf"\b{other}\b", text)]


@few
@given(st.sampled_from(["prompt", "images", "audios", "video"]), st.data())
def test_a_key_with_a_slip_of_the_pen_is_answered_with_the_right_one(key, data):
    slip = data.draw(st.sampled_from([key[:-1], key + "s", key.title(), key.upper(), key + "_"]))
    if slip in KINDS:
        return
    with pytest.raises(ValueError, match=f"^unknown key '{slip}': did you mean {key}\\?"):
        parse_line(json.dumps({slip: "x", "id": 3}))


@few
@given(st.permutations(["one", "two", "three"]))
def test_the_first_unknown_key_of_a_line_is_named(keys):
    with pytest.raises(ValueError, match=f"^unknown key '{keys[0]}': the keys are"):
        parse_line(json.dumps({"prompt": "x"} | dict.fromkeys(keys, 1)))
