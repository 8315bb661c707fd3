"""Trained models -> metrics.json and the report: one stage of a run.

python jobs/evaluate.py --config configs/demo.yaml
"""

import sys

from llm4sbr_ray.cli import main
from llm4sbr_ray.evaluation.evaluate import evaluate

if __name__ == "__main__":
    sys.exit(main(evaluate))
