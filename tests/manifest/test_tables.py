"""Delta, Iceberg and Lance tables as manifests: their rows, their versions, and what a new version adds to a job."""

from __future__ import annotations

import json
import shutil
import struct

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import DataScan
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType, StringType
from pyroaring import BitMap64

from pipeline.__main__ import main
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def read_manifest(workspace, manifest, rows_per_span=2):
    """All rows, by id."""
    job = Job.model_validate(workspace.build_job(input={"manifest": str(manifest)}))
    rows = []
    for file in list_manifest_files(job):
        source = file.open_source()
        for span in source.list_spans(rows_per_span):
            table = source.read_span(span)
            assert table.schema.equals(source.read_schema())
            rows += table.to_pylist()
    return {row["id"]: row for row in rows}


def open_catalog(workspace):
    catalog = SqlCatalog("test", uri=f"sqlite:///{workspace.folder}/catalog.db", warehouse=f"file://{workspace.folder}")
    catalog.create_namespace_if_not_exists("in")
    return catalog


def append_rows(workspace, kind, rows):
    """Returns the folder of the table."""
    folder, table = workspace.folder / f"in/{kind}", pa.Table.from_pylist(rows)
    folder.parent.mkdir(exist_ok=True)
    if kind == "delta":
        write_deltalake(folder, table, mode="append")
    elif kind == "lance":
        lance.write_dataset(table, folder, mode="append" if folder.exists() else "create")
    else:
        open_catalog(workspace).create_table_if_not_exists("in.iceberg", table.schema).append(table)
    return folder


@pytest.mark.process
@pytest.mark.parametrize("kind", ["delta", "iceberg", "lance"])
def test_a_new_version_adds_rows_and_old_ones_are_not_asked_again(workspace, kind):
    rows = workspace.draw_images(9)
    for row in rows:
        row["image"] = f"../../{row['image']}"  # relative to the table's folder
    folder = append_rows(workspace, kind, rows[:5])
    sections = {"input": {"manifest": str(folder), "roots": [str(workspace.folder)]}}
    assert workspace.run_job(**sections) == 0
    first_parts = workspace.list_parts()
    append_rows(workspace, kind, rows[5:])
    assert workspace.run_job(**sections) == 0
    assert workspace.list_answered_ids() == [row["id"] for row in rows]
    assert first_parts.items() <= workspace.list_parts().items()
    if kind == "delta":
        DeltaTable(folder).optimize.compact()
    elif kind == "lance":
        lance.dataset(folder).optimize.compact_files()
    parts = workspace.list_parts()
    assert workspace.run_job(**sections) == 0
    assert workspace.list_parts() == parts, "rows in other files are the same rows"


@pytest.mark.parametrize("kind", ["delta", "iceberg", "lance"])
def test_a_version_may_be_named(workspace, kind):
    folder = append_rows(workspace, kind, [{"id": "a"}, {"id": "b"}])
    version = {"delta": 0, "lance": 1}.get(kind)
    if kind == "iceberg":
        version = open_catalog(workspace).load_table("in.iceberg").current_snapshot().snapshot_id
    append_rows(workspace, kind, [{"id": "c"}])
    assert set(read_manifest(workspace, folder)) == {"a", "b", "c"}
    assert set(read_manifest(workspace, f"{folder}#version={version}")) == {"a", "b"}
    with pytest.raises(JobError, match=rf"in/{kind}: is not .* that can be read"):
        read_manifest(workspace, f"{folder}#version=7000")
    with pytest.raises(JobError, match=rf"in/{kind}: a {kind} table has no split; it has version"):
        read_manifest(workspace, f"{folder}#split=train")


def test_a_version_of_what_is_no_table_is_refused(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    with pytest.raises(JobError, match=r"m\.parquet is no table, so it has no #version=3"):
        read_manifest(workspace, f"{workspace.folder}/m.parquet#version=3")


def test_delta_partitions_new_columns_and_deleted_rows(workspace):
    folder = workspace.folder / "table"
    first = pa.table({"id": ["a", "b", "c"], "day": ["mo ½/1", None, "tu"]})
    write_deltalake(folder, first, partition_by=["day"])
    more = pa.table({"id": ["d"], "day": ["tu"], "pages": pa.array([4], pa.int64())})
    write_deltalake(folder, more, mode="append", schema_mode="merge")
    rows = read_manifest(workspace, folder)
    assert {row["id"]: (row["day"], row["pages"]) for row in rows.values()} == {
        "a": ("mo ½/1", None),
        "b": (None, None),
        "c": ("tu", None),
        "d": ("tu", 4),
    }
    DeltaTable(folder).delete("id = 'c'")
    assert set(read_manifest(workspace, folder)) == {"a", "b", "d"}


def encode_z85(data):
    words = [int.from_bytes(data[start : start + 4], "big") for start in range(0, len(data), 4)]
    return "".join(Z85[word // 85**power % 85] for word in words for power in (4, 3, 2, 1, 0))


def test_rows_that_a_deletion_vector_deletes_are_left_out(workspace):
    folder = workspace.folder / "table"
    write_deltalake(folder, pa.table({"id": [str(number) for number in range(10)]}))
    [file] = folder.glob("*.parquet")
    vector = struct.pack("<i", 1681511377) + BitMap64([0, 3, 4, 9]).serialize()
    vector += bytes(-len(vector) % 4)
    deletion = {"storageType": "i", "pathOrInlineDv": encode_z85(vector), "sizeInBytes": len(vector), "cardinality": 4}
    size = file.stat().st_size
    common = {"path": file.name, "dataChange": True}
    actions = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7}},
        {"remove": {**common, "deletionTimestamp": 1}},
        {
            "add": {
                **common,
                "partitionValues": {},
                "size": size,
                "modificationTime": 1,
                "deletionVector": deletion,
                "stats": '{"numRecords": 10}',
            }
        },
    ]
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    actions[0]["protocol"].update(features)
    (folder / f"_delta_log/{1:020}.json").write_text("\n".join(map(json.dumps, actions)))
    assert list(read_manifest(workspace, folder)) == list("125678")
    assert list(read_manifest(workspace, f"{folder}#version=0")) == list("0123456789")


def test_a_delta_table_with_other_names_in_its_files_is_refused(workspace):
    folder = workspace.folder / "table"
    write_deltalake(folder, pa.table({"id": ["a"]}))
    log = folder / f"_delta_log/{0:020}.json"
    log.write_text(log.read_text().replace('"configuration":{}', '"configuration":{"delta.columnMapping.mode":"name"}'))
    with pytest.raises(JobError, match=r"table: has columns under other names in its files \(delta.columnMapping.mode"):
        read_manifest(workspace, folder)


def test_iceberg_columns_that_were_renamed_added_and_widened(workspace):
    catalog = open_catalog(workspace)
    table = catalog.create_table("in.t", pa.schema([("id", pa.string()), ("old", pa.string()), ("n", pa.int32())]))
    table.append(pa.table({"id": ["a"], "old": ["x"], "n": pa.array([1], pa.int32())}))
    with table.update_schema() as update:
        update.rename_column("old", "new")
        update.update_column("n", LongType())
    with table.update_schema() as update:
        update.add_column("old", StringType())
    table.append(pa.table({"id": ["b"], "new": ["y"], "n": [2**40], "old": ["z"]}))
    assert read_manifest(workspace, workspace.folder / "in/t") == {
        "a": {"id": "a", "new": "x", "n": 1, "old": None},
        "b": {"id": "b", "new": "y", "n": 2**40, "old": "z"},
    }
    assert read_manifest(workspace, table.metadata_location)["b"]["old"] == "z"


def test_iceberg_partitions_that_their_files_lack(workspace):
    """As tables have them that were made from Hive's."""
    catalog, schema = open_catalog(workspace), pa.schema([("id", pa.string()), ("day", pa.string())])
    table = catalog.create_table("in.t", schema)
    with table.update_spec() as update:
        update.add_field("day", IdentityTransform())
    table.append(pa.table({"id": ["a"], "day": ["mo"]}))
    [file] = (workspace.folder / "in/t/data").rglob("*.parquet")
    pq.write_table(pq.read_table(file, partitioning=None).select(["id"]), file)
    assert read_manifest(workspace, workspace.folder / "in/t") == {"a": {"id": "a", "day": "mo"}}


def test_iceberg_files_of_deletes_are_refused(workspace, monkeypatch):
    folder = append_rows(workspace, "iceberg", [{"id": "a"}])
    plan_files = DataScan.plan_files

    def plan_with_deletes(scan):
        for task in plan_files(scan):
            task.delete_files = {task.file}
            yield task

    monkeypatch.setattr(DataScan, "plan_files", plan_with_deletes)
    with pytest.raises(JobError, match="has rows that are deleted by files of deletes; merge them"):
        read_manifest(workspace, folder)


def test_a_table_of_a_catalog(workspace, monkeypatch):
    append_rows(workspace, "iceberg", [{"id": "a"}])
    monkeypatch.setattr("pyiceberg.catalog.load_catalog", {"lake": open_catalog(workspace)}.__getitem__)
    assert set(read_manifest(workspace, "iceberg://lake/in.iceberg")) == {"a"}
    with pytest.raises(JobError, match=r"iceberg://lake/in\.other: "):
        read_manifest(workspace, "iceberg://lake/in.other")


def test_lance_rows_that_were_deleted_are_left_out(workspace):
    folder = append_rows(workspace, "lance", [{"id": str(number)} for number in range(7)])
    lance.dataset(folder).delete("id = '1' OR id = '4'")
    assert list(read_manifest(workspace, folder)) == list("02356")


def test_a_table_cannot_name_files_elsewhere(workspace):
    folder = append_rows(workspace, "iceberg", [{"id": "a"}])
    shutil.copytree(folder, workspace.folder / "copy")  # whose metadata name the files of the first
    with pytest.raises(JobError, match=r"copy: its data file .*in/iceberg/data.* lies outside of its folder"):
        read_manifest(workspace, workspace.folder / "copy")


@pytest.mark.process
def test_the_command_line_reads_a_table(workspace, capsys):
    folder = append_rows(workspace, "delta", [{"id": "a", "image": str(workspace.folder / "no.png"), "hint": "h"}])
    job = str(workspace.write_job_file(input={"manifest": str(folder)}))
    assert main(["run", job, "--local"]) == 3
    assert main(["check", str(workspace.write_job_file(input={"manifest": f"{folder}#version=x"}))]) == 2
    assert "is not a Delta table that can be read" in capsys.readouterr().err
