"""The HTTP application: routes, bodies, and the way from events of the engine to responses.

    POST /v1/chat/completions -> body -> Question (a thread) -> AnswerJob -> Engine -> events -> JSON, or a stream

Test: ``pytest tests/serve/test_protocol.py``
"""

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..files.messages import shown
from .engine import Engine
from .errors import ProtocolError, as_protocol_error, error_object
from .guard import Guard
from .jobs import AnswerJob, Done, Part, PiecesJob
from .limits import (
    BODY_SECONDS,
    MAX_ALL_BODY_BYTES,
    MAX_BODY_BYTES,
    MAX_SECONDS,
    READERS,
)
from .looks import POLICY, Looks, look_page, read_look
from .page import page
from .questions import read_json, read_question
from .replies import Reply, sse
from .sounds import encoded, read_speech, spoken

MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES  # that a client may send of a body that is too large, before the connection is closed
ALIVE_SECONDS = 15  # after which a stream without news sends a comment, so that nothing between closes it


class Server:
    """The routes of one model.

    Attributes: app, the ASGI application; engine, the thread that computes.
    """

    def __init__(self, vita, name, *, hosts, addresses=False, key=None, seconds=MAX_SECONDS):
        self.vita, self.name, self.seconds, self.started = vita, name, seconds, int(time.time())
        self.engine, self.received = Engine(vita), 0
        self.readers = ThreadPoolExecutor(READERS, "vita_ref reader")
        self.looks = Looks()
        self.page, self.page_headers = page(vita, name)
        routes = [
            Route("/", self.get_page),
            Route("/health", self.get_health),
            Route("/v1/models", self.get_models),
            Route("/v1/models/{model:path}", self.get_model),
            Route("/v1/chat/completions", self.post_chat, methods=["POST"]),
            Route("/v1/look", self.post_look, methods=["POST"]),
            Route("/look/{name}", self.get_look),
            Route("/v1/audio/speech", self.post_speech, methods=["POST"]),
        ]
        handlers = {HTTPException: self.http_error, ValueError: self.protocol_error, Exception: self.protocol_error}
        self.app = Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=self.lifespan), hosts, addresses, key)

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        yield
        await asyncio.to_thread(self.engine.close)
        self.readers.shutdown(wait=False)

    # ---- routes

    async def get_page(self, request):
        return HTMLResponse(self.page, headers=self.page_headers)

    async def get_health(self, request):
        state = {"status": "ok", "running": sum(len(jobs) for jobs, _ in self.engine.running), "waiting": self.engine.waiting}
        return JSONResponse(state)

    async def get_models(self, request):
        return JSONResponse({"object": "list", "data": [self.model_object()]})

    async def get_model(self, request):
        self.check_model(request.path_params["model"])
        return JSONResponse(self.model_object())

    async def post_chat(self, request):
        async with self.body(request) as body:
            self.check_model(body.get("model"))
            question = await self.in_thread(read_question, body, self.vita, self.engine.prefixes.media)
        reply = Reply(self.name, question, self.vita.tokenizer)
        events = Events()
        job = AnswerJob(question, events.send, self.seconds)
        await self.in_thread(self.engine.check, job)
        self.engine.submit(job)
        if question.stream:
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return EventStream(job, self.stream(events, reply), media_type="text/event-stream", headers=headers)
        found = await self.unless_left(request, job, events.all())
        return JSONResponse(reply.whole([x for x in found if isinstance(x, Part)], found[-1]))

    async def post_speech(self, request):
        if self.vita.speech is None:
            raise ProtocolError(f"the model {self.name!r} cannot speak: it has no speech weights", 404, code="model_not_found")
        async with self.body(request) as body:
            self.check_model(body.get("model"))
            speech = read_speech(body)
        events = Events()
        job = PiecesJob(lambda job: spoken(self.vita, speech), events.send, self.seconds)
        self.engine.submit(job)
        pieces = await self.unless_left(request, job, events.all())
        content, kind = await self.in_thread(encoded, pieces[:-1], self.vita.speech.sample_rate, speech.format)
        return Response(content, media_type=kind)

    async def post_look(self, request):
        """Makes the page about an answer, the last message. Its address is for whoever knows it."""
        async with self.body(request) as body:
            self.check_model(body.get("model"))
            question, *rest = await self.in_thread(read_look, body, self.vita)
        events = Events()
        job = PiecesJob(lambda job: look_page(question, *rest, self.engine, job), events.send, self.seconds)
        job.nbytes = question.nbytes
        self.engine.submit(job)
        html, _ = await self.unless_left(request, job, events.all())
        return JSONResponse({"url": f"/look/{self.looks.add(html)}"})

    async def get_look(self, request):
        headers = {"content-security-policy": POLICY, "cache-control": "no-store"}
        return HTMLResponse(self.looks.get(request.path_params["name"]), headers=headers)

    # ---- the way in

    @contextlib.asynccontextmanager
    async def body(self, request):
        """The JSON object in a body. Its bytes count as long as the block lasts."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ProtocolError("the body must be JSON: Content-Type: application/json", 415)
        kept = []
        try:
            size = await asyncio.wait_for(self.receive(request, kept), BODY_SECONDS)
            if size > MAX_BODY_BYTES:
                most = f"{MAX_BODY_BYTES:,} bytes: send fewer or smaller pictures and sounds"
                raise ProtocolError(f"the body has more than {most}", 413)
            if size > sum(map(len, kept)):
                raise ProtocolError("other requests are being received: try again later", 429, code="rate_limit_exceeded")
            yield await self.in_thread(read_json, b"".join(kept))
        except asyncio.TimeoutError:  # noqa: UP041 - in Python 3.10 another class
            raise ProtocolError(f"the body did not arrive in {BODY_SECONDS} s", 408) from None
        except ClientDisconnect:
            raise ProtocolError("the client has left", 499) from None
        finally:
            self.received -= sum(map(len, kept))

    async def receive(self, request, kept):
        """Adds the bytes of a body to ``kept`` as far as they are within the limits. Returns how many there are."""
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_DISCARDED_BYTES:
                break
            if size <= MAX_BODY_BYTES and self.received + len(chunk) <= MAX_ALL_BODY_BYTES:
                kept.append(chunk)
                self.received += len(chunk)
        return size

    async def in_thread(self, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *arguments)

    def check_model(self, name):
        """Refuses another model than the one that there is."""
        if name is None:
            raise ProtocolError("you must provide a model parameter", param="model")
        if name != self.name:
            raise ProtocolError(f"the model {shown(name)} does not exist here; there is {self.name!r}", 404, param="model",
                                code="model_not_found")  # fmt: skip

    # ---- the way out

    async def stream(self, events, reply):
        """The bytes of a streamed answer."""
        yield sse(reply.first())
        async for event in events.until_end(ALIVE_SECONDS):
            if event is None:
                yield b": still computing\n\n"
                continue
            for chunk in reply.chunks(event):
                yield sse(chunk)
        yield sse("[DONE]")

    async def unless_left(self, request, job, coming):
        """What a coroutine gives, which is ended together with its job if the client leaves."""
        tasks = [asyncio.ensure_future(coming), asyncio.ensure_future(left(request))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise ProtocolError("the client has left", 499)
            return tasks[0].result()
        finally:
            job.leave()
            for task in tasks:
                task.cancel()

    def model_object(self):
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "vita_ref"}

    async def http_error(self, request, error):
        advice = {404: f"there is no {request.url.path!r} here", 405: f"{request.method} is not possible here"}
        return await self.protocol_error(request, ProtocolError(advice.get(error.status_code, error.detail), error.status_code))

    async def protocol_error(self, request, error):
        error = as_protocol_error(error)
        headers = {"retry-after": "2"} if error.status == 429 else {}
        return JSONResponse(error_object(error), error.status, headers=headers)


class EventStream(StreamingResponse):
    """A streamed answer. It is cancelled if the client leaves, which ends its job."""

    def __init__(self, job, content, **options):
        super().__init__(content, **options)
        self.job = job

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.leave()


class Events:
    """The events of a job, on their way from the thread that computes to the event loop."""

    def __init__(self):
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue()

    def send(self, event):
        """Adds an event, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def until_end(self, seconds=None):
        """Yields events to the last one. None: there was none for so many seconds."""
        while True:
            try:
                event = await asyncio.wait_for(self._queue.get(), seconds)
            except asyncio.TimeoutError:  # noqa: UP041 - in Python 3.10 another class
                yield None
                continue
            yield event
            if event is None or isinstance(event, (Done, Exception)):
                return

    async def all(self):
        """All events to the last one, as a list. Raises: the exception that the job ended with."""
        events = []
        async for event in self.until_end():
            if isinstance(event, Exception):
                raise event
            events.append(event)
        return events


async def left(request):
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
