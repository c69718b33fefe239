"""The chat template of a folder writes what transformers writes with it, in a sandbox.

`tests/golden/templates` has templates in the style of published checkpoints and what `apply_chat_template` gives for them.
"""

import builtins
import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
from golden.templates import make
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import CONFIG

from vita_ref.files.template import ChatTemplate
from vita_ref.files.tokenizer import load_tokenizer
from vita_ref.prompt import adds_bos, chat_text, encode_prompt, own_template
from vita_ref.request import Request, prepare_request

EXPECTED = json.loads((make.HERE / "expected.json").read_text(encoding="utf-8"))
IDS = [f"{case['template']}: {case['conversation']}" for case in EXPECTED]
USER = [{"role": "user", "content": "hi"}]


def folder_of(path, template, **settings):
    """A folder with the golden tokenizer and a chat template (None: without one)."""
    path.mkdir(exist_ok=True)
    shutil.copy(make.HERE / "tokenizer.json", path)
    settings |= make.TOKENS | ({} if template is None else {"chat_template": template})
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The tokenizer of a folder with each template; "chatml" is a folder without one."""
    root, templates = tmp_path_factory.mktemp("templates"), make.TEMPLATES | {"chatml": None}
    return {name: load_tokenizer(folder_of(root / name, template)) for name, template in templates.items()}


@pytest.mark.parametrize("case", EXPECTED, ids=IDS)
def test_texts_and_ids_are_those_of_transformers(tokenizers, case):
    tokenizer, conversation = tokenizers[case["template"]], dict(make.CONVERSATIONS[case["conversation"]])
    text = chat_text(conversation.pop("messages"), tokenizer, "chatml", **conversation)
    assert text == case["text"]
    assert encode_prompt(text, tokenizer, bos=adds_bos(tokenizer, "chatml")) == case["ids"]


def test_every_template_and_conversation_is_in_the_golden_file():
    assert [(case["template"], case["conversation"]) for case in EXPECTED] == list(make.cases())


@pytest.mark.parametrize("case", EXPECTED, ids=IDS)
def test_the_golden_file_is_what_transformers_gives(case):
    pytest.importorskip("transformers")
    assert make.expected(case["template"], case["conversation"]) == case


# ---- what counts


def test_the_template_of_a_qwen2_folder_counts_for_a_single_question_too(tokenizers):
    ids = prepare_request(Request("What is <b>é</b> 你?"), CONFIG, tokenizers["think"]).ids.tolist()
    assert ids == next(x["ids"] for x in EXPECTED if (x["template"], x["conversation"]) == ("think", "a question"))


def test_no_second_bos_token_is_put_in_front_of_a_rendered_text(tmp_path):
    """As in transformers, the template alone decides whether a BOS token is there."""
    adds = load_tokenizer(folder_of(tmp_path / "a", make.TRIM, add_bos_token=True))
    lacks = load_tokenizer(folder_of(tmp_path / "b", make.TRIM.replace("{{- bos_token }}", ""), add_bos_token=True))
    with_bos, without = (prepare_request(Request("hi"), CONFIG, each).ids.tolist() for each in (adds, lacks))
    assert with_bos.count(adds.bos_token_id) == 1 and without.count(adds.bos_token_id) == 0
    raw = prepare_request(Request("hi", raw=True), CONFIG, adds).ids.tolist()
    assert raw[0] == adds.bos_token_id


def test_a_system_text_becomes_the_first_message(tokenizers):
    text = chat_text(USER, tokenizers["trim"], "chatml", system=" be brief ")
    assert text == chat_text([{"role": "system", "content": " be brief "}, *USER], tokenizers["trim"], "chatml")
    assert "be brief</s>" in text
    with pytest.raises(ValueError, match="two system texts"):
        chat_text([{"role": "system", "content": "a"}, *USER], tokenizers["trim"], "chatml", system="b")


@pytest.mark.parametrize("family", ["vita", "demo"])
def test_other_families_keep_the_layout_of_their_training(tokenizers, family):
    """VITA-1.5 folders have the chat template of the Qwen2.5 that they were made from; upstream does not use it."""
    text = chat_text(USER, tokenizers["qwen2.5"], family, medium="lang")
    assert "Qwen" not in text and text.endswith("assistant\n" if family == "vita" else "<|assistant|>")
    assert prepare_request(Request("hi"), replace(CONFIG, template=family), tokenizers["qwen2.5"]).ids.tolist() == (
        encode_prompt(text, tokenizers["qwen2.5"])
    )


def test_tools_are_refused_where_no_template_takes_them(tokenizers):
    for name in ("chatml", "qwen2", "think"):
        with pytest.raises(ValueError, match="takes? (no )?tools|that takes tools"):
            chat_text(USER, tokenizers[name], "chatml", tools=make.TOOLS)


def test_a_file_of_its_own_comes_before_the_settings(tmp_path):
    folder = folder_of(tmp_path, make.TRIM)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | length }}", encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert chat_text(USER, tokenizer, "chatml") == "hi!" and chat_text(USER, tokenizer, "chatml", tools=[{}, {}]) == "2"


# ---- plain ChatML


CHATML = [
    make.QWEN2,
    make.QWEN2.replace("\n", "\\n"),
    make.QWEN2.replace("{% ", "{%- ").replace(" %}", " -%}\n").replace("{{", "{{- "),
    make.CHATML,
]


@pytest.mark.parametrize("template", CHATML, ids=["Qwen2", "escapes", "dashes", "no system text"])
def test_plain_chatml_is_recognised_and_written_as_jinja_writes_it(tmp_path, template):
    tokenizer = load_tokenizer(folder_of(tmp_path, template))
    assert tokenizer.chat_template.is_chatml and not own_template(tokenizer, "chatml")
    for name in ("a question", "three turns with a system text", "an answer at the end", "a result without tools"):
        conversation = dict(make.CONVERSATIONS[name])
        messages = conversation.pop("messages")
        assert chat_text(messages, tokenizer, "chatml", **conversation) == tokenizer.chat_template.render(
            messages, **conversation
        )


SPACE = st.sampled_from(["", "", "", " ", "\n", "\n\n", "\t", " \n ", "\r\n"])
SYSTEM = st.sampled_from(["Be brief.", "", " a ", "a\nb", "a\\nb", "a\\tb", "It\\'s", "{{x}}", "{% raw %}", "%}\n", "-%} b", "{# c #}", "é", "a' + 'b"])
TAG = re.compile(r"(\{[%{])(.*?)([%}]\})", re.DOTALL)
ANY_ROLE = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n"}, {"role": "developer", "content": "c"}]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(data=st.data(), system=SYSTEM, has_system=st.booleans(), dashes=st.booleans(), messages=st.integers(1, 3))
def test_white_space_dashes_and_escapes_are_written_as_jinja_writes_them(tmp_path_factory, data, system, has_system, dashes, messages):
    """Whether it is recognised as ChatML or rendered: the text is that of Jinja, and no BOS token is put in front."""
    draw = lambda what: data.draw(what)
    source = make.QWEN2.replace("You are a helpful assistant.", system) if has_system else make.CHATML

    def vary(tag):
        left, right = (draw(st.sampled_from(["-", ""])) if dashes else "" for _ in "lr")
        return f"{draw(SPACE)}{tag[1]}{left} {tag[2].strip()} {right}{tag[3]}{draw(SPACE)}"

    if draw(st.integers(0, 3)):
        source = TAG.sub(vary, source)
    folder = folder_of(tmp_path_factory.mktemp("t"), source, add_bos_token=True)
    tokenizer, messages = load_tokenizer(folder), ANY_ROLE[:messages]
    try:
        expected = tokenizer.chat_template.render(messages)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            chat_text(messages, tokenizer, "chatml")
        return
    text = chat_text(messages, tokenizer, "chatml")
    assert text == expected
    assert encode_prompt(text, tokenizer, bos=adds_bos(tokenizer, "chatml")) == list(tokenizer.encode(text))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    fields=st.dictionaries(
        st.sampled_from(["content", "tool_calls", "name", "reasoning", "thinking", "reasoning_content"]), st.sampled_from([None, "", "hm"])
    ),
    tools=st.sampled_from([None, [], [{}]]),
)  # fmt: skip
def test_a_template_gets_the_fields_and_tools_that_transformers_gives_it(tmp_path_factory, fields, tools):
    """What is None is left out, and reasoning has all of its names. Tools that are an empty list are one."""
    source = "{{ tools is none }}{% for m in messages %}{% for k in m | sort %}{{ k }}={{ m[k] }};{% endfor %}{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", **fields}]
    folder = folder_of(tmp_path_factory.mktemp("t"), source)
    text = chat_text(messages, load_tokenizer(folder), "chatml", tools=tools)
    given_ = {name: x for name, x in fields.items() if x is not None}
    thoughts = [given_[name] for name in ("reasoning_content", "thinking", "reasoning") if name in given_]
    if thoughts:
        given_ = {"thinking": thoughts[0], **given_, "reasoning_content": thoughts[0]}
    assert text == f"{tools is None}content=a;role=user;" + "".join(f"{k}={x};" for k, x in sorted({**given_, "role": "assistant"}.items()))
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        return
    other = PreTrainedTokenizerFast(tokenizer_file=str(make.HERE / "tokenizer.json"), chat_template=source)
    assert text == other.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    "before, after",
    [
        ("message['content'] +", "message['content'] | trim +"),
        ("assistant\n", "assistant\n<think>\n"),
        ("<|im_end|>' + '\n'", "<|im_end|>'"),
        ("!= 'system'", "== 'system'"),
        ("{% for", "{% set x = 1 %}{% for"),
        ("{% endif %}", "{% endif %}!"),
        ("You are a helpful assistant.", "You are ' + messages[0]['role'] + '."),
    ],
)
def test_a_template_that_differs_from_chatml_is_rendered(tmp_path, before, after):
    assert before in make.QWEN2
    tokenizer = load_tokenizer(folder_of(tmp_path, make.QWEN2.replace(before, after)))
    assert own_template(tokenizer, "chatml") is tokenizer.chat_template


def test_plain_chatml_needs_no_jinja_and_other_templates_say_what_to_install(tokenizers, monkeypatch):
    imported, real = [], builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "jinja2":
            imported.append(name)
            raise ImportError(name)
        return real(name, *args, **options)

    for name in [name for name in sys.modules if name.split(".")[0] == "jinja2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    from vita_ref.files import template

    for cached in (template.compiled, template.sandbox, template.generation_tag):
        cached.cache_clear()
    for name in ("qwen2", "chatml"):
        assert "hi<|im_end|>" in chat_text(USER, tokenizers[name], "chatml")
    assert not imported
    with pytest.raises(ValueError, match="^the chat template of this checkpoint needs jinja2: pip install jinja2$"):
        chat_text(USER, tokenizers["trim"], "chatml")


# ---- templates that are refused


@pytest.mark.parametrize(
    "source, reason",
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for x in range(10 ** 9) %}{% endfor %}", "[Rr]ange"),
        ("{{ 'a' * 10 ** 9 }}", "too long"),
        ("{{ [0] * 10 ** 9 }}", "too long"),
        ("{{ 9 ** 9 ** 9 }}", "too large"),
        ("{{ messages[0].nothing.at_all }}", "no attribute 'nothing'"),
        ("{% for %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'a.txt' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_the_sandbox_or_the_template_forbids_is_an_error_of_one_line(source, reason):
    with pytest.raises(ValueError, match=f"^the chat template of this checkpoint cannot write.*{reason}") as caught:
        ChatTemplate({"default": source}, {}).render([{"role": "user", "content": "x"}])
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


@pytest.mark.parametrize("expression, text", [("'ab' * 3", "ababab"), ("2 ** 10", "1024"), ("3 * 4.5", "13.5"), ("[1] * 2", "[1, 1]")])
def test_ordinary_products_and_powers_are_as_in_python(expression, text):
    assert ChatTemplate({"default": "{{ " + expression + " }}"}, {}).render([]) == text
