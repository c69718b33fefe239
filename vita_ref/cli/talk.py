"""``python -m vita_ref.chat``: a conversation in the terminal, or with the lines of a pipe.

    line -> a command such as /image PATH, or a question -> Conversation.stream -> text, piece by piece

Only answers go to standard output. In a terminal, errors are printed and the conversation goes on; Ctrl-C stops the
answer, Ctrl-D ends. With a pipe, an error ends the program with status 2.

Test: ``pytest tests/cli/test_talk.py``
"""

import contextlib
import glob
import os
import signal
import sys
import threading
from typing import NamedTuple

import torch

from ..chat import Conversation
from ..files.messages import shown
from ..files.output import check_output
from ..model import Vita
from ..request import Request
from .flags import (
    Parser,
    add_common_flags,
    check_device,
    check_ranges,
    loading_options,
    path,
    sampling_options,
    world_size,
)
from .help import Formatter
from .look import free_name, reporter, write_page
from .requests import SYSTEM_LIMIT, read_text
from .terminal import exit_status, loading_bar, reading_bar, user_message, watched

EPILOG = """examples:
  %(prog)s --image cat.jpg
  %(prog)s --model VITA-1.5 --system "Answer in one word."
  echo "Hello!" | %(prog)s --temperature 0.7 --seed 1

In the conversation: /help lists the commands. Ctrl-C stops the answer, Ctrl-D ends the conversation.
--image, --audio and --video belong to the first question.

exit status: 0; 2 for errors that you can fix; 130 after Ctrl-C while the model is loaded or with a pipe, 143 after SIGTERM.
"""


def main(argv=None):
    """Entry point; returns the exit status."""
    return exit_status(run, parser(), argv)


def parser():
    """The flags of a conversation, with their defaults."""
    p = Parser(prog="python -m vita_ref.chat", description="A conversation about images, sounds and videos.",
               epilog=EPILOG, formatter_class=Formatter)  # fmt: skip
    add_common_flags(p)
    p.add_argument("--load", metavar="FILE", type=path, help="go on with a conversation that /save has written")
    p.add_argument("--overflow", choices=["error", "drop_oldest"],
                   help="drop_oldest: a full context leaves out the oldest questions (default: error)")  # fmt: skip
    return p


def run(args):
    """Loads the model, and answers until the input ends."""
    check_ranges(args)
    check_device(args.device)
    if world_size() > 1:
        raise ValueError("a conversation runs in one process: start it without torchrun")
    if args.system is not None and args.system_file is not None:
        raise ValueError("--system and --system-file are the same option: give one")
    if "-" in args.image:
        raise ValueError("--image -: standard input has the questions: give the name of a file")
    if args.threads:
        torch.set_num_threads(args.threads)
    system = args.system if args.system_file is None else read_text(args.system_file, SYSTEM_LIMIT)
    vita = Vita.from_pretrained(args.model, **loading_options(args, loading_bar() if watched(args) else None))
    Talk(vita, args, system).run()


class Talk:
    """The conversation, and the media of its next question."""

    def __init__(self, vita, args, system=None):
        self.args, self.terminal = args, sys.stdin is not None and sys.stdin.isatty()
        self.chat = Conversation.load(args.load, vita) if args.load else vita.chat()
        self.chat.options |= given_options(args)
        self.chat.system = self.chat.system if system is None else system
        self.chat.overflow = args.overflow or self.chat.overflow
        self.ended = False
        self.images, self.audios, self.video = list(args.image), list(args.audio), args.video

    def run(self):
        """Reads lines until the input ends."""
        with line_editing(self.terminal), at_prompt(self.terminal):
            while not self.ended and (line := self.read_line()) is not None:
                try:
                    self.take(line.strip("\r\n\ufeff"))  # a pipe on Windows has CRLF, and may begin with a byte order mark
                except Exception as error:
                    if not self.terminal or (message := user_message(error)) is None:
                        raise
                    print(f"vita_ref: {message}", file=sys.stderr)
                except KeyboardInterrupt:  # while media are read or a page is made, which is then cancelled
                    if not self.terminal:
                        raise
                    print(file=sys.stderr)

    def read_line(self):
        """The next line; None at the end of the input. In a terminal, Ctrl-C gives up the line."""
        try:
            if self.terminal and sys.stdout.isatty():
                return input("> ")
            if self.terminal:
                print("> ", end="", file=sys.stderr, flush=True)
            return (sys.stdin.readline() if sys.stdin else "") or None
        except EOFError:
            print()
            return None
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 text: {error.reason}") from None
        except KeyboardInterrupt:
            if not self.terminal:
                raise
            print()
            return ""

    def take(self, line):
        """A line: a command, a question, or nothing. A question may begin with a space in front of its slash."""
        if line.startswith("/"):
            name, rest = [*line.split(None, 1), ""][:2]
            if name not in COMMANDS:
                raise ValueError(f"there is no command {shown(name)}: /help lists them; a space in front makes it a question")
            COMMANDS[name].run(self, rest.strip())
        elif line.strip() or self.images or self.audios or self.video:
            self.ask(line.strip() or None)

    def ask(self, text):
        """Prints the answer to a question about the media that were added."""
        media = self.images, self.audios, self.video
        self.images, self.audios, self.video = [], [], None
        with reading_bar(watched(self.args)) as report:
            stream = self.chat.stream(text, *media, progress=report)
            with stopped_by_ctrl_c(stream, self.terminal):
                for piece in stream:
                    print(piece.text, end="", flush=True)
        print(flush=True)
        self.report(stream.result)

    def report(self, result):
        """Says on standard error what the user should know about an answer."""
        if result.dropped:
            print(f"vita_ref: the context is full: {len(result.dropped)} messages were left out", file=sys.stderr)
        if self.terminal and result.finish_reason in ("stopped", "length"):
            reason = {"stopped": "stopped", "length": "cut off at --max-new-tokens"}[result.finish_reason]
            print(f"vita_ref: the answer was {reason}", file=sys.stderr)
        if self.args.verbose:
            times = ", ".join(f"{name} {value:.3f}" for name, value in result.timing.items())
            print(f"{times}, {result.prompt['total']} positions, {result.prompt['cached']} cached", file=sys.stderr)

    # ---- commands

    def add_image(self, name):
        self.images.append(existing_file(name))

    def add_audio(self, name):
        self.audios.append(existing_file(name))

    def add_video(self, name):
        self.video = existing_file(name)

    def undo(self, rest):
        self.chat.undo()

    def save(self, name):
        self.chat.save(file_name(name))

    def look(self, name):
        """Writes the page about the last answer. In a terminal, Ctrl-C cancels it."""
        reports = self.terminal or watched(self.args)
        path = file_name(name) if name else free_name("look.html")
        check_output(path, "/look")
        write_page(self.interruptible_look(reporter() if reports else lambda *at: None), path, "/look")
        if reports or not name:
            print(f"vita_ref: {shown(os.path.abspath(path))} has the page: open it in a browser", file=sys.stderr)

    def interruptible_look(self, report):
        """The `Look` of the last answer. Ctrl-C ends it at the next report: an exception would break torch's late imports."""
        stopped = threading.Event()

        def progress(*at):
            if stopped.is_set():
                raise KeyboardInterrupt
            report(*at)

        with handled(lambda number, frame: stopped.set(), self.terminal):
            return self.chat.look(progress=progress)

    def quit(self, rest):
        self.ended = True

    def help(self, rest):
        """Prints the commands, on standard error: only answers go to standard output."""
        width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            print(f"{f'{name} {command.argument}':{width}}  {command.help}", file=sys.stderr)


class Command(NamedTuple):
    """A command: a function of the `Talk` and of the text behind the name, and what /help says."""

    run: object
    argument: str
    help: str


COMMANDS = {
    "/image": Command(Talk.add_image, "PATH", "adds an image to the next question"),
    "/audio": Command(Talk.add_audio, "PATH", "adds a sound; with an empty line it is the question"),
    "/video": Command(Talk.add_video, "PATH", "adds a video to the next question"),
    "/undo": Command(Talk.undo, "", "removes the last question and its answer"),
    "/save": Command(Talk.save, "PATH", "writes the conversation, with its media, to a file (--load reads it)"),
    "/look": Command(Talk.look, "[FILE]", "writes a page that shows where the last answer came from (look.html)"),
    "/help": Command(Talk.help, "", "lists the commands"),
    "/quit": Command(Talk.quit, "", "ends the conversation, as Ctrl-D does"),
}


def given_options(args):
    """The sampling flags and those of `Request` that are not the defaults."""
    options, request = sampling_options(args), {name: getattr(args, name) for name in ("raw", "max_tiles", "fps", "max_frames")}
    values = {**vars(options), **request}
    defaults = {**vars(type(options)()), **vars(Request())}
    return {name: value for name, value in values.items() if value != defaults[name]}


def file_name(name):
    """The name of a file behind a command, without quotes, and with the home folder for ~. Raises: ValueError."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    if not name or "\0" in name:
        raise ValueError("give the name of a file behind the command")
    return os.path.expanduser(name)


def existing_file(name):
    """The name of a file that exists. Raises: ValueError."""
    name = file_name(name)
    if not os.path.exists(name):
        raise ValueError(f"{shown(name)}: no such file")
    return name


# ---- the terminal


@contextlib.contextmanager
def line_editing(wanted):
    """Inside the block, `input` has line editing, a history, and completes commands and names of files."""
    try:
        import readline
    except ImportError:  # as on Windows, whose terminal has a history of its own
        wanted = False
    if not wanted:
        yield
        return

    def complete(text, number):
        line = readline.get_line_buffer()
        if line.startswith("/") and " " not in line:
            found = [f"{name} " for name in COMMANDS if name.startswith(line)]
        else:
            found = [name + "/" * os.path.isdir(name) for name in glob.glob(glob.escape(os.path.expanduser(text)) + "*")]
        return found[number] if number < len(found) else None

    before = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])


@contextlib.contextmanager
def at_prompt(wanted):
    """Inside the block, Ctrl-C raises KeyboardInterrupt each time, which gives up a line."""
    with handled(signal.default_int_handler, wanted):
        yield


@contextlib.contextmanager
def stopped_by_ctrl_c(stream, wanted):
    """Inside the block, Ctrl-C stops the stream, which then ends with what there is."""
    with handled(lambda number, frame: stream.stop(), wanted):
        yield


@contextlib.contextmanager
def handled(handler, wanted):
    """Inside the block, Ctrl-C is handled by a function. Only the main thread has signals."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
