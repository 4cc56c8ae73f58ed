"""Requests and answers of the service (chapter 07)."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException

MAX_BASKET = 200
ItemId = Annotated[str, Field(min_length=1, max_length=64, examples=["25671"])]


ResultCount = Annotated[int, Field(ge=1, le=50, description="how many at most")]


class StrictModel(BaseModel):
    """Nothing may come that is not named."""

    model_config = ConfigDict(extra="forbid")


class RecommendRequest(StrictModel):
    """An open basket, and whose it is, if known."""

    basket: list[ItemId] = Field(default=[], max_length=MAX_BASKET, description="items in the open basket")
    household: str | None = Field(default=None, min_length=1, max_length=64, description="the shop's id of a household")
    moment: datetime | None = Field(default=None, description="the shop's local time of the visit")
    k: ResultCount = 10

    @field_validator("moment")
    @classmethod
    def within_reason(cls, moment: datetime | None) -> datetime | None:
        """A moment that clocks of tills can show."""
        if moment is not None and not 1990 <= moment.year < 2200:
            raise ValueError("a moment lies between 1990 and 2199")
        return moment


class ExplainRequest(RecommendRequest):
    """An open basket and the offer to explain."""

    item: ItemId


class BundleRequest(StrictModel):
    """What a bundle starts with, and its constraints."""

    items: list[ItemId] = Field(min_length=1, max_length=5, description="what the bundle is built around")
    size: int = Field(default=4, ge=2, le=8, description="items in all")
    budget: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False, description="for what is added")
    departments: int = Field(default=1, ge=1, le=8, description="how many departments it spans at least")


class OfferEvent(StrictModel):
    """What became of one offer."""

    item: ItemId
    event: Literal["shown", "added", "refused"]
    rank: int | None = Field(default=None, ge=1, le=50, description="its place among the offers, from 1")


class FeedbackRequest(StrictModel):
    """What became of the offers of one answer."""

    events: list[OfferEvent] = Field(min_length=1, max_length=50)
    household: str | None = Field(default=None, min_length=1, max_length=64)
    version: str | None = Field(default=None, max_length=64, description="of the artefact that offered it")
    request: str | None = Field(default=None, max_length=64, description="x-request-id of the answer that offered it")


class Item(BaseModel):
    """An item, as it is shown."""

    item: str
    name: str
    department: str
    price: float | None
    score: float | None = None


class ItemsResponse(BaseModel):
    """Items, best first."""

    items: list[Item]
    version: str = Field(description="of the artefact that answered")


class ExplainResponse(BaseModel):
    """Why an item is offered."""

    sentence: str
    rank: int | None = Field(description="its rank among the offers, from 1")
    score: float
    evidence: dict[str, float] = Field(description="what each source of evidence adds to the score")
    basket: list[tuple[str, str, float]] = Field(description="(item, name, what it adds), strongest first")
    rules: list[dict[str, Any]]
    counterfactual: tuple[str, str] | None = Field(
        description="(an item of the basket, what would be first without it)"
    )
    version: str


class KnownHousehold(BaseModel):
    """A household of public data, to try the page with."""

    household: str
    habits: str = Field(description="what it buys often and few others do")


class HouseholdsResponse(BaseModel):
    """Households to try the page with."""

    households: list[KnownHousehold]
    version: str


class FeedbackResponse(BaseModel):
    """It was kept."""

    stored: int = Field(description="how many events")


class ErrorResponse(BaseModel):
    """What was wrong, and where."""

    error: str
    fields: list[dict[str, str]] = []


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse, "description": what}
    for code, what in {
        400: "the body cannot be read as JSON",
        401: "no key, or one that is not known",
        403: "the key may not do this",
        404: "no such item",
        405: "another method is wanted",
        413: "the body is too large",
        422: "something in the request must be changed",
        429: "too many requests for this key, or without one",
        503: "no model is loaded yet, or too many requests wait",
    }.items()
}


def error_response(status: int, error: str, fields: Any = None, **headers: str) -> JSONResponse:
    """An answer that says what to change, in plain characters: what was sent may not be text."""
    plain = [{k: v.encode("ascii", "replace").decode()[:200] for k, v in field.items()} for field in fields or []]
    return JSONResponse({"error": error, "fields": plain}, status, headers=headers)


class APIError(HTTPException):
    """A request that cannot be answered; `where` names the field."""

    def __init__(self, error: str, where: str = "", status: int = 422, **headers: str) -> None:
        super().__init__(status, error, headers)
        self.fields = [{"where": where, "what": error}] if where else []
