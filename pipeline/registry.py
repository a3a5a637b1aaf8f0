"""Every pluggable class, by the name that job files or file contents use. A class is imported when it is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from pipeline.errors import JobError

SOURCES = {  # by the kind of a manifest file
    "parquet": "pipeline.manifest.sources.parquet:ParquetSource",
    "jsonl": "pipeline.manifest.sources.jsonl:JsonlSource",
    "csv": "pipeline.manifest.sources.csv:CsvSource",
    "webdataset": "pipeline.manifest.sources.webdataset:WebDatasetSource",
    "delta": "pipeline.manifest.sources.delta:DeltaSource",
    "iceberg": "pipeline.manifest.sources.iceberg:IcebergSource",
    "lance": "pipeline.manifest.sources.lance:LanceSource",
    "hub_dataset": "pipeline.manifest.sources.hub_dataset:HubDatasetSource",
    "folder": "pipeline.manifest.sources.folder:FolderSource",
    "linked_folder": "pipeline.manifest.sources.folder:LinkedFolderSource",
}
MEDIA_KINDS = {  # by what the first bytes of a file say
    "image": "pipeline.media.kinds.image:ImageKind",
    "video": "pipeline.media.kinds.video:VideoKind",
    "pdf": "pipeline.media.kinds.pdf:PdfKind",
}
STEPS = {  # by the names in `media.steps`
    "crop": "pipeline.media.steps.crop:Crop",
}
FAMILIES = {  # by `model.family`, or by `model_type` in a checkpoint's config.json
    "qwen2_vl": "pipeline.model.families.qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "pipeline.model.families.qwen2_5_vl:Qwen25VL",
    "qwen3_vl": "pipeline.model.families.qwen3_vl:Qwen3VL",
    "qwen3_vl_moe": "pipeline.model.families.qwen3_vl:Qwen3VLMoe",
    "qwen3_5": "pipeline.model.families.qwen3_5:Qwen35",
    "qwen3_5_moe": "pipeline.model.families.qwen3_5:Qwen35Moe",
    "cosmos3_omni": "pipeline.model.families.qwen3_vl:Cosmos3Omni",
    "generic": "pipeline.model.families.generic:GenericFamily",
}
ENGINES = {  # by `engine.kind`
    "torch": "pipeline.model.engines.torch:TorchEngineType",
    "scripted": "pipeline.model.engines.scripted:ScriptedEngineType",
    "vllm": "pipeline.model.engines.vllm:VllmEngineType",
    "http": "pipeline.model.engines.http:HttpEngineType",
}
EXPORTERS = {  # by `export --to`
    "table": "pipeline.export.formats.table:TableExporter",
    "jsonl": "pipeline.export.formats.json_lines:JsonLinesExporter",
    "csv": "pipeline.export.formats.csv_table:CsvExporter",
    "huggingface": "pipeline.export.formats.huggingface:HuggingFaceExporter",
    "webdataset": "pipeline.export.formats.tar_shards:WebDatasetExporter",
    "sharegpt": "pipeline.export.formats.sharegpt:ShareGptExporter",
    "delta": "pipeline.export.formats.delta_table:DeltaExporter",
    "iceberg": "pipeline.export.formats.iceberg_table:IcebergExporter",
    "lance": "pipeline.export.formats.lance_table:LanceExporter",
    "coco": "pipeline.export.formats.coco:CocoExporter",
    "yolo": "pipeline.export.formats.yolo:YoloExporter",
    "voc": "pipeline.export.formats.voc:VocExporter",
    "fiftyone": "pipeline.export.formats.fiftyone:FiftyoneExporter",
    "label-studio": "pipeline.export.formats.label_studio:LabelStudioExporter",
}
TRUTHS = {  # by the format of a file that `score --truth` reads
    "table": "pipeline.truth.truth_table:TruthTableReader",
    "coco": "pipeline.truth.coco_truth:CocoTruthReader",
    "label-studio": "pipeline.truth.label_studio_truth:LabelStudioTruthReader",
    "yolo": "pipeline.truth.yolo_truth:YoloTruthReader",
    "cvat": "pipeline.truth.cvat_truth:CvatTruthReader",
}
SCHEMAS = {  # by `answer.schema`
    "caption": "schemas.caption:Caption",
    "boxes": "schemas.boxes:Boxes",
    "points": "schemas.points:Points",
    "events": "schemas.events:Events",
    "invoice": "schemas.invoice:Invoice",
    "document": "schemas.document:Document",
    "chart": "schemas.chart:Chart",
    "interface": "schemas.interface:Interface",
    "product": "schemas.product:Product",
}
RUNNERS = {  # by the command line
    "local": "pipeline.run.local:LocalRunner",
    "ray": "pipeline.cluster.ray_runner:RayRunner",
}


def load_registered(table: Mapping[str, str], name: str, label: str) -> Any:
    """Import the class that a table names; JobError lists the known names. `label` says where the name comes from."""
    if name not in table:
        raise JobError(f"{label} {name!r} is not known; known: {', '.join(table)}{format_suggestion(name, table)}")
    return import_object(table[name])


def import_object(location: str) -> Any:
    """What `module:attribute` names."""
    module, _, attribute = location.partition(":")
    return getattr(import_module(module), attribute)


def import_extra(module: str, extra: str) -> Any:
    """A module of a package that only some jobs need. JobError names the extra that has it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise JobError(f"this needs the package {error.name}: pip install 'vlbatch[{extra}]'") from error


def format_suggestion(name: str, names: Mapping[str, Any]) -> str:
    """A hint for a likely typo, or an empty text."""
    matches = get_close_matches(name, names, n=1)
    return f". Did you mean {matches[0]!r}?" if matches else ""
