"""All stages of a run, in order; what is committed is skipped, what was interrupted goes on.

python jobs/pipeline.py --config configs/demo.yaml [--train.epochs 3 ...]
"""

import sys

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.cli import main
from llm4sbr_ray.data.ingest import ingest
from llm4sbr_ray.evaluation.evaluate import evaluate
from llm4sbr_ray.models.build import is_llm4sbr, reads_texts
from llm4sbr_ray.perspectives.infer import infer
from llm4sbr_ray.perspectives.intents import encode_items
from llm4sbr_ray.serving.bundle import export
from llm4sbr_ray.training.trainer import train


def pipeline(run: Run) -> None:
    """Tables -> samples -> perspectives -> models -> report -> bundle. Without an LLM4SBR model, no LLM is asked."""
    models = run.config.train.models
    ingest(run)
    if any(map(is_llm4sbr, models)):
        infer(run)
    elif any(map(reads_texts, models)):
        encode_items(run)
    train(run)
    evaluate(run)
    if any(map(is_llm4sbr, models)):
        export(run)


if __name__ == "__main__":
    sys.exit(main(pipeline))
