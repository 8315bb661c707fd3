"""The demo shop: a generated catalogue and sessions with a planted taste and a planted need (ours).

The story behind each session:

1. A visitor has a *taste* for the whole session (the long-term intent): a favourite brand, and with it that
   brand's style. Items of the brand are `BRAND_PULL` times, other items of the style `STYLE_PULL` times as
   likely.
2. At any moment the visitor looks for one type of product (the short-term intent). It drifts once or twice in
   a session: mostly to what goes with the type (`GOES_WITH`: a tent, then a sleeping bag), else anywhere.
3. Among the items of the type the popular ones win: item popularity follows a Zipf law, so that many items
   have a handful of clicks and what their titles tell (brand, style, type) is worth knowing.
4. A share `NOISE` of clicks is on any item. No item is clicked twice in a session.
5. New items enter at the end: a share `cold_share` of the catalogue is clicked only in the last `COLD_SPAN`
   of the sessions, which are the test part of a split by time with `test_fraction` 0.1.

Item ids tell nothing. The planted facets of the items (`brand`, `style`, `category`) are also their
attributes; the sessions hold nothing but the clicks and their time.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm4sbr_ray.config import Columns, DemoShop

COLUMNS = Columns(timestamp="timestamp", split="split")  # of the generated tables
BRAND_PULL, STYLE_PULL = 100.0, 12.0
ZIPF_EXPONENT = 1.0
PAIR_SHARE = 0.85  # of the drifts that follow GOES_WITH
NOISE = 0.05
COLD_SPAN = 0.1
MIN_ITEMS, MAX_ITEMS, MEAN_ITEMS = 2, 15, 6.0
START, SPAN_S = 1_735_689_600, 90 * 86_400  # 2025-01-01, 90 days

GOES_WITH = {
    "Tent": "Sleeping Bag",
    "Sleeping Bag": "Sleeping Pad",
    "Sleeping Pad": "Camping Lantern",
    "Camping Lantern": "Camp Stove",
    "Camp Stove": "Cook Set",
    "Cook Set": "Tent",
    "Backpack": "Water Bottle",
    "Water Bottle": "Rain Jacket",
    "Rain Jacket": "Hiking Boots",
    "Hiking Boots": "Hiking Socks",
    "Hiking Socks": "Trekking Poles",
    "Trekking Poles": "Backpack",
    "Coffee Grinder": "Pour-Over Kettle",
    "Pour-Over Kettle": "Coffee Mug",
    "Coffee Mug": "Coffee Grinder",
    "Chef Knife": "Cutting Board",
    "Cutting Board": "Skillet",
    "Skillet": "Saucepan",
    "Saucepan": "Chef Knife",
    "Floor Lamp": "Armchair",
    "Armchair": "Throw Blanket",
    "Throw Blanket": "Cushion",
    "Cushion": "Wool Rug",
    "Wool Rug": "Floor Lamp",
}
STYLES = {
    "Rugged": ("Ridge", "Granite", "Summit", "Boulder", "Gale"),
    "Minimalist": ("Plain", "Line", "Mono", "Quiet", "Studio"),
    "Vintage": ("Heritage", "Attic", "Classic", "Harbour", "Orchard"),
    "Playful": ("Bubble", "Confetti", "Jolly", "Pepper", "Sunny"),
}
BRANDS = {
    "Fjordkin": "Rugged",
    "Torvald & Pike": "Rugged",
    "Kestrelworks": "Rugged",
    "Basalt Row": "Rugged",
    "Nordhem": "Minimalist",
    "Paperlane": "Minimalist",
    "Oku Studio": "Minimalist",
    "Blanc Atelier": "Minimalist",
    "Marlowe Mill": "Vintage",
    "Old Quay": "Vintage",
    "Hazelgate": "Vintage",
    "Tinker & Rose": "Vintage",
    "Zigzoo": "Playful",
    "Lumpkin": "Playful",
    "Happy Otter": "Playful",
    "Pom Parade": "Playful",
}
COLOURS = (
    "Moss",
    "Slate",
    "Sand",
    "Rust",
    "Ivory",
    "Navy",
    "Charcoal",
    "Mustard",
    "Plum",
    "Teal",
    "Copper",
    "Fog",
)


def generate(shop: DemoShop) -> tuple[pa.Table, pa.Table]:
    """The shop's two tables; the same settings give the same tables.

    Parameters
    ----------
    shop
        Numbers of sessions and items, share of cold items, seed.

    Returns
    -------
    sessions
        session_id string, items list<string>, timestamp int64 (seconds, of the last click), split string
        ("test" for the last `COLD_SPAN` of the sessions); in order of time.
    items
        item_id, title, brand, style, category string; attributes list<string>; cold bool.
    """
    rng = np.random.default_rng(shop.seed)
    items = _items(shop, rng)
    clicks = _clicks(shop, rng, items)
    item_ids = items["item_id"].to_pylist()
    times = START + np.sort(rng.integers(0, SPAN_S, shop.sessions))
    test_from = _test_from(shop)
    sessions = pa.table(
        {
            "session_id": [f"s{number:06d}" for number in range(shop.sessions)],
            "items": pa.array([[item_ids[i] for i in session] for session in clicks], pa.list_(pa.string())),
            "timestamp": pa.array(times, pa.int64()),
            "split": ["test" if number >= test_from else "train" for number in range(shop.sessions)],
        }
    )
    return sessions, items


def _test_from(shop: DemoShop) -> int:
    return shop.sessions - round(COLD_SPAN * shop.sessions)


def _items(shop: DemoShop, rng: np.random.Generator) -> pa.Table:
    types = list(GOES_WITH)
    # Every type has an item as far as the number allows, the rest is drawn.
    drawn = [*range(len(types)), *rng.integers(0, len(types), max(0, shop.items - len(types)))][: shop.items]
    names = list(BRANDS)
    rows: dict[str, list[object]] = {"title": [], "brand": [], "style": [], "category": []}
    taken: dict[str, int] = {}
    for number in drawn:
        category, brand = types[number], names[rng.integers(len(names))]
        style = BRANDS[brand]
        line, colour = STYLES[style][rng.integers(5)], COLOURS[rng.integers(len(COLOURS))]
        title = f"{brand} {line} {category}, {colour}"
        taken[title] = taken.get(title, 0) + 1
        if taken[title] > 1:
            title = f"{title} (Edition {taken[title]})"
        for column, value in zip(rows, (title, brand, style, category), strict=True):
            rows[column].append(value)
    n_cold = round(shop.cold_share * shop.items)
    cold = np.zeros(shop.items, bool)
    cold[rng.permutation(shop.items)[:n_cold]] = True
    ids = [f"p{code:06d}" for code in rng.permutation(shop.items) * 7 + 100]
    facets = zip(rows["brand"], rows["category"], rows["style"], strict=True)
    attributes = pa.array([list(facet) for facet in facets], pa.list_(pa.string()))
    return pa.table({"item_id": ids, **rows, "attributes": attributes, "cold": pa.array(cold)})


def _clicks(shop: DemoShop, rng: np.random.Generator, items: pa.Table) -> list[list[int]]:
    """Item numbers of each session, in order of time."""
    types, names = list(GOES_WITH), list(BRANDS)
    type_of = np.array([types.index(value) for value in cast("list[str]", items["category"].to_pylist())])
    brand_of = np.array(items["brand"].to_pylist())
    style_of = np.array(items["style"].to_pylist())
    cold = items["cold"].to_numpy(zero_copy_only=False)
    next_type = np.array([types.index(GOES_WITH[name]) for name in types])
    popularity = (1.0 + rng.permutation(shop.items)) ** -ZIPF_EXPONENT
    pull = {
        name: popularity * np.where(brand_of == name, BRAND_PULL, np.where(style_of == BRANDS[name], STYLE_PULL, 1.0))
        for name in names
    }
    sessions: list[list[int]] = []
    for number in range(shop.sessions):
        free = np.ones(shop.items, bool) if number >= _test_from(shop) else ~cold
        length = int(np.clip(MIN_ITEMS + rng.negative_binomial(3, 3 / (MEAN_ITEMS + 1)), MIN_ITEMS, MAX_ITEMS))
        drifts = set(rng.choice(np.arange(1, length), min(length - 1, int(rng.integers(1, 3))), replace=False).tolist())
        taste = pull[names[rng.integers(len(names))]]
        wanted = int(rng.integers(len(types)))
        session: list[int] = []
        for position in range(length):
            if position in drifts:
                follows = rng.random() < PAIR_SHARE
                wanted = int(next_type[wanted]) if follows else int(rng.integers(len(types)))
            item = _pick(rng, free if rng.random() < NOISE else free & (type_of == wanted), taste)
            if item is None:  # the visitor has seen all there is of this type
                wanted = int(next_type[wanted])
                item = _pick(rng, free & (type_of == wanted), taste)
            if item is None:
                item = _pick(rng, free, taste)
            if item is None:
                break
            free[item] = False
            session.append(item)
        sessions.append(session)
    return sessions


def _pick(rng: np.random.Generator, allowed: npt.NDArray[np.bool_], weight: npt.NDArray[np.float64]) -> int | None:
    candidates = np.flatnonzero(allowed)
    if not len(candidates):
        return None
    total = np.cumsum(weight[candidates])
    return int(candidates[np.searchsorted(total, rng.random() * total[-1], side="right")])
