"""What a call of `generate` asks for, checked before anything runs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from torch import Tensor
from transformers import PreTrainedModel

from ...config.fields import counted
from ...errors import ConfigError, PromptError
from .cache import Limit

CACHES = ("cache", "past_key_values")
"""The names that a model's call has for its cache: since transformers 5.24, and before."""
DEFAULT_NEW_TOKENS = 20
"""What transformers generates where nobody says how much."""
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "num_beams": ((None, 1), "beam search reorders sequences"),
    "assistant_model": ((None,), "assisted decoding takes tokens back"),
    "use_mtp": ((None, False), "assisted decoding takes tokens back"),
    "prompt_lookup_num_tokens": ((None,), "assisted decoding takes tokens back"),
    "assistant_early_exit": ((None,), "assisted decoding takes tokens back"),
    "cache_implementation": ((None,), "scout brings its own cache"),
    "past_key_values": ((None,), "scout brings its own cache"),
    "cache": ((None,), "scout brings its own cache"),
    "use_cache": ((None, True), "scout is a cache"),
    "prefill_chunk_size": ((None,), "scout reads a prompt layer by layer"),
    "custom_generate": ((None,), "scout does not know what it does"),
    "guidance_scale": ((None, 1, 1.0), "guidance runs a second sequence through the model"),
    "penalty_alpha": ((None, 0, 0.0), "contrastive search repeats sequences"),
    "dola_layers": ((None,), "DoLa is another decoding method"),
    "output_attentions": ((None, False), "scout makes no matrix of attention weights"),
}
"""Arguments of `generate` that scout does not run with: the values that are allowed, and why no other is."""


def parameters_of(function: Callable[..., object]) -> tuple[str, ...]:
    """The names of a function's parameters, in their order."""
    return tuple(inspect.signature(function).parameters)


@lru_cache
def forward_parameters(forward: Callable[..., object]) -> tuple[str, ...]:
    """The parameters of a class's `forward`, without `self`."""
    return parameters_of(forward)[1:]


def cache_parameter(model: PreTrainedModel) -> str:
    """Which of `CACHES` the installed version knows."""
    return next(name for name in CACHES if name in forward_parameters(type(model).forward))


def refuse_continuous_batching(*_: object, **__: object) -> NoReturn:
    """Raises ConfigError."""
    raise ConfigError(
        "generate_batch and continuous batching do not run with scout: they bring their own cache; call model.generate"
    )


def by_name(parameters: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those too that are given by their place."""
    return dict(zip(parameters, args, strict=False)) | dict(kwargs)


def check_state(model: PreTrainedModel) -> None:
    """Raises ConfigError where a model is in training mode, or compiled."""
    name = type(model).__name__
    if model.training:
        raise ConfigError(f"{name} is in training mode, and scout only decodes: call model.eval()")
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise ConfigError(f"{name} was compiled with model.compile(), and scout needs its layers' hooks: load it anew")


def refuse_empty(batch: int, count: int) -> None:
    """Raises PromptError where a batch has no prompts, or its prompts have no positions."""
    if not batch or not count:
        prompts, tokens = counted(batch, "prompt"), counted(count, "token")
        raise PromptError(f"the batch has {prompts} of {tokens}: give at least 1 prompt of 1 token")


def check_generate(model: PreTrainedModel, arguments: Mapping[str, Any]) -> Limit:
    """How long sequences may become.   arguments: of `generate`, by name.

    A value is the call's, or that of the `generation_config` that it gives, or the model's.
    Raises ConfigError for what scout does not run, and PromptError where there is no token to begin with.
    """
    prompts = (arguments.get(name) for name in ("inputs_embeds", "inputs", "input_ids"))
    given = next((each for each in prompts if each is not None), None)
    if isinstance(given, Tensor) and given.dim() > 1:
        refuse_empty(*given.shape[:2])
    sources = (arguments.get("generation_config"), model.generation_config)

    def value(name: str) -> Any:  # noqa: ANN401  # of any argument
        given = arguments.get(name)
        own = (getattr(source, name, None) for source in sources)
        return given if given is not None else next((each for each in own if each is not None), None)

    check_state(model)
    for name, (allowed, reason) in REFUSED.items():
        found = value(name)
        if not any(found is one or (type(found) is type(one) and found == one) for one in allowed):
            shown = repr(found) if isinstance(found, str | int | float) else type(found).__name__
            raise ConfigError(f"generate with {name}={shown} does not run with scout: {reason}; leave {name} out")
    new, total = value("max_new_tokens"), value("max_length")
    return Limit(new=new) if new is not None else Limit(DEFAULT_NEW_TOKENS, total or 0)
