"""What is handed to the kernels of fla-core, and what is made of their results. The kernels themselves need a GPU.

The stand-ins have the parameters of fla-core 0.6.0 and compute by the definition, as its own `naive` functions do.
"""

from __future__ import annotations

import sys
from itertools import count, pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import fla_kernels
from pipeline.model.engines.torch.engine import TorchEngine
from tests.model.engines.conftest import HYBRID_FAMILIES, Lab

pytestmark = pytest.mark.process


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """[batch, tokens, heads, dim]; states [batch, value heads, key dim, value dim] in float32."""
    assert gk is gv is cu_seqlens is None
    assert g is not None
    assert beta is not None
    assert initial_state is not None
    assert initial_state.shape == (len(q), v.shape[2], q.shape[3], v.shape[3])
    assert initial_state.dtype == torch.float32
    assert use_qk_l2norm_in_kernel
    repeats = v.shape[2] // q.shape[2]
    query, key = (part.float() * torch.rsqrt(part.float().square().sum(-1, keepdim=True) + 1e-6) for part in (q, k))
    query, key = (part.repeat_interleave(repeats, 2) for part in (query * (scale or q.shape[3] ** -0.5), key))
    state, outputs = initial_state.clone(), []
    for token in range(q.shape[1]):
        state = state * g[:, token, :, None, None].exp()
        written = v[:, token].float() - torch.einsum("bhk,bhkv->bhv", key[:, token], state)
        state = state + torch.einsum("bhk,bhv,bh->bhkv", key[:, token], written, beta[:, token].float())
        outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, token], state))
    return torch.stack(outputs, 1).to(q.dtype), state if output_final_state else None


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The sequences lie end to end in one row of the batch."""
    assert len(q) == 1
    assert initial_state is not None
    assert cu_seqlens is not None
    assert chunk_indices is not None
    ends = cu_seqlens.tolist()
    assert ends[-1] == q.shape[1]
    chunks = [[n, at] for n in range(len(ends) - 1) for at in range(-(-(ends[n + 1] - ends[n]) // chunk_size))]
    assert chunk_indices.tolist() == chunks
    assert chunk_indices.dtype == cu_seqlens.dtype == torch.int64
    outputs, states = [], []
    for number, (first, end) in enumerate(pairwise(ends)):
        parts = (part[:, first:end] for part in (q, k, v))
        output, state = fused_recurrent_gated_delta_rule(
            *parts,
            g=g[:, first:end],
            beta=beta[:, first:end],
            scale=scale,
            initial_state=initial_state[number : number + 1],
            output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        )
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, 1), torch.cat(states)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = fla_kernels.FlaRule(chunk_gated_delta_rule, fused_recurrent_gated_delta_rule)
    monkeypatch.setattr(fla_kernels, "load_kernels", lambda device, dtype: rule)


@pytest.mark.parametrize("one_lab", HYBRID_FAMILIES, indirect=True)
@pytest.mark.parametrize("prefill_tokens", [25, 200])
def test_answers_equal_generate_also_after_an_out_of_memory(one_lab: Lab, kernels, prefill_tokens):
    requests = [
        one_lab.build_request("film", one_lab.make_video(3, 3, 2), "and?", max_new_tokens=9),
        one_lab.build_request("picture", one_lab.make_image(5, 6), "what is it?"),
        one_lab.build_request("text", "a" * 150, max_new_tokens=6),
        one_lab.build_request("one", "b", max_new_tokens=15),
    ]
    engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=3, prefill_tokens=prefill_tokens)
    assert engine.step_runner.loaded.state_shape.has_kernels
    engine.limits.patches, calls = 4096, count()  # there is something left to halve

    def fail_now_and_then(*_):
        """After the layers have written their states."""
        if next(calls) in (2, 5, 9):
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine.step_runner.loaded.lm_head.register_forward_hook(fail_now_and_then)
    texts = {answer.id: answer.text for answer in generate_replies(engine, requests)}
    assert texts == {request.id: engine.detokenizer.decode(one_lab.generate_alone(request)[0]) for request in requests}
    engine.close()


def test_they_are_used_on_cuda_where_they_are_installed(monkeypatch):
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert fla_kernels.load_kernels(cuda, half) is None  # not installed here
    package, operators = ModuleType("fla"), ModuleType("fla.ops")
    package.__spec__ = sys.__spec__
    operators.gated_delta_rule = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "fla", package)
    monkeypatch.setitem(sys.modules, "fla.ops", operators)
    assert fla_kernels.load_kernels(cuda, half).chunk_kernel is chunk_gated_delta_rule
    assert fla_kernels.load_kernels(cuda, torch.float32) is None
    assert fla_kernels.load_kernels(torch.device("cpu"), half) is None
