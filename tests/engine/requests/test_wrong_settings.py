"""What is no setting, or the setting of something else, is refused with a ConfigError that says what to write."""

from pathlib import Path

import pytest

from scoutattention import LLM, Ablation, ConfigError, EngineConfig, SamplingParams, ScoutConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 2048}, r"^budget is a setting of ScoutConfig: write scout=ScoutConfig\(budget=2048\)$"),
        ({"digest": "exact"}, r"of Ablation: write scout=ScoutConfig\(ablation=Ablation\(digest='exact'\)\)$"),
        ({"max_tokens": 5}, r"of SamplingParams: give generate SamplingParams\(max_tokens=5\)$"),
        (
            {"divice": "cuda"},
            "EngineConfig has no setting 'divice': 'device' is the nearest; give one of device_memory",
        ),
        (
            {"budjet": 2048},
            r"^LLM has no setting 'budjet': 'budget' is the nearest, and is a setting of ScoutConfig: write scout=S",
        ),
        ({"zzzz": 1}, "^EngineConfig has no setting 'zzzz': give one of device_memory"),
        ({"scout": "foo"}, """scout='foo' is of type str: give a ScoutConfig, as in .*, or "auto"$"""),
        ({"scout": 5}, "scout=5 is of type int: give a ScoutConfig"),
        ({"scout": {"budget": 5}}, "scout={'budget': 5} is of type dict: give a ScoutConfig"),
    ],
)
def test_wrong_settings_of_an_llm(settings, message):
    with pytest.raises(ConfigError, match=message):
        LLM("there is no such model", **settings)


def test_a_model_that_is_no_name():
    with pytest.raises(ConfigError, match="model is of type NoneType: give a name such as 'smollm2', or a path"):
        LLM(None)


def test_a_model_may_be_a_path(tiny_models):
    with LLM(Path(tiny_models["llama"])) as llm:
        assert llm.model == str(tiny_models["llama"])


@pytest.mark.parametrize(
    ("make", "name"),
    [(ScoutConfig, "budjet"), (EngineConfig, "divice"), (SamplingParams, "max_token"), (Ablation, "digests")],
)
def test_an_unknown_name(make, name):
    with pytest.raises(ConfigError, match=rf"^{make.__name__} has no setting '{name}': '\w+' .* nearest; give one of"):
        make(**{name: 3})


@pytest.mark.parametrize("ablation", [None, {"digest": "exact"}])
def test_an_ablation_that_is_none(ablation):
    with pytest.raises(ConfigError, match=r"is of type (NoneType|dict): give an Ablation, as in Ablation\(digest="):
        ScoutConfig(ablation=ablation)


def test_a_changed_copy_names_settings_of_both_classes():
    changed = ScoutConfig().changed(budget=512, digest="exact")
    assert (changed.budget, changed.ablation.digest) == (512, "exact")
    for wrong, right in (("budjet", "budget"), ("digests", "digest")):
        with pytest.raises(ConfigError, match=f"ScoutConfig and Ablation have no setting '{wrong}': '{right}' is the"):
            ScoutConfig().changed(**{wrong: 3})
