"""The model of the GPU benchmark: real weights that read a text, or random weights that replay a recording."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...config import ScoutConfig
from ...errors import ConfigError
from ...models.decoder import Decoder
from ...models.formats.dummy import dummy_config, dummy_decoder
from ...models.loader import config_of, load, open_model
from ...models.recording import Recording
from ...models.shapes.known import shape_config
from .limit import limit_device
from .prompts import DummyPrompts, Prompts, RealPrompts


class Setup(NamedTuple):
    """weights, choices: for reports, what the weights are, and what chooses the blocks.

    config_json: of the model, for other programs.
    """

    decoder: Decoder
    prompts: Prompts
    weights: str
    choices: str
    config_json: Mapping[str, Any]


def shared_settings(recording: Recording | None, budget: int | None) -> ScoutConfig:
    """The settings that all engines start from. Raises ConfigError where the recording's budget is another."""
    if recording is None:
        return ScoutConfig() if budget is None else ScoutConfig(budget=budget)
    about = recording.about
    if budget not in (None, about.budget):
        raise ConfigError(f"--budget={budget} is not the recording's {about.budget}: leave it out, or record again")
    return ScoutConfig(
        budget=about.budget,
        block_size=about.block_size,
        recent_blocks=about.recent_blocks,
        lookahead=about.lookahead,
    ).changed(digest=about.digest)


def check_contexts(contexts: tuple[int, ...], block_size: int, recording: Recording | None) -> None:
    """Raises ConfigError where dummy prompts would not be of whole blocks, or be shorter than the recorded one."""
    least = block_size if recording is None else recording.about.context
    for context in contexts:
        if context % block_size:
            raise ConfigError(
                f"--contexts: dummy prompts are of whole blocks, and {context} tokens are not a multiple of "
                f"block_size={block_size}"
            )
        if context < least:
            raise ConfigError(f"--contexts: {context} tokens are fewer than {least}, those of the recording or a block")


def dummy_setup(
    shape: str, recording: Recording | None, longest: int, device: torch.device, limit: int | None = None
) -> Setup:
    """Random weights on a device, for sequences of up to `longest` tokens.

    limit: bytes of the device that may be taken, from now on; see `limit_device`.
    """
    raw = shape_config(shape)
    if limit is not None:
        limit_device(device, limit, dummy_config(raw, longest))
    choices = "those of random queries"
    if recording is not None:
        about = recording.about
        choices = f"recorded from {about.model} reading {about.context} tokens of {about.text}"
    decoder = dummy_decoder(raw, longest, device)
    return Setup(decoder, DummyPrompts(recording), f"dummy weights of {shape}", choices, raw)


def real_setup(model: str, text: str, longest: int, device: torch.device, limit: int | None = None) -> Setup:
    """A model on a device, to read parts of a text; see `dummy_setup`.

    Raises ConfigError where it cannot take `longest` tokens.
    """
    files = open_model(model)
    if limit is not None:
        limit_device(device, limit, config_of(files, "auto"))
    loaded = load(files, device=device)
    limit = loaded.decoder.shape.max_positions
    if longest > limit:
        raise ConfigError(f"--contexts: with steps {longest} tokens, above the model's own limit of {limit}")
    prompts = RealPrompts(loaded.tokenizer.encode(text))
    return Setup(loaded.decoder, prompts, model, "its own", files.config)
