"""Facts, candidates and trials to decide on, built in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from rankwise.optimizer.domain import (
    Candidate,
    Level,
    Measurement,
    Outcome,
    Recipe,
    Rung,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.probes.profiles import (
    DatasetProfile,
    GpuProfile,
    HardwareProfile,
    HostProfile,
    LengthProfile,
    ModelProfile,
    ModuleProfile,
    TaskKind,
    TaskProfile,
    TensorProfile,
)

GIB = 2**30


def block_around(name: str) -> str | None:
    """The name up to its first number."""
    parts = name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


class Build:
    """Builders of domain objects; every argument has a default that suits most tests."""

    def module(
        self, name: str, role: str, sizes: tuple[int, int], kind: str = "linear", matrices: int = 1
    ) -> ModuleProfile:
        has_bias = kind not in ("embedding", "experts")
        parameters = matrices * sizes[0] * sizes[1] + (sizes[1] if has_bias else 0)
        return ModuleProfile(
            name=name,
            kind=kind,
            role=role,
            in_features=sizes[0],
            out_features=sizes[1],
            parameters=parameters,
            matrices=matrices,
        )

    def model(self, modules: list[ModuleProfile], **changes: Any) -> ModelProfile:
        defaults: dict[str, Any] = {
            "source": "some/model",
            "path": "/models/some",
            "revision": None,
            "architecture": "SomeModel",
            "model_type": "some",
            "parameters": sum(module.parameters for module in modules),
            "weight_bytes": 4 * sum(module.parameters for module in modules),
            "structure_sha256": "0" * 64,
            "hidden_size": 64,
            "layers": 2,
            "max_positions": 512,
            "supports_gradient_checkpointing": True,
            "modules": tuple(modules),
            "new_modules": (),
            "tensors": self.tensors(modules),
        }
        return ModelProfile(**{**defaults, **changes})

    def tensors(self, modules: list[ModuleProfile]) -> tuple[TensorProfile, ...]:
        """The parameters of these modules, with a norm behind each block of a BERT."""
        found = []
        for module in modules:
            block = block_around(module.name)
            name = module.name if module.kind == "experts" else f"{module.name}.weight"
            weights = module.matrices * module.in_features * module.out_features
            found.append(TensorProfile(name=name, kind="matrix", parameters=weights, block=block))
            if bias := module.parameters - weights:
                name = f"{module.name}.bias"
                found.append(TensorProfile(name=name, kind="bias", parameters=bias, block=block))
            if module.role == "mlp_out" and module.kind == "linear":
                name = f"{module.name.rpartition('.')[0]}.LayerNorm"
                found += [
                    TensorProfile(
                        name=f"{name}.{own}", kind="norm", parameters=module.out_features, block=block
                    )
                    for own in ("weight", "bias")
                ]
        return tuple(found)

    def bert(self, layers: int = 2, hidden: int = 64) -> ModelProfile:
        """A BERT with a new classification head: its output matrices are named alike."""
        modules = [self.module("bert.embeddings.word_embeddings", "other", (1000, hidden), "embedding")]
        for layer in range(layers):
            block = f"bert.encoder.layer.{layer}"
            modules += [
                *(
                    self.module(f"{block}.attention.self.{role}", role, (hidden, hidden))
                    for role in ("query", "key", "value")
                ),
                self.module(f"{block}.attention.output.dense", "attention_output", (hidden, hidden)),
                self.module(f"{block}.intermediate.dense", "mlp_in", (hidden, 4 * hidden)),
                self.module(f"{block}.output.dense", "mlp_out", (4 * hidden, hidden)),
            ]
        modules.append(self.module("bert.pooler.dense", "other", (hidden, hidden)))
        modules.append(self.module("classifier", "head", (hidden, 2)))
        return self.model(modules, new_modules=("classifier",))

    def gpt2(self, layers: int = 2, hidden: int = 64) -> ModelProfile:
        """A GPT-2: query, key and value in one transposed matrix."""
        modules = [self.module("transformer.wte", "other", (1000, hidden), "embedding")]
        for layer in range(layers):
            block = f"transformer.h.{layer}"
            modules += [
                self.module(f"{block}.attn.c_attn", "qkv", (hidden, 3 * hidden), "conv1d"),
                self.module(f"{block}.attn.c_proj", "attention_output", (hidden, hidden), "conv1d"),
                self.module(f"{block}.mlp.c_fc", "mlp_in", (hidden, 4 * hidden), "conv1d"),
                self.module(f"{block}.mlp.c_proj", "mlp_out", (4 * hidden, hidden), "conv1d"),
            ]
        modules.append(self.module("lm_head", "head", (hidden, 1000)))
        return self.model(modules)

    def moe(self, layers: int = 2, hidden: int = 64, experts: int = 8) -> ModelProfile:
        """A Mixtral: the experts of a layer are stacked in two parameters."""
        modules = [self.module("model.embed_tokens", "other", (1000, hidden), "embedding")]
        for layer in range(layers):
            block = f"model.layers.{layer}"
            modules += [
                *(
                    self.module(f"{block}.self_attn.{name}_proj", role, (hidden, hidden))
                    for name, role in zip("qkvo", ("query", "key", "value", "attention_output"), strict=True)
                ),
                self.module(f"{block}.mlp.gate", "router", (hidden, experts)),
                self.module(
                    f"{block}.mlp.experts.gate_up_proj", "mlp_in", (hidden, 4 * hidden), "experts", experts
                ),
                self.module(
                    f"{block}.mlp.experts.down_proj", "mlp_out", (2 * hidden, hidden), "experts", experts
                ),
            ]
        modules.append(self.module("lm_head", "head", (hidden, 1000)))
        return self.model(modules)

    def hardware(
        self,
        *,
        gpus: int = 0,
        native_bf16: bool = False,
        capability: tuple[int, int] | None = (8, 0),
        libraries: Iterable[str] = (),
    ) -> HardwareProfile:
        host = HostProfile(
            cpu_model="Some CPU",
            physical_cores=2,
            logical_cores=2,
            ram_total_bytes=16 * GIB,
            ram_available_bytes=8 * GIB,
            disk_free_bytes=100 * GIB,
            platform="Linux",
            python_version="3.11.0",
            native_bf16=native_bf16,
            libraries=dict.fromkeys(libraries, "1.0"),
        )
        return HardwareProfile(
            host=host,
            gpus=tuple(
                GpuProfile(
                    uuid=f"GPU-{index}",
                    index=index,
                    name="Some GPU",
                    total_bytes=24 * GIB,
                    compute_capability=capability,
                )
                for index in range(gpus)
            ),
        )

    def dataset(
        self,
        *,
        usable_rows: int = 5000,
        lengths: LengthProfile | None = None,
        kind: TaskKind = TaskKind.TEXT_CLASSIFICATION,
    ) -> DatasetProfile:
        return DatasetProfile(
            source="reviews.csv",
            path="/data/reviews.csv",
            sha256="0" * 64,
            format="csv",
            size_bytes=1000,
            rows=usable_rows,
            usable_rows=usable_rows,
            columns=("text", "label"),
            task=TaskProfile(
                kind=kind,
                text_column="text",
                **({"label_column": "label", "labels": ("n", "p")} if kind.has_new_head else {}),
            ),
            lengths=lengths,
        )

    def lengths(self, p99: int = 100) -> LengthProfile:
        return LengthProfile(
            p50=p99 // 2, p90=p99 - 1, p99=p99, max=2 * p99, mean=50.0, rows_measured=100, estimated=False
        )

    def facts(
        self, *, model: ModelProfile | None = None, hardware: HardwareProfile | None = None, **changes: Any
    ) -> StudyFacts:
        defaults: dict[str, Any] = {
            "hardware": hardware or self.hardware(),
            "model": model or self.bert(),
            "dataset": self.dataset(),
            "recipe": Recipe(max_length=128),
            "tokens_path": "/tokens",
            "pad_id": 0,
            "train_rows": 4500,
            "heldout_rows": 500,
            "heldout_share": 0.1,
            "truncated_rows": 0,
            "truncated_tokens_share": 0.0,
        }
        return StudyFacts(**{**defaults, **changes})

    def request(self, **changes: Any) -> StudyRequest:
        return StudyRequest(**{"model": "some/model", "dataset": "reviews.csv", **changes})

    def candidates(self, *, hardware: HardwareProfile | None = None) -> tuple[Candidate, ...]:
        """Few enough for tests to search through: seven adapters, dtypes and checkpointing varied."""
        found = enumerate_candidates(self.facts(hardware=hardware), self.request())
        adapters = list(dict.fromkeys(candidate.adapter for candidate in found))[:7]
        plain = Level()
        return tuple(
            candidate
            for candidate in found
            if candidate.adapter in adapters
            and (candidate.level.attention, candidate.level.optimizer, candidate.level.compile)
            == (plain.attention, plain.optimizer, plain.compile)
        )

    def study(self, *, facts: StudyFacts | None = None, **changes: Any) -> Study:
        now = datetime(2025, 1, 1, tzinfo=UTC)
        return Study(
            id="study",
            request=self.request(**changes),
            state=StudyState.RUNNING,
            created_at=now,
            updated_at=now,
            facts=facts or self.facts(),
        )

    def trial(
        self,
        candidate: Candidate,
        number: int = 1,
        *,
        rung: Rung = Rung.PROBE,
        outcome: Outcome | None = Outcome.OK,
        train_steps: int = 100,
        wall_s: float = 10.0,
        **figures: Any,
    ) -> Trial:
        """A finished trial, or a queued one for ``outcome=None``; figures only where it succeeded."""
        defaults: dict[str, Any] = (
            {"tokens_per_s": 1000.0, "steps_per_s": 2.0, "step_s_mean": 0.5, "peak_process_bytes": GIB}
            if rung is Rung.PROBE
            else {"heldout_loss": 0.5, "heldout_loss_se": 0.01, "heldout_rows": 500}
        )
        measurement = Measurement(
            **{"measured_s": 5.0, "trainable_params": 1000, "total_params": 10_000, **defaults, **figures}
        )
        return Trial(
            id=f"trial-{number}",
            study_id="study",
            number=number,
            plan=TrialPlan(
                candidate=candidate, rung=rung, train_steps=train_steps if rung is Rung.TRAIN else 0
            ),
            state=TrialState.QUEUED if outcome is None else TrialState.FINISHED,
            outcome=outcome,
            measurement=measurement if outcome is Outcome.OK else None,
            wall_s=None if outcome is None else wall_s,
        )

    def variant(self, candidate: Candidate, *, micro_batch: int | None = None, **level: Any) -> Candidate:
        """The same candidate at another micro-batch or level."""
        return replace(
            candidate,
            micro_batch=micro_batch or candidate.micro_batch,
            level=replace(candidate.level, **level),
        )


@pytest.fixture(scope="session")
def build() -> Build:
    """Builders of domain objects."""
    return Build()


@pytest.fixture(scope="session")
def candidates(build: Build) -> list[Candidate]:
    """The first candidate of each adapter: all at the same level."""
    found = build.candidates()
    return [
        next(c for c in found if c.adapter == adapter) for adapter in dict.fromkeys(c.adapter for c in found)
    ]
