"""The main program of ``prepare_data.py``: tokenised rows, for trainers that are told where their data are.

``train.jsonl`` has the rows to train on in the order in which the trial's first epoch meets them, those of
its incomplete last batch at the end, and ``validation.jsonl`` those that were held out: one JSON object a
row, with ``input_ids``, ``attention_mask`` and ``labels`` (-100 where nothing is learnt; a class, or a
number), ``token_type_ids`` where sentences come in pairs, and ``position_ids`` where samples share a row. Who
trains on the last has to keep the samples of a row apart by them; for trainers that do not, or that pack by
themselves, there is ``--unpacked``. Imports nothing of rankwise but the sources that the program is made of.
"""

from __future__ import annotations

import json
import sys
import tempfile
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recipe import Example, epoch_order
from .plain_rows import plain_row
from .shared import (
    VALUES,
    RowReader,
    data_explained,
    make_parser,
    open_tokenizer,
    require_both_sides,
    say,
    say_split_by_chance,
    split_by_chance,
    split_rows,
    text_reader,
)


def main() -> int:
    """Write the rows; returns the process's exit code."""
    parser = make_parser()
    parser.add_argument("--out", type=Path, default=Path("data"), help="rows go here (default: %(default)s)")
    parser.add_argument(
        "--arrow", type=Path, metavar="FOLDER", help="also save them there as a DatasetDict of datasets"
    )
    parser.add_argument("--unpacked", action="store_true", help="leave samples apart where they share rows")
    arguments = parser.parse_args()
    task = VALUES["task"]
    if task["arrays"] is not None:
        sys.exit(f"rows of the task {task['kind']} are no text: train.py and its like read them as they are")
    tokenizer = open_tokenizer(arguments.model)
    names = tokenizer.model_input_names if task["context_column"] else ()
    packing = VALUES["candidate"]["recipe"]["packing"] and not arguments.unpacked
    columns = {"types": "token_type_ids" in names, "positions": packing}
    read = text_reader(arguments.data, tokenizer)
    with data_explained(arguments.data):
        counts = write_sides(read, VALUES["split"], arguments.out, columns)
        if not all(counts) and VALUES["split"] != split_by_chance():
            say_split_by_chance()
            counts = write_sides(read, split_by_chance(), arguments.out, columns)
    require_both_sides(arguments.data, *counts)
    say(f"{counts[0]:,} rows to train on and {counts[1]:,} held out, in {arguments.out}")
    if arguments.arrow is not None:
        save_arrow(arguments.out, arguments.arrow)
        say(f"the same as a DatasetDict (train, validation) in {arguments.arrow}")
    return 0


def write_sides(
    read: RowReader, split: Mapping[str, Any], folder: Path, columns: Mapping[str, bool]
) -> tuple[int, int]:
    """Write both files; returns how many rows each has.

    Rows go to the disk as they come, and from there into their order: of those to train on, memory holds no
    more than where each begins.

    Args:
        read: see :data:`RowReader`.
        split: decides what is held out.
        folder: made if missing.
        columns: see :func:`row_line`. Samples share rows where these have positions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begins, heldout_count = array("q"), 0
    with (
        tempfile.TemporaryFile(dir=folder) as unordered,
        (folder / "train.jsonl").open("wb") as train,
        (folder / "validation.jsonl").open("wb") as heldout,
    ):
        for example, is_heldout in split_rows(read, split, as_in_trial=False, packing=columns["positions"]):
            line = row_line(example, **columns)
            if is_heldout:
                heldout.write(line)
                heldout_count += 1
            else:
                begins.append(unordered.tell())
                unordered.write(line)
        for row in epoch_order(len(begins), seed=VALUES["order_seed"], epoch=0):
            unordered.seek(begins[row])
            train.write(unordered.readline())
    return len(begins), heldout_count


def row_line(example: Example, *, types: bool, positions: bool) -> bytes:
    """A row as a line of JSON; all rows have the same names.

    Args:
        example: the row.
        types: rows have ``token_type_ids``.
        positions: rows have ``position_ids``.
    """
    row = plain_row(example)
    length = len(row["input_ids"])
    row.setdefault("attention_mask", [1] * length)
    if types:
        row.setdefault("token_type_ids", [0] * length)
    if positions:
        row.setdefault("position_ids", list(range(length)))
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def save_arrow(source: Path, folder: Path) -> None:
    """Save the written rows as datasets does; it reads them a piece at a time."""
    import datasets  # for those who ask for it only

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=source) as cache:
        found = datasets.DatasetDict(
            {
                name: datasets.Dataset.from_json(str(source / file), cache_dir=cache)
                for name, file in (("train", "train.jsonl"), ("validation", "validation.jsonl"))
            }
        )
        found.save_to_disk(str(folder))
