"""The pool of vLLM actors: one Ray Data pipeline from asked prompts to answers, resumable row by row.

Ray Data checkpointing (`DataContext.checkpoint_config`) records the keys of every written block, so a killed run asks
only what it had not written. Prompts are tokenised and bounded here rather than by Ray's own chat-template and
tokenizer stages: one pass, exact token counts, and no prompt that the engine would refuse for its length.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data.llm import Processor, build_processor, vLLMEngineProcessorConfig
from ray.exceptions import ActorDiedError

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Candidates, Engine, Perspectives, Text
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.metrics import count_prompts
from llm4sbr_ray.perspectives import lora
from llm4sbr_ray.perspectives.model_files import local_model
from llm4sbr_ray.perspectives.outputs import Question, questions
from llm4sbr_ray.perspectives.prompts import candidate_line, control_tokens, messages, neutralise
from llm4sbr_ray.perspectives.written import checkpoint

HELPER_CPUS = 0.25  # of each stage around the engine: with one CPU each, a small cluster could not run them at once
_FIELDS: list[pa.Field[Any]] = [
    pa.field("prompt_key", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("generated_tokens", pa.int32()),
    pa.field("error", pa.string()),
    pa.field("shortened", pa.bool_()),  # the prompt lost items to a context too short for them
    pa.field("answered_at", pa.float64()),  # seconds since epoch: the steady rate is taken from these
    pa.field("engine_seconds", pa.float64()),  # with the engine, waiting for its turn included; 0 for an error
]
ANSWER_SCHEMA = pa.schema(_FIELDS)
# One type for all perspectives, so that blocks of several can be joined.
_STRUCTURED: list[pa.Field[Any]] = [pa.field("choice", pa.list_(pa.string())), pa.field("json", pa.string())]
_SAMPLING: list[pa.Field[Any]] = [
    pa.field("max_tokens", pa.int32()),
    pa.field("temperature", pa.float64()),
    pa.field("top_p", pa.float64()),
    pa.field("seed", pa.int64()),
    pa.field("structured_outputs", pa.struct(_STRUCTURED)),  # null: free text
]
SAMPLING_TYPE = pa.struct(_SAMPLING)


def uses_gpu(config: Engine | Text) -> bool:
    """Whether actors of the engine, or of the text encoder, go to GPUs: as configured, or where the cluster has any."""
    if config.device == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return config.device == "gpu"


def actor_bundle(engine: Engine) -> dict[str, float]:
    """Resources of one worker of one engine actor (an actor has tensor x pipeline parallel of them)."""
    bundle = {"CPU": engine.cpus_per_actor}
    return bundle | {"GPU": 1.0} if uses_gpu(engine) else bundle


def ask(asked: Store, answers: Store, done: Store, model: str, catalogue: str, config: Perspectives) -> None:
    """Have every prompt under `asked` answered, into Parquet files under `answers`.

    Parameters
    ----------
    asked
        Parquet rows (prompt_key, view, items, candidates): unique prompts, in an order that keeps common prefixes
        together.
    answers
        Rows of `ANSWER_SCHEMA`; `error` is null where there is an answer. Files of an earlier try stay valid.
    done
        Where Ray Data keeps the keys of written blocks.
    model
        Hugging Face name, a path that every node can read, or the URI of a folder.
    catalogue
        Location of the folder with items.parquet, whose titles the prompts show.

    Raises
    ------
    UserError
        An actor did not start (the model cannot be loaded, or vLLM refuses a setting), or died again and again.
    """
    engine = config.engine
    refuse_unknown(engine)
    found = questions(Store(catalogue), config)
    constrained = {name: replace(q, lines=[]) for name, q in found.items() if q.view.output != "text"}
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = checkpoint(done)
    try:
        prompts = ray.data.read_parquet(
            asked.path(), filesystem=asked.fs, num_cpus=HELPER_CPUS, override_num_blocks=len(asked.files())
        ).map_batches(
            Tokenise,
            fn_constructor_args=(model, catalogue, config),
            batch_format="pyarrow",
            batch_size=engine.batch_size * 4,
            num_cpus=HELPER_CPUS,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=engine.actors[1]),
        )
        answered = processor(model, config)(prompts).map_batches(
            extract,
            fn_kwargs={"constrained": constrained},
            batch_format="pandas",
            batch_size=engine.batch_size,
            num_cpus=HELPER_CPUS,
        )
        answered.write_parquet(
            answers.path(),
            filesystem=answers.fs,
            ray_remote_args={"num_cpus": HELPER_CPUS},
            min_rows_per_file=engine.write_rows,
        )
    except ActorDiedError as error:
        raise (not_started if error.actor_init_failed else died)(error, model) from error
    finally:
        context.checkpoint_config = None


def refuse_unknown(engine: Engine) -> None:
    """Say here which setting vLLM does not know: an actor would only fail to start, after a minute."""
    from vllm import AsyncEngineArgs

    if unknown := engine.engine_kwargs.keys() - {field.name for field in fields(AsyncEngineArgs)}:
        raise UserError(f"perspectives.engine.engine_kwargs: vLLM has no setting {', '.join(sorted(unknown))}")


def not_started(error: ActorDiedError, model: str) -> UserError:
    """What to say where the constructor of an actor has failed: the last error of the worker's traceback."""
    text = str(error)
    causes = list(re.finditer(r"^[\w.]*(?:Error|Exception)\b", text, re.MULTILINE))
    reason = " ".join(text[causes[-1].start() if causes else 0 :].split())[:400]
    return UserError(
        f"perspectives.model: {model!r} did not start with the settings of perspectives.engine: {reason}. Mend what it "
        "names (is the model folder whole, does vLLM take engine_kwargs, is there memory?) and run again: what was "
        "answered is kept. Where the cause lies in a process of vLLM's own, --cluster.worker_logs true prints it"
    )


def died(error: ActorDiedError, model: str) -> UserError:
    """What to say where an actor has died more often than it may: each start of an engine costs minutes of a GPU."""
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"perspectives.model: an actor with {model!r} died more than perspectives.engine.max_restarts times. The last "
        f"time: {reason}. If memory ran out, lower perspectives.engine.max_num_seqs, max_model_len or kv_cache_gib "
        "(gpu_memory_utilization on a GPU), and run again: what was answered is kept"
    )


def processor(model: str, config: Perspectives) -> Processor:
    """The vLLM stage between prompts and answers."""
    # Ray's own last step with the CPUs of ours, which makes them one task.
    built = build_processor(processor_config(model, config), postprocess_map_kwargs={"num_cpus": HELPER_CPUS})
    # Ray would start an engine that dies of its settings or of a prompt for ever. Deaths by preemption are not counted.
    built.get_stage_by_name("vLLMEngineStage").map_batches_kwargs["max_restarts"] = config.engine.max_restarts
    return built


def processor_config(model: str, config: Perspectives) -> vLLMEngineProcessorConfig:
    """The vLLM stage as Ray Data builds it."""
    engine = config.engine
    on_gpu = uses_gpu(engine)
    engine_kwargs: dict[str, Any] = {
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "dtype": engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "quantization": engine.quantization,
    }
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}
    if on_gpu:
        engine_kwargs["gpu_memory_utilization"] = engine.gpu_memory_utilization
    else:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(engine.kv_cache_gib)))
        if engine.dtype == "auto":
            engine_kwargs["dtype"] = "float32"  # vLLM would take bfloat16, which most CPUs only emulate
        # The prefix cache holds whole blocks: of vLLM's 128 tokens on CPUs a short prompt shares hardly one.
        engine_kwargs["block_size"] = 32
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # Ray shares the cores; pinning all to one would starve it
    from_bucket = any("://" in name for name in (model, config.lora or ""))
    if from_bucket and "AWS_ENDPOINT_URL" in os.environ:  # Ray, which copies the files, knows another name of it
        os.environ.setdefault("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
        environment["AWS_ENDPOINT_URL_S3"] = os.environ["AWS_ENDPOINT_URL_S3"]
    if config.lora:
        engine_kwargs |= lora.engine_settings(config.lora)
    engine_kwargs |= engine.engine_kwargs
    return vLLMEngineProcessorConfig(
        # Ray copies a model from a bucket to the node, with pyarrow rather than boto3 if its URI begins so.
        model_source=f"pyarrow-{model}" if "://" in model else model,
        engine_kwargs=engine_kwargs,
        dynamic_lora_loading_path=config.lora and lora.adapter_folder(config.lora),
        concurrency=engine.actors if engine.actors[0] < engine.actors[1] else engine.actors[1],
        batch_size=engine.batch_size,
        max_concurrent_batches=engine.max_concurrent_batches,
        # All rows of these batches wait within vLLM, so that another is there for each that ends.
        max_pending_requests=engine.batch_size * engine.max_concurrent_batches,
        # Ray's own default turns vLLM's statistics on again: a dozen histograms, each updated for every row.
        log_engine_metrics=not engine_kwargs["disable_log_stats"],
        should_continue_on_error=True,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        placement_group_config={"bundle_per_worker": actor_bundle(engine)},
        runtime_env={"env_vars": environment},
    )


class Tokenise:
    """Ray Data actor: (prompt_key, view, items, candidates) -> what the vLLM stage takes."""

    def __init__(self, model: str, catalogue: str, config: Perspectives) -> None:
        from transformers import AutoTokenizer

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a batch would take all cores, which are the engine's
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer = AutoTokenizer.from_pretrained(local_model(model, folder, weights=False))
        self.config = config
        self.questions = questions(Store(catalogue), config)
        control = control_tokens(self.tokenizer)
        self.lines = {
            name: [neutralise(line, control) for line in question.lines] for name, question in self.questions.items()
        }
        self.params = {name: _sampling_params(question, config) for name, question in self.questions.items()}
        self._lengths: dict[tuple[str, int], int] = {}

    def offer(self, view: str, candidates: Sequence[int]) -> list[str]:
        """The titles of the first candidates, as many as half of the prompt takes.

        One that holds a control token is left out: it could not be written as it stands.
        """
        room = self._room(view) // 2
        offered: list[str] = []
        for item in candidates:
            title = self.questions[view].lines[item]
            if self.lines[view][item] != title:
                continue
            if (view, item) not in self._lengths:
                line = candidate_line(title) + "\n"
                self._lengths[view, item] = len(self.tokenizer.encode(line, add_special_tokens=False))
            room -= self._lengths[view, item]
            if room < 0:
                break
            offered.append(title)
        return offered

    def tokens(self, view: str, items: Sequence[int], offered: Sequence[str] = ()) -> tuple[list[int], bool]:
        """Token ids of one prompt, with as many of the last items as the engine's context takes; whether not all."""
        (found,) = self.batch_tokens([(view, items, offered)])
        return found

    def batch_tokens(self, rows: Sequence[tuple[str, Sequence[int], Sequence[str]]]) -> list[tuple[list[int], bool]]:
        """`tokens` of (view, items, offered) each: one call of the tokenizer, and one more while some are too long."""
        tokens: list[list[int]] = [[] for _ in rows]
        left_out = [0] * len(rows)
        pending = list(range(len(rows)))
        while pending:
            chats = [self._chat(*rows[row], left_out[row]) for row in pending]
            found = self.tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, return_dict=False, **self.config.chat_template_kwargs
            )
            too_long = []
            for row, ids in zip(pending, found, strict=True):
                view, items, _ = rows[row]
                tokens[row] = ids
                if len(ids) > self._room(view) and left_out[row] < len(items) - 1:
                    left_out[row] += 1
                    too_long.append(row)
            pending = too_long
        return [(ids, number > 0) for ids, number in zip(tokens, left_out, strict=True)]

    def _chat(self, view: str, items: Sequence[int], offered: Sequence[str], left_out: int) -> list[dict[str, str]]:
        question = self.questions[view]
        shown = [self.lines[view][item] for item in items[left_out:]]
        return messages(question.view, shown, question.choices, offered)

    def _room(self, view: str) -> int:
        """Tokens that the engine's context has for a prompt."""
        return self.config.engine.max_model_len - int(self.params[view]["max_tokens"])

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        views: list[Any] = batch["view"].to_pylist()
        items: list[Any] = batch["items"].to_pylist()
        candidates: list[Any] = batch["candidates"].to_pylist()
        offered = [found and self.offer(view, found) for view, found in zip(views, candidates, strict=True)]
        rows = [(view, shown, titles or ()) for view, shown, titles in zip(views, items, offered, strict=True)]
        tokens, cut = zip(*self.batch_tokens(rows), strict=True)
        fewer = [bool(found) and len(titles) < len(found) for found, titles in zip(candidates, offered, strict=True)]
        shortened = [first or last for first, last in zip(cut, fewer, strict=True)]
        sampling = [
            self.params[view] | {"structured_outputs": self.questions[view].structured(titles)}
            for view, _, titles in rows
        ]
        answers = batch.select(["prompt_key", "view"])
        answers = answers.append_column("tokenized_prompt", pa.array(tokens, pa.list_(pa.int32())))
        answers = answers.append_column("shortened", pa.array(shortened, pa.bool_()))
        answers = answers.append_column("offered", pa.array(offered, pa.list_(pa.string())))
        if self.config.lora:
            answers = answers.append_column("model", pa.array([lora.adapter_name(self.config.lora)] * len(batch)))
        yield answers.append_column("sampling_params", pa.array(sampling, SAMPLING_TYPE))


def _sampling_params(question: Question, config: Perspectives) -> dict[str, Any]:
    return config.sampling_of(question.view).model_dump() | {"structured_outputs": question.structured()}


def extract(batch: Any, constrained: Mapping[str, Question] | None = None) -> pa.Table:
    """The vLLM stage's rows -> `ANSWER_SCHEMA`. `constrained`: the perspectives whose answers have a form to keep."""
    failed = batch["__inference_error__"].fillna("").astype(str)
    text = batch["generated_text"].fillna("").astype(str).str.split().str.join(" ")
    error = failed.mask(failed == "", text.map({"": "empty answer"}))  # null where there is an answer
    for name, question in (constrained or {}).items():
        rows = error.isna() & (batch["view"] == name)
        if isinstance(question.view.output, Candidates):
            pairs = zip(text[rows], batch["offered"][rows], strict=True)
            error[rows] = [question.fault(answer, list(titles)) for answer, titles in pairs]
        else:
            error[rows] = text[rows].map(question.fault)
    text = text.mask(error.notna(), "")
    tokens = (int(batch[name].fillna(0).sum()) for name in ("num_input_tokens", "num_generated_tokens"))
    count_prompts(len(batch), int(error.notna().sum()), *tokens)
    return pa.table(
        {
            "prompt_key": pa.array(batch["prompt_key"].astype(str), pa.string()),
            "answer": pa.array(text, pa.string()),
            "prompt_tokens": pa.array(batch["num_input_tokens"].fillna(0), pa.int32()),
            "generated_tokens": pa.array(batch["num_generated_tokens"].fillna(0), pa.int32()),
            "error": pa.array(error.astype(object).where(error.notna(), None), pa.string()),
            "shortened": pa.array(batch["shortened"].astype(bool), pa.bool_()),
            "answered_at": pa.array(np.full(len(batch), time.time())),
            "engine_seconds": pa.array(batch["time_taken_llm"].clip(lower=0), pa.float64()),  # Ray gives errors -1
        },
        schema=ANSWER_SCHEMA,
    )
