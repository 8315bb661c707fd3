"""Ask the service of a run for one recommendation, over HTTP, and print it with its explanation.

python jobs/ask.py --config configs/demo.yaml
"""

import sys

from llm4sbr_ray.cli import main
from llm4sbr_ray.serving.ask import ask

if __name__ == "__main__":
    sys.exit(main(ask, writes=False))
