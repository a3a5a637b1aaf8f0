"""What the engine keeps on its device beside weights and cache, and what it remembers of running out of memory."""

import os
import tempfile
from threading import Event, Thread

import pytest
import torch
import torch.distributed as dist

from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import collectives, linear_state, memory, replica
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.kv_cache import KVCache
from pipeline.model.engines.torch.oom_backoff import LimitsFile, StepLimits, run_or_split
from pipeline.model.engines.torch.shard import TensorParallel
from tests.model.engines.conftest import Lab

pytestmark = pytest.mark.process


def open_engine(lab: Lab, **options) -> TorchEngine:
    return TorchEngine(lab.folder, lab.family, device="cpu", slots=8, kv_tokens=2000, patches=64, **options)


def generate_and_count_features(engine: TorchEngine, requests) -> tuple[dict[str, str], int]:
    """Texts, and the most patches whose features were kept at a time."""
    kept, encode = [0], engine.encode_vision

    def encode_and_count() -> None:
        encode()
        parts = [part for features in engine.vision_cache.features_by_clip.values() for part in features]
        kept.append(4 * sum(part.shape[1] for part in parts))
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts)  # they hold no other's memory

    engine.encode_vision = encode_and_count
    texts = {reply.id: reply.text for reply in generate_replies(engine, requests)}
    return texts, max(kept)


def test_features_of_waiting_pictures_are_limited_and_answers_stay_equal(lab: Lab):
    """Two pictures go through the tower in one call."""
    engine = open_engine(lab, prefill_tokens=8)
    requests = [lab.build_request(str(number), lab.make_image(4, 2), "?", max_new_tokens=3) for number in range(12)]
    texts, most_kept = generate_and_count_features(engine, requests)
    assert texts == {request.id: engine.detokenizer.decode(lab.generate_alone(request)[0]) for request in requests}
    assert most_kept == memory.KEPT_CALLS * 64
    engine.close()


def test_a_request_with_more_pictures_than_the_limit_is_answered(one_lab: Lab):
    engine = open_engine(one_lab)
    pictures = [one_lab.make_image(4, 4 + number) for number in range(5)]
    requests = [
        one_lab.build_request("small", one_lab.make_image(4, 4), "?"),
        one_lab.build_request("large", *pictures),
    ]
    texts, most_kept = generate_and_count_features(engine, requests)
    assert texts == {request.id: engine.detokenizer.decode(one_lab.generate_alone(request)[0]) for request in requests}
    assert most_kept == 4 * sum(4 * (4 + number) for number in range(5))
    engine.close()


def test_a_prefill_step_takes_no_more_features_than_its_tokens(one_lab: Lab):
    engine = open_engine(one_lab)
    blocks = {"a": [torch.rand(1, 3, 2), torch.rand(1, 4, 2)], "b": [torch.rand(1, 5, 2)]}
    engine.vision_cache.features_by_clip = blocks
    whole = torch.cat([part for parts in blocks.values() for part in parts], 1)
    for first, end in ((0, 12), (2, 5), (3, 7), (4, 6), (6, 9), (11, 12)):
        parts = engine.vision_cache.select_features(("a", "b"), first, end)
        assert torch.equal(torch.cat(parts, 1), whole[:, first:end])
        assert {part.untyped_storage().data_ptr() for part in parts} <= {
            part.untyped_storage().data_ptr() for parts in blocks.values() for part in parts
        }
    engine.vision_cache.features_by_clip = {}
    engine.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}), ({"PYTORCH_ALLOC_CONF": "x"}, {})],
)
def test_the_allocator_expands_its_segments_unless_the_user_configures_it(one_lab, monkeypatch, given, expected):
    monkeypatch.setattr(os, "environ", {**given})

    def stop(*arguments: object, **options: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(replica, "load_model", stop)  # there is no GPU to load it on
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with pytest.raises(InterruptedError):
        TorchEngine(one_lab.folder, one_lab.family, device="cuda")
    assert os.environ == given | expected


def test_limits_are_handed_on_and_never_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits_file = LimitsFile("a replica")
    limits_file.save_halved(StepLimits(4096, 300, max_sequences=9))
    for before, after in (((4096, 300, 9), (2048, 150, 4)), ((100, 100, 2), (100, 100, 2))):
        limits = StepLimits(*before)
        LimitsFile("a replica").apply(limits)
        assert (limits.prefill_tokens, limits.patches, limits.max_sequences) == after
    other = StepLimits(4096, 300, 9)
    LimitsFile("another replica").apply(other)
    limits_file.path.write_text('{"prefill_tokens": null}')
    limits_file.apply(other)
    assert other == StepLimits(4096, 300, 9)
    limits_file.remove()
    assert list(tmp_path.iterdir()) == []


def test_closing_does_not_wait_for_ever_for_ranks_that_have_ended(monkeypatch):
    released = Event()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", released.wait)
    monkeypatch.setattr(collectives, "LEAVE_TIMEOUT_S", 0.05)
    closing = Thread(target=collectives.Collectives(TensorParallel(0, 2)).close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    released.set()


def test_each_layer_has_keys_and_values_of_its_own():
    """Compiled code updates a whole tensor in place, but copies the whole of one of which it updates a part."""
    cache = KVCache.allocate((3, 5, 2, 4), torch.float32, torch.device("cpu"))
    storages = {part.untyped_storage().data_ptr() for part in [*cache.keys, *cache.values]}
    assert len(storages) == 6


def test_what_follows_an_out_of_memory_waits_for_it():
    """The other half of a batch that was split would be done before it: slices of a clip would change places."""
    done, failures, limits = [], [], StepLimits(512, 512, max_sequences=8)

    def run(items):
        if len(items) > 2:
            raise ValueError("some item is bad")
        if limits.prefill_tokens > 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(items)

    for rest in ([1, 2, 3, 4], [1, 2, 3, 4]):
        run_or_split(rest, run, lambda item, error: failures.append(item), limits)
    assert (done, failures) == ([1, 2, 3, 4], [])


@pytest.mark.parametrize("one_lab", ["qwen3_5"], indirect=True)
def test_chunks_of_linear_attention_are_computed_in_groups_with_equal_results(one_lab: Lab, monkeypatch):
    """Ten rows of two to four chunks go through one pass."""
    logits, group_sizes = {}, {}
    for limit in (64, 3):
        monkeypatch.setattr(linear_state, "MAX_GROUP_CHUNKS", limit)
        engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=10, prefill_tokens=4000)
        run, pack = engine.step_runner, engine.step_runner.pack_batch

        def run_and_record(*batch, run=run, limit=limit):
            outputs = run(*batch)
            logits.setdefault(limit, []).append(outputs.logits)
            return outputs

        def pack_and_record(inputs, pack=pack, limit=limit):
            packed = pack(inputs)
            if packed.state_layout.chunks is not None:
                group_sizes[limit] = [len(group.is_padding) for group in packed.state_layout.chunks.groups]
            return packed

        engine.step_runner, run.pack_batch = run_and_record, pack_and_record
        requests = [one_lab.build_request(str(n), "a" * (80 + 15 * n), max_new_tokens=2) for n in range(10)]
        assert len(list(generate_replies(engine, requests))) == 10
        engine.step_runner = run
        engine.close()
    assert len(group_sizes[64]) == 1
    assert max(group_sizes[3]) == 3
    assert sum(group_sizes[3]) == group_sizes[64][0]
    for whole, grouped in zip(logits[64], logits[3], strict=True):
        torch.testing.assert_close(grouped, whole)
