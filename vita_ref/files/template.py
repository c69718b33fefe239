"""The chat template of a checkpoint folder: Jinja, which is rendered in a sandbox with the variables of transformers.

    chat_template.jinja, or "chat_template" in tokenizer_config.json -> ChatTemplate -> the text of a conversation

Plain ChatML, as Qwen2 writes it, is recognised and left to `vita_ref.prompt`, which needs no Jinja.

Test: ``pytest tests/files/test_template.py``
"""

import datetime
import functools
import json
import os
import re

from .messages import escaped, shown
from .values import read_text

LARGEST_POWER, LONGEST_TEXT = 64, 2**20  # the largest exponent, and the longest repeated text, in a template
MOST_TEMPLATES = 64

# The tokens of plain ChatML, `stripped`: an optional default system block, every message between its role and the end
# mark, and the generation prompt.
_FOR, _END_FOR, _END_IF = "{%for message in messages%}", "{%endfor%}", "{%endif%}"
_DEFAULT = "{%if loop.first and messages[0]['role'] != 'system'%}{{'<|im_start|>system\\n", "<|im_end|>\\n'}}" + _END_IF
_MESSAGE = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
_PROMPT = "{%if add_generation_prompt%}{{'<|im_start|>assistant\\n'}}" + _END_IF


def chat_template(folder, settings):
    """The `ChatTemplate` of a folder, or None. A file chat_template.jinja comes before tokenizer_config.json.

    Raises: ValueError for a template that is neither a text nor a list of texts with names.
    """
    file, more, given = folder / "chat_template.jinja", folder / "additional_chat_templates", settings.get("chat_template")
    if isinstance(given, list):  # several templates, each with a name
        pairs = [(entry.get("name"), entry.get("template")) for entry in given if isinstance(entry, dict)]
        if len(pairs) < len(given) or not all(type(x) is str for pair in pairs for x in pair):
            raise ValueError(f"{folder}: a chat_template that is a list must have objects with name and template")
        given = dict(pairs)
    elif given is not None:
        given = {"default": given}
    texts = given or {}
    if type(texts.get("default", "")) is not str:
        raise ValueError(f"{folder}: chat_template must be a text, got {shown(texts['default'])}")
    if os.path.isfile(file):
        texts = {"default": read_text(file, "config")}
        names = sorted(os.listdir(more))[:MOST_TEMPLATES] if os.path.isdir(more) else []
        texts |= {name[:-6]: read_text(more / name, "config") for name in names if name.endswith(".jinja")}
    tokens = {name: token for name, token in settings.items() if name.endswith("_token")}
    tokens = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return ChatTemplate(texts, {k: v for k, v in tokens.items() if isinstance(v, str)}) if "default" in texts else None


class ChatTemplate:
    """Named Jinja templates (at least "default") and the special tokens that they may use."""

    def __init__(self, texts, tokens):
        self.texts, self.tokens = texts, tokens

    @functools.cached_property
    def is_chatml(self):
        """Whether the default template is plain ChatML with or without a default system text."""
        text = stripped(self.texts["default"]).replace("\n", "\\n")
        before, after = _DEFAULT
        middle = text.removeprefix(_FOR).removesuffix(_MESSAGE + _END_FOR + _PROMPT)
        if text != _FOR + middle + _MESSAGE + _END_FOR + _PROMPT:
            return False
        system = middle.removeprefix(before).removesuffix(after)
        special = re.search(r"'|\\(?!n)|\{[{%#]|[}%#]\}", system)
        return middle == "" or middle == before + system + after and system != "" and not special

    def render(self, messages, tools=None, add_generation_prompt=True):
        """The text of a conversation, by the template "tool_use" if there are tools and a template of this name.

        Raises: ValueError if the template refuses these messages, is damaged, or does what the sandbox forbids.
        """
        source = self.texts["default"] if tools is None else self.texts.get("tool_use", self.texts["default"])
        if tools and "tools" not in source:
            raise ValueError("the chat template of this checkpoint takes no tools: leave them out")
        try:
            template = compiled(source)
            options = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
            return template.render(messages=[template_message(each) for each in messages], **options, **self.tokens)
        except ImportError:
            raise ValueError("the chat template of this checkpoint needs jinja2: pip install jinja2") from None
        except (Exception, RecursionError) as error:  # noqa: BLE001 - a template may raise anything
            reason = escaped(" ".join(str(error).split()) or type(error).__name__)[:300]
            raise ValueError(f"the chat template of this checkpoint cannot write these messages: {reason}") from None


def stripped(text):
    """A template without the white space that Jinja strips around tags (with the options of `compiled`) and inside them."""
    text = re.sub(r"\r\n?", "\n", text).removesuffix("\n")
    text = re.sub(r"(?m)^[^\S\n]+(?=\{%)", "", text)  # lstrip_blocks
    text = re.sub(r"%\}\n", "%}", text)  # trim_blocks
    text = re.sub(r"\s+(?=\{[%{]-)", "", re.sub(r"(?<=-[%}]\})\s+", "", text))  # dashes
    return re.sub(r"\s*-?([%}]\})", r"\1", re.sub(r"(\{[%{])-?\s*", r"\1", text))


def template_message(message):
    """A message as transformers gives it to a template: without None, and with a reasoning under both of its names."""
    given = {name: x for name, x in message.items() if x is not None}
    thought = next((given[name] for name in ("reasoning_content", "thinking", "reasoning") if name in given), None)
    return given if thought is None else {"thinking": thought, **given, "reasoning_content": thought}


@functools.lru_cache(maxsize=8)
def compiled(source):
    """A Jinja template as transformers compiles it. Raises: jinja2.TemplateError; ImportError without jinja2."""
    environment = sandbox()(trim_blocks=True, lstrip_blocks=True, extensions=[generation_tag(), "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


@functools.cache
def sandbox():
    """The class of Jinja's sandbox, in which powers and repeated texts are limited too."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context, operator, left, right):
            if operator == "**" and not (abs(left) <= LONGEST_TEXT and 0 <= right <= LARGEST_POWER):
                raise SecurityError("a power is too large")
            texts = [x for x in (left, right) if hasattr(x, "__len__")]
            if operator == "*" and texts and max(len(x) for x in texts) * max(left if texts[0] is right else right, 0) > LONGEST_TEXT:
                raise SecurityError("a repeated text is too long")
            return super().call_binop(context, operator, left, right)

    return Sandbox


@functools.cache
def generation_tag():
    """The extension for ``{% generation %}``, which marks an answer for training; here it writes its content."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = frozenset({"generation"})

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    return Generation


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Jinja's own tojson escapes HTML; chat templates expect plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message):
    """``raise_exception`` of a template."""
    raise ValueError(message)
