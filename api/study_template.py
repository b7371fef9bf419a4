"""The study file that ``rankwise init`` writes: every key with its default and what it means."""

from __future__ import annotations

import json

from ..optimizer.domain import LossMask, Method, Objective, Preset, Quantization, Scoring
from ..probes.profiles import TaskKind

_TEMPLATE = """\
# A study of rankwise: which fine-tuning configuration to run for this model, data and hardware.
# Run it with: rankwise recommend --config FILE      (options beside it override what stands here)
# Keys that are commented out show their defaults, or an example.

model: {model}    # folder, config.json, id on the hub, or package.module:factory
dataset: {data}    # CSV, TSV, JSONL, Parquet or text; a folder of these; or an id on the hub

# --- What to learn: told from the columns if left out -------------------------------------------------
# model_arguments: {{}}           # what the factory is called with
# task: text-classification     # {tasks}
# text_column: text
# context_column: context       # a second part of the input
# target_column: answer         # the text to be written
# label_column: label
# time_column: date             # orders the rows of a series; of texts, the last are held out
# group_column: user_id         # rows with the same value are held out together
# channels: [load]              # columns with its values
# context_length: 96            # rows of a series that the model sees; by the model if left out
# prediction_length: 24         # rows that it predicts from them
# max_length: 512               # tokens per row; from the data if left out
# effective_batch: 16           # rows per optimizer step
# epochs: 3                     # passes over the data in the final run
# packing: false                # short samples share rows; by the data if left out
# loss_mask: all                # {masks}
# chat_template: chat.jinja     # in place of the tokenizer's

# --- How to choose ------------------------------------------------------------------------------------
# objective: balanced           # {objectives}
# weights: {{speed: 0.4, memory: 0.2, quality: 0.4}}    # in place of the objective
# quality_within: 1%            # more held-out loss than the best that may be; by the objective if left out
# price_per_hour: 2.50          # of a device, to know what the training costs
# scoring: comparable           # {scorings}
# eval_command: python judge.py # judges what was trained: gets a folder, prints a number
# eval_lower_is_better: false   # of that number
# methods: [lora, ia3]          # only these of {methods}
# quantizations: [none, nf4]    # only these of {quantizations}
# use_tiers: false              # only the first design's few for the free memory
# complexity: simple            # for use_tiers

# --- What to begin with -------------------------------------------------------------------------------
# presets: [balanced]           # {presets}
# only_presets: false           # nothing after the presets and the block lora

# baseline: axolotl.yaml        # what you train with now, as TRL, Axolotl, … have it: tried and compared

# A LoRA of your own, tried first, as it is:
# lora:
#   r: 8
#   alpha: 16                   # twice r if left out
#   dropout: 0.1
#   target_modules: [query, value]    # ends of names, or minimal, balanced, full, all-linear
#   bias: none
#   rslora: false
#   dora: false
#   r_first_layers: 4           # in the first quarter of the layers
#   r_last_layers: 16           # in the last quarter
#   rank_pattern: {{'layer\\.5\\..*': 32}}    # regular expression for the end of a name: rank
#   alpha_pattern: {{}}

# How the frozen weights of that LoRA are stored:
# quantization:
#   enabled: true
#   type: nf4                   # nf4, fp4, int8
#   compute_dtype: bf16         # bf16, fp16, fp32; what suits the hardware if left out
#   double_quant: false
#   skip_modules: []            # ends of names, such as pooler.dense
#   mode: hf                    # or manual; done is what suits the model

# --- Limits -------------------------------------------------------------------------------------------
# memory_limit: 10GiB           # most memory that a trial may take
# finish_limit: 6h              # most time that the whole training may take
# budget: 10m                   # time to spend
# max_trials: 64
# processes: 2                  # that share a training, one a device; free GPUs if left out, 1: none does
# seed: 0                       # equal seeds make equal choices
"""


def study_template(model: str, data: str) -> str:
    """The file's text for this model and these data."""
    return _TEMPLATE.format(
        model=json.dumps(model, ensure_ascii=False),
        data=json.dumps(data, ensure_ascii=False),
        tasks=", ".join(TaskKind),
        masks=", ".join(LossMask),
        objectives=", ".join(Objective),
        scorings=", ".join(Scoring),
        methods=", ".join(Method),
        quantizations=", ".join(Quantization),
        presets=", ".join(Preset),
    )
