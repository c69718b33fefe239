"""MP3 files whose length is written nowhere, or wrongly: the frames are counted, and a header gets the right number.

libsndfile stops reading at the length that it expects. Without a header it takes the bit rate of the first frame for that
of all. Of a sound with a variable bit rate, or of two files that were joined, it would return a part.

Test: ``pytest tests/files/test_mp3.py``
"""

import re
import struct

# Of layer III, by whether it is MPEG 1 (True) or MPEG 2 and 2.5 (False)
KBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by the bits of the version
SAMPLES = {True: 1152, False: 576}  # of a frame
SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")  # the first two bytes of a header of layer III
MONO = 3  # the two bits of the channel mode
SPARE = 4 * 1152  # samples that an encoder may have added at both ends, which decoders leave out
MOST_SKIPPED = 1 << 20  # bytes between frames, in the whole file; what follows is not counted
HEADER_KBITS = 10  # the index of a bit rate whose frame has room for the header


def with_length(content, frames):
    """The bytes of an MP3 file with a header that gives its length, or None if ``frames`` samples are the whole sound.

    Source: the Xing header as mpg123 reads it: flags, then the number of frames.
    """
    places = list(frame_places(content))
    if not places:
        return None
    first = struct.unpack_from(">I", content, places[0])[0]
    is_mpeg1 = first >> 19 & 3 == 3
    if len(places) * SAMPLES[is_mpeg1] <= frames + SPARE:
        return None
    head = first & ~0xF200 | 0x10000 | HEADER_KBITS << 12  # no checksum, no padding
    side = (17 if first >> 6 & 3 == MONO else 32) if is_mpeg1 else (9 if first >> 6 & 3 == MONO else 17)
    frame = struct.pack(">I", head) + bytes(side) + struct.pack(">4sII", b"Xing", 1, len(places))
    return frame.ljust(frame_size(frame, 0), b"\0") + content[places[0] :]


def frame_places(content):
    """Where each complete frame begins. Bytes between frames are skipped."""
    place, skipped = 0, 0
    if content[:3] == b"ID3" and len(content) > 10:  # a title in front; seven bits of each byte count
        place = 10 + sum((byte & 127) << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0)))
    while place < len(content):
        size = frame_size(content, place)
        if not size:
            found = next_frame(content, place, place + MOST_SKIPPED - skipped)
            skipped, place = skipped + found - place, found
            continue
        if place + size <= len(content):
            yield place
        place += size


def next_frame(content, place, end):
    """Where the next frame before ``end`` begins that another one follows, or the end of the file."""
    for found in SYNC.finditer(content, place, end):
        size = frame_size(content, found.start())
        if size and frame_size(content, found.start() + size):
            return found.start()
    return len(content)


def frame_size(content, place):
    """The bytes of the frame that begins at ``place``; 0 if none does."""
    if not SYNC.match(content, place) or place + 4 > len(content):
        return 0
    head = struct.unpack_from(">I", content, place)[0]
    version, kbits, rate, padding = head >> 19 & 3, head >> 12 & 15, head >> 10 & 3, head >> 9 & 1
    if version not in RATES or not 0 < kbits < 15 or rate == 3:
        return 0
    is_mpeg1 = version == 3
    return SAMPLES[is_mpeg1] // 8 * KBITS[is_mpeg1][kbits - 1] * 1000 // RATES[version][rate] + padding
