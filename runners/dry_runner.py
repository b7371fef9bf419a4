"""A model's candidates run dry: built on few of its layers, recorded, stretched to all of them, at any size.

Knows nothing of devices and limits.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..optimizer.codec import to_json
from ..optimizer.domain import Candidate
from ..optimizer.estimates.communication import Traffic, traffic_of
from ..optimizer.estimates.need import Need
from ..optimizer.estimates.prediction import Terms
from ..optimizer.estimates.shard_plan import as_run, has_autocast, plan_of
from ..optimizer.estimates.sharding import host_bytes
from ..optimizer.estimates.tape import Tape, Uneven, Work, interpolated, stretch, total_work
from ..optimizer.exports.peft import adapter_config
from ..probes.profiles import ModelProfile, TaskProfile
from .build import InvalidTrial, build_model
from .dry_run import Batch, record
from .fakes import fake_tensors, materialise, on_meta
from .fused_loss import FusedLossStandIn
from .keeping_linear import keeping_linear
from .losses import set_loss
from .shallow import cut_configuration, stacks_of
from .weights import widen_norms

TOTAL_STEPS = 1_000
"""Of the training that AdaLoRA's plan is made for; memory does not depend on it."""

LENGTH_STEP = 128
"""Kernels round lengths up to this: the largest that fits is looked for among its multiples."""

CANNOT_RUN = (AttributeError, ImportError, IndexError, InvalidTrial, RuntimeError, TypeError, ValueError)
"""What libraries raise for a candidate that they cannot build or run."""


class DryRunner:
    """Runs steps of one model's candidates dry, on few of its layers where they are alike."""

    def __init__(
        self,
        model: ModelProfile,
        task: TaskProfile,
        folder: Path,
        *,
        allow_remote_code: bool = False,
        on_cuda: bool = True,
    ) -> None:
        """Read the configuration; nothing is built yet.

        Args:
            folder: where a configuration of few layers may be written.
            on_cuda: allocate as CUDA does; else as the CPU does that this runs on.
        """
        self.model, self._task, self._allowed, self._on_cuda = model, task, allow_remote_code, on_cuda
        self._depths = stacks_of(model)
        self._path = Path(model.path)
        if model.factory is None and cut_configuration(self._path, self._depths, folder / "cut"):
            self._path = folder / "cut"
        self._built: tuple[Candidate, Path, Any, torch.nn.Module] | None = None

    def tape(self, candidate: Candidate, batch: Batch) -> Tape:
        """A step on few layers, for :meth:`deepened`; on all of them if they are known to differ.

        Of several ranks it is the step of one that has the whole model, in the dtypes that they compute in.

        Raises:
            InputError: the model cannot be built or run as the candidate says.
        """
        if candidate.adapter.last_blocks is not None or candidate.adapter.rank_pattern:
            self.run_whole()  # layers differ in what is trained of them
        run = replace(candidate, level=as_run(candidate.level))
        try:
            mode, model = self._build(run)
            with mode, keeping_linear() if run.level.zero_stage == 3 else nullcontext():
                return record(
                    model,
                    to_json(run),
                    batch,
                    passes=candidate.accumulation,
                    has_labels_per_row=self._task.kind.has_new_head,
                    on_cuda=self._on_cuda,
                    uses_autocast=has_autocast(candidate.level),
                )
        except CANNOT_RUN as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"{self.model.source} cannot be run dry as {candidate.describe()}: {reason}",
                next_step="try another method, attention or precision, or no gradient checkpointing",
            ) from error

    def deepened(self, tape: Tape) -> Tape:
        """The tape of the few layers that were run, stretched to all; one of all layers as it is.

        Raises:
            Uneven: layers differ in what they do: :meth:`run_whole` from now on.
        """
        if self._path == Path(self.model.path):
            return tape
        names = {place.stack for place in tape.work if place is not None}
        return stretch(
            tape,
            {
                name: depth
                for name in names
                for stack, depth in self._depths.items()
                if f".{name}".endswith(f".{stack}")
            },
        )

    def run_whole(self) -> None:
        """Run all layers from now on."""
        self._path = Path(self.model.path)

    def _build(self, candidate: Candidate) -> tuple[Any, torch.nn.Module]:
        """The model on fake tensors; the last one is kept, as batches of several sizes are asked for."""
        candidate = replace(candidate, micro_batch=1)
        if self._built is not None and self._built[:2] == (candidate, self._path):
            return self._built[2], self._built[3]
        self._built = None
        level = candidate.level
        if level.attention == "flash_attention_2":
            # It keeps what sdpa's flash kernel keeps, and its package is not needed to know that.
            level = replace(level, attention="sdpa")
        plain = to_json(replace(candidate, level=level))
        config = adapter_config(
            candidate, task_kind=self._task.kind, base_model=self.model.source, total_steps=TOTAL_STEPS
        )
        with on_meta(plain["level"]):
            model = build_model(
                str(self._path),
                task=to_json(self._task),
                candidate=plain,
                adapter_config=config,
                pad_id=0,
                seed=0,
                device=torch.device("meta"),
                has_weights=False,
                trust_remote_code=self._allowed,
                factory=None if self.model.factory is None else to_json(self.model.factory),
            )
        if not self._on_cuda:
            widen_norms(model)  # as the builder does it on that device
        mode = fake_tensors()
        with mode:
            materialise(model)
            if candidate.level.loss == "liger":
                wrapped: Any = model
                FusedLossStandIn(wrapped.get_base_model() if hasattr(model, "peft_config") else model)
            else:
                set_loss(model, candidate.level.loss, device=torch.device("cpu"))
        self._built = (candidate, self._path, mode, model)
        return mode, model


class Sizes:
    """One candidate at batches of several sizes: a few are run, the others follow from them.

    Nothing is worked out twice, not even between those that share their tapes.
    """

    def __init__(
        self,
        runner: DryRunner,
        candidate: Candidate,
        batch: Batch,
        terms: Terms,
        tapes: dict[Batch, Tape] | None = None,
    ) -> None:
        """See nothing yet.

        Args:
            batch: a rank's micro-batch.
            terms: how the candidate's level divides the model is added to them.
            tapes: those that were recorded so far of this candidate.

        Raises:
            InputError: the level divides the model in a way that there is not.
        """
        self._runner, self._candidate, self._batch = runner, candidate, batch
        self._terms = replace(terms, plan=plan_of(candidate))
        self._tapes: dict[Batch, Tape] = {} if tapes is None else tapes
        self._reserved: dict[Batch, int] = {}
        self._asked_about: tuple[Need, Work] | None = None

    @property
    def candidate(self) -> Candidate:
        """Whose sizes these are."""
        return self._candidate

    @property
    def batch(self) -> Batch:
        """The size that is asked about."""
        return self._batch

    @property
    def host_bytes(self) -> int:
        """What offloading puts into the host's memory for each rank."""
        plan = self._terms.plan
        return 0 if plan is None else host_bytes(self.deep(self._batch), plan)

    @property
    def traffic(self) -> Traffic:
        """What each rank sends in a step."""
        return traffic_of(self.deep(self._batch), self._terms.plan)

    def asked_about(self) -> tuple[Need, Work]:
        """The need at the batch itself, and the work of an optimizer step."""
        if self._asked_about is None:
            tape = self.deep(self._batch)
            self._asked_about = self._terms.need(tape), total_work(tape)
            self._reserved[self._batch] = self._asked_about[0].reserved_bytes
        return self._asked_about

    def deep(self, batch: Batch) -> Tape:
        """The tape of the whole model, run at this size."""
        try:
            return self._runner.deepened(self._run(batch))
        except Uneven:
            self._runner.run_whole()
            self._tapes.clear()
            return self._run(batch)

    def reserved_bytes(self, *, rows: int | None = None, length: int | None = None) -> int:
        """What the allocator takes at another number of rows, or another length."""
        asked = self._sized(rows=rows, length=length)
        if asked not in self._reserved:
            self._reserved[asked] = self._terms.reserved_bytes(self._tape_at(asked, rows=rows, length=length))
        return self._reserved[asked]

    def _tape_at(self, asked: Batch, *, rows: int | None, length: int | None) -> Tape:
        """Of the whole model; between sizes that were run where this one was not."""
        if asked in self._tapes or (rows is None and length is None):
            return self.deep(asked)
        if length is None:
            known = {number: self._sized(rows=number) for number in (self._batch.rows, 2 * self._batch.rows)}
            value = asked.rows
        else:
            middle = max(2 * LENGTH_STEP, self._batch.length // LENGTH_STEP * LENGTH_STEP)
            lengths = (middle // 2 // LENGTH_STEP * LENGTH_STEP, middle, 2 * middle)
            known = {number: self._sized(length=number) for number in lengths}
            value = length
        try:
            short = interpolated({number: self._run(each) for number, each in known.items()}, value)
            return self._runner.deepened(short)
        except Uneven:
            return self.deep(asked)

    def _sized(self, *, rows: int | None = None, length: int | None = None) -> Batch:
        batch = self._batch if rows is None else replace(self._batch, rows=rows)
        if length is None:
            return batch
        return replace(batch, length=length, target_length=batch.target_length and length)

    def _run(self, batch: Batch) -> Tape:
        if batch not in self._tapes:
            self._tapes[batch] = self._runner.tape(self._candidate, batch)
        return self._tapes[batch]
