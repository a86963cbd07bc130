"""What config.json says about rotary positions, which may stand in several places.

The places, their order and the kinds are those of transformers. Refused is what transformers cannot run with the
supported families either, and what it would drop without a word.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from ..errors import ConfigError, ModelFileError
from .file_fields import Entries, shown
from .rope import RopeConfig, RopeKind, inverse_frequencies, longrope_attention_factor, yarn_attention_factor

_THETA, _SHARE, _ORIGINAL = "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"
_FACTOR_MOST = 1e6
_KEYS = {"rope_type", "type", "factor", _THETA, _SHARE, _ORIGINAL, "attention_factor", "mscale", "mscale_all_dim"} | {
    *("beta_fast", "beta_slow", "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor")
}
"""What any kind reads."""


def read_rope(
    config: Entries, head_dim: int, max_positions: int, override: Mapping[str, Any] | None = None
) -> RopeConfig:
    """The rotary positions of a model.

    max_positions: the config's `max_position_embeddings`.
    override: what takes the place of the config's scaling, in the same words. The base, the share of rotated channels
        and the original length stay where it does not give them.
    Raises ModelFileError or UnsupportedModelError, and ConfigError where the override is at fault.
    """
    found = _stored(config, max_positions)
    settings = Entries(found, f"the rope part of {config.source}")
    if override is not None:
        settings = _overriding(found, override)
    nested = [key for key, value in settings.raw.items() if isinstance(value, dict)]
    if nested:
        raise settings.unsupported(nested[0], "all layers must have the same rotary settings")
    rope = _of_kind(settings, head_dim, max_positions)
    try:
        inverse = inverse_frequencies(rope, head_dim)
        sound = bool((inverse.isfinite() & (inverse >= 0)).all())
    except (ArithmeticError, ValueError):
        sound = False
    if not sound:
        raise settings.wrong("rope_type", "possible with the numbers beside it: no frequencies follow from them")
    return rope


def longest(rope: RopeConfig, max_positions: int) -> int:
    """Positions that a model takes: what its scaling stretches its original length to, or max_positions if more."""
    stretched = {"linear": max_positions, "dynamic": max_positions, "yarn": rope.original_max_positions}
    return max(max_positions, int(stretched.get(rope.kind, 0) * rope.factor))


def _stored(config: Entries, max_positions: int) -> dict[str, Any]:
    """The entries of one of the objects that may hold them, and those of the top level that it leaves out."""
    scaling, parameters = config.optional_object("rope_scaling"), config.optional_object("rope_parameters")
    chosen = scaling if scaling is not None and scaling.raw else parameters
    outer = {key: config.raw[key] for key in (_THETA, _SHARE, _ORIGINAL) if config.raw.get(key) is not None}
    inner = {} if chosen is None else {key: value for key, value in chosen.raw.items() if value is not None}
    found = {_THETA: RopeConfig.theta, _SHARE: 1.0, _ORIGINAL: max_positions, "rope_type": inner.get("type", "default")}
    found |= outer | inner | {key: value for key, value in outer.items() if key == _ORIGINAL}
    hidden = None if parameters is None else parameters.raw.get(_THETA)
    if hidden is not None and hidden != found[_THETA]:
        raise ModelFileError(
            f"{config.source} gives rope_theta={shown(hidden)} in rope_parameters, which rope_scaling beside it hides: "
            "write rope_theta into rope_scaling"
        )
    return found


def _overriding(stored: Mapping[str, Any], override: Mapping[str, Any]) -> Entries:
    if not isinstance(override, Mapping):
        raise ConfigError(f"rope_scaling={shown(override)} is not an object as config.json has it")
    given = Entries({key: value for key, value in override.items() if value is not None}, "rope_scaling", ConfigError)
    if "rope_type" not in given and "type" not in given:
        raise ConfigError('rope_scaling does not say its \'rope_type\': give one, as in {"rope_type": "yarn", ...}')
    kept = {key: stored[key] for key in (_THETA, _SHARE, _ORIGINAL)}
    unknown = sorted(given.raw.keys() - _KEYS)
    if unknown:
        raise ConfigError(f"rope_scaling has no {unknown[0]!r}: it may have {', '.join(sorted(_KEYS))}")
    return Entries({"rope_type": given.raw.get("type"), **kept, **given.raw}, given.source, ConfigError)


def _of_kind(settings: Entries, head_dim: int, max_positions: int) -> RopeConfig:
    name = settings.optional_word("rope_type")
    if name not in get_args(RopeKind):
        raise settings.unsupported("rope_type", f"supported are {', '.join(get_args(RopeKind))}")
    kind = cast(RopeKind, name)
    base = RopeConfig(settings.positive(_THETA), kind)
    share = settings.number(_SHARE, most=1.0)
    if kind == "default":  # transformers rotates every channel here, whatever the share
        return base
    if kind == "proportional":
        return replace(base, factor=_factor(settings, 1.0), rotated=share)
    if int(share * head_dim) != head_dim:
        raise settings.unsupported(_SHARE, f"with rope_type={kind!r} only 1.0 is")
    if kind == "linear":
        return replace(base, factor=_factor(settings))
    if kind == "dynamic":
        if head_dim == 2:
            raise settings.unsupported("rope_type", "it needs a head_dim above 2")
        return replace(base, factor=_factor(settings), original_max_positions=max_positions)
    scaled = replace(base, original_max_positions=settings.count(_ORIGINAL))
    if kind == "longrope":
        return _longrope(settings, scaled, head_dim, max_positions)
    return _llama3(settings, scaled) if kind == "llama3" else _yarn(settings, scaled)


def _factor(settings: Entries, default: float | None = None) -> float:
    return settings.positive("factor", default, most=_FACTOR_MOST)


def _llama3(settings: Entries, rope: RopeConfig) -> RopeConfig:
    low, high = settings.positive("low_freq_factor"), settings.positive("high_freq_factor")
    if high <= low:
        raise settings.wrong("high_freq_factor", f"above low_freq_factor={low:g}")
    return replace(rope, factor=_factor(settings), low_freq_factor=low, high_freq_factor=high)


def _yarn(settings: Entries, rope: RopeConfig) -> RopeConfig:
    factor = _factor(settings)
    stretch = settings.optional_number("attention_factor")
    if stretch is None:
        mscale, of_all = settings.optional_number("mscale"), settings.optional_number("mscale_all_dim")
        stretch = yarn_attention_factor(factor)
        if mscale and of_all:
            stretch = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, of_all)
    return replace(
        rope,
        factor=factor,
        attention_factor=stretch,
        beta_fast=settings.optional_number("beta_fast") or RopeConfig.beta_fast,
        beta_slow=settings.optional_number("beta_slow") or RopeConfig.beta_slow,
        truncate=settings.switch("truncate", True),
    )


def _longrope(settings: Entries, rope: RopeConfig, head_dim: int, max_positions: int) -> RopeConfig:
    factors = []
    for key in ("short_factor", "long_factor"):
        factors.append(settings.numbers(key))
        if len(factors[-1]) != head_dim // 2:
            raise settings.wrong(key, f"of {head_dim // 2} numbers, one for each pair of channels")
    original = rope.original_max_positions
    stretch = settings.optional_number("attention_factor")
    if stretch is None:
        factor = _factor(settings, max_positions / original)
        if original == 1:
            raise settings.wrong(_ORIGINAL, "above 1, which longrope needs")
        stretch = longrope_attention_factor(factor, original)
    return replace(rope, attention_factor=stretch, short_factors=factors[0], long_factors=factors[1])
