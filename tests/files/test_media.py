"""Limits of pictures, films and sounds, names in messages, and bounded reading. Run: ``pytest tests/files/test_media.py``"""

import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.files import media

ROOT = Path(__file__).parents[2]
few = settings(max_examples=50, deadline=None, derandomize=True)


def test_the_table_of_limits_has_every_limit_with_its_value():
    table = (ROOT / "tools/limits.md").read_text(encoding="utf-8")
    written = {name: float(value.replace(",", "")) for value, name in re.findall(r"\| ([\d,]+) \| `(\w+)` \|", table)}
    names = [name for name in vars(media) if name.startswith(("MAX_", "MIN_")) and name != "MIN_FRAME_PIXELS"]
    assert written == {name: getattr(media, name) for name in names}
    assert f"at least {media.MIN_FRAME_PIXELS:,}" in table


@few
@given(st.text(max_size=300), st.integers(10, 90))
def test_a_name_in_a_message_is_one_printable_line_and_keeps_its_beginning_and_end(name, limit):
    text = media.cut(name, limit)
    assert text.isprintable()
    if name.isprintable():
        assert len(text) <= limit
        assert text == name or (name.startswith(text.split("…")[0]) and name.endswith(text[-limit // 2 + 1 :]))


class Endless(io.RawIOBase):
    """A stream without an end that counts what is read from it."""

    count = 0

    def read(self, size=-1):
        assert 0 < size <= media.CHUNK
        self.count += size
        return bytes(size)


def test_an_endless_stream_is_refused_once_it_has_given_more_than_the_limit():
    with pytest.raises(ValueError, match=r"^cannot read standard input: it has more than 3,000,000 bytes$"):
        media.read_bounded(stream := Endless(), 3_000_000, "standard input")
    assert stream.count == 3_000_001


@few
@given(st.binary(max_size=60), st.integers(0, 60), st.integers(1, 9))
def test_a_stream_is_read_whole_if_it_is_within_the_limit_however_it_arrives(content, limit, piece):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, piece))

    if len(content) <= limit:
        assert media.read_bounded(Slow(content), limit) == content
    else:
        with pytest.raises(ValueError, match="it has more than"):
            media.read_bounded(Slow(content), limit)


def test_a_stream_of_text_and_a_closed_one_are_refused():
    with pytest.raises(ValueError, match="binary mode"):
        media.read_bounded(io.StringIO("text"))
    closed = io.BytesIO(b"1")
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        media.read_bounded(closed)


def test_devices_and_pipes_and_files_above_the_limit_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"1234")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(ValueError, match="a device or a pipe"):
            media.check_regular(path)
    with pytest.raises(ValueError, match="it has 4 bytes; at most 3"):
        media.check_regular(tmp_path / "file", 3)
    media.check_regular(tmp_path / "file", 4)
    media.check_regular(tmp_path)


def test_what_a_library_writes_to_standard_error_is_discarded_and_what_follows_is_not(capfd):
    with media.quiet_stderr():
        os.write(2, b"[src/libmpg123/layer3.c] error\n")
        with media.quiet_stderr():
            os.write(2, b"inner\n")
        os.write(2, b"outer\n")
    os.write(2, b"after\n")
    with media.quiet_stderr(wanted=False):
        os.write(2, b"kept\n")
    assert capfd.readouterr().err == "after\nkept\n"


def test_standard_error_is_left_alone_while_another_thread_may_write_to_it(capfd):
    go, done = threading.Event(), threading.Event()

    def write():
        go.wait(5)
        os.write(2, b"of the other thread\n")
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    with media.quiet_stderr():
        go.set()
        assert done.wait(5)
    thread.join()
    assert capfd.readouterr().err == "of the other thread\n"


def test_a_closed_standard_error_is_accepted():
    code = "from vita_ref.files.media import quiet_stderr\nwith quiet_stderr(): print('inside')"
    command = f'"$0" -c "{code}" 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "inside\n"
