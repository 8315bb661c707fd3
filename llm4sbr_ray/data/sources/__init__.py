"""Public data sets: raw downloads in, the product's two tables out. One file a data set, one line in `SOURCES`."""

from __future__ import annotations

from llm4sbr_ray.data.sources import amazon, diginetica, movielens_1m, retailrocket, yoochoose
from llm4sbr_ray.data.sources.source import Source

SOURCES: dict[str, Source] = {
    "movielens-1m": movielens_1m.SOURCE,
    "amazon-2014": amazon.SOURCE_2014,
    "amazon-2018": amazon.SOURCE_2018,
    "amazon-2023": amazon.SOURCE_2023,
    "diginetica": diginetica.SOURCE,
    "yoochoose": yoochoose.SOURCE,
    "yoochoose-1-4": yoochoose.SOURCE_4,
    "yoochoose-1-64": yoochoose.SOURCE_64,
    "retailrocket": retailrocket.SOURCE,
}
