"""Headers that promise what the file does not have, and models in parts."""

import struct
import time

import numpy as np
import pytest
import torch

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.formats.gguf_file import open_gguf
from scoutattention.models.loader import load

from .. import families
from ..dense import prompt_logits
from .gguf_files import write_parts

U8, U32, F32, TEXT, ARRAY, U64 = 0, 4, 6, 8, 9, 10


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def tensor(name, *dimensions, kind=0, offset=0):
    places = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return text(name) + places


def file(path, fields=(), tensors=(), data=b"", magic=b"GGUF", version=3, counts=None, order="<"):
    head = magic + struct.pack(f"{order}IQQ", version, *(counts or (len(tensors), len(fields))))
    head += b"".join(fields) + b"".join(tensors)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def test_metadata_of_all_types(path):
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    fields = [entry(f"k{kind}", kind, struct.pack(f"<{form}", 1)) for kind, form in formats.items()]
    fields += [entry(f"a{kind}", ARRAY, struct.pack(f"<IQ2{form}", kind, 2, 0, 1)) for kind, form in formats.items()]
    fields += [
        entry("text", TEXT, text("é")),
        entry("texts", ARRAY, struct.pack("<IQ", TEXT, 2) + text("a") + text("")),
    ]
    found = open_gguf(file(path, fields)).metadata.unread("")
    assert [found[f"k{kind}"] for kind in formats] == [1] * len(formats)
    assert [found[f"a{kind}"] for kind in formats] == [[0, 1]] * len(formats)
    assert (found["text"], found["texts"]) == ("é", ["a", ""])


def test_tensors_lie_where_the_header_says(path):
    first, second = np.arange(6, dtype=np.float32), np.arange(4, dtype=np.float16)
    data = first.tobytes() + b"\0" * 8 + second.tobytes()
    stored = open_gguf(file(path, (), (tensor("a", 3, 2), tensor("b", 4, kind=1, offset=32)), data)).tensors
    assert torch.equal(stored["a"].values(), torch.from_numpy(first).reshape(2, 3))
    assert torch.equal(stored["b"].values(), torch.arange(4.0))


HUGE = struct.pack("<Q", 2**60)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"magic": b"GGML"}, "does not begin with GGUF"),
        ({"counts": (0, 2**60)}, "promises 1152921504606846976 entries"),
        ({"counts": (2**60, 0)}, "and 1152921504606846976 tensors"),
        ({"counts": (2**63, 2**63)}, "entries and"),
        ({"fields": [HUGE]}, "promises|bytes are expected"),
        ({"fields": [entry("a", TEXT, HUGE + b"x" * 40)]}, "1152921504606846976 bytes are expected"),
        ({"fields": [entry("a", ARRAY, struct.pack("<I", TEXT) + HUGE)]}, "a promises 1152921504606846976 texts"),
        ({"fields": [entry("a", ARRAY, struct.pack("<I", U8) + HUGE)]}, "bytes are expected"),
        ({"fields": [entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1) + b"x" * 40)]}, "a is a list of the type 9"),
        ({"fields": [entry("a", 77, b"x" * 40)]}, "a has the type 77"),
        ({"fields": [entry("a", U8, b"\1"), entry("a", U8, b"\1"), entry("b", U64, b"x" * 8)]}, "gives 'a' twice"),
        ({"fields": [entry("", U64, b"x" * 8)]}, "a key is empty"),
        ({"fields": [entry(b"\xff", U64, b"x" * 8)]}, "is not UTF-8"),
        ({"fields": [entry("a", TEXT, text(b"\xc3("))]}, "a text of a .* is not UTF-8"),
        ({"fields": [entry("general.alignment", U32, struct.pack("<I", 24))]}, "general.alignment is 24"),
        ({"fields": [entry("general.alignment", U32, struct.pack("<I", 4))]}, "general.alignment is 4"),
        ({"tensors": [tensor("a")], "data": b"x" * 40}, "0 dimensions"),
        ({"tensors": [tensor("a", 1, 1, 1, 1, 1)]}, "5 dimensions"),
        ({"tensors": [tensor("a" * 64, 1)]}, "too long a name"),
        ({"tensors": [tensor("a", 4, 0)]}, r"shape \[0, 4\], which is empty"),
        ({"tensors": [tensor("a", 2**40, 2**40)]}, "the tensor a ends at byte"),
        ({"tensors": [tensor("a", 5)], "data": b"x" * 19}, "the tensor a ends at byte 84, and the file at 83"),
        ({"tensors": [tensor("a", 33, kind=8)], "data": b"x" * 99}, "rows of 33, which blocks of 32"),
        ({"tensors": [tensor("a", 4, offset=4)], "data": b"x" * 99}, "a is 4 bytes after the header, where 0"),
        ({"tensors": [tensor("a", 4), tensor("b", 4, offset=0)], "data": b"x" * 99}, "b is 0 bytes .* where 32"),
        ({"tensors": [tensor("a", 4), tensor("b", 4, offset=16)], "data": b"x" * 99}, "b is 16 bytes .* where 32"),
        ({"tensors": [tensor("a", 4), tensor("a", 4, offset=32)], "data": b"x" * 99}, "tensor a a second time"),
    ],
)
def test_what_contradicts_the_file_is_named_at_once(parts, named, path):
    start = time.perf_counter()
    with pytest.raises(ModelFileError, match=named):
        open_gguf(file(path, **parts))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"version": 1}, "has version 1, and only versions 2 and 3"),
        ({"version": 4}, "has version 4"),
        ({"order": ">"}, "is big-endian"),
        ({"tensors": [tensor("a", 4, kind=999)]}, "the tensor a has the type number 999, which is not supported"),
        ({"tensors": [tensor("a", 256, kind=16)]}, "type IQ2_XXS, number 16, .* supported are F32, F16, Q4_0"),
    ],
)
def test_what_is_not_read_is_named(parts, named, path):
    with pytest.raises(UnsupportedModelError, match=named):
        open_gguf(file(path, **parts))


def test_version_2_is_read(path):
    assert open_gguf(file(path, [entry("a", U8, b"\7")], version=2)).metadata.unread("") == {"a": 7}


@pytest.mark.parametrize("first", [lambda name: name != "output.weight", lambda name: not name.startswith("blk.2.")])
def test_a_model_in_parts_is_loaded_whole(first, tmp_path):
    model = families.make("llama")
    prompt = list(range(20))
    loaded = load(str(write_parts(tmp_path, model, first)[0]))
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(prompt_logits(loaded.decoder, prompt), expected, atol=1e-4, rtol=0)


def in_first(name):
    return name.startswith("blk.0.")


def test_another_part_than_the_first_names_the_first(tmp_path):
    second = write_parts(tmp_path, families.make("llama"), in_first)[1]
    with pytest.raises(ModelFileError, match=r"is part 2 of 2: give the first part, .*tiny-00001-of-00002\.gguf"):
        load(str(second))


def test_a_missing_part_is_named(tmp_path):
    first, second = write_parts(tmp_path, families.make("llama"), in_first)
    second.unlink()
    with pytest.raises(ModelFileError, match=r"tiny-00002-of-00002\.gguf is not beside it"):
        load(str(first))
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="the first of 2 parts, whose names must be NAME-00001-of-00002"):
        load(str(renamed))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"split.tensors.count": 99}, "have 30 tensors together, where it promises 99"),
        ({"split.no": 0}, "says that it is part 1 of 2, where part 2 of 2 is expected"),
        ({"split.count": "2"}, "split.count is '2'"),
    ],
)
def test_parts_that_contradict_each_other_are_named(fields, named, tmp_path):
    first, _ = write_parts(tmp_path, families.make("llama"), in_first, **fields)
    with pytest.raises(ModelFileError, match=named):
        load(str(first))


def test_a_tensor_in_two_parts_is_named(tmp_path):
    model = families.make("llama")
    first, second = write_parts(tmp_path, model, lambda name: not in_first(name))
    with_first_layer = second.read_bytes()
    write_parts(tmp_path, model, in_first)
    second.write_bytes(with_first_layer)
    with pytest.raises(ModelFileError, match=r"tiny-00002-of-00002\.gguf has the tensor blk\.0\.\S+ a second time"):
        open_gguf(first)
