"""The page from hand-made results, without any run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from evaluation_run import HOSTILE

from llm4sbr_ray.evaluation.metrics import METRICS
from llm4sbr_ray.evaluation.plots import MARKERS, SERIES, Line, line_plot
from llm4sbr_ray.evaluation.protocol import PROTOCOLS
from llm4sbr_ray.evaluation.report import ReportData, duration, metric_name, number, percent, render_report

VOID = {"meta", "br", "input", "path", "use", "rect", "link"}


class Outline(HTMLParser):
    """Collects ids, and checks that every element is closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        urls = [value for name, value in attrs if name in ("src", "href", "xlink:href", "action") and value]
        self.fetched += [url for url in urls if not url.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


def model(label: str, value: float) -> dict[str, Any]:
    figures = {key: value for metric in METRICS for key in (metric, f"{metric}_std")}
    return {
        "label": label,
        "seeds": [0, 1],
        **dict.fromkeys(PROTOCOLS, figures),
        "train_samples_per_second": 12345.6,
        "seconds": 75.2,
        "epochs": [2, 2],
        "best_epochs": [1, 2],
    }


def report_data(**changes: Any) -> ReportData:
    names = {"sknn": ("Session-kNN", 0.111), "srgnn": ("SR-GNN", 0.0888)}
    groups = [
        {
            "group": group,
            "samples": 10,
            "models": {name: {way: {"recall@20": 0.1, "mrr@20": 0.05} for way in PROTOCOLS} for name in names},
        }
        for group in ("1 click", "2 clicks")
    ]
    metrics = {
        "run": "hand-made",
        "dataset": HOSTILE,
        "protocol": "full ranking over 7 items",
        "counts": {
            "train_samples": 1000,
            "test_samples": 100,
            "items": 7,
            "test_samples_with_repeated_target": 3,
            "test_samples_with_cold_target": 2,
        },
        "models": {name: model(*figures) for name, figures in names.items()},
        "perspectives": {},
        "comparisons": [],
        "breakdown": {"session_length": groups, "target_popularity": groups},
    }
    history = [
        {"epoch": 1, "loss": 3.0, "valid_mrr@20": 0.01},
        {"epoch": 2, "loss": 2.0, "valid_mrr@20": 0.02},
    ]
    values: dict[str, Any] = {
        "metrics": metrics,
        "curves": {"sknn": {0: []}, "srgnn": {0: history, 1: history}},
        "select_by": "mrr@20",
        "refused": {HOSTILE: 4},
        "stages": {"ingest": {"rows": 1100, "seconds": 3700.0}},
        "examples": [],
    }
    return ReportData(**(values | changes))


def test_the_page_is_one_file_without_scripts_or_anything_to_fetch() -> None:
    found = outline(render_report(report_data()))
    assert "script" not in found.tags
    assert "b" in found.tags  # ours; the hostile title's is escaped
    assert found.fetched == []
    assert len(found.ids) == len(set(found.ids))


def test_the_best_of_a_column_is_marked_and_spreads_are_shown() -> None:
    page = render_report(report_data())
    assert page.count('<td class="best">11.10 <small>± 11.10</small></td>') == len(METRICS) * len(PROTOCOLS)
    assert "<td>8.88 <small>" in page


def test_titles_of_a_data_set_and_reasons_are_escaped() -> None:
    page = render_report(report_data())
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;document.title") >= 3


def test_an_answer_that_failed_shows_its_error() -> None:
    example = {
        "clicked": ["Soap"],
        "earlier": 8,
        "next": "Towel",
        "perspectives": [
            {"name": "taste", "answer": None, "error": "too <long>", "grounded": False, "exact": False, "items": []}
        ],
        "lists": {p: [{"label": "SR-GNN", "items": [{"title": "Towel", "hit": True}]}] for p in PROTOCOLS},
    }
    page = render_report(report_data(examples=[example]))
    assert "too &lt;long&gt;" in page
    assert "after 8 earlier" in page
    assert '<ol start="9">' in page
    assert '<li class="hit">Towel</li>' in page


def test_the_cost_stands_beside_its_plan() -> None:
    answered = {"rows": 9, "errors": 0, "exact_title_rate": 0.5, "grounded_rate": 1.0, "rows_per_second": 3.0}
    tokens = {"prompt_tokens": 1200, "generated_tokens": 340}
    planned = tokens | {"seconds": None, "gpu_hours": None, "money": None}
    cost = {"prompt_tokens": 1100, "generated_tokens": 90, "seconds": 60.0, "gpu_hours": 0.25, "money": 1.5}
    data = report_data(stages={"perspectives": {"rows": 9, "seconds": 70.0, "cost": cost | {"planned": planned}}})
    data.metrics["perspectives"] = {"taste": answered | tokens}
    page = " ".join(render_report(data).split())
    assert "planned</th><td>1,200</td><td>340</td><td>n/a</td> <td>n/a</td><td>no price set</td>" in page
    assert "measured</th><td>1,100</td><td>90</td><td>60.0</td> <td>0.250</td><td>1.50</td>" in page


def test_a_perspective_about_items_names_no_title() -> None:
    data = report_data()
    figures = {"rows": 9, "items_answered": 4, "grounded_rate": 1.0, "errors": 0, "rows_per_second": None}
    data.metrics["perspectives"] = {"tags": figures | {"prompt_tokens": 0, "generated_tokens": 0}}
    page = " ".join(render_report(data).split())
    assert "tags</th><td>9</td><td>0</td><td>n/a</td> <td>100.0%</td><td>0</td><td>0</td><td>n/a</td>" in page
    assert "What it cost" not in page


def test_no_two_of_many_models_look_alike() -> None:
    looks = {(series % len(SERIES), series % len(MARKERS)) for series in range(30)}
    assert len(looks) == 30


def test_plots_take_their_colours_from_the_page() -> None:
    svg = line_plot([Line(0, "A & <b>", [1, 2], [0.5, 0.7])], "epoch", "loss", "curve")
    assert svg.startswith("<svg")
    assert "var(--s0)" in svg
    assert "A &amp; &lt;b&gt;" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert svg == line_plot([Line(0, "A & <b>", [1, 2], [0.5, 0.7])], "epoch", "loss", "curve")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.08784), "8.78"),
        (percent(None), "n/a"),
        (number(1234567), "1,234,567"),
        (number(3.25), "3.2"),
        (number(None), "n/a"),
        (duration(2.04), "2.0 s"),
        (duration(119.7), "2 min 00 s"),
        (duration(3700), "1 h 01 min"),
        (metric_name("recall@20"), "Recall@20"),
        (metric_name("ndcg@5"), "NDCG@5"),
    ],
)
def test_figures_for_people(shown: str, expected: str) -> None:
    assert shown == expected
