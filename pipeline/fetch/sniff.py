"""Detect the kind of a file by its first bytes. Names and content types do not count: they are wrong too often."""

from __future__ import annotations

from typing import Any

from pipeline.registry import MEDIA_KINDS, load_registered

MediaKind = str  # a key of MEDIA_KINDS
BUILT_IN_KINDS = ("image", "video", "pdf")  # recognised below, because their modules import decoders
SNIFF_BYTES = 512

IMAGE_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"hevc", b"jxl ")  # in ISO containers
QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"moof", b"styp", b"pnot")  # QuickTime before `ftyp`
SIZE_IN_PREFIX_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM")  # the first bytes tell the size of the image
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_2000_SIGNATURES = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
IMAGE_SIGNATURES = (*SIZE_IN_PREFIX_SIGNATURES, *TIFF_SIGNATURES, *JPEG_2000_SIGNATURES)
VIDEO_SIGNATURES = (
    *(b"\x1aE\xdf\xa3", b"FLV", b"0&\xb2u", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\0\0\0\x01"),
    *(b"YUV4MPEG2", b"OggS", b"DKIF"),
)


def list_added_kinds() -> dict[str, Any]:
    """The registered kinds beside the built-in ones, which know their own signatures and endings."""
    names = [name for name in MEDIA_KINDS if name not in BUILT_IN_KINDS]
    return {name: load_registered(MEDIA_KINDS, name, "kind of media") for name in names}


def sniff_kind(head: bytes) -> MediaKind | None:
    """
    >>> sniff_kind(b"GIF89a"), sniff_kind(b"\\0\\0\\0 ftypisom"), sniff_kind(b"%PDF-1.7"), sniff_kind(b"<html>")
    ('image', 'video', 'pdf', None)
    """
    for name, kind in list_added_kinds().items():
        if kind.recognizes(head):
            return name
    if head[4:8] == b"ftyp":
        return "image" if head[8:12] in IMAGE_BRANDS else "video"
    if head[:4] == b"RIFF":
        return "video" if head[8:12] == b"AVI " else "image"
    if b"%PDF-" in head:
        return "pdf"
    transport = head[::188][:2] == b"GG" or head[4::192][:3] == b"GGG"  # MPEG-TS, and as camcorders write it
    if head.startswith(VIDEO_SIGNATURES) or head[4:8] in QUICKTIME_ATOMS or transport:
        return "video"
    return "image" if head.startswith(IMAGE_SIGNATURES) else None
