"""Requests and answers of the service, and its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MAX_BODY_BYTES = 256 * 1024
MAX_SESSION_ITEMS = 1000
MAX_ID_CHARS = 256
MAX_K = 100
MAX_BOOSTED = 100
MAX_BOOST = 1000.0


def _whole(value: Any) -> Any:
    """3 for 3.0: to JSON Schema both are integers, and some clients write all numbers so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_id(value: Any) -> Any:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("an id is a string or an integer")
    if isinstance(value, str) and not 1 <= len(value) <= MAX_ID_CHARS:
        raise ValueError(f"an id has 1 to {MAX_ID_CHARS} characters")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer id has at most 64 bits; send a longer one as a string")
    return value


_ID_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS},
        # What every JSON reader keeps whole (RFC 8259, section 6); integers up to 64 bits are taken all the same.
        {"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1},
    ]
}
# 7 and "7" are the same item; an answer repeats what was sent.
Id = Annotated[str | int, BeforeValidator(_check_id), WithJsonSchema(_ID_SCHEMA)]


IdText = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Boost = Annotated[float, Field(strict=True, ge=-MAX_BOOST, le=MAX_BOOST)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecommendRequest(_Message):
    """Body of POST /recommend."""

    session_id: Id
    items: list[Id] = Field(max_length=MAX_SESSION_ITEMS)  # in click order; empty: a visitor who has just come
    k: Annotated[int, BeforeValidator(_whole)] = Field(default=20, ge=1, le=MAX_K, strict=True)
    exclude_seen: bool = Field(default=True, strict=True)  # leave the session's own items out of the ranking
    compare: bool = Field(default=False, strict=True)  # also rank by the clicks alone, without the perspectives
    explain: bool = Field(default=True, strict=True)  # false: a smaller and faster answer without reasons
    explain_clicks: bool = Field(default=False, strict=True)  # also say which clicks moved each item
    block: list[Id] = Field(default=[], max_length=MAX_SESSION_ITEMS)  # never recommended
    boost: dict[IdText, Boost] = Field(default={}, max_length=MAX_BOOSTED)  # item id: what is added to its score


class LocalisedItem(_Message):
    """A catalogue item that shows what a perspective is about."""

    item_id: str
    title: str | None
    weight: float  # the weights of a perspective's items add up to 1 (to 0 if it resembles none)


class PerspectiveIntent(_Message):
    """What one perspective says of the session, and how much it counts."""

    name: str
    source: Literal["llm", "predicted"]  # from the LLM's answer for this session, or by the intent predictor
    gate: float  # alpha_p of the fusion rule
    localised_items: list[LocalisedItem]  # strongest first


class PerspectiveShare(_Message):
    """What one perspective did for one recommended item."""

    name: str
    contribution: float  # part_p . v_j; of a +memory model times the network's weight
    share: float  # |contribution| over the sum of all |contribution|


class CatalogueItem(_Message):
    item_id: str
    title: str | None


class ClickEffect(CatalogueItem):
    """What a clicked item did for one recommended item."""

    effect: float  # the score less what it would be without this item in the session


class MemoryShare(_Message):
    """What followed such clicks in the train sessions, how popular the item is, how near its text is to theirs."""

    contribution: float
    share: float


class Explanation(_Message):
    """All contributions, the memory's too, add up to the item's score without its boost; all shares to 1."""

    text: str  # one sentence for people
    perspectives: list[PerspectiveShare]
    memory: MemoryShare | None  # None: the model has no memory
    clicks: list[ClickEffect] | None  # where `explain_clicks` asked for them: the strongest, largest effect first


class Recommendation(_Message):
    item_id: str
    title: str | None
    score: float  # the model's, plus the boost; training clicks when served_by is "popularity"
    boost: float  # what the request asked to add to it
    explanation: Explanation | None  # None: not asked for


class ScoredItem(_Message):
    item_id: str
    title: str | None
    score: float


class RecommendResponse(_Message):
    """Answer of POST /recommend."""

    session_id: Id
    model: str
    version: str  # content hash of the bundle
    perspectives: list[PerspectiveIntent] | None  # as `explanation.perspectives` names them; None: not asked for
    recommendations: list[Recommendation]  # best first; fewer than k when the catalogue has no more
    clicks_alone: list[ScoredItem] | None  # where `compare` asked for it: the ranking with all perspectives at zero
    ignored_items: list[Id]  # ids of the request that the catalogue lacks
    served_by: Literal["model", "popularity"]
    llm_clicks: int | None  # the LLM's answer is about the first so many known items; None: no answer is known
    timings_ms: dict[str, float]  # encode, intents, rank: each hop with its network; total: all within the service


class SearchResponse(_Message):
    """Answer of GET /items."""

    items: list[CatalogueItem]
