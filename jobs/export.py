"""A trained LLM4SBR model -> the bundle that serving takes: one stage of a run.

python jobs/export.py --config configs/demo.yaml
"""

import sys

from llm4sbr_ray.cli import main
from llm4sbr_ray.serving.bundle import export

if __name__ == "__main__":
    sys.exit(main(export))
