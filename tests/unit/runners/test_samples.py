"""Rows of every task as samples and tokens, with a tokenizer of one token a word and Jinja templates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rankwise.optimizer.codec import to_json
from rankwise.probes.profiles import TaskKind, TaskProfile
from rankwise.runners.random_tokens import RandomTokens
from rankwise.runners.samples import (
    Encoded,
    Sample,
    SampleError,
    encode,
    read_sample,
    shorten_pair,
    tokens_in_spans,
)

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<eos>", "<bos>", "user", "assistant", "system", ":", "<end>"]
LETTERS = ["a", "b", "c", "d", "e", "f", "g", "h"]

CHATML = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
TAGGED = (
    "{% for m in messages %}{{ m.role }} : "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} <end>{% endgeneration %}"
    "{% else %}{{ m.content }} <end>{% endif %} {% endfor %}"
)
REWRITING = (
    "{% for m in messages %}{{ m.role }} : {% if m.role == 'assistant' and loop.last %}a a {% endif %}"
    "{{ m.content }} <end>\n{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
"""Thinks aloud in the last turn only."""
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('the user must begin') }}{% endif %}" + CHATML
SILENT = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} {% endif %}{% endfor %}"
NAMELESS = "{% for m in messages %}{{ m.content }} {% endfor %}"


def make_tokenizer(single: str = "$A", **tokens: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS + LETTERS)}
    backend = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, number) for number, word in enumerate(WORDS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **tokens,
    )


@pytest.fixture(scope="module")
def bert() -> PreTrainedTokenizerFast:
    """[CLS] and [SEP] around each text."""
    return make_tokenizer("[CLS] $A [SEP]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.fixture
def gpt() -> PreTrainedTokenizerFast:
    """<bos> in front."""
    return make_tokenizer("<bos> $A", bos_token="<bos>", eos_token="<eos>")


def task(kind: TaskKind, **columns: Any) -> dict[str, Any]:
    form: dict[str, Any] = to_json(TaskProfile(kind=kind, text_column="text", **columns))
    return form


CLASSIFY = task(TaskKind.TEXT_CLASSIFICATION, label_column="label", labels=("no", "yes"))
RATE = task(TaskKind.REGRESSION, label_column="label")
GENERATE = task(TaskKind.CAUSAL_LM)
COMPLETE = task(TaskKind.PROMPT_COMPLETION, context_column="more", target_column="answer")
CHAT = task(TaskKind.CHAT)
TRANSLATE = task(TaskKind.SEQ2SEQ, target_column="answer")


def run(
    tokenizer: Any, row: dict[str, Any], what: dict[str, Any], *, limit: int = 99, mask: str = "all"
) -> Encoded:
    sample = read_sample(row, what, number=7)
    assert sample is not None
    return encode(sample, tokenizer=tokenizer, task=what, recipe={"max_length": limit, "loss_mask": mask})


def words(encoded: Encoded, *, learnt_only: bool = False) -> str:
    """The tokens as text; on demand, those that are learnt."""
    assert encoded.example is not None
    ids, mask = encoded.example.input_ids, encoded.example.mask
    on = [1] * len(ids) if mask is None or not learnt_only else mask
    return " ".join((WORDS + LETTERS)[token] for token, learnt in zip(ids, on, strict=True) if learnt)


def talk(*texts: str, first: str = "user") -> dict[str, Any]:
    """A row in which user and assistant take turns."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return {"text": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]}


class TestReading:
    @pytest.mark.parametrize(
        ("row", "what"),
        [
            ({"text": " ", "label": "no"}, CLASSIFY),
            ({"text": "a", "label": None}, CLASSIFY),
            ({"text": "a", "label": "perhaps"}, CLASSIFY),
            ({"label": "no"}, CLASSIFY),
            ({"text": "a", "label": "three"}, RATE),
            ({"text": "a", "label": "nan"}, RATE),
            ({"text": "a", "label": "1e999"}, RATE),
            ({"text": "a", "answer": " "}, COMPLETE),
            ({"text": "a", "answer": None}, TRANSLATE),
            ({"text": []}, CHAT),
            (talk("a"), CHAT),
        ],
    )
    def test_sets_incomplete_rows_aside(self, row: dict[str, Any], what: dict[str, Any]) -> None:
        assert read_sample(row, what) is None

    def test_finds_what_the_task_needs(self) -> None:
        assert read_sample({"text": "a", "label": "yes"}, CLASSIFY) == Sample("a", label=1)
        assert read_sample({"text": "a", "label": -2}, RATE) == Sample("a", value=-2.0)
        assert read_sample({"text": "a"}, GENERATE) == Sample("a")
        row = {"text": "a", "more": "b", "answer": "c"}
        assert read_sample(row, COMPLETE, number=3) == Sample("a", "b", "c", row=3)
        assert len(read_sample(row, COMPLETE) or ()) == 3
        assert len(read_sample(talk("ab", "cde"), CHAT) or ()) == 5

    def test_answers_to_one_prompt_fall_on_the_same_side(self) -> None:
        keys = [Sample("a", "b", target).split_key for target in ("c", "d")]
        assert keys[0] == keys[1] != Sample("ab", target="c").split_key

    def test_a_text_alone_is_its_own_key(self) -> None:
        assert Sample("a", label=1).split_key == "a"


class TestTextsWithAHead:
    def test_special_tokens_are_the_tokenizers(self, bert: Any) -> None:
        found = run(bert, {"text": "a b", "label": "yes"}, CLASSIFY)
        assert (words(found), found.length, found.cut) == ("[CLS] a b [SEP]", 4, 0)
        assert found.example is not None
        assert (found.example.label, found.example.token_types) == (1, None)

    def test_a_truncated_text_still_ends_with_the_separator(self, bert: Any) -> None:
        found = run(bert, {"text": "a b c d", "label": "no"}, CLASSIFY, limit=4)
        assert (words(found), found.length, found.cut) == ("[CLS] a b [SEP]", 6, 2)

    def test_a_context_is_the_second_sentence(self, bert: Any) -> None:
        pairs = {**CLASSIFY, "context_column": "more"}
        found = run(bert, {"text": "a b", "more": "c", "label": "no"}, pairs)
        assert words(found) == "[CLS] a b [SEP] c [SEP]"
        assert found.example is not None
        assert list(found.example.token_types or ()) == [0, 0, 0, 0, 1, 1]

    def test_of_a_pair_the_longer_is_cut(self, bert: Any) -> None:
        pairs = {**CLASSIFY, "context_column": "more"}
        found = run(bert, {"text": "a b c d e", "more": "f", "label": "no"}, pairs, limit=6)
        assert (words(found), found.cut) == ("[CLS] a b [SEP] f [SEP]", 3)

    def test_numbers(self, bert: Any) -> None:
        found = run(bert, {"text": "a", "label": "2.5"}, RATE)
        assert found.example is not None
        assert (found.example.value, found.example.label) == (2.5, None)


class TestTexts:
    def test_the_end_is_learnt(self, gpt: Any) -> None:
        found = run(gpt, {"text": "a b"}, GENERATE)
        assert (words(found), words(found, learnt_only=True)) == ("<bos> a b <eos>",) * 2

    def test_the_end_is_not_doubled(self) -> None:
        tokenizer = make_tokenizer("$A <eos>", eos_token="<eos>")
        assert words(run(tokenizer, {"text": "a"}, GENERATE)) == "a <eos>"

    def test_a_truncated_text_gets_no_end(self, gpt: Any) -> None:
        found = run(gpt, {"text": "a b c d"}, GENERATE, limit=3)
        assert (words(found), found.length, found.cut) == ("<bos> a b", 6, 3)

    def test_one_token_leaves_nothing_to_predict(self, gpt: Any) -> None:
        found = run(gpt, {"text": "a b"}, GENERATE, limit=1)
        assert (found.example, found.cut) == (None, 3)


class TestPromptAndCompletion:
    ROW: dict[str, Any] = {"text": "a b", "more": "c", "answer": "d e"}  # noqa: RUF012

    def test_the_completion_and_its_end_are_learnt(self, gpt: Any) -> None:
        found = run(gpt, self.ROW, COMPLETE, mask="completion")
        assert words(found) == "<bos> a b c d e <eos>"
        assert words(found, learnt_only=True) == "d e <eos>"

    def test_all_of_it_may_be_learnt(self, gpt: Any) -> None:
        found = run(gpt, self.ROW, COMPLETE, mask="all")
        assert words(found, learnt_only=True) == "<bos> a b c d e <eos>"

    def test_a_long_prompt_loses_its_beginning(self, gpt: Any) -> None:
        found = run(gpt, {"text": "a b c d e f", "answer": "g"}, COMPLETE, limit=5, mask="completion")
        assert words(found) == "<bos> e f g <eos>"
        assert words(found, learnt_only=True) == "g <eos>"
        assert (found.length, found.cut) == (9, 4)

    def test_a_long_completion_loses_its_end(self, gpt: Any) -> None:
        row = {"text": "a b c", "answer": "d e f g h"}
        found = run(gpt, row, COMPLETE, limit=8, mask="completion")
        assert words(found) == "<bos> c d e f g h <eos>"
        found = run(gpt, row, COMPLETE, limit=4, mask="completion")
        assert words(found) == "c d e f"
        assert words(found, learnt_only=True) == "d e f"

    @given(
        prompt=st.integers(1, 50), completion=st.integers(1, 50), limit=st.integers(2, 60), bos=st.booleans()
    )
    def test_what_is_kept(self, prompt: int, completion: int, limit: int, bos: bool) -> None:
        whole = (list(range(prompt)), list(range(100, 100 + completion)))
        kept, answer = shorten_pair(*whole, limit, 0 if bos else None)
        assert len(kept) + len(answer) == min(limit, prompt + completion)
        assert answer == whole[1][: len(answer)]
        assert answer
        assert kept in (whole[0][prompt - len(kept) :], [0, *whole[0][prompt - len(kept) + 1 :]])
        assert len(answer) == completion or len(kept) == min(prompt, limit // 4)

    def test_a_line_break_goes_between_where_there_is_no_space(self, tiny_tokenizer: Any) -> None:
        for prompt, answer, text in (
            ("ab", "cd", "ab\ncd"),
            ("ab:", " cd", "ab: cd"),
            ("ab\t", "c", "ab\tc"),
        ):
            found = run(tiny_tokenizer, {"text": prompt, "answer": answer}, COMPLETE, mask="completion")
            assert found.example is not None
            ids, mask = found.example.input_ids, found.example.mask or ()
            assert tiny_tokenizer.decode(ids) == text + "<eos>"
            learnt = [token for token, on in zip(ids, mask, strict=True) if on]
            assert tiny_tokenizer.decode(learnt) == answer + "<eos>"


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_llama: Any) -> Any:
    """A real byte-level BPE, which tokenises spaces too."""
    return PreTrainedTokenizerFast.from_pretrained(tiny_llama)


class TestChat:
    @pytest.mark.parametrize("template", [CHATML, TAGGED], ids=["prefixes", "tags"])
    def test_what_the_assistant_says_is_learnt(self, gpt: Any, template: str) -> None:
        gpt.chat_template = template
        found = run(gpt, talk("a", "b c", "d", "e"), CHAT, mask="assistant")
        whole = "user : a <end> assistant : b c <end> user : d <end> assistant : e <end>"
        assert words(found) == whole
        assert words(found, learnt_only=True) == "b c <end> e <end>"

    def test_all_may_be_learnt(self, gpt: Any) -> None:
        gpt.chat_template = CHATML
        found = run(gpt, talk("a", "b"), CHAT)
        assert words(found, learnt_only=True) == "user : a <end> assistant : b <end>"

    def test_a_turn_that_is_rewritten_later_is_not_learnt(self, gpt: Any) -> None:
        gpt.chat_template = REWRITING
        found = run(gpt, talk("b", "c", "d", "e"), CHAT, mask="assistant")
        assert words(found) == "user : b <end> assistant : c <end> user : d <end> assistant : a a e <end>"
        assert words(found, learnt_only=True) == "a a e <end>"

    def test_real_tokens_are_those_of_the_text(self, tiny_tokenizer: Any) -> None:
        tiny_tokenizer.chat_template = CHATML
        row = talk("Was it good?", "It was fine — ☕ and all.", "So?", "So.")
        found = run(tiny_tokenizer, row, CHAT, mask="assistant")
        assert found.example is not None
        ids, mask = found.example.input_ids, found.example.mask or ()
        expected = tiny_tokenizer.apply_chat_template(row["text"], return_dict=True)["input_ids"]
        assert list(ids) == expected
        learnt = [token for token, on in zip(ids, mask, strict=True) if on]
        text = tiny_tokenizer.decode(learnt)
        assert [part.strip() for part in text.split("<end>")] == ["It was fine — ☕ and all.", "So.", ""]

    def test_a_tokenizer_that_does_not_tell_where_tokens_stand(self, gpt: Any) -> None:
        gpt.chat_template = CHATML
        text = "user : a <end>\nassistant : b <end>\n"
        span = (text.index("b"), len(text))
        fast = tokens_in_spans(text, [span], gpt, add_special_tokens=True)
        slow = tokens_in_spans(text, [span], Slow(gpt), add_special_tokens=True)
        assert fast == slow

    def test_is_cut_on_the_right(self, gpt: Any) -> None:
        gpt.chat_template = CHATML
        found = run(gpt, talk("a", "b c d"), CHAT, mask="assistant", limit=8)
        assert (words(found, learnt_only=True), found.length, found.cut) == ("b c", 10, 2)

    def test_a_cut_that_leaves_nothing_to_learn(self, gpt: Any) -> None:
        gpt.chat_template = CHATML
        assert run(gpt, talk("a b c", "d"), CHAT, mask="assistant", limit=6).example is None

    @pytest.mark.parametrize(
        ("template", "row", "message"),
        [
            (SILENT, talk("a", "b"), "row 7: no token of the conversation counts as the assistant's"),
            (NAMELESS, talk("a", "b", first="assistant"), "row 7: no token"),
            (
                "{% generation %}{% for m in messages %}{{ m.content }} {% endfor %}{% endgeneration %}",
                talk("a", "b"),
                "row 7: every token of the conversation counts as the assistant's",
            ),
            (STRICT, talk("a", "b", first="assistant"), "row 7: the chat template refuses .*user must begin"),
        ],
        ids=["no turn", "first turn only", "everything", "refused"],
    )
    def test_what_cannot_be_learnt_is_explained(
        self, gpt: Any, template: str, row: dict[str, Any], message: str
    ) -> None:
        gpt.chat_template = template
        with pytest.raises(SampleError, match=message) as error:
            run(gpt, row, CHAT, mask="assistant")
        assert error.value.next_step

    def test_without_a_template_the_tokenizer_says_so(self, gpt: Any) -> None:
        with pytest.raises(ValueError, match="chat_template"):
            run(gpt, talk("a", "b"), CHAT)


class Slow:
    """A tokenizer written in Python."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self.fast = fast
        self.eos_token_id = fast.eos_token_id

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any:
        return self.fast(text, add_special_tokens=add_special_tokens, verbose=verbose)


class TestSourceAndTarget:
    def test_the_target_ends(self, gpt: Any) -> None:
        found = run(gpt, {"text": "a b", "answer": "c"}, TRANSLATE)
        assert words(found) == "<bos> a b"
        assert found.example is not None
        target = replace(found, example=replace(found.example, input_ids=found.example.target_ids or ()))
        assert words(target) == "<bos> c <eos>"

    def test_each_is_cut_by_itself(self, gpt: Any) -> None:
        found = run(gpt, {"text": "a b c", "answer": "d e f g"}, TRANSLATE, limit=3)
        assert found.example is not None
        assert (len(found.example.input_ids), len(found.example.target_ids or ())) == (3, 3)
        assert (found.length, found.cut) == (6, 1 + 3)


class TestRandomTokens:
    TOKENIZER = RandomTokens(50, seed=1)

    @pytest.mark.parametrize(
        ("what", "row", "mask", "tokens"),
        [
            (CLASSIFY, {"text": "a" * 41, "label": "no"}, "all", 11),
            (RATE, {"text": "a" * 40, "label": "1"}, "all", 10),
            (GENERATE, {"text": "a" * 40}, "all", 10),
            (COMPLETE, {"text": "a" * 39, "answer": "b" * 8}, "completion", 12),
            (TRANSLATE, {"text": "a" * 40, "answer": "b" * 8}, "all", 10),
            (CHAT, talk("a" * 33, "b" * 20), "assistant", 18),
        ],
        ids=lambda value: value["kind"] if isinstance(value, dict) and "kind" in value else "",
    )
    def test_one_for_every_four_characters(
        self, what: dict[str, Any], row: dict[str, Any], mask: str, tokens: int
    ) -> None:
        found = run(self.TOKENIZER, row, what, mask=mask)
        assert found.example is not None
        assert len(found.example.input_ids) == tokens
        assert set(found.example.input_ids) <= set(range(1, 50))
        assert (found.example.mask is None) == (mask == "all")
        assert run(self.TOKENIZER, row, what, mask=mask, limit=8).cut >= tokens - 8

    def test_are_repeatable_seeded_and_different(self) -> None:
        def ids(seed: int, text: str) -> list[int]:
            found: list[int] = RandomTokens(1000, seed=seed)(text)["input_ids"]
            return found

        assert ids(1, "a" * 40) == ids(1, "a" * 40)
        assert len({tuple(ids(*of)) for of in ((1, "a" * 40), (2, "a" * 40), (1, "b" * 40))}) == 3


@pytest.fixture(autouse=True)
def plain_template(tiny_tokenizer: Any) -> Iterator[None]:
    """Templates that tests set on the shared tokenizer do not stay."""
    yield
    tiny_tokenizer.chat_template = None
