"""The service: recommendations, search, bundles and reasons over HTTP, with keys, limits and metrics. Chapter 07.

`make serve` (or `python -m recutils.service`) starts it on the version that `artifact.save` made current.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import numpy as np
import prometheus_client as prometheus
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import APIKeyHeader
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recutils.bundles import BundleConstraints, BundleError, make_bundle
from recutils.explain.explanation import explain
from recutils.service.artifact import ArtefactError, Served, load
from recutils.service.auth import Gate, Settings, default_folder, new_key, settings_from
from recutils.service.build import book_shop
from recutils.service.monitor import Monitor
from recutils.service.pseudonyms import pseudonym
from recutils.service.schemas import (
    TROUBLE,
    Ask,
    BundleWish,
    Feedback,
    ItemId,
    Offer,
    Offers,
    Reason,
    Refused,
    Stored,
    Why,
    trouble,
)
from recutils.service.single_basket import NOBODY, one_basket

log = logging.getLogger("recutils.service")


PAGE = Path(__file__).parent / "page"


class Shelf:
    """The version that is being served, and its watch over the folder: what is made current is taken up.

    A request keeps the version that it began with. A version that cannot be loaded changes nothing but `trouble`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.served: Served | None = None
        self.monitor: Monitor | None = None
        self.trouble = "no model has been loaded yet"
        self.tried, self.failed_at = "", 0.0

    async def watch(self) -> None:
        """Look for a new current version, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self.settings.look)

    async def look(self) -> None:
        """Take up the current version if it is another than the last one tried; one that failed, every ten seconds."""
        try:
            current = (self.settings.folder / "CURRENT").read_text().strip()
        except (OSError, ValueError):
            current = ""
        if current and current == self.tried and (not self.trouble or time.monotonic() < self.failed_at + 10):
            return
        try:
            self.put(await asyncio.to_thread(load, self.settings.folder, current or None))
        except Exception as error:
            self.trouble = str(error) if isinstance(error, ArtefactError) else type(error).__name__
            self.failed_at = time.monotonic()
            if current != self.tried:
                log.error(json.dumps({"event": "not loaded", "version": current[:64], "why": self.trouble}))
        self.tried = current

    def put(self, new: Served) -> None:
        """Serve another version from now on. Raises ArtefactError for one whose pseudonyms have another secret."""
        if new.secret_check != pseudonym("the shop's own check", self.settings.secret):
            raise ArtefactError("Its pseudonyms were made with another secret (RECUTILS_SECRET); build it again.")
        self.monitor = Monitor.of(new.usual)
        self.served, self.trouble = new, ""
        gc.unfreeze()  # the version before
        gc.collect()
        gc.freeze()  # what stays until the next version need not be searched for garbage
        log.info(json.dumps({"event": "serving", "version": new.version}))


class Metrics:
    """What is counted, in Prometheus's form."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        on: Any = {"registry": self.registry}
        times = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1)
        self.requests = prometheus.Counter("shop_requests", "Requests", ["route", "status"], **on)
        self.seconds = prometheus.Histogram("shop_seconds", "Time to answer", ["route"], buckets=times, **on)
        self.model = prometheus.Gauge("shop_model", "1 for the version that is served", ["version"], **on)
        self.failed = prometheus.Gauge("shop_load_failed", "1 while the current version cannot be loaded", **on)
        self.drift = prometheus.Gauge("shop_drift", "PSI of departments, KS of size and score", ["what"], **on)
        self.alert = prometheus.Gauge("shop_drift_alert", "1 where drift is beyond its limit", ["what"], **on)
        self.feedback = prometheus.Counter("shop_feedback", "What became of offers", ["event"], **on)

    def text(self, shelf: Shelf) -> bytes:
        """All of it, with drift as it is now."""
        self.model.clear()
        self.failed.set(bool(shelf.trouble))
        if shelf.served is not None and shelf.monitor is not None:
            self.model.labels(shelf.served.version).set(1)
            for name, value in shelf.monitor.drift().items():
                self.drift.labels(name).set(value)
            for name, beyond in shelf.monitor.alerts().items():
                self.alert.labels(name).set(beyond)
        return prometheus.generate_latest(self.registry)


SAFE = {
    "content-security-policy": "default-src 'self'; img-src data:; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}


OPEN = {"/", "/page.css", "/page.js", "/health", "/ready", "/openapi.json"}  # what needs no key


COST = {"/explain": 10.0, "/bundle": 5.0, "/search": 2.0}  # tokens of a request; 1 for all others


class Around:
    """Around every request: the key before anything is read, security headers, a number, a metric, a line in the log.

    The line says which route, which key's holder, how long and what status; never a query, a body, an address. A
    fault of ours leaves no traceback outside.
    """

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics) -> None:
        self.app, self.gate, self.metrics = app, gate, metrics

    def refuse(self, scope: Scope) -> Response | None:
        """An answer for who has no key or asked too often; None lets the request in."""
        if scope["path"] in OPEN:
            return None
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        bearer = headers.get(b"authorization", "").removeprefix("Bearer ")
        holder = self.gate.holder(headers.get(b"x-api-key") or bearer)
        if holder is None:
            text = "Send a valid key in the header X-API-Key."
            return trouble(401, text, **{"WWW-Authenticate": "APIKey"})
        scope.setdefault("state", {})["holder"] = holder
        wait = self.gate.wait(holder, COST.get(scope["path"], 1))
        text = "Too many requests for this key; wait a little."
        return trouble(429, text, **{"Retry-After": str(1 + int(wait))}) if wait else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, number, status = time.perf_counter(), secrets.token_hex(8), 0
        added = [(k.encode(), v.encode()) for k, v in {**SAFE, "x-request-id": number}.items()]

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        try:
            await (self.refuse(scope) or self.app)(scope, receive, answer)
        except Exception:
            if status:  # the answer is on its way: whoever is further out must end it
                raise
            log.exception("request %s failed", number)
            await trouble(500, f"Something failed here; it is in our log as {number}.")(scope, receive, answer)
        finally:
            route, took = getattr(scope.get("route"), "path", "none"), time.perf_counter() - start
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(took)
            line = {"at": round(time.time(), 3), "id": number, "method": scope["method"], "route": route}
            line |= {"status": status, "ms": round(1000 * took, 2), "key": scope.get("state", {}).get("holder", "")}
            log.info(json.dumps(line))


class Desk:
    """What the routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.shelf = settings, Shelf(settings)
        self.gate, self.metrics = Gate(settings), Metrics()
        self.one_at_a_time = anyio.CapacityLimiter(1)

    async def apart(self, work: Callable[[], Any]) -> Any:
        """Do in a thread, one at a time, what takes long: it must not stand in the way of what does not."""
        if self.one_at_a_time.statistics().tasks_waiting >= 20:
            raise Refused("Busy with other searches and reasons.", status=503, **{"Retry-After": "1"})
        return await anyio.to_thread.run_sync(work, limiter=self.one_at_a_time)

    def ready(self) -> Served:
        """The version that is served now; 503 while there is none."""
        if self.shelf.served is None:
            raise Refused(f"Not ready: {self.shelf.trouble}.", status=503, **{"Retry-After": "2"})
        return self.shelf.served

    def row(self, now: Served, household: str | None) -> int:
        """The ranker's row of a household; a stranger's where it is not known."""
        if household is None:
            return NOBODY
        return now.household.get(pseudonym(household, self.settings.secret), NOBODY)


KEY = APIKeyHeader(name="X-API-Key", auto_error=False)


async def enter(request: Request, key: Annotated[str | None, Depends(KEY)]) -> Desk:
    """What a route works with. `Around` has seen the key; named here, it stands in the OpenAPI schema."""
    return request.app.state.desk


Entered = Annotated[Desk, Depends(enter)]


router = APIRouter()


def offers(now: Served, items: Any, scores: Any = None) -> Offers:
    """Items as they are shown."""
    shown = []
    for place, i in enumerate(items):
        price = float(now.prices[i])
        offer = Offer.model_construct(
            item=now.item_ids[i],
            name=now.names[i],
            department=now.departments[i],
            price=None if price != price else round(price, 2),
            score=None if scores is None else round(float(scores[place]), 4),
        )
        shown.append(offer)
    return Offers.model_construct(items=shown, version=now.version)


def columns(now: Served, items: list[str], where: str) -> np.ndarray:
    """The columns of items, each once; 422 for what the shop does not have."""
    found = [now.column.get(item, -1) for item in items]
    if -1 in found:
        text = "That is not an item of this shop; /search finds items by words."
        raise Refused(text, f"{where}.{found.index(-1)}")
    return np.array(list(dict.fromkeys(found)), dtype=np.int64)


@router.post("/recommend", responses=TROUBLE)
async def recommend(ask: Ask, desk: Entered) -> Offers:
    """What to offer next to an open basket, best first. A household that is not known is a stranger."""
    now = desk.ready()
    basket = columns(now, ask.basket, "body.basket")
    items, scores = now.quick.recommend(basket, desk.row(now, ask.household), ask.moment, ask.k)
    if desk.shelf.monitor is not None and len(basket):
        desk.shelf.monitor.add("department", now.department_codes[basket])
        desk.shelf.monitor.add_number("size", len(basket))
        desk.shelf.monitor.add_number("score", float(scores[0]))
    return offers(now, items, scores)


@router.get("/similar/{item}", responses=TROUBLE)
async def similar(item: ItemId, desk: Entered, k: Annotated[int, Query(ge=1, le=20)] = 5) -> Offers:
    """What could stand in for an item: alike in words, and not bought together."""
    now = desk.ready()
    if item not in now.column:
        raise Refused("No such item; /search finds items by words.", "path.item", 404)
    found = now.similar[now.column[item], :k]
    return offers(now, found[found >= 0])


@router.post("/bundle", responses=TROUBLE)
async def bundle(wish: BundleWish, desk: Entered) -> Offers:
    """A set of items that go together, around the given ones. 422 where none meets all constraints."""
    now = desk.ready()
    seed = columns(now, wish.items, "body.items")
    if len(seed) >= wish.size:
        raise Refused("A bundle needs more items than it starts with.", "body.size")

    def work() -> list[int]:
        constraints = BundleConstraints(now.kinds, now.prices, wish.budget, now.department_codes, wish.departments)
        return make_bundle(seed.tolist(), now.pairs, wish.size, constraints, seed_weight=4)

    try:
        return offers(now, await desk.apart(work))
    except BundleError as error:
        raise Refused(str(error)) from None


@router.get("/search", responses=TROUBLE)
async def search(
    desk: Entered,
    q: Annotated[str, Query(min_length=1, max_length=100, examples=["pasta sauce"])],
    k: Annotated[int, Query(ge=1, le=50)] = 10,
) -> Offers:
    """Items for a shopper's words; the last word may be a beginning."""
    now = desk.ready()
    return offers(now, await desk.apart(lambda: now.search(q, k)))


@router.post("/explain", responses=TROUBLE)
async def reasons(why: Why, desk: Entered) -> Reason:
    """Why an item is offered to an open basket: measured evidence, and a sentence that says no more."""
    now = desk.ready()
    basket = columns(now, why.basket, "body.basket")
    item = int(columns(now, [why.item], "body.item")[0])
    if item in basket:
        raise Refused("It lies in the basket already, so it is not offered.", "body.item")
    query = one_basket(basket, desk.row(now, why.household), why.moment, now.ranker)
    found = await desk.apart(lambda: explain(now.ranker, query, item, now.shop))
    parts = [(now.item_ids[i], name, value) for i, name, value in found.basket]
    told = {n: getattr(found, n) for n in ("sentence", "place", "score", "evidence", "rules", "instead")}
    return Reason(**told, basket=parts, version=now.version)


@router.post("/feedback", status_code=202, responses=TROUBLE)
async def feedback(heard: Feedback, desk: Entered) -> Stored:
    """Keep what became of an offer; a household is kept by its pseudonym."""
    columns(desk.ready(), [heard.item], "body.item")
    household = None if heard.household is None else pseudonym(heard.household, desk.settings.secret)
    entry = {"at": round(time.time(), 3), "item": heard.item, "event": heard.event, "household": household}
    if not keep(desk.settings.folder / "feedback.jsonl", entry, desk.settings.max_feedback):
        raise Refused("There is no room for more feedback; tell the shop.", status=503)
    desk.metrics.feedback.labels(heard.event).inc()
    return Stored(stored=True)


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/ready", responses={503: TROUBLE[503]})
async def is_ready(request: Request) -> dict[str, str]:
    """A model is loaded; which one."""
    return {"status": "ready", "version": request.app.state.desk.ready().version}


@router.get("/metrics", response_class=Response, responses={401: TROUBLE[401], 429: TROUBLE[429]})
async def measured(desk: Entered) -> Response:
    """Counts and times for Prometheus."""
    return Response(desk.metrics.text(desk.shelf), media_type=prometheus.CONTENT_TYPE_LATEST)


async def page(request: Request) -> FileResponse:
    """The page, its style and its script."""
    return FileResponse(PAGE / PAGES[request.url.path])


PAGES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}


for address in PAGES:
    router.add_api_route(address, page, include_in_schema=False)


async def refused(request: Request, error: Any) -> Response:
    """What we refuse, and what Starlette refuses, in one form."""
    return trouble(error.status_code, str(error.detail), getattr(error, "fields", []), **(error.headers or {}))


async def invalid(request: Request, error: Any) -> Response:
    """What the types refuse, in the same form, without what was sent."""
    fields = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()[:10]]
    return trouble(422, "Please change what `fields` names.", fields)


def create_app(settings: Settings | None = None, model: Served | None = None) -> FastAPI:
    """The application. `settings`: else from the folder of `make serve`; `model`: served as it is, without a folder.

    It answers /health at once, /ready and all else when a version has been loaded.
    """
    desk = Desk(settings or settings_from(default_folder()))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if model is not None:
            desk.shelf.put(model)
        watching = asyncio.create_task(desk.shelf.watch()) if model is None else None
        yield
        if watching:
            watching.cancel()

    app = FastAPI(
        title="What goes with what",
        description="Offers for an open basket, what is alike, bundles, search, and why.",
        version="1",
        lifespan=lifespan,
        max_body_size=desk.settings.max_body,
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: refused, RequestValidationError: invalid},
    )
    app.state.desk = desk
    app.include_router(router)
    app.add_middleware(Around, gate=desk.gate, metrics=desk.metrics)
    return app


def keep(file: Path, entry: dict[str, Any], most: int) -> bool:
    """Append a line in one write; a line that a crash cut short is closed first. False where there is no room."""
    line = json.dumps(entry).encode() + b"\n"
    with open(file, "ab+") as stream:
        size = stream.tell()
        if size + len(line) > most:
            return False
        if size:
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
    return True


def main() -> None:
    """Build what is missing (a version, a key), then serve."""
    import uvicorn
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(prog="python -m recutils.service", description="Serve the book's shop.")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="artefacts (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--rate", type=float, default=50, help="requests a second for one key")
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    settings = settings_from(asked.folder, rate=asked.rate, burst=2 * asked.rate)
    if not (asked.folder / "CURRENT").exists():
        print(
            "Building what is to be served: half a minute, or some minutes where the book's cache is empty.", flush=True
        )
        try:
            book_shop(asked.folder, settings.secret)
        except ImportError as error:
            sys.exit(
                f"No version in {asked.folder}, and what builds one is not installed ({error.name}); save one there."
            )
    if not settings.keys:
        key = new_key(asked.folder, "first")
        settings = settings_from(asked.folder, rate=asked.rate, burst=2 * asked.rate)
        print(f"A key, shown this once: {key}\nThe page: http://{asked.host}:{asked.port}/#key={key}", flush=True)
    threadpool_limits(1)  # small products: a second thread costs more than it brings
    uvicorn.run(
        create_app(settings),
        host=asked.host,
        port=asked.port,
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=500,
    )
