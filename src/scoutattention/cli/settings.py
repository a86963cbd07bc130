"""The settings as flags: every field of the configuration classes becomes one option, with its own explanation."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from ..config import Ablation, EngineConfig, SamplingParams, ScoutConfig, Setting, parse_size, setting_of
from ..errors import ConfigError


class Settings(NamedTuple):
    """What the flags say, checked: the method, the engine and the request."""

    scout: ScoutConfig
    engine: EngineConfig
    params: SamplingParams


PANELS: dict[type, str] = {SamplingParams: "Answer", ScoutConfig: "Method", EngineConfig: "Engine"}
"""What people need first is first."""
FIXED: dict[str, Any] = {"max_num_seqs": 1, "cache_salt": "", "logit_bias": None}
"""Settings without a flag: the commands decode one sequence at a time, for one user, who has no token ids."""
REPEATED = ("stop",)
"""Settings whose flag may be repeated; these have no variable in the environment."""
ABLATION = "write `--ablation {}=VALUE` with `scout eval`, or ScoutConfig(ablation=Ablation({}=...)) in Python"
OLD_FLAGS = {
    "most_share": "write --max-cpu-share",
    "wait_share": "recall goes by shares alone",
    "rank": ABLATION.format("correction_dims", "correction_dims") + "; of `scout calibrate`, write --dims",
    "least_cosine": ABLATION.format("min_scout_cosine", "min_scout_cosine"),
    "cpu_share": ABLATION.format("recall_target", "recall_target"),
} | {item.name: ABLATION.format(item.name, item.name) for item in fields(Ablation)}
"""Settings that were flags of their own, also as SCOUT_... in the environment, with what to write now."""

OTHER_VARIABLES = ("SCOUT_DENSE", "SCOUT_DEBUG", "SCOUT_API_KEY")
"""Variables of flags that are no settings."""
MISSPELT = 0.9
"""How alike two names are, from 0 to 1, of which one is taken for the other misspelt."""


def refuse_old_flag(flag: str) -> None:
    """Raises ConfigError for a flag of earlier versions, as --most-share, with what to write now."""
    name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    if name in OLD_FLAGS:
        raise ConfigError(f"there is no {flag} any more: {OLD_FLAGS[name]}")


def refuse_wrong_environment(environment: Mapping[str, str]) -> None:
    """Raises ConfigError for a variable of earlier versions, as SCOUT_MOST_SHARE, and for a misspelt one."""
    for name in OLD_FLAGS:
        if variable_of(name) in environment:
            raise ConfigError(f"{variable_of(name)} is no setting any more: {OLD_FLAGS[name]}")
    known = [variable_of(name) for cls in PANELS for name in settings_of(cls)] + list(OTHER_VARIABLES)
    for variable in sorted(environment):
        alike = get_close_matches(variable, known, 1, cutoff=MISSPELT)
        if variable.startswith("SCOUT_") and variable not in known and alike:
            raise ConfigError(f"the environment variable {variable} is no setting: did you mean {alike[0]}?")


def settings_of(cls: type) -> dict[str, tuple[Field[Any], Setting]]:
    """The fields of a configuration class that are settings, by name."""
    return {item.name: (item, setting_of(item)) for item in fields(cls) if "setting" in item.metadata}


def _read(written: str, text: str, about: Setting, hint: object) -> object:
    """The value that a text stands for.

    written: the flag, for errors.   hint: the type of the setting.
    Raises ConfigError where the text cannot be read.
    """
    if about.none_word and text == about.none_word:
        return None
    if about.size:
        words = [word for part in get_args(hint) for word in get_args(part)]
        return text if text in words else parse_size(text)
    kinds = {hint, *get_args(hint)}
    for kind, (read, wanted) in READERS.items():
        if kind in kinds:
            try:
                return read(text)
            except ValueError:
                other = f" or {about.none_word!r}" if about.none_word else ""
                raise ConfigError(f"{written}={text!r} is not {wanted}{other}") from None
    return text


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _layers(text: str) -> tuple[int, ...]:
    numbers = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError
    return tuple(int(number) for number in numbers)


def read_object(text: str) -> dict[str, Any]:
    """The JSON object that a text is. Raises ValueError where it is none."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError from None
    if not isinstance(value, dict):
        raise ValueError
    return value


READERS: dict[object, tuple[Callable[[str], object], str]] = {
    bool: (_bool, "true or false"),
    int: (int, "a number"),
    float: (float, "a number"),
    Mapping[str, Any]: (read_object, "a JSON object"),
    tuple[int, ...]: (_layers, "a list of layer numbers as in 0,1,2"),
}
"""How the text of a setting of a type is read, and what to call such texts."""


def flag_of(name: str) -> str:
    """The flag of a setting, as --max-cpu-share."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """The environment variable of a setting, as SCOUT_MAX_CPU_SHARE."""
    return f"SCOUT_{name.upper()}"


def help_of(about: Setting, default: object) -> str:
    """The explanation of a setting, with what leaving it out or its word for None means."""
    if about.none_word:
        return f"{about.help} {about.none_word!r} {about.none}."
    return f"{about.help} Without it: {about.none}." if about.none and default is None else about.help


def _parameter(item: Field[Any], about: Setting, default: object, hint: object, panel: str) -> inspect.Parameter:
    structured = Mapping[str, Any] in get_args(hint)
    if item.name in REPEATED:
        hint, default = list[str], []
    elif about.none_word or about.size or structured:
        hint = str | None
        default = (about.none_word or None) if default is None else str(default)
    flag = flag_of(item.name)
    metavar = "SIZE" if about.size else "JSON" if structured else "NAME" if get_origin(hint) is Literal else None
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
        help=escape(help_of(about, default)),  # [json] is no markup
        metavar=metavar,
        envvar=None if item.name in REPEATED else variable_of(item.name),
        show_envvar=False,
        rich_help_panel=panel,
        show_default=default not in (None, []),
        hidden=about.advanced,
    )
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )


def setting_parameters(
    classes: Sequence[type], defaults: Mapping[str, object], without: Sequence[str] = ()
) -> list[inspect.Parameter]:
    """One option, as Typer reads it from a signature, for each field of some configuration classes.

    defaults: of fields whose default is another for this command.   without: fields that it does not take.
    """
    return [
        _parameter(item, about, defaults.get(name, item.default), get_type_hints(cls)[name], PANELS[cls])
        for cls in classes
        for name, (item, about) in settings_of(cls).items()
        if name not in FIXED and name not in without
    ]


def _pick(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    picked: dict[str, Any] = {}
    for name, (_, about) in settings_of(cls).items():
        if name in values:
            value = values[name]
            picked[name] = _read(flag_of(name), value, about, hints[name]) if isinstance(value, str) else value
    return picked


def written(name: str, environment: Collection[str] = ()) -> str:
    """A setting as it was given: its flag, or its variable.   environment: names of settings that came from there."""
    return f"{variable_of(name)} in the environment" if name in environment else flag_of(name)


def refuse_with_dense(given: Collection[str], environment: Collection[str]) -> None:
    """Raises ConfigError where --dense was given with a setting that limits what is attended to or held.

    given, environment: names of flags and settings that stand on the command line, and that come from around it.
    """
    for name in ("budget", "device_memory"):
        if name in given or name in environment:
            dense, other = (written(one, environment) for one in ("dense", name))
            raise ConfigError(
                f"{dense} keeps the whole KV cache on the device and attends to all of it, so it excludes {other}: "
                f"leave out {other}"
            )


def refuse_with_auto(settings: Settings, *, auto: bool, dense: bool, environment: Collection[str] = ()) -> None:
    """Raises ConfigError where --auto is to choose what something else says already, on the line or around it.

    environment: names of flags and settings that came from there.
    """
    if not auto:
        return
    own = ScoutConfig()
    said = ["dense"] if dense else []
    said += [name for name in settings_of(ScoutConfig) if getattr(settings.scout, name) != getattr(own, name)]
    said += [] if settings.engine.device_memory is None else ["device_memory"]
    if said:
        raise ConfigError(f"--auto chooses the settings of the method, so it excludes {written(said[0], environment)}")


def read_ablation(pairs: Sequence[str]) -> Ablation:
    """An ablation from texts as digest=minmax. Raises ConfigError where one is no setting of it, or no value."""
    known, hints = settings_of(Ablation), get_type_hints(Ablation)
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        name = name.replace("-", "_")
        if name not in known or "=" not in pair:
            raise ConfigError(f"--ablation={pair!r} is not NAME=VALUE with one of {', '.join(known)}")
        values[name] = _read(f"--ablation {name}", text, known[name][1], hints[name])
    return Ablation(**values)


def read_settings(flags: Mapping[str, Any], *, dense: bool = False, ablation: Sequence[str] = ()) -> Settings:
    """The configuration that the flags describe; `dense` attends to everything and keeps it on the device.

    ablation: texts as digest=minmax.   A class of settings that the command does not take has its defaults.
    Raises ConfigError where a text cannot be read or a value is out of range.
    """
    values = {**flags, **FIXED, "stop": tuple(flags.get("stop", ()))}
    if dense:
        values |= {"budget": None, "device_memory": "all"}
    return Settings(
        ScoutConfig(**_pick(ScoutConfig, values), ablation=read_ablation(ablation)),
        EngineConfig(**_pick(EngineConfig, values)),
        SamplingParams(**_pick(SamplingParams, values)),
    )
