"""Tiny models, and what is trained of them: shared by the programs beside it, which run without rankwise."""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "tie_word_embeddings": False,
}


def as_on_a_gpu() -> None:
    """Have transformers accept bfloat16, as it does where there is a GPU."""
    import transformers.training_args

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True


def tiny_model(family: str) -> Any:
    """Two layers of random weights."""
    import transformers

    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        return transformers.GPT2LMHeadModel(config)
    if family == "mixtral":
        sizes = {name: size for name, size in LLAMA.items() if name != "attention_bias"}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=2))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))


def trained(model: Any) -> dict[str, Any]:
    """How many numbers are trained, and a hash of the names and shapes of what holds them."""
    found = sorted(
        (name, list(parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"count": count, "sha256": hashlib.sha256(json.dumps(found).encode()).hexdigest()}


def adapted(family: str, config: Any) -> dict[str, Any]:
    """What PEFT trains with this configuration."""
    from peft import get_peft_model

    return trained(get_peft_model(tiny_model(family), config))


def plain(config: Any) -> dict[str, Any]:
    """A PEFT configuration as JSON data."""
    return json.loads(json.dumps(config.to_dict(), default=sorted))


def read_all(name: str, read: Callable[[Path, Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Have each folder's file ``name`` read, and write what became of it into ``OUT``.

    Called as ``program.py FOLDER OUT``: folders in FOLDER hold a case each, with its ``case.json``.
    """
    answers = {}
    for path in sorted(Path(sys.argv[1]).glob(f"*/{name}")):
        case = json.loads((path.parent / "case.json").read_text())
        try:
            answers[path.parent.name] = dict(read(path, case))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a refusal is an answer
            where = traceback.extract_tb(error.__traceback__)[-1]
            answers[path.parent.name] = {
                "error": f"{type(error).__name__}: {error}",
                "at": f"{Path(where.filename).name}:{where.lineno}",
            }
    Path(sys.argv[2]).write_text(json.dumps(answers, default=str))
