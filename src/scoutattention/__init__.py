"""ScoutAttention: long-context decoding with the KV cache in host memory.

The names below are the whole public API. All names except the errors are imported at their first use, because some need
PyTorch, and the command must react to Ctrl-C as soon as it starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    CacheFolderError,
    CalibrationError,
    CapacityError,
    ConfigError,
    KernelError,
    ModelError,
    ModelFileError,
    ModelNotFoundError,
    PromptError,
    RankError,
    ScoutError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from .config import Ablation, EngineConfig, SamplingParams, ScoutConfig
    from .engine.answer import Answer, Chunk, Output
    from .engine.llm import LLM
    from .engine.stats import Stats
    from .integrations.transformers.entry import scout

    __version__: str

__all__ = [
    "LLM",
    "Ablation",
    "Answer",
    "CacheFolderError",
    "CalibrationError",
    "CapacityError",
    "Chunk",
    "ConfigError",
    "EngineConfig",
    "KernelError",
    "ModelError",
    "ModelFileError",
    "ModelNotFoundError",
    "Output",
    "PromptError",
    "RankError",
    "SamplingParams",
    "ScoutConfig",
    "ScoutError",
    "Stats",
    "UnsupportedModelError",
    "scout",
]

_LAZY = dict.fromkeys(("Ablation", "EngineConfig", "SamplingParams", "ScoutConfig"), ".config")
_LAZY |= {
    "LLM": ".engine.llm",
    "Answer": ".engine.answer",
    "Chunk": ".engine.answer",
    "Output": ".engine.answer",
    "Stats": ".engine.stats",
    "scout": ".integrations.transformers.entry",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("scout-attention")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
