"""Runs the engine on a `cuda` device that has shapes, types and devices but neither memory nor kernels.

torch's FakeTensorMode does that. It needs one thing that a CPU build of torch lacks, a device guard, which is compiled
here. A recorder beside it counts the kernels and the bytes of each pass, and lists what would make the host wait for
the device.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

GUARD_SOURCE = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace { C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>); }
"""
VIEWS = "view transpose expand slice select unsqueeze squeeze permute split t unbind detach alias _unsafe_view "
VIEWS += "as_strided unfold empty empty_like empty_strided new_empty lift_fresh is_pinned _pin_memory narrow "
NO_KERNEL = frozenset((VIEWS + "split_with_sizes _reshape_alias lift chunk resize_ set_ sym_size device").split())
DATA_DEPENDENT = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal"}


def find_compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def load_device_guard(folder: Path) -> None:
    root = Path(torch.__file__).parent
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(GUARD_SOURCE)
    flags = ["-shared", "-fPIC", "-std=c++20", f"-I{root}/include", f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-lc10"]
    subprocess.run([str(find_compiler()), str(source), "-o", str(library), *flags], check=True)
    torch.ops.load_library(str(library))


@dataclass
class PassCost:
    kernels: int = 0
    bytes: int = 0  # read and written
    peak_bytes: int = 0  # allocated at a time, beside what was allocated before
    product_bytes: int = 0  # the part of `bytes` that matrix products read and write
    flops: int = 0  # of matrix products, and of attention within pictures; not of attention to the cache


class Recorder(TorchDispatchMode):
    """Counts kernels and bytes under the name of the current pass."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, PassCost] = {}  # of the pass of each name that moves the most bytes
        self.waits: dict[str, list[str]] = {}  # operators of all passes for which the host waits for the device
        self.operators: set[str] = set()  # those that ran on the device in some pass
        self.names: list[str] = []
        self.peaks: list[int] = []  # of `live_bytes`, in the passes of these names
        self.pinned = WeakTensorKeyDictionary()
        self.live_bytes = 0  # on the device
        self.known_storages: set[int] = set()

    @contextmanager
    def record(self, name: str) -> Iterator[None]:
        before, self.costs[name] = self.costs.get(name), PassCost(peak_bytes=-self.live_bytes)
        self.waits.setdefault(name, [])
        self.names.append(name)
        self.peaks.append(self.live_bytes)
        try:
            yield
        finally:
            self.names.pop()
            peak = self.peaks.pop()
            self.costs[name].peak_bytes += peak
            if self.peaks:
                self.peaks[-1] = max(self.peaks[-1], peak)
            if before is not None and before.bytes > self.costs[name].bytes:
                self.costs[name] = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        is_pinned = kwargs.pop("pin_memory", False)
        out = func(*args, **kwargs)
        if is_pinned:
            self.pinned[out] = True
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                self.count_storage(tensor.untyped_storage())
        if self.names:
            cost, name = self.costs[self.names[-1]], func._overloadpacket.__name__
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.waits[self.names[-1]] += [f"{name}: {reason}" for reason in self.find_waits(name, args, kwargs, out)]
            if name not in NO_KERNEL and any(tensor.is_cuda for tensor in tensors):
                moved, flops = count_bytes(name, args, kwargs, out), count_flops(name, args, out)
                cost.kernels += 1
                self.operators.add(name)
                cost.bytes += moved
                cost.flops += flops
                cost.product_bytes += moved if flops else 0
        return out

    def count_storage(self, storage: Any) -> None:
        if storage._cdata in self.known_storages:
            return
        self.known_storages.add(storage._cdata)
        self.live_bytes += storage.nbytes()
        if self.peaks:
            self.peaks[-1] = max(self.peaks[-1], self.live_bytes)
        weakref.finalize(storage, self.forget_storage, storage._cdata, storage.nbytes())

    def forget_storage(self, address: int, size: int) -> None:
        self.known_storages.discard(address)
        self.live_bytes -= size

    def find_waits(self, name: str, args: Any, kwargs: Any, out: Any) -> Iterator[str]:
        is_on_device = any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in tree_leaves(args))
        if name in DATA_DEPENDENT and is_on_device:
            yield "depends on values"
        if name in ("index", "index_put_", "index_put", "_index_put_impl_") and is_on_device:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                yield "a mask as an index"
            if not all(index.is_cuda for index in indices):
                yield "an index from the host"
        if name in ("_to_copy", "copy_"):
            target, source = (args[0], args[1]) if name == "copy_" else (out, args[0])
            if target.is_cuda == source.is_cuda or (name == "copy_" and source.dim() == 0):
                return
            is_async = args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False)
            if source.dtype != target.dtype:
                yield f"a copy of {tuple(source.shape)} that converts {source.dtype} to {target.dtype}"
            if not is_async:
                yield f"a blocking copy of {tuple(source.shape)} from {source.device} to {target.device}"
            elif (source if target.is_cuda else target) not in self.pinned:
                yield f"a copy of {tuple(source.shape)} between the device and memory that is not pinned"


def count_bytes(name: str, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes read and written; of a lookup only those that are looked up."""
    read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if name in ("embedding", "index", "index_select", "gather"):
        return 2 * sum(map(measure_bytes, written))
    if name.startswith(("index_copy", "index_put")):
        return 2 * measure_bytes(read[-1])
    if "_flash_attention" in name:  # the kernel reads the used part of the cache, which shapes do not show
        return measure_bytes(read[0]) + measure_bytes(written[0])
    return sum(map(measure_bytes, read)) + (0 if name.endswith("_") else sum(map(measure_bytes, written)))


def count_flops(name: str, args: Any, out: Any) -> int:
    if name in ("linear", "mm", "addmm", "bmm", "_grouped_mm"):
        first = args[1] if name == "addmm" else args[0]
        return int(2 * out.numel() * first.shape[-1])
    if name == "_flash_attention_forward":
        query, max_query, max_key, is_causal = args[0], args[5], args[6], args[8]
        return 0 if is_causal or max_query == 1 else 4 * int(query.numel() * max_key)
    return 0


def measure_bytes(tensor: Tensor) -> int:
    """Without what is broadcast."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def run_on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with real tensors: it computes on the host, whose values the engine reads."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return run


class FakeCheckpoint:
    """In place of `Checkpoint`: weights of the right shape, without bytes."""

    is_awq = False

    def __init__(self, folder: Path, architecture: Any, adapter: Any = None):
        from pipeline.model import hf_models

        config_json = json.loads((folder / "config.json").read_text())
        config = hf_models.get_config_class(config_json["model_type"]).from_dict(
            {key: value for key, value in config_json.items() if key != "quantization_config"}
        )
        with unset_fake_temporarily(), torch.device("meta"):
            model = hf_models.get_model_class(config_json["model_type"])._from_config(config)
        self.folder, self.adapter = folder, adapter
        self.shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
        if "quantization_config" in config_json:
            group = config_json["quantization_config"]["group_size"]
            for name in [name for name, shape in self.shapes.items() if architecture.is_text_layer(name)]:
                if name.endswith("_proj.weight"):
                    outputs, inputs = self.shapes.pop(name)
                    stem = name.removesuffix("weight")
                    self.shapes[f"{stem}qweight"] = [inputs, outputs // 8]
                    self.shapes[f"{stem}qzeros"] = [inputs // group, outputs // 8]
                    self.shapes[f"{stem}scales"] = [inputs // group, outputs]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def detect_dtype(self) -> torch.dtype:
        return torch.bfloat16

    def get_shape(self, name: str) -> list[int]:
        return self.shapes[name]

    def read_weight(self, name: str, weight_shard: Any = None, *, shape: Sequence[int] | None = None) -> Tensor:
        is_word = name.endswith(("qweight", "qzeros"))
        weight = torch.empty(self.shapes[name], dtype=torch.int32 if is_word else torch.bfloat16)
        return (
            weight
            if weight_shard is None
            else weight.narrow(weight_shard.dim, weight_shard.span[0], weight_shard.span[1] - weight_shard.span[0])
        )


def move_buffers(module: Any, device: torch.device) -> Any:
    """In place of `Module.to`, which cannot swap fake weights. Those of a loaded model are on the device already."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
    return module


class NoEvent:
    def record(self) -> None: ...
    def synchronize(self) -> None: ...


@contextmanager
def fake_cuda(monkeypatch: Any, *, memory_bytes: int, capability: tuple[int, int]) -> Iterator[Recorder]:
    """Inside, `cuda` is a device of this much memory; the recorder sees every operator."""
    from transformers import PreTrainedModel

    from pipeline.model.engines.torch import cuda_graphs, int4_linear, model_loader, sampler
    from pipeline.model.families import qwen_tower

    recorder = Recorder()

    def pin_memory(tensor: Tensor) -> Tensor:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype)
        recorder.pinned[copy] = True
        return copy

    def capture(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        with recorder.record("decode"):
            output = compute()
        return (lambda: None), output

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory_bytes, memory_bytes))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "Event", NoEvent)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(PreTrainedModel, "to", move_buffers)
    monkeypatch.setattr(
        sampler, "allocate_pinned", lambda shape, dtype, device: torch.from_numpy(np.empty(shape, np.int32))
    )
    monkeypatch.setattr(model_loader, "Checkpoint", FakeCheckpoint)
    monkeypatch.setattr(qwen_tower, "compute_grid_inputs", run_on_host(qwen_tower.compute_grid_inputs))
    monkeypatch.setattr(cuda_graphs.DecodeGraphs.__init__, "__kwdefaults__", {"capture": capture})
    int4_linear.learn_tile_layout.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), recorder:
            yield recorder
    finally:
        int4_linear.learn_tile_layout.cache_clear()
