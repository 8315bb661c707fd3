"""Settings of the LLM stage: what is asked, of which LLM, and how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llm4sbr_ray.config.section import NAME_PATTERN, Bounds, Section


class OwnSampling(Section):
    """Of one perspective; what is null is as in `perspectives.sampling`."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None


class Choice(Section):
    """The answer is one of a list. The prompt names it, and decoding allows nothing else."""

    choice: tuple[str, ...] = ()
    choice_from: str | None = None  # instead of a list: the values of this field of the catalogue
    most_frequent: int = Field(default=40, ge=2)  # of choice_from: by the number of items that have it

    @model_validator(mode="after")
    def _one_source(self) -> Choice:
        if bool(self.choice) == (self.choice_from is not None):
            raise ValueError("give either choice (a list) or choice_from (a field of the catalogue)")
        if any(not text or " ".join(text.split()) != text for text in self.choice):
            raise ValueError("a choice is one line of text without repeated white space")
        return self


class Candidates(Section):
    """The answer is one of a sample's own candidates. The prompt lists them, and decoding allows nothing else."""

    candidates: int = Field(ge=2, le=200)  # of a sample: what followed its clicks in train sessions, then popular items


class JsonOutput(Section):
    """The answer is JSON of a schema, by decoding; its values are localised."""

    json_schema: dict[str, Any]


class Perspective(Section):
    """One question that the LLM answers about a session, or about an item."""

    name: str = Field(pattern=NAME_PATTERN)
    instruction: str = ""
    anchor: Literal["global", "local"]  # the behaviour vector it is aligned with
    level: Literal["session", "item"] = "session"  # item: asked once an item; a session then has those of its items
    from_field: str | None = None  # of level item: this field of the catalogue is the answer, and nothing is asked
    fields: tuple[str, ...] = Field(default=("title", "attributes"), min_length=1)  # of the catalogue, shown in prompts
    output: Literal["text"] | Choice | Candidates | JsonOutput = "text"
    sampling: OwnSampling = OwnSampling()

    @model_validator(mode="after")
    def _asks(self) -> Perspective:
        if self.from_field is not None and self.level != "item":
            raise ValueError("from_field: the catalogue answers for items, so level has to be item")
        if isinstance(self.output, Candidates) and self.level == "item":
            raise ValueError("output.candidates: a session has candidates, so level has to be session")
        if (self.from_field is None) != bool(self.instruction):
            raise ValueError("give either instruction (what to ask) or from_field (where the answers stand)")
        return self


LONG_TERM = Perspective(
    name="long-term",
    anchor="global",
    instruction="A shop visitor clicked the items below, in this order. Considering the whole session, name the one "
    "item that fits the visitor's overall taste best. Only output the item name.",
)

SHORT_TERM = Perspective(
    name="short-term",
    anchor="local",
    instruction="A shop visitor clicked the items below, in this order. Considering the last clicks above all, name "
    "the item the visitor wants next. Only output the item name.",
)


class Sampling(Section):
    max_tokens: int = Field(default=24, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0


class Engine(Section):
    """The pool of vLLM actors, shared by all perspectives."""

    actors: Bounds = (1, 1)
    device: Literal["auto", "gpu", "cpu"] = "auto"  # auto: GPUs where the cluster has any
    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)
    cpus_per_actor: float = Field(default=1, gt=0)  # logical CPUs of one actor
    max_restarts: int = Field(default=10, ge=0)  # of one actor whose engine or process dies, as it does out of memory
    batch_size: int = Field(default=128, ge=1)  # rows of one Ray Data batch: at most these are lost with an actor
    max_concurrent_batches: int = Field(default=4, ge=1)
    write_rows: int = Field(default=1024, ge=1)  # rows of one written block: the grain of resuming
    max_model_len: int = Field(default=1024, ge=64)
    max_num_seqs: int = Field(default=256, ge=1)
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_gib: float = Field(default=1.0, gt=0)  # on CPU engines only; GPUs use gpu_memory_utilization
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    engine_kwargs: dict[str, Any] = Field(default={})  # passed to vLLM as it is


class PocketLM(Section):
    """The small decoder trained on the catalogue's own train sessions when `perspectives.model` is null."""

    layers: int = Field(default=3, ge=1)
    width: int = Field(default=128, ge=16)
    heads: int = Field(default=4, ge=1)
    vocab: int = Field(default=4096, ge=300)
    steps: int = Field(default=400, ge=1)
    batch_size: int = Field(default=48, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    max_seconds: float = Field(default=600, gt=0)  # training stops here even if steps remain, and says so


class Budget(Section):
    """Which prompts are asked; the intent predictor stands in for the answers that are not there."""

    calls: int | None = Field(default=None, ge=1)  # distinct prompts, over all perspectives and splits; None: no bound
    policy: Literal["all", "one_per_session", "uncertain"] = "all"  # whose come first; see docs/perspectives.md

    @model_validator(mode="after")
    def _bounded(self) -> Budget:
        if self.policy == "uncertain" and self.calls is None:
            raise ValueError("policy uncertain orders all prompts: say with calls how many of them are asked")
        return self

    def asks_all(self) -> bool:
        return self.calls is None and self.policy == "all"


class Perspectives(Section):
    model: str | None = None  # Hugging Face name or path of the LLM; None: train the pocket LM and use it
    lora: str | None = None  # a LoRA adapter over `model`: Hugging Face name, path on every node, or URI of a folder
    views: tuple[Perspective, ...] = (LONG_TERM, SHORT_TERM)
    max_items: int = Field(default=12, ge=1)  # a longer session shows its last ones
    max_title_chars: int = Field(default=80, ge=8)
    sampling: Sampling = Sampling()
    chat_template_kwargs: dict[str, Any] = Field(default={"enable_thinking": False})  # ignored by most templates
    engine: Engine = Engine()
    pocket: PocketLM = PocketLM()
    budget: Budget = Budget()
    max_error_rate: float = Field(default=0.05, ge=0, le=1)  # above it the stage fails at its end
    retries: int = Field(default=1, ge=0)  # rounds that ask again what failed
    schedule_timeout_s: float = Field(default=45, gt=0)  # then refuse; an autoscaler may need 900 to bring GPUs
    splits: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")
    store: bool | str = True  # answers that runs share: true: <storage>/answers; a path or URI; false: none
    tokens_per_second: float | None = Field(default=None, gt=0)  # for --plan: read and written, by all actors together
    price_per_gpu_hour: float | None = Field(default=None, ge=0)  # for --plan

    @model_validator(mode="after")
    def _adapter_has_a_model(self) -> Perspectives:
        if self.lora is not None and self.model is None:
            raise ValueError("lora: an adapter is one over `model`, and none is named")
        return self

    @field_validator("store", mode="before")
    @classmethod
    def _said_on_the_command_line(cls, store: object) -> object:
        """There every value is text."""
        return {"true": True, "false": False}.get(str(store).lower(), store)

    @field_validator("views")
    @classmethod
    def _unique(cls, views: tuple[Perspective, ...]) -> tuple[Perspective, ...]:
        if not views:
            raise ValueError("name at least one perspective")
        if len({view.name for view in views}) < len(views):
            raise ValueError("two perspectives have the same name")
        return views

    def asking(self, asks: bool = True) -> Perspectives:
        """With those views alone whose answers come from the LLM, or those whose answers the catalogue has."""
        views = tuple(view for view in self.views if (view.from_field is None) == asks)
        return self.model_copy(update={"views": views})

    def sampling_of(self, view: Perspective) -> Sampling:
        """The settings of one perspective, its own before those of all."""
        return self.sampling.model_copy(update=view.sampling.model_dump(exclude_none=True))
