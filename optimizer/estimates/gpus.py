"""The GPU catalogue: what a device holds and how fast it is, each figure with where it comes from.

Memory is the total that a driver hands to programs (``torch.cuda.get_device_properties().total_memory``, the
"total capacity" of an out-of-memory message), not the size on the box: a driver keeps some for itself, and
how much varies with its version and with ECC. Rates are dense and per device as a program sees it: one of an
MI250X's two dies, one of a GB200's two GPUs. Knows nothing of models and of the machine at hand.

To extend it, append a :class:`Gpu` to ``CATALOGUE``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ...errors import InputError

GIB = 2**30
TERA = 1e12
GIGA = 1e9
NEAR_MATCHES = 5
LONGEST_NAME = 80
"""Characters of a name that are shown in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device model. Rates are dense (without sparsity), in floating-point operations a second."""

    name: str
    architecture: str
    compute_capability: tuple[int, int] | None
    """Of CUDA; None on AMD's devices."""
    memory_bytes: int
    """The least total that was seen reported, with ECC as shipped; a fit is judged by it."""
    most_memory_bytes: int
    """The largest total that was seen reported: driver versions and ECC make the difference."""
    bandwidth_bytes_per_s: float
    bf16_flops: float | None
    """With float32 accumulation; None where there is no hardware for bfloat16 (torch emulates it, slowly)."""
    fp16_flops: float
    """With float32 accumulation, as torch multiplies."""
    tf32_flops: float | None
    """None where there is no TF32."""
    fp32_flops: float
    matmul_share: float | None = None
    """Share of the 16-bit rate at which torch was measured multiplying large matrices (``MATMUL_SOURCE``);
    above 1 where boards clock higher than the data sheet says; None where nobody published it."""
    aliases: tuple[str, ...] = ()
    memory_source: str
    rates_source: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the figures come from."""
        measured = () if self.matmul_share is None else (MATMUL_SOURCE,)
        return (self.rates_source, self.memory_source, *measured)

    def flops(self, dtype: str) -> float | None:
        """Dense rate of matrix products in a dtype; None where the device has none.

        Args:
            dtype: ``bfloat16``, ``float16``, ``tf32``, ``float32``, or ``int8`` (counted at the 16-bit rate,
                on the careful side: bitsandbytes' int8 products gain little over 16 bits).
        """
        rates = {
            "bfloat16": self.bf16_flops,
            "float16": self.fp16_flops,
            "tf32": self.tf32_flops,
            "float32": self.fp32_flops,
            "int8": self.bf16_flops or self.fp16_flops,
        }
        if dtype not in rates:
            raise InputError(
                f"no rates are known for matrix products in {dtype[:LONGEST_NAME]!r}",
                next_step=f"use one of {', '.join(rates)}",
            )
        return rates[dtype]


MATMUL_SOURCE = (
    "torch matrix products of 10240 x 10240 in 16 bits, as users reported them (database.md, 62 devices, "
    "contributors named there: zzc0208 and others); median of the rows of a device over its data sheet's rate"
)

NOISE = {"nvidia", "amd", "geforce", "tesla", "quadro", "instinct", "rtx", "gpu", "graphics", "card"} | {
    *("generation", "accelerator", "oam", "hbm2", "hbm2e", "hbm3", "hbm3e")
}
"""Words of names that tell no two devices of the catalogue apart."""

FORM = re.compile(r"sxm|pcie|\d+gb")
"""Words that people leave out: the board's form and its memory."""


def _gpu(
    name: str,
    architecture: str,
    capability: tuple[int, int] | None,
    gib: tuple[float, float],
    gb_per_s: float,
    tflops: tuple[float | None, float, float | None, float],
    matmul_share: float | None,
    sheet: str,
    seen: str,
    *aliases: str,
) -> Gpu:
    bf16, fp16, tf32, fp32 = tflops
    return Gpu(
        name=name,
        architecture=architecture,
        compute_capability=capability,
        memory_bytes=int(gib[0] * GIB),
        most_memory_bytes=int(gib[1] * GIB),
        bandwidth_bytes_per_s=gb_per_s * GIGA,
        bf16_flops=None if bf16 is None else bf16 * TERA,
        fp16_flops=fp16 * TERA,
        tf32_flops=None if tf32 is None else tf32 * TERA,
        fp32_flops=fp32 * TERA,
        matmul_share=matmul_share,
        aliases=aliases,
        memory_source=seen,
        rates_source=SHEET[sheet],
    )


SHEET = {
    "t4": "NVIDIA T4 datasheet",
    "v100": "NVIDIA V100 datasheet (SXM2)",
    "p100": "NVIDIA Tesla P100 datasheet (PCIe 16 GB)",
    "turing": "NVIDIA Turing whitepaper, RTX 2080 Ti reference clocks",
    "l4": "NVIDIA L4 datasheet, sparse rates halved",
    "a10g": "NVIDIA A10G datasheet for AWS G5",
    "a10": "NVIDIA A10 datasheet",
    "a30": "NVIDIA A30 datasheet",
    "a40": "NVIDIA A40 datasheet",
    "ga102": "NVIDIA Ampere GA102 whitepaper, appendix A; 16 bits with float32 accumulation",
    "rtx3060": "12.7 TFLOPS of NVIDIA's product page; 16 bits at twice that, as on GA102 (whitepaper)",
    "a4000": "NVIDIA RTX A4000 datasheet, sparse rates halved",
    "a100": "NVIDIA A100 datasheet",
    "ada": "NVIDIA Ada whitepaper, appendix A; 16 bits with float32 accumulation",
    "ada-small": "cores x boost clock of NVIDIA's product page; 16 bits at twice that (Ada whitepaper)",
    "l40": "NVIDIA L40 datasheet",
    "l40s": "NVIDIA L40S datasheet",
    "h100": "NVIDIA H100 datasheet, sparse rates halved",
    "h200": "NVIDIA H200 datasheet, sparse rates halved",
    "b200": "NVIDIA HGX B200 datasheet, per GPU, sparse rates halved; bandwidth of pytorch/ao#4002",
    "gb200": "NVIDIA GB200 NVL72 datasheet, per GPU, sparse rates halved",
    "gb202": "NVIDIA RTX Blackwell whitepaper, appendix A; 16 bits with float32 accumulation",
    "mi200": "AMD Instinct MI200 series datasheets, one die",
    "mi300": "AMD Instinct MI300X datasheet",
    "mi325": "AMD Instinct MI325X datasheet",
}
"""Documents that rates and bandwidth come from."""

# fmt: off
CATALOGUE = (
    # name, architecture, capability, totals (GiB), GB/s, (bf16, fp16, tf32, fp32) TFLOPS, matmul share
    _gpu("T4 16GB", "Turing", (7, 5), (14.56, 14.76), 320, (None, 65, None, 8.1), 0.645, "t4",
         "torch 14.563 and 14.741 GiB in Colab and Kaggle logs, 14.56 in CatVTON#133; nvidia-smi 15360 MiB",
         "T4"),
    _gpu("V100 16GB", "Volta", (7, 0), (15.77, 15.78), 900, (None, 125, None, 15.7), 0.759, "v100",
         "torch 15.77 GiB in gpt4all#544", "V100-SXM2-16GB", "V100-PCIE-16GB"),
    _gpu("V100 32GB", "Volta", (7, 0), (31.74, 31.75), 900, (None, 125, None, 15.7), None, "v100",
         "torch 31.74 GiB in LLaVA#812", "V100-SXM2-32GB", "V100-PCIE-32GB"),
    _gpu("P100 16GB", "Pascal", (6, 0), (15.888, 15.90), 732, (None, 18.7, None, 9.3), 0.449, "p100",
         "torch 16269 to 16281 MiB in YOLO logs; nvidia-smi 16280 MiB", "P100-PCIE-16GB", "P100"),
    _gpu("RTX 2080 Ti 11GB", "Turing", (7, 5), (10.73, 10.76), 616, (None, 53.8, None, 13.4), None, "turing",
         "torch 10.76 GiB in JDAI-CV/image-captioning#11, 10.73 in Morizeyao/GPT2-Chinese#104", "2080 Ti"),
    _gpu("L4 24GB", "Ada", (8, 9), (22.03, 22.17), 300, (121, 121, 60.5, 30.3), None, "l4",
         "torch 22.034 and 22.168 GiB in Unsloth's logs; nvidia-smi 23034 MiB (modal-client#2797)", "L4"),
    _gpu("A10G 24GB", "Ampere", (8, 6), (21.99, 22.07), 600, (70, 70, 35, 31.5), None, "a10g",
         "torch 21.99 GiB in mistral-finetune#69", "A10G"),
    _gpu("A10 24GB", "Ampere", (8, 6), (21.99, 23.70), 600, (125, 125, 62.5, 31.2), None, "a10",
         "torch 21.99 GiB in CogVLM#236, 23.70 in stanford_alpaca#76; nvidia-smi 23028 MiB (ECC on)", "A10"),
    _gpu("A30 24GB", "Ampere", (8, 0), (23.53, 23.53), 933, (165, 165, 82, 10.3), None, "a30",
         "torch 23.53 GiB in google/RB-Modulation#5", "A30"),
    _gpu("A40 48GB", "Ampere", (8, 6), (44.54, 44.55), 696, (149.7, 149.7, 74.8, 37.4), None, "a40",
         "torch 44.549 GiB in Unsloth's logs", "A40"),
    _gpu("RTX A4000 16GB", "Ampere", (8, 6), (15.61, 15.61), 448, (76.7, 76.7, 38.3, 19.2), None, "a4000",
         "torch 15.61 GiB in VGGT-Long#6", "A4000"),
    _gpu("RTX A6000 48GB", "Ampere", (8, 6), (47.43, 47.54), 768, (154.8, 154.8, 77.4, 38.7), 0.797, "ga102",
         "torch 47.431 GiB in Unsloth's logs (44.427 with ECC switched on)", "A6000"),
    _gpu("RTX 6000 Ada 48GB", "Ada", (8, 9), (44.43, 44.43), 960, (364.2, 364.2, 182.1, 91.1), None, "ada",
         "torch 44.43 GiB with ECC on in MTVCrafter#21; more with ECC off", "6000 Ada"),
    _gpu("L40 48GB", "Ada", (8, 9), (44.40, 44.40), 864, (181, 181, 90.5, 90.5), None, "l40",
         "torch 44.40 GiB in NVlabs/Eagle#68", "L40"),
    _gpu("L40S 48GB", "Ada", (8, 9), (44.39, 44.53), 864, (362, 362, 183, 91.6), 0.743, "l40s",
         "torch 44.392 GiB in Unsloth's logs, 44.53 in Wan2.1#205; nvidia-smi 46068 MiB", "L40S"),
    _gpu("RTX 3060 12GB", "Ampere", (8, 6), (11.747, 11.76), 360, (25.4, 25.4, 12.7, 12.7), None, "rtx3060",
         "torch 11.747 GiB in Unsloth's logs on Linux, 11.75 in dreambooth-gui#78", "3060"),
    _gpu("RTX 3080 10GB", "Ampere", (8, 6), (9.77, 9.78), 760, (59.5, 59.5, 29.8, 29.8), None, "ga102",
         "torch 9.78 GiB in CogVideo#34", "3080"),
    _gpu("RTX 3090 24GB", "Ampere", (8, 6), (23.58, 23.70), 936, (71, 71, 35.6, 35.6), 1.079, "ga102",
         "torch 23.588 and 23.684 GiB in Unsloth's logs, 23.70 in lit-llama#137", "3090"),
    _gpu("RTX 4060 Ti 16GB", "Ada", (8, 9), (15.57, 15.70), 288, (44.1, 44.1, 22.1, 22.1), 0.967, "ada-small",
         "torch 15.572 GiB in Unsloth's logs"),
    _gpu("RTX 4070 Ti Super 16GB", "Ada", (8, 9), (15.57, 15.70), 672, (88.2, 88.2, 44.1, 44.1), 1.013,
         "ada-small", "taken as the RTX 4060 Ti's on Linux: same size and generation", "4070 Ti Super"),
    _gpu("RTX 4080 16GB", "Ada", (8, 9), (15.57, 15.70), 716.8, (97.5, 97.5, 48.7, 48.7), None, "ada",
         "taken as the RTX 4060 Ti's on Linux: same size and generation", "4080"),
    _gpu("RTX 4090 24GB", "Ada", (8, 9), (23.51, 23.65), 1008, (165.2, 165.2, 82.6, 82.6), 1.003, "ada",
         "torch 23.51 and 23.527 GiB in Unsloth's logs, 23.64 in VGen#104", "4090"),
    _gpu("RTX 5080 16GB", "Blackwell", (12, 0), (15.46, 15.47), 960, (112.6, 112.6, 56.3, 56.3), None,
         "gb202", "torch 15.47 GiB on a board of which nvidia-smi says 16303 MiB", "5080"),
    _gpu("RTX 5090 32GB", "Blackwell", (12, 0), (31.34, 31.37), 1792, (209.5, 209.5, 104.8, 104.8), 1.141,
         "gb202", "torch 31.342 GiB in Unsloth's logs, 31.37 in Wan2.1#465", "5090"),
    _gpu("A100 PCIe 40GB", "Ampere", (8, 0), (39.49, 39.56), 1555, (312, 312, 156, 19.5), 0.79, "a100",
         "taken as the SXM board's: nvidia-smi says 40960 MiB of both", "A100-PCIE-40GB"),
    _gpu("A100 SXM 40GB", "Ampere", (8, 0), (39.49, 39.56), 1555, (312, 312, 156, 19.5), 0.79, "a100",
         "torch 39.494 and 39.557 GiB in Unsloth's logs, 39.50 in CoSeR#10", "A100-SXM4-40GB", "A100 40GB"),
    _gpu("A100 PCIe 80GB", "Ampere", (8, 0), (79.14, 79.32), 1935, (312, 312, 156, 19.5), None, "a100",
         "torch 79.14 GiB in Control-GIC#6, 79.25 in OOTDiffusion#235; form not told", "A100 80GB PCIe"),
    _gpu("A100 SXM 80GB", "Ampere", (8, 0), (79.14, 79.32), 2039, (312, 312, 156, 19.5), 0.848, "a100",
         "torch 79.151 GiB in Unsloth's logs, 79.14 in Control-GIC#6, 79.25 in OOTDiffusion#235",
         "A100-SXM4-80GB", "A100 80GB"),
    _gpu("H100 PCIe 80GB", "Hopper", (9, 0), (79.09, 79.21), 2000, (756, 756, 378, 51), None, "h100",
         "taken as the SXM board's: nvidia-smi says 81559 MiB of both", "H100 PCIe"),
    _gpu("H100 SXM 80GB", "Hopper", (9, 0), (79.09, 79.21), 3350, (989.4, 989.4, 494.7, 66.9), 0.799, "h100",
         "torch 79.097 and 79.179 GiB in Unsloth's logs, 79.11 in vllm#27508; nvidia-smi 81559 MiB",
         "H100 80GB HBM3", "H100 80GB", "H100"),
    _gpu("H100 NVL 94GB", "Hopper", (9, 0), (93.00, 93.02), 3900, (835.5, 835.5, 417.5, 60), None, "h100",
         "torch 93.016 GiB in Unsloth's logs, 93.00 in VACE#56", "H100 NVL"),
    _gpu("H200 141GB", "Hopper", (9, 0), (139.72, 139.83), 4800, (989.4, 989.4, 494.7, 66.9), 0.799, "h200",
         "torch 139.801 GiB in Unsloth's logs, 139.72 to 139.83 in error logs", "H200"),
    _gpu("B200 180GB", "Blackwell", (10, 0), (178.35, 178.36), 7672, (2250, 2250, 1125, 75), 0.754, "b200",
         "torch 178.35 GiB in pytorch/ao#4002", "B200"),
    _gpu("GB200 186GB", "Blackwell", (10, 0), (184.31, 184.31), 8000, (2500, 2500, 1250, 80), None, "gb200",
         "torch 184.31 GiB in error logs; nvidia-smi 189471 MiB", "GB200"),
    _gpu("MI210 64GB", "CDNA2", None, (63.98, 63.98), 1638.4, (181, 181, None, 45.3), None, "mi200",
         "torch 63.98 GiB in error logs of MI200 series dies", "MI210"),
    _gpu("MI250X 64GB", "CDNA2", None, (63.98, 63.98), 1638.4, (191.5, 191.5, None, 47.9), None, "mi200",
         "torch 63.98 GiB in error logs: one of the board's two dies", "MI250X", "MI250X/MI250"),
    _gpu("MI300X 192GB", "CDNA3", None, (191.69, 191.98), 5300, (1307.4, 1307.4, 653.7, 163.4), None, "mi300",
         "torch 191.69 and 191.98 GiB in error logs", "MI300X", "MI300X OAM"),
    _gpu("MI325X 256GB", "CDNA3", None, (255.69, 255.98), 6000, (1307.4, 1307.4, 653.7, 163.4), None, "mi325",
         "torch 255.69 and 255.98 GiB in error logs", "MI325X"),
)
# fmt: on
"""Every device that is known. A plain name ("A100 80GB", "H100") means the SXM board."""


def find_gpu(text: str) -> Gpu:
    """Reads a device's name as people, clouds and drivers write it: ``A100-80GB``, ``4090``, ``Tesla T4``.

    Raises:
        InputError: unknown, or several devices have that name; the message lists those that come near.
    """
    found = [gpu for gpu in CATALOGUE if any(_words(name) == _words(text) for name in _names(gpu))]
    found = found or [gpu for gpu in CATALOGUE if any(_is_short_for(text, name) for name in _names(gpu))]
    if len(found) == 1:
        return found[0]
    shown = repr(text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "…")
    if found:
        raise InputError(
            f"{shown} is the name of {len(found)} GPUs",
            next_step=f"say which: {_listed(found)}; or give the memory instead of a GPU",
        )
    raise InputError(
        f"no GPU named {shown} is in the catalogue",
        next_step=f"the nearest names are {_listed(_near(text))}; or give the memory instead of a GPU",
    )


def smallest_first() -> tuple[Gpu, ...]:
    """The catalogue by memory, then by 16-bit rate, then by name."""
    return tuple(sorted(CATALOGUE, key=lambda gpu: (gpu.memory_bytes, gpu.fp16_flops, gpu.name)))


def _names(gpu: Gpu) -> tuple[str, ...]:
    return (gpu.name, *gpu.aliases)


def _is_short_for(text: str, name: str) -> bool:
    """Whether a text leaves out nothing of a name but the board's form and memory, or the spaces."""
    given, full = _words(text), _words(name)
    in_one_word = _key(text) in (_key(name), _key(FORM.sub("", name.lower())))
    return bool(given) and (in_one_word or (given <= full and all(FORM.fullmatch(w) for w in full - given)))


def _near(text: str) -> list[Gpu]:
    by_key = {_key(name): gpu for gpu in CATALOGUE for name in _names(gpu)}
    near = difflib.get_close_matches(_key(text[:LONGEST_NAME]), by_key, n=2 * NEAR_MATCHES, cutoff=0.0)
    return list(dict.fromkeys(by_key[key] for key in near))[:NEAR_MATCHES]


def _listed(gpus: Iterable[Gpu]) -> str:
    return ", ".join(gpu.name for gpu in gpus)


@lru_cache(maxsize=1024)
def _words(text: str) -> frozenset[str]:
    """The words of a name that tell devices apart: no makers, no product lines, ``80 GiB`` as 80gb."""
    text = re.sub(r"(\d)\s*g(i?b)?\b", r"\1gb", text[:LONGEST_NAME].lower())
    words = (re.sub(r"^sxm\d$", "sxm", word) for word in re.findall(r"[a-z0-9]+", text))
    return frozenset(word for word in words if word not in NOISE)


def _key(text: str) -> str:
    """A name in one word, for texts without spaces and for near matches."""
    return "".join(word for word in re.findall(r"[a-z]+|\d+", text.lower()) if word not in NOISE)
