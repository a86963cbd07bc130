"""Wraps methods of single objects to time them, so that objects that are not watched have no overhead."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple


class Watched(NamedTuple):
    """A call of a method.

    name: of its stage.   layer: for which it was called; None where only the calls around it know.
    job: of the workers, that it submitted or waited for.
    """

    name: str
    layer: int | None
    start_s: float
    end_s: float
    job: int | None = None


Noted = tuple[str, int | None, float, float, int | None]
"""The fields of `Watched`: making one costs as much as both looks at the clock, so that is left for later."""


class Watch:
    """Calls of the methods that are watched, inner ones before the ones around them, until `end`."""

    def __init__(self) -> None:
        self.calls: list[Noted] = []
        self._replaced: list[tuple[object, str]] = []

    def replace(self, thing: object, method: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let another function stand for one object's method, until `end`.   make: makes it of the method."""
        setattr(thing, method, make(getattr(thing, method)))
        self._replaced.append((thing, method))

    def watch(self, thing: object, method: str, name: str, *, of_layer: bool = False) -> None:
        """Note each call of one object's method; see `noted`."""
        self.replace(thing, method, partial(self.noted, name, of_layer=of_layer))

    def noted(self, name: str, function: Callable[..., Any], *, of_layer: bool = False) -> Callable[..., Any]:
        """A function each call of which is noted.   of_layer: its first argument is a layer."""
        calls = self.calls

        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401  # whatever the function takes and gives
            start_s = perf_counter()
            try:
                return function(*args, **options)
            finally:
                calls.append((name, args[0] if of_layer else None, start_s, perf_counter(), None))

        return call

    def end(self) -> None:
        """Stop watching."""
        for thing, method in reversed(self._replaced):
            delattr(thing, method)
        self._replaced.clear()
