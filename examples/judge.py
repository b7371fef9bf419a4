"""Judge a trained classifier by the recall of its rarest class, for ``rankwise recommend --eval-command``.

    rankwise recommend --model M --data reviews.csv --eval-command "python examples/judge.py test.csv"

The CSV file has the columns ``text`` and ``label``. rankwise appends the folder of what was trained; the last
line that is printed is the number. Needs torch, transformers and peft, and no rankwise.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(arguments: Sequence[str] | None = None) -> float:
    """Print and return the recall."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("trained", type=Path, help="folder with an adapter, or with a whole model")
    parser.add_argument("--base", help="the model's tokenizer, where the folder holds a whole model")
    given = parser.parse_args(arguments)

    with given.data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rarest, _ = Counter(row["label"] for row in rows).most_common()[-1]
    rows = [row for row in rows if row["label"] == rarest]

    if (given.trained / "adapter_config.json").exists():
        labels = json.loads((given.trained / "labels.json").read_text(encoding="utf-8"))
        source = PeftConfig.from_pretrained(given.trained).base_model_name_or_path
        base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(labels))
        model = PeftModel.from_pretrained(base, given.trained)
    else:
        source = given.base or given.trained
        model = AutoModelForSequenceClassification.from_pretrained(given.trained)
        labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.eval()

    hits = 0
    for start in range(0, len(rows), 32):
        texts = [row["text"] for row in rows[start : start + 32]]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            guesses = model(**batch).logits.argmax(-1).tolist()
        hits += sum(labels[guess] == rarest for guess in guesses)
    recall = hits / len(rows)
    print(recall)
    return recall


if __name__ == "__main__":
    main()
