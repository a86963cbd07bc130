"""Models on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from ..errors import ModelNotFoundError


def download(name: str, files: Sequence[str]) -> Path:
    """The directory of a model from the hub, downloaded if necessary.   files: patterns of the files that are needed.

    Raises ModelNotFoundError.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelNotFoundError(
            f"there is no directory {name!r}, and no model of that name can be had from the hub: "
            f"{reason.removeprefix('Got: ')}: check the name and the network, or give a directory or a .gguf file"
        ) from error
