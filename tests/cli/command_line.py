"""What the tests of the command line share: a tiny checkpoint folder, and calls of ``main`` in this process."""

import contextlib
import io
import json
from dataclasses import replace

from tools import make_checkpoint
from vita_ref import VitaConfig
from vita_ref.config import DecoderConfig, VisionConfig
from vita_ref.generate import main

CONFIG = replace(
    VitaConfig.preset("demo"),
    decoder=DecoderConfig(300, 32, 40, 2, 6, 3, 4),
    vision=VisionConfig(16, 20, 1, 2, image_size=28, patch_size=7),
    audio=None,
    eos_token_ids=(299,),
    template="chatml",
)


def write_tiny(folder):
    """A tiny random checkpoint that takes text and images."""
    make_checkpoint.write(folder, "demo", seed=3, config=CONFIG)
    return folder


def call(*flags):
    """The exit status of the command line, its standard output and its standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(flag) for flag in flags])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def strict_json(text):
    """A value from JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def check_user_error(status, out, err):
    """One line on standard error that no value of the user makes long or unreadable, and nothing on standard output."""
    assert status == 2 and out == "", (status, out)
    assert err.startswith("vita_ref: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert err[:-1].isprintable() and len(err) < 700 and "Traceback" not in err
