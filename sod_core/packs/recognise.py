"""What a file is that is no model file: a sentence for whoever was sent a web page or a pointer instead of weights."""

from __future__ import annotations

HEAD = 1024
"""Bytes from the file's beginning that are enough to tell."""

_AGAIN = "download the file itself"
_CONVERT = "save the model's state_dict() with torch.save or as safetensors"
_UNPACK = "unpack it, and give the checkpoint that is inside"
_MAGIC = {
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file, as Keras and TensorFlow write them: {_CONVERT}",
    b"GGUF": f"a GGUF file: {_CONVERT}",
    b"\x1f\x8b": f"an archive (gzip): {_UNPACK}",
    b"BZh": f"an archive (bzip2): {_UNPACK}",
    b"\xfd7zXZ\x00": f"an archive (xz): {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"an archive (zstd): {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"an archive (7z): {_UNPACK}",
    b"Rar!": f"an archive (rar): {_UNPACK}",
    b"%PDF": f"a PDF: {_AGAIN}",
    b"\x89PNG": f"a picture: {_AGAIN}",
    b"\xff\xd8\xff": f"a picture: {_AGAIN}",
    b"\x7fELF": f"a program: {_AGAIN}",
    b"PAR1": f"a Parquet table: {_AGAIN}",
}


def is_safetensors(head: bytes) -> bool:
    """Its first eight bytes are the length of the JSON that follows, which may look like another file's mark."""
    return head[3:9] == b"\0\0\0\0\0{"


def other(head: bytes) -> str | None:
    """What a file is that begins so, to follow "NAME is "; None for what may be a model, an array or a pickle."""
    if not head:
        return "empty, its download may have been truncated: download it again"
    if len(head) > 16 and not head.strip(b"\0"):
        return "nothing but zeros where it begins, its download was cut off: download it again"
    if is_safetensors(head):
        return None
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return f"an archive (tar): {_UNPACK}"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model: {_CONVERT}"
    if head[:1] == b"\x08" and (b"onnx" in head.lower() or head[1:3] in (b"\x03\x12", b"\x07\x12", b"\x08\x12")):
        return f"an ONNX model: {_CONVERT}"
    if 0x81 <= head[0] <= 0x8F and (0xA0 <= head[1] <= 0xBF or head[1] == 0xD9) if len(head) > 1 else False:
        return f"a msgpack file, as Flax writes them: {_CONVERT}"
    return _text(head)


def _text(head: bytes) -> str | None:
    """As `other`, for text."""
    try:
        text = head.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < HEAD:  # but for a letter that is cut in two
            return None
        text = head[: error.start].decode("utf-8-sig").strip()
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    if text.startswith("version https://git-lfs") or "/annex/objects/" in text:
        kind, get = ("Git LFS", "git lfs pull") if text.startswith("version") else ("git-annex", "git annex get")
        return f"a {kind} pointer, not the file: fetch it with `{get}`, or download it again"
    if text.startswith("<?xml"):
        return f"an XML page, as servers answer in place of a file: {_AGAIN}"
    if text.startswith("<"):
        return f"a web page, not the file: {_AGAIN}"
    if text[:1] in ("{", "["):
        return f"JSON, not the file: {_AGAIN}"
    return f"text that begins {' '.join(text[:40].split())!r}, not the file: {_AGAIN}"
