"""GGUF files taken apart, changed at places that matter, and put together again; seeded."""

import math
import struct
from dataclasses import dataclass, replace

import gguf

FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
NUMBERS = (0, 1, 2, 3, 7, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, -1, 0.5, 1e30, -1e-30)
NUMBERS += (float("nan"), float("inf"))
WORDS = ("", "x", "llama", "qwen3", "yarn", "default", "tekken", "é" * 50, "{% for %}", "\0", "none")


@dataclass(frozen=True)
class Field:
    """A metadata entry. count: what its list promises, where that is not its length."""

    key: str
    kind: int
    value: object
    element: int = 0
    count: int | None = None

    def packed(self):
        body = self._list() if self.kind == ARRAY else _packed(self.kind, self.value)
        return _packed(TEXT, self.key) + struct.pack("<I", self.kind) + body

    def _list(self):
        count = len(self.value) if self.count is None else self.count
        return struct.pack("<IQ", self.element, count) + b"".join(_packed(self.element, item) for item in self.value)


@dataclass(frozen=True)
class Tensor:
    name: str
    dimensions: tuple[int, ...]
    kind: int
    offset: int

    def packed(self):
        form = f"<I{len(self.dimensions)}QIQ"
        return _packed(TEXT, self.name) + struct.pack(
            form, len(self.dimensions), *self.dimensions, self.kind, self.offset
        )


def _packed(kind, value):
    """A value as its kind is stored, as well as the kind can hold it."""
    if kind == TEXT:
        data = str(value).encode()
        return struct.pack("<Q", len(data)) + data
    form, number = FORMATS.get(kind, "Q"), value if isinstance(value, int | float) else 1
    if form in "fd":
        return struct.pack(f"<{form}", number if math.isnan(number) else min(max(number, -1e38), 1e38))
    size = struct.calcsize(form)
    whole = int(number) if abs(number) < 2**70 else 1
    return (whole % 2 ** (8 * size)).to_bytes(size, "little")


def taken_apart(path):
    """A file's entries, tensors, and the bytes after the header."""
    reader = gguf.GGUFReader(path)
    fields = [
        Field(field.name, int(field.types[0]), field.contents(), int(field.types[-1]))
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    ]
    start = reader.data_offset
    tensors = [
        Tensor(t.name, tuple(map(int, t.shape)), int(t.tensor_type), int(t.data_offset) - start) for t in reader.tensors
    ]
    return fields, tensors, path.read_bytes()[start:]


def together(fields, tensors, data, counts=None):
    head = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), len(fields))))
    head += b"".join(part.packed() for part in (*fields, *tensors))
    return head + b"\0" * (-len(head) % 32) + data


def mutated(rng, fields, tensors, data):
    """A changed file's bytes, and the names of the entries, or what else, that changed."""
    fields, tensors = list(fields), list(tensors)
    change = rng.choice((_field, _field, _field, _field, _tensor, _tensor, _bytes, _counts))
    return change(rng, fields, tensors, data)


def _field(rng, fields, tensors, data):
    i = rng.randrange(len(fields))
    field, other, before = fields[i], rng.choice(fields), list(fields)
    new = replace(field, key=rng.choice(("llama.logit_scale", "split.count", "llama.rope.scaling.factor")))
    changes = [
        lambda: fields.pop(i),
        lambda: fields.insert(rng.randrange(len(fields)), field),
        lambda: fields.__setitem__(i, replace(field, key=rng.choice((other.key, field.key + "x", field.key[:-1])))),
        lambda: fields.__setitem__(i, replace(other, key=field.key)),
        lambda: fields.__setitem__(i, _with_scalar(rng, field)),
        lambda: fields.__setitem__(i, _with_scalar(rng, field)),
        lambda: fields.__setitem__(i, _with_list(rng, field)),
        lambda: rng.shuffle(fields),
        lambda: fields.append(_with_scalar(rng, new)),
    ]
    rng.choice(changes)()
    return together(fields, tensors, data), {field.key, other.key, new.key} & _changed_keys(before, fields)


def _changed_keys(before, after):
    """Keys of the entries that are in one of the lists only."""
    return {field.key for field in before if field not in after} | {field.key for field in after if field not in before}


def _with_scalar(rng, field):
    kind = rng.choice((*FORMATS, TEXT))
    return replace(field, kind=kind, value=rng.choice(WORDS if kind == TEXT else NUMBERS))


def _with_list(rng, field):
    if field.kind != ARRAY:
        return replace(field, kind=ARRAY, value=[field.value] * rng.choice((0, 1, 2, 100)), element=field.kind)
    value = list(field.value)
    i, j = rng.randrange(len(value)), rng.randrange(len(value))
    changes = [
        lambda: replace(field, value=value[:i]),
        lambda: replace(field, value=value + value[:i]),
        lambda: replace(field, value=[*value[:i], value[j], *value[i + 1 :]]),
        lambda: replace(
            field, value=[*value[:i], rng.choice(WORDS if field.element == TEXT else NUMBERS), *value[i + 1 :]]
        ),
        lambda: replace(field, count=rng.choice((0, len(value) - 1, len(value) + 1, 2**40, 2**63))),
        lambda: replace(field, element=rng.choice((*FORMATS, TEXT, ARRAY, 99))),
        lambda: replace(field, value=[]),
    ]
    return rng.choice(changes)()


def _tensor(rng, fields, tensors, data):
    i = rng.randrange(len(tensors))
    tensor, other = tensors[i], rng.choice(tensors)
    sizes = (0, 1, 2, 33, 2**20, 2**40, 2**63)
    changes = [
        lambda: tensors.pop(i),
        lambda: tensors.insert(i, other),
        lambda: tensors.__setitem__(i, replace(tensor, name=other.name)),
        lambda: tensors.__setitem__(
            i, replace(tensor, name=rng.choice(("blk.0.attn_sinks.weight", "", "x" * 70, "output.bias")))
        ),
        lambda: tensors.__setitem__(i, replace(tensor, dimensions=tensor.dimensions[::-1])),
        lambda: tensors.__setitem__(i, replace(tensor, dimensions=(rng.choice(sizes), *tensor.dimensions[1:]))),
        lambda: tensors.__setitem__(i, replace(tensor, dimensions=(*tensor.dimensions, 1) * rng.choice((1, 2)))),
        lambda: tensors.__setitem__(i, replace(tensor, kind=rng.choice((1, 2, 8, 12, 24, 28, 30, 99)))),
        lambda: tensors.__setitem__(i, replace(tensor, offset=rng.choice((*sizes, tensor.offset + 4, other.offset)))),
        lambda: rng.shuffle(tensors),
    ]
    rng.choice(changes)()
    return together(fields, tensors, data), {"tensors"}


def _bytes(rng, fields, tensors, data):
    whole = bytearray(together(fields, tensors, data))
    header = len(whole) - len(data)
    at = rng.randrange(header)
    changes = [
        lambda: whole.__setitem__(at, rng.randrange(256)),
        lambda: whole.__setitem__(slice(at, at + 8), rng.randbytes(8)),
        lambda: whole.__delitem__(slice(at, at + rng.choice((1, 4, 8)))),
        lambda: whole.__setitem__(slice(at, at), rng.randbytes(rng.choice((1, 4, 8)))),
        lambda: whole.__delitem__(slice(rng.randrange(len(whole)), None)),
    ]
    rng.choice(changes)()
    return bytes(whole), {"bytes"}


def _counts(rng, fields, tensors, data):
    counts = [len(tensors), len(fields)]
    counts[rng.randrange(2)] = rng.choice((0, 1, counts[0] + 1, counts[1] - 1, 2**32, 2**60, 2**64 - 1))
    return together(fields, tensors, data, counts), {"bytes"}
