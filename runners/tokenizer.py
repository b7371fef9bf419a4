"""A model's tokenizer as batches need it.

Imports nothing of rankwise: it is part of what the exported programs are made of.
"""

from __future__ import annotations

from typing import Any

import transformers


def load_tokenizer(model_path: str, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with a padding token (the end-of-sequence token where it has none)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer
