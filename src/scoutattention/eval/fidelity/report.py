"""Measurements as plain values, of one text and over several texts."""

from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from .ablation import Variant
from .measure import Fidelity

SCALARS = tuple(field.name for field in fields(Fidelity) if field.name not in ("kl", "share", "layers", "calibration"))
LARGER_IS_BETTER = ("top1_agreement", "far_recall", "recall_interval")


@dataclass(frozen=True)
class Measured:
    """One text and one configuration."""

    text: str
    variant: Variant
    fidelity: Fidelity


def scalars(result: Fidelity) -> dict[str, float | None]:
    """The numbers that are not of single steps or layers."""
    return {name: getattr(result, name) for name in SCALARS}


def mean(results: list[Fidelity]) -> dict[str, float | None]:
    """Each scalar's mean over texts; None if it was measured on no text."""
    return {name: fmean(values) if (values := _values(results, name)) else None for name in SCALARS}


def worst(results: list[Fidelity]) -> dict[str, float | None]:
    """Each scalar's worst value over texts; None if it was measured on no text."""
    return {
        name: (min if name in LARGER_IS_BETTER else max)(values) if (values := _values(results, name)) else None
        for name in SCALARS
    }


def _values(results: list[Fidelity], name: str) -> list[float]:
    return [value for result in results if (value := getattr(result, name)) is not None]


def report(measured: list[Measured], about: dict[str, Any], *, ablate: bool) -> dict[str, Any]:
    """One object for programs.

    about: what all measurements share, such as the model.   ablate: whether each text has rows of configurations.
    One text is that object itself; several are its `texts`, beside their `mean` and `worst`.
    """
    texts = list(dict.fromkeys(item.text for item in measured))
    of_text = {text: [item for item in measured if item.text == text] for text in texts}
    if ablate:
        objects = [about | {"text": text, "rows": [_row(item) for item in of_text[text]]} for text in texts]
    else:
        objects = [about | {"text": text} | _numbers(of_text[text][0]) for text in texts]
    if len(objects) == 1:
        return objects[0]
    return about | {"texts": objects} | _summaries(measured, ablate=ablate)


def _summaries(measured: list[Measured], *, ablate: bool) -> dict[str, Any]:
    if not ablate:
        results = [item.fidelity for item in measured]
        return {"mean": mean(results), "worst": worst(results)}
    of_name = by_name(measured)
    return {
        "mean": [{"name": name} | mean(results) for name, results in of_name.items()],
        "worst": [{"name": name} | worst(results) for name, results in of_name.items()],
    }


def by_name(measured: list[Measured]) -> dict[str, list[Fidelity]]:
    """The texts' measurements of each configuration."""
    names = dict.fromkeys(item.variant.name for item in measured)
    return {name: [item.fidelity for item in measured if item.variant.name == name] for name in names}


def _row(item: Measured) -> dict[str, Any]:
    return {"name": item.variant.name} | _numbers(item)


def _numbers(item: Measured) -> dict[str, Any]:
    config = asdict(item.variant.scout) | {"device_memory": item.variant.device_memory}
    return asdict(item.fidelity) | {"config": config}
