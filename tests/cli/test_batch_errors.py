"""--batch: lines with an error leave the others alone, and what is printed is JSON."""

import io
import json
import sys

import pytest
import torch
from command_line import call, strict_json, write_tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vita_ref import Vita
from vita_ref.cli.terminal import json_line

GOOD = [
    {"prompt": "hi"},
    {"prompt": "a longer question?", "id": "b"},
    {"images": ["x.png"], "id": 7},
    {"prompt": "é", "id": "\ud800"},
    {"prompt": "nul", "id": "a" * 300, "video": None},
]
BAD = [
    *("{", "[]", "null", "5", '"text"', "{}", '{"prompt": NaN}', '{"id": Infinity, "prompt": "x"}', "[" * 100_000),
    *('{"a":' * 2000, "9" * 5000, "\x00", '{"prompt": ""}', '{"prompt": 5, "id": 3}', '{"images": "x.png"}'),
    *('{"images": [""]}', '{"images": ["\\u0000"]}', '{"images": ["nowhere.png"], "id": "n"}', '{"images": [1]}'),
    *('{"audios": ["x.wav"]}', '{"video": ""}', '{"id": [1], "prompt": "x"}', '{"picture": 1}', '{"images": ["."]}'),
    *('{"id": 1e400, "prompt": "x"}', '{"prompt": "\udcff"}', "\udcfe\udcff", '\ufeff{"prompt": "x"}', '{"prompt": "x"},'),
    *('{"prompt": "\\ud800"}', '{"prompt": "<image>", "images": ["x.png", "x.png"]}', '{"prompt": "%s' % ("z" * 3000)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    Image.new("RGB", (50, 40), (10, 200, 30)).save(folder / "x.png")
    return folder


def answer(folder, lines, *flags):
    """What --batch gives for these lines: status, values, standard error."""
    (folder / "requests.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    status, out, err = call("--model", folder, "--batch", folder / "requests.jsonl", "--max-new-tokens", 3, *flags)
    return status, [strict_json(line) for line in out.split("\n")[:-1]], err


def without_timing(values):
    return [{name: value for name, value in each.items() if name != "timing"} for each in values]


@settings(derandomize=True, max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.sampled_from(GOOD), st.sampled_from(BAD)), min_size=1, max_size=12))
@example(BAD)
@example([*GOOD, *BAD[:1], *GOOD])
def test_each_line_gets_its_answer_or_its_error_in_its_place(folder, lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    status, values, err = answer(folder, texts)
    bad = [i for i, line in enumerate(lines) if isinstance(line, str)]
    assert len(values) == len(lines) and status == (2 if bad else 0)
    for line, value in zip(lines, values):
        if isinstance(line, str):
            assert set(value) == {"id", "error"} and value["error"].isprintable() and len(value["error"]) < 500
        else:
            assert value.get("id") == line.get("id") and len(value["token_ids"]) == 3 and ("id" in value) == ("id" in line)
    good = [text for text, line in zip(texts, lines) if not isinstance(line, str)]
    if good and bad:
        alone = without_timing(answer(folder, good)[1])
        assert alone == without_timing(value for value in values if "error" not in value)
    if bad:
        assert err.startswith("vita_ref: ") and err.count("\n") == 1 and f"request {bad[0] + 1}: " in err
        assert without_timing(answer(folder, texts, "--batch-stop")[1]) == without_timing(values[: bad[0] + 1])
        assert answer(folder, texts, "--batch-stop")[0] == 2


def test_the_id_of_a_line_with_an_error_is_passed_through(folder):
    lines = ['{"id": "a", "images": ["nowhere.png"]}', '{"id": 2, "prompt": 5}', '{"id": [], "prompt": "x"}', "{"]
    assert [value["id"] for value in answer(folder, lines)[1]] == ["a", 2, None, None]


def test_a_request_that_cannot_be_answered_leaves_the_others_of_its_group_alone(folder, monkeypatch):
    answer_of = Vita.answer

    def answer_but_not_seven(self, prepared, options, control):
        if any("7" in self.text(each.ids[each.ids >= 0]) for each in prepared):
            raise ValueError("the logits are not finite")
        return answer_of(self, prepared, options, control)

    lines = [json.dumps({"prompt": f"question {i}", "id": i}) for i in range(10)]
    expected = without_timing(answer(folder, lines)[1])
    monkeypatch.setattr(Vita, "answer", answer_but_not_seven)
    status, values, err = answer(folder, lines)
    assert status == 2 and "request 8: the logits are not finite" in err
    assert values[7] == {"id": 7, "error": "the logits are not finite"}
    assert without_timing(values[:7] + values[8:]) == expected[:7] + expected[8:]


@given(st.recursive(st.floats() | st.text() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=9))
@settings(derandomize=True, max_examples=60)
def test_a_line_of_json_has_no_nan_and_only_characters_that_the_output_can_encode(value):
    for encoding in ("utf-8", "ascii", "cp1252"):
        sys.stdout, before = io.TextIOWrapper(io.BytesIO(), encoding=encoding), sys.stdout
        try:
            line = json_line(value)
        finally:
            sys.stdout = before
        line.encode(encoding)
        found = strict_json(line)
        assert "\n" not in line and json.dumps(found).replace("null", "") == without_infinite(json.dumps(value))


def without_infinite(text):
    for word in ("-Infinity", "Infinity", "NaN", "null"):
        text = text.replace(word, "")
    return text


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(folder):
    (folder / "requests.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n')
    status, out, _ = call("--model", folder, "--batch", folder / "requests.jsonl", "--max-new-tokens", 2)
    assert status == 0 and out.count("\n") == 2


def test_a_probability_that_is_not_finite_is_null(folder, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, axis: torch.full_like(x, torch.nan))
    status, out, _ = call("--model", folder, "hi", "--json", "--top", 2, "--max-new-tokens", 2)
    assert status == 0 and [each["probability"] for each in strict_json(out)["top"]] == [None, None]


def test_a_dry_run_refuses_the_first_line_with_an_error(folder):
    status, values, err = answer(folder, [json.dumps(GOOD[0]), "{"], "--dry-run")
    assert status == 2 and values == [] and "request 2" in err
