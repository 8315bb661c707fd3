"""Settings that make the demo small enough for a test."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--config", str(ROOT / "configs" / "demo.yaml")),
    *("--data.demo.sessions", "320", "--data.demo.items", "120"),
    *("--perspectives.pocket.steps", "40", "--perspectives.engine.write_rows", "128"),
    # Compiling takes half a minute on a new machine, a worker process beside the engine's another ten seconds. The
    # tutorial's test has an engine that compiles, as by default. (conftest.py lets the CPU engine do without a worker.)
    *("--perspectives.engine.engine_kwargs", '{"enforce_eager": true, "distributed_executor_backend": "uni"}'),
    *("--train.epochs", "3", "--train.seeds", "0", "--evaluate.example_sessions", "2"),
]

# Few prompts at a time, which no answer depends on: so that there is work left to kill.
SLOW = [
    *("--perspectives.engine.max_num_seqs", "8"),
    *("--perspectives.engine.batch_size", "32", "--perspectives.engine.max_concurrent_batches", "2"),
]
