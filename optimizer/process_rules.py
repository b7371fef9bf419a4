"""What cannot work, or cannot help, where a training is spread over processes or offloads to the host.

As :mod:`.rules`, each tried with the versions that it names.
"""

from __future__ import annotations

from .domain import Method, Quantization
from .rule import PEFT, Rule
from .sizes import ZERO_DIVIDES_WEIGHTS, divides_weights

ACCELERATE = "accelerate 1.15"
DEEPSPEED = "deepspeed 0.19"
TORCH = "torch 2.13"

BLOCKS_WITH_EMBEDDINGS = frozenset(
    {
        "bert",
        "camembert",
        "data2vec-text",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "esm",
        "modernbert",
        "nomic_bert",
        "roberta",
        "roberta-prelayernorm",
        "vit",
        "vit_mae",
        "vit_msn",
        "xlm-roberta",
        "xlm-roberta-xl",
        "yolos",
    }
)
"""Types of models whose embeddings transformers 5.23 names among the blocks that are kept whole."""

PROCESS_PAIR_RULES = (
    Rule(
        name="adalora-divided",
        reason="AdaLoRA weighs ranks by whole gradients after a step: where these, or its matrices, are "
        "divided, or DeepSpeed has taken them, it fails.",
        versions=f"{PEFT}, {DEEPSPEED}, {TORCH}",
        forbids=lambda s: s.adapter.method is Method.ADALORA and bool(s.level.zero_stage or s.level.fsdp),
    ),
    Rule(
        name="experts-fsdp-1",
        reason="PEFT puts LoRA on stacked experts by changing a view of FSDP1's flat parameter in place: "
        "autograd refuses that.",
        versions=f"{PEFT}, {TORCH}",
        forbids=lambda s: bool(s.adapter.target_parameters) and s.level.fsdp == 1,
    ),
)
"""About an adapter at a level."""

PROCESS_LEVEL_RULES = (
    Rule(
        name="one-way-to-divide",
        reason="ZeRO and FSDP exclude each other.",
        versions=None,
        forbids=lambda s: bool(s.level.zero_stage and s.level.fsdp),
    ),
    Rule(
        name="nobody-to-divide-with",
        reason="One process divides nothing; ZeRO helps it only where it offloads.",
        versions=None,
        forbids=lambda s: (
            s.level.processes == 1
            and (s.level.fsdp > 0 or (s.level.zero_stage > 0 and s.level.offload == "none"))
        ),
    ),
    Rule(
        name="offload-by-zero",
        reason="Optimizer state is offloaded by ZeRO from stage 2 on, weights by stage 3.",
        versions=None,
        forbids=lambda s: (
            (s.level.offload != "none" and s.level.zero_stage < 2)
            or (s.level.offload == "all" and s.level.zero_stage < ZERO_DIVIDES_WEIGHTS)
        ),
    ),
    Rule(
        name="offload-without-gpu",
        reason="Without a GPU all memory is the host's: there is nowhere to offload to.",
        versions=None,
        forbids=lambda s: s.level.offload != "none" and not s.hardware.gpus,
    ),
    Rule(
        name="zero-without-deepspeed",
        reason="ZeRO needs the package deepspeed, which is not installed.",
        versions=None,
        forbids=lambda s: s.level.uses_deepspeed and not s.has("deepspeed"),
    ),
    Rule(
        name="zero-casts",
        reason="DeepSpeed casts all weights, trained ones too, to the dtype that it computes in.",
        versions=DEEPSPEED,
        forbids=lambda s: s.level.uses_deepspeed and s.level.amp,
    ),
    Rule(
        name="offloaded-optimizer",
        reason="Where its state is offloaded, accelerate replaces any optimizer by DeepSpeed's Adam for the "
        "CPU, and an 8-bit AdamW by one that decays weights otherwise.",
        versions=f"{ACCELERATE}, {DEEPSPEED}",
        forbids=lambda s: s.level.offload != "none" and s.level.optimizer != "adamw_torch",
    ),
    Rule(
        name="int8-divided",
        reason="bitsandbytes keeps its own hold on whole 8-bit weights: what is divided is not freed.",
        versions=f"bitsandbytes 0.50, {DEEPSPEED}",
        forbids=lambda s: s.level.quantization is Quantization.INT8 and divides_weights(s.level),
    ),
    Rule(
        name="fsdp-without-gpu",
        reason="On a CPU accelerate takes FSDP for DDP, without a word.",
        versions=ACCELERATE,
        forbids=lambda s: s.level.fsdp > 0 and not s.hardware.gpus,
    ),
    Rule(
        name="fsdp-quantized",
        reason="FSDP1 cannot divide integers; for FSDP2 accelerate leaves 4-bit weights whole, and 8-bit "
        "ones fail.",
        versions=f"{ACCELERATE}, {TORCH}, bitsandbytes 0.50",
        forbids=lambda s: s.level.fsdp > 0 and s.is_quantized,
    ),
    Rule(
        name="fsdp-1-dtypes",
        reason="FSDP1 flattens the weights of a block into one: frozen and trained ones need the same dtype.",
        versions=TORCH,
        forbids=lambda s: s.level.fsdp == 1 and s.level.weight_dtype != s.level.adapter_dtype,
    ),
    Rule(
        name="fsdp-2-8-bit-optimizer",
        reason="bitsandbytes' optimizers do not take the tensors that FSDP2 makes of weights.",
        versions=f"{TORCH}, bitsandbytes 0.50",
        forbids=lambda s: s.level.fsdp == 2 and s.level.optimizer.endswith("_8bit"),
    ),
    Rule(
        name="fsdp-own-modules",
        reason="FSDP takes from transformers what a block is: another module would be gathered as a whole.",
        versions=ACCELERATE,
        forbids=lambda s: s.level.fsdp > 0 and s.model.factory is not None,
    ),
    Rule(
        name="fsdp-2-embeddings",
        reason="accelerate wraps embeddings a second time where transformers counts them among the blocks: "
        "FSDP2 fails.",
        versions=f"{ACCELERATE}, {TORCH}, transformers 5.23",
        forbids=lambda s: s.level.fsdp == 2 and s.model.model_type in BLOCKS_WITH_EMBEDDINGS,
    ),
    Rule(
        name="fsdp-2-encoder-decoder",
        reason="An encoder-decoder's embeddings are shared by encoder and decoder: FSDP2 refuses them in two "
        "groups.",
        versions=f"{ACCELERATE}, {TORCH}",
        forbids=lambda s: s.level.fsdp == 2 and s.model.is_encoder_decoder,
    ),
)
"""About the level on the model and hardware."""
