"""Settings of the first stage: which tables, and how sessions of them become samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm4sbr_ray.config.section import Section


class DemoShop(Section):
    """The generated shop of `source: demo`."""

    sessions: int = Field(default=4000, ge=50)
    items: int = Field(default=600, ge=40)
    cold_share: float = Field(default=0.1, ge=0, lt=1)  # share of items that appear only near the end of time
    seed: int = 0


class Columns(Section):
    """Names of the columns in the user's tables. `None` = the table has no such column."""

    session_id: str = "session_id"
    items: str = "items"  # layout session: the list of item ids
    item_id: str = "item_id"  # layout event, and the catalogue
    timestamp: str | None = None  # s, ms, us or ns since epoch (told by size), ISO 8601, or a Parquet timestamp
    split: str | None = "split"  # only read when split.by is "column"
    title: str = "title"
    attributes: str | None = "attributes"  # list of strings, or one string


class Split(Section):
    by: Literal["column", "time", "ratio"] = "column"
    test_values: tuple[str, ...] = ("test",)  # by column: these rows are test; "valid" rows count as train
    test_fraction: float = Field(default=0.1, gt=0, lt=1)  # by time: the last sessions; by ratio: hashed by session id
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)  # of the train sessions
    valid_by: Literal["random", "last"] = "random"  # "last": the last train rows (where rows are in time order)


class DataConfig(Section):
    source: Literal["demo", "tables"] = "tables"
    demo: DemoShop = DemoShop()
    sessions: str | None = None  # path or URI of a file or folder: .parquet, .csv[.gz], .jsonl[.gz]
    items: str | None = None  # the catalogue; None: the items are those that the sessions hold
    format: Literal["auto", "parquet", "csv", "jsonl"] = "auto"  # auto: by the file's ending
    layout: Literal["session", "event"] = "session"  # one row a session, or one row an event
    columns: Columns = Columns()
    split: Split = Split()
    samples: Literal["every-prefix", "last-item"] = "every-prefix"
    unknown_items: Literal["quarantine", "drop"] = "quarantine"  # a session with an item that the catalogue lacks
    max_session_items: int = Field(default=1000, ge=2)  # longer ones are quarantined: crawlers, and quadratic cost

    @model_validator(mode="after")
    def _tables_are_named(self) -> DataConfig:
        if self.source == "tables" and self.sessions is None:
            raise ValueError("data.sessions is missing: give the path of the session table, or data.source: demo")
        return self
