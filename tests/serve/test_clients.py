"""Several clients at once: they get what they would get alone, and one that leaves, or waits too long, disturbs no other."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import image_part, served, text_part, tiny_vita, user

from vita_ref.serve import group
from vita_ref.serve.limits import MAX_ROWS

openai = pytest.importorskip("openai", reason="the client of the protocol is not installed: pip install openai")


@pytest.fixture(scope="module")
def vita(tmp_path_factory):
    return tiny_vita(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def server(vita):
    with served(vita) as server:
        yield server


def client_of(server, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", **({"max_retries": 0} | options))


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def hold(server, monkeypatch):
    """Makes the model wait at its next prompt, until the event that is returned is set."""
    go, vita = threading.Event(), server.vita
    monkeypatch.setattr(vita, "read", lambda *args, read=vita.read, **kw: (go.wait(30), read(*args, **kw))[1])
    return go


def requests():
    """120 requests: a third with pictures, some sampled, with texts of different lengths and different numbers of tokens."""
    for i in range(120):
        text = f"Question {i} " + "and so on " * (i % 5)
        parts = [image_part(color=(i, 90, 255 - i)), text_part(text)] if i % 3 == 0 else [text]
        sampled = {"temperature": 1.2, "seed": i} if i % 7 == 0 else {}
        yield {"model": "tiny", "messages": [user(*parts)], "max_tokens": 2 + i % 6, **sampled}


def test_120_requests_of_12_clients_are_answered_as_if_each_were_alone(vita, server, monkeypatch):
    sizes = []
    run = group.run_group
    monkeypatch.setattr(
        "vita_ref.serve.engine.run_group", lambda vita, jobs, kept: (sizes.append(len(jobs)), run(vita, jobs, kept))[1]
    )
    given = list(requests())

    def client(number):
        own = client_of(server)
        streamed = number % 2 == 0
        answers = {}
        for i in range(number, 120, 12):
            answer = own.chat.completions.create(**given[i], stream=streamed)
            parts = [x.choices[0].delta.content or "" for x in answer] if streamed else [answer.choices[0].message.content]
            answers[i] = "".join(parts)
        return answers

    with ThreadPoolExecutor(12) as pool:
        together = {i: text for answers in pool.map(client, range(12)) for i, text in answers.items()}
    assert len(together) == 120 and len(set(together.values())) > 20
    assert 1 < max(sizes) <= MAX_ROWS and sum(sizes) == 120
    with served(vita) as other:
        own = client_of(other)
        for i, each in enumerate(given):
            assert own.chat.completions.create(**each).choices[0].message.content == together[i], i


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer_and_no_other(server, stream):
    left, stays = client_of(server, timeout=0.5), client_of(server)
    long = {"model": "tiny", "messages": [user("Go on for long")], "max_tokens": 440, "temperature": 1.0, "seed": 1}
    steps = []
    run = server.vita.steps
    slow = lambda *args, **kw: (steps.append(time.sleep(0.02)) or step for step in run(*args, **kw))
    server.vita.steps = slow
    try:
        if stream:
            answer = left.chat.completions.create(**long, stream=True, timeout=30)
            next(iter(answer))
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                left.chat.completions.create(**long)
        until(lambda: not server.engine.running and not server.engine.waiting)
        assert len(steps) < 400
    finally:
        del server.vita.steps
    assert (
        stays.chat.completions.create(model="tiny", messages=[user("Still here?")], max_tokens=3).usage.completion_tokens == 3
    )


def test_a_client_that_leaves_while_it_waits_is_not_answered(server, monkeypatch):
    go = hold(server, monkeypatch)
    jobs = []
    monkeypatch.setattr(group, "inputs_of", lambda v, js, c, f=group.inputs_of: (jobs.extend(js), f(v, js, c))[1])
    with ThreadPoolExecutor(4) as pool:
        ask = lambda text, **options: client_of(server, **options).chat.completions.create(
            model="tiny", messages=[user(text)], max_tokens=2
        )
        first = pool.submit(ask, "First")
        until(lambda: server.engine.running)
        with pytest.raises(openai.APITimeoutError):
            ask("I do not wait", timeout=0.5)
        last = pool.submit(ask, "Last")
        until(lambda: [job.question.messages[0].text for job in server.engine._waiting] == ["Last"])
        go.set()
        assert first.result().choices and last.result().choices
    assert [job.question.messages[0].text for job in jobs] == ["First", "Last"]


def test_a_full_queue_is_told_with_the_status_that_clients_repeat(vita, monkeypatch):
    with served(vita) as server, ThreadPoolExecutor(4) as pool:
        server.engine.most_waiting = 2
        go = hold(server, monkeypatch)
        ask = lambda **options: client_of(server, **options).chat.completions.create(
            model="tiny", messages=[user("Hi")], max_tokens=2
        )
        running = pool.submit(ask)
        until(lambda: server.engine.running)
        waiting = [pool.submit(ask) for _ in range(2)]
        until(lambda: server.engine.waiting == 2)
        with pytest.raises(openai.RateLimitError, match="waiting already"):
            ask()
        patient = pool.submit(ask, max_retries=4)
        go.set()
        assert all(each.result().choices for each in [running, *waiting, patient])


def test_the_time_of_a_request_is_limited(vita, monkeypatch):
    with served(vita, seconds=0.6) as server:
        client = client_of(server)
        run = vita.steps
        monkeypatch.setattr(vita, "steps", lambda *args, **kw: (time.sleep(0.1) or step for step in run(*args, **kw)))
        answer = client.chat.completions.create(model="tiny", messages=[user("Slow")], max_tokens=400)
        assert answer.choices[0].finish_reason == "length" and 0 < answer.usage.completion_tokens < 20
        go = hold(server, monkeypatch)
        with ThreadPoolExecutor(2) as pool:
            ask = lambda text: client.chat.completions.create(model="tiny", messages=[user(text)], max_tokens=2)
            first = pool.submit(ask, "First")
            until(lambda: server.engine.running)
            second = pool.submit(ask, "Second")
            until(lambda: server.engine.waiting == 1)
            time.sleep(0.6)
            go.set()
            for each in (first, second):
                with pytest.raises(openai.InternalServerError) as error:
                    each.result()
                assert error.value.status_code == 503


def test_a_long_answer_does_not_keep_a_short_one_waiting(server):
    client = client_of(server)
    long = client.chat.completions.create(
        model="tiny", messages=[user("Long")], max_tokens=250, stream=True, temperature=1.0, seed=3
    )
    parts = iter(long)
    next(parts)
    short = client.chat.completions.create(model="tiny", messages=[user("Short")], max_tokens=2)
    assert short.usage.completion_tokens == 2 and server.engine.running  # the long one is not finished
    assert [each.choices[0].finish_reason for each in parts][-1] == "length"
