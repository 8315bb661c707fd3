"""An LLM that reads sessions for a running service, as the pipeline had it read those of the run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Candidates, Perspective, Perspectives, Text
from llm4sbr_ray.perspectives.engine import Tokenise, processor_config
from llm4sbr_ray.perspectives.intents import Localise
from llm4sbr_ray.perspectives.model_files import local_model
from llm4sbr_ray.serving.cache import CachedIntents


class SessionReader:
    """A vLLM engine in this process, with the prompts and the localisation of a run.

    Parameters
    ----------
    run
        Location of the run: its catalogue, its items' text embeddings, and its pocket LM where no model is configured.
    perspectives
        As the run has them; `engine` may differ. Those that are not asked about sessions are left to the predictor.
    text
        As the run has it.
    """

    def __init__(self, run: str, perspectives: Perspectives, text: Text) -> None:
        store = Store(run)
        self._folder = tempfile.TemporaryDirectory()  # of a model from a bucket, as long as the engine lives
        model = local_model(perspectives.model or store.uri("pocket-lm"), self._folder.name)
        self._views, self._max_items = perspectives.views, perspectives.max_items
        asking = perspectives.model_copy(update={"views": session_views(perspectives)})
        self._tokenise = Tokenise(model, store.uri("data"), asking)
        self._localise = Localise(run, perspectives, text)
        processor = processor_config(model, asking)
        os.environ.update((processor.runtime_env or {}).get("env_vars", {}))  # vLLM reads them when it is imported
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import StructuredOutputsParams

        self._params = {}
        for name, params in self._tokenise.params.items():
            form = params["structured_outputs"]
            outputs = form and StructuredOutputsParams(**form)
            self._params[name] = SamplingParams(**params | {"structured_outputs": outputs})
        settings = {name: value for name, value in processor.engine_kwargs.items() if name != "task_type"}  # Ray's own
        self._llm = LLM(model=model, **settings)
        self._adapter = None
        if perspectives.lora:
            self._adapter_folder = tempfile.TemporaryDirectory()
            path = local_model(perspectives.lora, self._adapter_folder.name)
            self._adapter = LoRARequest(lora_name=perspectives.lora, lora_int_id=1, lora_path=path)

    def read(self, sessions: Sequence[Sequence[int]]) -> list[CachedIntents | None]:
        """What the LLM says of each session (item indices in click order), localised; None: nothing grounded."""
        asked = [(row, p) for row in range(len(sessions)) for p, v in enumerate(self._views) if v.name in self._params]
        names = [self._views[p].name for _, p in asked]
        windows = [sessions[row][-self._max_items :] for row, _ in asked]
        prompts: list[Any] = [
            {"prompt_token_ids": self._tokenise.tokens(name, window)[0]}
            for name, window in zip(names, windows, strict=True)
        ]
        params = [self._params[name] for name in names]
        outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter)
        texts = [" ".join(output.outputs[0].text.split()) for output in outputs]
        faults = [self._tokenise.questions[name].fault(text) for name, text in zip(names, texts, strict=True)]
        answers = ["" if fault else text for text, fault in zip(texts, faults, strict=True)]  # "" resembles no item
        found = self._localise(pa.table({"answer": pa.array(answers, pa.string())})).to_pylist()
        P, R = len(self._views), len(found[0]["item_idx"])
        item_NPR = np.zeros((len(sessions), P, R), np.int32)
        weight_NPR = np.zeros((len(sessions), P, R), np.float32)
        grounded_NP = np.zeros((len(sessions), P), np.bool_)
        for (row, p), answer in zip(asked, found, strict=True):
            item_NPR[row, p], weight_NPR[row, p] = answer["item_idx"], answer["weight"]
            grounded_NP[row, p] = answer["grounded"]
        return [
            CachedIntents(item_PR, weight_PR, grounded_P) if grounded_P.any() else None
            for item_PR, weight_PR, grounded_P in zip(item_NPR, weight_NPR, grounded_NP, strict=True)
        ]


def session_views(perspectives: Perspectives) -> tuple[Perspective, ...]:
    """The perspectives that an LLM is asked about a session; not those whose candidates are counted by the run."""
    views = (view for view in perspectives.views if not isinstance(view.output, Candidates))
    return tuple(view for view in views if view.level == "session")
