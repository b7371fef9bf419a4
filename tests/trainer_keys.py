"""Writes ``optimizer/trainers/known_keys.py``: the names of all keys that each trainer takes.

    python tests/trainer_keys.py --axolotl SRC --llamafactory SRC

Each SRC is the unpacked package of the version in the table. What is left out keeps the names that are
written down; transformers, TRL, accelerate and PEFT are the installed ones.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "optimizer" / "trainers" / "known_keys.py"


def _words(text: str) -> list[str]:
    return text.split()


OLDER = _words(
    """
    warmup_ratio gradient_checkpointing gradient_checkpointing_kwargs overwrite_output_dir group_by_length
    save_safetensors logging_dir no_cuda evaluation_strategy fp16_full_eval bf16_full_eval tpu_num_cores
    past_index jit_mode_eval use_ipex half_precision_backend fp16_backend fp16_opt_level torchdynamo
    ray_scope include_inputs_for_metrics use_mps_device push_to_hub_model_id push_to_hub_organization
    push_to_hub_token
    """
)
"""Of transformers 4's TrainingArguments, which LLaMA-Factory still runs with."""

DEEPSPEED = _words(
    """
    activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger
    communication_data_type compile compression_training csv_monitor curriculum_learning data_efficiency
    data_types dataloader_drop_last dump_state eigenvalue elasticity flops_profiler fp16
    gradient_accumulation_steps gradient_clipping gradient_predivide_factor graph_harvesting hybrid_engine
    memory_breakdown monitor nebula optimizer pipeline prescale_gradients progressive_layer_drop
    quantize_training scheduler seq_parallel_communication_data_type sparse_attention sparse_gradients
    steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size
    train_micro_batch_size_per_gpu use_data_before_expert_parallelism wall_clock_breakdown wandb
    weight_quantization zenflow zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """
)
"""The outermost keys of its configuration (deepspeed.runtime.config, 0.19): it reads them one by one."""

HEAD = '''"""The names of all keys that each trainer takes, at the versions of the table.

Written by ``tests/trainer_keys.py``; names only.
"""

from __future__ import annotations

from collections.abc import Mapping

PEFT = "peft"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KNOWN_KEYS: Mapping[str, frozenset[str]] = {
'''


def installed() -> dict[str, set[str]]:
    """Of the packages that are installed."""
    import transformers
    from accelerate.commands.config.config_args import ClusterConfig
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from trl import ModelConfig, SFTConfig
    from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

    def names(*kinds: type) -> set[str]:
        return {field.name for kind in kinds for field in dataclasses.fields(kind)}  # type: ignore[arg-type]

    used = (PeftType.LORA, PeftType.ADALORA, PeftType.IA3, PeftType.OFT, PeftType.MISS)
    return {
        "transformers": names(transformers.TrainingArguments),
        # The two beside the fields are the program's own (trl.scripts.utils.TrlParser).
        "trl": names(SFTConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig) | {"env", "config"},
        "accelerate": names(ClusterConfig),
        "peft": names(*(PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in used)),
    }


def annotated(files: Iterable[Path], classes: str) -> set[str]:
    """Fields of the classes whose names match, told from the source."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and re.fullmatch(classes, node.name):
                fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
                found |= {field.id for field in fields if isinstance(field, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def bases_of(files: Iterable[Path], name: str) -> set[str]:
    """The class and what it is made of, by name."""
    tree = {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    left = [name]
    while left:
        each = left.pop()
        if each not in found and each in tree:
            found.add(each)
            left += tree[each]
    return found


def axolotl(package: Path) -> set[str]:
    """The configuration, its parts and those of the integrations."""
    schemas = sorted((package / "utils" / "schemas").rglob("*.py"))
    own = annotated(schemas, "|".join(bases_of(schemas, "AxolotlInputConfig")))
    return own | annotated(sorted((package / "integrations").rglob("args.py")), r"\w+Args?")


def llamafactory(package: Path, transformers: set[str]) -> set[str]:
    """Its own arguments and the Trainer's."""
    files = sorted((package / "hparams").glob("*_args.py"))
    return annotated(files, r"\w+Arguments") | transformers | set(OLDER)


def as_text(known: Mapping[str, Iterable[str]]) -> str:
    """The module's source."""
    blocks = []
    for trainer, names in known.items():
        lines = textwrap.wrap(" ".join(sorted(names)), 100, break_long_words=False, break_on_hyphens=False)
        body = "\n".join(f"        {line}" for line in lines)
        blocks.append(f'    "{trainer}": _names(\n        """\n{body}\n        """\n    ),\n')
    return HEAD + "".join(blocks) + "}\n"


def main() -> None:
    """Write the module anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("axolotl", "llamafactory"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    known = installed()
    before: dict[str, set[str]] = {}
    if TARGET.exists():
        namespace: dict[str, dict[str, set[str]]] = {}
        exec(compile(TARGET.read_text("utf-8"), str(TARGET), "exec"), namespace)  # noqa: S102
        before = namespace["KNOWN_KEYS"]
    known["axolotl"] = axolotl(given.axolotl) if given.axolotl else before["axolotl"]
    known["llamafactory"] = (
        llamafactory(given.llamafactory, known["transformers"])
        if given.llamafactory
        else before["llamafactory"]
    )
    known["deepspeed"] = set(DEEPSPEED)
    TARGET.write_text(as_text(known), "utf-8")


if __name__ == "__main__":
    main()
