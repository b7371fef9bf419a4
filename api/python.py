"""The Python entry: one call from model and data to a measured configuration, or from a model to an estimate.

Runs the same study as the command line does. Imports neither torch nor peft until a peft object is asked for,
or what a module of torch's needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from ..errors import InputError
from ..home import Home
from ..optimizer import domain
from ..optimizer.domain import Candidate, Estimate, Measurement, Study, Trial
from ..optimizer.overview import enumerated_of
from ..optimizer.trainers.formats import named_format
from ..runners.exporting import Export
from ..runners.exporting import export as make_export
from ..runners.place import reservation
from ..runners.ready_files import write_texts
from ..store import Store
from .asking import StudyOptions, read_request
from .documents import adapter_config_of, report_document
from .estimates import EstimateOptions, answer_alone, read_question
from .failure import failure_of
from .following import follow
from .handover import write_results
from .homes import working_home
from .response_schemas.estimates import EstimateDocument
from .submission import check_request

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

    from ..runners.plain_module import ModuleNeed


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What a study recommends, with the evidence that it rests on."""

    study: Study
    trials: tuple[Trial, ...]
    """Every trial of the study in the order of planning, the failed ones too."""
    estimates: Mapping[Candidate, Estimate]
    """What dry runs told of a candidate of each shape, of those too that were not run."""
    choice: domain.Recommendation
    home: Home

    @property
    def candidate(self) -> Candidate:
        """The recommended configuration."""
        return self.choice.candidate

    @property
    def evidence(self) -> Measurement:
        """What was measured of it."""
        return self.choice.evidence

    def explain(self) -> str:
        """Why this one, as sentences."""
        return " ".join((f"{self.candidate.describe()} is recommended.", *self.choice.reasons))

    def to_peft_config(self) -> PeftConfig | None:
        """The adapter for ``peft.get_peft_model``; None for full fine-tuning, which has none.

        Raises:
            ImportError: peft is not installed.
        """
        config = adapter_config_of(self.study, self.choice)
        if config is None:
            return None
        from peft import PeftConfig

        return PeftConfig.from_peft_type(**config)

    def to_dict(self) -> dict[str, Any]:
        """The study, its trials and the recommendation as plain JSON data."""
        with closing(Store.open(self.home.database)) as store:
            enumerated = enumerated_of(store.events_after(self.study.id, 0))
        return report_document(self.study, self.trials, self.estimates, self.choice, enumerated=enumerated)

    def save(self, folder: str | PathLike[str]) -> list[Path]:
        """Write the ready files (evidence, report, adapter, training script); returns their paths.

        Raises:
            InputError: the folder cannot be written to.
        """
        with closing(Store.open(self.home.database)) as store:
            return write_results(store, self.study.id, Path(folder))

    def export(self, form: str, folder: str | PathLike[str] | None = None) -> Export:
        """The recommendation in another trainer's files, written to ``folder`` if one is named.

        Args:
            form: ``transformers``, ``trl``, ``axolotl`` …, as ``rankwise export --format`` takes them.
            folder: made if missing.

        Raises:
            ExportRefused: the trainer would train something else.
            InputError: there is no such format, or the folder cannot be written to.
        """
        with closing(Store.open(self.home.database)) as store:
            exported = make_export(store, self.study.id, named_format(form))
        if folder is not None:
            write_texts(exported.files, Path(folder))
        return exported


def recommend(
    model: str | PathLike[str],
    dataset: str | PathLike[str],
    *,
    allow_remote_code: bool = False,
    home: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    **options: Unpack[StudyOptions],
) -> Recommendation:
    """Measure the configurations that matter on this machine, and recommend one of them.

    Blocks until the study is done. Trials run in processes of their own: this one needs no GPU memory. If
    it is interrupted, ``rankwise recommend --resume ID`` goes on with what was measured.

    Args:
        model: folder with a model, a bare ``config.json``, or an id on the hub.
        dataset: file or folder of files (CSV, TSV, JSON Lines, Parquet, text, ``.npz``), folder of images in
            a folder per class, or an id on the hub.
        allow_remote_code: run code that comes with the model; trust its author.
        home: where studies are kept; ``$RANKWISE_HOME`` if None.
        out: folder to write the ready files to.
        options: any of

            - objective: ``balanced`` (the default), ``speed``, ``quality``, ``memory`` or ``cost``: what
              counts most.
            - weights: what counts how much, instead of an objective: ``"speed=1,quality=2"``.
            - scoring: ``comparable`` (the default), or ``classic`` for the first design's formula.
            - methods: consider only these, one or several of ``lora``, ``adalora``, ``ia3``, ``oft``,
              ``miss``, ``full``; without an adapter ``head``, ``last-blocks``, ``bitfit``, ``norms``.
            - quantizations: consider only these, one or several of ``none``, ``int8``, ``nf4``, ``fp4``.
            - presets: begin with these, one or several of ``efficient``, ``balanced``, ``expressive``,
              ``qlora_memory``, ``qlora_quality``, ``auto``.
            - lora: begin with a LoRA of your own, with the keys of a study file's block ``lora``:
              ``{"r": 16, "target_modules": ["query", "value"], "quantization": "nf4"}``.
            - baseline: what you train with now, as a path or the keys of a trainer's file: measured and
              compared with.
            - only_presets: try nothing after these.
            - use_tiers, complexity: only what the first design fixed for the free memory, and for a task
              that is ``simple``, ``medium``, ``complex`` or ``very complex``.
            - memory_limit: most memory a trial may take: ``"10GiB"`` or a number of bytes.
            - finish_limit: most time that the whole training may take: ``"6h"`` or a number of seconds.
            - quality_within: how much more held-out loss than the best may be: ``"1%"`` or 0.01; what the
              objective lets pass if left out.
            - price_per_hour: of a device, to know what the training costs.
            - processes: that trainings may be spread over, one a device; 1: none is spread; if left out, as
              many as there are free GPUs of the same kind, where that can help.
            - budget: time to spend: ``"10m"`` (the default) or a number of seconds.
            - max_trials: most trials to run; 64.
            - seed: equal seeds make equal choices; 0.
            - task: ``text-classification``, ``regression``, ``causal-lm``, ``prompt-completion``, ``chat``
              or ``seq2seq``, ``image-classification``, ``forecasting``, ``array-classification``,
              ``array-regression`` or ``self-supervised``; told from the data if left out, like the columns:
            - text_column, context_column, target_column, label_column: the text or prompt, a second part of
              it, the text to be written, the label (of an ``.npz`` the array to be predicted).
            - time_column, channels, context_length, prediction_length: of a series what orders its rows, the
              columns of its values, rows that the model sees, and rows that it predicts from them. Of texts,
              the last ones by ``time_column`` are held out.
            - group_column: rows with the same value here are held out together, or not at all.
            - eval_command: ``"python judge.py"``, run after each training with a folder that holds what was
              trained; the last line that it prints is a number.
            - eval_lower_is_better: of that number; False.
            - max_length: tokens per row; from the data if left out.
            - effective_batch: rows per optimizer step; 16.
            - epochs: passes over the data that the final training will make; 3.
            - packing: whether several short samples share a row.
            - loss_mask: which tokens are learnt: ``all``, ``completion`` or ``assistant``.
            - chat_template: file with a Jinja template in place of the tokenizer's.

    Raises:
        InputError: model, data or an argument are refused.
        NothingFits: no configuration meets the memory limit.
        RunnerError: the study failed.
    """
    request = check_request(
        read_request(model, dataset, **options), roots=None, allow_remote_code=allow_remote_code
    )
    with working_home(_home(home)) as place, closing(Store.open(place.database)) as store:
        study_id = store.create_study(request, reserved_for=reservation(place)).id
        study = follow(store, study_id, place, allow_remote_code=allow_remote_code)
        if error := failure_of(study):
            raise error
        found = Recommendation(
            study=study,
            trials=tuple(store.list_trials(study.id)),
            estimates=store.list_estimates(study.id),
            choice=store.get_recommendation(study.id),
            home=place,
        )
    if out is not None:
        found.save(out)
    return found


def estimate(
    model: str | PathLike[str],
    *,
    allow_remote_code: bool = False,
    home: str | PathLike[str] | None = None,
    **options: Unpack[EstimateOptions],
) -> EstimateDocument:
    """Work out what a fine-tuning needs of a GPU and how fast it is, without a GPU and without weights.

    Blocks for some seconds, most of them to start a process that imports torch; this one imports none.

    Args:
        model: folder with a model, a bare ``config.json``, or an id on the hub.
        allow_remote_code: run code that comes with the model; trust its author.
        home: where logs go; ``$RANKWISE_HOME`` if None.
        options: any of

            - task: as for :func:`recommend`; what the model was made for if left out.
            - method, rank, alpha, targets, rslora, dora: the adapter. ``lora`` on ``balanced`` targets;
              targets are ``minimal``, ``balanced``, ``full`` or names of modules, separated by commas.
            - quantization, double_quantization: ``none``, ``int8``, ``nf4`` or ``fp4``.
            - precision: ``bf16`` (the default), ``fp16``, ``fp32``, or ``amp-bf16``, ``amp-fp16``.
            - gradient_checkpointing: True if left out.
            - attention, loss, optimizer: as ``rankwise estimate --help`` lists them.
            - batch_size, gradient_accumulation: 1 and 1.
            - seq_len: tokens a row; 1024 if left out, or what the model reads at most.
            - padded, packed: whether rows differ in length, or samples share a row.
            - zero_stage, fsdp, offload, gpus: how GPUs divide the training.
            - gpu, memory_limit: what it is judged by: ``"A100-80GB"``, ``"24GiB"`` or a number of bytes.
            - which_gpu: look for the smallest GPU of the catalogue.
            - tokens, epochs: of the dataset, to know how long it takes.

    Raises:
        InputError: the model or an argument is refused.
        RunnerError: the job could not be run.
    """
    question = read_question(model, allow_remote_code=allow_remote_code, **options)
    return answer_alone(_home(home), question, allow_remote_code=allow_remote_code)


def estimate_module(
    module: nn.Module | Callable[[], nn.Module] | str,
    inputs: Sequence[tuple[Sequence[int], str]] | Mapping[str, tuple[Sequence[int], str]],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    autocast: Literal["bfloat16", "float16"] | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
) -> ModuleNeed:
    """Work out what a training step of any module needs, without a GPU and without its weights.

    One step of AdamW is run in this process on tensors that have shapes and no numbers: what it allocates is
    what ``loss(module(*inputs)).backward()`` allocates. What libraries other than cuBLAS take to work with,
    such as cuDNN for convolutions, is not counted. Imports torch. While it runs, other threads must not use
    torch, whose functions are replaced.

    Args:
        module: the module, of which nothing is changed; what makes one; or where that is, as
            ``"package.module:factory"``. What is made is made on the meta device, and needs no memory.
        inputs: shape and dtype of what the module is called with, by position or by name:
            ``[((8, 3, 224, 224), "float32")]``.
        loss: from the module's output to a scalar. If left out, the output's ``loss``, else the sum of all
            in it.
        autocast: dtype that forward pass and loss run in; with float16 the loss is scaled.
        device: what it is worked out for.

    Returns:
        Bytes allocated and reserved, by phase, and by what they hold; counts of parameters.

    Raises:
        InputError: the module cannot be built, or reads numbers while it runs.
    """
    from ..runners.plain_module import need_of_module

    if device not in ("cuda", "cpu"):
        raise InputError(f"device {device!r} is unknown", next_step="use cuda or cpu")

    return need_of_module(module, inputs, loss=loss, autocast=autocast, on_cuda=device == "cuda")


def _home(home: str | PathLike[str] | None) -> Home:
    place = Home.from_environment() if home is None else Home(Path(home).expanduser().resolve())
    return place.create()
