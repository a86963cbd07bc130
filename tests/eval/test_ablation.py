from dataclasses import fields

import pytest

from scoutattention.config import Ablation, ScoutConfig
from scoutattention.errors import ConfigError
from scoutattention.eval.fidelity.ablation import LITERAL, ROWS, SET_BY_ROWS, ablation

from ..attention.rig import SHAPE

BASE = ScoutConfig(budget=512, block_size=16)


def table():
    return {variant.name: variant for variant in ablation(BASE, SHAPE)}


def test_all_are_the_defaults_and_exact_keeps_everything_on_the_device():
    assert (table()["all"].scout, table()["all"].device_memory) == (BASE, "slots")
    assert table()["exact"].scout == ScoutConfig().changed(budget=512, block_size=16, digest="exact")
    assert table()["exact"].device_memory == "all"


def test_the_literal_design_has_as_many_slots_as_its_budget_has_blocks():
    literal = table()["literal"]
    assert literal.device_memory == 512 // 16 * SHAPE.block_bytes(16)
    ablation = literal.scout.ablation
    assert (ablation.digest, ablation.pooling, ablation.recall_interval) == ("minmax", "max", 8)
    assert (ablation.correct_far, ablation.true_query_layers) == (False, ())


def test_each_improvement_differs_from_the_literal_design_in_one_thing():
    literal, *others = [
        vars(v.scout) | vars(v.scout.ablation) | {"ablation": None, "device_memory": v.device_memory, "name": v.name}
        for v in table().values()
    ]
    changed = {
        row["name"]: {key: row[key] for key in row if key != "name" and row[key] != literal[key]}
        for row in others
        if row["name"].startswith("+")
    }
    assert changed == {
        "+corrected": {"correct_far": True},
        "+true query layers": {"true_query_layers": BASE.ablation.true_query_layers},
        "+softmax mean": {"pooling": "mean"},
        "+keys2": {"digest": "keys2"},
        "+calibrated": {"predictor": "calibrated"},
        "+guard": {"guard": BASE.guard},
        "+slots 2x": {"device_memory": "slots"},
        "+recall by share": {"recall_target": BASE.ablation.recall_target},
    }


def test_names_are_one_each_and_rows_set_only_what_is_excluded():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(set(row.fields) <= set(SET_BY_ROWS) for row in ROWS)


def test_whoever_adds_a_setting_says_what_the_literal_design_has():
    users = {"budget", "block_size", "sink_blocks", "recent_blocks", "calibration", "ablation"}
    users |= {"on_miss", "far_query", "correction_dims", "min_scout_cosine", "recall_interval", "candidates"}
    assert set(LITERAL) == {field.name for cls in (ScoutConfig, Ablation) for field in fields(cls)} - users


def test_an_ablation_without_a_budget_is_refused():
    with pytest.raises(ConfigError, match="--budget"):
        ablation(ScoutConfig(budget=None), SHAPE)
