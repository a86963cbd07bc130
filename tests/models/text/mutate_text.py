"""Seeded changes of JSON that keep most of its structure: types swapped, keys dropped, doubled, renamed and moved."""

import copy
import random

STRANGE = [None, True, False, 0, 1, -1, 257, 258, 300, 2**31, 2**63, -(2**70), 0.5, 1e300]
STRANGE += ["", "a", "</s>", "<x>", "▁", "\ufffd", "2", [], {}, [0], ["a", 1], {"a": {}}, [[[]]], "é" * 50]
STRANGE += [{"content": "<x>"}, {"content": 3}, {"__type": "AddedToken", "content": "<y>"}]


def mutated(value, seed):
    """A copy of some JSON with one to three changes."""
    draw = random.Random(seed)
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if places := list(_places(value)):
            _change(draw, places, *draw.choice(places))
    return value


def _places(value):
    """Every element of a list or mapping; of long ones some."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys[:20] + keys[-5:]:
        yield value, key
        yield from _places(value[key])


def _change(draw, places, holder, key):
    if (isinstance(holder, dict) and key not in holder) or (isinstance(holder, list) and key >= len(holder)):
        return  # gone with an earlier change
    kind = draw.choice(("drop", "swap", "swap", "swap", "move", "double", "rename"))
    if kind == "drop":
        del holder[key]
    elif kind == "swap":
        holder[key] = copy.deepcopy(draw.choice(STRANGE))
    elif kind == "move":
        other, place = draw.choice(places)
        if isinstance(other, dict) or place < len(other):
            holder[key] = copy.deepcopy(other[place]) if isinstance(other, list) or place in other else None
    elif isinstance(holder, list):
        holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == "double":
        holder[f"{key}_"] = copy.deepcopy(holder[key])
    else:
        other = draw.choice([name for place, name in places if place is not holder and isinstance(name, str)] or ["x"])
        holder[other] = holder.pop(key)
