"""Broken and odd dataset files, by kind: each kind writes one from a random generator and returns its path.

Used by fuzz_datasets.py. Kinds draw what they vary (format, place, size), so that no two files need be alike.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import string
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Kind = Callable[[Random, Path], Path]
KINDS: dict[str, Kind] = {}
WORDS = "a film that is good bad long short naïve 日本 Привет 🙂 and so on".split()  # noqa: SIM905
TABLES = ("csv", "jsonl", "parquet", "arrow")


def kind(function: Kind) -> Kind:
    """Register a kind under its function's name."""
    KINDS[function.__name__] = function
    return function


def sentence(random: Random, words: int = 8) -> str:
    """Some words."""
    return " ".join(random.choices(WORDS, k=words))


def good_rows(random: Random, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of text and label that nothing is wrong with."""
    count = random.randint(2, 60) if count is None else count
    return [{"text": sentence(random), "label": random.choice(["pos", "neg"])} for _ in range(count)]


def write_bytes(folder: Path, name: str, content: bytes) -> Path:
    """Write a file and return its path."""
    path = folder / name
    path.write_bytes(content)
    return path


def csv_bytes(rows: list[dict[str, Any]]) -> bytes:
    """As CSV, with the columns of the first row."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


def jsonl_bytes(rows: list[Any]) -> bytes:
    """As JSON lines; NaN and half surrogate pairs go in as they are."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_table(folder: Path, table: pa.Table, form: str) -> Path:
    """As Parquet, or as an Arrow stream."""
    path = folder / f"data.{form}"
    if form == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    return path


def write_rows(
    random: Random, folder: Path, rows: list[dict[str, Any]], forms: tuple[str, ...] = TABLES
) -> Path:
    """Write rows in one of the formats."""
    form = random.choice(forms)
    if form == "csv":
        return write_bytes(folder, "data.csv", csv_bytes(rows))
    if form == "jsonl":
        return write_bytes(folder, "data.jsonl", jsonl_bytes(rows))
    try:
        return write_table(folder, pa.Table.from_pylist(rows), form)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return write_bytes(folder, "data.jsonl", jsonl_bytes(rows))


@kind
def nothing_wrong(random: Random, folder: Path) -> Path:
    return write_rows(random, folder, good_rows(random))


@kind
def random_bytes(random: Random, folder: Path) -> Path:
    suffix = random.choice(["csv", "tsv", "json", "jsonl", "parquet", "arrow", "txt", "doc", ""])
    return write_bytes(folder, f"data.{suffix}", random.randbytes(random.choice([0, 1, 3, 50, 5000])))


@kind
def flipped_bytes(random: Random, folder: Path) -> Path:
    path = write_rows(random, folder, good_rows(random))
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 2, 10, 100])):
        content[random.randrange(len(content))] = random.randrange(256)
    return write_bytes(folder, path.name, bytes(content))


@kind
def cut_short(random: Random, folder: Path) -> Path:
    path = write_rows(random, folder, good_rows(random))
    content = path.read_bytes()
    return write_bytes(folder, path.name, content[: random.randrange(len(content))])


@kind
def lying_extension(random: Random, folder: Path) -> Path:
    path = write_rows(random, folder, good_rows(random))
    return path.rename(
        path.with_suffix("." + random.choice(["csv", "tsv", "json", "parquet", "arrow", "txt"]))
    )


@kind
def other_encoding(random: Random, folder: Path) -> Path:
    rows = good_rows(random)
    text = (csv_bytes(rows) if random.random() < 0.5 else jsonl_bytes(rows)).decode()
    code = random.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp1252"])
    code = random.choice([code, "shift-jis", "koi8-r", "cp037", "utf-7"])
    suffix = "csv" if text.startswith("text,") else "jsonl"
    return write_bytes(folder, f"data.{suffix}", text.replace("is", "é“").encode(code, "replace"))


@kind
def marks_and_controls(random: Random, folder: Path) -> Path:
    content = csv_bytes(good_rows(random)).decode()
    for _ in range(random.randint(1, 5)):
        at = random.randrange(len(content))
        sign = random.choice(
            ["\ufeff", "\0", "\r", "\x0b", "\x0c", "\u2028", "\x85", "\x1a", "\u202e", "\x1b[2J"]
        )
        content = content[:at] + sign + content[at:]
    return write_bytes(folder, random.choice(["data.csv", "data.txt", "data.tsv"]), content.encode())


@kind
def ragged_rows(random: Random, folder: Path) -> Path:
    lines = csv_bytes(good_rows(random)).decode().splitlines()
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(lines))
        lines[at] = random.choice(
            [lines[at] + ",", lines[at].replace(",", "", 1), lines[at] * 3, "", ",", '"']
        )
    return write_bytes(folder, "data.csv", "\n".join(lines).encode())


@kind
def open_quotes(random: Random, folder: Path) -> Path:
    content = csv_bytes(good_rows(random, random.choice([5, 5, 100_000]))).decode()
    at = content.index("\n", random.randrange(len(content) // 2)) + 1
    return write_bytes(folder, "data.csv", (content[:at] + '"' + content[at:]).encode())


@kind
def delimiters(random: Random, folder: Path) -> Path:
    sign = random.choice(["|", "\t", ";", ":", " ", "\x01", "||", "\x1f"])
    lines = [sign.join(("text", "label")), *(sign.join(row.values()) for row in good_rows(random))]
    return write_bytes(folder, random.choice(["data.csv", "data.tsv", "data.txt"]), "\n".join(lines).encode())


@kind
def line_ends(random: Random, folder: Path) -> Path:
    end = random.choice([b"\r", b"\r\n", b"\n\r", b"\n\n", b"\r\r\n", b"\x85", b""])
    rows = good_rows(random)
    form, content = random.choice([("csv", csv_bytes(rows)), ("jsonl", jsonl_bytes(rows))])
    return write_bytes(folder, f"data.{form}", content.replace(b"\r\n", b"\n").replace(b"\n", end))


@kind
def odd_labels(random: Random, folder: Path) -> Path:
    odd: list[Any] = [
        float("nan"),
        float("inf"),
        None,
        True,
        False,
        0,
        1,
        1.0,
        "1",
        "",
        " ",
        "NaN",
        "null",
        -0.0,
    ]
    odd += [10**30, 1e308, [], {}, [1], {"a": 1}, "x" * 300, "\ud800", "nan ", 2**63, "٣", "1_0"]
    values = random.choices(odd, k=random.randint(1, 6))
    rows = [{**row, "label": random.choice(values)} for row in good_rows(random)]
    return write_rows(random, folder, rows)


@kind
def numbers_everywhere(random: Random, folder: Path) -> Path:
    name = random.choice(["label", "score", "id", "target", "x"])
    draw = random.choice(
        [
            random.random,
            lambda: random.randrange(3),
            lambda: random.randrange(10**6),
            lambda: f"{random.random():.3f}",
            lambda: random.choice([float("nan"), 1.5, 2.5]),
        ]
    )
    rows = [
        {random.choice(["text", "n"]): sentence(random), name: draw()} for _ in range(random.randint(1, 300))
    ]
    return write_rows(random, folder, rows, ("jsonl", "parquet", "arrow"))


@kind
def one_class_or_text(random: Random, folder: Path) -> Path:
    row = {"text": random.choice(["", " ", "same", "1", None]), "label": random.choice(["x", "", None, 0])}
    return write_rows(random, folder, [row] * random.randint(1, 50))


@kind
def empty_things(random: Random, folder: Path) -> Path:
    contents = [
        b"",
        b"\n",
        b"   \n\n",
        b"text,label\n",
        b"{}\n",
        b"[]",
        b"[{}]",
        b"\xef\xbb\xbf",
        b"null",
        b"{}\n{}",
    ]
    suffix = random.choice(["csv", "tsv", "json", "jsonl", "txt", "parquet", "arrow"])
    return write_bytes(folder, f"data.{suffix}", random.choice(contents))


@kind
def empty_tables(random: Random, folder: Path) -> Path:
    tables = [
        pa.table({}),
        pa.table({"text": pa.array([], pa.string())}),
        pa.table({"text": pa.nulls(9)}),
        pa.table({"": ["x"], "label": [1]}),
    ]
    return write_table(folder, random.choice(tables), random.choice(["parquet", "arrow"]))


@kind
def long_cells(random: Random, folder: Path) -> Path:
    size = random.choice([200_000, 10_000_000, 10_000_000, 17_000_000, 40_000_000])
    rows = [*good_rows(random, 3), {"text": random.choice('x"é\\') * size, "label": "pos"}]
    if random.random() < 0.3:
        rows[-1] = {"text": "x", "label": "y" * size}
    return write_rows(random, folder, rows)


@kind
def packed_texts(random: Random, folder: Path) -> Path:
    """A few bytes that stand for gigabytes of text."""
    size = random.choice([100_000, 1_000_000, 10_000_000])
    count = 3_000_000_000 // size // 10
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * size]))
    path = folder / "data.parquet"
    pq.write_table(
        pa.table({"text": codes, "label": [n % 2 for n in range(count)]}),
        path,
        store_schema=random.random() < 0.5,
        compression=random.choice(["snappy", "zstd", "gzip", "none"]),
    )
    return path


@kind
def deep_nesting(random: Random, folder: Path) -> Path:
    depth = random.choice([50, 500, 900, 995, 5_000, 200_000])
    opening, closing = random.choice([("[", "]"), ('{"a":', "}")])
    inner = opening * depth + ("1" if opening != "[" else "") + closing * depth
    name = random.choice(["text", "label", "messages", "meta"])
    line = f'{{"text": "a film", "{name}": {inner}}}\n'
    content = line * 3 if random.random() < 0.7 else f"[{line}, {line}]"
    return write_bytes(folder, random.choice(["data.jsonl", "data.json"]), content.encode())


@kind
def odd_json(random: Random, folder: Path) -> Path:
    odd = [
        "NaN",
        "9" * 5000,
        "1e999",
        '"\\ud83d"',
        '"\\u0000"',
        "'x'",
        "[1,]",
        "{",
        "tru",
        "-",
        '"a\tb"',
        "1 2",
    ]
    odd += ['{"text": 1, "text": 2}', "[[[]]]", '"x"', "0x10", "01", "// comment", '{"a": undefined}']
    lines = jsonl_bytes(good_rows(random)).decode().splitlines()
    piece = random.choice(odd)
    at = random.randrange(len(lines))
    lines[at] = random.choice([piece, f'{{"text": {piece}, "label": "pos"}}', lines[at] + piece])
    return write_bytes(folder, random.choice(["data.jsonl", "data.json"]), "\n".join(lines).encode())


@kind
def json_documents(random: Random, folder: Path) -> Path:
    rows = good_rows(random)
    document = random.choice(
        [rows, {"data": rows}, {"text": [r["text"] for r in rows]}, [rows], [*rows, 1], rows[0], "text", 3]
    )
    text = json.dumps(document, indent=random.choice([None, 1, 4]), ensure_ascii=random.random() < 0.5)
    if random.random() < 0.4:
        text = random.choice([text[:-2], text + "]", text + text, "\n\n" + text, text.replace(",", ",,", 1)])
    return write_bytes(folder, random.choice(["data.json", "data.jsonl"]), text.encode())


@kind
def many_columns(random: Random, folder: Path) -> Path:
    count = random.choice([900, 1001, 5_000, 100_000])
    form = random.choice(["csv", "jsonl", "parquet", "union"])
    if form == "csv":
        names = ",".join(f"c{n}" for n in range(count))
        return write_bytes(folder, "data.csv", f"{names}\n{'x,' * (count - 1)}x\n".encode())
    if form == "parquet":
        few = min(count, 5_000)
        return write_table(folder, pa.table({f"c{n}": ["x", "y"] for n in range(few)}), "parquet")
    row = {f"c{n}": "x" for n in range(count)}
    rows = [row, row] if form == "jsonl" else [{f"c{n}": "x"} for n in range(min(count, 5_000))]
    return write_bytes(folder, "data.jsonl", jsonl_bytes(rows))


@kind
def odd_names(random: Random, folder: Path) -> Path:
    odd = [
        "",
        " ",
        "text",
        "Text",
        "text ",
        "\n",
        "a.b",
        "🙂",
        "x" * 5000,
        "label",
        "0",
        '"',
        "__class__",
        "\ufeff",
        ".",
    ]
    names = random.choices(odd, k=random.randint(1, 4))
    rows = [[sentence(random) for _ in names] for _ in range(10)]
    if random.random() < 0.5:
        file = io.StringIO(newline="")
        csv.writer(file).writerows([names, *rows])
        return write_bytes(folder, "data.csv", file.getvalue().encode())
    columns = [pa.array(list(column)) for column in zip(*rows, strict=True)]
    return write_table(
        folder, pa.Table.from_arrays(columns, names=names), random.choice(["parquet", "arrow"])
    )


@kind
def odd_conversations(random: Random, folder: Path) -> Path:
    odd: list[Any] = [
        None,
        [],
        {},
        "hi",
        3,
        [3],
        [None],
        [{}],
        [{"role": "user"}],
        [{"role": 3, "content": "x"}],
    ]
    odd += [[{"role": "assistant", "content": None}], [{"role": "assistant", "content": [{"type": "image"}]}]]
    odd += [
        [{"role": "wizard", "content": "x"}],
        [{"from": "gpt", "value": {}}],
        [[{"role": "user"}]],
        "[{",
        "[1]",
    ]
    good = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    other = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    values = random.choices([good, other, json.dumps(good), *odd], k=random.randint(1, 20))
    column = random.choice(["messages", "conversations", "chat", "text"])
    return write_bytes(folder, "data.jsonl", jsonl_bytes([{column: value} for value in values]))


@kind
def preference_pairs(random: Random, folder: Path) -> Path:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    values = random.choice([("a good answer", "a bad one"), (turns, turns[:1])])
    names = random.choice([("chosen", "rejected"), ("Chosen", "Rejected"), ("chosen_text", "rejected_text")])
    row = {"prompt": "hi", **dict(zip(names, values, strict=True)), "score": 1.5}
    marked = {"prompt": "hi", "completion": "hello", "label": True}
    rows = [row] * 9 if random.random() < 0.7 else [marked, {**marked, "label": False}] * 9
    return write_rows(random, folder, rows, ("jsonl", "parquet", "arrow"))


@kind
def half_pairs_in_strings(random: Random, folder: Path) -> Path:
    """JSON in a string, whose escapes only a second reading finds."""
    text = random.choice(["\ud800", "\udfff x", "\0", "\ud83d\ude42"])
    talk = json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}])
    return write_rows(random, folder, [{"messages": talk}] * 9)


@kind
def missing_values(random: Random, folder: Path) -> Path:
    missing = random.choice([float("nan"), float("inf"), -float("inf"), None])
    rows = [{"text": sentence(random), "label": float(n % 2), "n": 1.5 * n} for n in range(60)]
    for row in random.sample(rows, 20):
        row[random.choice(["label", "label", "n"])] = missing
    return write_rows(random, folder, rows)


@kind
def odd_pairs(random: Random, folder: Path) -> Path:
    names = random.choice(
        [
            ("prompt", "completion"),
            ("instruction", "input", "output"),
            ("question", "answer"),
            ("source", "target"),
            ("chosen", "rejected"),
            ("translation",),
            ("sentence1", "sentence2", "score"),
            ("article", "highlights"),
        ]
    )
    values: list[Any] = [
        "a text",
        "",
        None,
        3,
        ["x"],
        {"en": "a", "de": "b"},
        {"en": 1},
        [{"role": "user"}],
        True,
    ]
    draw = [*random.choices(values, k=2), "a text"]
    rows = [{name: random.choice(draw) for name in names} for _ in range(random.randint(1, 30))]
    return write_bytes(folder, "data.jsonl", jsonl_bytes(rows))


@kind
def mixed_types(random: Random, folder: Path) -> Path:
    values: list[Any] = ["text", 1, 1.5, None, True, ["a"], {"b": 1}, "2", "\ud800", 10**40]
    names = random.choices(["text", "label", "x", "messages", "score", "prompt"], k=3)
    rows = [{name: random.choice(values) for name in names} for _ in range(30)]
    return write_bytes(folder, "data.jsonl", jsonl_bytes(rows))


@kind
def odd_arrow_types(random: Random, folder: Path) -> Path:
    count = 20
    columns: dict[str, Any] = {
        "when": pa.array([random.randrange(-(2**62), 2**62) for _ in range(count)], pa.timestamp("ns")),
        "day": pa.array([random.randrange(-(2**31), 2**31) for _ in range(count)], pa.date32()),
        "took": pa.array([2**62] * count, pa.duration("s")),
        "price": pa.array([None] * count, pa.decimal128(38, 10)),
        "raw": pa.array([random.randbytes(5) for _ in range(count)]),
        "image": pa.array([{"bytes": b"\xff\0", "path": None}] * count),
        "tags": pa.array([[("k", 1)]] * count, pa.map_(pa.string(), pa.int8())),
        "kind": pa.array(["a", "b"] * (count // 2)).dictionary_encode(),
        "twice": pa.StructArray.from_arrays([pa.array([1] * count)] * 2, names=["a", "a"]),
        "large": pa.array(["x"] * count, pa.large_string()),
        "times": pa.array([[2**62]] * count, pa.list_(pa.timestamp("ns"))),
        "half": pa.array([1.0] * count, pa.float32()).cast(pa.float16()),
        "text": pa.array([sentence(random) for _ in range(count)]),
    }
    chosen = random.sample(sorted(columns), random.randint(1, len(columns)))
    table = pa.table({name: columns[name] for name in chosen})
    try:
        return write_table(folder, table, random.choice(["parquet", "arrow"]))
    except pa.ArrowException:
        return write_table(folder, table, "arrow")


@kind
def bad_text_in_tables(random: Random, folder: Path) -> Path:
    raw = pa.array([b"good", b"\xff\xfe", b"good"] * 5)
    bad = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    return write_table(
        folder, pa.table({"text": bad, "label": [0, 1, 0] * 5}), random.choice(["parquet", "arrow"])
    )


@kind
def archives(random: Random, folder: Path) -> Path:
    content = csv_bytes(good_rows(random))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(random.choice(["data.csv", "xl/workbook.xml"]), content)
    data = random.choice(
        [
            gzip.compress(content),
            gzip.compress(content)[:-9],
            file.getvalue(),
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            b"%PDF-1.7",
        ]
    )
    name = random.choice(
        ["data.csv", "data.csv.gz", "data.zip", "data.xlsx", "data.json", "data.parquet", "data"]
    )
    return write_bytes(folder, name, data)


@kind
def pages_and_pointers(random: Random, folder: Path) -> Path:
    contents = [
        b"<!DOCTYPE html><html><body>Not found, sorry</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"<?xml version='1.0'?><rows/>",
        b"SQLite format 3\0" + bytes(100),
        b"\x80\x04\x95" + bytes(100),
    ]
    name = random.choice(["data.csv", "data.jsonl", "data.json", "data.parquet", "data.txt"])
    return write_bytes(folder, name, random.choice(contents))


@kind
def plain_text(random: Random, folder: Path) -> Path:
    lines = [
        random.choice(["", " ", sentence(random), '"', "\t", "x" * 1000])
        for _ in range(random.randint(0, 99))
    ]
    end = random.choice(["\n", "\r\n", "\r"])
    return write_bytes(folder, "data.txt", end.join(lines).encode())


@kind
def folders_of_files(random: Random, folder: Path) -> Path:
    stems = [
        "train",
        "test",
        "train-00000-of-00002",
        "validation",
        "part1",
        "a/train",
        "b/train",
        "data/train-0",
    ]
    for stem in random.sample(stems, random.randint(0, 4)):
        suffix = random.choice(["csv", "csv", "csv", "jsonl", "md", "py"])
        path = folder / f"{stem}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        content = csv_bytes if suffix == "csv" else jsonl_bytes
        path.write_bytes(random.choice([content(good_rows(random)), b"", b"\xff"]))
    return folder


@kind
def saved_folders(random: Random, folder: Path) -> Path:
    """What ``datasets.save_to_disk`` writes, with something missing or wrong."""
    splits = random.choice([["."], ["train", "test"], ["test"], []])
    if splits != ["."]:
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    for split in splits:
        (folder / split).mkdir(exist_ok=True)
        write_table(folder / split, pa.Table.from_pylist(good_rows(random)), "arrow")
        name = random.choice(
            ["data.arrow", "data.arrow", "data.arrow", "../data.arrow", "/etc/passwd", "gone.arrow", 3]
        )
        state = random.choice(
            [{"_data_files": [{"filename": name}]}] * 4 + [{}, [], {"_data_files": []}, "x"]
        )
        (folder / split / "state.json").write_text(json.dumps(state))
    return folder


@kind
def links_and_devices(random: Random, folder: Path) -> Path:
    path = folder / "data.csv"
    choice = random.randrange(6)
    if choice == 0:
        path.symlink_to(path)
    elif choice == 1:
        (folder / "loop").symlink_to(folder)
        path.write_bytes(csv_bytes(good_rows(random)))
        return folder
    elif choice == 2:
        os.mkfifo(path)
    elif choice == 3:
        path.symlink_to(folder / "gone.csv")
    elif choice == 4:
        path.symlink_to(random.choice(["/dev/zero", "/dev/null", "/proc/self/mem", "/dev/urandom"]))
    else:
        path.mkdir()
    return random.choice([path, folder])


@kind
def impossible_names(random: Random, folder: Path) -> Path:
    odd = [
        "x" * 300 + ".csv",
        "a\0b.csv",
        "\ud800.csv",
        "..",
        "nowhere/data.csv",
        "CON.csv",
        "*.csv",
        "data.csv/x",
    ]
    return folder / random.choice(odd)


@kind
def many_rows(random: Random, folder: Path) -> Path:
    row = random.choice(
        [b"x\n", b"{}\n", b'{"text":"a","label":1}\n', b"\n", b",\n", b'"\n"\n', b'{"text":"a"}\n']
    )
    header = random.choice([b"", b"text,label\n", b"text\n"])
    count = random.choice([100_000, 500_000])
    return write_bytes(folder, random.choice(["data.csv", "data.jsonl", "data.txt"]), header + row * count)


@kind
def spliced(random: Random, folder: Path) -> Path:
    """Pieces of formats in any order: what no other kind thought of."""
    pieces = [
        b"text,label\n",
        b'"',
        b"a film,pos\n",
        b'{"text": "a", "label": 1}\n',
        b"[",
        b"]",
        b",",
        b"\0",
        b"\r",
    ]
    pieces += [
        b"\xff\xfe",
        b"PAR1",
        b"ARROW1\0\0",
        b"\n",
        b"\\",
        b'""',
        b"{}",
        b"NaN",
        string.printable.encode(),
    ]
    suffix = random.choice(["csv", "tsv", "json", "jsonl", "parquet", "arrow", "txt"])
    return write_bytes(folder, f"data.{suffix}", b"".join(random.choices(pieces, k=random.randint(1, 60))))
