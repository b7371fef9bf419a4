"""A stand-in for the tokenizer of a model of which only the configuration is at hand.

Speed and memory depend on how many tokens there are, not on which: texts become random ones, as many as a
tokenizer makes of English on average. Knows nothing of files.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

CHARACTERS_PER_TOKEN = 4


class RandomTokens:
    """Answers as a tokenizer of transformers does, as far as samples are tokenised by one.

    Equal texts become equal tokens. Token 0 is padding and no text has it; there are no special tokens.
    """

    is_fast = True
    pad_token_id = 0
    bos_token_id = None
    eos_token_id = None

    def __init__(self, vocabulary: int, *, seed: int) -> None:
        self.vocabulary = vocabulary
        self.seed = seed

    def __call__(
        self,
        text: str = "",
        text_pair: str = "",
        *,
        text_target: str = "",
        max_length: int | None = None,
        **_: Any,
    ) -> dict[str, list[Any]]:
        """Tokens and where they stand; with ``max_length``, only so many."""
        whole = text + text_pair + text_target
        begins = range(0, len(whole), CHARACTERS_PER_TOKEN)[:max_length]
        source = random.Random(f"{self.seed}/{whole}")  # noqa: S311 - stands in for data, not a secret
        return {
            "input_ids": [source.randrange(1, self.vocabulary) for _ in begins],
            "offset_mapping": [(begin, min(begin + CHARACTERS_PER_TOKEN, len(whole))) for begin in begins],
        }

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **_: Any
    ) -> str:
        """Who speaks, a colon, and what."""
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(lines) + ("assistant: " if add_generation_prompt else "")

    def get_chat_template(self) -> str:
        """A name for the above: nothing of it is rendered by Jinja."""
        return "role: content"
