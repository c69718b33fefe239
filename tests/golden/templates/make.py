"""Writes the golden files of this folder: python tests/golden/templates/make.py, with transformers installed.

TEMPLATES are chat templates in the style of published checkpoints. `expected.json` has what `apply_chat_template` of
transformers gives for them: texts, and ids of the tokenizer in `tokenizer.json`, which has one token for each byte and
the special tokens.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent

QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_5 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou may call functions. Their signatures are in <tools></tools> tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nReturn each call as {\\"name\\": ..., \\"arguments\\": ...} in <tool_call></tool_call> tags.<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
THINK = """{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{ '<|user|>' + message['content'] }}
    {%- elif message['role'] == 'assistant' -%}
        {%- set content = message['content'] -%}
        {%- if '</think>' in content -%}
            {%- set content = content.split('</think>')[-1] -%}
        {%- endif -%}
        {{ '<|assistant|>' + content + eos_token }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif -%}
"""
TRIM = """{{- bos_token }}
{% for message in messages %}
    {% if message['role'] not in ('system', 'user', 'assistant') %}
        {{ raise_exception('only the roles system, user and assistant are known') }}
    {% endif %}
{{- '<|' + message['role'] + '|>\\n\\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n\\n' }}
{%- endif %}
"""
VARIABLE = """{% if messages[0]['role'] == 'system' %}{% set text = messages[0]['content'] %}{% set rest = messages[1:] %}
{% else %}{% set text = 'You see \\'shapes\\'.' %}{% set rest = messages %}{% endif %}
{% for message in rest %}
{% if loop.first and text %}<|im_start|>system
{{ text }}<|im_end|>
{% endif %}
{% if message['role'] == 'assistant' %}{% generation %}<|im_start|>assistant
{{ message['content'] }}<|im_end|>
{% endgeneration %}{% continue %}{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
NAMED = [
    {"name": "default", "template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"},
    {"name": "tool_use", "template": "{{ tools | map(attribute='function.name') | join(',') }}|{{ tools | tojson(indent=1) }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"},
]  # fmt: skip
TEMPLATES = {"qwen2": QWEN2, "qwen2.5": QWEN2_5, "think": THINK, "trim": TRIM, "variable": VARIABLE, "named": NAMED}
CHATML = QWEN2.replace("{% if loop.first and messages[0]['role'] != 'system' %}"
                       "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}", "")  # fmt: skip
TEMPLATES["chatml"] = CHATML  # of a folder without a template

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<s>", "</s>"]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

QUESTION = {"role": "user", "content": "What is <b>é</b> 你?"}
ANSWER = {"role": "assistant", "content": "<think>\nFirst, Ω.\n</think>\n\n It is 5.\n"}
SYSTEM = {"role": "system", "content": "Be brief & 'kind'. "}
AGAIN = {"role": "user", "content": "  and then?\n"}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Temperature in °C", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]  # fmt: skip
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}]}  # fmt: skip
TOOL = {"role": "tool", "content": '{"celsius": 21}'}
CONVERSATIONS = {
    "a question": {"messages": [QUESTION]},
    "three turns with a system text": {"messages": [SYSTEM, QUESTION, ANSWER, AGAIN]},
    "three turns": {"messages": [QUESTION, ANSWER, AGAIN]},
    "an answer at the end": {"messages": [QUESTION, ANSWER], "add_generation_prompt": False},
    "tools": {"messages": [QUESTION], "tools": TOOLS},
    "a call and its results": {"messages": [SYSTEM, QUESTION, CALL, TOOL, TOOL], "tools": TOOLS},
    "a result without tools": {"messages": [QUESTION, TOOL]},
}
TAKES_TOOLS, TAKES_RESULTS = ("qwen2.5", "named"), ("qwen2", "qwen2.5", "chatml", "named")


def cases():
    """(template, conversation) names of all pairs that a template can write."""
    for template in TEMPLATES:
        for name, conversation in CONVERSATIONS.items():
            roles = {message["role"] for message in conversation["messages"]}
            has_tools = "tools" in conversation
            if not (has_tools and template not in TAKES_TOOLS or "tool" in roles and template not in TAKES_RESULTS):
                yield template, name


def write_tokenizer(path):
    """A byte-level tokenizer.json without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path))


def expected(template, name):
    """The text and ids that transformers gives."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer.json"), **TOKENS)
    source = TEMPLATES[template]
    tokenizer.chat_template = {e["name"]: e["template"] for e in source} if isinstance(source, list) else source
    conversation = {"add_generation_prompt": True} | CONVERSATIONS[name]
    text = tokenizer.apply_chat_template(tokenize=False, conversation=conversation.pop("messages"), **conversation)
    conversation = {"add_generation_prompt": True} | CONVERSATIONS[name]
    ids = tokenizer.apply_chat_template(conversation=conversation.pop("messages"), **conversation, return_dict=False)
    return {"template": template, "conversation": name, "text": text, "ids": ids}


if __name__ == "__main__":
    write_tokenizer(HERE / "tokenizer.json")
    results = [expected(*case) for case in cases()]
    (HERE / "expected.json").write_text(json.dumps(results, ensure_ascii=False, indent=None).replace('}, {"template', '},\n{"template') + "\n")
