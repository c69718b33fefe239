"""``python -m vita_ref.chat``: in a pipe, and in a terminal with line editing and Ctrl-C."""

import errno
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from vita_ref import Vita
from vita_ref.analysis.look import look_at
from vita_ref.chat import main
from vita_ref.cli import talk
from vita_ref.loading import demo_folder

ROOT = Path(__file__).parents[2]
IMAGE = str(demo_folder() / "example.jpg")


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained()


@pytest.fixture
def run(vita, monkeypatch, capsys):
    """Runs the program with lines on standard input; gives exit status, standard output and standard error."""
    monkeypatch.setattr(talk.Vita, "from_pretrained", lambda *args, **options: vita)

    def run(lines, *flags):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return main(list(flags)), *capsys.readouterr()

    return run


def test_each_line_of_a_pipe_is_a_question_that_continues_the_others(run, vita):
    status, out, err = run("What color is the star?\nWhere is it?\n", "--image", IMAGE)
    chat = vita.chat()
    want = [chat.ask("What color is the star?", images=IMAGE), chat.ask("Where is it?")]
    assert (status, out, err) == (0, "".join(f"{text}\n" for text in want), "")


def test_commands_add_media_undo_and_save(run, vita, tmp_path):
    path = tmp_path / "my talk.json"
    lines = f"/image {IMAGE}\n\nWhere is it?\n/undo\nWhat color is the star?\n/save '{path}'\n"
    status, out, err = run(lines)
    chat = vita.chat()
    first, undone = chat.ask(images=IMAGE), chat.ask("Where is it?")
    chat.undo()
    second = chat.ask("What color is the star?")
    assert (status, out, err) == (0, f"{first}\n{undone}\n{second}\n", "")
    loaded = run("And the circle?\n", "--load", str(path), "--max-new-tokens", "1")
    assert loaded == (0, chat.ask("And the circle?", max_new_tokens=1) + "\n", "")


def test_look_writes_a_page_about_the_last_answer_and_overwrites_no_file_that_was_not_named(run, vita, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vita_ref.analysis.turn.look_at", partial(look_at, derive=False))
    first = f"/image {IMAGE}\nWhat color is the star?\n/look\n/look 'my page.html'\n"
    status, out, err = run(first + "Where is it?\n/look\n/undo\n/look my page.html\n")
    assert status == 0 and [line for line in err.splitlines() if "page" in line] == err.splitlines()
    assert sorted(os.listdir()) == ["look-2.html", "look.html", "my page.html"] and err.count("\n") == 2
    data = {name: page_data(name) for name in os.listdir()}
    assert {name: each["question"] for name, each in data.items()} == {
        "look.html": "What color is the star?", "look-2.html": "Where is it?", "my page.html": "What color is the star?"
    }  # fmt: skip
    assert all(each["pictures"][0]["name"] == "example.jpg" for each in data.values())
    assert [data["look.html"]["text"], data["look-2.html"]["text"]] == out.splitlines()


def page_data(name):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', Path(name).read_text("utf-8"))[1])


def test_help_lists_every_command_and_quit_ends(run):
    status, out, err = run("/help\n/quit\nWhat?\n")
    assert (status, out) == (0, "")
    assert [line.split()[0] for line in err.splitlines()] == list(talk.COMMANDS)


@pytest.mark.parametrize(
    "lines, message",
    [
        ("/bad\n", "there is no command '/bad': /help lists them"),
        ("/image no such.png\n", "'no such.png': no such file"),
        ("/image\n", "give the name of a file"),
        ("/undo\n", "there is no question to undo"),
        ("/look\n", "there is no answer to look at"),
        ("/look /no/such/folder/a.html\n", "/look '/no/such/folder/a.html': its folder does not exist"),
        ("/save /no/such/folder/c.json\n", "cannot write '/no/such/folder/c.json'"),
        (f"/audio {IMAGE}\n\n", "example.jpg"),
    ],
)
def test_an_error_in_a_pipe_ends_it_with_one_line_and_status_2(run, lines, message):
    status, out, err = run(lines + "What?\n")
    assert (status, out) == (2, "") and err.startswith("vita_ref: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("space", [" ", "\t", "  "])
def test_line_ends_and_marks_of_windows_and_any_white_space_behind_a_command_are_read(run, vita, mark, end, space):
    lines = [f"/image{space}{IMAGE}", "What color is the star?", "/undo", "/quit", "/nothing"]
    status, out, err = run(mark + "".join(line + end for line in lines))
    assert (status, out, err) == (0, vita.chat().ask("What color is the star?", images=IMAGE) + "\n", "")


def test_a_space_in_front_makes_a_question_of_a_slash(run, vita):
    assert run(" /help\n") == (0, vita.respond("/help") + "\n", "")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image", "-"], "standard input has the questions"),
        (["--system", "a", "--system-file", "b"], "the same option"),
        (["--temperature", "-1"], "temperature must be"),
        (["--load", "no such.json"], "no such.json"),
        (["--threads", "0"], "--threads must be"),
    ],
)
def test_flags_that_a_conversation_cannot_use_are_refused(run, flags, message):
    status, out, err = run("", *flags)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_verbose_says_how_much_was_read(run):
    _, _, err = run("What?\nWhy?\n", "--verbose", "--image", IMAGE)
    lines = [line for line in err.splitlines() if "cached" in line]
    assert len(lines) == 2 and lines[0].endswith(" 0 cached") and not lines[1].endswith(" 0 cached")


# ---- a terminal


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *flags):
        self.master, slave = pty.openpty()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SLOW, *flags]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def until(self, text, seconds=120):
        """Reads until a text has appeared behind what was read before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not appear in {self.seen!r}"
            try:
                new = os.read(self.master, 4096)
            except OSError as error:  # the other side is closed
                assert error.errno == errno.EIO
                new = b""
            assert new, f"the program ended: {self.seen!r}"
            self.seen += new.decode(errors="replace")
        before, self.seen = self.seen.split(text, 1)
        return before

    def type(self, keys):
        os.write(self.master, keys.encode())

    def wait_until_it_waits(self):
        """Python forgets a Ctrl-C that comes between two waits for keys, so the next must come while it waits."""
        state = Path(f"/proc/{self.process.pid}/stat")
        time.sleep(0.2)
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.05)


SLOW = """
import fcntl, sys, termios, time, signal
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from vita_ref import Vita
from vita_ref.answer import Answer
from vita_ref.cli import talk
push = Answer.push
def slow(self, *args):
    push(self, *args)
    time.sleep(0.2)
    self.finish_reason = None
Answer.push = slow
sys.exit(talk.main(sys.argv[1:]))
"""


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_program():
    terminal = Terminal("--image", IMAGE, "--max-new-tokens", "200")
    try:
        terminal.until("> ")
        terminal.type("What color is the star?\n")
        terminal.until("Blue")
        terminal.type("\x03")
        terminal.until("the answer was stopped")
        terminal.until("> ")
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.wait_until_it_waits()
        terminal.type("\x03")  # gives up the line
        terminal.until("> ")
        terminal.type("/look /dev/null\n")
        terminal.until("occlusion: ")
        terminal.type("\x03")  # gives up the page
        terminal.until("> ")
        terminal.type("/nothing\n")
        terminal.until("there is no command '/nothing'")
        terminal.until("> ")
        terminal.type("/he\t\n")  # completion
        terminal.until("/undo")
        terminal.until("/quit")
        terminal.until("> ")
        terminal.type("\x1b[A\x1b[A\n")  # the history: two lines up
        terminal.until("there is no command '/nothing'")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        if terminal.process.poll() is None:
            os.kill(terminal.process.pid, signal.SIGKILL)
        os.close(terminal.master)
