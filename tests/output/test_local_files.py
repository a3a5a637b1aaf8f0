"""A file is created once and is seen whole."""

from concurrent.futures import ThreadPoolExecutor

from pipeline.output import local_files


def allow() -> None:
    """No other run has taken over."""


def test_a_file_that_exists_is_not_created_again(tmp_path):
    path = str(tmp_path / "data/part.parquet")
    assert local_files.create_file(path, b"first", allow)
    assert not local_files.create_file(path, b"second", allow)
    assert [(file.name, file.read_bytes()) for file in (tmp_path / "data").iterdir()] == [("part.parquet", b"first")]


def test_of_many_writers_one_creates_the_file(tmp_path):
    path = tmp_path / "part.parquet"
    contents = [bytes([number]) * 100_000 for number in range(16)]
    with ThreadPoolExecutor(len(contents)) as pool:
        created = list(pool.map(lambda content: local_files.create_file(str(path), content, allow), contents))
    assert [path.read_bytes()] == [content for content, is_created in zip(contents, created, strict=True) if is_created]
    assert list(tmp_path.iterdir()) == [path]
