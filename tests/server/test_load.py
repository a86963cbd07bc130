"""`scout bench serve`: the load generator, its numbers, and the command."""

import io
import json
import math
from itertools import islice
from threading import Timer

import pytest
from matplotlib.image import imread

from scoutattention import ConfigError, PromptError
from scoutattention.bench.plot import serve_png
from scoutattention.bench.serve.load import Asked, Load, Workload, find_target, measure
from scoutattention.bench.serve.prompts import prompts
from scoutattention.bench.serve.results import Limits, result
from scoutattention.cli import main
from scoutattention.errors import KernelError
from scoutattention.server.answer import reply

from .conftest import serving
from .fake import FakeEngine

TEXT = " ".join(map(str, range(2000)))
LIMITS = Limits(1.0, 0.1)
WORKLOAD = Workload(requests=5, prompt_tokens=100, new_tokens=3, text=TEXT)


@pytest.fixture(scope="module")
def client():
    with serving(FakeEngine()) as client:
        yield client


def quiet(text):
    pass


def test_every_prompt_is_another_piece_of_the_text():
    made = list(islice(prompts(TEXT, 200, seed=1), 20))
    assert all(len(one) == 200 for one in made)
    assert len({one[:20] for one in made}) == 20
    assert all(one.partition("\n")[2] in TEXT for one in made)
    assert made == list(islice(prompts(TEXT, 200, seed=1), 20))
    assert made != list(islice(prompts(TEXT, 200, seed=2), 20))


def test_a_text_that_is_too_short():
    with pytest.raises(PromptError, match=r"lower --prompt-tokens"):
        next(prompts(TEXT, len(TEXT), 0))


def test_all_requests_are_answered_at_each_rate(client):
    loads = measure(find_target(str(client.base_url), None), WORKLOAD, (200.0, math.inf), quiet)
    assert [load.rate for load in loads] == [200, math.inf]
    for load in loads:
        assert [one.error for one in load.asked] == [None] * 5
        assert {one.new_tokens for one in load.asked} == {3}
        assert {len(one.gaps_s) for one in load.asked} == {2}
        assert {one.prompt_tokens for one in load.asked} == {100}  # a character is a token here
        assert all(0 < one.ttft_s <= one.whole_s <= load.seconds for one in load.asked)
    asked = [client.engine.prompt(number) for number in range(1, 11)]
    assert len(set(asked)) == 10


def test_a_server_that_tells_no_tokens_in_a_stream(client, monkeypatch):
    monkeypatch.setattr(reply.Reply, "events", without_usage(reply.Reply.events))
    client.engine.answers.clear()
    (load,) = measure(find_target(str(client.base_url), None), WORKLOAD, (math.inf,), quiet)
    assert {(one.prompt_tokens, one.new_tokens, one.error) for one in load.asked} == {(0, 3, None)}
    assert {len(answer.ids) for answer in client.engine.answers[2:]} == {100}


def without_usage(events):
    def told(self, form, *, at_end, with_each):
        return events(self, form, at_end=False, with_each=False)

    return told


def test_requests_come_at_the_rate(client):
    (load,) = measure(find_target(str(client.base_url), None), WORKLOAD, (20.0,), quiet)
    assert 0.05 < load.seconds < 5  # four times, of 0.05 s on average


def test_failures_are_counted_and_named():
    with serving(FakeEngine(), max_waiting=0) as client:
        target = find_target(f"{client.base_url}/v1/", None)
        client.engine.pieces = ("Hi",) * 20
        client.engine.raises_at = 2
        client.engine.raises = KernelError("it broke")

        def begin(line):
            if line != "Trying one request":  # no answer ends before all are asked for
                client.engine.go.clear()
                Timer(1.0, client.engine.go.set).start()

        (load,) = measure(target, WORKLOAD, (math.inf,), begin)
        assert {one.error for one in load.asked} >= {"it broke"}
        assert any("status 429" in str(one.error) for one in load.asked)
        client.engine.raises_at = 0
        with pytest.raises(ConfigError, match=r"did not answer a first request: status 500: .*it broke"):
            measure(target, WORKLOAD, (math.inf,), quiet)


def test_a_server_that_is_not_there_or_none():
    with pytest.raises(ConfigError, match=r"no OpenAI-compatible server answers at http://127.0.0.1:9/v1/models"):
        find_target("http://127.0.0.1:9", None)
    with pytest.raises(ConfigError, match="no OpenAI-compatible server"):
        find_target("http://[", None)
    with serving(FakeEngine(), api_key="secret") as client:
        with pytest.raises(ConfigError, match="401"):
            find_target(str(client.base_url), "wrong")
        assert find_target(str(client.base_url), "secret").model == "fake"


def test_numbers_of_a_load():
    asked = [Asked(0.1 * number, (0.01, 0.03), 0.1 * number + 0.04, 100, 3) for number in range(1, 11)]
    asked += [Asked(2.0, (), 2.0, 0, 0, "it broke")] * 2 + [Asked(0.5, (0.3, 0.3), 1.1, 100, 3)]
    found = result(Load(3.0, 2.0, asked), LIMITS)
    assert (found.requests, found.failed, found.errors) == (13, 2, ("it broke",))
    assert found.requests_per_s == 5.5
    assert found.tokens_per_s == 16.5
    assert found.goodput == 5.0
    assert found.ttft.p50 == pytest.approx(500)
    assert found.ttft.p90 == pytest.approx(900)
    assert found.between.p50 == pytest.approx(30)
    assert found.prompt_tokens == 100


def test_numbers_of_a_load_that_failed_altogether():
    found = result(Load(3.0, 2.0, [Asked(2.0, (), 2.0, 0, 0, "it broke")]), LIMITS)
    assert (found.failed, found.tokens_per_s, math.isnan(found.ttft.p50)) == (1, 0, True)


def test_the_command_prints_a_table_json_and_a_plot(client, capsys, tmp_path):
    asked = ["bench", "serve", str(client.base_url), "--rates", "50,inf", "--requests", "4", "--prompt-tokens", "50"]
    assert main([*asked, "--new-tokens", "3", "--plot", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    assert "fake: prompts of 50 tokens, answers of 3" in out
    assert "good: first token within 2 s, and 0.2 s between tokens on average" in out
    assert imread(tmp_path / "p.png").shape[0] > 500
    assert main([*asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["rate"] for row in report["rates"]] == [50, "inf"]
    assert set(report["rates"][0]["ttft"]) == {"p50", "p90", "p99"}
    assert report["model"] == "fake"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["http://127.0.0.1:9"], "no OpenAI-compatible server answers"),
        (["http://127.0.0.1:9", "--rates", "fast"], "--rates='fast' is not a list of numbers above 0"),
        (["http://127.0.0.1:9", "--rates", "0"], "--rates='0'"),
        (["http://127.0.0.1:9", "--rates", "nan"], "--rates='nan'"),
        (["http://127.0.0.1:9", "--max-ttft", "0"], "--max-ttft=0.0"),
        (["http://127.0.0.1:9", "--max-between", "inf"], "--max-between=inf"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, args, message):
    assert main(["bench", "serve", *args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_plot_has_a_point_for_each_rate():
    loads = [Load(rate, 2.0, [Asked(0.1, (0.01,), 0.2, 100, 2)]) for rate in (1.0, math.inf)]
    assert imread(io.BytesIO(serve_png([result(load, LIMITS) for load in loads], "m"))).ndim == 3


@pytest.mark.slow
def test_a_server_is_started_for_a_model(tiny_models, capsys, monkeypatch):
    monkeypatch.setenv("SCOUT_BUDGET", "96")
    asked = ["bench", "serve", str(tiny_models["llama"]), "--rates", "inf", "--requests", "3", "--prompt-tokens", "30"]
    assert main([*asked, "--new-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rates"][0]["failed"] == 0
    assert main(["bench", "serve", "no-such-model-here/at-all", "--rates", "inf"]) == 2
    assert "no-such-model-here" in capsys.readouterr().err
