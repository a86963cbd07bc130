"""Seeded mutations of JSON documents and other nested values, made where their structure is: keys, values, lists.

    for what, changed in mutations(document, 100, seed=1):
        path.write_text(json.dumps(changed))

`what` says what was done, for the message of a failing test. The document is left as it is.
"""

import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any

NUMBERS = [0, 1, -1, 2, 3, 7, 2**31, 2**62, -(2**63), 10**12, 10**40, 0.0, 0.5, 1.5, -0.5, 1e-40, 1e308, -1e308]
ODD_NUMBERS = [float("nan"), float("inf"), float("-inf"), True, False]
TEXTS = ["", "x", "0", "1e5", "null", "true", "\ud800", "ß" * 300]


class Twin(str):
    """A key that a dictionary may hold beside an equal one: `json.dumps` then writes both."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def mutations(
    document: Any,
    count: int,
    seed: int,
    known: Mapping[str, list[Any]] | None = None,
) -> Iterator[tuple[str, Any]]:
    """`count` pairs of what was done and the changed document; one to three changes each.

    known: keys with values that are put into some object of the document, beside the changes of what is there.
    """
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        changed, done = [copy.deepcopy(document)], []  # in a list, so that the top level has a parent as well
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            done.append(_change(changed, chance, known or {}))
        yield f"{seed}/{number}: " + ", then ".join(done), changed[0]


def _change(root: list[Any], chance: random.Random, known: Mapping[str, list[Any]]) -> str:
    places = list(_places(root))
    if known and chance.random() < 0.35:
        objects = [value for parent, key in places if isinstance(value := parent[key], dict)]
        if objects:
            key = chance.choice(sorted(known))
            value = copy.deepcopy(chance.choice(known[key]))
            chance.choice([objects[0], *objects])[key] = value
            return f"{key} set to {_short(value)}"
    inner = places[1:] or places
    parent, key = chance.choice(inner) if chance.random() < 0.97 else places[0]
    changes = [_replaced, _replaced, _number, _retyped, _retyped, _dropped, _doubled]
    change = chance.choice(changes + ([_moved, _renamed] if isinstance(parent, dict) else []))
    return change(root, parent, key, chance)


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Every (parent, key) of nested dictionaries and lists, parents first; of long lists some."""
    keys = list(container) if isinstance(container, dict) else range(min(len(container), 20))
    for key in keys:
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


def _replaced(root: list[Any], parent: Any, key: Any, chance: random.Random) -> str:
    """By the value of another place."""
    other, there = chance.choice(list(_places(root)))
    parent[key] = copy.deepcopy(other[there])
    return f"{key} becomes the value of {there}, {_short(parent[key])}"


def _number(root: list[Any], parent: Any, key: Any, chance: random.Random) -> str:
    old = parent[key]
    near = []
    if isinstance(old, int | float) and not isinstance(old, bool):
        near = [old + 1, old - 1, -old, old * 2, float(old) if abs(old) < 1e300 else 0.0, old / 2 if old < 1e300 else 1]
    parent[key] = chance.choice([*near, *near, *NUMBERS, *ODD_NUMBERS])
    return f"{key}={_short(parent[key])}"


def _retyped(root: list[Any], parent: Any, key: Any, chance: random.Random) -> str:
    old = parent[key]
    parent[key] = chance.choice([None, str(old)[:50], [old], {"": old}, [], {}, [None], _deep(), *TEXTS, *ODD_NUMBERS])
    return f"{key} becomes {_short(parent[key])}"


def _dropped(root: list[Any], parent: Any, key: Any, chance: random.Random) -> str:
    if parent is root:
        root[0] = {}
    else:
        del parent[key]
    return f"{key} dropped"


def _doubled(root: list[Any], parent: Any, key: Any, chance: random.Random) -> str:
    """An object's key stands there twice, with another value; a list's item is repeated."""
    if isinstance(parent, dict):
        parent[Twin(key)] = chance.choice([parent[key], None, *NUMBERS])
    elif parent is not root:
        parent.extend([parent[key]] * chance.choice((1, 2, 50)))
    return f"{key} doubled"


def _moved(root: list[Any], parent: Any, key: Any, chance: random.Random) -> str:
    """An object's key goes into another object."""
    value = parent.pop(key)
    targets = [root[0]] if isinstance(root[0], dict) else []
    targets += [there for holder, name in _places(root) if isinstance(there := holder[name], dict)]
    (chance.choice(targets) if targets else parent)[key] = value
    return f"{key} moved"


def _renamed(root: list[Any], parent: Any, key: Any, chance: random.Random) -> str:
    name = chance.choice([key.upper(), key + "s", key[:-1], " " + key, "_" + key])
    parent[name] = parent.pop(key)
    return f"{key} renamed to {name!r}"


def _deep() -> Any:
    value: Any = 1
    for _ in range(60):
        value = [value]
    return value


def _short(value: Any) -> str:
    return repr(value)[:60]
