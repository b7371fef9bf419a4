"""The training in as few lines of Python as it takes, to be read and taken over into one's own code.

A snippet learns the rows of ``prepare_data.py``; evaluation, checkpoints and rows that are no text are left
to the whole programs. Text is put together here; a test runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...probes.profiles import TaskKind
from ..domain import Method, Quantization
from .settings import Training

CLASSES = {
    TaskKind.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    TaskKind.REGRESSION: "AutoModelForSequenceClassification",
    TaskKind.CAUSAL_LM: "AutoModelForCausalLM",
    TaskKind.PROMPT_COMPLETION: "AutoModelForCausalLM",
    TaskKind.CHAT: "AutoModelForCausalLM",
    TaskKind.SEQ2SEQ: "AutoModelForSeq2SeqLM",
}
"""transformers' classes, by task."""

OPTIMIZERS = {
    "adamw_torch": ("torch.optim.AdamW", ""),
    "adamw_torch_fused": ("torch.optim.AdamW", ", fused=True"),
    "adamw_8bit": ("bitsandbytes.optim.AdamW8bit", ""),
    "paged_adamw_8bit": ("bitsandbytes.optim.PagedAdamW8bit", ""),
}
"""transformers' name → class, and what else it is told."""


def can_be_shown(training: Training) -> bool:
    """A model of transformers that reads texts, trained on rows of its own, without a schedule of ranks."""
    return (
        training.task in CLASSES
        and training.factory is None
        and training.has_weights
        and training.candidate.adapter.method is not Method.ADALORA
    )


def pytorch_snippet(training: Training) -> str:
    """A plain loop."""
    candidate = training.candidate
    lines = [
        *_head(training, "train_pytorch.py"),
        *_rows(training),
        "",
        *_model(training),
        "",
        *_optimizer(training),
        "",
        f"BATCH, MICRO = {candidate.micro_batch * candidate.accumulation}, {candidate.micro_batch}",
        "for step in range(STEPS):",
        "    first = step * BATCH % max(1, len(rows) - BATCH + 1)",
        "    chosen, total = rows[first : first + BATCH], 0.0",
        "    for start in range(0, len(chosen), MICRO):",
        "        part = chosen[start : start + MICRO]",
        f"        with {_autocast(training)}:",
        "            loss = model(**collate(part)).loss * len(part) / len(chosen)",
        "        loss.backward()",
        "        total += loss.item()",
        f"    torch.nn.utils.clip_grad_norm_(trained, {candidate.recipe.max_grad_norm})",
        "    optimizer.step()",
        "    schedule.step()",
        "    optimizer.zero_grad()",
        '    print(f"step {step + 1}/{STEPS}  loss {total:.6f}", flush=True)',
        'model.save_pretrained("trained")',
    ]
    return "\n".join(lines) + "\n"


def lightning_snippet(training: Training) -> str:
    """A module for Lightning's Trainer."""
    candidate = training.candidate
    precision = {None: "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
    autocast = candidate.level.compute_dtype if candidate.level.amp else None
    lines = [
        *_head(training, "train_lightning.py", "import lightning"),
        *_rows(training),
        "",
        *_model(training),
        "",
        *_optimizer(training),
        "",
        "",
        "class Module(lightning.LightningModule):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.model = model",
        "",
        "    def training_step(self, batch, _):",
        "        loss = self.model(**batch).loss",
        '        self.log("loss", loss, prog_bar=True)',
        "        return loss",
        "",
        "    def configure_optimizers(self):",
        '        return [optimizer], [{"scheduler": schedule, "interval": "step"}]',
        "",
        "",
        f"loader = torch.utils.data.DataLoader(rows, batch_size={candidate.micro_batch}, collate_fn=collate)",
        "trainer = lightning.Trainer(",
        f"    max_steps=STEPS, accumulate_grad_batches={candidate.accumulation}, devices=1,",
        f'    accelerator="{"cpu" if training.on_cpu else "gpu"}", precision="{precision[autocast]}",',
        f"    gradient_clip_val={candidate.recipe.max_grad_norm}, enable_checkpointing=False, logger=False,",
        ")",
        "trainer.fit(Module(), loader)",
        'model.save_pretrained("trained")',
    ]
    return "\n".join(lines) + "\n"


def _head(training: Training, whole: str, *more: str) -> Iterator[str]:
    yield f'"""{training.candidate.describe()}.'
    yield ""
    yield f"Measured by rankwise, study {training.study_id}."
    yield f"Rows are those of `python prepare_data.py`. {whole} is the whole program, which also evaluates."
    yield '"""'
    yield ""
    yield "import json"
    yield ""
    yield from sorted(
        {
            *more,
            "import torch",
            "import transformers",
            *(["import bitsandbytes"] if _optimizer_class(training)[0].startswith("bits") else []),
        }
    )
    if training.adapter_config is not None:
        yield "from peft import PeftConfig, get_peft_model"
    yield ""
    yield f"MODEL = {training.model!r}"
    if training.model_revision:
        yield f"REVISION = {training.model_revision!r}"
    yield f"STEPS = {training.total_steps}"
    yield f'DEVICE = "{"cpu" if training.on_cpu else "cuda"}"'
    yield ""


def _rows(training: Training) -> Iterator[str]:
    """Labels are padded like tokens where there is one for each."""
    tokens = training.task.is_causal or training.task is TaskKind.SEQ2SEQ
    yield 'with open("data/train.jsonl") as file:'
    yield "    rows = [json.loads(line) for line in file]"
    at = ", revision=REVISION" if training.model_revision else ""
    yield f"tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL{at})"
    yield "pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id"
    yield f'FILL = {{"input_ids": pad{", " + chr(34) + "labels" + chr(34) + ": -100" if tokens else ""}}}'
    yield ""
    yield ""
    yield "def collate(part):"
    yield '    """Rows of numbers, filled up on the right, as tensors on the device."""'
    yield "    batch = {}"
    if training.candidate.recipe.packing:
        yield "    # Samples that share a row are told apart by their positions, as long as there is no mask."
    mask = ' - {"attention_mask"}' if training.candidate.recipe.packing else ""
    yield f"    for name in {f'part[0].keys(){mask}' if mask else 'part[0]'}:"
    yield "        values = [row[name] for row in part]"
    yield "        if isinstance(values[0], list):"
    yield "            longest = max(map(len, values))"
    yield "            values = [value + [FILL.get(name, 0)] * (longest - len(value)) for value in values]"
    yield "        batch[name] = torch.tensor(values, device=DEVICE)"
    yield "    return batch"
    yield ""


def _model(training: Training) -> Iterator[str]:
    adapter, level = training.candidate.adapter, training.candidate.level
    yield f"torch.manual_seed({training.seed})"
    yield f"model = transformers.{CLASSES[training.task]}.from_pretrained("
    yield f'    MODEL, dtype=torch.{level.weight_dtype}, attn_implementation="{level.attention}",'
    yield "    use_safetensors=True,"
    if training.model_revision:
        yield "    revision=REVISION,"
    for argument in (*_head_arguments(training), *_quantization(training)):
        yield f"    {argument},"
    yield ").to(DEVICE)" if level.quantization is Quantization.NONE else ")"
    yield "model.config.pad_token_id = pad"
    if level.gradient_checkpointing:
        yield 'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})'
    if training.adapter_config is not None:
        yield 'model = get_peft_model(model, PeftConfig.from_pretrained("."))  # reads adapter_config.json'
    elif adapter.method is not Method.FULL:
        yield f"parts = {list(adapter.trained_parts)!r}"
        yield "for name, parameter in model.named_parameters():"
        yield '    parameter.requires_grad_(any(f".{part}." in f".{name}." for part in parts))'
    yield "model.train()"
    yield "trained = [parameter for parameter in model.parameters() if parameter.requires_grad]"
    if adapter.method is not Method.FULL:
        yield "for parameter in trained:"
        yield f"    parameter.data = parameter.data.to(torch.{level.adapter_dtype})"


def _head_arguments(training: Training) -> Iterator[str]:
    if training.task is TaskKind.TEXT_CLASSIFICATION:
        yield f"num_labels={training.classes}"
    if training.task is TaskKind.REGRESSION:
        yield 'num_labels=1, problem_type="regression"'


def _quantization(training: Training) -> Iterator[str]:
    level, adapter = training.candidate.level, training.candidate.adapter
    kept = [*adapter.trained_parts, *level.skip_modules] or None
    match level.quantization:
        case Quantization.NONE:
            return
        case Quantization.INT8:
            options = "load_in_8bit=True"
        case _:
            options = (
                f'load_in_4bit=True, bnb_4bit_quant_type="{level.quantization}", '
                f"bnb_4bit_use_double_quant={level.double_quantization}, "
                f"bnb_4bit_compute_dtype=torch.{level.compute_dtype}"
            )
    yield f"quantization_config=transformers.BitsAndBytesConfig({options}, llm_int8_skip_modules={kept!r})"
    yield 'device_map={"": DEVICE}'


def _optimizer(training: Training) -> Iterator[str]:
    candidate = training.candidate
    kind, told = _optimizer_class(training)
    warmup = math.ceil(training.total_steps * candidate.recipe.warmup_ratio)
    decay = candidate.recipe.weight_decay
    yield f"optimizer = {kind}(trained, lr={candidate.learning_rate!r}, weight_decay={decay!r}{told})"
    yield "schedule = transformers.get_scheduler("
    yield f'    "{candidate.recipe.schedule}", optimizer, num_warmup_steps={warmup}, num_training_steps=STEPS'
    yield ")"


def _optimizer_class(training: Training) -> tuple[str, str]:
    return OPTIMIZERS[training.candidate.level.optimizer]


def _autocast(training: Training) -> str:
    level = training.candidate.level
    return f"torch.autocast(DEVICE, dtype=torch.{level.compute_dtype}, enabled={level.amp})"
