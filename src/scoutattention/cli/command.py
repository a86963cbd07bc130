"""What all commands share: flags as the fields of a class, `--debug`, `--help-all`, and loading PyTorch late."""

import atexit
import gc
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import typer

from .settings import Settings, read_settings, refuse_with_auto, refuse_with_dense, setting_parameters

F = TypeVar("F")


@dataclass(frozen=True)
class Call(Generic[F]):
    """What a command was called with.

    flags: the command's own.   settings: values of the settings that it takes, by name, as they were written.
    given: names of the flags and settings that stand on the command line.   environment: of those that come from there.
    """

    flags: F
    settings: Mapping[str, Any]
    given: frozenset[str]
    environment: frozenset[str]


def load_action(name: str) -> ModuleType:
    """The module of `actions/` that does a command's work.

    These modules load PyTorch, which takes seconds. A command calls this function when its flags are right, so that
    help and wrong arguments take no time. Python's search for garbage is off while they are loaded, and leaves them out
    later: modules are never garbage, and the search takes a third of the start.
    """
    first = "torch" not in sys.modules and gc.isenabled()
    if first:
        gc.disable()
    try:
        return import_module(f"{__package__}.actions.{name}")
    finally:
        if first:
            gc.freeze()
            atexit.register(gc.unfreeze)  # what they hold is released at the end
            gc.enable()


def read_choice(call: Call[Any]) -> Settings:
    """The settings of a command whose flags have `dense` and `auto`.

    Raises ConfigError where one of these excludes what else was said, or where a setting cannot be read.
    """
    dense, auto = call.flags.dense, call.flags.auto
    if dense:
        refuse_with_dense(call.given, call.environment)
    settings = read_settings(call.settings, dense=dense)
    refuse_with_auto(settings, auto=auto, dense=dense, environment=call.environment)
    return settings


def takes(
    flags: type[F], *settings: type, without: Sequence[str] = (), **defaults: object
) -> Callable[[Callable[[Call[F]], None]], Callable[..., None]]:
    """A decorator: `command(call)` becomes a function that has, for Typer, an option for each flag and setting.

    flags: a dataclass of the command's own flags.   settings: configuration classes, each field of which is a flag.
    without: settings that the command does not take.   defaults: of settings whose default is another for it.
    """
    hints = get_type_hints(flags, include_extras=True)
    own = [_parameter(item.name, hints[item.name], item.default) for item in fields(flags)]  # type: ignore[arg-type]
    common = [_parameter("debug", Debug, default=False)]
    parameters = [*own, *common, *setting_parameters(settings, defaults, without)]
    if any(option.hidden for parameter in parameters for option in parameter.annotation.__metadata__):
        parameters.append(_parameter("help_all", HelpAll, default=False))

    def decorate(command: Callable[[Call[F]], None]) -> Callable[..., None]:
        def called(typer_context: typer.Context, **values: Any) -> None:  # noqa: ANN401  # each flag has its own type
            typer_context.obj.debug = values.pop("debug")
            sources = {name: typer_context.get_parameter_source(name) for name in values}
            given, environment = (
                frozenset(name for name, source in sources.items() if source and source.name == place)
                for place in ("COMMANDLINE", "ENVIRONMENT")
            )
            values.pop("help_all", None)
            mine = {parameter.name: values.pop(parameter.name) for parameter in own}
            command(Call(flags(**mine), values, given, environment))

        paragraphs = (inspect.getdoc(command) or "").split("\n\n")
        called.__name__ = command.__name__
        called.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)  # else help breaks lines twice
        context = _parameter("typer_context", typer.Context, MISSING)
        called.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        return called

    return decorate


def _parameter(name: str, annotation: object, default: object) -> inspect.Parameter:
    wanted = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=wanted, annotation=annotation)


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]  # every parameter here is an option or an argument
        print(context.get_help())
        raise typer.Exit


Debug = Annotated[
    bool, typer.Option("--debug", help="Show where an error comes from.", envvar="SCOUT_DEBUG", show_envvar=False)
]
HelpAll = Annotated[
    bool, typer.Option("--help-all", help="Show every flag, and exit.", callback=_show_all, is_eager=True)
]
