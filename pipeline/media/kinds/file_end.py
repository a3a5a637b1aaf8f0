"""Tells whether a video's file ends before its container says, by the lengths that containers declare.

FFmpeg plays such a file as a shorter video. Streams and live recordings declare no length: of these, only an end amid
an element can be seen. MP4 is not looked at here, because it lists its frames.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

EBML_HEADER, MATROSKA_SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
FLV_TAG_TYPES = (8, 9, 18)  # audio, video, data
FLV_SIZE_KEY = b"\0\x08filesize\0"  # in the first tag, before a number
UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)  # of a file that was written without seeking
MAX_ELEMENTS = 1_000_000  # that are walked through: a stranger may write a file of nothing else
LONGEST_FILE = 1 << 40  # a seek beyond what the file system can hold would fail


class FileEnd(NamedTuple):
    declared: int = 0  # where the file, or the part of it that holds frames, should end; 0: it does not say
    is_amid_element: bool = False


class MatroskaElement(NamedTuple):
    name: bytes
    start: int  # of its content
    end: int | None  # None: it lasts until another element begins that it cannot hold


def find_file_end(file: BinaryIO) -> FileEnd:
    file_size = file.seek(0, 2)
    head = read_at(file, 0, 512)
    for signature, find_end in END_FINDERS.items():
        if head.startswith(signature):
            return find_end(file, file_size)
    packet_size = 188 if head[::188][:2] == b"GG" else 192 if head[4::192][:2] == b"GG" else 1  # of MPEG-TS
    return FileEnd(is_amid_element=file_size % packet_size != 0)


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(min(offset, LONGEST_FILE))
    return file.read(size)


def read_numbers(file: BinaryIO, offset: int, layout: str) -> tuple[int, ...]:
    """Zeros where the file has ended."""
    size = struct.calcsize(layout)
    return struct.unpack(layout, read_at(file, offset, size).ljust(size, b"\0"))


def find_matroska_end(file: BinaryIO, file_size: int) -> FileEnd:
    """The segment declares its length. A live recording does not, and its last block shows whether it is whole."""
    offset = 0
    for _ in range(MAX_ELEMENTS):
        element = read_matroska_element(file, offset)
        if element is None:
            break
        if element.name == MATROSKA_SEGMENT and element.end is not None:
            return FileEnd(element.end)
        offset = element.start if element.end is None else element.end
    return FileEnd(is_amid_element=offset > file_size or 0 < file_size - offset < 12)


def read_matroska_element(file: BinaryIO, offset: int) -> MatroskaElement | None:
    """None where there is none, or only a part of its header."""
    head = read_at(file, offset, 12)
    name_length = 9 - head[0].bit_length() if head else 9
    size_length = 9 - head[name_length].bit_length() if len(head) > name_length else 9
    length = name_length + size_length
    if name_length > 4 or size_length > 8 or len(head) < length:
        return None
    unknown_size = (1 << 7 * size_length) - 1
    size = int.from_bytes(head[name_length:length]) & unknown_size
    end = None if size == unknown_size else offset + length + size
    return MatroskaElement(head[:name_length], offset + length, end)


def find_avi_end(file: BinaryIO, file_size: int) -> FileEnd:
    """Frames are in a list in each RIFF of the file. The index that may follow them is no loss."""
    offset = riff_end = frames_end = 0
    for _ in range(MAX_ELEMENTS):
        if offset >= file_size:
            break
        name, size, kind = struct.unpack("<4sI4s", read_at(file, offset, 12).ljust(12, b"\0"))
        end = offset + 8 + size + size % 2
        has_frames = name == b"LIST" and kind == b"movi"
        if (name == b"RIFF" or has_frames) and size in UNKNOWN_RIFF_SIZES:
            return FileEnd()
        if name == b"RIFF":
            riff_end, offset = end, offset + 12
        elif has_frames:
            frames_end, offset = offset + 8 + size, max(riff_end, end)
        elif offset < riff_end:
            offset = end
        else:
            break
    return FileEnd(max(0, frames_end - 1))  # its last byte may be padding that was not written


def find_asf_end(file: BinaryIO, file_size: int) -> FileEnd:
    """A header, then the data. A broadcast declares no length."""
    header_size, object_count = read_numbers(file, 16, "<QI")
    offset = 30
    for _ in range(min(object_count, MAX_ELEMENTS)):
        if read_at(file, offset, 16) == ASF_FILE_PROPERTIES and read_at(file, offset + 88, 1) in (b"\1", b"\3"):
            return FileEnd()
        offset += max(24, *read_numbers(file, offset + 16, "<Q"))
    (data_size,) = read_numbers(file, header_size + 16, "<Q")
    return FileEnd(header_size + data_size if data_size else 0)


def find_flv_end(file: BinaryIO, file_size: int) -> FileEnd:
    """A whole file ends with the length of its last tag. What its first tag says about the length of the file is not
    enough, because programs copy it from other files."""
    (tag_size,) = read_numbers(file, max(0, file_size - 4), ">I")
    (last_tag,) = read_numbers(file, max(0, file_size - 4 - tag_size), ">I")
    if last_tag >> 24 in FLV_TAG_TYPES and last_tag & 0xFFFFFF == tag_size - 11:
        return FileEnd()
    _, _, number = read_at(file, 0, 4096).partition(FLV_SIZE_KEY)
    declared = struct.unpack(">d", number[:8])[0] if len(number) >= 8 else 0.0
    return FileEnd(int(declared) if 0 < declared < LONGEST_FILE else 0, is_amid_element=True)


END_FINDERS = {EBML_HEADER: find_matroska_end, b"RIFF": find_avi_end, ASF_HEADER: find_asf_end, b"FLV": find_flv_end}
