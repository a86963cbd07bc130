"""What weights in few bits take on a CPU, which keeps them so. A GPU gets all weights in the model's dtype."""

from pathlib import Path

from ...config import DTypeName, WeightsName
from ...errors import ConfigError
from ...shape import ModelShape, NamedShape
from ..file_fields import Entries
from ..formats.gguf import GGUFModel
from ..formats.quantised.scheme import read_scheme
from ..loader import QUANTISED, config_of, kept_bytes
from .sizes import FAMILIES


def block_bytes(config: Entries, shape: ModelShape, weights: WeightsName, *, tied: bool) -> int | None:
    """Bytes of all matrices of a model with this config.json, or None where they are numbers in the shape's dtype.

    weights: see `EngineConfig`.   Raises UnsupportedModelError, naming the method, where the weights are not read, and
    ConfigError where quantised weights are to be quantised.
    """
    scheme, numbers = read_scheme(config), shape.matrix_numbers(tied=tied)
    stays = None if scheme is None else scheme.kind
    if weights in QUANTISED:
        if stays is not None:
            raise _already(weights, config.source)
        return numbers // QUANTISED[weights].length * QUANTISED[weights].size
    if stays is None or weights == "bf16":
        return None
    tables = (1 if tied else 2) * shape.vocab_size * shape.hidden_size
    return (numbers - tables) // stays.length * stays.size + tables * shape.dtype_bytes


def gguf_model(name: str, path: Path, dtype: DTypeName, weights: WeightsName) -> NamedShape:
    """The model of a GGUF file.   name: what messages call it.

    dtype: of what is not in blocks; "auto" is float32, as in the engine.
    Raises ModelFileError, UnsupportedModelError, and ConfigError as `block_bytes` does.
    """
    files = GGUFModel(path)
    if weights in QUANTISED:
        raise _already(weights, str(path))
    config = config_of(files, dtype)
    trained = next(family.trained for family in FAMILIES.values() if family.architecture == config.architecture)
    return NamedShape(name, config.shape, config.tie_word_embeddings, kept_bytes(files, config, weights), trained)


def _already(weights: WeightsName, where: str) -> ConfigError:
    return ConfigError(
        f"weights={weights!r} quantises weights of 16 or 32 bits, and {where} has quantised ones: set weights "
        "(--weights) to 'auto'"
    )
