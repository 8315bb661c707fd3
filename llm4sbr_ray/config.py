"""Every setting of a run: one model a stage, one `RunConfig`, read from a YAML file and the command line.

    config = load_config(["--config", "configs/demo.yaml", "--train.epochs", "3"])

Field docs stand beside the fields. A value given on the command line (``--stage.name value``) wins over the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from llm4sbr_ray.errors import UserError

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$"  # what may name a run, a perspective or a model: safe in any path


def _rising(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the least, {bounds[0]}, is more than the most, {bounds[1]}")
    return bounds


Bounds = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_rising)]  # of an autoscaling pool of actors


class Section(BaseModel):
    """A part of the settings. It takes no name that it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DemoShop(Section):
    """The generated shop of `source: demo`."""

    sessions: int = Field(default=4000, ge=50)
    items: int = Field(default=600, ge=40)
    cold_share: float = Field(default=0.1, ge=0, lt=1)  # share of items that appear only near the end of time
    seed: int = 0


class Columns(Section):
    """Names of the columns in the user's tables. `None` = the table has no such column."""

    session_id: str = "session_id"
    items: str = "items"  # layout session: the list of item ids
    item_id: str = "item_id"  # layout event, and the catalogue
    timestamp: str | None = None  # s, ms, us or ns since epoch (told by size), ISO 8601, or a Parquet timestamp
    split: str | None = "split"  # only read when split.by is "column"
    title: str = "title"
    attributes: str | None = "attributes"  # list of strings, or one string


class Split(Section):
    by: Literal["column", "time", "ratio"] = "column"
    test_values: tuple[str, ...] = ("test",)  # by column: these rows are test; "valid" rows count as train
    test_fraction: float = Field(default=0.1, gt=0, lt=1)  # by time: the last sessions; by ratio: hashed by session id
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)  # of the train sessions
    valid_by: Literal["random", "last"] = "random"  # "last": the last train rows (where rows are in time order)


class DataConfig(Section):
    source: Literal["demo", "tables"] = "tables"
    demo: DemoShop = DemoShop()
    sessions: str | None = None  # path or URI of a file or folder: .parquet, .csv[.gz], .jsonl[.gz]
    items: str | None = None  # the catalogue; None: the items are those that the sessions hold
    format: Literal["auto", "parquet", "csv", "jsonl"] = "auto"  # auto: by the file's ending
    layout: Literal["session", "event"] = "session"  # one row a session, or one row an event
    columns: Columns = Columns()
    split: Split = Split()
    samples: Literal["every-prefix", "last-item"] = "every-prefix"
    unknown_items: Literal["quarantine", "drop"] = "quarantine"  # a session with an item that the catalogue lacks
    max_session_items: int = Field(default=1000, ge=2)  # longer ones are quarantined: crawlers, and quadratic cost

    @model_validator(mode="after")
    def _tables_are_named(self) -> DataConfig:
        if self.source == "tables" and self.sessions is None:
            raise ValueError("data.sessions is missing: give the path of the session table, or data.source: demo")
        return self


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
    engine_kwargs: dict[str, Any] = {}  # passed to vLLM as it is


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
    chat_template_kwargs: dict[str, Any] = {"enable_thinking": False}  # templates ignore what they don't know
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


class Text(Section):
    """Text encoder and intent localisation."""

    model: str = "all-MiniLM-L6-v2"  # this one ships with the package; else any sentence-transformers name or path
    actors: Bounds = (1, 1)  # of the encoder
    device: Literal["auto", "gpu", "cpu"] = "auto"  # auto: a GPU for each actor where the cluster has any
    batch_size: int = Field(default=128, ge=1)
    columns: tuple[str, ...] = ()  # of the catalogue: their texts follow title and attributes, as a description does
    max_text_chars: int = Field(default=256, ge=8)
    localised_items: int = Field(default=5, ge=1, le=50)  # r
    localisation: Literal["nearest", "exact_first"] = "nearest"  # exact_first: a title's own item and no other
    min_cosine: float = Field(default=0.35, ge=-1, le=1)  # below it an answer is "ungrounded"


class ModelConfig(Section):
    """Sizes and rules of the neural models."""

    width: int = Field(default=100, ge=4)
    max_length: int = Field(default=50, ge=1)  # the last clicks that the backbone sees
    dropout: float = Field(default=0.2, ge=0, lt=1)
    gnn_steps: int = Field(default=1, ge=1)
    attention_layers: int = Field(default=2, ge=1)  # of sasrec and hstu
    attention_heads: int = Field(default=2, ge=1)  # of sasrec and hstu; a divisor of width
    gru_layers: int = Field(default=1, ge=1)  # of gru4rec
    global_neighbours: int = Field(default=12, ge=1)  # of gcegnn: items next to each in the graph of all sessions
    global_reach: int = Field(default=3, ge=1)  # of gcegnn: clicks at most this far apart are neighbours (epsilon)
    hypergraph_layers: int = Field(default=3, ge=1)  # of dhcn
    self_supervision: float = Field(default=0.01, ge=0)  # of dhcn: weight of its loss between both channels
    fusion: Literal["average", "gate", "residual"] = "residual"  # chosen on validation, see docs/results.md
    text_start: bool = True  # LLM4SBR's item embeddings start from the item texts, in the space of the perspectives
    text_spread: float = Field(default=3.0, gt=0)  # of the item vectors at that start, in units of the backbone's own
    text_smoothing: float = Field(default=0.2, ge=0, lt=1)  # share of a target's probability for items with like texts
    alignment: float = Field(default=0.1, ge=0)  # lambda
    uniformity: float = Field(default=0.1, ge=0)
    predictor: float = Field(default=0.1, ge=0)  # weight of the intent predictor's loss


class Rules(Section):
    """Sequential rules."""

    reach: int = Field(default=3, ge=1)  # clicks at most this far apart make a rule, of weight 1 / distance


class ItemKNN(Section):
    """Item-kNN."""

    reach: int = Field(default=50, ge=1)  # clicks further apart are not counted as seen together
    decay: float = Field(default=3.0, gt=0)  # the click i steps before the last counts exp(-i / decay)


class Stan(Section):
    """STAN: session-kNN with three decay factors; a decay of 0 leaves its factor away."""

    k: int = Field(default=200, ge=1)
    sample_size: int = Field(default=1000, ge=1)  # most recent candidate sessions considered
    click_decay: float = Field(default=3.0, ge=0)  # clicks: the one i steps before the last counts exp(-i / decay)
    recency_decay: float = Field(default=0.0, ge=0)  # share of the train sessions; only where they are in time order
    item_decay: float = Field(default=2.0, ge=0)  # clicks between a neighbour's item and the shared click


class Vmis(Section):
    """VMIS-kNN."""

    k: int = Field(default=100, ge=1)
    m: int = Field(default=1000, ge=1)  # most recent sessions an item in the index, and candidates considered
    decay: float = Field(default=0.0, ge=0)  # the click i steps before the last counts exp(-i / decay); 0: linearly
    idf: float = Field(default=1.0, ge=0)  # power of the idf factor; 0 leaves it away


class Neighbours(Section):
    """The models that count: session-kNN (V-SkNN), and the others in sections of their own."""

    k: int = Field(default=100, ge=1)
    sample_size: int = Field(default=1000, ge=1)  # most recent candidate sessions considered
    decay: float = Field(default=3.0, ge=0)  # lambda of the position decay; 0 = plain S-kNN
    rules: Rules = Rules()
    itemknn: ItemKNN = ItemKNN()
    stan: Stan = Stan()
    vmis: Vmis = Vmis()


class MemoryConfig(Section):
    """What a "+memory" model mixes its network with (models/memory.py); settings of the parts: `neighbours`."""

    parts: tuple[Literal["itemknn", "rules", "sknn", "stan", "vmis"], ...] = ("rules", "stan", "itemknn")
    select_by: Literal["recall@20", "mrr@20", "ndcg@20"] = "ndcg@20"  # validation metric that the weights maximise
    max_samples: int = Field(default=20_000, ge=1)  # validation samples that they are chosen on
    lengths: tuple[int, ...] = (1, 2, 5)  # sessions of up to so many clicks, and longer ones, have weights of their own

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if list(lengths) != sorted(set(lengths)) or any(length < 1 for length in lengths):
            raise ValueError("give ascending numbers of clicks, as [1, 2, 5]")
        return lengths


class TrainConfig(Section):
    models: tuple[str, ...] = ("popularity", "sknn", "srgnn", "srgnn+llm4sbr")
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = Field(default=2, ge=0)  # Ray Train workers; 0 runs the loop in this process
    min_workers: int | None = Field(default=None, ge=1)  # elastic: as many as fit, at least these; None: all of them
    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, ge=0)
    shard_items: bool = False  # each worker holds a part of the items' vectors and texts, not all of them
    epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=3, ge=1)  # epochs without a better validation score before stopping
    batch_size: int = Field(default=512, ge=1)  # over all workers
    accumulate: int = Field(default=1, ge=1)  # parts that a worker computes its share of a batch in: less memory
    random_prefixes: float = Field(default=0.0, ge=0, le=1)  # share of an epoch's samples read to a random click only
    learning_rate: float = Field(default=2e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # the last two end at 0, after `epochs`
    warm_up: float = Field(default=0.0, ge=0, lt=1)  # share of all updates in which the learning rate climbs
    weight_decay: float = Field(default=1e-5, ge=0)
    clip_norm: float = Field(default=5.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network's products; scores and losses: float32
    loss: Literal["auto", "full", "sampled", "gbce"] = "auto"  # softmax over all items, over a sample; or binary
    sampled_above: int = Field(default=200_000, ge=0)  # auto: full softmax up to so many items, sampled above
    negatives: int = Field(default=4096, ge=1)  # items drawn for a batch, when not full
    negatives_by: Literal["uniform", "popularity"] = "uniform"
    gbce_t: float = Field(default=0.75, ge=0, le=1)  # calibration of gbce: 0 is plain binary cross-entropy
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # of full softmax
    select_by: Literal["recall@20", "mrr@20", "ndcg@20"] = "mrr@20"  # validation metric that picks the epoch
    rank_seen: bool = True  # validate with the session's own items in the ranking; false: without, as served by default
    max_failures: int = Field(default=2, ge=0)

    @field_validator("seeds")
    @classmethod
    def _some(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("name at least one seed")
        return seeds

    @model_validator(mode="after")
    def _workers_agree(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}: workers is the most")
        if self.shard_items and self.accumulate > 1:
            raise ValueError("shard_items needs all workers in every part of a batch: leave accumulate at 1")
        if self.shard_items and not self.rank_seen:
            raise ValueError("shard_items validates with all items ranked: leave rank_seen at true")
        return self

    @model_validator(mode="after")
    def _loss_settings_agree(self) -> TrainConfig:
        if self.loss == "gbce" and self.negatives_by == "popularity":
            raise ValueError("loss gbce draws negatives uniformly: leave negatives_by at uniform")
        if self.loss in ("sampled", "gbce") and self.label_smoothing:
            raise ValueError(f"label_smoothing is for full softmax, not for loss {self.loss}")
        return self


class TuneConfig(Section):
    """A search over settings (jobs/tune.py); it maximises `train.select_by` on validation data, for the first seed."""

    space: str | None = None  # YAML file of a search space, or a folder of them: <model or backbone>.yaml
    models: tuple[str, ...] = ()  # each gets the same budget; (): those of train.models that the space is for
    trials: int = Field(default=20, ge=1)
    concurrent: int = Field(default=2, ge=1)  # trials at a time; they share the cores of a machine
    workers: int = Field(default=0, ge=0)  # Ray Train workers of a trial; 0: in the trial's own process, no start-up
    grace_epochs: int = Field(default=3, ge=1)  # ASHA stops no trial before
    reduction_factor: int = Field(default=3, ge=2)  # ASHA lets one trial of so many go on
    max_minutes: float | None = Field(default=None, gt=0)  # of one model's search: what runs then is stopped


class EvaluateConfig(Section):
    batch_size: int = Field(default=512, ge=1)
    example_sessions: int = Field(default=6, ge=0)  # shown in the report


class ExportConfig(Section):
    model: str | None = None  # None: the first model with "+llm4sbr", by its first seed


class ClusterConfig(Section):
    address: str | None = None  # None: RAY_ADDRESS if set, else a fresh local Ray; "auto": the cluster running here
    local_cpus: int = Field(default=8, ge=1)  # logical CPUs of a fresh local Ray: stages wait for each other below 8
    object_store_mb: int = Field(default=1024, ge=128)  # of a fresh local Ray
    worker_logs: bool = False  # print what workers print (vLLM says a lot); Ray keeps it in its log folder anyway


class TrackingConfig(Section):
    mlflow: bool = False  # send settings and figures to MLflow; MLFLOW_TRACKING_URI in the environment says where
    experiment: str = "llm4sbr_ray"  # of MLflow


class RunConfig(BaseSettings):
    """All settings of one run; `name` and `storage` place it: ``<storage>/<name>/``."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, cli_prog_name="llm4sbr_ray")

    name: str = Field(pattern=NAME_PATTERN)
    storage: str = "runs"  # local path or URI (s3://, gs://)
    dataset: str = ""  # shown in reports; empty: the run's name
    seed: int = 0
    data: DataConfig
    perspectives: Perspectives = Perspectives()
    text: Text = Text()
    model: ModelConfig = ModelConfig()
    neighbours: Neighbours = Neighbours()
    memory: MemoryConfig = MemoryConfig()
    train: TrainConfig = TrainConfig()
    tuned: dict[str, dict[str, bool | int | float | str | None]] = {}  # model -> its own settings (training/tuned.py)
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # never the environment: a variable called NAME must not rename a run


def load_config(argv: Sequence[str] | None = None) -> RunConfig:
    """Read `--config FILE` and the overrides after it.

    Raises
    ------
    UserError
        A missing or malformed file, an unknown setting, a wrong type: one line per problem.
    SystemExit
        `--help`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config")
    known, overrides = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    wants_help = bool({"-h", "--help"} & set(overrides))
    if known.config is None and not wants_help:
        raise UserError("--config FILE is missing (configs/demo.yaml is a good first one)")
    values = {} if known.config is None else _read_yaml(Path(known.config))
    try:
        cli: CliSettingsSource[Any] = CliSettingsSource(
            RunConfig, cli_parse_args=list(overrides), cli_exit_on_error=False, cli_kebab_case=False
        )
        return RunConfig(_cli_settings_source=cli, **values)  # type: ignore[call-arg]  # an argument of BaseSettings
    except ValidationError as error:
        raise UserError(_one_line_each(error, known.config)) from error
    except SettingsError as error:
        raise UserError(f"command line: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file not found: {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of settings, this file holds {type(values).__name__}")
    return values


def _one_line_each(error: ValidationError, path: str | None) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "no such setting"
        lines.append(f"{path}: {where}: {message}" if where else f"{path}: {message}")
    return "\n".join(lines)
