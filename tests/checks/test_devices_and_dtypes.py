"""Devices that are not here, names of dtypes, and sounds that are too short: what the messages say."""

import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from command_line import CONFIG, call, check_user_error, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import make_checkpoint
from vita_ref import Vita
from vita_ref.checks.devices import KINDS, as_device, available
from vita_ref.cli.flags import parser
from vita_ref.config import AudioConfig
from vita_ref.loading import DTYPES

few = settings(max_examples=40, deadline=None, derandomize=True)
ABSENT = [kind for kind in KINDS if kind not in available()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("device", [kind + number for kind in ABSENT for number in ("", ":0", ":3")])
def test_a_device_that_is_not_here_is_named_with_those_that_are(folder, device):
    status, out, err = call("--model", folder, "hi", "--device", device)
    check_user_error(status, out, err)
    assert device in err and KINDS[device.partition(":")[0]] in err and "cpu" in err and "leave the device out" in err
    with pytest.raises(ValueError, match=re.escape(err.removeprefix("vita_ref: ").strip())):
        Vita.from_pretrained(folder, device=device)


@pytest.mark.parametrize("device", ["gpu", "GPU", "nvidia", "cuda0", "metal", "tpu", "gpu:0", ""])
def test_a_word_that_is_no_device_is_answered_with_the_names_of_devices(folder, device):
    status, out, err = call("--model", folder, "hi", "--device", device)
    check_user_error(status, out, err)
    assert all(name in err for name in ("cpu", "cuda", "mps", "xpu", "NVIDIA", "Apple", "Intel"))


def test_the_devices_that_are_said_to_be_here_work():
    assert [as_device(name).type for name in available()] == available()


@few
@given(st.sampled_from(sorted(DTYPES)), st.sampled_from(["", "torch."]), st.booleans())
def test_every_short_name_of_a_weight_dtype_is_that_dtype(name, prefix, upper):
    given, full = prefix + (name.upper() if upper else name), str(DTYPES[name]).removeprefix("torch.")
    if full == "float64":
        return
    assert parser().parse_args(["--dtype", given]).dtype == full


@pytest.mark.parametrize("name", ["int8", "fp8", "float64", "double", "32", "", "auto"])
def test_another_dtype_is_refused_with_the_names(name, folder):
    status, out, err = call("--model", folder, "hi", "--dtype", name)
    check_user_error(status, out, err)
    assert "--dtype" in err and all(word in err for word in ("float32", "bfloat16 (bf16)", "float16 (fp16"))


# ---- short sounds


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    place = tmp_path_factory.mktemp("hearing")
    audio = AudioConfig(16, 20, 1, 2, subsampling_size=6)
    make_checkpoint.write(place, "demo", seed=3, config=replace(CONFIG, audio=audio))
    return place


@few
@given(st.integers(1, 1359), st.sampled_from([8000, 16000, 44100]), st.booleans())
def test_a_sound_that_is_too_short_is_named_with_its_milliseconds(tmp_path_factory, hearing, samples, rate, whole):
    """25 ms for the first frame and 10 ms for each of six more: 85 ms are needed."""
    path = tmp_path_factory.mktemp("sound") / "click.wav"
    samples = max(1, int(samples * rate / 16000))
    soundfile.write(path, np.zeros(samples), rate)
    status, out, err = call("--model", hearing, "--audio", path, "--max-new-tokens", "1")
    check_user_error(status, out, err)
    assert "click.wav" in err and "85 ms" in err and "frame" not in err
    [shown] = re.findall(r"it has ([\d.e+]+) ms", err)
    assert float(shown) == pytest.approx(1000 * samples / rate, rel=0.006)


def test_three_milliseconds_and_a_waveform_from_memory(hearing):
    with pytest.raises(ValueError, match="^cannot use the given sound: it has 3 ms; a sound needs at least 85 ms$"):
        Vita.from_pretrained(hearing).respond(audios=[(torch.zeros(48), 16000)])


def test_the_shortest_sound_that_is_long_enough_is_answered(hearing):
    assert isinstance(Vita.from_pretrained(hearing).respond(audios=[(torch.zeros(1360), 16000)], max_new_tokens=1), str)
