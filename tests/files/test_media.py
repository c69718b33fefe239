"""Limits of pictures, films and sounds, names in messages, and bounded reading. Run: ``pytest tests/files/test_media.py``"""

import contextlib
import io
import os
import re
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vita_ref.files import media
from vita_ref.image import open_image

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


LINES = [  # of libtiff and libmpg123, as damaged files gave them
    "tempfile.tif: Using code not yet in table.",
    "LZWDecode: Not enough data at scanline 0 (short 14 bytes).",
    "ZIPDecode: Decoding error at scanline 0, invalid distance too far back.",
    "Fax4Decode: Bad code word at line 31 of strip 0 (x 0).",
    "JPEGLib: Unsupported marker type 0xab.",
    "ZSTDDecode: Error in ZSTD_decompressStream(): Data corruption detected.",
    "TIFFReadDirectory: Warning, Unknown field with tag 34 (0x22) encountered.",
    "[src/libmpg123/layer3.c:INT123_do_layer3():1804] error: dequantization failed!",
    "Note: Illegal Audio-MPEG-Header 0x70892213 at offset 3240.",
    "Note: Trying to resync...",
    "Note: Skipped 1024 bytes in input.",
    "\nWarning: Xing stream size off by more than 1%, fuzzy seeking may be even more fuzzy than by design!",
]
OTHERS = ["vita_ref: cannot read x", "INFO:     127.0.0.1 - GET /", "", "Warning: low battery", "Note: mine", "a TIFF: no", "é"]


@few
@given(st.lists(st.sampled_from(LINES) | st.sampled_from(OTHERS), max_size=12))
def test_of_several_threads_only_the_lines_of_libraries_are_discarded(lines):
    text = "".join(line + "\n" for line in lines).encode()
    kept = "".join(line + "\n" for line in lines if line in OTHERS).encode()
    read, write = os.pipe()
    thread, done = threading.Thread(target=lambda: done.wait(20)), threading.Event()
    thread.start()
    before = os.dup(2)
    os.dup2(write, 2)
    try:
        with media.quiet_stderr():
            os.write(2, text)
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(write)
        done.set()
        thread.join()
    with open(read, "rb") as pipe:
        got = pipe.read()
    assert got.replace(b"\n", b"") == kept.replace(b"\n", b"")
    if "" not in lines:
        assert got == kept


def test_what_another_thread_writes_meanwhile_is_kept(capfd):
    go, done = threading.Event(), threading.Event()

    def write():
        go.wait(5)
        os.write(2, b"of the other thread\n")
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    with media.quiet_stderr():
        os.write(2, b"LZWDecode: Not enough data at scanline 0 (short 14 bytes).\n")
        go.set()
        assert done.wait(5)
    thread.join()
    assert capfd.readouterr().err == "of the other thread\n"


def test_several_threads_can_read_damaged_files_at_once(capfd):
    image = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(image, "TIFF", compression="tiff_lzw")
    damaged, refused = image.getvalue()[:8] + b"\xff" * 2000 + image.getvalue()[2008:], []

    def read():
        for _ in range(5):
            with contextlib.suppress(ValueError):
                open_image(io.BytesIO(damaged))
            refused.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"after\n")
    assert len(refused) == 20 and capfd.readouterr().err == "after\n"


@pytest.mark.parametrize("started_without", [True, False])
def test_a_closed_standard_error_is_accepted(monkeypatch, started_without):
    """Python has no ``sys.stderr`` if it was started without one; the program may also close it later."""
    if started_without:
        monkeypatch.setattr(sys, "stderr", None)
    inside, saved = [], os.dup(2)
    os.close(2)
    try:
        with media.quiet_stderr():
            inside.append(1)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert inside
