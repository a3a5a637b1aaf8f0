"""A plan predicts what a run then does."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import av
import numpy as np
import PIL.Image
import pytest

from pipeline.__main__ import main
from pipeline.fetch.header_fetcher import PREFIX_BYTES, HeaderReader
from pipeline.inspect.plan import measured, plan_job, plan_text, to_json_dict
from pipeline.inspect.plan.gpus import GPUS, TokenLoad, estimate_gpu
from pipeline.inspect.plan.simulation import count_requests
from pipeline.job.spec import Job
from pipeline.model.engines.torch.model_size import ModelSize

pytestmark = pytest.mark.process

HUGE = 20_000_000


def write_noise_image(width, height, kind, path, **how):
    PIL.Image.effect_noise((width, height), 60).convert("RGB").save(path, kind, **how)


def write_video(path, frames, size=(96, 64)):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height = size
        for at in range(frames):
            picture = np.full((size[1], size[0], 3), at * 9 % 256, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


@pytest.fixture
def mixed_job(workspace):
    """A job over media of all kinds. The headers of some show that they will fail."""
    pics = workspace.folder / "pics"
    rows = workspace.draw_images(6)
    write_noise_image(1600, 1200, "JPEG", pics / "large.jpg", quality=95)
    write_noise_image(900, 1400, "PNG", pics / "large.png")
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    write_noise_image(800, 300, "JPEG", pics / "turned.jpg", exif=turned)
    write_noise_image(500, 300, "WEBP", pics / "a.webp", lossless=True)
    pages = [PIL.Image.new("RGB", (200, 300 + 50 * at)) for at in range(3)]
    pages[0].save(pics / "pages.tiff", save_all=True, append_images=pages[1:])
    write_video(pics / "a.mp4", 33)
    write_noise_image(5000, 4100, "JPEG", pics / "wide.jpg", quality=10)
    (pics / "text.png").write_bytes(b"no picture at all")
    (pics / "thin.png").write_bytes(b"")
    write_noise_image(3000, 10, "PNG", pics / "strip.png")
    names = [
        "large.jpg",
        "large.png",
        "turned.jpg",
        "a.webp",
        "pages.tiff",
        "a.mp4",
        "wide.jpg",
        "text.png",
        "thin.png",
    ]
    names += ["strip.png", "gone.png"]
    rows += [{"id": name, "image": f"pics/{name}", "hint": "h" * at} for at, name in enumerate(names)]
    workspace.write_manifest(rows)
    return {"limits": {"error_rate": 1, "image": {"pixels": HUGE}}, "prompt": {"user": "{hint}: what is it?"}}


def test_predicted_tokens_and_failures_are_those_of_the_run(workspace, mixed_job):
    said = plan_job(Job.model_validate(workspace.build_job(**mixed_job)), sample_rows=None)
    assert workspace.run_job(**mixed_job) == 3
    data, errors = workspace.read_answers(), workspace.read_dead_letters()
    assert sum(tokens * rows for tokens, rows in said.survey.vision.items()) == sum(r["tokens"]["vision"] for r in data)
    assert said.load.prompt == sum(row["tokens"]["prompt"] for row in data)
    assert sorted(said.survey.vision.elements()) == sorted(row["tokens"]["vision"] for row in data)
    assert dict(said.survey.failures) == {
        "decode/too_large": 1,
        "decode/unknown_format": 1,
        "decode/empty": 1,
        "prompt/size": 1,
        "fetch/not_found": 1,
    }
    kinds = [f"{row['stage']}/{row['kind']}" for row in errors]
    assert sorted(said.survey.failures.elements()) == sorted(kinds)
    assert said.survey.media == {"image": 13, "video": 1}


def test_only_the_beginning_of_a_large_image_is_read(workspace, mixed_job, monkeypatch):
    wholes = []
    monkeypatch.setattr(HeaderReader, "fetch_whole", lambda self, source: wholes.append(source))
    job = Job.model_validate(workspace.build_job(**mixed_job))
    big = [workspace.folder / f"pics/{name}" for name in ("large.jpg", "large.png")]
    assert all(path.stat().st_size > 3 * PREFIX_BYTES for path in big)
    workspace.write_manifest([{"id": path.name, "image": str(path), "hint": ""} for path in big])
    assert plan_job(job, sample_rows=None).survey.answerable_rows == 2
    assert wholes == []


def test_a_file_is_read_further_if_its_beginning_is_not_enough(workspace):
    (workspace.folder / "pics").mkdir()
    exif = PIL.Image.Exif()
    exif[0x010E] = "d" * 60_000
    icc = b"\0" * 120_000  # two markers of colour profile before the size
    write_noise_image(700, 500, "JPEG", workspace.folder / "pics/late.jpg", exif=exif, icc_profile=icc)
    workspace.write_manifest([{"id": "late", "image": "pics/late.jpg", "hint": ""}])
    said = plan_job(Job.model_validate(workspace.build_job()), sample_rows=None)
    assert said.survey.largest == {"image": (700, 500)}


def test_a_sample_is_scaled_to_all_rows(workspace):
    workspace.write_manifest(workspace.draw_images(60))
    said = plan_job(Job.model_validate(workspace.build_job()), sample_rows=20)
    assert said.survey.rows == 30  # two of each of fifteen chunks
    assert said.rows_left == 60
    assert said.load.rows == 60
    assert said.load.vision == 2 * sum(tokens * rows for tokens, rows in said.survey.vision.items())


def test_answered_rows_are_not_planned_and_give_the_expected_answer_length(workspace):
    workspace.write_manifest(workspace.draw_images(12))
    workspace.run_job(row_limit=8, engine={"default": "one two three"})
    said = plan_job(Job.model_validate(workspace.build_job(engine={"default": "one two three"})), sample_rows=None)
    assert (said.rows, said.rows_left, said.survey.rows) == (12, 4, 4)
    assert (said.answers_known, said.answer_tokens) == (8, 3.0)
    workspace.run_job(engine={"default": "one two three"})
    said = plan_job(Job.model_validate(workspace.build_job(engine={"default": "one two three"})), sample_rows=None)
    assert list(plan_text.format_plan(said)) == ["t: 12 rows, 12 done before, 0 to do", "nothing is left to plan"]


def test_advice_says_how_many_tokens_smaller_images_save(workspace):
    (workspace.folder / "pics").mkdir()
    for at in range(4):
        write_noise_image(*((1600, 1600) if at else (200, 200)), "JPEG", workspace.folder / f"pics/{at}.jpg")
    workspace.write_manifest([{"id": str(at), "image": f"pics/{at}.jpg", "hint": ""} for at in range(4)])
    said = plan_job(Job.model_validate(workspace.build_job(media={"max_pixels": 1_000_000})), sample_rows=None)
    first = said.advice[0]
    assert first.key == "media.max_pixels"
    assert first.changes == 0.75
    smaller = plan_job(Job.model_validate(workspace.build_job(media={"max_pixels": first.value})), sample_rows=None)
    assert 1 - smaller.load.vision / said.load.vision == pytest.approx(first.saves)


def test_a_model_does_not_fit_if_the_longest_row_has_no_room():
    seven = ModelSize(
        700_000_000, 7_600_000_000, 7_600_000_000, 16_600_000_000, 15_200_000_000, 57344, 2_700_000_000, 4
    )
    load = TokenLoad(rows=1000, vision=1e6, prompt=1.1e6, output=1e5, longest=60_000)
    assert estimate_gpu("L4", load, seven).gpu_hours is None
    assert estimate_gpu("L4", load, seven, gpu_count=2).gpu_hours is not None
    keeping = replace(seven, feature_bytes=57344 * 1000)  # of the other GPU's pictures, on both
    assert seven.choose_sizes(24e9, 2)[1] - keeping.choose_sizes(24e9, 2)[1] == 2000
    costs = [estimate_gpu(name, load, seven, price_per_hour=2.0) for name in GPUS]
    assert all(each.cost == 2 * each.gpu_hours for each in costs if each.gpu_hours)
    assert all(each.least_cost == 2 * each.least_gpu_hours for each in costs if each.gpu_hours)
    assert not any(each.measured for each in costs)


SEVEN = {
    "vision_parameters": 700_000_000,
    "text_parameters": 7_600_000_000,
    "active_parameters": 7_600_000_000,
    "weights_bytes": 16_600_000_000,
    "text_bytes": 15_200_000_000,
    "token_bytes": 57344,
    "step_bytes": 2_700_000_000,
    "patches_per_token": 4,
}
CAPTIONS = {
    "engine": "torch",
    "card": "NVIDIA H100 80GB HBM3",
    "memory_gib": 79.1,
    "family": "qwen2_5_vl",
    "mix": "caption",
    "rows": 128,
    "rows_at_once": 128,
    "vision_tokens": 1296.0,
    "prompt_tokens": 1340.0,
    "output_tokens": 100.0,
    "rows_per_s": 8.0,
    "model": SEVEN,
    "versions": {"torch": "2.11.0"},
    "date": "2026-11-29",
}


def build_load(rows: int, *, prompt: float = 1340.0, output: float = 100.0) -> TokenLoad:
    return TokenLoad(rows, rows * 1296.0, rows * prompt, rows * output, 1440)


def test_a_load_like_the_measured_one_takes_the_measured_time():
    seven, speed = ModelSize(**SEVEN), measured.parse_speed(CAPTIONS)
    said = estimate_gpu("H100", build_load(128), seven, speeds=[speed])
    assert said.measured
    assert said.gpu_hours == said.least_gpu_hours == pytest.approx(128 / 8.0 / 3600)
    longer = estimate_gpu("H100", build_load(128, output=200.0), seven, speeds=[speed])
    assert longer.measured
    assert said.gpu_hours < longer.gpu_hours < 2 * said.gpu_hours


@pytest.mark.parametrize(
    ("gpu", "changes", "load"),
    [
        ("A100-80GB", {}, build_load(128)),
        ("H100", {"memory_gib": 93.1}, build_load(128)),
        ("H100", {"model": SEVEN | {"text_parameters": 3_000_000_000, "text_bytes": 6_000_000_000}}, build_load(128)),
        ("H100", {"model": SEVEN | {"text_bytes": 4_500_000_000}}, build_load(128)),
        ("H100", {}, build_load(128, prompt=20_000.0)),
        ("H100", {}, build_load(128, output=800.0)),
        ("H100", {}, build_load(128, output=0.0)),
    ],
    ids=["card", "memory", "size", "precision", "prompts", "answers", "no answers"],
)
def test_an_unlike_measurement_is_not_used_and_the_estimate_is_a_range(gpu, changes, load):
    seven = ModelSize(**SEVEN)
    said = estimate_gpu(gpu, load, seven, speeds=[measured.parse_speed(CAPTIONS | changes)])
    assert not said.measured
    assert said == estimate_gpu(gpu, load, seven)
    assert 1.9 < said.gpu_hours / said.least_gpu_hours < 3.4


def test_the_nearest_of_several_measurements_is_used():
    mixes = [("detect", 1200.0, 150.0), ("invoice", 2400.0, 400.0), ("caption", 1340.0, 100.0)]
    speeds = [
        measured.parse_speed(CAPTIONS | {"mix": mix, "prompt_tokens": prompt, "output_tokens": output})
        for mix, prompt, output in mixes
    ]
    for prompt, output, mix in ((1300.0, 90.0, "caption"), (2000.0, 300.0, "invoice"), (1300.0, 170.0, "detect")):
        nearest = measured.find_nearest(speeds, ModelSize(**SEVEN), prompt_tokens=prompt, output_tokens=output)
        assert nearest.mix == mix


def test_a_plan_says_what_is_measured_and_what_is_estimated(workspace, monkeypatch, tmp_path, capsys):
    """The same job without a measured row and with one of its model on an H100."""
    workspace.write_manifest(workspace.draw_images(6))
    job = Job.model_validate(workspace.build_job(engine={"kind": "torch"}))
    before = plan_job(job, gpu_names=["H100", "L4"], answer_tokens=30)
    table = [line for line in plan_text.format_plan(before) if line.startswith("  ")]
    assert any("* estimated: prompts at 15% to 50% of the peak" in line for line in table)
    assert [offer.measured for offer in before.offers] == [False, False]
    prompt, row = before.load.prompt / before.load.rows, CAPTIONS | {"model": asdict(before.model)}
    row |= {"family": "qwen2_5_vl", "prompt_tokens": prompt, "vision_tokens": before.load.vision / 6}
    path = tmp_path / "measured.json"
    path.write_text(json.dumps([row | {"engine": "vllm"}, row | {"family": "qwen3_vl"}]))
    monkeypatch.setattr(measured.read_table, "__defaults__", (path,))
    assert plan_job(job, gpu_names=["H100"], answer_tokens=30).offers == before.offers[:1]
    path.write_text(json.dumps([row]))
    after = plan_job(job, gpu_names=["H100", "L4"], answer_tokens=30)
    assert [offer.measured for offer in after.offers] == [True, False]
    lines = list(plan_text.format_plan(after))
    (with_row,) = (line for line in lines if line.startswith("  H100"))
    assert "*" not in with_row
    assert any("without *: from the measured speed" in line for line in lines)
    values = to_json_dict(after)["offers"][0]
    assert values["least_gpu_hours"] == values["gpu_hours"] > 0


def test_requests_are_shown_where_the_store_counts_them(workspace):
    workspace.write_manifest(workspace.draw_images(2))
    on_disk = plan_job(Job.model_validate(workspace.build_job()))
    assert not any(line.startswith("requests") for line in plan_text.format_plan(on_disk))
    in_store = replace(on_disk, requests=count_requests(1e6 / 100))
    counts = "10,000 writes and 20,000 reads of the output for a million rows"
    assert f"requests        {counts}, 0.06 USD at the list prices of S3" in plan_text.format_plan(in_store)


def test_the_table_of_measured_speeds_can_be_read():
    assert all(speed.rows_per_s > 0 for speed in measured.read_table())


def test_the_command_prints_text_or_json(workspace, mixed_job, capsys):
    job = str(workspace.write_job_file(**mixed_job))
    assert main(["plan", job, "--all", "--gpu", "H100", "--price", "2"]) == 0
    said = capsys.readouterr()
    assert "t: 17 rows, 17 to do" in said.out
    assert "decode/too_large: " in said.out
    assert "raise limits.image.pixels" in said.out
    assert said.err == ""
    assert main(["plan", job, "--all", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["survey"]["failures"]["fetch/not_found"] == 1
    assert values["load"]["vision"] == values["survey"]["vision_tokens"] > 0
    assert main(["plan", job, "--gpu", "H10"]) == 2
    assert "Did you mean 'H100'?" in capsys.readouterr().err


def test_a_plan_of_failing_rows_lists_reasons_and_no_gpus(workspace):
    workspace.write_manifest(workspace.write_broken_images(2))
    said = list(plan_text.format_plan(plan_job(Job.model_validate(workspace.build_job()))))
    assert said[:3] == ["t: 2 rows, 2 to do", "headers read: all of them", ""]
    assert said[3] == "rows that will fail: 2, 100.0%"
    assert len(said) == 5


def test_a_job_that_writes_nothing_has_no_answer_tokens(workspace):
    workspace.write_manifest(workspace.draw_images(3))
    sections = {"engine": {"kind": "torch"}, "workers": {"generate": {"gpus": 0}}}
    plans = {}
    for source in ("language", "vision"):
        answer = {"embedding": {"from": source}}
        job = Job.model_validate(workspace.build_job(**sections, prompt={"user": None}, answer=answer))
        plans[source] = plan_job(job)
        assert plans[source].load.output == 0
        assert "answers         none is written" in "\n".join(plan_text.format_plan(plans[source]))
        assert plans[source].offers[0].gpu_hours > 0
    assert plans["vision"].model.text_parameters == 0 < plans["language"].model.text_parameters
    assert plans["vision"].model.weights_bytes < plans["language"].model.weights_bytes
    assert plans["vision"].offers[0].gpu_hours < plans["language"].offers[0].gpu_hours
