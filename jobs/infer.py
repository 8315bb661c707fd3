"""Samples -> answers of the LLM -> intents: one stage of a run.

python jobs/infer.py --config configs/demo.yaml
"""

import sys

from llm4sbr_ray.cli import main
from llm4sbr_ray.perspectives.infer import infer

if __name__ == "__main__":
    sys.exit(main(infer))
