"""Ids, titles, popularity and search."""

from __future__ import annotations

from serving_run import EVIL_TITLE, V, items_table

from llm4sbr_ray.serving.catalogue import Catalogue


def test_known_and_unknown_ids() -> None:
    table = items_table().set_column(1, "item_id", [[str(j + 100) for j in range(V)]])
    catalogue = Catalogue(table)
    assert catalogue.split_known(["103", 104, "x", 999, "103"]) == ([3, 4, 3], ["x", 999])


def test_popular_items_come_first_and_ties_by_index() -> None:
    assert Catalogue(items_table()).popular_V[:4].tolist() == [7, 0, 1, 2]


def test_labels() -> None:
    catalogue = Catalogue(items_table())
    assert [catalogue.label(j) for j in (2, 3, 4)] == ["Soap number 2", "id-3", EVIL_TITLE]


def test_search() -> None:
    catalogue = Catalogue(items_table())
    assert catalogue.search("", 3) == [7, 0, 1]
    assert catalogue.search("NUMBER soap 1", 3) == [1, 10, 11]  # all words, in any order and case
    assert catalogue.search("id-3", 2) == [3, 30]
    assert catalogue.search("<SCRIPT>", 5) == [4]
    assert catalogue.search("nothing of the kind", 5) == []
