"""Samples -> answers of the LLM -> intents: one stage of a run.

python jobs/infer.py --config configs/demo.yaml [--plan | --retry-errors]
"""

import argparse
import sys
from functools import partial

from llm4sbr_ray.cli import main
from llm4sbr_ray.perspectives.infer import infer, plan_inference

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="jobs/infer.py", usage="%(prog)s --config FILE [options] [settings]", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--retry-errors", action="store_true", help="ask again what has an error, and nothing else")
    parser.add_argument("--plan", action="store_true", help="print what would be asked and what it costs; ask nothing")
    own, settings = parser.parse_known_args()
    if {"-h", "--help"} & set(settings):
        parser.print_help()
    sys.exit(main(plan_inference if own.plan else partial(infer, retry_errors=own.retry_errors), settings))
