"""The routes of the HTTP server, and what each does with a request."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from ..errors import ScoutError
from .answer.calls import OPEN
from .answer.forms import ChatForm, CompletionForm, Form, Prompt
from .answer.reply import Reply
from .answer.sending import EventStream, unless_gone
from .description import describe
from .engine import Answer, Engine
from .errors import ApiError, api_error, blamed, error_response, refused
from .meter import Meter
from .metrics import Metrics
from .request.fields import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .request.params import params_of
from .request.prompts import encode, encode_conversation
from .request.reader import Reader
from .security import ApiKey
from .state import Options, Places

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
"""What Prometheus calls its text format."""
DASHBOARD = Path(__file__).with_name("dashboard.html")
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
"""The dashboard loads nothing from elsewhere, and the browser sees to it."""
Body = ChatRequest | CompletionRequest


class Server:
    """One model behind HTTP.

    app: the ASGI application.   places: the answers that are under way.
    """

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine = engine
        self.options = options
        self.places = Places(engine.max_running, options.max_waiting)
        self.metrics = Metrics(engine, options.model)
        self.replies: set[Reply] = set()
        self.app = FastAPI(title="ScoutAttention", version=version("scout-attention"), docs_url=None, redoc_url=None)
        self.app.state.model = options.model
        self._add_routes()
        self._add_errors()
        if options.api_key is not None:
            self.app.add_middleware(ApiKey, key=options.api_key)

    def close(self) -> None:
        """Take no more requests."""
        self.places.closing = True

    def end_all(self, why: str) -> None:
        """End every answer that is under way, with an error.   why: what it says."""
        for reply in tuple(self.replies):
            reply.fail(ApiError(503, why))

    def _add_routes(self) -> None:
        posts: tuple[tuple[str, Reader[Any], Callable[[Request, Any], Any]], ...] = (
            ("/v1/chat/completions", Reader(ChatRequest, "messages"), self._chat),
            ("/v1/completions", Reader(CompletionRequest, "prompt"), self._complete),
            ("/tokenize", Reader(TokenizeRequest, "prompt", "messages"), self._tokenize),
            ("/detokenize", Reader(DetokenizeRequest, "tokens"), self._detokenize),
        )
        for path, reader, answer in posts:
            self.app.add_api_route(path, _posted(reader, answer), methods=["POST"], response_model=None)
        for path, get in (
            ("/", self._dashboard),
            ("/health", self._health),
            ("/version", self._version),
            ("/v1/models", self._models),
            ("/v1/models/{model:path}", self._one_model),
            ("/metrics", self._metrics),
        ):
            self.app.add_api_route(path, get, methods=["GET"], response_model=None)
        describe(self.app, [(path, reader) for path, reader, _ in posts])

    def _add_errors(self) -> None:
        self.app.add_exception_handler(ScoutError, _engine_error)
        self.app.add_exception_handler(HTTPException, _http_error)
        self.app.add_exception_handler(ClientDisconnect, _client_left)
        self.app.add_exception_handler(Exception, _bug)  # the outermost handler: the log has the traceback

    async def _chat(self, request: Request, body: ChatRequest) -> Response:
        top, only_first = body.get("top_logprobs") or 0, body.get("parallel_tool_calls") is False
        form = ChatForm(self.options.model, self.engine.tokenizer, top, only_first=only_first)
        variables = _variables(body)

        def read() -> list[Prompt]:
            ids, text = encode_conversation(self.engine, body["messages"], variables)
            form.calls = "tools" in variables and OPEN in text
            return [Prompt(ids)]

        return await self._answer(request, body, form, 1, read)

    async def _complete(self, request: Request, body: CompletionRequest) -> Response:
        prompts, tokenizer = _prompts(body["prompt"]), self.engine.tokenizer
        special = body.get("add_special_tokens") is not False

        def ids_of(prompt: str | list[int]) -> list[int]:
            return encode(self.engine, prompt, add_special_tokens=special) if isinstance(prompt, str) else prompt

        def read() -> list[Prompt]:
            ids = [ids_of(prompt) for prompt in prompts]
            if not body.get("echo"):
                return [Prompt(one) for one in ids]
            texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
            return [Prompt(*one) for one in zip(ids, texts, strict=True)]

        return await self._answer(request, body, CompletionForm(self.options.model, tokenizer), len(prompts), read)

    async def _answer(
        self, request: Request, body: Body, form: Form, count: int, read: Callable[[], list[Prompt]]
    ) -> Response:
        """Answer so many prompts, which `read` makes in a thread of its own."""
        self._check_model(body.get("model"))
        n, options = body.get("n") or 1, body.get("stream_options") or {}
        if options and not body.get("stream"):
            raise refused("stream_options needs stream to be true", "stream_options")
        places, answers = n * count, list[Answer]()
        with ExitStack() as undo:
            self.places.take(places, "n" if n > 1 else "prompt")
            undo.callback(self.places.give_back, places, 0.0)
            undo.callback(_cancel, answers)
            prompts = await asyncio.to_thread(self._submit, body, read, answers)
            undo.pop_all()
        meter = Meter(self.metrics, answers, n)
        reply = Reply(answers, n, prompts, meter.watch)
        self.replies.add(reply)

        def ended() -> None:
            reply.cancel()
            meter.end("error" if reply.failed else "abort")
            self.places.give_back(places, meter.seconds)
            self.replies.discard(reply)

        if body.get("stream"):
            with_each = bool(options.get("continuous_usage_stats"))
            events = reply.events(form, at_end=bool(options.get("include_usage")), with_each=with_each)
            return EventStream(events, ended)
        try:
            whole = await unless_gone(request.receive, reply.whole(form))
        finally:
            ended()
        return JSONResponse(whole, 499 if whole is None else 200)

    def _submit(self, body: Body, read: Callable[[], list[Prompt]], answers: list[Answer]) -> list[Prompt]:
        """Read prompts and queue them; `answers` has those that were queued, also where another is refused."""
        engine = self.engine
        with blamed("messages" if "messages" in body else "prompt"):
            prompts = read()
            for prompt in prompts:
                engine.check_ids(prompt.ids)
                params = params_of(body, self.options.defaults, len(prompt.ids), engine)
                answers.append(engine.submit(prompt.ids, params, streamed=bool(body.get("stream"))))
        return prompts

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.options.model:
            raise ApiError(404, f"the model {name[:200]!r} is not served: ask for {self.options.model!r}", "model")

    async def _tokenize(self, request: Request, body: TokenizeRequest) -> Response:
        self._check_model(body.get("model"))

        def work() -> list[int]:
            if "messages" in body:
                with blamed("messages"):
                    return encode_conversation(self.engine, body["messages"], _variables(body))[0]
            special = body.get("add_special_tokens") is not False
            with blamed("prompt"):
                return encode(self.engine, body["prompt"], add_special_tokens=special)

        ids = await asyncio.to_thread(work)
        return JSONResponse({"count": len(ids), "max_model_len": self.engine.max_len, "tokens": ids})

    async def _detokenize(self, request: Request, body: DetokenizeRequest) -> Response:
        self._check_model(body.get("model"))
        ids = body["tokens"]
        if ids:
            with blamed("tokens"):
                ids = await asyncio.to_thread(self.engine.check_ids, ids)
        return JSONResponse({"prompt": await asyncio.to_thread(self.engine.tokenizer.decode, ids)})

    async def _dashboard(self) -> Response:
        """The page that shows what the server does."""
        return HTMLResponse(DASHBOARD.read_bytes(), headers={"Content-Security-Policy": POLICY})

    async def _health(self) -> Response:
        """Whether the server lives."""
        return Response(status_code=503 if self.places.closing else 200)

    async def _version(self) -> Response:
        """The version of the package."""
        return JSONResponse({"version": self.app.version})

    async def _models(self) -> Response:
        """The one model that is served, in a list."""
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _one_model(self, model: str) -> Response:
        """The model of this name."""
        if not model:
            return await self._models()
        self._check_model(model)
        return JSONResponse(self._description())

    def _description(self) -> dict[str, Any]:
        model = {"id": self.options.model, "object": "model", "created": self.metrics.began, "owned_by": "scout"}
        model |= {"root": self.options.model, "parent": None, "max_model_len": self.engine.max_len}
        return model

    async def _metrics(self) -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type=PLAIN)


def _posted(reader: Reader[Any], answer: Callable[[Request, Any], Any]) -> Callable[[Request], Any]:
    """A route that reads its request, and answers it."""

    async def route(request: Request) -> Response:
        return cast(Response, await answer(request, await reader(request)))

    return route


def _prompts(prompt: object) -> list[str | list[int]]:
    """One prompt or many as a list. Raises ApiError where there is none."""
    if not prompt:
        raise refused("prompt is empty: give at least 1 token", "prompt")
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return cast(list[str | list[int]], prompt if several else [prompt])


def _variables(body: Mapping[str, Any]) -> dict[str, Any]:
    """More variables of the chat template, of those that a request has."""
    variables = dict(body.get("chat_template_kwargs") or {})
    if body.get("tools") and body.get("tool_choice") != "none":
        variables["tools"] = body["tools"]
    return variables


def _cancel(answers: list[Answer]) -> None:
    for answer in answers:
        answer.cancel()


async def _engine_error(_: Request, error: Exception) -> Response:
    return error_response(api_error(cast(ScoutError, error)))


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, or another method."""
    found = cast(HTTPException, error)
    path, message = request.url.path[:200], str(found.detail)
    if found.status_code == 404:
        known = ", ".join(route.path_format for route in request.app.routes)
        message = f"there is no path {path!r}: ask for one of {known}"
    elif found.status_code == 405 and found.headers:
        message = f"{path} does not take {request.method[:20]}: send {found.headers['Allow']}"
    return error_response(ApiError(found.status_code, message, headers=found.headers))


async def _client_left(_: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _bug(_: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "the server has a fault, which its log shows"))
