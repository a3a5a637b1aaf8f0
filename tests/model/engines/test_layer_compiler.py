"""What compiling the layers saves, and what it needs."""

import shutil

import pytest
import torch
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import JobError
from pipeline.model.engines.torch import attention
from pipeline.model.engines.torch.collectives import Collectives
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.layer_compiler import compile_layers
from pipeline.model.engines.torch.model_loader import load_model
from tests.model.engines.conftest import Lab, needs_compiler
from tests.model.engines.fake_cuda import NO_KERNEL, count_bytes

pytestmark = pytest.mark.process
TOKENS = 512


def test_without_a_compiler_the_key_is_refused(one_lab: Lab, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(JobError, match="torch needs a compiler"):
        TorchEngine(one_lab.folder, one_lab.family, device="cpu", compile=True)


class ByteCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        self.bytes += 0 if name in NO_KERNEL else count_bytes(name, args, kwargs or {}, out)
        return out


@needs_compiler
@pytest.mark.slow
@torch.inference_mode()
def test_compiled_layers_move_less_than_half_the_bytes(one_lab: Lab, monkeypatch, request):
    """Without attention, whose bytes are the same. torch counts those of compiled code only where it logs them."""
    monkeypatch.setattr(attention, "attend", lambda module, query, *rest, **options: (query.transpose(1, 2), None))
    loaded = load_model(one_lab.folder, dtype="bfloat16")
    layer, block = loaded.language_model.layers[0], next(iter(loaded.vision_tower.blocks))
    hidden = torch.rand(1, TOKENS, loaded.language_model.config.hidden_size, dtype=torch.bfloat16)
    rotation = loaded.language_model.rotary_emb(hidden, torch.zeros(3, 1, TOKENS, dtype=torch.long))
    config = loaded.vision_tower.config
    patches = torch.rand(TOKENS, config.hidden_size, dtype=torch.bfloat16)
    block_rotation = (torch.ones(TOKENS, config.hidden_size // config.num_heads),) * 2
    ends = torch.tensor([0, TOKENS], dtype=torch.int32)
    calls = {
        "layer": lambda: layer(hidden, position_embeddings=rotation),
        "block": lambda: block(patches, cu_seqlens=ends, position_embeddings=block_rotation, max_seqlen=TOKENS),
    }
    eager, compiled = {}, {}
    for name, call in calls.items():
        with ByteCounter() as counter:
            call()
        eager[name] = counter.bytes
    torch._dynamo.reset()  # other tests compiled the same code, with attention
    request.addfinalizer(torch._dynamo.reset)
    compile_layers(loaded, Collectives())
    torch._logging.set_logs(inductor_metrics=True)
    for name, call in calls.items():
        metrics.reset()
        with inductor_config.patch(force_disable_caches=True):
            call()
        compiled[name] = metrics.num_bytes_accessed
    torch._logging.set_logs()
    assert all(0 < compiled[name] < eager[name] / 2 for name in calls), (eager, compiled)
