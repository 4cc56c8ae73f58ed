"""What surrounds every request: key, rate limit, security headers, metrics and a line in the log (chapter 07)."""

import asyncio
import json
import logging
import secrets
import time
import traceback
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recutils.service.limits import RateLimiter
from recutils.service.schemas import error_response

if TYPE_CHECKING:
    from recutils.service.state import AppState

log = logging.getLogger("recutils.service")
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}
PUBLIC_PATHS = {"/", "/page.css", "/page.js", "/health", "/ready", "/openapi.json"}  # what needs no key
UNSHED_PATHS = {"/health", "/ready", "/metrics"}  # answered however long others wait
SCOPE_OF = {"/feedback": "feedback", "/metrics": "operate"}  # what a key must allow; "ask" for all others
REQUEST_COST = {"/explain": 10.0, "/bundle": 5.0, "/search": 2.0}  # tokens of a request; 1 for all others


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, the record's `fields`, and of an exception its type and where."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"at": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            kind, _, frames = record.exc_info
            last = traceback.extract_tb(frames)[-1:]
            line |= {"error": kind.__name__, "where": [f"{f.filename}:{f.lineno} {f.name}" for f in last]}
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Metrics:
    """What is counted, in Prometheus's form and by its conventions for names and units."""

    def __init__(self) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        times = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1)
        self.requests = prometheus.Counter("http_requests", "Requests", ["route", "status"], registry=registry)
        self.seconds = prometheus.Histogram(
            "http_request_duration_seconds", "Time to answer", ["route"], buckets=times, registry=registry
        )
        self.feedback = prometheus.Counter(
            "recutils_feedback", "What became of offers", ["event", "version"], registry=registry
        )
        self.model, self.failed, self.drift, self.alert, self.rates = (
            prometheus.Gauge(f"recutils_{name}", text, labels, registry=registry)
            for name, text, labels in (
                ("model_info", "1 for the version that is served", ["version"]),
                ("model_load_failed", "1 while the current version cannot be loaded", []),
                ("drift", "PSI of departments, KS of size and score", ["feature"]),
                ("drift_alert", "1 where drift is beyond its limit", ["feature"]),
                ("feedback_rate", "Share of a day's shown offers, or lists, that were added", ["version", "measure"]),
            )
        )


class RequestMiddleware:
    """Around every request: the key before anything is read, security headers, an id, a metric, a line in the log.

    The line says which route, whose key, how long and what status; never a query, a body, an address. A fault of
    ours leaves no traceback outside.
    """

    def __init__(self, app: ASGIApp, state: "AppState") -> None:
        self.app, self.state = app, state
        self.strangers = RateLimiter(5, 50)  # requests without a key, by address

    async def refuse(self, scope: Scope) -> Response | None:
        """An answer for who comes too late, has no key or asked too often; None lets the request in."""
        arrived = scope.get("state", {}).get("arrived")
        if arrived is not None and scope["path"] not in UNSHED_PATHS and self.state.is_late(arrived):
            return error_response(503, "Too many requests wait; try again.", **{"Retry-After": "1"})
        if scope["path"] in PUBLIC_PATHS:
            return None
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        bearer = headers.get(b"authorization", "").removeprefix("Bearer ")
        client = self.state.authenticator.client_id(headers.get(b"x-api-key") or bearer)
        if client is None:
            if wait := self.strangers.wait((scope.get("client") or ("",))[0]):
                return error_response(429, "Too many requests without a key.", **{"Retry-After": str(1 + int(wait))})
            text = "Send a valid key in the header X-API-Key."
            return error_response(401, text, **{"WWW-Authenticate": "APIKey"})
        wanted = SCOPE_OF.get(scope["path"], "ask")
        if not self.state.authenticator.may(client, wanted):
            return error_response(403, f"This key may not {wanted}.")
        scope.setdefault("state", {})["client_id"] = client
        wait = await self.state.limiter.wait(client, REQUEST_COST.get(scope["path"], 1))
        text = "Too many requests for this key; wait a little."
        return error_response(429, text, **{"Retry-After": str(1 + int(wait))}) if wait else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, number, status = time.perf_counter(), secrets.token_hex(8), 0
        added = [(k.encode(), v.encode()) for k, v in {**SECURITY_HEADERS, "x-request-id": number}.items()]

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        try:
            async with asyncio.timeout(self.state.settings.deadline):
                await (await self.refuse(scope) or self.app)(scope, receive, answer)
        except TimeoutError:
            if status:
                raise
            await error_response(503, "It took too long.", **{"Retry-After": "1"})(scope, receive, answer)
        except Exception:
            if status:  # the answer is on its way: whoever is further out must end it
                raise
            log.exception("request failed", extra={"fields": {"id": number}})
            text = f"Something failed here; it is in our log as {number}."
            await error_response(500, text)(scope, receive, answer)
        finally:
            self.record(scope, number, status, time.perf_counter() - start)

    def record(self, scope: Scope, number: str, status: int, seconds: float) -> None:
        """One request, done: its metrics and its line in the log."""
        route = getattr(scope.get("route"), "path", "none")
        self.state.metrics.requests.labels(route, status).inc()
        self.state.metrics.seconds.labels(route).observe(seconds)
        line = {"id": number, "method": scope["method"], "route": route, "status": status}
        line |= {"ms": round(1000 * seconds, 2), "client_id": scope.get("state", {}).get("client_id", "")}
        log.info("request", extra={"fields": line})
