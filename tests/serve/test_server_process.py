"""``python -m vita_ref.serve`` as a process: its first line, its flags, its statuses, and how it stops."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from serving import CONFIG, tiny_vita

from vita_ref import Vita
from vita_ref.serve import page as page_module
from vita_ref.serve import start as serve_module
from vita_ref.serve.__main__ import KEY, listen, main
from vita_ref.serve.guard import LOCAL

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "vita_ref.serve", "--port", "0", "--model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("serve") / "small"
    tiny_vita(path)
    return path


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory):
    """A model that writes 500 tokens: the logits of those that end an answer are 0, which is never the largest."""
    path = tmp_path_factory.mktemp("serve") / "slow"
    decoder = replace(CONFIG.decoder, max_position_embeddings=4096)
    vita = tiny_vita(path, decoder=decoder)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"][list(vita.stop_ids)] = 0
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def start(folder, *flags, **environment):
    """A process that serves, and its URL."""
    env = {name: value for name, value in os.environ.items() if name != KEY} | environment | {"PYTHONPATH": str(ROOT)}
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore Ctrl-C
    process = subprocess.Popen([*COMMAND, str(folder), *flags], env=env, text=True, stdout=-1, stderr=-1)
    signal.signal(signal.SIGINT, ignored)
    line = process.stdout.readline()
    found = re.match(r"(http://127\.0\.0\.1:\d+)/ ", line)
    assert found, process.communicate()
    return process, found[1]


def ask(url, text, tokens, key=None):
    body = {"model": "small", "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_it_answers_with_a_key_and_ctrl_c_ends_it_with_130_and_without_a_traceback(folder):
    process, url = start(folder, **{KEY: "sesame"})
    assert ask(url, "Hi", 3, "sesame")["usage"]["completion_tokens"] == 3
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(url, "Hi", 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def test_sigterm_lets_a_running_answer_end_and_refuses_new_ones(slow_folder):
    process, url = start(slow_folder, "--name", "small")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(url, "Long", 500)))
    thread.start()
    running = lambda: json.load(urllib.request.urlopen(f"{url}/health"))["running"]
    while not running():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    thread.join(10)
    assert (process.returncode, err) == (143, "")
    [answer] = answers
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] > 1
    with pytest.raises(OSError):
        ask(url, "Late", 1)


def check(capsys, *flags):
    """The one line of a user error."""
    try:
        status = main(list(flags))
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and err.startswith("vita_ref: ") and err.count("\n") == 1, err
    return err


def test_another_host_needs_a_key(capsys, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    for host in ("0.0.0.0", "::", "192.168.0.2"):
        assert KEY in check(capsys, "--host", host)
    for key in ("", " ", "a\nb", "é"):
        monkeypatch.setenv(KEY, key)
        assert KEY in check(capsys)


def test_wrong_flags_are_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv(KEY, raising=False)
    for flags in (("--port", "70000"), ("--port", "x"), ("--threads", "0"), ("--host", "no such host"), ("--pack", "--quantize", "int8"),
                  ("--model", str(tmp_path), "--port", "0"), ("--temperature", "1"), ("--device", "tpu")):  # fmt: skip
        check(capsys, *flags)


def test_a_port_that_is_in_use_is_told_before_the_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("vita_ref.serve.__main__.load", lambda args: pytest.fail("the model is loaded"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "in use" in check(capsys, "--port", str(other.getsockname()[1]))


def test_without_the_libraries_it_says_what_to_install(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("vita_ref.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'vita-ref[serve]'" in check(capsys)


def test_a_folder_without_a_tokenizer_cannot_be_served(capsys, folder, tmp_path):
    for file in folder.iterdir():
        if file.name not in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert "tokenizer" in check(capsys, "--model", str(tmp_path), "--port", "0")


SIZE = 12_000_000  # more than the system keeps of a connection
HEADS = (b"", b"G", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", b"\r\n")


def closed(client):
    """Whether the server ends a connection, within a minute."""
    client.settimeout(60)
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_connections_on_which_nothing_moves_are_closed_and_a_slow_answer_is_not(slow_folder, monkeypatch):
    """Heads that stop anywhere, as a first request or after another one, and a client that takes nothing of a large page."""
    monkeypatch.setattr(serve_module, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(page_module, "OTHER", "x" * SIZE)
    with listen("127.0.0.1", 0) as listening:
        runner = serve_module.stoppable(Vita.from_pretrained(slow_folder), "small", hosts=LOCAL, addresses=False, key=None)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            def connect(*pieces):
                client = socket.create_connection(listening.getsockname())
                for piece in pieces:
                    client.sendall(piece)
                return client

            whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            clients = [connect(whole * n, head) for n in (0, 1, 2) for head in HEADS]
            lazy = connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            given = ask(f"http://127.0.0.1:{listening.getsockname()[1]}", "Hi", 400)  # no byte for longer than the limit
            assert given["usage"]["completion_tokens"] == 400
            assert all(map(closed, clients))
            received = 0
            lazy.settimeout(60)
            with contextlib.suppress(ConnectionError):
                while piece := lazy.recv(1 << 20):
                    received += len(piece)
            assert received < SIZE
        finally:
            runner.should_exit = True
            thread.join()
