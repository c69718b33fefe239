"""What the tests of the server share: a tiny random model, a server in a thread, and media as clients send them."""

import base64
import contextlib
import io
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tools import make_checkpoint
from vita_ref import Vita, VitaConfig
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig

for name in ("starlette", "uvicorn"):
    pytest.importorskip(name, reason=f"the server needs {name}: pip install 'vita-ref[serve]'")

import uvicorn

from vita_ref.serve.app import Server
from vita_ref.serve.guard import LOCAL

CONFIG = replace(
    VitaConfig.preset("demo"),
    decoder=DecoderConfig(300, 32, 40, 2, 6, 3, 4, max_position_embeddings=512),
    vision=VisionConfig(16, 20, 1, 2, image_size=28, patch_size=7),
    audio=AudioConfig(12, 18, 1, 3, subsampling_size=14),
    eos_token_ids=(299,),
    template="chatml",
)


def tiny_vita(folder, **changes):
    """A random model in float32 whose tokens are bytes."""
    make_checkpoint.write(folder, "demo", seed=3, config=replace(CONFIG, **changes))
    return Vita.from_pretrained(folder, dtype=torch.float32)


@contextlib.contextmanager
def served(vita, *, name="tiny", hosts=LOCAL, **options):
    """Runs a server; its ``url`` and ``port`` are attributes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        server = Server(vita, name, hosts=hosts, **options)
        config = uvicorn.Config(server.app, log_level="critical", timeout_graceful_shutdown=1, ws="none")
        runner = uvicorn.Server(config)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
        thread.start()
        server.port = listening.getsockname()[1]
        server.url = f"http://127.0.0.1:{server.port}"
        try:
            yield server
        finally:
            runner.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def picture_url(color=(10, 200, 30), size=(50, 40), form="PNG"):
    """A picture of one colour as a data URL."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def wav(seconds=0.5, rate=16000, form="WAV"):
    """The base64 of a sound file."""
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(int(seconds * rate)) / 9).astype("float32") / 3, rate, format=form)
    return base64.b64encode(file.getvalue()).decode()


def image_part(**options):
    return {"type": "image_url", "image_url": {"url": picture_url(**options)}}


def sound_part(**options):
    return {"type": "input_audio", "input_audio": {"data": wav(**options), "format": "wav"}}


def text_part(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}
