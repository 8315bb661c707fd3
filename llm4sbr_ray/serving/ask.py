"""One question to the service: start it from a run's bundle, ask for a test session over HTTP, print."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.serving.app import ServeArgs, build_app
from llm4sbr_ray.serving.types import RecommendResponse

TIMEOUT_S = 60
MIN_CLICKS = 3  # a session with something to explain
RECOMMENDED = 5


def ask(run: Run) -> None:
    """Serve `bundle/` of the run on a free local port, ask for its first longer test session, stop Serve.

    Raises
    ------
    UserError
        The run has no bundle or a damaged one; Serve already runs on this cluster.
    """
    app = build_app(ServeArgs(bundle=run.uri("bundle")))
    status = serve.status()
    if status.applications or status.proxies:
        raise UserError("Ray Serve already runs on this cluster: POST to its /recommend, or stop it (serve shutdown)")
    session = _test_session(run)
    port = free_port()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port},
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    try:
        serve.run(app, name="llm4sbr", logging_config=LoggingConfig(log_level="WARNING"))
        url = f"http://127.0.0.1:{port}/recommend"
        answer = _post(url, {"session_id": "ask", "items": [item["item_id"] for item in session], "k": RECOMMENDED})
    finally:
        serve.shutdown()
    _show(session, RecommendResponse.model_validate_json(answer), url)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _test_session(run: Run) -> list[dict[str, Any]]:
    """Catalogue rows of the first test session with `MIN_CLICKS` clicks; failing that of the first."""
    rows = run.read_table("data/test", columns=["items", "is_last"]).to_pylist()
    whole = [row["items"] for row in rows if row["is_last"]]
    chosen = next((items for items in whole if len(items) >= MIN_CLICKS), whole[0])
    catalogue = run.read_table("data/items.parquet", columns=["item_id", "title"])
    return catalogue.take(chosen).to_pylist()


def _post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not find this machine
    with opener.open(request, timeout=TIMEOUT_S) as response:
        return bytes(response.read())


def _show(session: list[dict[str, Any]], answer: RecommendResponse, url: str) -> None:
    console = Console()
    clicks = Table("", "the visitor clicked", box=None, pad_edge=False)
    for number, item in enumerate(session, start=1):
        clicks.add_row(str(number), _plain(item["title"] or item["item_id"]))
    table = Table("", "recommended next", "score", "why", title_justify="left")
    for rank, found in enumerate(answer.recommendations, start=1):
        label, why = found.title or found.item_id, found.explanation.text if found.explanation else ""
        table.add_row(str(rank), _plain(label), f"{found.score:.3f}", _plain(why))
    console.print(f"POST {url}  ({answer.model}, version {answer.version})", style="dim", highlight=False)
    for block in ("", clicks, "", table):
        console.print(block)
    source = "predicted from the clicks" if answer.llm_clicks is None else "a stored answer of the LLM"
    console.print(f"Intents: {source}. Answered in {answer.timings_ms['total']:.1f} ms.", highlight=False)


def _plain(text: str) -> Text:
    """Untrusted text: no markup, no terminal control codes."""
    return Text("".join(char if char.isprintable() else " " for char in text))
