"""OpenAI's own client talks to the server: what it gets is what the model says, and what goes wrong it raises."""

import asyncio
import base64
import io
import json

import pytest
import torch
from PIL import Image
from serving import image_part, served, sound_part, text_part, tiny_vita, user, wav

from vita_ref.files.messages import escaped
from vita_ref.serve.errors import ProtocolError
from vita_ref.serve.questions import SAMPLING, check_names, read_sampling

openai = pytest.importorskip("openai", reason="the client of the protocol is not installed: pip install openai")


@pytest.fixture(scope="module")
def vita(tmp_path_factory):
    return tiny_vita(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(vita):
    with served(vita) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ask(client):
    def call(*messages, **options):
        return client.chat.completions.create(model="tiny", messages=list(messages), **({"max_tokens": 12} | options))

    return call


def alone(vita, text, **options):
    return vita.respond(text, details=True, **({"max_new_tokens": 12} | options))


def test_the_text_and_the_numbers_are_those_of_the_model_alone(vita, ask):
    answer = ask(user("What? 你好"))
    expected = alone(vita, "What? 你好")
    [choice] = answer.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason == "length"
    total = expected.prompt["total"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (total, 12, total + 12)
    assert answer.model == "tiny" and answer.object == "chat.completion"


def test_a_streamed_answer_is_the_same_text_with_the_same_numbers(ask):
    whole = ask(user("Stream this"), max_tokens=40)
    chunks = list(ask(user("Stream this"), max_tokens=40, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert "".join(each.choices[0].delta.content or "" for each in parts) == whole.choices[0].message.content
    assert len([each for each in parts if each.choices[0].delta.content]) > 5
    assert parts[0].choices[0].delta.role == "assistant"
    assert [each.choices[0].finish_reason for each in parts][-1] == "length"
    assert {each.choices[0].finish_reason for each in parts[:-1]} == {None}
    assert last.choices == [] and last.usage.completion_tokens == 40
    assert {each.id for each in chunks} == {chunks[0].id}
    assert all(each.usage is None for each in parts)


def test_a_picture_and_a_sound_are_what_the_model_sees_and_hears(vita, ask):
    picture = Image.new("RGB", (50, 40), (10, 200, 30))
    both = ask(user(image_part(), text_part("What is this?"))), alone(vita, "What is this?", images=[picture])
    assert both[0].choices[0].message.content == both[1].text
    assert both[0].usage.prompt_tokens == both[1].prompt["total"]
    assert both[0].usage.prompt_tokens_details.image_tokens == both[1].prompt["image_tokens"] > 0
    file = io.BytesIO(base64.b64decode(wav()))
    both = ask(user(sound_part())), alone(vita, None, audios=[file])
    assert both[0].choices[0].message.content == both[1].text
    assert both[0].usage.prompt_tokens_details.audio_tokens == both[1].prompt["audio_tokens"] > 0


def test_the_order_of_texts_and_pictures_is_kept(vita, ask):
    picture = Image.new("RGB", (50, 40), (10, 200, 30))
    answer = ask(user(text_part("Left of "), image_part(), text_part(" is?")))
    assert answer.choices[0].message.content == alone(vita, "Left of <image> is?", images=[picture]).text


def test_system_texts_and_earlier_turns_are_part_of_the_prompt(vita, ask):
    system, first = {"role": "system", "content": "Be brief."}, user("One?")
    assert ask(system, first).choices[0].message.content == alone(vita, "One?", system="Be brief.").text
    developer = {"role": "developer", "content": "Be brief."}
    assert ask(developer, first).choices[0].message.content == ask(system, first).choices[0].message.content
    chat = vita.chat(max_new_tokens=12)
    said = chat.ask("One?")
    assert ask(first).choices[0].message.content == said
    assert ask(first, {"role": "assistant", "content": said}, user("Two?")).choices[0].message.content == chat.ask("Two?")


def test_a_second_turn_reads_only_what_is_new(vita, ask):
    history = [user(image_part(color=(200, 20, 90)), text_part("A first question, of some length?"))]
    first = ask(*history)
    history += [{"role": "assistant", "content": first.choices[0].message.content}, user("And?")]
    second = ask(*history)
    known = second.usage.prompt_tokens_details.cached_tokens
    assert known >= first.usage.prompt_tokens + 11  # the prompt, and the answer but for its last id
    template = len("<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n")
    assert 0 < second.usage.prompt_tokens - known <= template
    chat = vita.chat(max_new_tokens=12)
    chat.ask("A first question, of some length?", images=[Image.new("RGB", (50, 40), (200, 20, 90))])
    assert second.choices[0].message.content == chat.ask("And?")


def test_a_prefix_is_not_read_again_although_the_vision_tower_could_not_even_run(vita, server, ask, monkeypatch):
    history = [user(image_part(color=(1, 2, 250)), text_part("Blue?"))]
    history.append({"role": "assistant", "content": ask(*history).choices[0].message.content})
    monkeypatch.setattr(vita.vision, "forward", lambda *args: pytest.fail("the picture is encoded again"))
    rows = []
    monkeypatch.setattr(vita, "read", lambda x, *rest, read=vita.read: (rows.append(x.embeds.shape[1]), read(x, *rest))[1])
    answer = ask(*history, user("Sure?"))
    assert rows == [answer.usage.prompt_tokens - answer.usage.prompt_tokens_details.cached_tokens]


def test_stop_texts_end_an_answer_and_are_not_part_of_it(vita, ask):
    text = alone(vita, "Count", max_new_tokens=60).text
    stop = next(c for c in text if c.isalpha())
    answer = ask(user("Count"), max_tokens=60, stop=[stop, "never this"])
    assert answer.choices[0].message.content == text[: text.index(stop)].strip()
    assert answer.choices[0].finish_reason == "stop"
    streamed = list(ask(user("Count"), max_tokens=60, stop=stop, stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in streamed) == answer.choices[0].message.content


def test_a_seed_repeats_a_sampled_answer_and_the_options_reach_the_model(vita, ask):
    options = {"temperature": 1.5, "top_p": 0.95, "seed": 11}
    text = ask(user("Draw"), max_tokens=30, **options).choices[0].message.content
    assert text == ask(user("Draw"), max_tokens=30, **options).choices[0].message.content
    assert text == alone(vita, "Draw", max_new_tokens=30, **options).text
    assert text != ask(user("Draw"), max_tokens=30, **options | {"seed": 12}).choices[0].message.content
    greedy = ask(user("Draw"), max_tokens=30).choices[0].message.content
    assert text != greedy == ask(user("Draw"), max_tokens=30, temperature=0).choices[0].message.content
    narrow = ask(user("Draw"), max_tokens=30, temperature=2, seed=5, extra_body={"top_k": 1})
    assert narrow.choices[0].message.content == greedy


def test_log_probabilities_are_those_of_the_model(vita, ask):
    answer = ask(user("Why"), logprobs=True, top_logprobs=3)
    expected = alone(vita, "Why", top=3)
    content = answer.choices[0].logprobs.content
    torch.testing.assert_close(torch.tensor([x.logprob for x in content]), torch.tensor(expected.logprobs), atol=1e-4, rtol=0)
    assert b"".join(bytes(x.bytes) for x in content).decode("utf-8", "replace").strip() == expected.text
    assert all(len(x.top_logprobs) == 3 and x.top_logprobs[0].logprob == x.logprob for x in content)
    streamed = [each.choices[0].logprobs for each in ask(user("Why"), logprobs=True, stream=True) if each.choices[0].logprobs]
    assert [x.bytes for each in streamed for x in each.content] == [x.bytes for x in content]
    assert ask(user("Why")).choices[0].logprobs is None


def test_the_model_is_listed_and_another_one_is_not_found(client):
    [model] = client.models.list()
    assert model.id == "tiny" == client.models.retrieve("tiny").id
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        client.chat.completions.create(model="other", messages=[user("Hi")])


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": -1}, "top_p"),
        ({"n": 2}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"beam": 3}}, "beam"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_an_option_that_is_wrong_or_not_supported_is_an_error_that_names_it(ask, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(user("Hi"), **options)
    assert error.value.param == param and error.value.type == "invalid_request_error"


@pytest.mark.parametrize("name", [*SAMPLING, "max_tokens"])
def test_a_value_of_a_wrong_type_is_an_error_that_names_the_field_that_was_given(name):
    for value in (True, "1", [1], {"a": 1}, float("nan"), float("inf"), -(10**30), 10**400, 1.5):
        if name == "stop" and value == "1" or value == 1.5 and name in ("temperature", "repetition_penalty"):
            continue
        with pytest.raises(ProtocolError) as error:
            read_sampling({name: value, "logprobs": True})
        assert error.value.param == name and str(error.value).startswith(f"{name} must be ")


@pytest.mark.parametrize("name", ["beam", "x" * 500, "a\nb", "a\0b", "half \ud800", "<b>"])
def test_a_field_that_there_is_not_is_named_in_one_line_that_can_be_sent(name):
    with pytest.raises(ProtocolError) as error:
        check_names({name: 1})
    assert error.value.param.isprintable() and error.value.param == escaped(name)[:80]


def test_options_that_change_nothing_are_accepted(ask):
    plain = ask(user("Hi")).choices[0].message.content
    options = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "user": "me", "metadata": {"a": "b"},
               "store": False, "tools": [], "response_format": {"type": "text"}}  # fmt: skip
    assert ask(user("Hi"), **options).choices[0].message.content == plain


def test_a_prompt_that_is_too_long_is_an_error_with_the_numbers(ask):
    with pytest.raises(openai.BadRequestError, match="512") as error:
        ask(user("x" * 600))
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="512"):
        ask(user("x" * 300), max_tokens=300)
    assert ask(user("x" * 300), max_tokens=None).usage.completion_tokens <= 512 - 300


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["text"],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [{"role": "user"}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "file", "file": {}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [user("Hi"), {"role": "assistant", "content": "Ho"}],
        [user("Hi"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, user("Ho")],
        [user("half a pair \ud800")],
    ],
    ids=str,
)
def test_messages_of_another_form_are_errors(client, messages):
    body = json.dumps({"model": "tiny", "messages": messages}).encode()
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/chat/completions", cast_to=object, body=None, options={"headers": {}}, content=body)
    assert error.value.type == "invalid_request_error"


def test_paths_that_are_not_there_are_errors_in_the_same_format(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model="tiny", input="x")
    assert error.value.type == "not_found_error"
    with pytest.raises(openai.APIStatusError) as error:
        client.get("/chat/completions", cast_to=object)
    assert error.value.status_code == 405


def test_a_model_without_speech_weights_has_no_speech(client):
    with pytest.raises(openai.NotFoundError, match="speech weights"):
        client.audio.speech.create(model="tiny", voice="alloy", input="Hello.")


def test_a_failure_of_the_server_is_a_status_of_500_and_the_next_request_is_answered(vita, ask, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(vita, "read", lambda *args: 1 / 0)
        with pytest.raises(openai.InternalServerError) as error:
            ask(user("Fail"))
        assert "ZeroDivisionError" not in str(error.value)
        with pytest.raises(openai.APIError, match="the server has failed"):
            list(ask(user("Fail"), stream=True))
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert ask(user("Go on")).choices


def test_the_asynchronous_client_gets_the_same(server, ask):
    async def both():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            options = {"model": "tiny", "messages": [user("Async?")], "max_tokens": 12}
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**options), client.chat.completions.create(**options, stream=True)
            )
            return whole.choices[0].message.content, "".join([x.choices[0].delta.content or "" async for x in stream])

    whole, streamed = asyncio.run(both())
    assert whole == streamed == ask(user("Async?")).choices[0].message.content
