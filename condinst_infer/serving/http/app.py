"""The HTTP application: routes, limits and error responses."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from condinst_infer import __version__
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.options import filter_for, panoptic_settings
from condinst_infer.serving.http import metrics
from condinst_infer.serving.http.batcher import Batcher
from condinst_infer.serving.http.decoding import ImageDecoder
from condinst_infer.serving.http.failures import CLOSE, Rejection, failure
from condinst_infer.serving.http.last_response import LastResponse
from condinst_infer.serving.http.limits import ServerLimits
from condinst_infer.serving.http.methods import MethodsApp
from condinst_infer.serving.http.metrics import CountingApp, Metrics
from condinst_infer.serving.http.parameters import (
    PANOPTIC,
    PREDICT,
    Given,
    Parameter,
    documented,
    given_in_query,
    read_parameters,
)
from condinst_infer.serving.http.responses import PredictRequest, PredictResponse, RequestHandler
from condinst_infer.serving.http.upload import Upload, read_upload

# the page may load nothing and talk to no one but this server
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; frame-ancestors 'none'"
)
_IMAGE = {"schema": {"type": "string", "format": "binary"}}


class HttpApp:
    """An ASGI application around one pipeline, and the threads that work for it.

    Args:
        pipeline: loaded for `limits.workers` and `limits.batch`; stays the caller's.
        digest: SHA-256 of the model file.
        limits: see there.
    """

    def __init__(self, pipeline: Pipeline, digest: str, limits: ServerLimits) -> None:
        self.limits, self.pipeline, self._in_flight = limits, pipeline, 0
        config = pipeline.config
        self._model = {
            "model": config.name,
            "sha256": digest,
            "panoptic": config.is_panoptic,
            "classes": list(config.class_names),
            "lowest_score": config.reported_floor,
        }
        if config.is_panoptic:
            self._model["instance_threshold"] = config.panoptic.instance_threshold
        self.app = FastAPI(
            title="condinst",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,  # to an address that the client's Host header would make up
        )
        for kind in (HTTPException, Exception):
            self.app.add_exception_handler(kind, _on_failure)
        self._uploads: set[asyncio.Timeout] = set()  # those that come in
        self._uploads_end = math.inf  # by the clock of the event loop
        self.metrics = Metrics(lambda: len(self.batcher), frozenset(self._routes()))
        self.batcher: Batcher[PredictRequest, PredictResponse] = Batcher(
            RequestHandler(pipeline, limits.max_pixels, self.metrics.batches.observe),
            workers=limits.workers,
            batch=limits.batch,
            wait_s=limits.wait_ms / 1000,
        )
        self._decoder = ImageDecoder(limits.max_pixels, limits.timeout_s)
        self.asgi = CountingApp(MethodsApp(self.app, self.app.routes), self.metrics)

    def end_uploads(self, within_s: float) -> None:
        """Reject uploads that have not come in by then; for the event loop's thread."""
        self._uploads_end = asyncio.get_running_loop().time() + within_s
        for upload in self._uploads:
            if not upload.expired():
                upload.reschedule(min(upload.when() or math.inf, self._uploads_end))

    def close(self, limit_s: float | None = None) -> bool:
        """Finish what is in work and end the threads; False if some have not ended in time."""
        self._decoder.close()
        return self.batcher.close(limit_s)

    def _routes(self) -> list[str]:
        """Make the routes; their paths."""
        page = (
            resources.files("condinst_infer.serving.http").joinpath("page.html").read_text("utf-8")
        )
        head = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}

        async def root() -> Response:
            return HTMLResponse(page, headers=head)

        async def predict(request: Request) -> Response:
            return await self._respond(request, PREDICT)

        async def panoptic(request: Request) -> Response:
            return await self._respond(request, PANOPTIC)

        async def health() -> Response:
            hanging = self.batcher.hanging(self.limits.timeout_s)
            ready = self.batcher.alive and not hanging
            state = {
                "status": "ok" if ready else "hanging" if hanging else "stopping",
                "ready": ready,
                "workers": self.limits.workers,
                "hanging": hanging,
            }
            return JSONResponse(self._model | state, 200 if ready else 503)

        async def counts() -> Response:
            return Response(self.metrics.text(), media_type=metrics.TYPE)

        app = self.app
        app.get("/", include_in_schema=False)(root)
        say = "Find the instances of an image"
        app.post("/predict", summary=say, **_documentation(PREDICT))(predict)
        if self.pipeline.config.is_panoptic:
            say = "Find out what every pixel of an image shows"
            app.post("/panoptic", summary=say, **_documentation(PANOPTIC))(panoptic)
        app.get("/health", summary="The model, and whether it works")(health)
        app.get("/metrics", summary="Counters for Prometheus", response_class=Response)(counts)
        return [route.path for route in app.routes if isinstance(route, Route)]

    async def _respond(self, request: Request, known: Mapping[str, Parameter]) -> Response:
        """The response to an upload, or to the error.

        Errors end here: on their way through FastAPI they would keep the upload until the garbage
        collector runs.
        """
        try:
            if self._in_flight >= self.limits.queue:
                raise Rejection(
                    503,
                    f"the server is busy with {self._in_flight} requests; try again in a second.",
                    {"Retry-After": "1"},
                )
            self._in_flight += 1
            try:
                return await self._respond_in_time(request, known)
            finally:
                self._in_flight -= 1
        except Exception as error:
            return _error_response(error)

    async def _respond_in_time(self, request: Request, known: Mapping[str, Parameter]) -> Response:
        """Read the upload and find the instances, both before one deadline."""
        limit = self.limits.timeout_s
        deadline = asyncio.get_running_loop().time() + limit
        given = given_in_query(request.scope["query_string"])
        self._read_parameters(known, given)  # before the upload is read
        upload = await self._read_upload(request, deadline)
        parameters = self._read_parameters(known, [*given, *upload.given])
        overlay = _wants_overlay(request, parameters.pop("output", None))
        order = PredictRequest(upload.data, known is PANOPTIC, overlay, tuple(parameters.items()))
        try:
            async with asyncio.timeout_at(deadline), self._decoder.decoded(upload.data) as image:
                order = order._replace(data=image)
                result = await _while_connected(request, self.batcher.submit(order))
        except TimeoutError:
            text = f"the response took longer than {limit:g} s; try again later."
            raise Rejection(504, text) from None
        return Response(result.content, result.status, media_type=result.media_type)

    async def _read_upload(self, request: Request, deadline: float) -> Upload:
        """The upload, if it comes in before the deadline and the end of the server."""
        try:
            async with asyncio.timeout_at(min(deadline, self._uploads_end)) as timeout:
                self._uploads.add(timeout)
                try:
                    return await read_upload(request, self.limits.max_bytes)
                finally:
                    self._uploads.discard(timeout)
        except TimeoutError:
            if self._uploads_end < deadline:
                text = "the server ends, and the upload was not complete; send it again later."
                raise Rejection(503, text, {"Retry-After": "1", **CLOSE}) from None
            text = f"the upload took longer than {self.limits.timeout_s:g} s; send it again."
            raise Rejection(408, text, CLOSE) from None

    def _read_parameters(
        self, known: Mapping[str, Parameter], given: Sequence[Given]
    ) -> dict[str, Any]:
        """The parameters; Rejection or ConfigError if they are none, or not for this model."""
        parameters = read_parameters(known, given)
        options = {name: value for name, value in parameters.items() if name != "output"}
        check = panoptic_settings if known is PANOPTIC else filter_for
        check(self.pipeline.config, **options)
        return parameters


async def _while_connected(request: Request, future: "Future[PredictResponse]") -> PredictResponse:
    """The result, or ClientDisconnect as soon as nobody waits for it, which cancels it."""
    response, gone = asyncio.wrap_future(future), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((response, gone), return_when=asyncio.FIRST_COMPLETED)
        if not response.done():
            raise ClientDisconnect
        return response.result()
    finally:
        future.cancel()  # at once; that of `response` takes a turn of the loop to reach it
        response.cancel()
        gone.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_failure(request: Request, error: Exception) -> Response:
    return _error_response(error)


def _error_response(error: Exception) -> Response:
    status, text, headers = failure(error)
    kind = LastResponse if (headers or {}).items() >= CLOSE.items() else JSONResponse
    return kind({"error": text}, status, headers)


def _wants_overlay(request: Request, output: str | None) -> bool:
    if output is not None:
        return output == "overlay"
    accept = request.headers.get("accept", "")
    return "image/png" in accept and "application/json" not in accept


def _documentation(known: Mapping[str, Parameter]) -> dict[str, Any]:
    """A path of images as OpenAPI describes it."""
    fields = {"image": _IMAGE["schema"]} | {name: one.schema for name, one in known.items()}
    form = {"schema": {"type": "object", "required": ["image"], "properties": fields}}
    kinds = {"image/*": _IMAGE, "application/octet-stream": _IMAGE, "multipart/form-data": form}
    return {
        "openapi_extra": {
            "parameters": documented(known),
            "requestBody": {"required": True, "content": kinds},
        },
        "response_class": Response,
        "responses": {200: {"content": {"application/json": {}, "image/png": {}}}},
    }
