"""Copies between the host and the device that let the host go on.

On CUDA a copy from or to ordinary memory may wait for the kernels that were launched before it; one from or to pinned
memory does not. Whatever a step sends to its device goes through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def copy_to_device(values: NDArray[Any] | Sequence[float], device: torch.device) -> Tensor:
    return pin(torch.from_numpy(np.asarray(values)), device).to(device, non_blocking=True)


def fill_from_host(buffer: Tensor, values: NDArray[Any]) -> None:
    same_dtype = torch.from_numpy(values).to(buffer.dtype)  # a copy that converts would go through ordinary memory
    buffer.copy_(pin(same_dtype, buffer.device), non_blocking=True)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def allocate_pinned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of the host, from and to which copies of this device do not wait."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device.type == "cuda")
