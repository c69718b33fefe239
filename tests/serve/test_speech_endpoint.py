"""``/v1/audio/speech`` with OpenAI's client and tiny speech weights: the same samples as `Vita.speak`, in every format."""

import io

import numpy as np
import pytest
import soundfile
import torch
from conftest import GOLDEN
from serving import served, tiny_vita

from vita_ref.serve.errors import ProtocolError
from vita_ref.serve.sounds import FORMATS, encoded, read_speech
from vita_ref.speech import Speech

openai = pytest.importorskip("openai", reason="the client of the protocol is not installed: pip install openai")


@pytest.fixture(scope="module")
def vita(tmp_path_factory):
    vita = tiny_vita(tmp_path_factory.mktemp("tiny"))
    vita.speech = Speech.from_pretrained(GOLDEN / "tts")
    return vita


@pytest.fixture(scope="module")
def short_speech(vita):
    """The random speech decoder speaks for 25 seconds; here each text gets a tenth, one sentence in two pieces."""

    def speak_stream(text, *, speed=1.0):
        samples = torch.sin(torch.arange(2400 * len(text) // 10) / 20) / 2
        yield from samples[: int(len(samples) / speed)].chunk(2)

    vita.speak_stream = speak_stream
    return speak_stream


@pytest.fixture(scope="module")
def client(vita, short_speech):
    with served(vita) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def expected(vita, text, **options):
    return torch.cat(list(vita.speak_stream(text, **options))).numpy()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_text_is_spoken_in_every_format(vita, client, kind):
    content = client.audio.speech.create(model="tiny", voice="alloy", input="Hello there.", response_format=kind).content
    wanted = expected(vita, "Hello there.")
    if kind == "pcm":
        samples, rate = np.frombuffer(content, "<i2") / 32767, 24000
    else:
        samples, rate = soundfile.read(io.BytesIO(content))
    assert rate == 24000
    if kind in ("mp3", "opus"):  # lossy, and with a delay
        assert abs(len(samples) - len(wanted)) < 3000 and abs(samples).max() == pytest.approx(0.5, abs=0.15)
    else:
        np.testing.assert_allclose(samples, wanted, atol=1e-4)


def test_the_speed_reaches_the_speech(vita, client):
    content = client.audio.speech.create(model="tiny", voice="default", input="Hello.", speed=2, response_format="wav").content
    assert soundfile.info(io.BytesIO(content)).frames == len(expected(vita, "Hello.", speed=2)) < len(expected(vita, "Hello."))


@pytest.mark.parametrize(
    ("options", "param"),
    [({"input": ""}, "input"), ({"input": "x" * 5000}, "input"), ({"speed": 3}, "speed"), ({"response_format": "aac"}, "response_format"),
     ({"voice": "nobody"}, "voice"), ({"extra_body": {"pitch": 2}}, "pitch")],
)  # fmt: skip
def test_what_cannot_be_spoken_is_an_error_that_names_the_field(client, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.audio.speech.create(**{"model": "tiny", "voice": "alloy", "input": "Hi.", **options})
    assert error.value.param == param


def test_the_samples_are_those_of_the_speech_weights(vita, short_speech):
    """Without a server: the real speech decoder, for a few codec tokens."""
    del vita.speak_stream
    try:
        with torch.inference_mode():
            pieces = list(vita.speak_stream("Hi.", max_tokens=3))
        content, kind = encoded(pieces, vita.speech.sample_rate, "wav")
        samples, rate = soundfile.read(io.BytesIO(content))
        assert (rate, kind) == (24000, "audio/wav")
        np.testing.assert_allclose(samples, torch.cat(pieces).clamp(-1, 1).numpy(), atol=1e-4)
    finally:
        vita.speak_stream = short_speech


def test_a_field_of_a_wrong_type_is_refused():
    for field, value in (("input", 3), ("speed", "fast"), ("voice", {"id": 1}), ("response_format", 1)):
        with pytest.raises(ProtocolError, match=field):
            read_speech({"input": "Hi.", field: value})
