"""The queue without HTTP: one request that fails ends no other, and the thread ends when it is asked to."""

import threading
import time

import pytest
from serving import tiny_vita, user

from vita_ref.serve.engine import Engine
from vita_ref.serve.errors import ProtocolError, as_protocol_error
from vita_ref.serve.jobs import AnswerJob, Done, Part, PiecesJob, Progress
from vita_ref.serve.questions import read_question


@pytest.fixture(scope="module")
def vita(tmp_path_factory):
    return tiny_vita(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(vita):
    engine = Engine(vita)
    yield engine
    engine.close()
    assert not engine._thread.is_alive()


class Client:
    """Collects the events of a job."""

    def __init__(self, vita, text, **options):
        self.events, self.end = [], threading.Event()
        self.job = AnswerJob(read_question({"messages": [user(text)], "max_tokens": 3, **options}, vita), self.send)

    def send(self, event):
        self.events.append(event)
        if isinstance(event, (Done, Exception)):
            self.end.set()

    @classmethod
    def answered(cls, vita, engine, text="Again"):
        client = cls(vita, text)
        engine.submit(client.job)
        return client.text

    @property
    def text(self):
        assert self.end.wait(20)
        return "".join(each.text for each in self.events if isinstance(each, Part)).strip()


def test_progress_is_told_then_text_then_the_end(vita, engine):
    client = Client(vita, "Hello")
    engine.submit(client.job)
    assert client.text == vita.respond("Hello", max_new_tokens=3)
    kinds = [type(each) for each in client.events]
    assert kinds[0] is Progress and kinds[-1] is Done and kinds == sorted(kinds, key=[Progress, Part, Done].index)
    last = [each for each in client.events if isinstance(each, Progress)][-1]
    assert (last.what, last.done) == ("prompt", last.total) and last.total == client.events[-1].prompt_tokens


def test_a_group_that_fails_before_its_first_token_is_tried_again_one_by_one(vita, engine, monkeypatch):
    go, read = threading.Event(), vita.read
    sizes = []

    def fail(x, *rest):
        go.wait(20)
        sizes.append(len(x.embeds))
        if len(x.embeds) > 1 or "Bad" in vita.text(x.batch.input_ids[0]):
            raise MemoryError("there is not enough memory")
        return read(x, *rest)

    monkeypatch.setattr(vita, "read", fail)
    clients = [Client(vita, text) for text in ("First", "Good", "Bad", "Fine")]
    for client in clients:
        engine.submit(client.job)
    go.set()
    for client in clients:
        assert client.end.wait(20)
    assert max(sizes) > 1
    assert [isinstance(client.events[-1], Done) for client in clients] == [True, True, False, True]
    assert as_protocol_error(clients[2].events[-1]).status == 503
    monkeypatch.undo()
    assert [client.text for client in clients[:2]] == [vita.respond(text, max_new_tokens=3) for text in ("First", "Good")]


def test_jobs_whose_pictures_do_not_fit_into_memory_together_are_refused(vita, engine, monkeypatch):
    monkeypatch.setattr("vita_ref.serve.engine.MAX_WAITING_BYTES", 100)
    go, read = threading.Event(), vita.read
    monkeypatch.setattr(vita, "read", lambda *args: (go.wait(20), read(*args))[1])
    first = Client(vita, "First")
    engine.submit(first.job)
    while engine.waiting:
        time.sleep(0.01)
    large = [Client(vita, f"Large {i}") for i in range(2)]
    for client in large:
        client.job.nbytes = 60
    engine.submit(large[0].job)
    with pytest.raises(ProtocolError) as error:
        engine.submit(large[1].job)
    assert error.value.status == 429
    go.set()
    assert large[0].text and first.text


def test_stopping_lets_running_answers_end_in_time_and_takes_no_new_ones(vita, engine, monkeypatch):
    steps = vita.steps
    monkeypatch.setattr(vita, "steps", lambda *args, **kw: (time.sleep(0.05) or step for step in steps(*args, **kw)))
    short, long = Client(vita, "Short", max_tokens=3), Client(vita, "Long", max_tokens=400)
    for client in (short, long):
        engine.submit(client.job)
    while not any(isinstance(each, Part) for each in long.events):
        time.sleep(0.01)
    engine.stop(seconds=0.5)
    with pytest.raises(ProtocolError, match="stopping"):
        engine.submit(Client(vita, "Late").job)
    assert short.text and long.text
    assert short.events[-1].new_tokens == 3 and 0 < long.events[-1].new_tokens < 100


def test_closing_ends_the_thread_in_the_middle_of_an_answer(vita):
    engine = Engine(vita)
    client = Client(vita, "Long", max_tokens=400)
    engine.submit(client.job)
    while not engine.running:
        time.sleep(0.01)
    engine.close()
    assert not engine._thread.is_alive() and client.end.is_set()
    assert client.events[-1].new_tokens < 400


def test_speech_takes_turns_with_answers_and_ends_when_its_client_leaves(vita, engine):
    spoken, answered = [], Client(vita, "Meanwhile")

    def pieces(job):
        for i in range(10_000):
            time.sleep(0.001)
            yield i

    job = PiecesJob(pieces, spoken.append)
    engine.submit(job)
    engine.submit(answered.job)
    assert answered.text and len(spoken) < 10_000
    job.leave()
    while engine.running:
        time.sleep(0.01)
    assert len(spoken) < 10_000 and spoken[-1] is not None


def test_a_job_whose_step_is_long_gives_way_and_several_of_them_end(vita, engine):
    """Answers are complete before the long steps are, whoever comes first, and two long steps do not call each other."""
    order, clients, released = [], [Client(vita, f"Question {i}") for i in range(6)], threading.Event()

    def long_step(name):
        def pieces(job):
            for _ in range(10_000):
                if released.is_set():
                    break
                engine.give_way(0.002)
                time.sleep(0.001)
            order.append(name)
            yield name

        return pieces

    ends, jobs = [threading.Event() for _ in range(2)], []
    for name, end in zip("ab", ends):
        jobs.append(PiecesJob(long_step(name), lambda event, end=end: end.set() if event is None or isinstance(event, Exception) else None))
        engine.submit(jobs[-1])
    for client in clients:
        engine.submit(client.job)
    assert all(client.text for client in clients) and not order
    released.set()
    assert all(end.wait(20) for end in ends) and sorted(order) == ["a", "b"]
    while engine.running:
        time.sleep(0.01)
    assert Client.answered(vita, engine)
