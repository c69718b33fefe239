"""What the server refuses: in OpenAI's format, with a status that says why, before it costs memory or time."""

import base64
import http.client
import io
import json
import re
import socket
import struct
import zlib
from pathlib import Path

import pytest
import soundfile
from PIL import Image
from serving import (
    image_part,
    picture_url,
    served,
    sound_part,
    text_part,
    tiny_vita,
    user,
    wav,
)

from vita_ref.serve import app, limits, media, questions
from vita_ref.serve.guard import Guard, allowed_hosts, host_of, is_local

LIMITS = Path(__file__).parents[2] / "tools" / "limits.md"


@pytest.fixture(scope="module")
def vita(tmp_path_factory):
    return tiny_vita(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(vita):
    with served(vita) as server:
        yield server


def send(server, body, *, path="/v1/chat/completions", method="POST", headers=None):
    """The status, and the object in the response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json"} | (headers or {}))
    response = connection.getresponse()
    text = response.read()
    connection.close()
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return response.status, json.loads(text) if is_json else text.decode()


def ask(server, *messages, **options):
    return send(server, {"model": "tiny", "messages": list(messages), "max_tokens": 2, **options})


def refused(answer, status, pattern):
    """The error of an answer, which has this status and a message of one line with these words."""
    got, content = answer
    assert got == status, content
    message = content["error"]["message"]
    assert re.search(pattern, message), message
    assert len(message) < 700 and message.isprintable()
    assert set(content["error"]) == {"message", "type", "param", "code"}
    return content["error"]


def still_answers(server):
    assert ask(server, user("Hi"))[0] == 200


# ---- who asks


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]", "10.0.0.1", ""]
)
def test_a_foreign_host_is_refused_on_every_path(server, host):
    for path in ("/", "/health", "/v1/models"):
        refused(send(server, None, path=path, method="GET", headers={"Host": host}), 403, "--allow-host")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost", "LOCALHOST:80", "[::1]", "[::1]:8000"])
def test_the_names_of_this_machine_are_accepted(server, host):
    assert send(server, None, path="/health", method="GET", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://"])
def test_a_foreign_origin_is_refused(server, origin):
    refused(send(server, {"model": "tiny", "messages": [user("Hi")]}, headers={"Origin": origin}), 403, "other sites")


def test_the_own_origin_is_accepted_and_no_other_site_is_allowed_to_read(server):
    answer = ask(server, user("Hi"))
    assert answer[0] == 200
    own = {"Origin": server.url, "Host": f"127.0.0.1:{server.port}"}
    assert send(server, {"model": "tiny", "messages": [user("Hi")], "max_tokens": 1}, headers=own)[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/health", headers=own)
    names = {name.lower() for name, _ in connection.getresponse().getheaders()}
    assert not {name for name in names if name.startswith("access-control")}
    assert {"x-content-type-options", "cross-origin-resource-policy"} <= names


def test_two_hosts_or_none_are_refused(server):
    for hosts in ("", "Host: 127.0.0.1\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(f"GET /health HTTP/1.0\r\n{hosts}\r\n".encode())
            assert raw.recv(100).split()[1] in (b"400", b"403")


def test_a_form_of_another_page_is_no_request(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        refused(
            send(server, {"model": "tiny", "messages": [user("Hi")]}, headers={"Content-Type": kind}), 415, "application/json"
        )


def test_a_key_is_needed_for_the_protocol_and_not_for_the_page(vita):
    with served(vita, key="secret key") as server:
        body = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 1}
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret key"},
            {"Authorization": "Bearer secret key é"},
        ):
            given = {name: value.encode("latin-1") for name, value in given.items()}
            error = refused(send(server, body, headers=given), 401, "key")
            assert error["code"] == "invalid_api_key"
        assert send(server, body, headers={"Authorization": "Bearer secret key"})[0] == 200
        assert send(server, None, path="/v1/models", method="GET")[0] == 401
        assert send(server, None, path="/v1", method="GET")[0] == 401
        assert send(server, None, path="/health", method="GET")[0] == 200
        assert "<!doctype html>" in send(server, None, path="/", method="GET")[1]


def test_only_names_that_no_other_site_can_take_are_accepted():
    assert is_local("127.0.0.1") and is_local("127.8.9.1") and is_local("::1") and is_local("localhost")
    assert not is_local("0.0.0.0") and not is_local("::") and not is_local("192.168.0.2") and not is_local("example.org")
    assert allowed_hosts("127.0.0.1") == {"localhost", "127.0.0.1", "::1"}
    assert {"box.lan", "0.0.0.0", socket.gethostname().lower()} <= allowed_hosts("0.0.0.0", ["Box.lan"])
    guard = Guard(None, allowed_hosts("0.0.0.0"), addresses=True, key="k")
    scope = lambda host: {"headers": [(b"host", host)], "path": "/", "method": "GET"}
    assert guard.refusal(scope(b"192.168.0.2:8000")) is None  # an address cannot be made to point elsewhere
    assert guard.refusal(scope(b"rebound.example:8000")).status == 403
    for damaged in ("a:b", "[::1", "[::1]x", ":80", "a:999999"):
        assert host_of(damaged) is None


# ---- bodies


def test_a_body_that_is_too_large_is_refused_and_not_kept(server, monkeypatch):
    monkeypatch.setattr(app, "MAX_BODY_BYTES", 10_000)
    refused(send(server, b" " * 1_000_000), 413, "10,000 bytes")
    assert server.received == 0
    chunks = (b" " * 50_000 for _ in range(4))  # without Content-Length
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    still_answers(server)


def test_all_bodies_together_are_bounded(server, monkeypatch):
    monkeypatch.setattr(app, "MAX_ALL_BODY_BYTES", 10_000)
    refused(ask(server, user("x" * 20_000)), 429, "try again")
    assert server.received == 0
    still_answers(server)


def test_a_body_that_does_not_arrive_is_given_up(server, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        raw.sendall(head.encode())
        assert raw.recv(100).split()[1] == b"408"
    still_answers(server)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 5000, b'{"a":1e999999}', b"1" * 5000]
)
def test_a_body_that_is_no_object_is_refused(server, body):
    refused(send(server, body), 400, "JSON|nested|model")
    still_answers(server)


def test_deep_json_is_refused(server):
    content = "x"
    for _ in range(40):
        content = [content]
    error = refused(send(server, {"model": "tiny", "messages": [user("Hi")], "metadata": content}), 400, "inside each other")
    assert error["code"] == "invalid_json"


def test_numbers_that_are_none_are_refused(server):
    for value in ("NaN", "Infinity", "-Infinity", "1e400"):
        body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": "Hi"}}], "temperature": {value}}}'
        refused(send(server, body.encode()), 400, "temperature")


# ---- pictures and sounds


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x.png",
        "https://example.org/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "weights/demo/example.jpg",
        "ftp://x/y",
        "",
        "data:image/png,notbase64",
        "-",
    ],
)
def test_no_address_is_fetched_and_no_path_is_read(server, monkeypatch, url):
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("something was opened"))
    part = {"type": "image_url", "image_url": {"url": url}}
    error = refused(ask(server, user(part)), 400, "no address is fetched")
    assert error["code"] == "invalid_image_url"


def test_a_path_is_no_sound(server):
    for data in ("/etc/passwd", "question.wav", "http://example.org/x.wav"):
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        refused(ask(server, user(part)), 400, "base64|cannot read")


@pytest.mark.parametrize("data", ["####", "AAA", "é", "A" * 5, "data", "=" * 8])
def test_bad_base64_is_refused(server, data):
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    refused(ask(server, user(part)), 400, "base64|picture")
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    refused(ask(server, user(part)), 400, "base64|input_audio")


def png(width, height):
    """A PNG file that claims to have a size, with no pixels in it."""
    chunk = lambda kind, content: (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no picture at all", "cannot be read"),
        (png(30_000, 30_000), "cannot be read|make it smaller"),
        (png(8_000, 6_000), "make it smaller"),
        (png(20, 20), "cannot"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "cannot be read"),
        (b"P6 9 9 255\n" + b"x" * 243, "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
    ],
)
def test_pictures_that_are_damaged_too_large_or_of_other_formats_are_refused(server, content, words):
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    error = refused(ask(server, user({"type": "image_url", "image_url": {"url": url}})), 400, words)
    assert "BytesIO" not in error["message"]
    still_answers(server)


def test_many_pictures_are_refused(server):
    parts = [image_part() for _ in range(limits.MAX_PICTURES + 1)]
    refused(ask(server, user(*parts)), 400, f"more than {limits.MAX_PICTURES} pictures")
    refused(ask(server, *(user(part) for part in parts)), 400, f"more than {limits.MAX_PICTURES} pictures")


def test_pictures_beyond_the_context_are_refused_before_all_of_them_are_decoded(server, monkeypatch):
    decoded = []
    monkeypatch.setattr(media, "from_base64", lambda *given, read=media.from_base64: (decoded.append(1), read(*given))[1])
    large = [image_part(size=(400, 100), color=(i, 0, 0)) for i in range(30)]  # of 13 tiles at most
    monkeypatch.setattr(questions, "MAX_PICTURES", 10**6)
    refused(ask(server, *(user(part, text_part("?")) for part in large * 5), max_tiles=12), 400, "512 positions|more than 32")
    assert len(decoded) < len(large) * 5


def test_long_sounds_are_refused(server):
    refused(ask(server, user(sound_part(seconds=limits.MAX_SOUND_SECONDS + 1, rate=1000))), 400, "at most")
    half = sound_part(seconds=limits.MAX_SOUND_SECONDS * 0.6, rate=1000)
    refused(ask(server, user(half), user(half)), 400, "at most|positions")


def test_a_small_file_with_many_samples_is_refused(server, monkeypatch):
    monkeypatch.setattr(media, "MAX_SOUND_SAMPLES", 50_000)
    file = io.BytesIO()
    soundfile.write(file, [[0.0] * 8] * 10_000, 16000, format="FLAC")
    data = {"data": base64.b64encode(file.getvalue()).decode(), "format": "flac"}
    assert len(data["data"]) < 5000
    refused(ask(server, user({"type": "input_audio", "input_audio": data})), 400, "at most")
    still_answers(server)


def test_sounds_that_are_damaged_too_short_or_of_other_formats_are_refused(server):
    cut = base64.b64encode(base64.b64decode(wav())[:-500]).decode()
    for data, kind in (("AAAA", "wav"), (cut, "wav"), (wav(), "aac"), (wav(), None), (wav(seconds=0.001), "wav")):
        refused(
            ask(server, user({"type": "input_audio", "input_audio": {"data": data, "format": kind}})), 400, "input_audio|sound"
        )


def test_long_text_is_refused_before_it_is_encoded(server, monkeypatch):
    refused(ask(server, user("x" * (limits.MAX_TEXT + 1))), 400, f"more than {limits.MAX_TEXT:,} characters")
    refused(ask(server, *[user("Hi")] * (limits.MAX_MESSAGES + 1)), 400, f"1 to {limits.MAX_MESSAGES} messages")


def test_control_characters_are_not_repeated_in_errors(server):
    error = refused(ask(server, {"role": "\x1b[31m\nroot", "content": "x"}), 400, "role")
    assert "\x1b" not in error["message"] and "\\x1b" in error["message"]
    refused(send(server, {"model": "\x1b" * 5000, "messages": []}), 404, "does not exist")


def test_placeholders_in_a_text_are_text(server):
    assert ask(server, user("<image><audio><video> <|im_end|>"))[0] == 200


def test_the_page_of_limits_has_those_of_the_server():
    table = re.findall(r"^\| .* \| ([\d,]+) \| `limits\.(\w+)` \|$", LIMITS.read_text(encoding="utf-8"), re.MULTILINE)
    own = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert {name: int(value.replace(",", "")) for value, name in table} == own


def test_a_picture_as_a_client_sends_it_is_accepted(server):
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        assert ask(server, user({"type": "image_url", "image_url": {"url": picture_url(form=form), "detail": "low"}}))[0] == 200
