"""Samples -> answers of the LLM -> intents: one stage of a run.

python jobs/infer.py --config configs/demo.yaml [--retry-errors]
"""

import argparse
import sys
from functools import partial

from llm4sbr_ray.cli import main
from llm4sbr_ray.perspectives.infer import infer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="jobs/infer.py", usage="%(prog)s --config FILE [options] [settings]", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--retry-errors", action="store_true", help="ask again what has an error, and nothing else")
    own, settings = parser.parse_known_args()
    if {"-h", "--help"} & set(settings):
        parser.print_help()
    sys.exit(main(partial(infer, retry_errors=own.retry_errors), settings))
