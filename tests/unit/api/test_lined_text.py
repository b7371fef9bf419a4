"""Configuration files are read as plain data with the line of each key, and nothing in them does harm."""

from __future__ import annotations

import pytest

from rankwise.api.lined_text import MAX_BYTES, Unreadable, read_lined

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(f'*{old}' for _ in range(10))}]\n"
    for old, new in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1,\n\t"b": {"c": [1, {"d": 2}],\n\t\t"e": "x\\"}:"}}',
        "a: 1\nb:\n  c: [1, {d: 2}]\n  e: 'x\"}:'\n",
    ],
    ids=["json", "yaml"],
)
def test_keys_come_with_their_lines(text: str) -> None:
    lined = read_lined(text, "file")
    assert lined.keys == {"a": 1, "b": {"c": [1, {"d": 2}], "e": 'x"}:'}}
    inner = {("b", "c"): 2, ("b", "e"): 3} if text[0] == "{" else {("b", "c"): 3, ("b", "e"): 4}
    assert lined.lines == {("a",): 1, ("b",): 2, **inner}


def test_anchors_and_merges_are_plain_yaml() -> None:
    lined = read_lined("base: &b {r: 8}\nown:\n  <<: *b\n  alpha: 16\n", "file")
    assert lined.keys["own"] == {"r": 8, "alpha": 16}


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is there twice", 3),
        ('{"a": 1, "a": 2}', "the key 'a' twice", None),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' twice", None),
        ("x: 1\na: [\n", "line 3", 3),
        ("a: 1\n\tb: 2\n", "line 2", 2),
        ('{\n\t"a": 1,,}', "line 2", 2),
        ("a: !!python/object/apply:os.system [echo]\n", "constructor", 1),
        ("a: &x [*x]\n", "within itself", None),
        (LAUGHS, "more than 50,000 values", None),
        ("[" * 5000, "nested too deeply", None),
        ('{"a":' * 5000, "nested too deeply", None),
        ('{"a": NaN}', "NaN", None),
        ("", "holds no keys", None),
        ("{}", "holds no keys", None),
        ("- 1\n", "holds no keys", None),
        ("a: 1\n---\nb: 2\n", "2 documents", None),
        ("a: \x00", "not allowed", None),
        ("? [1]\n: 2\n", "is no text", 1),
        ("a: x\n" * (MAX_BYTES // 5 + 1), "larger than", None),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(text: str, words: str, line: int | None) -> None:
    with pytest.raises(Unreadable, match=words) as refused:
        read_lined(text, "file")
    assert refused.value.line == line
    assert refused.value.next_step
