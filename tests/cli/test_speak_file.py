"""The file of --speak: it is opened before the answer, complete or not there, and nothing else is touched."""

import os
import stat
import threading
import time
from types import SimpleNamespace

import pytest
import soundfile
import torch
from command_line import call, check_user_error, write_tiny
from conftest import GOLDEN

from vita_ref import Vita
from vita_ref.cli.speak import speech_file
from vita_ref.files.output import complete_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def speak(folder, path, text="hi"):
    flags = ("--max-new-tokens", 8, "--speech-dir", GOLDEN / "tts", "--speak", path)
    return call("--model", folder, text, *flags)


@pytest.fixture
def short_speech(monkeypatch):
    """The random speech decoder of the tests speaks for 25 seconds; here each text gets a tenth."""

    def speak_stream(self, texts, speed):
        for text in texts:
            yield torch.linspace(-0.5, 0.5, 2400) * len(text) / 100

    monkeypatch.setattr(Vita, "speak_stream", speak_stream)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_link_is_followed_a_device_and_a_pipe_are_written_into_and_other_files_are_left_alone(folder, tmp_path, short_speech):
    """All with the same answer, so with the same speech."""
    (tmp_path / "plain.wav.part").write_text("of someone else")
    assert speak(folder, tmp_path / "plain.wav")[0] == 0
    expected = (tmp_path / "plain.wav").read_bytes()
    assert soundfile.info(tmp_path / "plain.wav").frames > 1000
    (tmp_path / "elsewhere").mkdir()
    for old in ("old.wav", "new.wav"):
        (tmp_path / f"link to {old}").symlink_to(tmp_path / "elsewhere" / old)
    (tmp_path / "elsewhere" / "old.wav").write_text("old")
    (tmp_path / "elsewhere" / "old.wav").chmod(0o640)
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    for name in ("link to old.wav", "link to new.wav", "pipe"):
        status, out, err = speak(folder, tmp_path / name)
        assert status == 0 and out and err == ""
    reader.join()
    assert received == [expected] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["elsewhere", "link to new.wav", "link to old.wav", "pipe", "plain.wav", "plain.wav.part"]
    for old in ("old.wav", "new.wav"):
        assert (tmp_path / f"link to {old}").is_symlink() and (tmp_path / "elsewhere" / old).read_bytes() == expected
    assert (tmp_path / "elsewhere" / "old.wav").stat().st_mode & 0o777 == 0o640
    assert names(tmp_path / "elsewhere") == ["new.wav", "old.wav"]
    assert (tmp_path / "plain.wav.part").read_text() == "of someone else"
    assert speak(folder, "/dev/null")[0] == 0 and stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["nowhere/x.wav", "a folder", "file/x.wav", "z" * 300 + ".wav", "loop", "link to nowhere"])
def test_a_file_that_cannot_be_written_is_found_before_the_model_is_loaded(folder, tmp_path, monkeypatch, name):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link to nowhere").symlink_to(tmp_path / "nowhere" / "x.wav")
    before = names(tmp_path)

    def refuse(*args, **options):
        raise AssertionError("the model must not be loaded")

    monkeypatch.setattr(Vita, "from_pretrained", refuse)
    check_user_error(*speak(folder, tmp_path / name))
    assert names(tmp_path) == before


def test_a_file_that_cannot_be_created_is_found_before_the_answer(folder, tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    status, out, err = speak(folder, tmp_path / "x.wav")
    monkeypatch.undo()
    check_user_error(status, out, err)
    assert "Permission denied" in err and names(tmp_path) == []


def test_a_full_disk_leaves_nothing_but_the_old_file(folder, tmp_path, short_speech):
    """/dev/full takes the file's bytes and then refuses them."""
    status, out, err = speak(folder, "/dev/full")
    assert status == 2 and out and err.count("\n") == 1 and "No space left" in err
    (tmp_path / "x.wav").write_text("old")
    with pytest.raises(OSError, match="stop"), complete_file(tmp_path / "x.wav") as file:
        with open(file, "w") as out:
            out.write("half")
        raise OSError("stop")
    assert names(tmp_path) == ["x.wav"] and (tmp_path / "x.wav").read_text() == "old"


class Speaker:
    """Speaks a piece of sound for each text, and records what it has spoken."""

    speech = SimpleNamespace(sample_rate=24000)

    def __init__(self, error=None):
        self.spoken, self.error = [], error

    def speak_stream(self, texts, speed):
        for text in texts:
            if self.error:
                raise self.error
            time.sleep(0.05)
            self.spoken.append(text)
            yield torch.zeros(100)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_interrupted_answer_is_not_spoken_to_its_end(tmp_path, stop):
    speaker, start = Speaker(), time.monotonic()
    with pytest.raises(stop), speech_file(speaker, tmp_path / "x.wav", 1.0) as say:
        for i in range(200):
            say(str(i))
        time.sleep(0.3)
        raise stop
    assert names(tmp_path) == [] and time.monotonic() - start < 5  # all of it takes ten seconds
    count = len(speaker.spoken)
    time.sleep(0.3)
    assert 0 < count < 150 and len(speaker.spoken) <= count + 1


def test_an_error_while_speaking_is_raised_and_leaves_no_file(tmp_path):
    for error, raised in ((OSError("disk"), ValueError), (ValueError("text"), ValueError), (KeyError("bug"), KeyError)):
        with pytest.raises(raised), speech_file(Speaker(error), tmp_path / "x.wav", 1.0) as say:
            say("a")
        assert names(tmp_path) == []
