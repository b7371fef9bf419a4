"""The blocks of the pages, run one after the other in a folder of each page.

    RANKWISE_DOCS=all pytest tests/docs/test_running.py        every page; `make docs-run`

Without that, the tour: the page that visitors see first. Blocks that are not run give their reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .pages import PAGES, Block, blocks_of, read
from .world import Inputs, World

TOUR = ("docs/index.md",)
EVERY = os.environ.get("RANKWISE_DOCS") == "all"
RUN = {"bash", "console", "sh", "python"}

BLOCKS = [
    block
    for page in (PAGES if EVERY else TOUR)
    for block in blocks_of(page, read(page))
    if block.language in RUN
]


@pytest.fixture(scope="module")
def inputs(demo_folder: Path, reviews_csv: Path, tiny_llama: Path) -> Inputs:
    return Inputs(demo=demo_folder, reviews=reviews_csv, causal=tiny_llama)


@pytest.fixture(scope="module")
def world_of(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """The world of a page, made when its first block is run. All share one home: they reuse measurements."""
    home = tmp_path_factory.mktemp("home")
    worlds: dict[str, World] = {}

    def world(page: str) -> World:
        if page not in worlds:
            worlds[page] = World(tmp_path_factory.mktemp("page") / "here", home, inputs)
        return worlds[page]

    return world


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("block", [pytest.param(block, id=block.place) for block in BLOCKS])
def test_a_block_runs(block: Block, world_of: Callable[[str], World], inputs: Inputs) -> None:
    if "skip" in block.directives:
        pytest.skip(block.directives["skip"])
    world = world_of(block.page)
    world.provide(block.directives.get("needs", ""), inputs)
    ran = world.run(block)
    assert ran.code == int(block.directives.get("exit", "0")), ran.output[-4000:]
