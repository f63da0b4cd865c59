"""Settings of the processor that decide speed, made once before the first forward. Not here: the number of
threads.
"""

import torch

__all__ = ["prepare_cpu"]


def prepare_cpu() -> bool:
    """Treat denormal numbers as zero: Adam's second moments reach them, and they cost a hundredfold.

    The number of threads is left alone: it belongs to the user (`OMP_NUM_THREADS`).

    Returns:
        Whether the processor supports it.
    """
    return torch.set_flush_denormal(True)
