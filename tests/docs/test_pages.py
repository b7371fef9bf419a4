"""Every page's commands, code and data are such that rankwise would take them. Nothing is run here."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from .commands import Wrong, check_code, check_rankwise, check_request, check_script, options, simple_commands
from .pages import LANGUAGES, PAGES, REPOSITORY, Block, all_blocks, blocks_of, code_spans, read

BLOCKS = all_blocks()
SENTENCES = [page for page in PAGES if not page.startswith(("docs/decisions/", "benchmarks/"))]
"""Decisions stay as they were written, and benchmarks have options of their own."""
OTHERS = {"--no-deps", "--requeue", "--signal"}
"""Options of other programs that pages speak of."""


NOT_ON_THE_SITE = [page for page in (*PAGES, "SECURITY.md") if not page.startswith("docs/")]
LINK = re.compile(r"\]\((?!\w+:|#)(?P<target>[^)\s#]+)")


def named(blocks: list[Block]) -> list[object]:
    return [pytest.param(block, id=block.place) for block in blocks]


@pytest.mark.parametrize("block", named(BLOCKS))
def test_a_block_names_its_language(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language == "text":
        assert "$ " not in {line[:2] for line in block.text.splitlines()}, (
            "commands belong into a console block"
        )
    if "skip" in block.directives:
        assert len(block.directives["skip"].split()) > 1, "say why"


@pytest.mark.parametrize("page", NOT_ON_THE_SITE)
def test_links_lead_somewhere(page: str) -> None:
    """Of pages that are read in the repository; a strict build checks those of the site."""
    folder = (REPOSITORY / page).parent
    targets = [found["target"] for found in LINK.finditer((REPOSITORY / page).read_text(encoding="utf-8"))]
    assert [target for target in targets if not (folder / target).exists()] == []


@pytest.mark.parametrize("block", named([block for block in BLOCKS if block.is_shell]))
def test_commands_exist_with_their_options(block: Block) -> None:
    check_script(block.script)


@pytest.mark.parametrize("block", named([block for block in BLOCKS if block.language == "python"]))
def test_python_compiles_and_finds_its_names(block: Block) -> None:
    check_code(block.text)


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.language in {"yaml", "json"}]))
def test_data_can_be_read(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    else:
        assert list(yaml.safe_load_all(block.text))


def script_options() -> set[str]:
    """Those of the programs that are handed over, which are not commands of rankwise."""
    programs = (REPOSITORY / "runners" / "scripts").glob("*.py")
    return {
        option
        for program in programs
        for option in re.findall(r'"(--[a-z-]+)"', program.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("page", SENTENCES)
def test_commands_within_sentences_exist(page: str) -> None:
    """`rankwise merge` and `GET /v1/studies` in the text, and every `--option` by itself."""
    for line, code in code_spans(read(page)):
        try:
            if code.startswith("rankwise "):
                check_rankwise([*next(simple_commands(code))[1:]], is_example=True)
            elif request := re.match(r"(GET|POST|DELETE) (/[^\s?]*)(?:\?(\S*))?$", code):
                path = re.sub(r"\{\w+\}|\bID\b|\bOLDER\b|\b[A-Z]{5,}\b", "$x", request[2])
                check_request(request[1], path, request[3] or "")
            elif option := re.match(r"--[a-z][a-z-]+", code):
                known = options() | script_options() | OTHERS
                assert option[0] in known, f"{page}:{line}: nothing has {option[0]}"
        except Wrong as error:
            pytest.fail(f"{page}:{line}: `{code}`: {error}")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("rankwise recomend --model m", "recomend"),
        ("rankwise recommend --modle m", "--modle"),
        ("rankwise studies show ID extra", "extra"),
        ("x=$(rankwise studies list --jsn)", "--jsn"),
        ("timeout 60 rankwise estimate m --gpu=A --no-such", "--no-such"),
        ("curl -s localhost:8321/v1/study", "/v1/study"),
        ("curl -X DELETE localhost:8321/v1/studies", "DELETE"),
        ('curl localhost:8321/v1/studies -d \'{"modle": "m", "dataset": "d"}\'', "modle"),
        ("curl 'localhost:8321/v1/studies?limt=3'", "limt"),
        ("make tst", "tst"),
        ("python examples/judges.py", "judges"),
    ],
)
def test_a_command_that_would_be_refused_is_found(script: str, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check_script(script)


@pytest.mark.parametrize(
    "script",
    [
        "rankwise recommend --model m \\\n  --data d --budget 30m >out.json 2>log  # with a comment",
        "until rankwise studies show ID --json | grep -q succeeded; do sleep 5; done",
        "rankwise estimate m <<'EOF'\nrankwise nothing\nEOF",
        "cd rankwise && pip install rankwise",
        "curl -s localhost:8321/v1/studies/$ID/trials",
    ],
)
def test_a_command_that_would_run_is_taken(script: str) -> None:
    check_script(script)


@pytest.mark.parametrize(
    "source", ["from rankwise import recomend", "import rankwise\nrankwise.aply(1)", "x = …"]
)
def test_code_that_would_fail_is_found(source: str) -> None:
    with pytest.raises(Wrong):
        check_code(source)


def test_blocks_are_found_with_what_is_said_of_them() -> None:
    page = (
        "# T\n\n<!-- test: skip needs a GPU -->\n```bash\nls\n```\n\n"
        "- in a list\n\n  ```console\n  $ rankwise --version \\\n      -h\n  rankwise 1\n  ```\n"
    )
    first, second = blocks_of("p.md", page)
    assert (first.line, first.language, first.directives) == (4, "bash", {"skip": "needs a GPU"})
    assert second.script == "rankwise --version \\\n    -h\n"


@pytest.mark.parametrize(
    "text", ["<!-- test: skp x -->\n```bash\nls\n```", "<!-- test: skip x y -->\n\nText.\n"]
)
def test_a_directive_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="directive"):
        blocks_of("p.md", text)
