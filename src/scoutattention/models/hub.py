"""Models on the Hugging Face hub."""

from pathlib import Path

from httpx import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from ..errors import ModelNotFoundError

_FILES = (
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


def download(name: str) -> Path:
    """The directory of a model, which is downloaded where it is not there yet.   Raises ModelNotFoundError."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelNotFoundError(
            f"there is no directory {name!r}, and the hub does not give a model of that name: {reason}"
        ) from error
