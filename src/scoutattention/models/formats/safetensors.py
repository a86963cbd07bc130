"""A model directory's safetensors: tensors by name, whichever file holds them, read through memory maps."""

import re
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from ...config.fields import format_bytes
from ...errors import ModelFileError, UnsupportedModelError
from ...hardware.memory_error import named_memory
from ...runtime.stored_file import StoredFile
from ..file_fields import read_json, refuse_pipe, shown
from ..layers import Weight

_NAME = re.compile(r"[\w-][\w .-]{0,250}(/[\w-][\w .-]{0,250})*")
_OUTER = ("model.", "lm_head.")
FLOATS = ("F16", "BF16", "F32", "F64")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tensors(Protocol):
    """What weights are read from."""

    path: Path
    """What errors call it."""
    files: tuple[StoredFile, ...] = ()
    """What stays mapped as long as the tensors that were read."""
    unread: set[str]
    """Names of tensors that nobody has read."""

    def read(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The tensor of that name as it is stored.   Raises ModelFileError where it is absent or of another shape."""
        ...

    def paired(self, name: str) -> int:
        """The size of a head where each two rows that rotate together follow one another; 0 where they do not."""
        return 0


class Checkpoint(Tensors):
    """The tensors of one directory, and which of them have not been asked for yet.

    A model that was saved without its head has names without "model." in front: they get it, as in transformers.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._home: dict[str, tuple[Any, str]] = {}
        for shard in _shards(directory):
            file = _open(directory / shard)
            for stored in file.keys():  # noqa: SIM118  (a file is no mapping)
                name = stored if stored.startswith(_OUTER) else f"model.{stored}"
                if name in self._home:
                    raise ModelFileError(f"{directory} has the tensor {name} twice, the second time in {shard}")
                self._home[name] = (file, stored)
        self.unread = set(self._home)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in."""
        empty: Tensor = self._stored(name)[:0]
        return empty.dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.   Raises ModelFileError where it is absent."""
        return tuple(self._stored(name).get_shape())

    def format(self, name: str) -> str:
        """What safetensors calls the number format of a tensor."""
        return str(self._stored(name).get_dtype())

    @override
    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.take(name, shape, FLOATS)

    def take(self, name: str, shape: tuple[int, ...], formats: tuple[str, ...]) -> Tensor:
        """A tensor in one of the given number formats, as safetensors calls them; see `read`."""
        stored = self._stored(name)
        if tuple(stored.get_shape()) != shape:
            raise ModelFileError(
                f"{self.path}: tensor {name} has shape {list(stored.get_shape())}, "
                f"where config.json implies {list(shape)}"
            )
        if stored.get_dtype() not in formats:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name} holds {stored.get_dtype()}, which is not supported where config.json "
                f"implies {' or '.join(formats)}"
            )
        self.unread.discard(name)
        file, stored_name = self._home[name]
        tensor: Tensor = file.get_tensor(stored_name)
        return tensor

    def _stored(self, name: str) -> Any:  # noqa: ANN401  (safetensors does not type its slices)
        if name not in self._home:
            raise ModelFileError(f"{self.path} has no tensor {name}, which config.json implies")
        file, stored_name = self._home[name]
        return file.get_slice(stored_name)


def _shards(directory: Path) -> list[str]:
    """File names of the weights: the single file, as in transformers, or those that the index names."""
    if (directory / SINGLE).exists():
        return [SINGLE]
    if not (directory / INDEX).exists():
        raise ModelFileError(
            f"{directory} has neither {SINGLE} nor {INDEX}: only safetensors weights are read, which "
            "save_pretrained of transformers writes"
        )
    homes = read_json(directory / INDEX).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise ModelFileError(f"{directory / INDEX} does not give a 'weight_map' from tensors to files")
    names = list(homes.values())
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ModelFileError(f"{directory / INDEX} names {shown(name)}, which is not the name of a file there")
    return sorted(set(names))


def _open(path: Path) -> Any:  # noqa: ANN401  (safetensors does not type its files)
    try:
        refuse_pipe(path)
        with named_memory(f"the {format_bytes(path.stat().st_size)} of {path}"):
            return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ModelFileError(f"{path.parent} has no {path.name}, which its index names") from None
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is truncated or malformed: {error}") from error
