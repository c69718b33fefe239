"""Flags with hostile values: each gets an answer, or one line and exit status 2."""

import io
import os
from types import SimpleNamespace

import pytest
import torch
from command_line import call, check_user_error, write_tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vita_ref.cli.flags import RANGES, parser

LONG = "y" * 5000
HOSTILE = [
    *("", " ", "\0", "\n", "\x1b[31mred", "\udcff", "é\u202e", "１", "-", "--", "-1", "0", "1", "2", "7", "0x10"),
    *("1e999", "-1e999", "nan", "inf", str(10**30), str(-(10**30)), "9" * 5000, "1e-40", LONG, "two\nlines " * 900),
    *("/", ".", "/dev/null", "nowhere", "nowhere/at/all", "x.png/", "x.png", "text.txt", "{}", "<image>", "<audio>"),
    *("meta", "meta:0", "hpu", "mps", "gpu", "cuda:99", "cpu:1", "cpu:-1", "privateuseone", "xla", "float32", "int8"),
]
ACTIONS = [action for action in parser()._actions if action.dest != "help"]


@st.composite
def command_lines(draw):
    flags = []
    for action in draw(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3)):
        flags += action.option_strings[-1:]
        if action.nargs != 0:
            flags.append(draw(st.sampled_from(HOSTILE)))
    return flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    Image.new("RGB", (50, 40), (10, 200, 30)).save(folder / "x.png")
    (folder / "text.txt").write_text("just a text")
    return folder


@pytest.fixture(autouse=True)
def same_place(folder, monkeypatch):
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


examples = settings(
    derandomize=True, max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@examples
@given(command_lines())
@example(["hi", "--threads", "100000"])
@example(["hi", "--max-new-tokens", str(10**30)])
@example(["hi", "--seed", str(10**30)])
@example(["hi", "--seed", "-1", "--temperature", "1"])
@example(["hi", "--device", "hpu"])
@example(["hi", "--device", "meta:0"])
@example(["hi", "--video", ""])
@example(["--image", ""])
@example(["--prompt", ""])
@example(["hi", "--speak", "x.wav/"])
@example(["--video", "a.gif", "--video", "b.gif"])
@example(["--batch", "nowhere", "--batch", "text.txt"])
def test_every_command_line_gets_an_answer_or_one_line_and_status_2(folder, flags):
    more = [] if "--max-new-tokens" in flags else ["--max-new-tokens", "2"]
    status, out, err = call(*([] if "--model" in flags else ["--model", folder]), *more, *flags)
    if status == 0:
        assert out and ("--verbose" in flags or err == "")
    elif "--batch" in flags and out:  # a file whose lines are no requests
        assert status == 2 and err.count("\n") == 1
    else:
        check_user_error(status, out, err)


@pytest.mark.parametrize("name, limits", RANGES.items())
def test_a_number_out_of_range_is_refused_and_the_line_names_the_flag_and_both_limits(name, limits):
    flag = f"--{name.replace('_', '-')}"
    for value in (limits[0] - 1, limits[1] + 1):
        status, out, err = call("hi", flag, value, *["--dry-run"] * (name == "ranks"))
        check_user_error(status, out, err)
        assert all(str(word) in err for word in (flag, *limits, value))


@pytest.mark.parametrize("flag", ["--video", "--prompt", "--system", "--system-file", "--batch", "--speak"])
def test_a_second_value_does_not_replace_the_first(flag):
    status, out, err = call(flag, "one", flag, "two")
    check_user_error(status, out, err)
    assert f"{flag} is given twice" in err


@given(st.text(st.characters(min_codepoint=1, max_codepoint=300, exclude_categories=["Cs"]), max_size=6))
@examples
@example("abc")
@example("0")
@example("-1")
@example("1e3")
def test_a_world_size_that_is_no_number_is_refused(folder, text):
    before = dict(os.environ)
    try:
        os.environ["WORLD_SIZE"] = text
        status, out, err = call("--model", folder, "hi", "--max-new-tokens", 1, "--dry-run")
    finally:
        os.environ.clear()
        os.environ.update(before)
    if text.isascii() and text.isdigit() and int(text):
        assert status == 0 or "ranks" in err
    else:
        check_user_error(status, out, err)
        assert "WORLD_SIZE" in err


def test_a_rank_without_other_processes_prints(folder, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    status, out, err = call("--model", folder, "hi", "--max-new-tokens", 2)
    assert status == 0 and out and err == ""


@pytest.mark.parametrize("flag", ["--batch", "--system-file"])
def test_a_file_without_end_is_read_up_to_a_limit(folder, flag):
    status, out, err = call("--model", folder, *["hi"] * (flag == "--system-file"), flag, "/dev/zero")
    check_user_error(status, out, err)
    assert "longer than" in err and "/dev/zero" in err


def test_help_gives_the_exit_statuses_the_limits_and_what_a_sound_with_a_question_means():
    status, out, err = call("--help")
    assert status == 0 and err == ""
    assert all(text in out for text in ("130 after Ctrl-C", "limits:", "1,000,000", "the sound is the question"))


def test_memory_that_cannot_be_had_is_an_error_of_one_line(folder, monkeypatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")):

        def refuse(*args, error=error, **options):
            raise error

        monkeypatch.setattr(torch.nn.functional, "silu", refuse)
        status, out, err = call("--model", folder, "hi")
        check_user_error(status, out, err)
        assert "--dry-run" in err


def test_an_error_of_the_program_itself_is_not_hidden(folder, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch.nn.functional, "silu", refuse)
    with pytest.raises(RuntimeError, match="a bug"):
        call("--model", folder, "hi")


REFUSED = {
    "a prompt that is too long": ["a " * 33000],
    "too many new tokens": ["hi", "--max-new-tokens", "33000"],
    "a picture that is missing": ["--image", "nowhere.png"],
    "a text as a picture": ["--image", "text.txt"],
    "another number of placeholders": ["<image> <image>", "--image", "x.png"],
    "a sound": ["--audio", "text.txt"],
    "an empty question": [""],
    "no question": [],
    "speech": ["hi", "--speak", "x.wav"],
    "a folder that is missing": ["hi", "--vision-dir", "nowhere"],
    "a line of a batch": ["--batch", "text.txt"],
}


@pytest.mark.parametrize("flags", REFUSED.values(), ids=REFUSED)
def test_a_dry_run_refuses_what_a_real_run_refuses_with_the_same_words(folder, flags):
    status, _, expected = call("--model", folder, *flags)
    assert status == 2
    status, out, err = call("--model", folder, *flags, "--dry-run")
    check_user_error(status, out, err)
    assert err == expected


def test_a_file_name_that_ends_like_a_folder_is_refused(folder):
    status, out, err = call("--model", folder, "hi", "--speak", "x.wav/")
    check_user_error(status, out, err)
    assert "this is a folder" in err and not (folder / "x.wav").exists()


def test_standard_input_that_cannot_be_read_is_one_line(monkeypatch):
    class Unreadable(io.RawIOBase):
        def read(self, size=-1):
            raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Unreadable()))
    status, out, err = call("--image", "-")
    check_user_error(status, out, err)
    assert "standard input: Bad file descriptor" in err
