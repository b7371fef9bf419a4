"""What a training can be handed over as: for each format its files, and the commands that run them.

Texts only. Programs are named here and composed where their sources are (``runners/ready_files.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml

from ...errors import InputError
from . import jobs, snippets
from .cells import Effect, Gap
from .settings import Training, settings_of
from .table import CAUSAL, VERSIONS, Trainer
from .writing import ExportRefused, deepspeed_config, require_same_training, write

ADAPTER_FILE = "adapter_config.json"
ARGUMENTS_FILE = "training_args.json"
ACCELERATE_FILE = "accelerate.yaml"
DEEPSPEED_FILE = "ds_config.json"
TRAIN, PREPARE, SNIPPET = "train.py", "prepare_data.py", "snippet.py"
DATA_FOLDER, TOKENIZED_FOLDER, OUTPUT_FOLDER = "data", "data/tokenized", "trained"

LINE = 100
"""Characters of a comment's line."""


class Format(StrEnum):
    """What ``rankwise export --format`` takes."""

    RANKWISE = "rankwise"
    PEFT = "peft"
    TRANSFORMERS = "transformers"
    TRL = "trl"
    AXOLOTL = "axolotl"
    LLAMA_FACTORY = "llamafactory"
    ACCELERATE = "accelerate"
    DEEPSPEED = "deepspeed"
    LIGHTNING = "lightning"
    PYTORCH = "pytorch"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A format's files without the text of its programs."""

    files: Mapping[str, str]
    programs: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    """What to run in the folder, in this order: arguments, no shell text."""
    gaps: tuple[Gap, ...] = ()
    """What the files do not say."""


def outline(training: Training, form: Format) -> Outline:
    """The files of one format.

    Raises:
        ExportRefused: they would train something else, or there is nothing of the kind to write.
    """
    return _OUTLINES[form](training)


def _rankwise(training: Training) -> Outline:
    files, command = launched(training)
    return Outline(files={**files, **_adapter_file(training)}, programs=(TRAIN,), commands=(command,))


def launched(training: Training) -> tuple[dict[str, str], tuple[str, ...]]:
    """How ``train.py`` is started: the files that this takes, and the command.

    Several processes, and DeepSpeed, are started by accelerate, told what the trial was told; on a CPU by
    torchrun, as accelerate (1.15) starts processes there by MPI only.
    """
    level = training.candidate.level
    if level.processes == 1 and not level.uses_deepspeed:
        return {}, ("python", TRAIN)
    if training.on_cpu and not level.uses_deepspeed:
        return {}, ("torchrun", "--standalone", "--nproc_per_node", str(level.processes), TRAIN)
    return _launch_files(training)[0], ("accelerate", "launch", "--config_file", ACCELERATE_FILE, TRAIN)


def _launch_files(training: Training) -> tuple[dict[str, str], tuple[Gap, ...]]:
    written = write(settings_of(training), Trainer.ACCELERATE)
    keys = {"compute_environment": "LOCAL_MACHINE", "debug": False, **written.keys, "same_network": True}
    if training.on_cpu:
        # DeepSpeed finds the CPU by itself; told of it, accelerate (1.15) would leave DeepSpeed out.
        keys["use_cpu"] = not training.candidate.level.uses_deepspeed
    text = _yaml(training, "accelerate", VERSIONS[Trainer.ACCELERATE], keys, written.gaps)
    files = {ACCELERATE_FILE: text}
    if (config := deepspeed_config(training.candidate)) is not None:
        files[DEEPSPEED_FILE] = _json(config)
    return files, written.gaps


def _peft(training: Training) -> Outline:
    if training.adapter_config is None:
        raise ExportRefused(
            f"{training.candidate.adapter.describe()} has no adapter, so there is none to write for PEFT",
            next_step=f"export it as {Format.TRANSFORMERS} or {Format.RANKWISE}",
        )
    return Outline(files=_adapter_file(training))


def _transformers(training: Training) -> Outline:
    files, gaps = _trainer_files(training)
    program = "train_transformers.py"
    return Outline(files=files, programs=(program,), commands=(("python", program),), gaps=gaps)


def _trl(training: Training) -> Outline:
    """The program takes every adapter, the command line's file LoRA only: then it is left out."""
    _require_causal(training, "TRL's SFT")
    _require_transformers_model(training, "TRL")
    settings, program = settings_of(training), "train_trl.py"
    written = write(settings, Trainer.TRL)
    files, gaps = _trainer_files(training)
    try:
        require_same_training(written.gaps, "the command line of TRL", instead=Format.TRL)
    except ExportRefused as refusal:
        left_out = Gap(
            setting="method",
            value=settings["method"],
            reason=f"sft.yaml is left out: {refusal.message}",
            effect=Effect.OTHER_TRAINING,
        )
        command = ("python", program)
        return Outline(files=files, programs=(program,), commands=(command,), gaps=(*gaps, left_out))
    keys = {
        **written.keys,
        "dataset_name": DATA_FOLDER,
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        **_trainer_run(training),
    }
    text = _yaml(training, "TRL", VERSIONS[Trainer.TRL], keys, written.gaps)
    return Outline(
        files={**files, "sft.yaml": text},
        programs=(program, PREPARE),
        commands=(_prepare(training, "--unpacked"), ("trl", "sft", "--config", "sft.yaml")),
        gaps=written.gaps,
    )


def _axolotl(training: Training) -> Outline:
    _require_transformers_model(training, "Axolotl")
    written = write(settings_of(training), Trainer.AXOLOTL)
    require_same_training(written.gaps, "Axolotl", instead=_else(training))
    # A path that exists is looked for nowhere else; rows with labels are taken as they are, without a type.
    rows = {"ds_type": "json", "split": "train"}
    keys = {
        **written.keys,
        "datasets": [{"path": f"{DATA_FOLDER}/train.jsonl", **rows}],
        "test_datasets": [{"path": f"{DATA_FOLDER}/validation.jsonl", **rows}],
        "dataset_prepared_path": f"{DATA_FOLDER}/axolotl",
        "val_set_size": 0,
        "dataloader_drop_last": True,
        "evals_per_epoch": 1,
        "saves_per_epoch": 1,
        "logging_steps": 10,
        "output_dir": OUTPUT_FOLDER,
    }
    text = _yaml(training, "Axolotl", VERSIONS[Trainer.AXOLOTL], keys, written.gaps)
    return Outline(
        files={"axolotl.yaml": text},
        programs=(PREPARE,),
        commands=(_prepare(training, "--unpacked"), ("axolotl", "train", "axolotl.yaml")),
        gaps=written.gaps,
    )


def _llama_factory(training: Training) -> Outline:
    _require_transformers_model(training, "LLaMA-Factory")
    written = write(settings_of(training), Trainer.LLAMA_FACTORY)
    require_same_training(written.gaps, "LLaMA-Factory", instead=_else(training))
    keys = {
        "stage": "sft",
        "do_train": True,
        **written.keys,
        # With rows that are tokenised already, names of datasets are asked for and not looked up.
        "dataset": "prepared",
        "eval_dataset": "prepared",
        "tokenized_path": TOKENIZED_FOLDER,
        "template": "empty",
        **_trainer_run(training),
    }
    text = _yaml(training, "LLaMA-Factory", VERSIONS[Trainer.LLAMA_FACTORY], keys, written.gaps)
    return Outline(
        files={"llamafactory.yaml": text},
        programs=(PREPARE,),
        commands=(
            _prepare(training, "--arrow", TOKENIZED_FOLDER),
            ("llamafactory-cli", "train", "llamafactory.yaml"),
        ),
        gaps=written.gaps,
    )


def _accelerate(training: Training) -> Outline:
    files, gaps = _launch_files(training)
    command = ("accelerate", "launch", "--config_file", ACCELERATE_FILE, TRAIN)
    return Outline(
        files={**files, **_adapter_file(training)}, programs=(TRAIN,), commands=(command,), gaps=gaps
    )


def _deepspeed(training: Training) -> Outline:
    written = write(settings_of(training), Trainer.DEEPSPEED)
    files, gaps = _trainer_files(training, deepspeed=DEEPSPEED_FILE)
    # DeepSpeed's file tells these, and the command.
    told = ("processes", "zero_stage")
    program, count = "train_transformers.py", str(training.candidate.level.processes)
    return Outline(
        files={DEEPSPEED_FILE: _json(written.keys), **files},
        programs=(program,),
        commands=(("accelerate", "launch", "--num_processes", count, program),),
        gaps=(*written.gaps, *(gap for gap in gaps if gap.setting not in told)),
    )


def _lightning(training: Training) -> Outline:
    return _program_with_snippet(training, "train_lightning.py", snippets.lightning_snippet)


def _pytorch(training: Training) -> Outline:
    return _program_with_snippet(training, "train_pytorch.py", snippets.pytorch_snippet)


def _program_with_snippet(training: Training, program: str, snippet: Callable[[Training], str]) -> Outline:
    """The whole program, and the same in few lines where these are enough."""
    files, command = _adapter_file(training), ("python", program)
    alone = write(settings_of(training), Trainer.TRANSFORMERS).gaps
    gaps = tuple(gap for gap in alone if gap.setting in ("processes", "zero_stage", "fsdp"))
    if not snippets.can_be_shown(training):
        return Outline(files=files, programs=(program,), commands=(command,), gaps=gaps)
    files[SNIPPET] = snippet(training)
    return Outline(files=files, programs=(program, PREPARE), commands=(command,), gaps=gaps)


def _slurm(training: Training) -> Outline:
    files, command = launched(training)
    return Outline(
        files={**files, "job.sbatch": jobs.slurm_script(training, command, OUTPUT_FOLDER)},
        programs=(TRAIN,),
        commands=(("sbatch", "job.sbatch"),),
    )


def _kubernetes(training: Training) -> Outline:
    files, command = launched(training)
    program = [f"--from-file={name}" for name in (TRAIN, *files)]
    return Outline(
        files={**files, "job.yaml": jobs.kubernetes_job(training, command)},
        programs=(TRAIN,),
        commands=(
            ("kubectl", "create", "configmap", jobs.name_of(training), *program),
            ("kubectl", "apply", "-f", "job.yaml"),
        ),
    )


_OUTLINES: Mapping[Format, Callable[[Training], Outline]] = {
    Format.RANKWISE: _rankwise,
    Format.PEFT: _peft,
    Format.TRANSFORMERS: _transformers,
    Format.TRL: _trl,
    Format.AXOLOTL: _axolotl,
    Format.LLAMA_FACTORY: _llama_factory,
    Format.ACCELERATE: _accelerate,
    Format.DEEPSPEED: _deepspeed,
    Format.LIGHTNING: _lightning,
    Format.PYTORCH: _pytorch,
    Format.SLURM: _slurm,
    Format.KUBERNETES: _kubernetes,
}


def _trainer_files(
    training: Training, *, deepspeed: str | None = None
) -> tuple[dict[str, str], tuple[Gap, ...]]:
    written = write(settings_of(training), Trainer.TRANSFORMERS)
    keys = written.keys
    if deepspeed:
        keys = {
            **keys,
            "deepspeed": deepspeed,
            "gradient_accumulation_steps": training.candidate.accumulation,
        }
    return {ARGUMENTS_FILE: _json(keys), **_adapter_file(training)}, written.gaps


def _trainer_run(training: Training) -> dict[str, Any]:
    """How those that are built on the Trainer evaluate, save and log."""
    return {
        "dataloader_drop_last": True,
        "per_device_eval_batch_size": training.candidate.micro_batch,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 10,
        "report_to": "none",
        "output_dir": OUTPUT_FOLDER,
    }


def _adapter_file(training: Training) -> dict[str, str]:
    return {} if training.adapter_config is None else {ADAPTER_FILE: _json(training.adapter_config)}


def _prepare(training: Training, *options: str) -> tuple[str, ...]:
    """Rows stay apart where the trainer packs them by itself."""
    if options[0] == "--unpacked" and not training.candidate.recipe.packing:
        options = ()
    return ("python", PREPARE, *options)


def _require_causal(training: Training, who: str) -> None:
    if training.task.value not in CAUSAL:
        raise ExportRefused(
            f"{who} trains causal language models, and the task is {training.task}",
            next_step=f"export it as {Format.TRANSFORMERS}, {Format.LIGHTNING} or {Format.RANKWISE}",
        )


def _require_transformers_model(training: Training, who: str) -> None:
    if training.factory is not None:
        raise ExportRefused(
            f"{who} loads models of transformers, and {training.factory} makes this one",
            next_step=f"export it as {Format.RANKWISE}, {Format.LIGHTNING} or {Format.PYTORCH}",
        )


def _else(training: Training) -> str:
    """A format that takes every method for this task."""
    causal = training.task.value in CAUSAL
    return f"{Format.TRL} or {Format.TRANSFORMERS}" if causal else str(Format.TRANSFORMERS)


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


def _yaml(training: Training, who: str, version: str, keys: Mapping[str, Any], gaps: tuple[Gap, ...]) -> str:
    head = [
        f"{training.candidate.describe()}",
        f"Measured by rankwise (study {training.study_id}); written for {who} {version}.",
    ]
    if gaps:
        head += ["", f"What {who} cannot be told:"]
        head += [f"  {gap.setting} {json.dumps(gap.value)}: {gap.reason}." for gap in gaps]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    body: str = yaml.safe_dump(dict(keys), sort_keys=False, allow_unicode=True, width=LINE)
    return comment + body


def named_format(text: str) -> Format:
    """The format of this name.

    Raises:
        InputError: there is none.
    """
    try:
        return Format(text)
    except ValueError:
        raise InputError(
            f"there is no format {text!r:.40}", next_step=f"use one of {', '.join(Format)}"
        ) from None
