"""A model in a GGUF file: its configuration, its tokenizer, and its weights as they lie in the file."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from ..config import ModelConfig
from ..layers import Weight
from ..text import Tokenizer
from .gguf_config import hf_config, paired_rows, tensor_name
from .gguf_file import GGUF, open_gguf
from .gguf_rope import ROPE_TENSORS
from .gguf_tokenizer import tokenizer_files, tokenizer_of
from .model_files import ModelFiles
from .safetensors import Tensors


class GGUFModel(ModelFiles):
    """The model of a GGUF file, or of the first of its parts."""

    def __init__(self, path: Path) -> None:
        """Raises what `open_gguf` does."""
        self.path = path
        self._gguf = open_gguf(path)

    @cached_property
    @override
    def config(self) -> Mapping[str, Any]:
        """In the words of config.json; see `hf_config` for what is refused."""
        shapes, tensors = self._gguf.shapes, self._gguf.tensors
        divisors = {name: tensors[name].values() for name in ROPE_TENSORS if name in shapes}
        return hf_config(self._gguf.metadata, shapes, divisors)

    @property
    @override
    def config_name(self) -> str:
        return str(self.path)

    @override
    def stored_dtype(self) -> str:
        return "float32"

    @override
    def tokenizer(self) -> Tokenizer:
        metadata = self._gguf.metadata
        return Tokenizer.of(tokenizer_of(metadata), tokenizer_files(metadata))

    @override
    def tensors(self) -> "GGUFTensors":
        return GGUFTensors(self._gguf, self.config)

    @property
    @override
    def quantised(self) -> str | None:
        kinds = {tensor.kind for tensor in self._gguf.tensors.values() if tensor.kind.dtype is None}
        return ", ".join(sorted(kind.name for kind in kinds)) or None

    @override
    def weight_bytes(self, config: ModelConfig) -> int:
        return sum(file.size for file in self._gguf.files)


class GGUFTensors(Tensors):
    """The tensors of a file by their Hugging Face names: vectors in float32, matrices as the file has them."""

    def __init__(self, gguf: GGUF, config: Mapping[str, Any]) -> None:
        """`config`: of the model, as `hf_config` gives it, which has compared the names and shapes of all tensors."""
        self.path = gguf.metadata.path
        self.files = gguf.files
        self._config = config
        self._tensors = {tensor_name(name): stored for name, stored in gguf.tensors.items() if name not in ROPE_TENSORS}
        self.unread = set(self._tensors)

    @override
    def read(self, name: str, shape: tuple[int, ...]) -> Weight:
        self.unread.discard(name)
        stored = self._tensors[name]
        return stored.values() if len(shape) == 1 else stored.matrix()

    @override
    def paired(self, name: str) -> int:
        return paired_rows(self._config, self._tensors[name].name)
