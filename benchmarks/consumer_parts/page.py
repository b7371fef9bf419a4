"""docs/exports.md: which setting stands where, and what became of each case in each format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.optimizer.trainers.cells import Cell
from rankwise.optimizer.trainers.formats import Format, Outline
from rankwise.optimizer.trainers.settings import SETTINGS
from rankwise.optimizer.trainers.table import TABLE, VERSIONS, Trainer
from rankwise.optimizer.trainers.writing import ExportRefused

from .reading import Exported, Read

HEAD = """\
# Exports

Made by `python benchmarks/consumers.py` from `optimizer/trainers/table.py`, and from what the trainers
themselves said of the files. A test fails where it is not up to date.

`rankwise export ID --format FORMAT` writes a recommendation, or any trial, as the files of the trainer that
you use. Rows are tokenised by `prepare_data.py`, which comes with the files, so that every trainer learns the
same tokens with the same loss mask, in the order of the trial's first epoch; templates, truncation and masks
of the trainer play no part. Axolotl's and LLaMA-Factory's own code loads such rows in a test
(`tests/integration/test_consumers.py`): the same tokens and labels, as many, in the same order; and
LLaMA-Factory's own training, on a CPU, repeats the losses of a trial of full fine-tuning within 1e-3.

What a trainer cannot be told has one of three effects:

- **another training**: the format is refused (exit code 2), and the message names the setting, the reason and
  a format that can say it;
- **other numbers**: the same is trained, losses differ by rounding, chance or the order of rows: listed in
  the file's head and by the command;
- **another cost**: the same numbers at another speed or with other memory: listed too.

Nothing is left out by the programs (`train.py`, and those of the formats transformers, trl, lightning and
pytorch); these tables are about files that trainers read.
"""

TRAINERS_HEAD = """\
## Settings and trainers

Keys in which each trainer is told a setting. In brackets: what holds always, or where it is told in place of
this file. A dash: it is not told, and where it matters a remark says what happens.
"""

CASES_HEAD = """\
## What becomes of a training

Each row differs from a plain LoRA (rank 8 on attention, bfloat16, 4 rows × 4) in the one thing that it is
named for. **yes**: the trainer's own parser took the file and understood every value as it was meant; where
there is an adapter, what it builds trains the same parameters as `adapter_config.json`. **no**: there is no
such file. A number points to a remark below.
"""

SHOWN = {
    Format.TRL: "sft.yaml",
    Format.AXOLOTL: "axolotl.yaml",
    Format.LLAMA_FACTORY: "llamafactory.yaml",
    Format.TRANSFORMERS: "training_args.json",
    Format.PEFT: "adapter_config.json",
    Format.ACCELERATE: "accelerate.yaml",
    Format.DEEPSPEED: "ds_config.json",
}
"""Format → the file that its trainer reads."""


def page(reads: Sequence[Read]) -> str:
    """The whole page."""
    remarks = _Remarks()
    rows = list(_case_rows(reads, remarks))
    versions = ", ".join(f"{trainer} {version}" for trainer, version in VERSIONS.items())
    parts = [
        HEAD,
        f"Written for {versions}.\n",
        TRAINERS_HEAD,
        "\n".join(_setting_rows()) + "\n",
        CASES_HEAD,
        "\n".join(rows) + "\n",
        "\n".join(remarks.lines()) + "\n",
    ]
    return "\n".join(parts)


def verdict(read: Read, form: Format) -> str:
    """``yes``, ``no``, or what the trainer objected to."""
    exported, name = read.exported[form], SHOWN[form]
    if isinstance(exported, ExportRefused) or name not in exported.files:
        return "no"
    answer = read.answers.get(name)
    if answer is None:
        return "not read"
    if "error" in answer:
        return f"yes, but {answer['error']}"
    own = read.answers.get("adapter_config.json", {}).get("trained")
    if "adapter" in answer and own is not None and answer["trained"] != own:
        return "yes, but other parameters are trained"
    changed = ", ".join(answer.get("changed", ()))
    return f"yes, but {changed} changed" if changed else "yes"


def reasons(exported: Exported) -> Iterator[str]:
    """What a format cannot say of a training."""
    if isinstance(exported, Outline):
        for gap in exported.gaps:
            yield f"{gap.reason} ({gap.effect.replace('-', ' ')})" if gap.setting != "method" else gap.reason
    else:
        yield exported.message


class _Remarks:
    """Numbered in the order of their appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The same for the same words."""
        return self._numbers.setdefault(text, len(self._numbers) + 1)

    def lines(self) -> Iterator[str]:
        """As a list."""
        for text, number in self._numbers.items():
            yield f"{number}. {text}"


def _setting_rows() -> Iterator[str]:
    yield "| setting | " + " | ".join(Trainer) + " |"
    yield "|---" * (1 + len(Trainer)) + "|"
    for name in TABLE:
        cells = " | ".join(_cell(TABLE[name].cell(trainer)) for trainer in Trainer)
        yield f"| **{name}**: {SETTINGS[name].replace('|', '/')} | {cells} |"


def _cell(cell: Cell) -> str:
    if cell.keys:
        return ", ".join(f"`{key}`" for key in cell.keys)
    return f"({cell.note})" if cell.note else "–"


def _case_rows(reads: Sequence[Read], remarks: _Remarks) -> Iterator[str]:
    yield "| training | " + " | ".join(SHOWN) + " |"
    yield "|---" * (1 + len(SHOWN)) + "|"
    for read in reads:
        cells = []
        for form in SHOWN:
            numbers = [remarks.number(reason) for reason in reasons(read.exported[form])]
            shown = " ".join(f"[{number}]" for number in numbers)
            cells.append(f"{verdict(read, form)} {shown}".strip())
        yield f"| {read.case.name} | {' | '.join(cells)} |"
