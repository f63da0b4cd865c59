"""The processor's settings."""

import torch

from trueward.models.backend import prepare_cpu


def test_denormals_become_zero_and_threads_stay() -> None:
    threads = torch.get_num_threads()
    if not prepare_cpu():
        return
    assert float(torch.tensor(1e-30) * torch.tensor(1e-12)) == 0.0
    assert torch.get_num_threads() == threads
