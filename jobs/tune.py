"""Search the settings of models: a table of trials, a page, and the config of the best trial.

python jobs/tune.py --config configs/beauty-small.yaml --space configs/spaces/srgnn.yaml [--tune.trials 20 ...]
"""

import sys

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.cli import main
from llm4sbr_ray.evaluation.search import show_search
from llm4sbr_ray.training.tune import tune


def search(run: Run) -> None:
    for model in tune(run):
        show_search(run, model)


if __name__ == "__main__":
    arguments = ["--tune.space" if word == "--space" else word for word in sys.argv[1:]]
    sys.exit(main(search, arguments))
