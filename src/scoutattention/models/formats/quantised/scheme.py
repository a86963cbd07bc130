"""What config.json's `quantization_config` says of a checkpoint's matrices; what is not read is refused by name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ....errors import UnsupportedModelError
from ....runtime.stored import StoredKind
from ...file_fields import Entries, shown
from ...shapes.sizes import QUANTISED_BY

Layout = Literal["gptq", "awq", "packed", "int8", "float8"]
BITS = (4, 8)
_SUPPORTED = "supported are gptq, awq, compressed-tensors and fp8"


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint's matrices are quantised.

    method: `quant_method`, as messages call it.
    layout: which tensors a matrix has: see the modules beside this one.
    bits: of a code.
    group: columns that share a scale; 0 for whole rows, or all of a matrix.
    zeros: whether groups have zero points of their own.
    added: to a stored zero point.
    block: rows and columns that share a scale; None where `group` says it.
    kept: modules that are not quantised: what their names begin with, contain or end with, or "re:" and an expression.
    """

    method: str
    layout: Layout
    bits: int
    group: int = 0
    zeros: bool = False
    added: int = 0
    block: tuple[int, int] | None = None
    kept: tuple[str, ...] = ()

    @property
    def kind(self) -> StoredKind | None:
        """Of the blocks that matrices become, at most; None where they become numbers in the model's dtype."""
        if self.layout == "float8":
            return None
        return StoredKind.Q8_0 if self.bits == 8 else StoredKind.Q4_1 if self.zeros else StoredKind.Q4_0

    def keeps(self, module: str) -> str | None:
        """The entry of `kept` that a module belongs to, if any does."""
        return next((entry for entry in self.kept if _matches(entry, module)), None)


def read_scheme(config: Entries) -> Scheme | None:
    """The scheme of a config.json, or None where the checkpoint is not quantised.

    Raises UnsupportedModelError naming what is not read, and ModelFileError for an entry that is malformed.
    """
    given = next((found for key in QUANTISED_BY if (found := config.optional_object(key)) is not None), None)
    if given is None:
        return None
    method = given.optional_word("quant_method")
    readers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed, "fp8": _fp8}
    if method not in readers:
        name = shown("an unnamed method" if method is None else method)
        raise UnsupportedModelError(
            f"weights quantised with {name}, as {given.source} says, are not read: {_SUPPORTED}"
        )
    return readers[method](given)


def _gptq(given: Entries) -> Scheme:
    form = given.optional_word("checkpoint_format") or given.optional_word("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise given.unsupported(
            "checkpoint_format" if "checkpoint_format" in given else "format", "gptq and gptq_v2 are"
        )
    dynamic = given.optional_object("dynamic")
    rules = list(dynamic.raw) if dynamic else []
    if not all(rule.startswith("-:") for rule in rules):
        raise given.unsupported(
            "dynamic", "all quantised modules must have the same bits, so that its keys begin with -:"
        )
    kept = _checked(given, "dynamic", tuple(f"re:{rule.removeprefix('-:')}" for rule in rules))
    bits, group = _bits(given), _group(given)
    return Scheme("gptq", "gptq", bits, group, not given.switch("sym", True), int(form == "gptq"), kept=kept)


def _awq(given: Entries) -> Scheme:
    form = "version" if given.raw.get("version") is not None else "format"
    if (given.optional_word(form) or "gemm").lower() != "gemm":
        raise given.unsupported(form, "the layout gemm is")
    bits = _bits(given, "w_bit" if "w_bit" in given else "bits", (4,))
    if not given.switch("zero_point", True):
        raise given.unsupported("zero_point", "weights with zero points are")
    group = _group(given, "q_group_size" if "q_group_size" in given else "group_size")
    return Scheme("awq", "awq", bits, group, zeros=True, kept=_kept(given, "modules_to_not_convert"))


def _fp8(given: Entries) -> Scheme:
    if (given.optional_word("fmt") or "e4m3") != "e4m3":
        raise given.unsupported("fmt", "numbers in e4m3 are")
    _check_scheme(given, given.optional_word("activation_scheme") or "dynamic")
    key = next((key for key in ("modules_to_not_convert", "ignored_layers") if given.raw.get(key) is not None), "")
    return Scheme("fp8", "float8", 8, block=_block(given, "weight_block_size"), kept=_kept(given, key))


def _check_scheme(given: Entries, scheme: str) -> None:
    if scheme not in ("dynamic", "static"):
        raise given.unsupported(
            "activation_scheme", "dynamic and static are, both with activations that are not rounded"
        )


def _compressed(given: Entries) -> Scheme:
    layouts: dict[str, Layout] = {
        "pack-quantized": "packed",
        "int-quantized": "int8",
        "naive-quantized": "int8",
        "float-quantized": "float8",
    }
    if given.raw.get("kv_cache_scheme") is not None:
        raise given.unsupported("kv_cache_scheme", "the cache is rounded by kv_dtype (--kv-dtype) alone")
    if (sparsity := given.optional_object("sparsity_config")) and sparsity.raw.get("format", "dense") != "dense":
        raise sparsity.unsupported("format", "only dense weights are")
    if given.raw.get("transform_config"):
        raise given.unsupported("transform_config", "only weights that are not transformed are")
    group = _one_group(given)
    key = "format" if group.optional_word("format") is None else None
    form = given.optional_word("format") if key else group.optional_word("format")
    if form not in layouts:
        raise (given if key else group).unsupported("format", f"{', '.join(layouts)} are")
    return _weights(group, layouts[form], _kept(given, "ignore"))


def _one_group(given: Entries) -> Entries:
    """The first of `config_groups`; the others must say the same of weights."""
    groups = given.optional_object("config_groups")
    objects = [groups.optional_object(name) for name in groups.raw] if groups else []
    found = [group for group in objects if group is not None]
    if not found or len(found) < len(objects):
        raise given.wrong("config_groups", "an object of groups")
    for group in found:
        if group.raw.get("weights") != found[0].raw.get("weights"):
            raise given.unsupported("config_groups", f"its {len(found)} groups must quantise weights alike")
        _check_activations(group)
    return found[0]


def _check_activations(group: Entries) -> None:
    """Activations in 8-bit floats may stay as they are, which rounds less; the results of integers would differ."""
    inputs = group.optional_object("input_activations")
    if inputs is not None and inputs.optional_word("type") != "float":
        raise group.unsupported("input_activations", "only weights in integers are, with activations that are not")
    if group.raw.get("output_activations") is not None:
        raise group.unsupported("output_activations", "only weights are")


def _weights(group: Entries, layout: Layout, kept: tuple[str, ...]) -> Scheme:
    weights = group.optional_object("weights")
    if weights is None:
        raise group.wrong("weights", "an object")
    kind, strategy = weights.optional_word("type") or "int", weights.optional_word("strategy") or "tensor"
    floats = layout == "float8"
    if kind != ("float" if floats else "int"):
        raise weights.unsupported("type", "integers and 8-bit floats are, each in formats of their own")
    bits = _bits(weights, "num_bits", BITS if layout == "packed" else (8,))
    known = ("tensor", "channel", "block") if floats else ("tensor", "channel", "group")
    if strategy not in known:
        raise weights.unsupported("strategy", f"{', '.join(known)} are in this format")
    sym = weights.switch("symmetric", True)
    if not sym and (floats or bits == 8 or strategy == "tensor"):
        raise weights.unsupported("symmetric", "zero points are in 4 bits, with scales of groups or channels")
    return Scheme(
        "compressed-tensors",
        layout,
        bits,
        group=_group(weights) if strategy == "group" else 0,
        zeros=not sym,
        block=_block(weights, "block_structure") if strategy == "block" else None,
        kept=kept,
    )


def _bits(given: Entries, key: str = "bits", known: tuple[int, ...] = BITS) -> int:
    bits = given.count(key)
    if bits not in known:
        raise given.unsupported(key, f"{' and '.join(map(str, known))} bits are")
    return bits


def _group(given: Entries, key: str = "group_size") -> int:
    """Columns that share a scale; 0 for all."""
    if given.raw.get(key) == -1:
        return 0
    group = given.count(key)
    if group % 32:
        raise given.unsupported(key, "multiples of 32 are, and -1")
    return group


def _block(given: Entries, key: str) -> tuple[int, int] | None:
    sizes = given.raw.get(key)
    if sizes is None:
        return None
    whole = isinstance(sizes, list) and all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if not whole or len(sizes) != 2 or min(sizes) < 1:
        raise given.wrong(key, "a list of two positive whole numbers")
    return sizes[0], sizes[1]


def _kept(given: Entries, key: str) -> tuple[str, ...]:
    """The modules in a list that are not quantised."""
    return _checked(given, key, given.optional_words(key) or ())


def _checked(given: Entries, key: str, kept: Iterable[str]) -> tuple[str, ...]:
    """Names and expressions; ModelFileError where an expression is none."""
    for entry in kept:
        try:
            re.compile(entry.removeprefix("re:") if entry.startswith("re:") else "")
        except re.error as error:
            raise given.wrong(key, f"of names and regular expressions: {entry} is none, {error}") from None
    return tuple(kept)


def _matches(entry: str, module: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), module) is not None
    return re.search(rf"(^|\.){re.escape(entry)}(\.|$)", module) is not None
