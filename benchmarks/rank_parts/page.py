"""The page of the documentation that tells what a rank holds: its words.

Knows nothing of figures.
"""

from __future__ import annotations

METHODS = {"full": "Full fine-tuning", "lora": "LoRA of all linear layers"}
PRECISION_NAMES = {"float32": "float32", "bfloat16": "mixed precision (bfloat16, float32 weights)"}

INTRODUCTION = """# What one of two processes holds

Two real processes train a Llama of 6.8 million parameters through accelerate, meet over gloo and need no
GPU: DeepSpeed runs on its CPU accelerator. Every byte is counted that torch's allocator on the CPU hands
out, in any thread: weights, gradients, states, activations, buckets, gathered layers, what a collective
keeps. Not counted is what gloo takes for itself. The peak is the median of five steps, of the rank that
holds most, beside the estimate of a rank on a CPU, where what is offloaded is in the same memory. All
figures are MiB, written by `python benchmarks/ranks.py --write docs/ranks.md` with
{versions}.

*Parameters*, *gradients* and *states* (float32 masters among them) are what a rank holds before it updates,
and in brackets what theory says (Rajbhandari et al., *ZeRO*, 2020). The peak has activations and buffers,
too.

What a bucket holds and no gradient fills is left out of both: DeepSpeed's are 500 million numbers unless it
is told otherwise, 1 or 2 GB, allocated whole however small the model. On a CPU nobody writes to them, so
they take no memory; on a GPU they do, and estimates for GPUs have them. "Small buckets" are to this model
what the defaults are to one of billions of parameters: weights are gathered and released as there."""

TABLE_HEAD = (
    "| scheme | parameters | gradients | states | peak | estimated | error |",
    "|---|---|---|---|---|---|---|",
)

ENDING = """
## Where theory and libraries differ

- **ZeRO-1** has its gradients divided before it updates: reduced into the rank's part, and the rest freed.
- **ZeRO-3** keeps parameters below 100 000 numbers whole on each rank
  (`stage3_param_persistence_threshold`), most of this small model's; what it prefetches is there twice
  while it is put together.
- **Offload** has gradients twice: as they are accumulated, and as float32 for the optimizer on the host.
- **FSDP1 with LoRA** has gradients for frozen weights: accelerate's wrapping by layer puts frozen and
  trained ones into one flat parameter.
- **FSDP** reduces in the last micro-batch of a step; until then a rank has whole gradients of what is
  trained.
- Not compared are GPUs: streams, NCCL and the caching allocator ([how rankwise
  knows](how-rankwise-knows.md)).
"""
