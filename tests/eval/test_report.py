import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from scoutattention.config import ScoutConfig
from scoutattention.eval.fidelity.ablation import Variant
from scoutattention.eval.fidelity.html import page
from scoutattention.eval.fidelity.layers import Layers
from scoutattention.eval.fidelity.measure import Fidelity
from scoutattention.eval.fidelity.plot import draw, png
from scoutattention.eval.fidelity.report import SCALARS, Measured, report
from scoutattention.eval.fidelity.table import HEADINGS, rows

LAYERS = Layers([None, 0.9], [None, 0.5], [0.0, 0.1], [None, 0.0], [0.0, 0.01], [0.0, 0.02])
ONE = Fidelity(0.5, 0.9, 0.1, 0.75, 0.2, 8.0, 0.8, 0.1, 100.0, 2.0**21, 0.25, 7.0, [0.4, 0.6], [0.1, 0.3], LAYERS, None)
OTHER = replace(ONE, kl_mean=0.1, top1_agreement=1.0, far_recall=None)
ABOUT = {"model": "m", "context": 100, "steps": 2}


def measured(name, text, fidelity):
    return Measured(text, Variant(name, ScoutConfig(budget=256), None), fidelity)


SINGLE = [measured("scout", "a", ONE)]
TWO = [*SINGLE, measured("scout", "b", OTHER)]
TABLE = [measured(name, text, ONE) for text in "ab" for name in ("literal", "all", "exact")]


def test_one_text_is_one_flat_object():
    result = json.loads(json.dumps(report(SINGLE, ABOUT, ablate=False)))
    assert set(result) == {*ABOUT, "text", *SCALARS, "kl", "share", "layers", "calibration", "config"}
    assert result["layers"] == asdict(LAYERS)
    assert result["config"]["budget"] == 256
    assert result["config"]["device_memory"] is None
    assert (result["text"], result["context"], result["kl_mean"]) == ("a", 100, 0.5)


def test_several_texts_have_a_mean_and_a_worst():
    result = report(TWO, ABOUT, ablate=False)
    assert [item["text"] for item in result["texts"]] == ["a", "b"]
    assert set(result) == {*ABOUT, "texts", "mean", "worst"}
    assert result["mean"] == {**result["mean"], "kl_mean": 0.3, "top1_agreement": 0.875, "far_recall": 0.8}
    assert result["worst"] == {**result["worst"], "kl_mean": 0.5, "top1_agreement": 0.75, "far_recall": 0.8}
    assert set(result["mean"]) == set(result["worst"]) == set(SCALARS)


def test_an_ablation_has_rows():
    one = report(TABLE[:3], ABOUT, ablate=True)
    assert [row["name"] for row in one["rows"]] == ["literal", "all", "exact"]
    assert set(one) == {*ABOUT, "text", "rows"}
    both = report(TABLE, ABOUT, ablate=True)
    assert [item["text"] for item in both["texts"]] == ["a", "b"]
    assert [row["name"] for row in both["worst"]] == ["literal", "all", "exact"]
    assert both["mean"][0]["kl_p95"] == 0.9


def test_table_shows_every_number_and_leaves_gaps():
    first, second, mean, worst = rows(TWO)
    assert len(first) == len(HEADINGS)
    assert first[:4] == ["a", "scout", "0.5000", "0.9000"]
    assert first[-3:] == ["2.0 MiB", "25%", "7"]
    assert second[HEADINGS.index("Far recall")] == ""
    assert (mean[:3], worst[:3]) == (["mean", "scout", "0.3000"], ["worst", "scout", "0.5000"])
    assert len(rows(SINGLE)) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("items", [SINGLE, TWO, TABLE, [measured("scout", "a", replace(ONE, kl=[0.0, 0.0]))]])
def test_pictures_of_any_measurement(items):
    assert png(items, "m, budget 256").startswith(b"\x89PNG")


def test_plots_of_one_configuration_are_its_steps_and_layers():
    steps, scouts, far = draw(SINGLE, "m, budget 256").axes
    assert [list(line.get_ydata()) for line in steps.lines] == [ONE.kl]
    assert [line.get_ydata()[1] for line in scouts.lines] == [0.9, 0.5]
    assert [list(line.get_ydata()) for line in far.lines] == [LAYERS.share, LAYERS.w]
    assert steps.get_yscale() == "log"


def test_zero_is_drawn_as_zero():
    exact = [measured("all", "a", replace(ONE, kl=[0.0, 0.4])), measured("exact", "a", replace(ONE, kl_mean=0.0))]
    assert draw(exact[:1], "m").axes[0].get_yscale() == "symlog"
    divergence = draw(exact, "m").axes[0]
    assert divergence.get_xscale() == "symlog"
    assert [text.get_text() for text in divergence.texts] == ["", "0"]
    assert draw([replace(exact[0], fidelity=replace(ONE, kl=[0.0]))], "m").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("items", [SINGLE, TABLE])
def test_plots_say_what_they_show(items):
    figure = draw(items, "model m, budget 256")
    assert figure.get_suptitle() == "model m, budget 256"
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        legend = axes.get_legend().get_window_extent()
        assert legend.x0 >= axes.get_window_extent().x1, "beside the curves"


def test_plots_of_an_ablation_are_bars_and_the_two_ends():
    divergence, share, *others = draw([*TABLE[:3], measured("literal", "b", OTHER), *TABLE[4:]], "m").axes
    assert [bar.get_width() for bar in divergence.patches] == [0.5, 0.5, 0.5, 0.1, 0.5, 0.5]
    assert [bar.get_width() for bar in share.patches] == [0.2] * 6
    assert [label.get_text() for label in divergence.get_yticklabels()] == ["literal", "all", "exact"]
    assert [axes.get_title() for axes in others] == ["a", "Scouts", "The far part", "b", "Scouts", "The far part"]
    assert [line.get_label() for line in others[0].lines] == ["literal", "all"]


class Page(HTMLParser):
    """What a page refers to, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.links, self.cells, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.open == "td":
            self.cells.append(data)


def test_page_needs_no_other_file_and_escapes_what_it_is_given():
    text = page([measured("scout", "<a&b>", ONE)], b"picture", {"budget": 256}, "scout eval 'x<y'")
    parsed = Page(text)
    assert parsed.links == ["data:image/png;base64,cGljdHVyZQ=="]
    assert "<a&b>" in "".join(parsed.cells)
    assert "scout eval &#x27;x&lt;y&#x27;" in text
    assert "http" not in text
    assert {"budget", "256", "0.5000"} <= set(parsed.cells)


def test_page_explains_every_heading():
    text = page(SINGLE, b"picture", {}, "")
    for heading in HEADINGS:
        assert re.search(f"<dt>{heading}</dt><dd>[A-Z][^<]+\\.</dd>", text), heading
