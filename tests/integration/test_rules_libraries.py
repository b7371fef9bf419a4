"""The libraries still behave as the rules say: a test that fails here names a rule that can go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import bitsandbytes
import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from transformers.modeling_flash_attention_utils import _is_packed_sequence

from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.sizes import (
    BYTES_PER_DOUBLE_QUANTIZED_PARAMETER,
    BYTES_PER_QUANTIZED_PARAMETER,
    quantizable_parameters,
)
from rankwise.probes.model import inspect_model
from rankwise.probes.profiles import TaskKind, TaskProfile

ATTENTION = ("q_proj", "v_proj")
EXPERTS = ("experts.down_proj",)
TOKENS = torch.tensor([[5, 6, 7, 8]])


def adapter(method: Method = Method.LORA, **fields: Any) -> Adapter:
    return Adapter(**{"method": method, "rank": 8, "alpha": 16.0, "targets": ATTENTION, **fields})


def wrap(model: torch.nn.Module, chosen: Adapter) -> PeftModel:
    """The model with the adapter, from the fields that trials use."""
    candidate = Candidate(
        adapter=chosen, level=Level(), recipe=Recipe(max_length=64), micro_batch=1, learning_rate=1e-3
    )
    config = adapter_config(candidate, task_kind=TaskKind.CAUSAL_LM, base_model="", total_steps=10)
    assert config is not None
    config["base_model_name_or_path"] = model.name_or_path or None
    return get_peft_model(model, PeftConfig.from_peft_type(**config))


def load(path: Path, **arguments: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, **arguments)


def quantized(path: Path, quantization: Quantization, **arguments: Any) -> Any:
    if quantization is Quantization.INT8:
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quantization.value, **arguments
        )
    return load(path, quantization_config=config)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    return lambda: transformers.GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    config = transformers.MixtralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", [Method.OFT, Method.MISS])
def test_unsupported_module(gpt2, method):
    with pytest.raises(TypeError, match=r"Conv1D.* is not supported"):
        wrap(gpt2(), adapter(method, targets=("c_attn",)))


def test_ia3_dropout():
    with pytest.raises(TypeError, match="dropout"):
        IA3Config(lora_dropout=0.1)


def test_variant_of_lora():
    with pytest.raises(ValueError, match="does not support DoRA"):
        PeftConfig.from_peft_type(peft_type="ADALORA", total_step=10, use_dora=True)


def test_experts_lora_only(mixtral):
    shared = {"target_modules": list(ATTENTION), "target_parameters": list(EXPERTS)}
    with pytest.raises(TypeError, match="parameter_name"):
        get_peft_model(load(mixtral), PeftConfig.from_peft_type(peft_type="ADALORA", total_step=10, **shared))
    for method in ("IA3", "OFT", "MISS"):
        with pytest.warns(UserWarning, match="target_parameters.* are ignored"):
            PeftConfig.from_peft_type(peft_type=method, **shared)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"dropout": 0.1}, "lora_dropout != 0"), ({"use_dora": True}, "use_dora=True")],
    ids=["experts-dropout", "experts-dora"],
)
def test_experts(mixtral, fields, message):
    with pytest.raises(ValueError, match=message):
        wrap(load(mixtral), adapter(target_parameters=EXPERTS, **fields))


def test_attention_half_precision():
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(64, 4, batch_first=True)})
    get_peft_model(model.bfloat16(), LoraConfig(target_modules=["attention"]))
    adapted: Any = model["attention"]
    torch.nn.init.normal_(adapted.lora_B["default"].weight.data)
    before = adapted.base_layer.in_proj_weight.clone()
    inputs = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    adapted(inputs, inputs, inputs)
    assert not torch.allclose(before, adapted.base_layer.in_proj_weight, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("init_weights", ["pissa", "olora", "orthogonal"])
def test_experts_initialisation(mixtral, init_weights):
    with pytest.raises(AttributeError, match="weight"):
        wrap(load(mixtral), adapter(target_parameters=EXPERTS, init_weights=init_weights))


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
def test_experts_old_names():
    """A dense layer beside the experts is asked for: they get it instead, and at twice the rank."""
    config = transformers.DeepseekV2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )
    targets = ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj")
    model = wrap(transformers.DeepseekV2ForCausalLM(config), adapter(targets=targets))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".experts." in name for name in trained)
    first = next(module for module in model.modules() if isinstance(module, ParamWrapper))
    assert first.r["default"] == 16


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
def test_bitfit_quantized(quantization):
    """A trained bias of a quantized layer takes the dtype of its input."""
    made = {
        Quantization.INT8: lambda: bitsandbytes.nn.Linear8bitLt(16, 16, has_fp16_weights=False),
        Quantization.NF4: lambda: bitsandbytes.nn.Linear4bit(16, 16, compute_dtype=torch.bfloat16),
    }
    layer = made[quantization]().to("cpu")
    layer.bias.data = layer.bias.data.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.ones(2, 16, dtype=torch.bfloat16))
    assert layer.bias.dtype is torch.bfloat16


@pytest.mark.filterwarnings("ignore:.init_lora_weights. is 'corda':UserWarning")
def test_initialisation_needs_data(tiny_llama):
    with pytest.raises(ValueError, match="preprocess_corda"):
        wrap(load(tiny_llama), adapter(init_weights="corda"))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_olora_transposed(gpt2):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        wrap(gpt2(), adapter(targets=("c_attn",), init_weights="olora"))(input_ids=TOKENS)


def test_orthogonal_odd_rank(tiny_llama):
    with pytest.raises(ValueError, match="rank to be even"):
        wrap(load(tiny_llama), adapter(init_weights="orthogonal", rank=7))


def test_miss_rank_above_input(tiny_llama):
    with pytest.raises(ValueError, match="less than or equal to in_features"):
        wrap(load(tiny_llama), adapter(Method.MISS, rank=65))


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
def test_full_quantized(tiny_llama, quantization):
    model = quantized(tiny_llama, quantization)
    with pytest.raises(RuntimeError, match="only Tensors of floating point dtype can require gradients"):
        model.requires_grad_(True)


def test_adalora_half_precision(tiny_llama):
    """A count of ranks that is trained; in float32, and where the base layer is 8-bit, it is not."""

    def trains_counts(model: Any) -> bool:
        wrapped = wrap(model, adapter(Method.ADALORA, initial_rank=12))
        return any("ranknum" in name and p.requires_grad for name, p in wrapped.named_parameters())

    assert trains_counts(load(tiny_llama, dtype=torch.bfloat16))
    assert trains_counts(quantized(tiny_llama, Quantization.NF4, bnb_4bit_compute_dtype=torch.bfloat16))
    assert not trains_counts(load(tiny_llama, dtype=torch.float32))
    assert not trains_counts(quantized(tiny_llama, Quantization.NF4, bnb_4bit_compute_dtype=torch.float32))
    assert not trains_counts(quantized(tiny_llama, Quantization.INT8))


@pytest.mark.parametrize(("init_weights", "error"), [("pissa", TypeError), ("orthogonal", RuntimeError)])
@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
def test_initialisation_quantized(tiny_llama, init_weights, error, quantization):
    with pytest.raises(error):
        wrap(quantized(tiny_llama, quantization), adapter(init_weights=init_weights))


def test_dora_int8_without_gpu(tiny_llama):
    """The first forward pass moves the scales from weight to layer; DoRA's part of it then hides them."""
    wrapped = wrap(quantized(tiny_llama, Quantization.INT8), adapter(use_dora=True)).train()
    wrapped(input_ids=TOKENS)
    with pytest.raises(AttributeError, match="unsqueeze"):
        wrapped(input_ids=TOKENS)


def test_packed_flash_attention():
    """Two samples in a row: seen in a batch of one row only."""
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert _is_packed_sequence(positions, batch_size=1)
    assert not _is_packed_sequence(positions.repeat(2, 1), batch_size=2)


def test_float16_without_gpu():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of what ran before
    accelerator = accelerate.Accelerator(mixed_precision="fp16", cpu=True)
    try:
        assert not accelerator.native_amp
        assert accelerator.scaler is None
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_quantized_without_bitsandbytes(tiny_llama, monkeypatch):
    for module in ("quantizer_bnb_4bit", "quantizer_bnb_8bit"):
        name = f"transformers.quantizers.{module}.is_bitsandbytes_available"
        monkeypatch.setattr(name, lambda *_, **__: False, raising=False)
    with pytest.raises(ImportError, match="bitsandbytes"):
        quantized(tiny_llama, Quantization.NF4)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4, Quantization.FP4])
def test_nothing_to_quantize_but_linear_layers(mixtral, quantization):
    """Experts, router, embeddings and head stay as they are; the others weigh what was reckoned."""
    profile = inspect_model(
        mixtral,
        source="",
        revision=None,
        task=TaskProfile(kind=TaskKind.CAUSAL_LM, text_column="text"),
    )
    integers = [p for p in quantized(mixtral, quantization).parameters() if not p.is_floating_point()]
    per_byte = 2 if quantization.is_4bit else 1
    assert sum(p.numel() for p in integers) * per_byte == quantizable_parameters(profile, ())


@pytest.mark.parametrize("double", [False, True])
def test_4_bit_weights_weigh_what_was_reckoned(double):
    layer = bitsandbytes.nn.Linear4bit(1024, 1024, bias=False, compress_statistics=double, quant_type="nf4")
    weight = layer.to("cpu").weight
    state = weight.quant_state
    scales = [state.absmax, *([state.state2.absmax] if double else [])]
    measured = sum(t.numel() * t.element_size() for t in (weight, *scales)) / 1024**2
    expected = (
        BYTES_PER_DOUBLE_QUANTIZED_PARAMETER if double else BYTES_PER_QUANTIZED_PARAMETER[Quantization.NF4]
    )
    assert measured == pytest.approx(expected, rel=1e-6)


def test_flash_attention(tiny_llama):
    with pytest.raises(ImportError, match="FlashAttention2"):
        load(tiny_llama, attn_implementation="flash_attention_2")


def test_paged_without_gpu():
    parameter = torch.nn.Parameter(torch.ones(200_000))
    optimizer = bitsandbytes.optim.PagedAdamW8bit([parameter])
    parameter.grad = torch.ones_like(parameter)
    with pytest.warns(UserWarning, match="not supported on CPU. Falling back to non-paged"):
        optimizer.step()


@pytest.mark.parametrize("elements", [4096, 4095])
def test_8_bit_optimizers_run_on_a_cpu(elements):
    parameter = torch.nn.Parameter(torch.ones(elements))
    optimizer = bitsandbytes.optim.AdamW8bit([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    is_small = elements < 4096
    assert optimizer.state[parameter]["state1"].dtype is (torch.float32 if is_small else torch.uint8)
