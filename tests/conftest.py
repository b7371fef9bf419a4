"""What all tiers of tests share: a home of their own, and small real models and data.

Models and data come from the packages in `examples/assets.txt`; nothing is fetched.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import hypothesis
import pytest

from rankwise.home import Home
from rankwise.runners.extensions import own_tools_first
from rankwise.store import upgrade

from .databases import HOW_TO_HAVE_ONE, PostgresServer, empty_tables, running_server

# Set before any test imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests keep to databases that they make.
os.environ.pop("RANKWISE_DATABASE_URL", None)
# As in trials: OpenMP's spinning threads make anything else on the machine slow them down twentyfold.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# As in trials: what was built by one version of ninja would be built again by another.
os.environ["PATH"] = own_tools_first(os.environ.get("PATH"))

# What DeepSpeed compiles stays with the environment: with another one's paths it would be built anew.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

# How long an example takes depends on what else the machine does, and says nothing of the code.
hypothesis.settings.register_profile("any-load", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("any-load")

REPOSITORY = Path(__file__).parents[1]


MOST_WORKERS = 4
"""Each takes up to 2 GiB with what it starts."""


def pytest_xdist_auto_num_workers() -> int:
    """How many processes ``-n auto`` means."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def share_of_cores(cores: Collection[int], worker: str, workers: int) -> set[int]:
    """The cores of one of several pytest processes, and of all that it starts.

    Without that, torch's threads in each of them want every core and wait for each other; and studies, which
    watch for other programs on their cores, would notice the other tests.

    Args:
        cores: that there are, by number.
        worker: ``gw0``, ``gw1``, …
        workers: how many there are.
    """
    numbers, place = sorted(cores), int(worker.removeprefix("gw"))
    return set(numbers[place::workers]) or {numbers[place % len(numbers)]}


# Here, since libraries count their threads when they are loaded.
if own_name := os.environ.get("PYTEST_XDIST_WORKER"):
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, share_of_cores(os.sched_getaffinity(0), own_name, workers))


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A fresh home that `Home.from_environment` finds, also in processes that the test starts.

    Not below `tmp_path`, whose name grows with the test's: a socket's path ends at 107 bytes.
    """
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RANKWISE_HOME", str(folder))
    return Home(folder).create()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server to create databases on; without one, tests that need it are skipped and say how to get one."""
    with running_server(tmp_path_factory.mktemp("postgres")) as found:
        if found is None:
            pytest.skip(HOW_TO_HAVE_ONE)
        yield found


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database without tables."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the newest schema, which tests use one after the other."""
    with postgres_server.database() as url:
        upgrade(url)
        yield url


@pytest.fixture
def postgres_url(migrated_postgres_url: str) -> str:
    """A database with the newest schema and nothing in it."""
    empty_tables(migrated_postgres_url)
    return migrated_postgres_url


@pytest.fixture(scope="session")
def repository_files() -> list[Path]:
    """Files that git tracks, or would after `git add`, relative to the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    paths = (Path(name) for name in listing.split("\0") if name)
    return sorted(path for path in paths if (REPOSITORY / path).is_file())


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` starts from: `model`, `reviews.csv`."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, REPOSITORY / "examples" / "prepare_demo.py", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def minilm_path(demo_folder: Path) -> Path:
    """The folder of all-MiniLM-L6-v2: pretrained BERT of 22.7M parameters without a classifier."""
    return (demo_folder / "model").resolve()


@pytest.fixture(scope="session")
def reviews_csv(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 sentences with the columns text and label (negative, positive), about as many of each."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row["text"], row["label"]) for row in read_reviews(demo_folder, 400))
    return path


@pytest.fixture(scope="session")
def texts_jsonl(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 sentences, one `{"text": …}` a line."""
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    lines = [json.dumps({"text": row["text"]}) + "\n" for row in read_reviews(demo_folder, 200)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_llama(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama (safetensors, about 0.2M parameters) with a byte-level BPE tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    texts = [row["text"] for row in read_reviews(demo_folder, 1_000)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=1_000, special_tokens=["<pad>", "<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>", model_max_length=512
    )
    tokenizer.save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def read_reviews(demo_folder: Path, count: int) -> list[dict[str, str]]:
    """The first rows of the demo's data."""
    with (demo_folder / "reviews.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))[:count]


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fake libnvidia-ml.so.1, for LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "unit" / "probes" / "fake_nvml.c"
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return folder
