"""A conversation answers each turn as one prompt with the same ids would be answered, and reads only what is new."""

import gc
import json
import threading
import time
from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from test_model import AUDIO, BINS, CLOSE, EOS, IMAGE, PIXELS, VIEW, VOCAB, noise, tiny_vita

from vita_ref.audio import audio_token_count
from vita_ref.chat import Conversation
from vita_ref.prompt import TEMPLATES
from vita_ref.sampling import Sampling

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
    """Counts what the towers and the decoder compute."""

    def __init__(self, vita):
        self.tiles, self.read = Counter(), 0
        self.hooks = [
            vita.vision.register_forward_pre_hook(lambda module, x: self.tiles.update(t.numpy().tobytes() for t in x[0])),
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
        self.chat, self.watch, self.known, self.expected = self.vita.chat(system, **OPTIONS), Watch(self.vita), [], []

    def teardown(self):
        if hasattr(self, "watch"):
            self.watch.remove()

    def check(self, result, question):
        """The answer is that of one prompt; the cache had all that it could have; pictures were encoded once."""
        self.expected += [question, {"role": "assistant", "content": result.text}]
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
        before = self.chat.ids
        result = self.start(text, media, max_new_tokens=new).finish()
        prompt = self.check(result, self.question)
        shared = next((i for i, (a, b) in enumerate(zip(before, prompt)) if a != b), min(len(before), len(prompt)))
        if IMAGE not in prompt and AUDIO not in prompt:  # positions are ids; the last id generated was never read
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
        stream = self.start(text, [])
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
        for got, want in zip(*(sum(media_of(chat.messages), []) for chat in (loaded, self.chat)), strict=True):
            assert torch.equal(got, want)
        self.chat, self.watch.tiles = loaded, Counter()


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=12, stateful_step_count=8, deadline=None, derandomize=True, phases=[Phase.generate])
