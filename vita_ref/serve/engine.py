"""The thread that computes. Requests wait in a queue; groups of them take turns, one step each.

A long answer does not keep a short one waiting: up to `MAX_GROUPS` groups are generated at the same time, a token each
in turn, and a group has up to `MAX_ROWS` answers. A job with one long step, such as a page about an answer, calls
`Engine.give_way` inside it.

Test: ``pytest tests/serve/test_engine.py``
"""

import sys
import threading
import time
import traceback
from collections import deque

from .errors import ProtocolError
from .group import run_group, together
from .jobs import AnswerJob, prompt_of
from .limits import (
    MAX_GROUPS,
    MAX_ROWS,
    MAX_WAITING,
    MAX_WAITING_BYTES,
    STOP_SECONDS,
)
from .prefixes import Prefixes


class Engine:
    """The queue, and the thread that answers what is in it.

    Attributes: prefixes, what is remembered of conversations; running, [jobs, generator] of each group.
    """

    def __init__(self, vita, *, most_waiting=MAX_WAITING):
        self.vita, self.prefixes, self.running, self.most_waiting = vita, Prefixes(), [], most_waiting
        self.encoder, self._stepping = vita.chat(), []  # groups whose step has not ended; several if one gives way
        self._waiting, self._change, self._closed, self._stopping = deque(), threading.Condition(), False, False
        self._thread = threading.Thread(target=self._run, name="vita_ref engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self):
        """How many jobs wait."""
        return len(self._waiting)

    def check(self, job):
        """Refuses a question that is too long, before it waits. It may be called in any thread. Raises: ProtocolError."""
        prompt_of(job.question, self.vita, self.encoder)

    def submit(self, job):
        """Puts a job into the queue. Raises: ProtocolError if it is full, or the server is stopping."""
        with self._change:
            if self._stopping:
                raise ProtocolError("the server is stopping", 503)
            self._waiting = deque(each for each in self._waiting if each.reason != "stopped")
            too_large = job.nbytes and sum(each.nbytes for each in self._waiting) + job.nbytes > MAX_WAITING_BYTES
            if len(self._waiting) >= self.most_waiting or too_large:
                waiting = f"{len(self._waiting)} requests are waiting already: try again later"
                raise ProtocolError(waiting, 429, code="rate_limit_exceeded")
            self._waiting.append(job)
            self._change.notify()

    def stop(self, seconds=STOP_SECONDS):
        """Takes no more jobs, and gives those that there are so many seconds. It may be called by a handler of a signal."""
        self._stopping = True
        deadline = time.monotonic() + seconds
        for job in [*self._waiting, *(job for jobs, _ in list(self.running) for job in jobs)]:
            job.deadline = min(job.deadline, deadline)

    def close(self, seconds=5):
        """Ends the thread. Jobs that are left fail."""
        self._stopping = self._closed = True
        for job in [*self._waiting, *(job for jobs, _ in list(self.running) for job in jobs)]:
            job.leave()
        with self._change:
            self._change.notify()
        self._thread.join(seconds)

    # ---- the thread

    def _run(self):
        while True:
            with self._change:
                while not (self._waiting or self.running or self._closed):
                    self._change.wait()
                if self._closed and not self._waiting and not self.running:
                    return
                taken = list(self._waiting) if len(self.running) < MAX_GROUPS else []
            self._start(taken)
            for group in list(self.running):
                self._step(group)

    def _start(self, waiting):
        """Starts the first job that waits, together with others where that helps."""
        group = []
        for job in waiting:
            if len(group) == MAX_ROWS:
                break
            if job.reason:
                self._remove(job)
                if job.reason == "time":
                    job.fail(ProtocolError("the time of this request was over before its turn came", 503))
                continue
            if not isinstance(job, AnswerJob):
                if group:
                    continue
                self._remove(job)
                self.running.append([[job], job.run()])
                return
            if not self._prepare(job):
                continue
            if not group or together([*group, job], self.vita.config.decoder.max_position_embeddings):
                group.append(job)
                self._remove(job)
        if group:
            self.running.append([group, run_group(self.vita, group, self.prefixes)])

    def _prepare(self, job):
        """Whether a job can be answered; if not, it fails."""
        try:
            job.prepare(self.vita, self.encoder, self.prefixes)
            return True
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            self._remove(job)
            self._fail(job, error)
            return False

    def give_way(self, seconds):
        """Runs the other jobs for so many seconds, at least a step each. It is called inside a long step."""
        end, others = time.monotonic() + seconds, True
        while others:
            if len(self.running) < MAX_GROUPS:
                self._start(list(self._waiting))
            others = [group for group in self.running if group not in self._stepping]
            for group in others:
                self._step(group)
            others = others if time.monotonic() < end else []

    def _step(self, group):
        """The next step of a group."""
        if group in self._stepping or group not in self.running:  # another one gave way
            return
        jobs, steps = group
        self._stepping.append(group)
        try:
            next(steps)
        except StopIteration:
            self.running.remove(group)
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            self.running.remove(group)
            again = len(jobs) > 1 and not any(job.answer and job.answer.ids for job in jobs)
            for job in reversed(jobs):
                if again:
                    job.alone = True
                    with self._change:
                        self._waiting.appendleft(job)
                else:
                    self._fail(job, error)
        finally:
            self._stepping.remove(group)

    def _remove(self, job):
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)

    def _fail(self, job, error):
        if not isinstance(error, ValueError):
            traceback.print_exception(error, file=sys.stderr)
        job.fail(error)
