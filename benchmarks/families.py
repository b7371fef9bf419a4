"""Every family of models end to end, and the table of what each takes.

    python benchmarks/families.py              # inspect all, write docs/families.md: two minutes
    python benchmarks/families.py --studies    # and a study of each, its script verified: 25 minutes
    python benchmarks/families.py --only ATCNet T5 --studies

Each family has a small model, randomly initialised, and real data out of packages. Inspection tries every
method by building it and taking a step. With ``--studies`` a study of ``--budget`` seconds is run on the
data, and the script that it hands over has to repeat the trial's losses. Exits with 1 if a family fails
anywhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from family_parts.data import write_all
from family_parts.models import FAMILIES, Family

from rankwise import recommend
from rankwise.errors import RankwiseError
from rankwise.home import Home
from rankwise.optimizer.verdicts import VARIANTS, Support, Verdict
from rankwise.runners.jobs import Inquiries, Inspection

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "families.md"
HEAD = """\
# Which methods suit which models

Made by `python benchmarks/families.py --studies`: each cell is a real try. The method was built by PEFT on
a small model of the family and took one training step, in which every adapter had to get a gradient.
**yes** and **but** (not on every module that is meant for it, or with something to know: `rankwise inspect`
says what) are followed by the parameters that are trained, at rank 8 where there is one. Sizes are those of
the small models: what counts is which cells say no. Your own model: `rankwise inspect MODEL`.

The last columns are a study on real data, as small: what it recommended, and whether the `train.py` that it
handed over repeated the trial's losses (`--verify`).

"""


@dataclass(frozen=True, slots=True)
class Row:
    """What was found of one family."""

    family: Family
    inspection: Inspection
    recommended: str | None = None
    verified: bool | None = None


def main() -> int:
    """Try the families and write the page; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--studies", action="store_true", help="run a study of each, and its script")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds a study (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these families, and write no page")
    arguments = parser.parse_args()
    chosen = [each for each in FAMILIES if not arguments.only or each.name in arguments.only]
    os.chdir(REPOSITORY)  # where the example modules are found
    failed = 0
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_all(folder / "data")
        with Inquiries(Home(folder / "home"), ["inspect"]) as inquiries:
            for family in chosen:
                row = attempt(family, folder, data, inquiries, arguments)
                failed += row is None or row.verified is False
                if row is not None:
                    rows.append(row)
    if not arguments.only and not failed:
        PAGE.write_text(HEAD + table(rows), encoding="utf-8")
        print(f"written to {PAGE.relative_to(REPOSITORY)}")
    print(f"{len(rows)} families tried, {failed} failed")
    return 1 if failed else 0


def attempt(
    family: Family, folder: Path, data: dict[str, Path], inquiries: Inquiries, arguments: argparse.Namespace
) -> Row | None:
    """One family; None where it failed, after saying how."""
    started_s = time.monotonic()
    try:
        source = family.source(folder / "models", data["tokenizer"])
        row = Row(family, inquiries.inspect(source, arguments=family.arguments))
        if arguments.studies:
            row = study(row, source, folder, data[family.data], budget_s=arguments.budget)
    except RankwiseError as error:
        print(f"{family.name}: {error}", flush=True)
        return None
    counts = [verdict.support for verdict in row.inspection.verdicts]
    print(
        f"{family.name}: {counts.count(Support.YES)} yes, {counts.count(Support.PARTLY)} yes, but, "
        f"{counts.count(Support.NO)} no; {row.recommended or 'no study'}"
        f"{'' if row.verified is None else ', verified' if row.verified else ', NOT VERIFIED'} "
        f"({time.monotonic() - started_s:.0f} s)",
        flush=True,
    )
    return row


def study(row: Row, source: str, folder: Path, data: Path, *, budget_s: float) -> Row:
    """A short study of the family, and the script that it hands over."""
    out = folder / "out" / row.family.name.replace(" ", "-")
    found = recommend(
        source,
        data,
        model_arguments=row.family.arguments,
        home=folder / "home",
        out=out,
        budget=budget_s,
        max_trials=4,
        **row.family.options,
    )
    verified = subprocess.run(
        [sys.executable, str(out / "train.py"), "--verify"],
        cwd=out,
        check=False,
        capture_output=True,
        text=True,
    )
    if verified.returncode:
        print(verified.stdout[-2000:], verified.stderr[-2000:], flush=True)
    return Row(row.family, row.inspection, found.candidate.adapter.describe(), verified.returncode == 0)


def table(rows: Sequence[Row]) -> str:
    """Families down, methods across, in two tables: all in one would be too wide to read."""
    names = [variant.name for variant in VARIANTS]
    adapters = [name for name in names if variant_has_adapter(name)]
    rest = [name for name in names if name not in adapters]
    return f"{part(rows, adapters)}\n{part(rows, rest, with_studies=True)}"


def variant_has_adapter(name: str) -> bool:
    """PEFT takes part."""
    return next(variant for variant in VARIANTS if variant.name == name).method.has_adapter


def part(rows: Sequence[Row], names: Sequence[str], *, with_studies: bool = False) -> str:
    """One Markdown table."""
    studies = with_studies and any(row.recommended for row in rows)
    head = ["family", "parameters", *names, *(["recommended", "verified"] if studies else [])]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        verdicts = {verdict.name: verdict for verdict in row.inspection.verdicts}
        cells = [row.family.name, short(row.inspection.model.parameters)]
        cells += [cell(verdicts[name]) for name in names]
        if studies:
            cells += [row.recommended or "", "yes" if row.verified else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(verdict: Verdict) -> str:
    """``yes 5.1 K``, ``but 1.2 K``, ``no``."""
    if not verdict.supported:
        return "no"
    word = "yes" if verdict.support is Support.YES else "but"
    return word if verdict.trainable_params is None else f"{word} {short(verdict.trainable_params)}"


def short(count: int) -> str:
    """Two digits or three: ``812``, ``5.1 K``, ``4.2 M``."""
    for size, unit in ((1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


if __name__ == "__main__":
    sys.exit(main())
