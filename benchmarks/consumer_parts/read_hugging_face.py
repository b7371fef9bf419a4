"""TRL, PEFT, transformers, accelerate and DeepSpeed read their files, each by its own parser."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import adapted, as_on_a_gpu, plain, read_all


def read(path: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of every file beside ``case.json``."""
    answer: dict[str, Any] = {}
    for name, reader in READERS.items():
        if (path.parent / name).exists():
            answer[name] = reader(path.parent / name, case)
    return answer


def read_adapter(path: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(path.parent)
    said = json.loads(path.read_text())
    unknown = [key for key in said if not hasattr(config, key)]
    fits = not case["task"].startswith(("text", "regression", "seq2seq"))
    return {
        "unknown": unknown,
        "adapter": plain(config),
        "trained": adapted(case["family"], config) if fits else None,
    }


def read_arguments(path: Path, _: Mapping[str, Any]) -> dict[str, Any]:
    """transformers, on a machine without a GPU: what asks for one is checked by what it is told."""
    from transformers import HfArgumentParser, TrainingArguments

    said = json.loads(path.read_text())
    said.pop("deepspeed", None)
    (arguments,) = HfArgumentParser(TrainingArguments).parse_dict(
        {**said, "output_dir": tempfile.gettempdir()}
    )
    understood = {key: getattr(arguments, key) for key in said}
    return {"changed": {key: (said[key], value) for key, value in understood.items() if value != said[key]}}


def read_sft(path: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's command line."""
    from trl import get_peft_config, get_quantization_config
    from trl.scripts.sft import make_parser

    parsed = make_parser().parse_args_and_config(["--config", str(path)], fail_with_unknown_args=True)
    script, training, model, _ = parsed[:4]
    quantization, adapter = get_quantization_config(model), get_peft_config(model)
    answer = {
        "dataset": (script.dataset_name, script.dataset_train_split, script.dataset_test_split),
        "model": model.model_name_or_path,
        "dtype": str(model.dtype),
        "bf16": training.bf16,
        "loss_type": training.loss_type,
        "max_steps": training.max_steps,
        "quantization": quantization and quantization.to_dict(),
    }
    if adapter is not None:
        answer |= {"adapter": plain(adapter), "trained": adapted(case["family"], adapter)}
    return answer


def read_accelerate(path: Path, _: Mapping[str, Any]) -> dict[str, Any]:
    """accelerate: its file, and how ``accelerate launch`` understands it."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = load_config_from_file(str(path))
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    launched, _, _ = _validate_launch_command(arguments)
    return {
        "distributed": str(config.distributed_type),
        "mixed_precision": launched.mixed_precision,
        "use_deepspeed": launched.use_deepspeed,
        "cpu": launched.cpu,
    }


def read_deepspeed(path: Path, _: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own configuration object."""
    from deepspeed import DeepSpeedConfig

    config = DeepSpeedConfig(json.loads(path.read_text()))
    zero = config.zero_config
    return {
        "stage": int(zero.stage),
        "micro_batch": config.train_micro_batch_size_per_gpu,
        "accumulation": config.gradient_accumulation_steps,
        "clipping": config.gradient_clipping,
        "offload_optimizer": bool(zero.offload_optimizer),
        "offload_parameters": bool(zero.offload_param),
    }


def guarded(reader: Any) -> Any:
    """An error is an answer too."""

    def read_one(path: Path, case: Mapping[str, Any]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = reader(path, case)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a refusal is an answer
            return {"error": f"{type(error).__name__}: {error}"}
        return found

    return read_one


READERS = {
    "adapter_config.json": guarded(read_adapter),
    "training_args.json": guarded(read_arguments),
    "sft.yaml": guarded(read_sft),
    "accelerate.yaml": guarded(read_accelerate),
    "ds_config.json": guarded(read_deepspeed),
}

as_on_a_gpu()
read_all("case.json", read)
