"""Samples and intents -> trained models: one stage of a run.

python jobs/train.py --config configs/demo.yaml
"""

import sys

from llm4sbr_ray.cli import main
from llm4sbr_ray.training.trainer import train

if __name__ == "__main__":
    sys.exit(main(train))
