"""What a run is planned for: this machine, measured in a few seconds, or GPUs as their vendors describe them.

The data sheets' figures are in hardware.yaml, with their sources. What no data sheet says is assumed here, by
name: the share of the matrix rate that training reaches, and the memory that is not for tensors.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trueward.core.config import read_yaml
from trueward.core.errors import ConfigError, nearest
from trueward.models.bfloat16 import float32_products, lacks_instructions
from trueward.models.processor import multiplied_by_onednn

__all__ = ["THIS_MACHINE", "Device", "device_named", "known_hardware", "memory_field", "this_machine"]

THIS_MACHINE = "here"
_GIB = 2**30
# Share of the data sheet's matrix rate that training of dense decoders reaches on one node: published figures
# for 7B to 70B parameters in bfloat16 lie between 0.35 and 0.5 (Llama 3 report, section 3.3: 0.38 to 0.43).
GPU_MFU = 0.40
# Share of this machine's own measured matrix rate: the matrices of a layer run near it, what lies between
# them (norms, rotary positions, softmax) does not. In bfloat16 only the matrices become faster, if the
# processor has instructions for it.
CPU_MFU: Mapping[str, float] = {"float32": 0.65, "bfloat16": 0.40}
# CUDA context, cuBLAS and attention workspaces, NCCL buffers.
_GPU_PROCESS_GIB = 1.5
# The caching allocator cannot use every gap between blocks.
_GPU_USABLE = 0.95
# What the interpreter with torch, transformers and peft holds where /proc cannot tell.
_PROCESS_GIB = 0.55
# Code of the kernels that training runs and importing does not: it is read in at the first step.
_KERNELS_GIB = 0.10
_MEASURE_S = 0.4
_SIDE = 1024
_STREAM_ELEMENTS = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where a stage runs; of several GPUs each is like this.

    memory_bytes: that tensors and process may take. process_bytes: of it, what no tensor is.
    float32_flops, bfloat16_flops: that training reaches, per second. peak: the rates these are a share of.
    memory_bytes_per_s, link_bytes_per_s: bandwidths; the link's in one direction, 0 where there is none.
    gpu: False is a processor. words: what was measured or assumed.
    """

    name: str
    gpu: bool
    gpus: int
    memory_bytes: float
    process_bytes: float
    float32_flops: float
    bfloat16_flops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    words: str

    def flops(self, precision: str) -> float:
        """Rate that training reaches in a precision, per second."""
        return self.bfloat16_flops if precision == "bfloat16" else self.float32_flops


def known_hardware() -> dict[str, dict[str, Any]]:
    """The GPUs of hardware.yaml, by name."""
    return read_yaml(Path(__file__).with_name("hardware.yaml"))


def memory_field(field: str, path: str = "/proc/self/status") -> int | None:
    """A field of a file of the kernel, bytes: VmRSS or VmHWM of this process, MemAvailable of /proc/meminfo.

    Returns:
        None where there is no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def _limit() -> float:
    """Memory that a process may take: what is free, with what this one holds, within its group's limit."""
    mine = memory_field("VmRSS") or 0
    free = memory_field("MemAvailable", "/proc/meminfo")
    limits = [float("inf") if free is None else free + mine]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(file)
        if path.is_file() and (text := path.read_text(encoding="utf-8").strip()).isdigit():
            limits.append(float(text))
    return min(limits)


def _fastest_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest of many repetitions: what else runs on the machine only slows others down."""
    ends_s, fastest_s = time.perf_counter() + _MEASURE_S, math.inf
    while (started_s := time.perf_counter()) < ends_s:
        work()
        fastest_s = min(fastest_s, time.perf_counter() - started_s)
    return fastest_s


def _matmul_flops(dtype: torch.dtype) -> float:
    first, second = torch.rand(_SIDE, _SIDE).to(dtype), torch.rand(_SIDE, _SIDE).to(dtype)
    with float32_products(), multiplied_by_onednn():
        out = first @ second
        return 2.0 * _SIDE**3 / _fastest_s(lambda: torch.mm(first, second, out=out))


def _stream_bytes_per_s() -> float:
    source = torch.rand(_STREAM_ELEMENTS)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2.0 * 4 * _STREAM_ELEMENTS / _fastest_s(lambda: target.copy_(source))


def this_machine(*, measure: bool = True) -> Device:
    """The processor of this machine, with as many threads as torch has.

    Args:
        measure: False tells memory only, and rates as 0: nothing is timed.
    """
    process = (memory_field("VmRSS") or _PROCESS_GIB * _GIB) + _KERNELS_GIB * _GIB
    float32 = _matmul_flops(torch.float32) if measure else 0.0
    bfloat16 = _matmul_flops(torch.bfloat16) if measure else 0.0
    stream = _stream_bytes_per_s() if measure else 0.0
    threads = torch.get_num_threads()
    low_share = CPU_MFU["float32" if lacks_instructions() else "bfloat16"]
    words = (
        f"measured with {threads} thread{'s' if threads != 1 else ''}: "
        f"{float32 / 1e9:,.0f} GFLOP/s in float32, {bfloat16 / 1e9:,.0f} in bfloat16, "
        f"{stream / 1e9:.1f} GB/s; of these rates {CPU_MFU['float32']:.0%} "
        f"and {low_share:.0%} are assumed in training"
    )
    return Device(
        name="this machine",
        gpu=False,
        gpus=1,
        memory_bytes=_limit(),
        process_bytes=process,
        float32_flops=float32 * CPU_MFU["float32"],
        bfloat16_flops=bfloat16 * low_share,
        memory_bytes_per_s=stream,
        link_bytes_per_s=0.0,
        words=words if measure else "",
    )


def device_named(name: str, *, gpus: int = 1) -> Device:
    """A device by name; several GPUs are one FSDP2 group.

    Args:
        name: `here`, or a name in hardware.yaml.

    Raises:
        ConfigError: an unknown name, or a number of GPUs that is none.
    """
    if gpus < 1 or (name == THIS_MACHINE and gpus != 1):
        raise ConfigError(
            "the number of GPUs is wrong",
            value=gpus,
            expected="1 or more, of a GPU named with --hardware",
            remedy=f"known names: {', '.join(known_hardware())}",
        )
    if name == THIS_MACHINE:
        return this_machine()
    known = known_hardware()
    if name not in known:
        raise ConfigError(f"unknown hardware {name!r}", remedy=nearest(name, [THIS_MACHINE, *known]))
    sheet = known[name]
    words = (
        f"{sheet['memory_gib']} GiB each, {sheet['bfloat16_tflops']} TFLOP/s in bfloat16 and "
        f"{sheet['float32_tflops']} in float32 as the data sheet says, of which {GPU_MFU:.0%} is assumed "
        f"(MFU); {sheet['memory_gb_s']:,} GB/s"
    )
    return Device(
        name=str(sheet["name"]) if gpus == 1 else f"{gpus} x {sheet['name']}, one FSDP2 group",
        gpu=True,
        gpus=gpus,
        memory_bytes=_GPU_USABLE * float(sheet["memory_gib"]) * _GIB,
        process_bytes=_GPU_PROCESS_GIB * _GIB,
        float32_flops=GPU_MFU * float(sheet["float32_tflops"]) * 1e12,
        bfloat16_flops=GPU_MFU * float(sheet["bfloat16_tflops"]) * 1e12,
        memory_bytes_per_s=float(sheet["memory_gb_s"]) * 1e9,
        link_bytes_per_s=float(sheet["link_gb_s"]) * 1e9 / 2,
        words=words,
    )
