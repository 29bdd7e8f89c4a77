"""The HTTP application: addresses, keys, errors, figures and logs."""

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from mimetypes import guess_type
from typing import Any

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm.apps import api_docs
from myllm.apps.batching import QueueFull
from myllm.apps.caption_api import CaptionApi
from myllm.apps.caption_service import CaptionService
from myllm.apps.http_errors import ApiError, as_api_error
from myllm.apps.ollama_api import OllamaApi
from myllm.apps.openai_api import OpenAIApi
from myllm.apps.remote_pictures import RemotePictures
from myllm.apps.request_bodies import BodyReader
from myllm.apps.server_metrics import Metrics
from myllm.config import VERSION
from myllm.errors import MyLLMError
from myllm.page.files import page_files

KEYED_PATHS = ("/v1/", "/api/", "/metrics")
"""Beginnings of the paths that need the key, if there is one; the others give nothing away.

Paths are always those that `get_route_path` returns, as for the router: without the prefix that Ray Serve's option
`route_prefix` puts in front, or a proxy.
"""
ROUTER_ERRORS = {404: ("not_found", "is not served"), 405: ("bad_method", "is not served, only with another method")}
# a page of another site may not show this one in a frame; browsers ask for the newest version
PAGE_HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", "Cache-Control": "no-cache"}
LOG = logging.getLogger("myllm.serve")


@dataclass
class Served:
    """What the application is made of."""

    service: CaptionService
    bodies: BodyReader
    remote: RemotePictures
    metrics: Metrics
    api_key: str | None = None
    cors: Sequence[str] = ()
    is_stopping: bool = False
    """Whether the server answers what it has received, and then ends."""


def make_app(served: Served) -> FastAPI:
    """Return the application."""
    app = FastAPI(
        title="MyLLM", version=VERSION, description=api_docs.DESCRIPTION, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json",
    )
    own = CaptionApi(served.service, served.bodies)
    openai = OpenAIApi(served.service, served.bodies, served.remote)
    ollama = OllamaApi(served.service, served.bodies)
    health = _Health(served)
    routes: Sequence[tuple[str, str, Any]] = (
        ("POST", "/v1/caption", own.caption), ("GET", "/v1/models", openai.models),
        ("GET", "/v1/models/{name:path}", openai.model),
        ("POST", "/v1/chat/completions", openai.completion),
        ("POST", "/api/generate", ollama.generate), ("POST", "/api/chat", ollama.chat),
        ("GET", "/api/tags", ollama.tags), ("POST", "/api/show", ollama.show), ("GET", "/api/version", ollama.version),
        ("GET", "/healthz", health.alive), ("GET", "/readyz", health.ready), ("GET", "/metrics", health.metrics),
    )
    for method, path, endpoint in routes:
        app.add_api_route(path, endpoint, methods=[method], response_model=None, **api_docs.operation(path))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(api_docs.page(app.openapi()))

    files = page_files("server")

    @app.get("/", include_in_schema=False)
    @app.get("/{name}", include_in_schema=False)
    async def page(name: str = "index.html") -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name].read_bytes(), headers=PAGE_HEADERS, media_type=guess_type(name)[0])

    for kind in (ApiError, MyLLMError, QueueFull, TimeoutError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(_Gate, served=served)
    if served.cors:
        app.add_middleware(  # OpenAI's client in a browser sends a dozen headers of its own
            CORSMiddleware, allow_origins=served.cors, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    return app


@dataclass(frozen=True)
class _Health:
    """Answers those who watch over the server."""

    served: Served

    async def alive(self, request: Request) -> Response:
        """Return that the server answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Return whether the server takes new pictures."""
        if self.served.is_stopping:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ready", "models": [model.name for model in self.served.service.models]})

    async def metrics(self, request: Request) -> Response:
        """Return figures in Prometheus' form."""
        return Response(self.served.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Gate:
    """Checks the key of each request, and counts and logs each answer: path, status and time, never what was sent.

    HEAD is answered like GET; the HTTP server leaves out the body. Errors that nothing expected are answered here, so
    that they pass through all other middleware.
    """

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self.app, self.served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status, is_begun = time.monotonic(), 500, False
        method, path = scope["method"], get_route_path(scope)
        scope = {**scope, "method": "GET" if method == "HEAD" else method}

        async def send_counted(message: Message) -> None:
            nonlocal status, is_begun
            if message["type"] == "http.response.start":
                status, is_begun = message["status"], True
                if self.served.is_stopping:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            if self._is_allowed(scope, path):
                await self.app(scope, receive, send_counted)
            else:
                await _error_response(path, _bad_key())(scope, receive, send_counted)
        except asyncio.CancelledError:
            if not self.served.is_stopping:
                raise
            # another Ctrl-C: the server does not wait for the last answers
            if not is_begun:
                await _error_response(path, _stopped())(scope, receive, send_counted)
        except Exception as error:
            if not is_begun:
                await _error_response(path, as_api_error(error))(scope, receive, send_counted)
            raise  # so that the HTTP server logs it
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            self.served.metrics.request_ends(route, status, begin)
            LOG.info(
                "answered", extra={
                    "method": method, "path": route if route != "other" else path[:200],
                    "status": status, "seconds": round(time.monotonic() - begin, 4),
                    "client": scope["client"][0] if scope.get("client") else None,
                },
            )

    def _is_allowed(self, scope: Scope, path: str) -> bool:
        key = self.served.api_key
        if key is None or not path.startswith(KEYED_PATHS):
            return True
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, token = given.partition(" ")
        is_equal = hmac.compare_digest(token.strip().encode("latin-1"), key.encode())  # takes as long for any token
        return is_equal and scheme.lower() == "bearer"


def _bad_key() -> ApiError:
    message = "the key is missing or wrong; send it as the header Authorization: Bearer KEY"
    return ApiError(401, "bad_key", message, {"WWW-Authenticate": "Bearer"})


def _stopped() -> ApiError:
    return ApiError(503, "stopped", "the server was stopped before it had the answer", {"Retry-After": "1"})


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # raised by the router
        code, what = ROUTER_ERRORS.get(error.status_code, ("bad_request", "has an error"))
        message = f"{request.method} {request.url.path[:100]} {what}; see /docs"
        error = ApiError(error.status_code, code, message, dict(error.headers or {}))
    return _error_response(get_route_path(request.scope), as_api_error(error))


def _error_response(path: str, error: ApiError) -> Response:
    content = {"error": error.message} if path.startswith("/api/") else error.as_json()
    return JSONResponse(content, error.status, error.headers)
