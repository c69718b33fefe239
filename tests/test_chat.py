"""A conversation answers each turn as one prompt with the same ids would be answered, and reads only what is new."""

import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from golden.templates import make
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from test_model import (
    AUDIO,
    BINS,
    CLOSE,
    CONFIG,
    EOS,
    IMAGE,
    PIXELS,
    VIEW,
    noise,
    tiny_vita,
)

from vita_ref.chat import Conversation
from vita_ref.dialogue.messages import read_message, text_pieces
from vita_ref.files.template import ChatTemplate
from vita_ref.files.tokenizer import load_tokenizer

PICTURES = [noise(n, 3, PIXELS, PIXELS, seed=i) for i, n in enumerate((1, 2, 1))]
CLIP = noise(3, 3, PIXELS, PIXELS, seed=7)
SOUNDS = [noise(n, BINS, seed=20 + n) for n in (30, 47)]
MODELS = {template: tiny_vita(template=template) for template in ("chatml", "vita")}
MODEL = MODELS["chatml"]
OPTIONS = {"max_new_tokens": 4}


def media_of(messages):
    """The images (or frames) and sounds of messages, in the order of their placeholders: one entry each."""
    images, sounds = [], []
    for message in messages:
        images += [*message.get("images", []), *(message["video"].split(1) if "video" in message else [])]
        sounds += message.get("audios", [])
    return images, sounds


def one_prompt(vita, prompt, messages, new):
    """Greedy tokens and log-probabilities of an answer to all these ids at once, without a cache from earlier turns."""
    images, sounds = media_of(messages)
    media = {"images": images or None, "audios": {"audios": sounds} if sounds else None}
    got = vita.generate([torch.tensor(prompt)], **media, max_new_tokens=new, eos_token_id=(EOS,))[0].tolist()
    tokens = got[: got.index(EOS)] if EOS in got else got
    logits = vita([torch.tensor(prompt + tokens)], **media).logits[0]
    at = len(logits) - 1 - len(tokens)
    return tokens, [float(logits[at + i].log_softmax(-1)[token]) for i, token in enumerate(tokens)]


def prompt_of(chat, result):
    """The ids of the last prompt: all without those that were generated, of which the end of the answer may be one."""
    answer = result.token_ids + [EOS] * (result.finish_reason == "stop")
    assert chat.ids[len(chat.ids) - len(answer) :] == answer
    return chat.ids[: len(chat.ids) - len(answer)]


class Watch:
    """Counts the tiles that were encoded, and the positions that the decoder read."""

    def __init__(self, vita):
        self.tiles, self.read = Counter(), 0
        self.hooks = [
            vita.vision.register_forward_hook(lambda module, x, out: self.tiles.update(t.numpy().tobytes() for t in x[0])),
            vita.decoder.register_forward_pre_hook(self.count),
        ]

    def count(self, module, args):
        self.read += args[0].shape[1]

    def remove(self):
        for hook in self.hooks:
            hook.remove()


texts = st.sampled_from(["what is this", "and now", "", "<image> or <audio>?", "a b c d e f"])
names = st.lists(st.sampled_from(["image 0", "image 1", "image 2", "sound 0", "sound 1", "clip"]), max_size=3, unique=True)


def by_name(names):
    """The fields of a message that has these media."""
    images = [PICTURES[int(name[-1])] for name in names if name.startswith("image")]
    sounds = [SOUNDS[int(name[-1])] for name in names if name.startswith("sound")]
    fields = {"images": images, "audios": sounds} | ({"video": CLIP} if "clip" in names else {})
    return {name: x for name, x in fields.items() if len(x)}


class Talk(RuleBasedStateMachine):
    """Questions with any media, undo, stops while reading and while answering, given-up streams, and saved files."""

    @initialize(template=st.sampled_from(["chatml", "vita"]), system=st.sampled_from([None, "be brief"]))
    def begin(self, template, system):
        self.vita = MODELS[template]
        self.chat, self.watch, self.expected = self.vita.chat(system, **OPTIONS), Watch(self.vita), []
        self.complete = False  # whether the last prompt was read to its end and is in the cache

    def teardown(self):
        if hasattr(self, "watch"):
            self.watch.remove()

    def check(self, result, question):
        """The answer is that of one prompt; the cache had all that it could have; pictures were encoded once."""
        self.expected += [question, {"role": "assistant", "content": result.text}]
        self.complete = result.finish_reason in ("stop", "length")
        assert [m["content"] for m in self.chat.messages] == [m["content"] for m in self.expected]
        read = self.watch.read
        assert max(self.watch.tiles.values(), default=1) == 1
        if not result.segments:  # it was stopped before the media were encoded
            assert not result.token_ids and read == 0
            return
        assert result.prompt["total"] == result.segments[-1][2]
        self.watch.remove()
        prompt, n = prompt_of(self.chat, result), len(result.token_ids)
        if result.finish_reason == "stop":
            n += 1
        if n:
            tokens, logprobs = one_prompt(self.vita, prompt, self.chat.messages[:-1], n)
            assert tokens == result.token_ids
            torch.testing.assert_close(torch.tensor(result.logprobs), torch.tensor(logprobs), **CLOSE)
            assert read == result.prompt["total"] - result.prompt["cached"] + n - 1
        tiles, self.watch = self.watch.tiles, Watch(self.vita)
        self.watch.tiles = tiles
        return prompt

    def start(self, text, media, **options):
        media = by_name(media)
        text = text if not media else text.replace("<image>", "it").replace("<audio>", "that")
        self.watch.read, self.question = 0, {"role": "user", "content": text, **media}
        return self.chat.stream(text, **media, **options)

    @rule(text=texts, media=names, new=st.integers(1, 4))
    def ask(self, text, media, new):
        before, complete = self.chat.ids, self.complete
        result = self.start(text, media, max_new_tokens=new).finish()
        prompt = self.check(result, self.question)
        shared = next((i for i, (a, b) in enumerate(zip(before, prompt)) if a != b), min(len(before), len(prompt)))
        if complete and IMAGE not in prompt and AUDIO not in prompt:  # each id is a position; the last was not read
            assert min(shared, len(prompt) - 1) - 1 <= result.prompt["cached"] <= shared

    @rule(text=texts, media=names, pieces=st.integers(0, 2))
    def stop_in_the_middle(self, text, media, pieces):
        stream = self.start(text, media)
        for _ in range(pieces):
            next(stream, None)
        stream.stop()
        result = stream.finish()
        assert result.finish_reason == "stopped" or pieces
        self.check(result, self.question)

    @rule(media=names, after=st.integers(0, 3))
    def stop_while_it_is_read(self, media, after):
        reports = []

        def progress(*report):
            reports.append(report)
            if len(reports) > after:
                stream.stop()

        stream = self.start("what is this", media, progress=progress)
        self.check(stream.finish(), self.question)

    @rule(text=texts)
    def give_up(self, text):
        stream, self.complete = self.start(text, []), False
        next(stream, None)
        if stream.result is not None:
            self.check(stream.result, self.question)
            return
        answer = self.chat.messages[-1]["content"]
        self.expected += [self.question, {"role": "assistant", "content": answer}]
        if answer.count(" ") % 2:
            stream.close()

    @precondition(lambda self: self.expected)
    @rule()
    def undo(self):
        self.chat.undo()
        del self.expected[-2:]

    @precondition(lambda self: self.expected)
    @rule(kept=st.integers(0, 3))
    def send_the_whole_list(self, kept):
        """As a client of a server does: the messages up to one of the last questions."""
        questions = [i for i, message in enumerate(self.expected) if message["role"] == "user"]
        end = questions[max(0, len(questions) - 1 - kept)]
        self.watch.read, messages = 0, self.chat.messages[: end + 1]
        result = self.chat.reply(messages).finish()
        question = self.expected[end]
        del self.expected[end:]
        self.check(result, question)

    @precondition(lambda self: self.expected)
    @rule()
    def save_and_load(self):
        path = f"/dev/shm/vita_ref-{id(self)}.json"
        self.chat.save(path)
        loaded = Conversation.load(path, self.vita)
        same = [[(k, v) for k, v in m.items() if isinstance(v, str)] for m in loaded.messages]
        assert same == [[(k, v) for k, v in m.items() if isinstance(v, str)] for m in self.chat.messages]
        for got, want in zip(media_of(loaded.messages), media_of(self.chat.messages), strict=True):
            assert all(map(torch.equal, got, want)) and len(got) == len(want)
        self.chat, self.watch.tiles, self.complete = loaded, Counter(), False


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=10, stateful_step_count=8, deadline=None, derandomize=True)


# ---- turns


def test_a_question_alone_is_answered_as_respond_answers_it():
    for vita in MODELS.values():
        options = {"images": PICTURES[:2], "audios": SOUNDS[0], "max_new_tokens": 6, "eos_token_id": ()}
        assert vita.chat().ask("what is this", **options) == vita.respond("what is this", **options)
        assert vita.chat("be brief").ask(video=CLIP, max_new_tokens=3) == (
            vita.respond(video=CLIP, system="be brief", max_new_tokens=3)
        )


def test_a_second_question_reads_only_itself():
    chat = MODEL.chat(eos_token_id=(), **OPTIONS)
    first = chat.ask("what is this", images=PICTURES[0], details=True)
    second = chat.ask("why", details=True)
    assert first.prompt["cached"] == 0 and first.prompt["image_tokens"] == VIEW
    assert second.prompt["cached"] == first.prompt["total"] + 3  # the last of four tokens was not read
    assert second.segments[-1][2] == second.prompt["total"] > second.prompt["cached"]


def test_the_same_question_after_undo_has_the_same_answer_and_reads_one_position():
    chat = MODEL.chat(temperature=1.0, seed=3, **OPTIONS)
    chat.ask("what is this", images=PICTURES[0])
    first = chat.ask("why", details=True)
    chat.undo()
    again = chat.ask("why", details=True)
    assert again.token_ids == first.token_ids and again.prompt["cached"] == again.prompt["total"] - 1
    assert chat.undo() is None and chat.undo() is None and chat.messages == []
    with pytest.raises(ValueError, match="there is no question to undo"):
        chat.undo()


def test_a_system_text_that_depends_on_the_medium_is_read_anew_when_it_changes():
    chat = MODELS["vita"].chat(**OPTIONS)
    chat.ask("what")
    text, image, more = (chat.ask("why", details=True), chat.ask("and", PICTURES[:1], details=True), chat.ask("so", details=True))
    assert text.prompt["cached"] > 8 and image.prompt["cached"] < 5 < more.prompt["cached"]


def test_the_repetition_penalty_counts_the_tokens_of_all_turns():
    chat, options = MODEL.chat(), {"repetition_penalty": 1.7, "max_new_tokens": 6, "eos_token_id": ()}
    chat.ask("what is this", **options)
    result = chat.ask("why", details=True, **options)
    prompt = chat.ids[: -len(result.token_ids)]
    assert MODEL.generate(torch.tensor([prompt]), **options)[0].tolist() == result.token_ids


def test_a_question_that_cannot_be_answered_leaves_the_conversation_as_it_was():
    chat = MODEL.chat(**OPTIONS)
    chat.ask("what")
    before = chat.messages, chat.ids
    for wrong in ({"images": "no such file.png"}, {"text": "<audio>", "audios": SOUNDS}, {"text": "hi", "temperature": -1}, {"max_new_tokens": 10**6}):
        with pytest.raises(ValueError):
            chat.ask(**wrong)
        assert (chat.messages, chat.ids) == before
    with pytest.raises(TypeError, match="tmperature"):
        chat.ask("hi", tmperature=1)
    with pytest.raises(TypeError, match="'prompt' belongs to a message"):
        chat.ask("hi", prompt="x")
    assert chat.ask("why", details=True).prompt["cached"]


def test_logits_that_are_not_finite_are_an_error_and_not_a_turn():
    vita = tiny_vita()
    chat = vita.chat(**OPTIONS)
    chat.ask("what")
    good = vita.decoder.lm_head.weight[0, 0].clone()
    vita.decoder.lm_head.weight[0, 0] = torch.nan
    for options in ({}, {"errors": "return"}):
        with pytest.raises(ValueError, match="lm_head"):
            chat.ask("why", **options)
    vita.decoder.lm_head.weight[0, 0] = good
    other = vita.chat(**OPTIONS)
    other.ask("what")
    assert len(chat.messages) == 2 and chat.ask("why") == other.ask("why")


# ---- ids as they were generated


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory):
    """A model whose tokenizer is that of the golden templates: a token for each byte."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "tokenizer.json").write_bytes((make.HERE / "tokenizer.json").read_bytes())
    tokenizer = load_tokenizer(folder)
    vita = tiny_vita(decoder=replace(CONFIG.decoder, vocab_size=len(tokenizer)))
    vita.tokenizer = tokenizer
    return vita


def with_template(vita, name):
    vita.tokenizer.chat_template = ChatTemplate({"default": make.TEMPLATES[name]}, make.TOKENS)
    return vita


@pytest.mark.parametrize("template", ["qwen2", "qwen2.5", "trim", "variable", "chatml"])
def test_an_answer_keeps_its_ids_in_every_template(bytewise, template):
    """Bytes that are no text do not survive decoding and encoding, and white space does not survive trimming."""
    vita = with_template(bytewise, template)
    chat = vita.chat(max_new_tokens=9, eos_token_id=(), temperature=3.0, seed=1)
    first = chat.ask("what?", details=True)
    assert vita.tokenizer.encode(first.text) != first.token_ids
    second = chat.ask("why?", details=True)
    assert second.prompt["cached"] == first.prompt["total"] + 8
    assert chat.ids[first.prompt["total"] :][:9] == first.token_ids


def test_a_template_that_drops_what_was_thought_is_followed(bytewise):
    vita = with_template(bytewise, "think")
    chat = vita.chat(max_new_tokens=9, eos_token_id=())
    said = {"role": "assistant", "content": "so</think> yes"}
    chat.reply([{"role": "user", "content": "what?"}, said, {"role": "user", "content": "why?"}]).finish()
    text = vita.tokenizer.decode(chat.ids[:-9])
    assert text == "<s><|user|>what?<|assistant|> yes</s><|user|>why?<|assistant|><think>\n"


def test_results_of_tools_are_messages(bytewise):
    vita = with_template(bytewise, "qwen2.5")
    chat = vita.chat(tools=make.TOOLS, max_new_tokens=2, eos_token_id=())
    case = make.CONVERSATIONS["a call and its results"]
    chat.reply(case["messages"]).finish()
    assert vita.tokenizer.decode(chat.ids[:-2]) == vita.tokenizer.chat_template.render(case["messages"], case["tools"])
    chat.ask("21", role="tool")
    assert [m["role"] for m in chat.messages[-3:]] == ["assistant", "tool", "assistant"]


def test_a_stop_text_inside_a_token_keeps_the_whole_tokens_and_the_text_before_it():
    found = 0
    for question in ("what", "why", "who", "when", "where", "how"):
        chat = MODEL.chat(eos_token_id=(), max_new_tokens=6)
        whole = chat.ask(question, details=True)
        chat.undo()
        inside = str(whole.token_ids[1])[1:]  # the ids are numbers of two digits, each with a space in front
        if not inside or inside in whole.text[: whole.text.index(" ") + 2]:
            continue
        cut = chat.ask(question, stop=inside, details=True)
        assert cut.finish_reason == "stop" and cut.text == whole.text[: whole.text.index(inside)]
        assert cut.token_ids == whole.token_ids[:2] and chat.messages[1]["content"] == cut.text
        chat.ask("so")
        at, rest = cut.prompt["total"], MODEL.tokenizer(cut.text.split()[1]).input_ids
        assert chat.ids[at : at + 2] == [whole.token_ids[0], *rest]
        found += 1
    assert found


# ---- a full context


def test_a_full_context_is_an_error_with_both_numbers():
    vita = tiny_vita(decoder=replace(CONFIG.decoder, max_position_embeddings=40))
    chat = vita.chat(max_new_tokens=8, eos_token_id=())
    for _ in range(2):
        chat.ask("one two three")
    with pytest.raises(ValueError, match=r"takes \d+ positions.*has 40.*overflow='drop_oldest'"):
        chat.ask("one two three four five")
    assert len(chat.messages) == 4


@pytest.mark.parametrize("limit", [{"max_position_embeddings": 40}, {}])
def test_the_oldest_turns_can_be_dropped_and_are_named(limit):
    """By the positions of the checkpoint, and by the length that its prompts may have."""
    length = None if limit else 32
    vita = tiny_vita(decoder=replace(CONFIG.decoder, **limit), tokenizer_model_max_length=length)
    chat = vita.chat("sys", overflow="drop_oldest", max_new_tokens=8, eos_token_id=())
    results = [chat.ask(f"{i} one two three", details=True) for i in range(5)]
    assert not results[0].dropped and results[-1].dropped
    assert results[-1].dropped[0]["content"] == "0 one two three"
    assert max(result.prompt["total"] for result in results) <= 32 and len(chat.messages) == 10
    prompt, kept = chat.ids[:-8], chat.messages[len(results[-1].dropped) : -1]
    assert vita.generate(torch.tensor([prompt]), max_new_tokens=8, eos_token_id=())[0].tolist() == results[-1].token_ids
    assert [prompt.count(vita.tokenizer(str(i)).input_ids[0]) > 0 for i in (0, 4)] == [False, True] and 1 < len(kept) < 9
    with pytest.raises(ValueError, match="positions"):
        chat.ask("word " * 50)
    with pytest.raises(ValueError, match="overflow must be 'error' or 'drop_oldest', got 'drop'"):
        vita.chat(overflow="drop")


# ---- states


def test_a_turn_that_was_noise_is_forgotten_and_others_keep_their_state():
    """As upstream's demo: what answers ☟ is not added to the history; ☞ and ☜ stay in front of their answers."""
    chat = MODELS["vita"].chat(**OPTIONS)
    noise_, heard = "☟", "☞"
    messages = [
        {"role": "user", "content": "", "audios": [SOUNDS[0]]},
        {"role": "assistant", "content": "hm", "state": noise_},
        {"role": "user", "content": "", "audios": [SOUNDS[1]]},
        {"role": "assistant", "content": "yes", "state": heard},
        {"role": "user", "content": "why"},
    ]
    result = chat.reply(messages).finish()
    assert chat.ids.count(AUDIO) == 1 and len(chat.messages) == 6 and chat.messages[1]["state"] == noise_
    without = MODELS["vita"].chat(**OPTIONS)
    assert without.reply(messages[2:]).finish().token_ids == result.token_ids


# ---- messages from a client


def test_a_content_may_be_a_list_of_parts():
    def ids(content, **media):
        chat = MODELS["vita"].chat(**OPTIONS)
        result = chat.reply([{"role": "user", "content": content, **media}]).finish()
        return prompt_of(chat, result)

    image, sound, text = {"type": "image", "image": PICTURES[0]}, {"type": "audio", "audio": SOUNDS[0]}, {"type": "text", "text": "why"}
    assert ids([image, text]) == ids("why", images=[PICTURES[0]])
    assert ids([image, sound, text]) == ids("why", images=[PICTURES[0]], audios=[SOUNDS[0]])
    assert ids([text, image, text]) == ids("why<image>why", images=[PICTURES[0]])
    assert ids([{"type": "video", "video": CLIP}, text]) == ids("why", video=CLIP)
    for wrong in ([{"type": "image"}], ["why"], [{"type": "file", "file": "x"}], [{"type": "video", "video": CLIP}] * 2):
        with pytest.raises(ValueError, match="a part of a message must be|can have one video"):
            ids(wrong)


@pytest.mark.parametrize("messages", [None, [], "hi", [None], [{"content": "hi"}], [{"role": "user"}], [{"role": 5, "content": "x"}]])
def test_what_is_no_list_of_messages_is_refused(messages):
    with pytest.raises(ValueError, match="message"):
        MODEL.chat().reply(messages)


def test_placeholders_that_a_user_writes_are_text_where_no_medium_is_given():
    chat = MODEL.chat(**OPTIONS)
    chat.ask("what is <image> and <audio>")
    result = chat.ask("and this", images=PICTURES[0], details=True)
    assert chat.ids.count(IMAGE) == 1 and result.prompt["image_tokens"] == VIEW
    with pytest.raises(ValueError, match="1 <image> placeholder, but 2 were given"):
        chat.ask("this <image>", images=PICTURES[:2])


def test_characters_for_private_use_stay_text():
    text = "a \ue000 0 \ue000 b \ue0010\ue001"
    message = SimpleNamespace(parts=[text], fields={"role": "user"}, text=text, ids=None)
    assert text in "".join(text_pieces([message], MODEL))


# ---- threads


def test_a_stream_can_be_stopped_from_another_thread_and_only_one_thread_may_answer():
    chat, computing, go_on = MODEL.chat(eos_token_id=(), max_new_tokens=99), threading.Event(), threading.Event()
    stream = chat.stream("what")
    next(stream)
    hook = MODEL.decoder.register_forward_pre_hook(lambda module, args: computing.set() or go_on.wait(30) and None)
    worker = threading.Thread(target=stream.finish)
    worker.start()
    try:
        assert computing.wait(30)
        with pytest.raises(ValueError, match="this conversation is answering already"):
            chat.stream("why")
        stream.stop()
    finally:
        hook.remove()
        go_on.set()
        worker.join(30)
    assert stream.result.finish_reason == "stopped" and len(stream.result.token_ids) == 2
    assert len(chat.messages) == 2 and chat.ask("why", max_new_tokens=2)


def test_threads_that_ask_at_once_are_answered_or_refused_and_the_cache_is_whole():
    """Each thread waits while its question is read, so that all are read before the first is answered."""
    chat, options, outcomes = MODEL.chat(eos_token_id=(), **OPTIONS), {"images": PICTURES[1]}, []
    chat.ask("what")
    start = threading.Barrier(5)

    def slow(given, common, vita, known):
        time.sleep(0.02)
        return read_message(given, common, vita, known)

    def ask(i):
        start.wait(30)
        try:
            chat.ask(f"{i} what", **options)
            outcomes.append(i)
        except ValueError as error:
            outcomes.append(str(error))

    with patch("vita_ref.chat.read_message", slow):
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(outcomes) == 5 and all(isinstance(x, int) or "answer" in x for x in outcomes)
    assert len(chat.messages) == 2 + 2 * sum(isinstance(x, int) for x in outcomes) > 2
    result = chat.ask("why", details=True)
    other = MODEL.chat(eos_token_id=(), **OPTIONS)
    other._messages = chat._messages[:-2]
    assert other.ask("why", details=True).token_ids == result.token_ids


def test_messages_have_the_answer_while_it_is_generated():
    chat = MODEL.chat(eos_token_id=(), **OPTIONS)
    seen = [(piece.text, chat.messages[-1]["content"]) for piece in chat.stream("what")]
    texts = [text for text, _ in seen]
    assert [content for _, content in seen] == ["".join(texts[: i + 1]) for i in range(4)]


def test_raw_puts_texts_and_answers_behind_each_other():
    chat = MODEL.chat(raw=True, eos_token_id=(), **OPTIONS)
    first = chat.ask("what is", details=True)
    chat.ask("why")
    words = MODEL.tokenizer("what is").input_ids, MODEL.tokenizer("why").input_ids
    assert chat.ids[:-4] == [*words[0], *first.token_ids, *words[1]]
