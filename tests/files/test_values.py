"""Reading small files within bounds: size, nesting, aliases; and building dataclasses from their values."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hostile import deep, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref import fields
from vita_ref.config import DecoderConfig, YarnConfig
from vita_ref.files import values
from vita_ref.files.messages import one_line_errors
from vita_ref.files.values import build, check_depth, read_json, read_yaml

few = settings(max_examples=40, deadline=None, derandomize=True)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("abc"),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text("abc"), inside, max_size=4),
    max_leaves=20,
)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@few
@given(st.dictionaries(st.text(), plain))
def test_json_and_yaml_of_ordinary_depth_are_read_as_they_are(tmp_path_factory, content):
    pytest.importorskip("yaml")
    path = write(tmp_path_factory.mktemp("read") / "a.json", json.dumps(content))
    assert read_json(path) == content
    if all(key.isprintable() for key in content):
        assert read_yaml(path) == content


@few
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    pytest.importorskip("yaml")
    content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path = write(tmp_path_factory.mktemp("any") / "a.json", content)
    for read in (read_json, read_yaml):
        refusal(one_line_errors(read), path)


@pytest.mark.parametrize("depth", [31, 40, 500, 60_000])
def test_depth_is_limited_in_both_formats(tmp_path, depth):
    pytest.importorskip("yaml")
    text = '{"a": ' + "[" * depth + "]" * min(depth, 500) + "}"
    for read in (read_json, read_yaml):
        path = write(tmp_path / "a", text)
        if depth < values.DEEPEST:
            assert read(path) is not None
        else:
            with pytest.raises(ValueError, match="inside each other"):
                read(path)


def bomb(levels, width, merge):
    """YAML that expands to ``width ** levels`` values: each level refers to the level before several times."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x, x]"]
    for level in range(1, levels):
        inside = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inside}], y{level}: 1}}" if merge else f"[{inside}]"))
    return "\n".join(lines) + "\n"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(10, 30), st.integers(4, 40), st.booleans())
def test_yaml_that_expands_without_end_is_refused(tmp_path_factory, levels, width, merge):
    pytest.importorskip("yaml")
    path = write(tmp_path_factory.mktemp("bomb") / "train.yaml", bomb(levels, width, merge))
    with pytest.raises(ValueError, match="merge keys" if merge else "has more than"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: *a}", "&a [" + "*a," * 1000 + "]"])
def test_yaml_that_contains_itself_is_refused(tmp_path, text):
    pytest.importorskip("yaml")
    with pytest.raises(ValueError, match="has more than"):
        read_yaml(write(tmp_path / "train.yaml", text))


def test_an_alias_of_a_small_value_is_read(tmp_path):
    pytest.importorskip("yaml")
    assert read_yaml(write(tmp_path / "train.yaml", "a: &x [1, 2]\nb: *x\n")) == {"a": [1, 2], "b": [1, 2]}


BROKEN = ["!!python/object/apply:os.getcwd []", "a: !!timestamp 2001-13-45", "? [1]\n: 2", "1: [", "\x00"]


@pytest.mark.parametrize("text", BROKEN)
def test_yaml_that_cannot_be_constructed_is_refused(tmp_path, text):
    pytest.importorskip("yaml")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_yaml(write(tmp_path / "train.yaml", text))


def test_a_file_above_its_limit_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setitem(values.LIMITS, "config", 20)
    assert read_json(write(tmp_path / "a.json", '{"a": "0123456789"}')) == {"a": "0123456789"}  # 19 bytes
    monkeypatch.setattr(values.json, "loads", lambda text: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match="larger than 20 bytes"):
        read_json(write(tmp_path / "a.json", '{"a": "0123456789ab"}'))


def test_many_values_are_refused_before_they_are_copied():
    wide = [0] * 10_000
    with pytest.raises(ValueError, match="has more than 524,288 values"):
        check_depth([wide] * 10_000, "a")
    assert check_depth(deep(values.DEEPEST - 1), "a") == deep(values.DEEPEST - 1)


def test_a_dataclass_inside_another_is_built_from_its_object():
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 7, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    yarn = {"factor": 2.0, "original_max_position_embeddings": 16}
    assert build(DecoderConfig, sizes | {"rope_scaling": yarn}, "a").rope_scaling == YarnConfig(2.0, 16)
    with pytest.raises(ValueError, match="^a: factor must be a number of at least 1, got 0.5"):
        build(DecoderConfig, sizes | {"rope_scaling": yarn | {"factor": 0.5}}, "a")
    with pytest.raises(ValueError, match="YarnConfig has unknown fields: fcator"):
        build(DecoderConfig, sizes | {"rope_scaling": yarn | {"fcator": 0.5}}, "a")


def test_the_table_of_limits_has_the_numbers_of_the_code():
    table = (Path(__file__).parents[2] / "tools" / "limits.md").read_text(encoding="utf-8")
    limits = {f'values.LIMITS["{name}"]': size for name, size in values.LIMITS.items()}
    limits |= {f"values.{name}": getattr(values, name) for name in ("DEEPEST", "MOST_VALUES")}
    limits |= {f"fields.{name}": get_args(getattr(fields, name))[-1] for name in ("Layers", "Size", "Vocabulary")}
    for name, number in limits.items():
        assert f"| {number:,} | `{name}` |" in table, name
