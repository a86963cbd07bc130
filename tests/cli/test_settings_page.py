"""docs/settings.md is what the settings say of themselves."""

from pathlib import Path

import pytest

from scoutattention.cli.settings import FIXED, REPEATED, settings_of
from scoutattention.cli.settings_page import main, page
from scoutattention.config import Ablation, EngineConfig, SamplingParams, ScoutConfig
from scoutattention.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run python -m scoutattention.cli.settings_page docs/settings.md"


def test_the_page_has_every_setting_and_fits():
    lines = page().splitlines()
    assert len(lines) <= 200
    for cls in (ScoutConfig, EngineConfig, SamplingParams, Ablation):
        for name, (_, about) in settings_of(cls).items():
            (row,) = (line for line in lines if line.startswith(f"| `{name}`"))
            assert about.help in row
            assert about.change in row
            flag = cls is not Ablation and name not in FIXED
            assert (f"`--{name.replace('_', '-')}`" in row) == flag
            assert (f"`SCOUT_{name.upper()}`" in row) == (flag and name not in REPEATED)


def test_the_page_is_written_to_the_file_that_is_named(tmp_path):
    main([str(tmp_path / "a.md")])
    assert (tmp_path / "a.md").read_text() == page()
    with pytest.raises(ConfigError, match="takes 1 argument"):
        main([])
