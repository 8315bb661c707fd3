"""The budget: which prompts are asked when not all may be (`perspectives.budget`).

A sample whose prompts are left out has no answer: the intent predictor takes the place of one, as for an error.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Perspectives
from llm4sbr_ray.perspectives import relational

NOT_ASKED = "not asked: perspectives.budget"  # stands as the error of a sample without an answer


def choose(prompts: Store, chosen: Store, data: Store, config: Perspectives) -> int:
    """Write the rows of `prompts` whose question is asked under `config.budget`; returns their number.

    Samples are ranked within their split, all perspectives of a sample next to each other, so a budget is spread over
    the splits as samples are. Perspectives of level item are asked in full, beside the budget: they cost one call an
    item, whatever the number of samples. It counts distinct prompts, whether or not an answer is known already: so the
    same budget chooses the same prompts in each run. A sample with the same prompt as a chosen one gets its answer.

    Parameters
    ----------
    prompts, chosen
        Rows of `render.PROMPT_SCHEMA`.
    data
        The samples, and items.parquet.
    """
    budget = config.budget
    database = relational.connect()
    database.register("rendered", relational.dataset(prompts))
    database.register("bounded", pa.table({"view": [view.name for view in config.views if view.level == "session"]}))
    database.execute("CREATE VIEW prompts AS SELECT * FROM rendered SEMI JOIN bounded USING (view)")
    asked, score = "SELECT sample_key FROM prompts", "0"
    if budget.policy == "one_per_session":
        for split in config.splits:
            database.register(f"samples_{split}", relational.dataset(data, split))
        asked = " UNION ALL ".join(f"SELECT sample_key FROM samples_{split} WHERE is_last" for split in config.splits)
    elif budget.policy == "uncertain":
        database.register("train", relational.dataset(data, "train"))
        n_items = pq.read_metadata(data.path("items.parquet"), filesystem=data.fs).num_rows
        next_item_entropy(database, n_items)
        score = f"coalesce((SELECT nats FROM entropy WHERE item = last_item), ln({n_items}))"
    database.execute(
        "CREATE TABLE samples AS SELECT sample_key, any_value(split) AS split, any_value(items)[-1] AS last_item "
        f"FROM prompts WHERE sample_key IN ({asked}) GROUP BY sample_key"
    )
    # A hash of the key draws among equals, the same ones in every run.
    database.execute(
        "CREATE TABLE ranked AS SELECT sample_key, percent_rank() OVER "
        f"(PARTITION BY split ORDER BY {score} DESC, md5(sample_key)) AS rank FROM samples"
    )
    query = database.sql(
        "SELECT * FROM rendered ANTI JOIN bounded USING (view) UNION ALL "
        "SELECT * FROM prompts SEMI JOIN (SELECT prompt_key FROM prompts JOIN ranked USING (sample_key) "
        "GROUP BY prompt_key ORDER BY min(rank), min(position), prompt_key LIMIT $calls) USING (prompt_key)",
        params={"calls": budget.calls if budget.calls is not None else 2**62},
    )
    return relational.copy_to(query, chosen, "")


def next_item_entropy(database: duckdb.DuckDBPyConnection, n_items: int) -> None:
    """How uncertain click counts are of what follows an item: the table entropy(item, nats).

    Of the first-order Markov chain over the train sessions (table `train`: samples), p(j | i) = (c_ij + 1 / V) /
    (c_i + 1): one pseudo-click spread over the catalogue, so that an item that nothing ever followed has ln V. Items
    without a row are of that kind.
    """
    database.execute(
        "CREATE TABLE entropy AS "
        "WITH whole AS (SELECT list_append(items, target) AS clicks FROM train WHERE is_last), "
        "pairs AS (SELECT unnest(clicks[:-2]) AS item, unnest(clicks[2:]) AS next FROM whole), "
        "counts AS (SELECT item, next, count(*) AS c FROM pairs GROUP BY item, next), "
        f"shares AS (SELECT item, (c + 1 / {n_items}) / (sum(c) OVER (PARTITION BY item) + 1) AS p, "
        f"1 / {n_items} / (sum(c) OVER (PARTITION BY item) + 1) AS rest FROM counts) "
        f"SELECT item, -sum(p * ln(p)) - ({n_items} - count(*)) * any_value(rest * ln(rest)) AS nats "
        "FROM shares GROUP BY item"
    )
