"""What a model is read from: a directory in the layout of Hugging Face here, a GGUF file in `gguf.py`."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from ..config import ModelConfig
from ..file_fields import Entries, read_json
from ..shapes.sizes import checkpoint_dtype
from ..text import Tokenizer
from .quantised.scheme import Scheme, read_scheme
from .quantised.tensors import QuantisedTensors
from .safetensors import EMBEDDING, HEAD, Checkpoint, Tensors


class Quantised(NamedTuple):
    """What weights are quantised with: a method or kinds, by name.   in_blocks: whether they stay so."""

    name: str
    in_blocks: bool


class ModelFiles(Protocol):
    """A model's files. Every method raises ModelFileError or UnsupportedModelError for what is wrong with them."""

    path: Path
    """The directory or the file."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration in the words of config.json."""
        ...

    @property
    def config_name(self) -> str:
        """What messages call the file that the configuration is from."""
        ...

    def stored_dtype(self) -> str:
        """The dtype that `dtype="auto"` is."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, its chat template, and the tokens that end an answer."""
        ...

    @property
    def quantised(self) -> Quantised | None:
        """What the weights are quantised with, if they are."""
        ...

    def tensors(self) -> Tensors:
        """The weights."""
        ...

    def weight_bytes(self, config: ModelConfig) -> int:
        """Bytes that the weights take on a CPU, in a file that is mapped or in memory."""
        ...


class Directory(ModelFiles):
    """A directory with config.json, safetensors and tokenizer.json."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    @override
    def config(self) -> Mapping[str, Any]:
        return read_json(self.path / "config.json")

    @property
    @override
    def config_name(self) -> str:
        return str(self.path / "config.json")

    @override
    def stored_dtype(self) -> str:
        """The dtype in config.json, or of the embedding where that says nothing."""
        dtype = checkpoint_dtype(self.config)
        if dtype is not None:
            return dtype
        checkpoint = Checkpoint(self.path)
        name = EMBEDDING if EMBEDDING in checkpoint.unread else HEAD
        return str(checkpoint.dtype(name)).removeprefix("torch.")

    @override
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_directory(self.path)

    @property
    @override
    def quantised(self) -> Quantised | None:
        scheme = self._scheme()
        return None if scheme is None else Quantised(scheme.method, in_blocks=scheme.kind is not None)

    @override
    def tensors(self) -> Tensors:
        scheme, checkpoint = self._scheme(), Checkpoint(self.path)
        return checkpoint if scheme is None else QuantisedTensors(checkpoint, scheme)

    def _scheme(self) -> Scheme | None:
        return read_scheme(Entries(self.config, self.config_name))

    @override
    def weight_bytes(self, config: ModelConfig) -> int:
        tensors = self.tensors()
        numbers, size = tensors.packed() if isinstance(tensors, QuantisedTensors) else (0, 0)
        return size + (config.weights - numbers) * config.shape.dtype_bytes
