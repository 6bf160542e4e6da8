"""The routes of the door."""

import asyncio
from concurrent.futures import Future
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from condinst_infer import __version__
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.options import call_options, panoptic_settings
from condinst_infer.serving.http import metrics
from condinst_infer.serving.http.batcher import Batcher
from condinst_infer.serving.http.failures import Refused, failure
from condinst_infer.serving.http.limits import Limits
from condinst_infer.serving.http.metrics import Counted, Metrics
from condinst_infer.serving.http.parameters import (
    PanopticParameters,
    Parameters,
    PredictParameters,
    merged,
)
from condinst_infer.serving.http.responses import Answer, Answers, Order
from condinst_infer.serving.http.upload import uploaded

# the page may load nothing and talk to no one but this server
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; frame-ancestors 'none'"
)
_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"image": _IMAGE["schema"]}}}
_DOCUMENTED: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "image/*": _IMAGE,
                "application/octet-stream": _IMAGE,
                "multipart/form-data": _FORM,
            },
        }
    },
    "response_class": Response,
    "responses": {200: {"content": {"application/json": {}, "image/png": {}}}},
}


class Door:
    """An ASGI application around one pipeline, and the threads that work for it.

    Args:
        pipeline: loaded for `limits.workers` and `limits.batch`; stays the caller's.
        digest: SHA-256 of the model file.
        limits: see there.
    """

    def __init__(self, pipeline: Pipeline, digest: str, limits: Limits) -> None:
        self.limits, self._pipeline, self._taken = limits, pipeline, 0
        config = pipeline.config
        self._model = {
            "model": config.name,
            "sha256": digest,
            "panoptic": config.is_panoptic,
            "classes": list(config.class_names),
        }
        self.app = FastAPI(title="condinst", version=__version__, docs_url=None, redoc_url=None)
        for kind in (RequestValidationError, HTTPException, Exception):
            self.app.add_exception_handler(kind, _on_failure)
        self.metrics = Metrics(lambda: len(self.batcher), frozenset(self._routes()))
        self.batcher: Batcher[Order, Answer] = Batcher(
            Answers(pipeline, limits.max_pixels, self.metrics.batches.observe),
            workers=limits.workers,
            batch=limits.batch,
            wait_s=limits.wait_ms / 1000,
        )
        self.asgi = Counted(self.app, self.metrics)

    def close(self) -> None:
        """Finish what is in work and end the threads."""
        self.batcher.close()

    def _routes(self) -> list[str]:
        """Make the routes; their paths."""
        page = (
            resources.files("condinst_infer.serving.http").joinpath("page.html").read_text("utf-8")
        )
        head = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}

        async def root() -> Response:
            return HTMLResponse(page, headers=head)

        async def predict(
            request: Request, query: Annotated[PredictParameters, Query()]
        ) -> Response:
            return await self._answered(request, query)

        async def panoptic(
            request: Request, query: Annotated[PanopticParameters, Query()]
        ) -> Response:
            return await self._answered(request, query)

        async def health() -> Response:
            ready = self.batcher.alive
            return JSONResponse(self._model | {"ready": ready}, 200 if ready else 503)

        async def counts() -> Response:
            return Response(self.metrics.text(), media_type=metrics.TYPE)

        app = self.app
        app.get("/", include_in_schema=False)(root)
        app.post("/predict", summary="Find the instances of an image", **_DOCUMENTED)(predict)
        if self._pipeline.config.is_panoptic:
            say = "Find out what every pixel of an image shows"
            app.post("/panoptic", summary=say, **_DOCUMENTED)(panoptic)
        app.get("/health", summary="The model, and whether it works")(health)
        app.get("/metrics", summary="Counters for Prometheus", response_class=Response)(counts)
        return [route.path for route in app.routes if isinstance(route, Route)]

    async def _answered(self, request: Request, query: Parameters) -> Response:
        """The answer to an upload, or why there is none.

        Errors end here: on their way through FastAPI they would keep the upload until the garbage
        collector runs.
        """
        try:
            if self._taken >= self.limits.queue:
                raise Refused(
                    503,
                    f"the server is busy with {self._taken} requests; try again in a second.",
                    {"Retry-After": "1"},
                )
            self._taken += 1
            try:
                return await self._in_time(request, query)
            finally:
                self._taken -= 1
        except Exception as error:
            return _refusal(error)

    async def _in_time(self, request: Request, query: Parameters) -> Response:
        limit = self.limits.timeout_s
        late = 408, f"the upload took longer than {limit:g} s; send it again."
        try:
            async with asyncio.timeout(limit):
                self._check(query)
                upload = await uploaded(request, self.limits.max_bytes)
                parameters = merged(query, upload.fields)
                self._check(parameters)
                order = Order(
                    upload.data,
                    isinstance(parameters, PanopticParameters),
                    _wants_overlay(request, parameters),
                    tuple(parameters.options().items()),
                )
                late = 504, f"the answer took longer than {limit:g} s; try again later."
                answer = await _while_there(request, self.batcher.submit(order))
        except TimeoutError:
            raise Refused(*late) from None
        return Response(answer.content, answer.status, media_type=answer.media_type)

    def _check(self, parameters: Parameters) -> None:
        """ConfigError if the model can't honour them; before anything is read or queued."""
        panoptic = isinstance(parameters, PanopticParameters)
        check = panoptic_settings if panoptic else call_options
        check(self._pipeline.config, **parameters.options())


async def _while_there(request: Request, future: "Future[Answer]") -> Answer:
    """The result, or ClientDisconnect as soon as nobody waits for it, which cancels it."""
    answer, gone = asyncio.wrap_future(future), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        future.cancel()  # at once; that of `answer` takes a turn of the loop to reach it
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_failure(request: Request, error: Exception) -> Response:
    return _refusal(error)


def _refusal(error: Exception) -> Response:
    status, text, headers = failure(error)
    return JSONResponse({"error": text}, status, headers)


def _wants_overlay(request: Request, parameters: Parameters) -> bool:
    if parameters.output is not None:
        return parameters.output == "overlay"
    accept = request.headers.get("accept", "")
    return "image/png" in accept and "application/json" not in accept
