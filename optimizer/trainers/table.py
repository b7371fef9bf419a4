"""The one table: each setting in each trainer's words.

Versions that the columns were written for are in :data:`VERSIONS`; tests hold each column against the trainer
itself. Rows stand in the order in which a file names its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from . import axolotl, hugging_face, launchers, llama_factory
from .cells import Cell, Effect, elsewhere, key, only, several, word
from .hugging_face import SEQUENTIAL
from .settings import PREPARED


class Trainer(StrEnum):
    """Who reads a file."""

    TRANSFORMERS = "transformers"
    TRL = "trl"
    AXOLOTL = "axolotl"
    LLAMA_FACTORY = "llamafactory"
    ACCELERATE = "accelerate"
    DEEPSPEED = "deepspeed"


VERSIONS: Mapping[Trainer, str] = {
    Trainer.TRANSFORMERS: "5.23",
    Trainer.TRL: "1.16",
    Trainer.AXOLOTL: "0.19",
    Trainer.LLAMA_FACTORY: "0.9.5",
    Trainer.ACCELERATE: "1.15",
    Trainer.DEEPSPEED: "0.19",
}
"""That the columns were written for."""

IN_PROGRAM = elsewhere("the training program")
IN_ADAPTER_FILE = elsewhere("adapter_config.json")
IN_ROWS = elsewhere("the prepared rows")
LAUNCHED = elsewhere("what is launched")
WEIGHT_DECAY = several(("weight_decay",), hugging_face.weight_decay, key("weight_decay", default=0.0).read)
UNDIVIDED = Cell(launchers.undivided, launchers.read_undivided, ())
ALONE = several((), launchers.alone)
ACCUMULATED_ALONE = several(
    ("gradient_accumulation_steps",),
    launchers.accumulated_alone,
    key("gradient_accumulation_steps", default=1).read,
)
TOTAL_STEPS = several(("max_steps",), hugging_face.total_steps, hugging_face.read_total_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting, a cell a trainer. The Trainer has a program around it, and launchers launch one."""

    transformers: Cell = IN_PROGRAM
    trl: Cell
    axolotl: Cell
    llamafactory: Cell
    accelerate: Cell = LAUNCHED
    deepspeed: Cell = LAUNCHED

    def cell(self, trainer: Trainer) -> Cell:
        """Of one trainer."""
        found: Cell = getattr(self, trainer.value)
        return found


CAUSAL = ("causal-lm", "prompt-completion", "chat")
NO_WEIGHTS = "weights are loaded, and the model's folder has none"


def everywhere(cell: Cell) -> dict[str, Cell]:
    """The same word for the four that train."""
    return {"transformers": cell, "trl": cell, "axolotl": cell, "llamafactory": cell}


TABLE: Mapping[str, Row] = {
    "model": Row(
        trl=key("model_name_or_path"), axolotl=key("base_model"), llamafactory=key("model_name_or_path")
    ),
    "model_revision": Row(
        trl=key("model_revision", default=None, omit_empty=True),
        axolotl=key("revision_of_model", default=None, omit_empty=True),
        llamafactory=key("model_revision", default=None, omit_empty=True),
    ),
    "model_code": Row(
        trl=key("trust_remote_code", default=False),
        axolotl=key("trust_remote_code", default=False),
        llamafactory=key("trust_remote_code", default=False),
    ),
    "model_weights": Row(
        trl=only(True, instead=NO_WEIGHTS),
        axolotl=only(True, instead=NO_WEIGHTS),
        llamafactory=only(True, instead=NO_WEIGHTS),
    ),
    "task": Row(
        trl=only(*CAUSAL, instead="its SFT trains causal language models"),
        axolotl=only(*CAUSAL, instead="its file is for causal language models"),
        llamafactory=only(*CAUSAL, instead="its supervised fine-tuning is for causal language models"),
    ),
    "method": Row(
        transformers=IN_ADAPTER_FILE,
        trl=several(("use_peft",), hugging_face.trl_method, hugging_face.read_trl_method),
        axolotl=several(
            ("adapter", "unfrozen_parameters", *axolotl.OWN_KERNELS), axolotl.method, axolotl.read_method
        ),
        llamafactory=several(
            (
                "finetuning_type",
                "freeze_trainable_layers",
                "freeze_trainable_modules",
            ),
            llama_factory.method,
            llama_factory.read_method,
        ),
    ),
    "rank": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key("lora_r", default=16, omit_empty=True),
        axolotl=key("lora_r", omit_empty=True),
        llamafactory=key("lora_rank", default=8, omit_empty=True),
    ),
    "alpha": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key("lora_alpha", default=32, to=hugging_face.whole, omit_empty=True),
        axolotl=key("lora_alpha", to=hugging_face.whole, omit_empty=True),
        llamafactory=several(("lora_alpha",), llama_factory.alpha, llama_factory.read_alpha),
    ),
    "dropout": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key("lora_dropout", default=0.05),
        axolotl=key("lora_dropout", default=0.0),
        llamafactory=key("lora_dropout", default=0.0),
    ),
    "targets": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key(
            "lora_target_modules",
            to=hugging_face.trl_targets,
            back=hugging_face.read_trl_targets,
            omit_empty=True,
        ),
        axolotl=several(("lora_target_modules", "lora_target_linear"), axolotl.targets, axolotl.read_targets),
        llamafactory=key(
            "lora_target",
            default="all-linear",
            to=llama_factory.targets,
            back=hugging_face.read_targets,
            omit_empty=True,
        ),
    ),
    "target_parameters": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key("lora_target_parameters", default=[], omit_empty=True),
        axolotl=key("lora_target_parameters", default=[], omit_empty=True),
        llamafactory=only([], instead="the experts' matrices would be left out"),
    ),
    "trained_modules": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key("lora_modules_to_save", default=[], omit_empty=True),
        axolotl=several(
            ("lora_modules_to_save",),
            axolotl.trained_modules,
            lambda keys: keys.get("lora_modules_to_save") or [],
        ),
        llamafactory=several(
            ("additional_target",), llama_factory.trained_modules, llama_factory.read_trained_modules
        ),
    ),
    "unfrozen": Row(
        trl=only([], instead="all weights would be trained"),
        axolotl=elsewhere("the setting method"),
        llamafactory=elsewhere("the setting method"),
    ),
    "last_blocks": Row(
        trl=only(None, instead="all weights would be trained"),
        axolotl=elsewhere("the setting method"),
        llamafactory=elsewhere("the setting method"),
    ),
    "rslora": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key("use_rslora", default=False),
        axolotl=key("peft_use_rslora", default=False),
        llamafactory=key("use_rslora", default=False),
    ),
    "dora": Row(
        transformers=IN_ADAPTER_FILE,
        trl=key("use_dora", default=False),
        axolotl=key("peft_use_dora", default=False),
        llamafactory=key("use_dora", default=False),
    ),
    "rank_pattern": Row(
        transformers=IN_ADAPTER_FILE,
        trl=only({}, instead="all modules would have one rank (train_trl.py gives each its own)"),
        axolotl=key("lora_rank_pattern", default={}, omit_empty=True),
        llamafactory=only({}, instead="all modules would have one rank"),
    ),
    "alpha_pattern": Row(
        transformers=IN_ADAPTER_FILE,
        trl=only({}, instead="all modules would have one alpha (train_trl.py gives each its own)"),
        axolotl=key("lora_alpha_pattern", default={}, to=axolotl.alphas, omit_empty=True),
        llamafactory=only({}, instead="all modules would have one alpha"),
    ),
    "init_weights": Row(
        transformers=IN_ADAPTER_FILE,
        trl=only(None, instead="adapters start as usual (train_trl.py starts them otherwise)"),
        axolotl=key("peft_init_lora_weights", default=None, omit_empty=True),
        llamafactory=several(
            ("pissa_init", "pissa_iter"),
            llama_factory.init_weights,
            lambda keys: "pissa" if keys.get("pissa_init") else None,
        ),
    ),
    "weight_dtype": Row(
        trl=key("dtype", default="float32"),
        axolotl=several((), axolotl.weight_dtype, axolotl.read_weight_dtype),
        llamafactory=several((), llama_factory.weight_dtype, llama_factory.read_weight_dtype),
    ),
    "autocast": Row(
        transformers=several(("bf16", "fp16"), hugging_face.precision, hugging_face.read_precision),
        trl=several(("bf16", "fp16"), hugging_face.precision, hugging_face.read_trl_precision),
        axolotl=several(
            ("bf16", "fp16", "tf32", "bfloat16", "float16"), axolotl.precision, axolotl.read_precision
        ),
        llamafactory=several(
            ("bf16", "fp16", "pure_bf16"), llama_factory.autocast, hugging_face.read_precision
        ),
        accelerate=several(("mixed_precision",), launchers.mixed_precision, launchers.read_mixed_precision),
        deepspeed=several(
            ("torch_autocast", "bf16", "fp16"),
            launchers.deepspeed_precision,
            launchers.read_deepspeed_precision,
        ),
    ),
    "adapter_dtype": Row(
        trl=several((), hugging_face.trl_adapter_dtype, lambda _: "float32"),
        axolotl=several(("peft_autocast_adapter_dtype",), axolotl.adapter_dtype, axolotl.read_adapter_dtype),
        llamafactory=several((), llama_factory.adapter_dtype, lambda _: "float32"),
    ),
    "quantization": Row(
        trl=several(
            ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"),
            hugging_face.trl_quantization,
            hugging_face.read_trl_quantization,
        ),
        axolotl=several(
            ("load_in_4bit", "load_in_8bit", "bnb_config_kwargs"),
            axolotl.quantization,
            axolotl.read_quantization,
        ),
        llamafactory=several(
            ("quantization_method", "quantization_bit", "quantization_type", "double_quantization"),
            llama_factory.quantization,
            llama_factory.read_quantization,
        ),
    ),
    "double_quantization": Row(
        trl=several((), lambda _: {}, lambda keys: bool(keys.get("use_bnb_nested_quant"))),
        axolotl=several((), lambda _: {}, axolotl.read_double_quantization),
        llamafactory=several((), lambda _: {}, llama_factory.read_double_quantization),
    ),
    "quantization_dtype": Row(
        trl=several((), hugging_face.trl_quantization_dtype),
        axolotl=elsewhere("the setting autocast"),
        llamafactory=elsewhere("the setting autocast"),
    ),
    "skip_modules": Row(
        trl=several((), hugging_face.only_usual_skips, lambda _: []),
        axolotl=several((), axolotl.skip_modules, axolotl.read_skip_modules),
        llamafactory=several((), hugging_face.only_usual_skips, lambda _: []),
    ),
    "gradient_checkpointing": Row(
        transformers=several(
            ("activation_checkpointing", "activation_checkpointing_kwargs"),
            hugging_face.checkpointing,
            hugging_face.read_checkpointing,
        ),
        trl=several(
            ("gradient_checkpointing", "gradient_checkpointing_kwargs"),
            hugging_face.old_checkpointing,
            hugging_face.read_trl_checkpointing,
        ),
        axolotl=several(
            ("gradient_checkpointing", "gradient_checkpointing_kwargs"),
            hugging_face.old_checkpointing,
            hugging_face.read_checkpointing,
        ),
        llamafactory=several(
            ("disable_gradient_checkpointing", "use_reentrant_gc"),
            llama_factory.checkpointing,
            lambda keys: not keys.get("disable_gradient_checkpointing"),
        ),
    ),
    "attention": Row(
        trl=key("attn_implementation", default="sdpa"),
        axolotl=several(
            ("attn_implementation", "flash_attention", "sdp_attention", "eager_attention"),
            lambda settings: {"attn_implementation": settings["attention"]},
            axolotl.read_attention,
        ),
        llamafactory=word(
            "flash_attn",
            llama_factory.ATTENTION,
            default="sdpa",
            otherwise="its kernels are sdpa, disabled (eager), fa2 and fa3",
        ),
    ),
    "loss": Row(
        transformers=several(
            ("use_liger_kernel", "liger_kernel_config"), hugging_face.loss, hugging_face.read_loss
        ),
        trl=several(
            ("use_liger_kernel", "liger_kernel_config"),
            hugging_face.trl_loss,
            hugging_face.read_trl_loss,
        ),
        axolotl=several(
            ("liger_fused_linear_cross_entropy", "plugins", "chunked_cross_entropy"),
            axolotl.loss,
            axolotl.read_loss,
        ),
        llamafactory=several(
            ("enable_liger_kernel",),
            llama_factory.loss,
            lambda keys: "liger" if keys.get("enable_liger_kernel") else "plain",
        ),
    ),
    "compile": Row(**everywhere(key("torch_compile", default=False))),
    "optimizer": Row(
        transformers=key("optim", default="adamw_torch_fused"),
        trl=key("optim", default="adamw_torch_fused"),
        axolotl=key("optimizer", default="adamw_torch_fused"),
        llamafactory=key("optim", default="adamw_torch"),
        deepspeed=several(("zero_allow_untested_optimizer",), launchers.untested_optimizer),
    ),
    "processes": Row(
        transformers=ALONE,
        trl=ALONE,
        axolotl=ALONE,
        llamafactory=ALONE,
        accelerate=several(
            ("num_processes", "num_machines", "machine_rank", "main_process_port"),
            launchers.processes,
            lambda keys: int(keys.get("num_processes") or 1),
        ),
    ),
    "zero_stage": Row(
        transformers=UNDIVIDED,
        trl=UNDIVIDED,
        axolotl=UNDIVIDED,
        llamafactory=UNDIVIDED,
        accelerate=several(
            ("distributed_type", "deepspeed_config", "fsdp_config"),
            launchers.accelerate_sharding,
            launchers.read_accelerate_zero,
        ),
        deepspeed=several(("zero_optimization",), launchers.zero, launchers.read_zero),
    ),
    "fsdp": Row(
        transformers=UNDIVIDED,
        trl=UNDIVIDED,
        axolotl=UNDIVIDED,
        llamafactory=UNDIVIDED,
        accelerate=several((), lambda _: {}, launchers.read_accelerate_fsdp),
        deepspeed=elsewhere("the setting zero_stage"),
    ),
    "offload": Row(
        trl=elsewhere("the setting zero_stage"),
        axolotl=elsewhere("the setting zero_stage"),
        llamafactory=elsewhere("the setting zero_stage"),
        deepspeed=several((), lambda _: {}, launchers.read_offload),
    ),
    "micro_batch": Row(
        transformers=key("per_device_train_batch_size", default=8),
        trl=key("per_device_train_batch_size", default=8),
        axolotl=key("micro_batch_size", default=1),
        llamafactory=key("per_device_train_batch_size", default=8),
        deepspeed=key("train_micro_batch_size_per_gpu"),
    ),
    "accumulation": Row(
        **everywhere(ACCUMULATED_ALONE),
        deepspeed=key("gradient_accumulation_steps", default=1),
    ),
    "effective_batch": Row(
        trl=several((), hugging_face.whole_batches),
        axolotl=several((), hugging_face.whole_batches),
        llamafactory=several((), hugging_face.whole_batches),
    ),
    "epochs": Row(
        transformers=key("num_train_epochs", default=3.0),
        trl=key("num_train_epochs", default=3.0),
        axolotl=key("num_epochs", default=1.0),
        llamafactory=key("num_train_epochs", default=3.0),
    ),
    "total_steps": Row(
        trl=TOTAL_STEPS,
        axolotl=TOTAL_STEPS,
        llamafactory=TOTAL_STEPS,
    ),
    "learning_rate": Row(
        transformers=key("learning_rate", default=5e-5, back=float),
        trl=key("learning_rate", default=2e-5, back=float),
        axolotl=key("learning_rate", back=float),
        llamafactory=key("learning_rate", default=5e-5, back=float),
    ),
    "schedule": Row(
        transformers=key("lr_scheduler_type", default="linear"),
        trl=key("lr_scheduler_type", default="linear"),
        axolotl=key("lr_scheduler", default="cosine"),
        llamafactory=key("lr_scheduler_type", default="linear"),
    ),
    "warmup_share": Row(
        # Below 1 it is the share of all steps: the Trainer has no warmup_ratio any more.
        transformers=several(("warmup_steps",), hugging_face.warmup, hugging_face.read_warmup),
        trl=several(("warmup_steps",), hugging_face.warmup, hugging_face.read_warmup),
        axolotl=several(("warmup_ratio", "warmup_steps"), axolotl.warmup, hugging_face.read_warmup),
        llamafactory=several(
            ("warmup_steps", "warmup_ratio"), llama_factory.warmup, hugging_face.read_warmup
        ),
    ),
    "weight_decay": Row(
        transformers=key("weight_decay", default=0.0),
        trl=WEIGHT_DECAY,
        axolotl=WEIGHT_DECAY,
        llamafactory=WEIGHT_DECAY,
    ),
    "max_grad_norm": Row(
        **everywhere(key("max_grad_norm", default=1.0)), deepspeed=key("gradient_clipping", default=0.0)
    ),
    "max_length": Row(
        trl=key("max_length", default=1024),
        axolotl=several(
            ("sequence_len", "excess_length_strategy"),
            axolotl.max_length,
            lambda keys: keys.get("sequence_len") or 512,
        ),
        llamafactory=key("cutoff_len", default=2048),
    ),
    "packing": Row(
        trl=several(
            ("packing", "packing_strategy", "eval_packing"),
            hugging_face.trl_packing,
            lambda keys: bool(keys.get("packing")),
        ),
        axolotl=several(
            ("sample_packing", "eval_sample_packing", "pad_to_sequence_len"),
            axolotl.packing,
            lambda keys: bool(keys.get("sample_packing")),
        ),
        llamafactory=several(
            ("packing", "neat_packing"),
            llama_factory.packing,
            lambda keys: bool(keys.get("packing") or keys.get("neat_packing")),
        ),
    ),
    "loss_mask": Row(trl=IN_ROWS, axolotl=IN_ROWS, llamafactory=IN_ROWS),
    "row_order": Row(
        trl=word(
            "train_sampling_strategy", {PREPARED: SEQUENTIAL}, default=None, otherwise="rows are shuffled"
        ),
        axolotl=several(
            ("shuffle_merged_datasets", "curriculum_sampling"), axolotl.row_order, axolotl.read_row_order
        ),
        llamafactory=word("disable_shuffling", {PREPARED: True}, default=None, otherwise="rows are shuffled"),
    ),
    "seed": Row(
        transformers=key("seed", default=42),
        trl=key("seed", default=42),
        axolotl=key("seed", default=42),
        llamafactory=key("seed", default=42),
    ),
    "cpu": Row(
        transformers=key("use_cpu", default=False),
        trl=key("use_cpu", default=False),
        axolotl=only(False, instead="it trains on GPUs", effect=Effect.OTHER_COST),
        llamafactory=key("use_cpu", default=False),
        accelerate=key("use_cpu", default=False),
    ),
}
