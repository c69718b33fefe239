"""The command line as a process: signals, closed descriptors, broken pipes, encodings.

All processes start together and are looked at one by one, since each needs some seconds to load its libraries.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import call, write_tiny
from conftest import GOLDEN

from vita_ref.generate import main

ROOT = Path(__file__).parents[2]
GENERATE = f'exec "{sys.executable}" -m vita_ref.generate "$@"'
LONG = ("--max-new-tokens", "20000", "--temperature", "5")
SPEAK = ("--speech-dir", str(GOLDEN / "tts"), "--speak", "out.wav")
PROCESSES = {  # shell command, flags
    "terminated while it speaks": (GENERATE, (*LONG, *SPEAK)),
    "interrupted while it loads libraries": (GENERATE, LONG),
    "all closed": (f"{GENERATE} <&- >&- 2>&-", ()),
    "broken pipe": (GENERATE, LONG),
    "full disk": (f"{GENERATE} >/dev/full", ()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processes(folder, tmp_path_factory):
    """Name -> (process, its working directory)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    started = {}
    for name, (command, flags) in PROCESSES.items():
        place = tmp_path_factory.mktemp("place")
        short = [] if flags[:1] == LONG[:1] else ["--max-new-tokens", "4"]
        line = ["sh", "-c", command, "sh", "--model", str(folder), "hi", *short, *flags]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started[name] = subprocess.Popen(line, cwd=place, env=environment, **pipes), place
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


def finish(process):
    """Exit status, the rest of standard output, standard error, and the seconds until the end."""
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err.decode(), time.monotonic() - start


def test_ctrl_c_while_libraries_are_loaded_is_quiet(processes):
    process, _ = processes["interrupted while it loads libraries"]
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert finish(process)[:3] == (130, b"", "")


def test_a_signal_ends_an_answer_at_once_without_a_word_and_without_a_file(processes):
    process, place = processes["terminated while it speaks"]
    assert process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGTERM)
    status, _, err, seconds = finish(process)
    assert (status, err) == (128 + signal.SIGTERM, "") and seconds < 10
    assert list(place.iterdir()) == []


def test_all_streams_may_be_closed(processes):
    assert finish(processes["all closed"][0])[:3] == (0, b"", "")


def test_a_reader_that_goes_away_ends_the_answer_without_a_word(processes):
    process, _ = processes["broken pipe"]
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 0 and process.stderr.read() == b""


def test_a_full_disk_behind_standard_output_is_one_line(processes):
    status, _, err, _ = finish(processes["full disk"][0])
    assert status == 2 and "No space left" in err and err.count("\n") == 1 and err.startswith("vita_ref: ")


# ---- in this process


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "latin-1", "shift_jis", "utf-16"])
@pytest.mark.parametrize("flags", [(), ("--json",), ("--no-stream",)])
def test_a_file_gets_the_whole_answer_whatever_the_encoding_of_the_place(folder, monkeypatch, encoding, flags):
    expected = call("--model", folder, "hi", "--max-new-tokens", 12, *flags)[1]
    assert not expected.isascii()
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding=encoding, newline="\n"))
    assert main(["--model", str(folder), "hi", "--max-new-tokens", "12", *flags]) == 0
    sys.stdout.flush()
    text = file.getvalue().decode("utf-16" if encoding == "utf-16" else "utf-8")
    assert text.split(', "timing"')[0] == expected.split(', "timing"')[0]
    assert sys.stdout.encoding == encoding


def test_a_terminal_keeps_its_encoding_and_gets_a_question_mark_for_what_it_lacks(folder, monkeypatch):
    expected = call("--model", folder, "hi", "--max-new-tokens", 12)[1]

    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(file, encoding="ascii", newline="\n"))
    assert main(["--model", str(folder), "hi", "--max-new-tokens", "12"]) == 0
    sys.stdout.flush()
    assert file.getvalue() == expected.encode("ascii", "replace")


@contextlib.contextmanager
def closed(monkeypatch, stream):
    """Inside the block a standard stream is closed, and absent as Python has it in a process that starts so."""
    number = ("stdin", "stdout", "stderr").index(stream)
    saved = os.dup(number)
    os.close(number)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, None)
            yield
    finally:
        os.dup2(saved, number)
        os.close(saved)


def test_good_input_is_answered_with_standard_error_closed(folder, monkeypatch):
    flags = ("--model", str(folder), "hi", "--max-new-tokens", "4")
    with closed(monkeypatch, "stderr"), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*flags, "--verbose"]) == 0
    assert out.getvalue() == call(*flags)[1]


def test_an_image_from_a_closed_standard_input_is_one_line(folder, monkeypatch):
    with closed(monkeypatch, "stdin"):
        status, out, err = call("--model", folder, "hi", "--max-new-tokens", 4, "--image", "-")
    assert (status, out) == (2, "") and err.startswith("vita_ref: --image -") and err.count("\n") == 1


def test_a_text_only_standard_output_without_a_buffer_is_enough(folder, monkeypatch):
    class TextOnly:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", TextOnly())
    monkeypatch.setattr(sys, "stderr", TextOnly())
    assert main(["--model", str(folder), "hi", "--max-new-tokens", "4"]) == 0
    assert sys.stdout.text.endswith("\n") and sys.stderr.text == ""
    assert main(["--model", "nowhere", "hi"]) == 2 and sys.stderr.text.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_ends_a_process_ends_an_answer_without_a_word_and_without_a_file(folder, tmp_path, monkeypatch, number):
    class SignalAtTheFirstWord(io.StringIO):
        def write(self, text):
            if not self.getvalue():
                os.kill(os.getpid(), number)
            return super().write(text)

    speak = (*SPEAK[:2], "--speak", tmp_path / "out.wav")
    monkeypatch.setattr(sys, "stdout", out := SignalAtTheFirstWord())
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        status = main(["--model", str(folder), "hi", *map(str, (*LONG, *speak))])
    finally:
        signal.signal(number, before)
    assert (status, err.getvalue()) == (128 + number, "") and len(out.getvalue()) < 100
    assert list(tmp_path.iterdir()) == []


def test_the_handlers_of_the_caller_are_there_again_afterwards(folder):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    call("--model", folder, "hi", "--max-new-tokens", 1)
    assert [signal.getsignal(number) for number in numbers] == before


def test_standard_error_that_fails_does_not_end_the_answer(folder, monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        assert main(["--model", str(folder), "hi", "--max-new-tokens", "4", "--verbose"]) == 0
        assert sys.stdout.getvalue()
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that it can be closed
