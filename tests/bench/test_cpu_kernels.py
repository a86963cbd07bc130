"""The benchmark of the native kernels: it checks every body, and notices a wrong one."""

import itertools
import json

import pytest
import torch

from scoutattention.bench.common.measure import interleaved, relative_error
from scoutattention.bench.kernels import native as cpu_kernels
from scoutattention.bench.kernels import stored
from scoutattention.bench.kernels.problems import Case, Problem, make_problem
from scoutattention.cli import main
from scoutattention.kernels.native import RowKernels
from scoutattention.runtime.stored import StoredKind
from scoutattention.runtime.workers import Workers, isa_levels

CASE = Case("partial", "portable", "bfloat16", 64, 4, "scattered", 1)
KEYS = {"kernel", "isa", "dtype", "head_dim", "group", "layout", "threads"}
NUMBERS = {"gbps", "share_of_read_bandwidth", "vs_sdpa", "vs_sdpa_grouped", "max_rel_err"}


def test_every_body_is_checked():
    checked = {(case.kernel, case.isa, case.dtype) for case in cpu_kernels.check_cases(quick=True)}
    dtypes = ("float32", "bfloat16", "float16", "int8", "int4")
    assert checked >= set(itertools.product(cpu_kernels.PARTIALS, isa_levels(), dtypes))
    assert {(kernel, isa) for kernel, isa, _ in checked} >= set(itertools.product(cpu_kernels.SCORES, isa_levels()))
    assert not list(cpu_kernels.wrong(quick=True))


def test_a_wrong_body_is_named(monkeypatch, capsys):
    partial = Workers.partial

    def off(*args, **options):
        result = partial(*args, **options)
        return result._replace(lse=result.lse + 0.01)

    monkeypatch.setattr(Workers, "partial", off)
    assert main(["bench", "kernels", "--quick"]) == 1
    named = capsys.readouterr().err
    assert all(f"kernel='{kernel}'" in named for kernel in cpu_kernels.PARTIALS)
    assert not any(f"kernel='{kernel}'" in named for kernel in cpu_kernels.SCORES)


def test_no_number_is_wrong(monkeypatch):
    nothing = torch.tensor([torch.nan])
    problem = Problem(lambda workers: (nothing,), lambda: (torch.zeros(1),), 4, nothing)
    monkeypatch.setattr(cpu_kernels, "small", lambda case: problem)
    assert len(list(cpu_kernels.wrong(quick=True))) == len(cpu_kernels.check_cases(quick=True))


@pytest.mark.parametrize("kernel", [*cpu_kernels.PARTIALS, *cpu_kernels.SCORES])
def test_a_problem_reads_what_it_says(kernel):
    problem = make_problem(Case(kernel, "portable", "bfloat16", 64, 4, "contiguous", 1), 1 << 20)
    assert 0.9 * (1 << 20) < problem.moved <= 1 << 20
    with Workers(1, isa="portable") as workers:
        results = problem.run(workers)
        assert workers.read(problem.memory) == int(problem.memory.flatten().view(torch.int64).sum()) % 2**64
    for got, want in zip(results, problem.wanted(), strict=True):
        assert relative_error(got, want) < cpu_kernels.LIMITS[kernel]
    for dense in problem.dense:
        out = dense().reshape(results[0].shape)
        assert relative_error(out, results[0]) < 2e-2


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("kernel", cpu_kernels.PARTIALS)
def test_a_problem_of_packed_pages_reads_what_it_says(kernel, dtype):
    problem = make_problem(Case(kernel, "portable", dtype, 64, 4, "scattered", 1), 1 << 20)
    assert 0.9 * (1 << 20) < problem.moved <= 1 << 20
    assert problem.memory.nbytes % 256 == 0
    with Workers(1, isa="portable") as workers:
        results = problem.run(workers)
    for got, want in zip(results, problem.wanted(), strict=True):
        assert relative_error(got, want) < cpu_kernels.PACKED_LIMIT


def test_cases_are_the_shapes_that_were_promised():
    cases = cpu_kernels.timed_cases(quick=False)
    assert {case.head_dim for case in cases} == {64, 128}
    assert {case.group for case in cases} == {1, 3, 4, 7, 8}
    assert {case.isa for case in cases} == set(isa_levels())
    assert len(cases) == len(set(cases))


def test_interleaved_calls_take_turns():
    seen = []
    assert len(interleaved([lambda: seen.append("a"), lambda: seen.append("b")], 2)) == 2
    assert seen == ["a", "b"] * 3


def test_json_has_a_case_for_each_timing(monkeypatch, capsys):
    monkeypatch.setattr(cpu_kernels, "timed_cases", lambda quick: [CASE])
    assert main(["bench", "kernels", "--quick", "--size", "1MiB", "--rounds", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cores"] >= 1
    (case,) = report["cases"]
    assert set(case) >= KEYS | NUMBERS
    assert case["share_of_read_bandwidth"] == pytest.approx(case["gbps"] / case["read_gbps"])
    assert case["max_rel_err"] < 1e-5
    assert case["vs_sdpa"] > 0
    assert case["vs_sdpa_grouped"] > 0
    assert {case["kind"] for case in report["weights"]} == {"Q4_1", "Q4_K", "Q8_0"}
    for case in report["weights"]:
        assert case["share_of_read_bandwidth"] == pytest.approx(case["gbps"] / case["read_gbps"])
        assert case["max_rel_err"] < stored.LIMIT


def test_every_stored_kind_is_timed_in_few_rows():
    timed = {(case.kind, case.rows) for case in stored.timed_cases(quick=False)}
    assert timed == set(itertools.product((kind.name for kind in StoredKind), stored.ROWS))


def test_a_wrong_product_is_named(monkeypatch):
    linear = RowKernels.linear
    monkeypatch.setattr(RowKernels, "linear", lambda *args: linear(*args) * 1.01)
    named = {(case.kind, case.isa) for case, _ in stored.wrong()}
    assert named == set(itertools.product((kind.name for kind in StoredKind), isa_levels()))


def test_too_little_data_is_refused(capsys):
    assert main(["bench", "kernels", "--size", "4KiB"]) == 2
    assert "below the least value 1MiB" in capsys.readouterr().err
