"""An adapter added to its base for good: a model that needs no PEFT, checked to answer as both together did.

Everything happens in this process, on the CPU, in the dtype of the base's weights. Knows nothing of studies
and of how the adapter was trained.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_model, save_model

from ..errors import InputError, ModelError
from ..optimizer.codec import to_json
from ..probes.model_source import SINGLE_FILE, ResolvedModel, has_weights, resolve_model
from .adapter_folder import AdapterFolder, read_adapter
from .example_inputs import Inputs
from .modules import avoid_fast_paths
from .random_inputs import outputs_of, random_inputs
from .weights import make_module, without_nones

MODEL_CLASSES = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
"""By PEFT's word for the task; it has none for others."""

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of the largest output: what rounding the merged weights once may change."""

COPIED = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "chat_template*",
    "*processor_config.json",
)
"""Files beside weights and configuration that a model is used with."""

CANNOT_MERGE = (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError, KeyError)
"""What PEFT raises where an adapter does not fit its base, or cannot be merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What was merged, and how well."""

    method: str
    """PEFT's name."""
    base: str
    out: str
    dtype: str
    parameters: int
    modules: int
    """That carried the adapter."""
    moved: float | None
    """How far the adapter takes the answer to random inputs from the base's; of the largest number in it."""
    difference: float | None
    """The same from base and adapter together to the model that was written; None: not compared."""
    tolerance: float
    files: tuple[str, ...]


def merge_adapter(
    folder: Path,
    out: Path,
    *,
    base: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    allow_remote_code: bool = False,
) -> Merge:
    """Merge a saved adapter into its base and write the result, or write nothing.

    What was written is read again and compared with base and adapter on random inputs.

    Args:
        folder: what PEFT's ``save_pretrained`` wrote.
        out: folder to write to, which must not be there yet.
        base: folder, hub id, or ``package.module:factory`` that gives the base with its weights; that which
            the adapter names if None.
        arguments: of the factory.

    Raises:
        InputError: a folder cannot be used, the adapter does not fit the base, its method cannot be merged,
            or the merged model answers differently.
    """
    if out.exists():
        raise InputError(f"{out} is there already", next_step="name a folder that is not, with --out")
    adapter = read_adapter(folder)
    model = _resolve(adapter, base, arguments, allow_remote_code=allow_remote_code)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(
            0
        )  # a head that the base does not have is drawn, until the adapter's takes its place
        loaded = _load_base(model, adapter, allow_remote_code=allow_remote_code)
    avoid_fast_paths(loaded)
    inputs = random_inputs(loaded)
    before = None if inputs is None else outputs_of(loaded, inputs)
    merged, modules, adapted = _merge(loaded, adapter, inputs)
    staging = out.with_name(f".{out.name}.merging")
    with _staged(staging, out):
        _save(merged, staging)
        _copy_companions(staging, adapter.folder, model.path if model.factory is None else None)
        dtype, parameters = _dtype_of(merged), sum(parameter.numel() for parameter in merged.parameters())
        if inputs is None or before is None or adapted is None:
            moved = difference = None
        else:
            written = _load_written(model, merged, staging, allow_remote_code=allow_remote_code)
            moved = _difference(before, adapted)
            difference = _difference(adapted, outputs_of(written, inputs))
            _require_equal(adapter, difference, TOLERANCES[dtype])
    return Merge(
        method=adapter.method,
        base=model.source,
        out=str(out),
        dtype=str(dtype).removeprefix("torch."),
        parameters=parameters,
        modules=modules,
        moved=moved,
        difference=difference,
        tolerance=TOLERANCES[dtype],
        files=tuple(sorted(file.name for file in out.iterdir())),
    )


def _resolve(
    adapter: AdapterFolder,
    base: str | None,
    arguments: Mapping[str, Any] | None,
    *,
    allow_remote_code: bool,
) -> ResolvedModel:
    """The base's folder or factory. One without weights, or with quantized ones, is refused."""
    source = base or adapter.base
    if not source:
        raise InputError(f"{adapter.folder} does not name its base", next_step="name it with --base")
    try:
        model = resolve_model(
            source, allowed_roots=None, allow_remote_code=allow_remote_code, arguments=arguments
        )
    except ModelError as error:
        if base is None:
            raise ModelError(
                f"the base that {adapter.folder} names cannot be used: {error.message}",
                next_step=f"name it with --base, or {error.next_step}",
            ) from error
        raise
    if model.factory is not None:
        return model
    if not has_weights(model.path):
        raise ModelError(
            f"base {source} has no weights to merge into", next_step="name the one that has with --base"
        )
    return model


def _load_base(model: ResolvedModel, adapter: AdapterFolder, *, allow_remote_code: bool) -> Any:
    """The base as the adapter knew it, its head as large as the adapter's, in evaluation mode."""
    if model.factory is not None:
        return _make_base(model)
    config = transformers.AutoConfig.from_pretrained(
        model.path, trust_remote_code=allow_remote_code, **adapter.head_settings()
    )
    try:
        return (
            _model_class(adapter, config)
            .from_pretrained(
                model.path,
                config=config,
                dtype="auto",
                use_safetensors=True,
                **without_nones({"trust_remote_code": allow_remote_code or None}),
            )
            .eval()
        )
    except CANNOT_MERGE as error:
        raise ModelError(
            f"base {model.source} cannot be loaded for this adapter ({_reason(error)})",
            next_step="name the model that the adapter was trained on with --base",
        ) from error


def _make_base(model: ResolvedModel) -> Any:
    """What the factory makes; twice, since one that draws weights is no base that anything was trained on."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        try:
            made.append(make_module(to_json(model.factory)).eval())
        except Exception as error:
            raise ModelError(
                f"the factory {model.source} fails ({_reason(error)})",
                next_step="call it in Python with the same arguments (--model-arg)",
            ) from error
    first, second = (part.state_dict() for part in made)
    drawn = [name for name in first if not torch.equal(first[name], second[name])]
    if drawn:
        raise ModelError(
            f"the factory {model.source} makes other weights each time ({', '.join(drawn[:3])}), so no "
            "adapter was trained on these",
            next_step="have it load the base's weights, and pass where they are with --model-arg",
        )
    return made[0]


def _model_class(adapter: AdapterFolder, config: Any) -> Any:
    """By PEFT's word for the task, else the class that PEFT noted, else that of the configuration."""
    if adapter.task_type in MODEL_CLASSES:
        return MODEL_CLASSES[adapter.task_type]
    for name in (adapter.base_class, *(config.architectures or ())):
        found = getattr(transformers, name, None) if name else None
        if found is not None:
            return found
    raise ModelError(
        f"nobody knows which class of {config.model_type} {adapter.folder} was trained on",
        next_step="name a folder whose config.json has it under architectures with --base",
    )


def _merge(
    loaded: Any, adapter: AdapterFolder, inputs: Inputs | None
) -> tuple[Any, int, list[torch.Tensor] | None]:
    """The merged model, how many modules carried the adapter, and what both together answered."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict  # imports bitsandbytes
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is missing: it is looked for below
            config = PeftConfig.from_pretrained(adapter.folder)
            if config.is_prompt_learning:
                raise InputError(
                    f"{adapter.method} cannot be merged: it puts vectors before the input, and has nothing "
                    "that could be added to a weight",
                    next_step="go on using it through PEFT",
                )
            wrapped = PeftModel.from_pretrained(loaded, adapter.folder, config=config).eval()
    except CANNOT_MERGE as error:
        raise _does_not_fit(adapter, _reason(error)) from error
    # Left to decide about embeddings, PEFT would ask the hub; they may be there, since it loads them.
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    _require_names(adapter, expected, also=set(wrapped.state_dict()))
    modules = sum(isinstance(module, BaseTunerLayer) for module in wrapped.modules())
    adapted = None if inputs is None else outputs_of(wrapped, inputs)
    try:
        merged = wrapped.merge_and_unload(safe_merge=True)
    except CANNOT_MERGE as error:
        raise InputError(
            f"{adapter.method} cannot be merged here: {_reason(error)}",
            next_step="go on using it through PEFT",
        ) from error
    return merged.eval(), modules, adapted


def _require_names(adapter: AdapterFolder, expected: set[str], *, also: set[str]) -> None:
    """PEFT leaves out tensors whose names the model does not have, and starts others anew."""
    saved = set(adapter.shapes)
    missing, unknown = sorted(expected - saved), sorted(saved - expected - also)
    if missing or unknown:
        parts = [f"the file lacks {', '.join(missing[:3])}"] if missing else []
        parts += [f"the model has no {', '.join(unknown[:3])}"] if unknown else []
        raise _does_not_fit(adapter, f"of {len(saved)} tensors, {'; '.join(parts)}")


def _does_not_fit(adapter: AdapterFolder, reason: str) -> InputError:
    return InputError(
        f"the adapter in {adapter.folder} does not fit its base: {reason}",
        next_step="name the base that it was trained on with --base; names and configuration must match",
    )


def _save(merged: Any, folder: Path) -> None:
    if isinstance(merged, transformers.PreTrainedModel):
        merged.save_pretrained(folder)
    else:
        save_model(merged, str(folder / SINGLE_FILE))


def _load_written(model: ResolvedModel, merged: Any, folder: Path, *, allow_remote_code: bool) -> Any:
    """What was written, read as its user will."""
    if model.factory is not None:
        written = make_module(to_json(model.factory))
        load_model(written, folder / SINGLE_FILE)
    else:
        options = without_nones({"trust_remote_code": allow_remote_code or None})
        written = type(merged).from_pretrained(folder, dtype="auto", use_safetensors=True, **options)
    avoid_fast_paths(written)
    return written.eval()


def _require_equal(adapter: AdapterFolder, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise InputError(
            f"merged, {adapter.method} answers differently: by {difference:.1e} of the largest output, where "
            f"{tolerance:.0e} is rounding; nothing was written",
            next_step="go on using it through PEFT; docs/adapters.md says where merging differs",
        )


def _difference(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """The largest between two answers, as a share of the largest number in the first."""
    pairs = zip(expected, found, strict=True)
    return max(
        float((one - other).abs().max() / one.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
        for one, other in pairs
    )


def _dtype_of(merged: torch.nn.Module) -> torch.dtype:
    """That most parameters have."""
    counts: dict[torch.dtype, int] = {}
    for parameter in merged.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    found = max(counts, key=lambda dtype: counts[dtype])
    return found if found in TOLERANCES else torch.float32


def _copy_companions(to: Path, *folders: Path | None) -> None:
    """Tokenizer and processor, those of the adapter's folder before those of the base's."""
    for folder in folders:
        if folder is None:
            continue
        for pattern in COPIED:
            for file in folder.glob(pattern):
                if file.is_file() and not (to / file.name).exists():
                    shutil.copyfile(file, to / file.name)


@contextmanager
def _staged(staging: Path, out: Path) -> Iterator[None]:
    """What is written to ``staging`` becomes ``out``, all of it or nothing."""
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield
        staging.rename(out)
    except OSError as error:
        raise InputError(
            f"cannot write to {out}: {error.strerror}", next_step="name a folder of yours with --out"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
