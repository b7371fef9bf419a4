"""The catalogue is consistent, and names are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import InputError
from rankwise.optimizer.estimates.gpus import CATALOGUE, find_gpu, smallest_first

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A100-80GB", "A100 SXM 80GB"),
        ("a100 80gb", "A100 SXM 80GB"),
        ("a10080gb", "A100 SXM 80GB"),
        ("A100 80 GiB", "A100 SXM 80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("4090", "RTX 4090 24GB"),
        ("rtx4090", "RTX 4090 24GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090 24GB"),
        ("4060ti", "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti Super 16GB"),
        ("A10", "A10 24GB"),
        ("a10g", "A10G 24GB"),
        ("L40", "L40 48GB"),
        ("L40S", "L40S 48GB"),
        ("Tesla T4", "T4 16GB"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("Tesla P100-PCIE-16GB", "P100 16GB"),
        ("h100", "H100 SXM 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe 80GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada 48GB"),
        ("AMD Instinct MI250X / MI250", "MI250X 64GB"),
        ("AMD Instinct MI300X", "MI300X 192GB"),
    ],
)
def test_names_are_read_as_people_and_drivers_write_them(text, name):
    assert find_gpu(text).name == name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A100", ["A100 PCIe 40GB", "A100 SXM 40GB", "A100 PCIe 80GB", "A100 SXM 80GB"]),
        ("V100", ["V100 16GB", "V100 32GB"]),
        ("A100 PCIe", ["A100 PCIe 40GB", "A100 PCIe 80GB"]),
    ],
)
def test_a_name_of_several_devices_is_refused_with_all_of_them(text, named):
    with pytest.raises(InputError) as refused:
        find_gpu(text)
    assert all(name in refused.value.next_step for name in named)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("A1000-80GB", "A100 SXM 80GB"),
        ("RTX 4900", "RTX 4090 24GB"),
        ("gh200", "H200 141GB"),
        # Near, but other devices than the catalogue's of that number.
        ("4070 Ti", "RTX 4070 Ti Super 16GB"),
        ("4080 Super", "RTX 4080 16GB"),
        ("Quadro RTX 6000", "RTX 6000 Ada 48GB"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(text, near):
    with pytest.raises(InputError) as refused:
        find_gpu(text)
    assert near in refused.value.next_step


@given(st.text(max_size=200))
def test_any_text_gives_a_device_or_one_clear_message(text):
    message = ""
    try:
        assert find_gpu(text) in CATALOGUE
    except InputError as refused:
        message = str(refused)
    assert message == "" or "nearest names are" in message or "say which" in message
    assert len(message) < 500


def test_every_name_and_alias_finds_its_own_device():
    for gpu in CATALOGUE:
        for name in (gpu.name, *gpu.aliases):
            assert find_gpu(name) is gpu


def test_smallest_first_is_the_whole_catalogue_by_memory():
    ordered = smallest_first()
    assert sorted(ordered, key=lambda gpu: gpu.name) == sorted(CATALOGUE, key=lambda gpu: gpu.name)
    assert [gpu.memory_bytes for gpu in ordered] == sorted(gpu.memory_bytes for gpu in ordered)


@pytest.mark.parametrize("gpu", CATALOGUE, ids=lambda gpu: gpu.name)
def test_figures_are_of_the_right_size(gpu):
    # The name's memory is marketing: a driver reports 80 to 100 % of it, counted in GiB.
    advertised = int(gpu.name.split()[-1].removesuffix("GB")) * GIB
    assert 0.88 * advertised <= gpu.memory_bytes <= gpu.most_memory_bytes <= advertised
    assert 1e11 < gpu.bandwidth_bytes_per_s < 1e13
    assert gpu.fp16_flops >= gpu.fp32_flops
    assert gpu.bf16_flops in (None, gpu.fp16_flops)
    assert (gpu.bf16_flops is None) == (gpu.architecture in ("Pascal", "Volta", "Turing"))
    assert gpu.matmul_share is None or 0.4 < gpu.matmul_share < 1.2
    assert all(gpu.sources)


def test_what_drivers_report_of_well_known_devices():
    assert find_gpu("A100-80GB").memory_bytes == pytest.approx(79.1 * GIB, rel=0.002)
    assert find_gpu("4090").memory_bytes < 24 * GIB
    assert find_gpu("T4").memory_bytes < 15 * GIB


def test_rates_by_dtype():
    t4 = find_gpu("T4")
    assert t4.flops("bfloat16") is None
    assert t4.flops("int8") == t4.flops("float16") == 65e12
    assert find_gpu("A100-80GB").flops("tf32") == 156e12
    with pytest.raises(InputError, match="float8"):
        t4.flops("float8")
