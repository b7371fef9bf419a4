"""Trainings in two processes, each as a scheme divides it, beside the same in one: a program.

Prints one JSON object: for each ``scheme case`` what the first process found, or the first error of either.
Cases of a scheme that are to work share a pair of processes; one that is to fail has its own, since the other
process would wait.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import bitsandbytes
import torch
import torch.distributed
import transformers
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from peft import AdaLoraConfig, IA3Config, LoraConfig, OFTConfig, get_peft_model
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

RANKS, STEPS = 2, 3
LLAMA = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
TARGETS = ["q_proj", "v_proj"]


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **changes))


def lora(base: Any = None, **changes: Any) -> Any:
    config = {"r": 8, "target_modules": TARGETS, **changes}
    return get_peft_model(llama() if base is None else base, LoraConfig(**config))


def quantized(**options: Any) -> Any:
    config = transformers.BitsAndBytesConfig(**options)
    return lora(transformers.LlamaForCausalLM.from_pretrained(os.environ["TINY"], quantization_config=config))


def frozen_in_half() -> Any:
    model = lora()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def experts() -> Any:
    base = transformers.MixtralForCausalLM(transformers.MixtralConfig(**LLAMA, num_local_experts=4))
    return lora(base, target_modules=["q_proj"], target_parameters=["experts.down_proj"])


def adalora() -> Any:
    schedule = {"tinit": 1, "tfinal": 1, "deltaT": 1, "total_step": STEPS + 2}
    return get_peft_model(llama(), AdaLoraConfig(init_r=12, target_r=8, target_modules=TARGETS, **schedule))


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    config.num_labels = 200
    base = transformers.BertForTokenClassification(config)
    return lora(base, target_modules=["query", "value"])


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=200, d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, decoder_start_token_id=0
    )
    return lora(transformers.T5ForConditionalGeneration(config), target_modules=["q", "v"])


class HeadRead(torch.nn.Module):
    """A language model whose loss reads the head's weight and never calls the head, as Liger's does."""

    def __init__(self) -> None:
        super().__init__()
        self.base = llama()
        self.config = self.base.config

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        hidden = self.base.model(input_ids=input_ids).last_hidden_state[:, :-1]
        logits = torch.matmul(hidden, self.base.lm_head.weight.T)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        return transformers.modeling_outputs.CausalLMOutput(loss=loss)


MODELS: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "full": llama,
    "dora": lambda: lora(use_dora=True),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "ia3": lambda: get_peft_model(
        llama(), IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    ),
    "oft": lambda: get_peft_model(llama(), OFTConfig(oft_block_size=16, r=0, target_modules=TARGETS)),
    "head beside": lambda: lora(modules_to_save=["lm_head"]),
    "tied": lambda: llama(tie_word_embeddings=True),
    "experts": experts,
    "adalora": adalora,
    "nf4": lambda: quantized(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "int8": lambda: quantized(load_in_8bit=True),
    "frozen in half": frozen_in_half,
    "8-bit optimizer": lora,
    "head read": HeadRead,
    "bert": bert,
    "t5": t5,
    "own": lambda: torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3))),
}

WORKING = {
    "ddp": ["lora", "adalora", "experts", "nf4", "int8", "8-bit optimizer"],
    "zero1": ["full", "nf4", "int8", "8-bit optimizer"],
    "zero2": ["full", "experts", "nf4", "8-bit optimizer"],
    "zero3": [
        "lora",
        "full",
        "dora",
        "pissa",
        "olora",
        "ia3",
        "oft",
        "head beside",
        "tied",
        "experts",
        "nf4",
        "int8",
        "8-bit optimizer",
        "head read",
    ],
    "zero2 bf16": ["frozen in half"],
    "fsdp1": ["lora", "full", "dora", "ia3", "oft", "head beside", "tied", "8-bit optimizer", "bert", "own"],
    "fsdp2": ["lora", "full", "dora", "ia3", "oft", "head beside", "tied", "experts", "nf4", "own"],
    "fsdp2 bf16": ["frozen in half"],
    "fsdp1 on a CPU": ["lora"],
    "fsdp2 on a CPU": ["lora"],
}
FAILING = {
    "zero1": ["adalora"],
    "zero3": ["adalora"],
    "fsdp1": ["adalora", "experts", "nf4", "int8", "frozen in half"],
    "fsdp2": ["adalora", "int8", "8-bit optimizer", "bert", "t5"],
}


def accelerator(scheme: str) -> Accelerator:
    """As accelerate sets one up; FSDP, which it has on accelerators only, as if gloo were one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    kind, half = scheme.split()[0], scheme.endswith("bf16")
    if kind == "ddp":
        return Accelerator(cpu=True)
    if kind.startswith("zero"):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        # Nothing is kept whole for being small or used again soon, as in a model that is large.
        least = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
        settings = {
            "stage": int(kind[4]),
            "reduce_bucket_size": 10**6,
            **{f"stage3_{name}": 0 for name in (*least, "prefetch_bucket_size")},
        }
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 1,
            "zero_optimization": settings,
            "bf16": {"enabled": half},
            "zero_allow_untested_optimizer": True,
        }
        return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False))

    def set_device(state: Any) -> None:
        state.device = torch.device("cpu")

    version = int(kind[4])
    if scheme.endswith("on a CPU"):
        return Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=version))
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = set_device
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        reshard_after_forward=True if version == 2 else "FULL_SHARD",
        auto_wrap_policy="transformer_based_wrap",
        use_orig_params=True if version == 1 else None,
    )
    return Accelerator(fsdp_plugin=plugin, mixed_precision="bf16" if half else "no")


def step_loss(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.is_floating_point():
        own: torch.Tensor = model(inputs).pow(2).mean()
        return own
    loss: torch.Tensor = model(input_ids=inputs, labels=inputs).loss
    return loss


def optimizer_of(case: str, model: Any) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = bitsandbytes.optim.AdamW8bit if case == "8-bit optimizer" else torch.optim.AdamW
    return kind(trained, lr=1e-3)


def train(scheme: str, case: str, rank: int) -> dict[str, Any]:
    """Losses of a few steps by all processes together and by one alone; how much of a weight is held."""
    unset_hf_deepspeed_config()
    torch.manual_seed(0)
    model = MODELS[case]().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batches = [torch.randint(0, 200, (2 * RANKS, 16)) for _ in range(STEPS)]
    if case == "own":
        batches = [torch.randn(2 * RANKS, 64) for _ in range(STEPS)]
    single, single_losses = copy.deepcopy(model), []
    optimizer = optimizer_of(case, single)
    for step, inputs in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=scheme.endswith("bf16")):
            loss = step_loss(single, inputs)
        loss.backward()
        optimizer.step()
        if case == "adalora":
            single.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        single_losses.append(float(loss))
    acc = accelerator(scheme)
    prepared, optimizer = acc.prepare(model, optimizer_of(case, model))
    losses = []
    for step, inputs in enumerate(batches):
        loss = step_loss(prepared, inputs[2 * rank : 2 * rank + 2])
        acc.backward(loss)
        optimizer.step()
        if case == "adalora":
            acc.unwrap_model(prepared).base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        mean = loss.detach().float().clone()
        torch.distributed.all_reduce(mean)
        losses.append(float(mean) / RANKS)
    kind = type(prepared).__name__
    return {"single": single_losses, "losses": losses, "kind": kind, **_held(acc.unwrap_model(prepared))}


def _held(model: Any) -> dict[str, Any]:
    """What one process holds of a projection's weight, bitsandbytes' own copy beside, and trained dtypes."""
    names = [name for name, _ in model.named_modules() if name.endswith("q_proj.base_layer")]
    found: dict[str, Any] = {
        "dtypes": sorted({str(p.dtype) for p in model.parameters() if p.requires_grad}),
        "units": sum("FSDP" in type(module).__name__ for module in model.modules()),
        "whole": 64 * 64,
    }
    if names:
        layer = model.get_submodule(names[0])
        weight = layer.weight
        part = getattr(weight, "ds_tensor", getattr(weight, "_local_tensor", weight))
        kept = getattr(getattr(layer, "state", None), "CB", None)
        found |= {"weight": part.numel(), "kept": 0 if kept is None else kept.numel()}
    return found


def run_rank(scheme: str, cases: list[str], rank: int, listener: socket.socket, out: int) -> None:
    port = listener.getsockname()[1]
    wait = datetime.timedelta(seconds=60)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    os.environ.update({key: str(value) for key, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    serves = {"is_master": True, "master_listen_fd": listener.fileno()} if rank == 0 else {}
    store = torch.distributed.TCPStore("127.0.0.1", port, RANKS, timeout=wait, **serves)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=wait)
    for case in cases:
        try:
            found = train(scheme, case, rank)
        except Exception as error:  # noqa: BLE001 - a process's edge
            found = {"error": f"{type(error).__name__}: {error}"}
        if rank == 0 or "error" in found:
            os.write(out, (json.dumps({f"{scheme} {case}": found}) + "\n").encode())
        if "error" in found:
            os._exit(1)
    torch.distributed.barrier()
    os._exit(0)


def run_pair(scheme: str, cases: list[str]) -> dict[str, Any]:
    """What two processes found; once one fails, both end."""
    listener = socket.create_server(("127.0.0.1", 0))
    reading, writing = os.pipe()
    ranks = []
    for rank in range(RANKS):
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            os.dup2(2, 1)
            run_rank(scheme, cases, rank, listener, writing)
        ranks.append(pid)
    os.close(writing)
    listener.close()
    found: dict[str, Any] = {}
    text = b""
    while select.select([reading], [], [])[0] and (piece := os.read(reading, 2**16)):
        text += piece
        *lines, text = text.split(b"\n")
        for line in lines:
            for key, value in json.loads(line).items():
                found.setdefault(key, value)
                if "error" in value:
                    for pid in ranks:
                        os.kill(pid, signal.SIGKILL)
    for pid in ranks:
        os.waitpid(pid, 0)
    os.close(reading)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    llama().save_pretrained(os.environ["TINY"])
    found: dict[str, Any] = {}
    for scheme, cases in WORKING.items():
        found |= run_pair(scheme, cases)
    for scheme, cases in FAILING.items():
        for case in cases:
            found |= run_pair(scheme, [case])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
