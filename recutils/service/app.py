"""The service: recommendations, search, bundles and reasons over HTTP, with keys, limits and metrics. Chapter 07.

`make serve` (or `python -m recutils.service`) starts it on the version that `artifact.save` made current.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import prometheus_client as prometheus
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import APIKeyHeader
from starlette.exceptions import HTTPException

from recutils.bundles import BundleConstraints, BundleError, make_bundle
from recutils.explain.explanation import explain
from recutils.models.base import ANONYMOUS, one_query
from recutils.service.artifact import Artifact
from recutils.service.auth import ServiceSettings, load_settings
from recutils.service.feedback import UNAVAILABLE
from recutils.service.middleware import RequestMiddleware, log
from recutils.service.pseudonyms import pseudonym
from recutils.service.schemas import (
    ERROR_RESPONSES,
    APIError,
    BundleRequest,
    ExplainRequest,
    ExplainResponse,
    FeedbackRequest,
    FeedbackResponse,
    HouseholdsResponse,
    Item,
    ItemId,
    ItemsResponse,
    KnownHousehold,
    RecommendRequest,
    error_response,
)
from recutils.service.state import AppState

PAGE_DIR = Path(__file__).parent / "page"
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
API_KEY = APIKeyHeader(name="X-API-Key", auto_error=False)


async def get_state(request: Request, key: Annotated[str | None, Depends(API_KEY)]) -> AppState:
    """What a route works with. The middleware has seen the key; named here, it stands in the OpenAPI schema."""
    return request.app.state.shared


State = Annotated[AppState, Depends(get_state)]
router = APIRouter()


def items_response(model: Artifact, items: Any, scores: Any = None) -> ItemsResponse:
    """Items as they are shown."""
    shown = []
    for rank, i in enumerate(items):
        price = float(model.prices[i])
        item = Item.model_construct(
            item=model.item_ids[i],
            name=model.names[i],
            department=model.departments[i],
            price=None if price != price else round(price, 2),
            score=None if scores is None else round(float(scores[rank]), 4),
        )
        shown.append(item)
    return ItemsResponse.model_construct(items=shown, version=model.version)


def item_columns(model: Artifact, items: list[str], where: str) -> np.ndarray:
    """The columns of items, each once; 422 for what the shop does not have."""
    found = [model.item_index.get(item, -1) for item in items]
    if -1 in found:
        text = "That is not an item of this shop; /search finds items by words."
        raise APIError(text, f"{where}.{found.index(-1)}")
    return np.array(list(dict.fromkeys(found)), dtype=np.int64)


@router.post("/recommend", responses=ERROR_RESPONSES)
async def recommend(request: RecommendRequest, state: State) -> ItemsResponse:
    """What to offer next to an open basket, best first. A household that is not known is anonymous."""
    model, monitor = state.require_model(request.household), state.store.monitor
    basket = item_columns(model, request.basket, "body.basket")
    household = state.household_row(model, request.household)
    items, scores = model.ranker.recommend_one(basket, household, request.moment, request.k)
    same = model is state.store.model and not (monitor and monitor.anonymous and household != ANONYMOUS)
    if monitor is not None and same and len(basket) and len(scores):
        monitor.count("department", model.department_codes[basket])
        monitor.count_values("size", len(basket))
        monitor.count_values("score", float(scores[0]))
    return items_response(model, items, scores)


@router.get("/similar/{item}", responses=ERROR_RESPONSES)
async def similar(item: ItemId, state: State, k: Annotated[int, Query(ge=1, le=20)] = 5) -> ItemsResponse:
    """What could stand in for an item: alike in words, and not bought together."""
    model = state.require_model()
    if item not in model.item_index:
        raise APIError("No such item; /search finds items by words.", "path.item", 404)
    found = model.substitutes[model.item_index[item], :k]
    return items_response(model, found[found >= 0])


@router.post("/bundle", responses=ERROR_RESPONSES)
async def bundle(request: BundleRequest, state: State) -> ItemsResponse:
    """A set of items that go together, around the given ones. 422 where none meets all constraints."""
    model = state.require_model()
    seed = item_columns(model, request.items, "body.items")
    if len(seed) >= request.size:
        raise APIError("A bundle needs more items than it starts with.", "body.size")

    def work() -> list[int]:
        constraints = BundleConstraints(
            model.kinds, model.prices, request.budget, model.department_codes, request.departments
        )
        return make_bundle(seed.tolist(), model.affinity, request.size, constraints, seed_weight=4)

    try:
        return items_response(model, await state.run_in_worker("explain", work))
    except BundleError as error:
        raise APIError(str(error)) from None


@router.get("/search", responses=ERROR_RESPONSES)
async def search(
    state: State,
    q: Annotated[str, Query(min_length=1, max_length=100, examples=["pasta sauce"])],
    k: Annotated[int, Query(ge=1, le=50)] = 10,
) -> ItemsResponse:
    """Items for a shopper's words; the last word may be a beginning."""
    model = state.require_model()
    return items_response(model, await state.run_in_worker("search", lambda: model.search(q, k)))


@router.post("/explain", responses=ERROR_RESPONSES)
async def explain_offer(request: ExplainRequest, state: State) -> ExplainResponse:
    """Why an item is offered to an open basket: measured evidence, and a sentence that says no more."""
    model = state.require_model(request.household)
    basket = item_columns(model, request.basket, "body.basket")
    item = int(item_columns(model, [request.item], "body.item")[0])
    if item in basket:
        raise APIError("It lies in the basket already, so it is not offered.", "body.item")
    household = state.household_row(model, request.household)
    query = one_query(basket, household, request.moment, model.ranker.n_items)
    found = await state.run_in_worker("explain", lambda: explain(model.ranker, query, item, model.context))
    parts = [(model.item_ids[i], name, value) for i, name, value in found.basket]
    shown = {n: getattr(found, n) for n in ("sentence", "rank", "score", "evidence", "rules", "counterfactual")}
    return ExplainResponse(**shown, basket=parts, version=model.version)


@router.get("/households", responses={c: ERROR_RESPONSES[c] for c in (401, 403, 429, 503)})
async def households(state: State) -> HouseholdsResponse:
    """Households to try the page with; a shop of one's own names none."""
    model = state.require_model()
    known = [KnownHousehold(household=household, habits=habits) for household, habits in model.demonstration]
    return HouseholdsResponse(households=known, version=model.version)


@router.post("/feedback", status_code=202, responses=ERROR_RESPONSES)
async def feedback(request: FeedbackRequest, state: State) -> FeedbackResponse:
    """Keep what became of offers; a household is kept by its pseudonym."""
    item_columns(state.require_model(), [told.item for told in request.events], "body.events")
    household = None if request.household is None else pseudonym(request.household, state.settings.secret)
    shared = {"at": time.time(), "household": household, "version": request.version, "request": request.request}
    try:
        await state.run_in_worker(
            "feedback", partial(state.feedback.add, [told.model_dump() | shared for told in request.events])
        )
    except UNAVAILABLE as error:
        log.error("feedback not kept", extra={"fields": {"error": type(error).__name__}})
        raise APIError("Feedback cannot be kept now; tell the shop.", status=503) from None
    for told in request.events:
        state.metrics.feedback.labels(told.event, state.version_label(request.version)).inc()
    return FeedbackResponse(stored=len(request.events))


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/ready", responses={503: ERROR_RESPONSES[503]})
async def ready(request: Request) -> dict[str, str]:
    """A model is loaded; which one. 503 also while requests are refused, and once the service is told to stop."""
    state = request.app.state.shared
    if reason := state.unready():
        raise APIError(f"Not ready: {reason}.", status=503, **{"Retry-After": "2"})
    return {"status": "ready", "version": state.require_model().version}


@router.get("/metrics", response_class=Response, responses={c: ERROR_RESPONSES[c] for c in (401, 429)})
async def metrics(state: State) -> Response:
    """Counts and times for Prometheus."""
    return Response(state.metrics_text(), media_type=prometheus.CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
@router.get("/page.css", include_in_schema=False)
@router.get("/page.js", include_in_schema=False)
async def page(request: Request) -> FileResponse:
    """The page, its style and its script."""
    return FileResponse(PAGE_DIR / PAGE_FILES[request.url.path])


async def on_http_error(request: Request, error: Any) -> Response:
    """What we refuse, and what Starlette refuses, in one form."""
    return error_response(error.status_code, str(error.detail), getattr(error, "fields", []), **(error.headers or {}))


async def on_validation_error(request: Request, error: Any) -> Response:
    """What the types refuse, in the same form, without what was sent."""
    fields = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()[:10]]
    return error_response(422, "Please change what `fields` names.", fields)


def create_app(settings: ServiceSettings | None = None, model: Artifact | None = None) -> FastAPI:
    """The application. `settings`: else from the folder of `make serve`; `model`: served as it is, without a folder.

    It answers /health at once, /ready and all else when a version has been loaded.
    """
    state = AppState(settings or load_settings())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if model is not None:
            state.store.activate(model)
        watching = asyncio.create_task(state.watch()) if model is None else None
        yield
        if watching:
            watching.cancel()
        for queue in state.queues.values():
            queue.worker.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="What goes with what",
        description="Offers for an open basket, what is alike, bundles, search, and why.",
        version="1",
        lifespan=lifespan,
        max_body_size=state.settings.max_body,
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: on_http_error, RequestValidationError: on_validation_error},
    )
    app.state.shared = state
    app.include_router(router)
    app.add_middleware(RequestMiddleware, state=state)
    return app
