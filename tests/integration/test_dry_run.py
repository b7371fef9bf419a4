"""Dry runs of small models against the same steps on real tensors, at full depth, and in real trials.

Every model here is the library's own, of a few layers and random weights; the builder is the trials'.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Level
from rankwise.optimizer.estimates.settings import Settings, candidate_from
from rankwise.optimizer.estimates.tape import (
    STEP,
    TRACED_LAYERS,
    Kind,
    Phase,
    Tape,
    Uneven,
    interpolated,
    peaks_of,
    stretch,
    total_work,
)
from rankwise.probes.model import inspect_model, natural_task
from rankwise.probes.profiles import TaskKind
from rankwise.runners import dry_run
from rankwise.runners.build import build_model
from rankwise.runners.dry_run import ArrayOfBatch, Batch, LossScaler, arrays_for, record
from rankwise.runners.estimate import DryRunner
from rankwise.runners.fakes import fake_tensors, materialise, on_meta
from rankwise.runners.losses import set_loss
from rankwise.runners.recipe import Example
from rankwise.runners.trial.loop import open_session, run_step
from rankwise.runners.trial.measure import peak_tensor_bytes
from rankwise.runners.weights import widen_norms

CPU = torch.device("cpu")
VOCABULARY = 320
IMAGE = (3, 32, 32)
SHORT = 2
"""Layers where depth does not matter."""

QUESTION_BYTES = 32
"""What transformers' looks at real masks and positions allocate at most; at fakes it cannot look."""

DECODER = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Family:
    """A kind of model: its configuration at a depth, and what adapters adapt in it."""

    configuration: Callable[[int], Any]
    targets: tuple[str, ...]
    feedforward: str
    task: str = "causal-lm"
    stacks: tuple[str, ...] = ("model.layers",)

    @property
    def per_row(self) -> bool:
        return self.task.endswith("-classification")


FAMILIES = {
    "llama": Family(
        lambda depth: transformers.LlamaConfig(num_hidden_layers=depth, **DECODER),
        ("q_proj", "v_proj"),
        "down_proj",
    ),
    "mixtral": Family(
        lambda depth: transformers.MixtralConfig(num_hidden_layers=depth, num_local_experts=4, **DECODER),
        ("q_proj", "v_proj"),
        "o_proj",
    ),
    "qwen3-moe": Family(
        lambda depth: transformers.Qwen3MoeConfig(
            num_hidden_layers=depth,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            head_dim=16,
            **DECODER,
        ),
        ("q_proj", "v_proj"),
        "o_proj",
    ),
    "gpt2": Family(
        lambda depth: transformers.GPT2Config(
            n_embd=64, n_layer=depth, n_head=4, vocab_size=VOCABULARY, n_positions=128
        ),
        ("c_attn",),
        "mlp.c_proj",
        stacks=("transformer.h",),
    ),
    "bert": Family(
        lambda depth: transformers.BertConfig(
            hidden_size=64,
            num_hidden_layers=depth,
            num_attention_heads=4,
            intermediate_size=96,
            vocab_size=VOCABULARY,
        ),
        ("query", "value"),
        "intermediate.dense",
        "text-classification",
        ("bert.encoder.layer",),
    ),
    "t5": Family(
        lambda depth: transformers.T5Config(
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=depth,
            num_heads=4,
            vocab_size=VOCABULARY,
            decoder_start_token_id=0,
        ),
        ("q", "v"),
        "wo",
        "seq2seq",
        ("encoder.block", "decoder.block"),
    ),
    # Layers that differ: sliding and full attention by turns; dense layers before experts.
    "gemma3": Family(
        lambda depth: transformers.Gemma3TextConfig(
            num_hidden_layers=depth,
            head_dim=16,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"] * (depth // 2),
            **DECODER,
        ),
        ("q_proj", "v_proj"),
        "down_proj",
    ),
    "deepseek-v3": Family(
        lambda depth: transformers.DeepseekV3Config(
            **{**DECODER, "num_key_value_heads": 4},
            num_hidden_layers=depth,
            first_k_dense_replace=1,
            moe_intermediate_size=32,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            q_lora_rank=24,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=16,
        ),
        ("q_b_proj", "o_proj"),
        "down_proj",
    ),
    "vit": Family(
        lambda depth: transformers.ViTConfig(
            hidden_size=64,
            num_hidden_layers=depth,
            num_attention_heads=4,
            intermediate_size=96,
            image_size=IMAGE[1],
            patch_size=8,
        ),
        ("q_proj", "v_proj"),
        "mlp.fc2",
        "image-classification",
        ("vit.layers",),
    ),
    "convnext": Family(
        lambda depth: transformers.ConvNextConfig(
            hidden_sizes=[16, 32], depths=[depth, depth], num_stages=2, image_size=IMAGE[1]
        ),
        ("pwconv1",),
        "pwconv2",
        "image-classification",
    ),
    "resnet": Family(
        lambda depth: transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[depth, depth], image_size=IMAGE[1]
        ),
        (),
        "",
        "image-classification",
    ),
}
TASK_TYPES = {"causal-lm": "CAUSAL_LM", "text-classification": "SEQ_CLS", "seq2seq": "SEQ_2_SEQ_LM"}

HALF_WEIGHTS = {"weight_dtype": "bfloat16", "compute_dtype": "bfloat16"}
AUTOCAST = {"compute_dtype": "bfloat16"}
CHECKPOINTS = {"gradient_checkpointing": True}


UNFROZEN = {"head": (), "last-blocks": ("bert.encoder.layer.1",), "bitfit": ("bias",)}
"""Methods without an adapter, with what they train of a BERT beside its head."""

DENSE = Batch(rows=2, length=24)
IMAGES = (ArrayOfBatch("pixel_values", IMAGE, "float32"), ArrayOfBatch("labels", (), "int64"))


@dataclass(frozen=True)
class Case:
    """A candidate of a family on a batch."""

    family: str = "llama"
    method: str = "lora"
    batch: Batch = DENSE
    passes: int = 1
    depth: int = SHORT
    level: tuple[tuple[str, Any], ...] = ()

    @property
    def candidate(self) -> dict[str, Any]:
        heads = FAMILIES[self.family].per_row and self.method != "full"
        return {
            "level": to_json(Level()) | dict(self.level),
            "adapter": {
                "method": self.method,
                "trained_modules": ["classifier"] if heads else [],
                "unfrozen": list(UNFROZEN.get(self.method, ())),
            },
            "recipe": {
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "packing": self.batch.packed,
                "effective_batch": self.batch.rows * self.passes,
                "schedule": "constant",
                "warmup_ratio": 0.0,
            },
            "learning_rate": 1e-3,
            "micro_batch": self.batch.rows,
        }

    @property
    def adapter_config(self) -> dict[str, Any] | None:
        if self.method in ("full", *UNFROZEN):
            return None
        family = FAMILIES[self.family]
        config: dict[str, Any] = {
            "task_type": TASK_TYPES.get(family.task),
            "base_model_name_or_path": "base",
            "target_modules": list(family.targets),
            "modules_to_save": self.candidate["adapter"]["trained_modules"] or None,
        }
        config["fan_in_fan_out"] = self.family == "gpt2"
        if self.method == "ia3":
            config["target_modules"].append(family.feedforward)
            return config | {"peft_type": "IA3", "feedforward_modules": [family.feedforward]}
        config |= {"lora_alpha": 8, "lora_dropout": 0.05}
        if self.method == "adalora":
            plan = {"init_r": 6, "target_r": 4, "tinit": 2, "tfinal": 2, "deltaT": 1, "total_step": 10}
            return config | {"peft_type": "ADALORA", **plan}
        return config | {
            "peft_type": "LORA",
            "r": 4,
            "use_rslora": self.method == "rslora",
            "use_dora": self.method == "dora",
        }


def case(family: str = "llama", method: str = "lora", **settings: Any) -> Case:
    """A case; what is no field of it is one of the level."""
    own = {name: settings.pop(name) for name in ("batch", "passes", "depth") if name in settings}
    if family == "t5":
        own["batch"] = replace(own.get("batch", DENSE), target_length=12)
    if FAMILIES[family].task == "image-classification":
        own["batch"] = replace(DENSE, arrays=IMAGES)
    return Case(family, method, level=tuple(settings.items()), **own)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], str]:
    """Writes a configuration, and says where."""

    def write(configuration: Any) -> str:
        path = tmp_path_factory.mktemp("model")
        configuration.save_pretrained(path)
        return str(path)

    return write


@pytest.fixture(scope="module")
def tape_of(folder_of: Callable[[Any], str]) -> Callable[..., Tape]:
    """The tape of a case, on fakes unless ``real``."""

    def build(own: Case, make: Callable[[], Any] | None, device: torch.device) -> Any:
        task: dict[str, Any] = {"kind": FAMILIES[own.family].task, "labels": ["no", "yes"]}
        return build_model(
            folder_of(make() if make else FAMILIES[own.family].configuration(own.depth)),
            task=task,
            candidate=own.candidate,
            adapter_config=own.adapter_config,
            pad_id=0,
            seed=0,
            device=device,
            has_weights=False,
        )

    @cache
    def run(
        own: Case, *, real: bool = False, on_cuda: bool = False, make: Callable[[], Any] | None = None
    ) -> Tape:
        mode: Any = nullcontext()
        if real:
            model = build(own, make, CPU)
        else:
            with on_meta(own.candidate["level"]):
                model = build(own, make, torch.device("meta"))
            if not on_cuda:
                widen_norms(model)  # as the builder does for a CPU
            mode = fake_tensors()
        with mode:
            if not real:
                materialise(model)
            set_loss(model, own.candidate["level"]["loss"], device=CPU)
            return record(
                model,
                own.candidate,
                own.batch,
                passes=own.passes,
                has_labels_per_row=FAMILIES[own.family].per_row,
                on_cuda=on_cuda,
            )

    return run


def history(tape: Tape, *, but_questions: bool = False) -> list[Any]:
    """Events in order, with blocks numbered as they come and what is freed at once in no order.

    What autocast kept is freed by the addresses of the tensors it was made from, and so by chance.
    """
    numbers: dict[int, int] = {}
    left_out: set[int] = set()
    found: list[Any] = []
    for event in tape.events:
        if event.size_bytes and but_questions and event.size_bytes <= QUESTION_BYTES:
            left_out.add(event.block)
        elif event.block not in left_out:
            number = numbers.setdefault(event.block, len(numbers))
            found.append((not event.size_bytes, number, *event[1:], tape.kinds[event.block]))
    return [
        entry
        for is_free, run in groupby(found, key=lambda entry: entry[0])
        for entry in (sorted(run, key=lambda entry: entry[1]) if is_free else run)
    ]


PADDED, PACKED = replace(DENSE, padded=True), replace(DENSE, packed=True)

ON_REAL_TENSORS = [
    # Methods, with what each needs most.
    case(),
    case(method="full", passes=2),
    case(method="rslora", passes=2, **AUTOCAST),
    case(method="dora", passes=2, **HALF_WEIGHTS),
    case(method="adalora", passes=2),
    case(method="ia3", **CHECKPOINTS),
    # Families: full and adapted, dense and padded, with a custom head, tied weights, experts, two stacks.
    case("bert", passes=2, **AUTOCAST),
    case("bert", "full", batch=PADDED, **HALF_WEIGHTS),
    case("bert", "dora", **HALF_WEIGHTS, **CHECKPOINTS),
    case("bert", "head", **HALF_WEIGHTS),
    case("bert", "bitfit", passes=2, **AUTOCAST, **CHECKPOINTS),
    case("bert", "last-blocks", passes=2, quantization="nf4", **HALF_WEIGHTS),
    case("t5", **CHECKPOINTS),
    case("t5", "adalora", batch=PADDED),
    case("t5", passes=2, **AUTOCAST, **CHECKPOINTS),
    case("gemma3", passes=2, batch=PADDED, **AUTOCAST, **CHECKPOINTS),
    case("gemma3", "full", **HALF_WEIGHTS),
    case("deepseek-v3", passes=2, **HALF_WEIGHTS, **CHECKPOINTS),
    case("deepseek-v3", "full", batch=PADDED, **AUTOCAST),
    case("gpt2", "full", **AUTOCAST),
    case("gpt2", "ia3", batch=PADDED, **CHECKPOINTS),
    case("mixtral", "full", **CHECKPOINTS),
    case("mixtral", passes=2, **AUTOCAST),
    case("qwen3-moe", batch=PADDED, **HALF_WEIGHTS),
    # Images, in patches and convolved.
    case("vit", passes=2, **AUTOCAST, **CHECKPOINTS),
    case("vit", "full", **HALF_WEIGHTS),
    case("vit", quantization="nf4", **HALF_WEIGHTS),
    case("convnext", passes=2, attention="eager", **HALF_WEIGHTS),
    case("resnet", "full", passes=2, attention="eager", **AUTOCAST),
    # Quantized.
    case(quantization="nf4", double_quantization=True, passes=2, **HALF_WEIGHTS),
    case(quantization="fp4", **CHECKPOINTS),
    case(quantization="int8", **HALF_WEIGHTS, **CHECKPOINTS),
    case(method="dora", quantization="nf4", double_quantization=True, **HALF_WEIGHTS),
    case(method="adalora", quantization="int8", **HALF_WEIGHTS),
    case("mixtral", quantization="nf4", **HALF_WEIGHTS),
    # Batches, kernels, losses, optimizers.
    case(batch=PADDED, attention="eager"),
    case(attention="eager", adapter_dtype="bfloat16", **HALF_WEIGHTS),
    case(loss="chunked", **AUTOCAST),
    case(method="full", optimizer="adamw_torch_fused", passes=2),
    case(method="full", optimizer="adamw_8bit", passes=2),
]


def name_of(own: Case) -> str:
    batch = (
        "pairs"
        if own.batch.has_types
        else "padded"
        if own.batch.padded
        else "packed"
        if own.batch.packed
        else "dense"
    )
    return "-".join(map(str, (own.family, own.method, batch, own.passes, *dict(own.level).values())))


@pytest.mark.parametrize("own", ON_REAL_TENSORS, ids=name_of)
def test_fakes_allocate_and_compute_what_real_tensors_do(own: Case, tape_of: Callable[..., Tape]) -> None:
    fake, real = tape_of(own), tape_of(own, real=True)
    assert peaks_of(fake) == peaks_of(real)
    assert history(fake) == history(real)
    assert fake.work == real.work


def test_two_micro_batches_stand_for_more(tape_of: Callable[..., Tape]) -> None:
    """But for the optimizer, which steps once."""
    once, two, four, eight = (
        total_work(tape_of(case(method="full", passes=passes))) for passes in (1, 2, 4, 8)
    )
    assert [each.flops.total() for each in (four, eight)] == [2 * two.flops.total(), 4 * two.flops.total()]
    pair = four.kernels - two.kernels
    assert eight.kernels == four.kernels + 2 * pair
    assert 2 * once.kernels > two.kernels > pair, "the optimizer's are counted once"


HALF_AUTOCAST = {"compute_dtype": "float16"}


@pytest.mark.parametrize(
    "own",
    [
        case(method="full", attention="eager", passes=2, **HALF_AUTOCAST),
        case(method="full", attention="eager", optimizer="adamw_torch_fused", **HALF_AUTOCAST),
        case(attention="eager", weight_dtype="float16", **HALF_AUTOCAST),
    ],
    ids=name_of,
)
def test_scaled_losses_allocate_what_torchs_scaler_does(
    own: Case, tape_of: Callable[..., Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one looks whether gradients are finite, as they are under a small scale; fakes do not tell."""
    fake = tape_of(own, on_cuda=True)
    monkeypatch.delattr(LossScaler, "_maybe_opt_step")
    monkeypatch.setattr(dry_run, "LossScaler", partial(LossScaler, init_scale=2.0))
    real = tape_of(own, on_cuda=True, real=True)
    assert peaks_of(fake) == peaks_of(real)
    assert history(fake) == history(real)


def test_float16_is_scaled_under_autocast_on_cuda_alone(tape_of: Callable[..., Tape]) -> None:
    def more_than_bfloat16(phase: Phase, *, on_cuda: bool = True, **dtypes: str) -> int:
        half, bfloat = (
            peaks_of(
                tape_of(
                    case(method="full", compute_dtype=dtype, **dict.fromkeys(dtypes, dtype)), on_cuda=on_cuda
                )
            ).by_phase[phase]
            for dtype in ("float16", "bfloat16")
        )
        return half - bfloat

    assert more_than_bfloat16(Phase.EVALUATION) == 2 * 512, "scale and its tracker are kept"
    assert more_than_bfloat16(Phase.OPTIMIZER) == 3 * 512, "beside whether an overflow was found"
    assert more_than_bfloat16(Phase.OPTIMIZER, on_cuda=False) == 0
    assert more_than_bfloat16(Phase.OPTIMIZER, weight_dtype="", adapter_dtype="") == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_packed_fakes_allocate_what_real_tensors_do(family: str, tape_of: Callable[..., Tape]) -> None:
    """But for what transformers makes to look whether samples do share rows, which it asks real ones only."""
    own = case(family, batch=PACKED, **CHECKPOINTS)
    fake, real = tape_of(own), tape_of(own, real=True)
    assert peaks_of(fake) == peaks_of(real)
    assert history(fake, but_questions=True) == history(real, but_questions=True)
    assert total_work(fake).flops == total_work(real).flops


IN_TRIALS = [
    case(),
    case(method="full", passes=2, **AUTOCAST),
    case("bert", passes=2),
    case("bert", "head", **HALF_WEIGHTS),
    case("bert", "bitfit", passes=2, **AUTOCAST, **CHECKPOINTS),
    case("bert", "last-blocks", passes=2, quantization="nf4", **HALF_WEIGHTS),
    case("t5", **CHECKPOINTS),
    case(method="adalora", passes=2),
    case(quantization="nf4", double_quantization=True, passes=2, **HALF_WEIGHTS),
    case(quantization="int8", **HALF_WEIGHTS),
    case(loss="chunked", passes=2),
    case("mixtral", batch=replace(PADDED, rows=3)),
    case("bert", batch=PADDED, **HALF_WEIGHTS),
    case("bert", batch=replace(PADDED, has_types=True), passes=2),
    case(method="full", optimizer="adamw_8bit", passes=2),
]


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Without the precision that a session of before asked for."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("own", IN_TRIALS, ids=name_of)
def test_a_trial_measures_what_its_dry_run_tells(
    own: Case, tape_of: Callable[..., Tape], folder_of: Callable[[Any], str]
) -> None:
    session = open_session(
        folder_of(FAMILIES[own.family].configuration(own.depth)),
        task={"kind": FAMILIES[own.family].task, "labels": ["no", "yes"]},
        candidate=own.candidate,
        adapter_config=own.adapter_config,
        pad_id=0,
        seed=0,
        total_steps=10,
        on_cpu=True,
        has_weights=False,
    )
    rows = list(make_rows(own))
    run_step(session, rows, 0)
    run_step(session, rows, 1)
    by_phase = peaks_of(tape_of(own)).by_phase
    assert peak_tensor_bytes(session, rows) == max(by_phase[phase] for phase in STEP)


def make_rows(own: Case) -> Iterator[Example]:
    """Rows of one effective batch."""
    for row in range(own.batch.rows * own.passes):
        is_shorter = own.batch.padded and row % own.batch.rows == 0
        ids = array(
            "i", [1 + (7 * row + at) % (VOCABULARY - 1) for at in range(own.batch.length - is_shorter)]
        )
        target = ids[: own.batch.target_length] if own.batch.target_length else None
        types = [0] * len(ids) if own.batch.has_types else None
        yield Example(
            ids, token_types=types, target_ids=target, label=row % 2 if FAMILIES[own.family].per_row else None
        )


STRETCHED = [
    case(),
    case(method="full", passes=2, **AUTOCAST, **CHECKPOINTS),
    case("bert", **AUTOCAST),
    case("t5"),
    case("vit", **HALF_WEIGHTS, **CHECKPOINTS),
    case("gpt2", **HALF_WEIGHTS, **CHECKPOINTS),
    case("mixtral"),
    case("mixtral", **AUTOCAST, **CHECKPOINTS),
    case(quantization="nf4", double_quantization=True, passes=2, **HALF_WEIGHTS, **CHECKPOINTS),
    case(optimizer="adamw_torch_fused"),
    case(optimizer="adamw_8bit"),
    case(method="full", optimizer="paged_adamw_8bit"),
]


def depths_of(own: Case, depth: int) -> dict[str, int]:
    """Name of each stack as it is in the model that is trained → this depth."""
    prefix = "" if own.method == "full" else "base_model.model."
    return {prefix + stack: depth for stack in FAMILIES[own.family].stacks}


@pytest.mark.parametrize("own", STRETCHED, ids=name_of)
def test_few_layers_tell_of_many(own: Case, tape_of: Callable[..., Tape]) -> None:
    deep = 7
    few = tape_of(replace(own, depth=TRACED_LAYERS), on_cuda=True)
    stretched = stretch(few, depths_of(own, deep))
    whole = tape_of(replace(own, depth=deep), on_cuda=True)
    assert peaks_of(stretched) == peaks_of(whole)
    work, wanted = total_work(stretched), total_work(whole)
    assert (work.flops, work.kernels) == (wanted.flops, wanted.kernels)
    # The norms of all gradients are read at once, wherever these are.
    assert work.moved_bytes == pytest.approx(wanted.moved_bytes, rel=1e-3)


def test_few_layers_tell_of_a_dozen(tape_of: Callable[..., Tape]) -> None:
    own = case(**HALF_WEIGHTS)
    few = tape_of(replace(own, depth=TRACED_LAYERS), on_cuda=True)
    assert peaks_of(stretch(few, depths_of(own, 12))) == peaks_of(
        tape_of(replace(own, depth=12), on_cuda=True)
    )


UNLIKE: dict[str, Callable[[int], Any]] = {
    "gemma3": FAMILIES["gemma3"].configuration,
    "experts after dense layers": lambda depth: transformers.Qwen3MoeConfig(
        num_hidden_layers=depth,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        head_dim=16,
        mlp_only_layers=[0, 1],
        **DECODER,
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_layers_that_differ_are_never_taken_for_alike(name: str, tape_of: Callable[..., Tape]) -> None:
    own = case(depth=TRACED_LAYERS)
    few = tape_of(own, on_cuda=True, make=partial(UNLIKE[name], TRACED_LAYERS))
    with pytest.raises(Uneven):
        stretch(few, depths_of(own, 8))


def test_layers_that_compute_otherwise_but_allocate_alike_may_pass(tape_of: Callable[..., Tape]) -> None:
    """Gemma 2's see all or the last few tokens by turns, which an eager mask says without being larger."""

    def tape(depth: int) -> Tape:
        def make() -> Any:
            return transformers.Gemma2Config(
                num_hidden_layers=depth, head_dim=16, sliding_window=8, **DECODER
            )

        return tape_of(own, on_cuda=True, make=make)

    own = case(attention="eager")
    assert peaks_of(stretch(tape(TRACED_LAYERS), depths_of(own, 8))) == peaks_of(tape(8))


CUT = {
    "t5": FAMILIES["t5"].configuration,
    "vit": FAMILIES["vit"].configuration,
    "deepseek-v3": FAMILIES["deepseek-v3"].configuration,
    "gemma3": lambda depth: transformers.Gemma3TextConfig(
        num_hidden_layers=depth,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention"] * depth,
        **DECODER,
    ),
}
WHOLE: dict[str, Callable[[int], Any]] = {
    "every sixth layer sees all": lambda depth: {
        "model_type": "gemma3_text",
        "num_hidden_layers": depth,
        "head_dim": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 6,
        **DECODER,
    },
    "later layers see little": lambda depth: {
        "model_type": "qwen2",
        "num_hidden_layers": depth,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": depth // 2,
        **DECODER,
    },
    "layers are counted twice": lambda depth: {
        "model_type": "gpt_neo",
        "num_layers": depth,
        "num_heads": 4,
        "hidden_size": 64,
        "vocab_size": VOCABULARY,
        "attention_types": [[["global", "local"], depth // 2]],
    },
    "two dense layers": UNLIKE["experts after dense layers"],
    "by turns": UNLIKE["gemma3"],
}


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
def test_a_runner_cuts_a_model_where_that_tells_the_same(name: str, tmp_path: Path) -> None:
    configuration: Any = (CUT | WHOLE)[name](8)
    if not isinstance(configuration, dict):
        configuration = configuration.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    task = natural_task(tmp_path)
    model = inspect_model(tmp_path, source=name, revision=None, task=task, try_packing=False)
    runner = DryRunner(model, task, tmp_path / "runner")
    settings = Settings(gradient_checkpointing=False, length=DENSE.length)
    candidate = candidate_from(settings, model, task.kind)
    target_length = 12 if task.kind is TaskKind.SEQ2SEQ else None
    batch = replace(DENSE, target_length=target_length, arrays=arrays_for(model))

    def found() -> tuple[Any, Any]:
        tape = runner.tape(candidate, batch)
        deep = runner.deepened(tape)
        return deep is tape, (peaks_of(deep), total_work(deep).flops)

    try:
        is_whole, few = found()
    except Uneven:
        is_whole, few = True, None
    assert is_whole == (name in WHOLE)
    runner.run_whole()
    _, whole = found()
    assert few in (None, whole)


def test_code_of_a_models_own_is_cut_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = str(tmp_path / "modules")  # transformers copies the code there, and imports it
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr("sys.path", [*sys.path])
    settings = {**DECODER, "num_hidden_layers": 8, "model_type": "llama"}
    settings["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    # A class of its own: transformers marks it as one whose code is to be saved with it.
    code = "from transformers import LlamaForCausalLM\nclass Own(LlamaForCausalLM):\n    pass\n"
    (tmp_path / "modeling.py").write_text(code)
    task = natural_task(tmp_path, allow_remote_code=True)
    model = inspect_model(tmp_path, source="own", revision=None, task=task, allow_remote_code=True)
    runner = DryRunner(model, task, tmp_path / "runner", allow_remote_code=True)
    tape = runner.tape(candidate_from(Settings(), model, task.kind), DENSE)
    assert model.runs_remote_code
    assert runner.deepened(tape) is not tape


BETWEEN = [
    case(**HALF_WEIGHTS, **CHECKPOINTS),
    case("bert", batch=PADDED, **AUTOCAST),
    case("mixtral", "full"),
]


@pytest.mark.parametrize("own", BETWEEN, ids=name_of)
def test_two_micro_batches_and_three_lengths_tell_of_others(own: Case, tape_of: Callable[..., Tape]) -> None:
    def at(rows: int, length: int) -> Tape:
        target = own.batch.target_length and length
        batch = replace(own.batch, rows=rows, length=length, target_length=target)
        return tape_of(replace(own, batch=batch), on_cuda=True)

    rows = interpolated({2: at(2, 128), 4: at(4, 128)}, 7)
    assert peaks_of(rows) == peaks_of(at(7, 128))
    assert total_work(rows) == total_work(at(7, 128))
    lengths = interpolated({units: at(2, 128 * units) for units in (1, 2, 3)}, 4)
    assert peaks_of(lengths) == peaks_of(at(2, 4 * 128))


def test_tied_weights_count_once(tape_of: Callable[..., Tape]) -> None:
    def weights(tied: bool) -> int:
        settings = {**DECODER, "num_hidden_layers": SHORT, "tie_word_embeddings": tied}
        tape = tape_of(case(), make=lambda: transformers.LlamaConfig(**settings))
        return sum(
            event.size_bytes
            for event in tape.events
            if event.phase is Phase.BUILD and tape.kinds[event.block] is Kind.BASE_WEIGHTS
        )

    assert weights(tied=False) - weights(tied=True) == 4 * VOCABULARY * DECODER["hidden_size"]


def test_experts_stay_as_wide_as_the_builder_leaves_them(tape_of: Callable[..., Tape]) -> None:
    """transformers keeps experts as three-dimensional parameters, which bitsandbytes does not quantize."""
    tape = tape_of(case("mixtral", quantization="nf4", **HALF_WEIGHTS))
    sizes = [event.size_bytes for event in tape.events if event.phase is Phase.BUILD]
    gates_and_ups = 2 * 4 * 2 * DECODER["intermediate_size"] * DECODER["hidden_size"]  # bfloat16, 4 experts
    assert sizes.count(gates_and_ups) == SHORT


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_experts_compute_for_the_rows_that_are_sent_to_them(
    family: str, tape_of: Callable[..., Tape]
) -> None:
    def flops(chosen: int) -> float:
        def make() -> Any:
            configuration = FAMILIES[family].configuration(SHORT)
            configuration.num_experts_per_tok = chosen
            return configuration

        return total_work(tape_of(case(family), make=make)).flops["float32"]

    width = 96 if family == "mixtral" else 32
    tokens = DENSE.rows * DENSE.length
    # Gate, up and down, forward and for the gradient of the input; weights are frozen, but grouped products
    # always give the gradient of both.
    once = 2 * 3 * tokens * width * DECODER["hidden_size"] * SHORT
    assert flops(2) - flops(1) in (2 * once, 3 * once)


def test_ranks_that_adalora_weighs_are_kept(tape_of: Callable[..., Tape]) -> None:
    """Three numbers a trained one, beside the optimizer's two; ranks are not weighed before a gradient is."""
    tape = tape_of(case(method="adalora"), on_cuda=True)
    kinds = [tape.kinds[event.block] for event in tape.events if event.size_bytes]
    freed = {event.block for event in tape.events if not event.size_bytes}
    kept = sum(
        event.size_bytes
        for event in tape.events
        if event.size_bytes and tape.kinds[event.block] is Kind.OPTIMIZER_STATE and event.block not in freed
    )
    hidden, values = DECODER["hidden_size"], 2 * 16
    adapter = SHORT * 4 * (6 * hidden + 6 + 6 * hidden + 6 * hidden + 6 + 6 * values)
    assert Kind.OPTIMIZER_STATE in kinds
    assert kept == (2 + 3) * adapter


def test_paged_states_are_not_the_devices(tape_of: Callable[..., Tape]) -> None:
    wide = {**DECODER, "num_hidden_layers": 1, "vocab_size": 4 * 2**10}
    paged, plain = (
        peaks_of(
            tape_of(
                case(method="full", optimizer=name),
                on_cuda=True,
                make=lambda: transformers.LlamaConfig(**wide),
            )
        ).by_phase
        for name in ("paged_adamw_8bit", "adamw_8bit")
    )
    numbers = 4 * 2**10 * DECODER["hidden_size"]
    assert plain[Phase.EVALUATION] - paged[Phase.EVALUATION] == 2 * numbers  # two states of a byte each


def test_a_model_can_be_run_again(folder_of: Callable[[Any], str]) -> None:
    """Batches of several sizes go through one model: nothing of one is left for the next."""
    for own in (case(method="adalora"), case(quantization="int8", **HALF_WEIGHTS)):
        with on_meta(own.candidate["level"]):
            model = build_model(
                folder_of(FAMILIES[own.family].configuration(SHORT)),
                task={"kind": "causal-lm"},
                candidate=own.candidate,
                adapter_config=own.adapter_config,
                pad_id=0,
                seed=0,
                device=torch.device("meta"),
                has_weights=False,
            )
        with fake_tensors():
            materialise(model)
            first, second = (record(model, own.candidate, DENSE) for _ in range(2))
        assert peaks_of(first) == peaks_of(second)
        assert history(first) == history(second)


@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_nothing_is_reported_missing(
    kind: str, tape_of: Callable[..., Tape], caplog: pytest.LogCaptureFixture
) -> None:
    """On the meta device there is nothing to initialise, and so nothing to tell of."""
    tape_of(case(quantization=kind, passes=2), on_cuda=True)
    assert "MISSING" not in caplog.text
    assert "CONVERSION" not in caplog.text
