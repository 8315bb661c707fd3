"""Tables -> samples: one stage of a run.

python jobs/ingest.py --config configs/demo.yaml
"""

import sys

from llm4sbr_ray.cli import main
from llm4sbr_ray.data.ingest import ingest

if __name__ == "__main__":
    sys.exit(main(ingest))
