"""The wire, inwards: what bodies of ``POST`` look like, and how a study's maps to the domain.

Sizes are bytes and durations seconds, or text with a unit. Knows nothing of routes, the store or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from ..errors import InputError
from ..optimizer.codec import to_json
from ..optimizer.domain import (
    ASKED_FIELDS,
    Complexity,
    LossMask,
    Method,
    Objective,
    OwnLora,
    Preset,
    Quantization,
    Scoring,
    StudyRequest,
    Weights,
)
from ..probes.profiles import TaskKind
from .baseline import baseline_of_text, frame_of, read_baseline
from .submission import BOUNDS
from .units import parse_bytes, parse_seconds, parse_share

_GROUPED = {
    "memory_limit_bytes": ("constraints", "memory_limit"),
    "finish_limit_s": ("constraints", "finish_limit"),
    "quality_within": ("constraints", "quality_within"),
    "max_length": ("constraints", "max_length"),
    "budget_s": ("budget", "seconds"),
    "max_trials": ("budget", "max_trials"),
}
_PLACES = {field.name: _GROUPED.get(field.name, (field.name,)) for field in ASKED_FIELDS}
"""Where the body holds each field of :class:`StudyRequest`: most under their own name."""

POINTERS = {name: "/" + "/".join(place) for name, place in _PLACES.items()}
"""The same as JSON pointers."""

UNIT_ERROR = "unit"
"""Type of the validation errors that say all themselves, as those about sizes and durations do."""


def _within(field: str) -> Any:
    """The bounds of a field of StudyRequest as a pydantic field."""
    bounds = BOUNDS[field]
    return Field(ge=bounds.minimum, le=bounds.maximum)


def _parsed_by(parse: Callable[[Any], float], *, written_as: Any) -> BeforeValidator:
    """Read sizes and durations as people write them, and report what is wrong as pydantic does."""

    def validate(value: Any) -> Any:
        try:
            return parse(value)
        except InputError as error:
            raise PydanticCustomError(
                UNIT_ERROR, "{message}", {"message": error.message, "next_step": error.next_step}
            ) from error

    return BeforeValidator(validate, json_schema_input_type=written_as)


ANSWERED: Mapping[str, Any] = {"answered": True}
"""Context in which a body is validated that a server wrote, of a study that it has."""


def _refused_command(command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """A program that a body named would run with the server's rights."""
    if command and info.context is not ANSWERED:
        message = "no command can be asked for over HTTP: the server would run it with its own rights"
        step = "ask on the server's machine, with rankwise recommend --eval-command"
        raise PydanticCustomError(UNIT_ERROR, "{message}", {"message": message, "next_step": step})
    return command


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity, though Python's parser reads them, and 1e999 as one."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, float) and not math.isfinite(part):
            raise PydanticCustomError("finite_number", "Input should be a finite number")
        if isinstance(part, dict):
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return value


Document = Annotated[dict[str, Any], AfterValidator(_finite)]
Size = Annotated[int, _parsed_by(parse_bytes, written_as=int | str)]
Duration = Annotated[float, _parsed_by(parse_seconds, written_as=float | str)]
Share = Annotated[float, _parsed_by(parse_share, written_as=float | str)]
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Source = Annotated[str, Field(min_length=1, max_length=4096)]
Column = Annotated[str, Field(min_length=1, max_length=1024)]
Word = Annotated[str, Field(min_length=1, max_length=100)]

MOST_TOKENS = 10**15
"""Beyond all data sets."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class WeightsBody(_Body):
    """How much speed, memory and quality count; only ratios matter."""

    speed: Annotated[Number, Field(ge=0)]
    memory: Annotated[Number, Field(ge=0)]
    quality: Annotated[Number, Field(ge=0)]


class ConstraintsBody(_Body):
    """What the recommended configuration must keep to."""

    memory_limit: Size | None = None
    """Bytes, or text such as ``"10GiB"``."""
    finish_limit: Annotated[Duration, _within("finish_limit_s")] | None = None
    """Most time that the whole training may take: seconds, or text such as ``"6h"``."""
    quality_within: Share | None = None
    """How much more held-out loss than the best may be: a share, or text such as ``"1%"``. What the objective
    lets pass if left out."""
    max_length: Annotated[Count, _within("max_length")] | None = None
    """Tokens per row; longer rows are cut. Derived from the data if left out."""


class BudgetBody(_Body):
    """What the study may cost."""

    seconds: Duration = 600.0
    """Seconds, or text such as ``"10m"``."""
    max_trials: Annotated[Count, _within("max_trials")] = 64


class LoraBody(_Body):
    """A LoRA to be tried as it is."""

    rank: Count = 8
    alpha: Number | None = None
    """Twice the rank if left out."""
    dropout: Number = 0.1
    targets: Annotated[tuple[Word, ...], Field(max_length=100)] = ("balanced",)
    """Ends of names of modules, or one of ``minimal``, ``balanced``, ``full``, ``all-linear``."""
    use_rslora: Switch = False
    use_dora: Switch = False
    first_rank: Count | None = None
    """In the first quarter of the layers."""
    last_rank: Count | None = None
    """In the last quarter of the layers."""
    rank_pattern: Annotated[dict[str, Count], Field(max_length=100)] = {}
    """Regular expression for the end of a module's name → its rank; the first that matches holds."""
    alpha_pattern: Annotated[dict[str, Number], Field(max_length=100)] = {}
    quantization: Quantization = Quantization.NONE
    double_quantization: Switch = False
    compute_dtype: Word | None = None
    """``bfloat16``, ``float16`` or ``float32``; what suits the hardware if left out."""
    skip_modules: Annotated[tuple[Word, ...], Field(max_length=100)] = ()
    """Ends of names of modules that are not quantized."""

    def to_lora(self) -> OwnLora:
        """The domain's form."""
        patterns = ("rank_pattern", "alpha_pattern")
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return OwnLora(**values | {name: tuple(values[name].items()) for name in patterns})

    @classmethod
    def from_lora(cls, lora: OwnLora) -> LoraBody:
        """The wire's form; trusted, so nothing is validated again."""
        values = {name: getattr(lora, name) for name in cls.model_fields}
        patterns = {name: dict(values[name]) for name in ("rank_pattern", "alpha_pattern")}
        return cls.model_construct(**values | patterns)


class StudyBody(_Body):
    """A model, a dataset, and what is wanted of the fine-tuning."""

    model: Source
    """Folder of a model with safetensors weights, a bare ``config.json``, a hub id, or a factory
    ``package.module:name`` that the operator listed."""
    model_arguments: Document = Field(default={}, max_length=100)
    """Keyword arguments of the factory."""
    dataset: Source
    """File or folder of files (CSV, TSV, JSON Lines, Parquet, text, ``.npz``), folder of images in a folder
    per class, or a hub id."""
    objective: Objective = Objective.BALANCED
    weights: WeightsBody | None = None
    """Overrides the objective's weights."""
    scoring: Scoring = Scoring.COMPARABLE
    price_per_hour: Annotated[Number, _within("price_per_hour")] | None = None
    """Of a device, in any currency: costs are told in it."""
    processes: Annotated[Count, _within("processes")] | None = None
    """That trainings may be spread over, one a device; 1: none is spread. Null: as many as there are free
    GPUs of the same kind, where that can help; on a CPU one."""
    constraints: ConstraintsBody = ConstraintsBody()
    budget: BudgetBody = BudgetBody()
    seed: Annotated[Count, _within("seed")] = 0
    task: TaskKind | None = None
    """Derived from the columns if left out, like the four columns that follow."""
    text_column: Column | None = None
    """The text, the prompt, the source text, or a conversation's messages."""
    context_column: Column | None = None
    """A second part of the input, appended to the first."""
    target_column: Column | None = None
    """The text to be written: a completion, a translation, …"""
    label_column: Column | None = None
    """The class, or the number of a regression; of an ``.npz`` the array of either."""
    time_column: Column | None = None
    """Of a series: what orders its rows. Of texts: the last ones in time are held out."""
    channels: tuple[Column, ...] = ()
    """Of a series: the columns that are its values; empty means all that hold numbers."""
    context_length: Annotated[Count, _within("context_length")] | None = None
    """Of a series: rows that the model sees; null for what the model was made for."""
    prediction_length: Annotated[Count, _within("prediction_length")] | None = None
    """Of a series: rows that it is to predict from them."""
    group_column: Column | None = None
    """Rows with the same value here are held out together, or not at all."""
    eval_command: Annotated[tuple[str, ...], AfterValidator(_refused_command)] = ()
    """What judges trained adapters, of studies that were asked for on a command line; no body may have it."""
    eval_lower_is_better: Switch = False
    """Of the number that it prints."""
    effective_batch: Annotated[Count, _within("effective_batch")] = 16
    epochs: Annotated[Number, _within("epochs")] = 3.0
    packing: Switch | None = None
    """Several short samples share a row. Null: where it saves much and the model can keep them apart."""
    loss_mask: LossMask | None = None
    """Which tokens a language model learns; null: what suits the task."""
    chat_template: Source | None = None
    """File with a Jinja template to use in place of the tokenizer's."""
    methods: tuple[Method, ...] = ()
    """Only these methods; empty means those that are tried unasked."""
    quantizations: tuple[Quantization, ...] = ()
    """Only these; empty means all."""
    presets: tuple[Preset, ...] = ()
    """Tried first, in this order."""
    lora: LoraBody | None = None
    """Tried before the presets."""
    baseline: Annotated[str, Field(min_length=1, max_length=256 * 2**10)] | Document | None = None
    """What is trained with now: a trainer's file, as text or as its keys. It is tried first, as it is."""
    only_presets: Switch = False
    """Only the presets and ``lora``, and nothing after them."""
    use_tiers: Switch = False
    """Only the few candidates that are fixed for the free memory."""
    complexity: Complexity | None = None
    """How hard the task is; asked by the tiers only."""

    webhook_url: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """Is told, signed, of every change of the study's state; on a host that the operator allowed. Never shown
    again: such addresses are often secret."""

    def to_request(self) -> StudyRequest:
        """The domain's form."""
        values: dict[str, Any] = {name: reduce(getattr, place, self) for name, place in _PLACES.items()}
        if self.weights:
            values["weights"] = Weights(**self.weights.model_dump())
        if self.lora:
            values["lora"] = self.lora.to_lora()
        if self.baseline is not None:
            values |= self._from_baseline()
        return StudyRequest(**values)

    def _from_baseline(self) -> dict[str, Any]:
        """The baseline, and what it says of rows a step and passes where the body does not."""
        told = self.baseline
        baseline = baseline_of_text(told) if isinstance(told, str) else read_baseline(told)
        frame = frame_of(baseline)
        return {
            "baseline": baseline,
            **{name: value for name, value in frame.items() if name not in self.model_fields_set},
        }

    @classmethod
    def from_request(cls, request: StudyRequest) -> StudyBody:
        """The wire's form of a stored request; trusted, so nothing is validated again."""
        values: dict[str, Any] = {"constraints": {}, "budget": {}}
        for name, (*group, key) in _PLACES.items():
            reduce(dict.__getitem__, group, values)[key] = getattr(request, name)
        if request.weights:
            values["weights"] = WeightsBody.model_validate(request.weights, from_attributes=True)
        if request.lora:
            values["lora"] = LoraBody.from_lora(request.lora)
        if request.baseline:
            values["baseline"] = to_json(request.baseline)
        return cls.model_construct(
            **values
            | {
                "task": TaskKind(request.task) if request.task else None,
                "constraints": ConstraintsBody.model_construct(**values["constraints"]),
                "budget": BudgetBody.model_construct(**values["budget"]),
            }
        )


class EstimateBody(_Body):
    """A model, what would be trained of it and how, and where."""

    model: Source
    """Folder of a model, a bare ``config.json``, or a hub id; weights are not needed."""
    task: TaskKind | None = None
    """What the model was made for if left out."""
    method: Method = Method.LORA
    rank: Count | None = None
    alpha: Number | None = None
    targets: Annotated[str, Field(min_length=1, max_length=4096)] = "balanced"
    """``minimal``, ``balanced``, ``full``, or names of modules, separated by commas."""
    rslora: Switch = False
    dora: Switch = False
    quantization: Quantization = Quantization.NONE
    double_quantization: Switch = False
    precision: Word = "bf16"
    """``bf16``, ``fp16``, ``fp32``, or ``amp-bf16``, ``amp-fp16``: float32 weights under autocast."""
    gradient_checkpointing: Switch = True
    attention: Word | None = None
    """``sdpa``, ``eager``, ``flash_attention_2``; what suits the model if left out."""
    loss: Word = "plain"
    """``plain``, ``chunked``, ``liger``."""
    optimizer: Word = "adamw_torch"
    """``adamw_torch``, ``adamw_torch_fused``, ``adamw_8bit``, ``paged_adamw_8bit``."""
    batch_size: Count = 1
    """Rows of a micro-batch, on each GPU."""
    gradient_accumulation: Count = 1
    seq_len: Count | None = None
    """1024 if left out, or what the model reads at most."""
    """Tokens a row, padding included."""
    padded: Switch = False
    """Rows differ in length."""
    packed: Switch = False
    """Several samples share a row."""
    zero_stage: Count = 0
    fsdp: Switch = False
    offload: Word = "none"
    """What ZeRO or FSDP keeps on the host: ``none``, ``optimizer``, ``all``."""
    gpus: Count = 1
    gpu: Word | None = None
    """A GPU's name, such as ``"A100-80GB"``."""
    memory_limit: Size | None = None
    """Device memory that it may take: bytes, or text such as ``"24GiB"``."""
    which_gpu: Switch = False
    """Look for the smallest GPU of the catalogue."""
    every_gpu: Switch = False
    """Judge the other GPUs of the catalogue as well, at the batch that is asked about."""
    largest: Switch = True
    """Look for the largest batch and the longest rows, which takes several times as long."""
    tokens: Annotated[Count, Field(ge=1, le=MOST_TOKENS)] | None = None
    """Of the dataset, for the hours that the training takes."""
    epochs: Annotated[Number, _within("epochs")] = 1.0

    def options(self) -> dict[str, Any]:
        """The arguments of :func:`.estimates.read_question`."""
        return self.model_dump()


class CheckBody(_Body):
    """A trainer's file, and where it is to run."""

    text: Annotated[str, Field(min_length=1, max_length=256 * 2**10)]
    """YAML or JSON, at most 256 KiB."""
    name: Word = "file"
    """As findings are to call it."""
    format: Word | None = None
    """Told from the keys, or ``trl``, ``axolotl``, ``llamafactory``, ``transformers``, ``accelerate``,
    ``deepspeed``, ``peft``."""
    gpu: Word | None = None
    gpus: Annotated[Count, Field(ge=1)] | None = None
    memory_limit: Size | None = None
    """Device memory that it may take: bytes, or text such as ``"24GiB"``."""
    quick: Switch = False
    """The file alone is looked at."""


ESTIMATE_EXAMPLES: dict[str, Any] = {
    "fits": {
        "summary": "Whether a QLoRA fits on one GPU, and with which batch",
        "value": {
            "model": "models/llama-8b/config.json",
            "rank": 16,
            "quantization": "nf4",
            "batch_size": 4,
            "seq_len": 4096,
            "gpu": "RTX 4090",
        },
    },
    "which": {
        "summary": "The smallest GPU for it, and the hours that 20 million tokens take",
        "value": {
            "model": "models/llama-8b/config.json",
            "batch_size": 4,
            "seq_len": 4096,
            "which_gpu": True,
            "tokens": 20_000_000,
            "epochs": 3.0,
        },
    },
}

STUDY_EXAMPLES: dict[str, Any] = {
    "smallest": {
        "summary": "A model and a dataset; everything else is derived",
        "value": {"model": "models/bert-mini", "dataset": "data/reviews.csv"},
    },
    "constrained": {
        "summary": "Quality first, below 10 GiB, at most ten minutes",
        "value": {
            "model": "models/bert-mini",
            "dataset": "data/reviews.csv",
            "objective": "quality",
            "constraints": {"memory_limit": "10GiB", "max_length": 256},
            "budget": {"seconds": "10m", "max_trials": 12},
            "methods": ["lora", "ia3"],
        },
    },
    "presets": {
        "summary": "Two presets and a LoRA of one's own, and nothing after them",
        "value": {
            "model": "models/bert-mini",
            "dataset": "data/reviews.csv",
            "presets": ["auto", "qlora_memory"],
            "lora": {"rank": 8, "targets": ["query", "value"], "last_rank": 16},
            "only_presets": True,
        },
    },
    "chat": {
        "summary": "A decoder learns the assistant's part of conversations, its frozen weights in 4 bits",
        "value": {
            "model": "models/llama-mini",
            "dataset": "data/chats.jsonl",
            "task": "chat",
            "loss_mask": "assistant",
            "packing": True,
            "quantizations": ["nf4"],
        },
    },
}
