"""What a user would write instead: the same pictures, question and checkpoint give a Parquet file of texts.

    python tests/bench/peers.py ours|one|ray|daft|bare MANIFEST OUT        (started by tests/bench/alternatives.py)

Each side follows its documentation: no retries, no limits, batches of BATCH with padding on the left. After every batch
the time and its row count go to OUT/marks, from which the rates of all sides are computed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCH = 16
MAX_NEW_TOKENS = 96
QUESTION = (  # the question that the built-in model was trained on
    "Describe what there is to see.\nAnswer with JSON only. Its fields:\ncaption: text, one or two plain sentences\n"
    "tags: list of text, things, places and actions, in lower case\nlanguage: text, of the caption, as ISO 639-1\n"
    'Example:\n{"caption":"A red bus waits at a stop in the rain.","tags":["bus","rain"],"language":"en"}'
)
WEIGHTS = Path(__file__).parents[2] / "pipeline" / "builtin" / "weights" / "tiny"


def load_processor() -> Any:
    """The processor of transformers. Declares two operators that torchvision lacks beside a CPU build of torch."""
    import torch
    import transformers

    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor.from_pretrained(WEIGHTS),
        tokenizer=transformers.AutoTokenizer.from_pretrained(WEIGHTS, padding_side="left"),
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )
    processor.declared = declared  # the library ends with the last reference to it
    return processor


class Captioner:
    """A processor and a model, as the documentation shows them."""

    def __init__(self, marks: str):
        import transformers

        self.marks = marks
        self.processor = load_processor()
        kind = transformers.Qwen2_5_VLForConditionalGeneration
        self.model = kind.from_pretrained(WEIGHTS, dtype="float32").eval()

    def texts(self, images: Sequence[Any]) -> list[str]:
        import torch

        parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        prompt = self.processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(text=[prompt] * len(images), images=list(images), padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers = out[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        with open(self.marks, "a") as file:
            file.write(f"{time.time()} {len(texts)}\n")
        return texts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        batch["text"] = self.texts([Image.fromarray(image) for image in batch["image"]])
        del batch["image"]
        return batch


def run_ours(manifest: Path, out: Path) -> None:
    """Our side: only the job file."""
    from pipeline.cluster.ray_session import connect_to_ray
    from pipeline.errors import ExitCode
    from pipeline.job.spec import Job
    from pipeline.run import driver

    job_spec = {
        "name": "ours",
        "input": {"manifest": str(manifest), "id": "id", "media": "media"},
        "prompt": {"user": QUESTION.replace("{", "{{").replace("}", "}}")},
        "model": {"weights": "builtin:tiny"},
        "answer": {"max_new_tokens": MAX_NEW_TOKENS},
        "output": {"path": str(out), "chunk_rows": 2 * BATCH},
    }
    with connect_to_ray():
        code = driver.run_job(Job.model_validate(job_spec))
        write_store_bytes(out)
    assert code in (ExitCode.ALL_ANSWERED, ExitCode.FAILED_ROWS)


def run_one_by_one(manifest: Path, out: Path) -> None:
    """transformers in a loop, one picture at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    captioner, rows = Captioner(f"{out}/marks"), pq.read_table(manifest).to_pylist()
    for row in rows:
        image = Image.open(manifest.parent / row["media"]).convert("RGB")
        row["text"] = captioner.texts([image])[0]
    pq.write_table(pa.Table.from_pylist(rows), out / "out.parquet")


def run_ray_data(manifest: Path, out: Path) -> None:
    """Ray Data: tasks load pictures, an actor holds processor and model, tasks write Parquet."""
    import numpy as np
    import ray
    import ray.data
    from PIL import Image

    def load(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["id"], "image": np.array(Image.open(manifest.parent / row["media"]).convert("RGB"))}

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    dataset = (
        ray.data.read_parquet(str(manifest))
        .repartition(target_num_rows_per_block=2 * BATCH)
        .map(load)
        .map_batches(
            Captioner,
            fn_constructor_args=(f"{out}/marks",),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
    )
    try:
        dataset.write_parquet(str(out))
    finally:
        write_store_bytes(out)


def run_idle_ray_data(manifest: Path, out: Path) -> None:
    """Ray Data with an actor that does nothing: the memory that everything on Ray Data needs."""
    import ray
    import ray.data

    class Idle:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(2)
            return batch

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.range(2).map_batches(Idle, compute=ray.data.ActorPoolStrategy(size=1)).take_all()


def write_store_bytes(out: Path) -> None:
    """Record the bytes that went through the object store."""
    from tests.bench.harness import get_store_statistics

    (out / "store_bytes").write_text(str(get_store_statistics().cumulative_created_bytes))


def run_daft(manifest: Path, out: Path) -> None:
    """Daft: expressions download and decode, a class is the batch UDF."""
    import daft
    from daft import col

    @daft.cls(max_concurrency=1)
    class Caption:
        def __init__(self) -> None:
            self.captioner = Captioner(f"{out}/marks")

        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=BATCH)
        def texts(self, images: Any) -> list[str]:
            from PIL import Image

            return self.captioner.texts([Image.fromarray(image) for image in images.to_pylist()])

    paths = daft.lit(f"{manifest.parent}/") + col("media")
    frame = daft.read_parquet(str(manifest)).with_column("image", paths.download().decode_image(mode="RGB"))
    frame.with_column("text", Caption().texts(col("image"))).select("id", "text").write_parquet(str(out))


if __name__ == "__main__":
    side, manifest, out = sys.argv[1:]
    sides = {"ours": run_ours, "one": run_one_by_one, "ray": run_ray_data, "daft": run_daft, "bare": run_idle_ray_data}
    sides[side](Path(manifest), Path(out))
