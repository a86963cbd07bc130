"""The tensors of a checkpoint in few bits: each matrix is made of the tensors that it has in the file."""

import math

from typing_extensions import override

from ....errors import ModelFileError
from ...layers import Weight
from ..safetensors import Checkpoint, Tensors
from .layout import MARKS, READERS, Parts
from .scheme import Scheme

_SUFFIX = ".weight"
_OF_ACTIVATIONS = ("input_scale", "input_zero_point")
"""Tensors that no matrix needs: activations are not rounded here."""


class QuantisedTensors(Tensors):
    """A checkpoint whose `quantization_config` says `scheme`; modules may have a matrix in 16 bits as well."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme) -> None:
        """Raises ModelFileError where no module is quantised, or one that the scheme keeps as it is."""
        self.path = checkpoint.path
        self.unread = set(checkpoint.unread)
        self._checkpoint, self._scheme = checkpoint, scheme
        mark, formats = MARKS[scheme.layout]
        self._modules: dict[str, set[str]] = {}
        for name in checkpoint.unread:
            module, _, part = name.rpartition(".")
            if part == mark and checkpoint.format(name) in formats:
                self._modules[module] = set()
        if not self._modules:
            raise ModelFileError(
                f"{self.path} has no tensor of the name MODULE.{mark} that holds {' or '.join(formats)}, although "
                f"config.json says that the weights are quantised with {scheme.method}"
            )
        for name in checkpoint.unread:
            module, _, part = name.rpartition(".")
            if module in self._modules:
                self._modules[module].add(part)
                if part in _OF_ACTIVATIONS:
                    self.unread.discard(name)
        for module in self._modules:
            self._check_kept(f"{module}.{mark}", module)
            self.unread.add(module + _SUFFIX)

    @override
    def read(self, name: str, shape: tuple[int, ...]) -> Weight:
        self.unread.discard(name)
        module = name.removesuffix(_SUFFIX)
        if name == module or module not in self._modules:
            return self._checkpoint.read(name, shape)
        parts = Parts(self._checkpoint, module, self._modules[module])
        weight = READERS[self._scheme.layout](parts, (shape[0], shape[1]), self._scheme)
        self.unread -= {f"{module}.{part}" for part in parts.taken}
        return weight

    def packed(self) -> tuple[int, int]:
        """Numbers of all quantised matrices that stay in blocks, and the bytes of these, from the headers alone."""
        mark, _ = MARKS[self._scheme.layout]
        kind = self._scheme.kind
        if kind is None:
            return 0, 0
        words = sum(math.prod(self._checkpoint.shape(f"{module}.{mark}")) for module in self._modules)
        numbers = words if self._scheme.layout == "int8" else words * 32 // self._scheme.bits
        return numbers, numbers // kind.length * kind.size

    def _check_kept(self, name: str, module: str) -> None:
        entry = self._scheme.keeps(module)
        if entry is not None:
            raise ModelFileError(
                f"{self.path}: tensor {name} is quantised, although config.json lists {entry!r} among the modules that "
                "are not"
            )
