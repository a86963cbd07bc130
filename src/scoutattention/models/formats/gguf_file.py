"""GGUF files as they lie on the disk: metadata and tensors, each length and place compared with the file first.

The format is described in ggml's docs/gguf.md. Versions 2 and 3 are read, little-endian. A model in several parts is
read as llama.cpp reads it: the first part has the metadata, and all parts have tensors.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import ModelFileError, UnsupportedModelError
from ...kernels.reference_stored import expand, finite
from ...runtime.stored import KINDS, StoredKind, StoredMatrix, stored
from ...runtime.stored_file import StoredFile
from .gguf_metadata import Metadata

_VERSIONS = (2, 3)
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_LEAST_FIELD, _LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8
"""Bytes that the shortest metadata entry and tensor entry take: more entries than fit are not believed."""
_MOST_DIMENSIONS, _LONGEST_NAME = 4, 63
_ALIGNMENT = 32
_LENGTH = struct.Struct("<Q")
_OTHER_KINDS = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
"""Names of types that are not supported."""
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


class StoredTensor(NamedTuple):
    """A tensor as the file has it.   shape: rows first.   data: uint8 [rows, bytes of a row], a view of the file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: StoredKind
    data: Tensor

    def matrix(self) -> StoredMatrix:
        """The tensor as a matrix of its rows; ModelFileError where it has numbers that are not finite."""
        matrix = stored(self.data, self.kind, self.shape[-1])
        if not finite(matrix):
            raise ModelFileError(
                f"{self.path}: the tensor {self.name} has numbers that are infinite or not numbers, so the file is "
                "damaged: get it again"
            )
        return matrix

    def values(self) -> Tensor:
        """The tensor in float32; see `matrix`."""
        return expand(self.matrix(), slice(None), torch.float32).reshape(self.shape)


class GGUF(NamedTuple):
    """An open model: its metadata, its tensors by name, and the files that hold them, one for each part."""

    metadata: Metadata
    tensors: Mapping[str, StoredTensor]
    files: tuple[StoredFile, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape, rows first."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def open_gguf(path: Path) -> GGUF:
    """Read a model's metadata and map its tensors.

    Raises ModelFileError where a file is truncated, malformed or not GGUF at all, or where a part is missing.
    """
    metadata, tensors, first = _read(path)
    parts, files = part_paths(path, metadata), [first]
    for number, part in enumerate(parts[1:], start=1):
        others, more, file = _read(part)
        _check_part(part, others, number, len(parts))
        twice = next((name for name in more if name in tensors), None)
        if twice is not None:
            raise ModelFileError(f"{part} has the tensor {twice} a second time")
        tensors |= more
        files.append(file)
    expected = metadata.count("split.tensors.count", len(tensors)) if len(parts) > 1 else len(tensors)
    if expected != len(tensors):
        raise ModelFileError(f"the parts of {path} have {len(tensors)} tensors together, where it promises {expected}")
    return GGUF(metadata, tensors, tuple(files))


def part_paths(path: Path, metadata: Metadata) -> tuple[Path, ...]:
    """The files of a model whose metadata were read from `path`; ModelFileError where one is not beside the others."""
    count = metadata.count("split.count", 1, least=0)
    if count <= 1:
        return (path,)
    match = _PART.fullmatch(path.name)
    number = metadata.count("split.no", 0, least=0)
    if number != 0:
        first = path.with_name(f"{match['stem']}-00001-of-{count:05d}.gguf") if match else "the one that ends in -00001"
        raise ModelFileError(f"{path} is part {number + 1} of {count}: give the first part, {first}")
    if match is None or (int(match["number"]), int(match["count"])) != (1, count):
        raise ModelFileError(
            f"{path} is the first of {count} parts, whose names must be NAME-00001-of-{count:05d}.gguf and so on: "
            "give the parts those names"
        )
    parts = tuple(path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1))
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        raise ModelFileError(f"{path} is the first of {count} parts, and {missing.name} is not beside it: put it there")
    return (path, *parts)


def _check_part(part: Path, metadata: Metadata, number: int, count: int) -> None:
    found = metadata.count("split.no", least=0), metadata.count("split.count", count)
    if found != (number, count):
        raise ModelFileError(
            f"{part} says that it is part {found[0] + 1} of {found[1]}, where part {number + 1} of {count} is expected"
        )


def _read(path: Path) -> tuple[Metadata, dict[str, StoredTensor], StoredFile]:
    """One file's metadata and tensors."""
    file = StoredFile(path)
    cursor = _Cursor(file)
    if cursor.bytes(4) != b"GGUF":
        raise cursor.broken("it does not begin with GGUF")
    (version,) = cursor.unpack("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in _VERSIONS
        found = "is big-endian" if swapped else f"has version {version}"
        raise UnsupportedModelError(f"{path} {found}, and only versions 2 and 3 of GGUF, little-endian, are read")
    num_tensors, num_fields = cursor.unpack("QQ")
    if num_fields * _LEAST_FIELD + num_tensors * _LEAST_TENSOR > cursor.left:
        raise cursor.broken(f"it promises {num_fields} entries and {num_tensors} tensors in {cursor.left} bytes")
    metadata = Metadata(path, dict(_fields(cursor, num_fields)))
    return metadata, _tensors(cursor, metadata, num_tensors), file


def _fields(cursor: "_Cursor", count: int) -> Iterator[tuple[str, Any]]:
    seen = set()
    for _ in range(count):
        key = cursor.text("a key")
        if not key or key in seen:
            raise cursor.broken(f"it gives {key!r} twice" if key else "a key is empty")
        seen.add(key)
        (kind,) = cursor.unpack("I")
        yield key, _array(cursor, key) if kind == _ARRAY else _scalar(cursor, key, kind)


def _scalar(cursor: "_Cursor", key: str, kind: int) -> Any:  # noqa: ANN401  (metadata is of any type)
    if kind == _TEXT:
        return cursor.text(key)
    if kind not in _FORMATS:
        raise cursor.broken(f"{key} has the type {kind}, which GGUF does not know")
    return cursor.unpack(_FORMATS[kind])[0]


def _array(cursor: "_Cursor", key: str) -> list[Any]:
    kind, length = cursor.unpack("IQ")
    if kind == _TEXT:
        return cursor.texts(key, length)
    if kind not in _FORMATS:
        raise cursor.broken(f"{key} is a list of the type {kind}, which is not supported")
    form = f"<{_FORMATS[kind]}"
    values: list[Any] = np.frombuffer(cursor.bytes(length * struct.calcsize(form)), form).tolist()
    return values


def _tensors(cursor: "_Cursor", metadata: Metadata, count: int) -> dict[str, StoredTensor]:
    entries = [_entry(cursor) for _ in range(count)]
    alignment = metadata.count("general.alignment", _ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1):
        raise cursor.broken(f"general.alignment is {alignment}, which is not a power of 2 from 8 on")
    start, end = _padded(cursor.offset, alignment), 0
    tensors: dict[str, StoredTensor] = {}
    for name, shape, number, offset in entries:
        if offset != _padded(end, alignment):
            raise cursor.broken(
                f"the tensor {name} is {offset} bytes after the header, where {_padded(end, alignment)} is its place"
            )
        if name in tensors:
            raise ModelFileError(f"{cursor.path} has the tensor {name} a second time")
        kind = _kind(cursor, name, shape, number)
        rows, width = math.prod(shape[:-1]), shape[-1] // kind.length * kind.size
        end = offset + rows * width
        if start + end > cursor.size:
            raise cursor.broken(f"the tensor {name} ends at byte {start + end}, and the file at {cursor.size}")
        data = cursor.view(start + offset, rows * width).view(rows, width)
        tensors[name] = StoredTensor(cursor.path, name, shape, kind, data)
    return tensors


def _entry(cursor: "_Cursor") -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, its shape, rows first, the number of its type, and its place after the header."""
    name = cursor.text("a tensor's name")
    (dimensions,) = cursor.unpack("I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS or not 1 <= len(name.encode()) <= _LONGEST_NAME:
        raise cursor.broken(f"the tensor {name[:_LONGEST_NAME]!r} has {dimensions} dimensions, or too long a name")
    shape = cursor.unpack(f"{dimensions}Q")[::-1]
    if 0 in shape:
        raise cursor.broken(f"the tensor {name} has the shape {list(shape)}, which is empty")
    return name, shape, *cursor.unpack("IQ")


def _kind(cursor: "_Cursor", name: str, shape: tuple[int, ...], number: int) -> StoredKind:
    kind = KINDS.get(number)
    if kind is None:
        known = f"{_OTHER_KINDS[number]}, number {number}" if number in _OTHER_KINDS else f"number {number}"
        raise UnsupportedModelError(
            f"{cursor.path}: the tensor {name} has the type {known}, which is not supported: supported are "
            f"{', '.join(kind.name for kind in StoredKind)}"
        )
    if shape[-1] % kind.length:
        raise cursor.broken(
            f"the tensor {name} has rows of {shape[-1]}, which blocks of {kind.length} in {kind.name} do not fill"
        )
    return kind


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class _Cursor:
    """A place in a mapped file, which moves as the file is read and never leaves it."""

    def __init__(self, file: StoredFile) -> None:
        self.path, self.size = file.path, file.size
        self.offset = 0
        self._file = file

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return self.size - self.offset

    def broken(self, what: str) -> ModelFileError:
        """The error for a file that cannot be a GGUF."""
        return ModelFileError(f"{self.path} is truncated or not a GGUF file: {what}: get the file again")

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise self.broken(f"{count} bytes are expected at byte {self.offset}, and {self.left} are left")
        self.offset += count
        return self._file.bytes[self.offset - count : self.offset]

    def view(self, start: int, count: int) -> Tensor:
        """Bytes of the file where they are mapped, uint8 [count]."""
        return self._file.data[start : start + count]

    def unpack(self, form: str) -> tuple[Any, ...]:
        """The next values, by a format of the module struct."""
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))

    def text(self, what: str) -> str:
        """The next string, which its length precedes."""
        return self.texts(what, 1)[0]

    def texts(self, what: str, count: int) -> list[str]:
        """The next strings; in one loop, since a vocabulary has hundreds of thousands."""
        if count * _LENGTH.size > self.left:
            raise self.broken(f"{what} promises {count} texts in {self.left} bytes")
        memory, at, texts = self._file.bytes, self.offset, []
        for _ in range(count):
            begin = at + _LENGTH.size
            at = begin + _LENGTH.unpack_from(memory, at)[0] if begin <= self.size else begin
            if at > self.size:
                raise self.broken(f"{at - begin} bytes are expected at byte {begin}, and {self.size - begin} are left")
            try:
                texts.append(memory[begin:at].decode())
            except UnicodeDecodeError:
                raise self.broken(f"a text of {what} before byte {at} is not UTF-8") from None
        self.offset = at
        return texts
