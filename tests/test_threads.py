"""Threads, processes and levels: who decides about them, what a fork does, and what an import leaves alone.

What depends on the environment, or could hang, runs in a Python of its own.
"""

import concurrent.futures
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastkl
from fastkl import _runtime
from fastkl._kernels import _engine

ROOT = pathlib.Path(fastkl.__file__).parent.parent
LARGE = 1_000_000  # elements: enough for any number of threads
CPUS = _runtime._cpus_allowed()

needs_openmp = pytest.mark.skipif(not _engine.openmp_version(), reason="built without OpenMP")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# Every program starts with a pair of arrays, and a result that four threads computed of them.
PREAMBLE = """
import os, sys
import numpy as np
import fastkl

p = np.random.default_rng(1).random((4000, 64))
q = np.random.default_rng(2).random((4000, 64))
expected = fastkl.kl_divergence(p, q, n_threads=4)

def agrees():
    return np.array_equal(fastkl.kl_divergence(p, q, n_threads=4), expected)
"""


def run(program, *, timeout=120, **variables):
    """What a Python of its own prints, with none of the variables that fastkl reads but these."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FASTKL_", "OMP_"))}
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | {"PYTHONPATH": search_path} | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def shown_config(**variables):
    return json.loads(run("import fastkl, json; print(json.dumps(fastkl.show_config('dicts')))", **variables))


@needs_openmp
class TestPolicy:
    @pytest.mark.parametrize(
        ("variables", "number", "why"),
        [
            ({"FASTKL_NUM_THREADS": "3"}, 3, "FASTKL_NUM_THREADS=3"),
            ({"FASTKL_NUM_THREADS": " 5 ", "OMP_NUM_THREADS": "2"}, 5, "FASTKL_NUM_THREADS= 5 "),
            ({"OMP_NUM_THREADS": "1"}, 1, "OMP_NUM_THREADS=1"),
            ({"OMP_NUM_THREADS": "6,2,1"}, 6, "OMP_NUM_THREADS=6,2,1"),
            ({"FASTKL_NUM_THREADS": "", "OMP_NUM_THREADS": "7"}, 7, "OMP_NUM_THREADS=7"),
        ],
    )
    def test_variables(self, variables, number, why):
        assert _runtime._thread_policy(variables) == (number, why, ())

    @pytest.mark.parametrize("text", ["many", "0", "-2", "1.5", "4 2", ",", "1e3"])
    def test_variables_that_make_no_sense(self, text):
        policy = _runtime._thread_policy({"FASTKL_NUM_THREADS": text, "OMP_NUM_THREADS": "2"})
        assert policy == (2, "OMP_NUM_THREADS=2", (f"FASTKL_NUM_THREADS={text}",))
        number, _, ignored = _runtime._thread_policy({"FASTKL_NUM_THREADS": text, "OMP_NUM_THREADS": text})
        assert number == _runtime._thread_policy({})[0]
        assert ignored == (f"FASTKL_NUM_THREADS={text}", f"OMP_NUM_THREADS={text}")

    def test_no_variables(self):
        number, _, _ = _runtime._thread_policy({})
        assert number == max(1, min(CPUS, math.ceil(min(CPUS, _runtime._cgroup_quota()))))

    def test_more_threads_than_can_be_started(self):
        most = max(64, os.cpu_count())
        assert _runtime._thread_policy({"FASTKL_NUM_THREADS": "1000000"})[0] == most
        assert _runtime.threads_for(10**30, LARGE) == most

    def test_argument(self):
        for n_threads in (1, 2, 3, 17):
            assert _runtime.threads_for(n_threads, LARGE) == n_threads
        assert _runtime.threads_for(None, LARGE) == fastkl.get_num_threads()

    def test_small_calls_use_one_thread(self):
        assert _runtime.threads_for(8, 32_767) == 1
        assert _runtime.threads_for(8, 32_768) == 8

    def test_read_at_import(self):
        config = shown_config(FASTKL_NUM_THREADS="3", OMP_NUM_THREADS="2")
        assert config["threads"] == {"default": 3, "why": "FASTKL_NUM_THREADS=3"}
        config = shown_config(FASTKL_NUM_THREADS="x", OMP_NUM_THREADS="1")
        assert config["threads"] == {
            "default": 1,
            "why": "OMP_NUM_THREADS=1",
            "ignored": ["FASTKL_NUM_THREADS=x"],
        }

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
    def test_affinity(self):
        program = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import fastkl
print(fastkl.get_num_threads())
"""
        assert run(program) == "1"

    def test_results_do_not_depend_on_it(self):
        p, q = np.random.default_rng(3).random((2, 1001, 97))
        expected = fastkl.kl_divergence(p, q, n_threads=1)
        for n_threads in (2, 3, 8, None):
            np.testing.assert_array_equal(fastkl.kl_divergence(p, q, n_threads=n_threads), expected)

    def test_no_other_library_notices(self):
        pytest.importorskip("threadpoolctl")
        program = """
from threadpoolctl import threadpool_info
variables = dict(os.environ)
pools = threadpool_info()
fastkl.kl_divergence(p, q, n_threads=3)
fastkl.kl_divergence(p, q, n_threads=1)
assert threadpool_info() == pools, (threadpool_info(), pools)
assert dict(os.environ) == variables
"""
        run(PREAMBLE + program)


class TestControlGroups:
    """The quota, from files as the kernel lays them out."""

    @pytest.fixture
    def quota(self, tmp_path):
        def read(membership, files):
            (tmp_path / "membership").write_text(membership)
            for path, text in files.items():
                file = tmp_path / "mount" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            return _runtime._cgroup_quota(str(tmp_path / "membership"), str(tmp_path / "mount"))

        return read

    def test_version_2(self, quota):
        assert quota("0::/job\n", {"job/cpu.max": "150000 100000\n"}) == 1.5

    def test_version_2_without_limit(self, quota):
        assert quota("0::/job\n", {"job/cpu.max": "max 100000\n"}) == math.inf

    def test_limit_of_a_group_around(self, quota):
        files = {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n", "a/b/c/cpu.max": "300000 100000\n"}
        assert quota("0::/a/b/c\n", files) == 2

    def test_in_a_container_that_sees_only_its_root(self, quota):
        assert quota("0::/docker/0123/\n", {"cpu.max": "50000 100000\n"}) == 0.5

    def test_version_1(self, quota):
        files = {"cpu/job/cpu.cfs_quota_us": "250000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}
        assert quota("5:memory:/job\n4:cpu,cpuacct:/job\n", files) == 2.5

    def test_version_1_without_limit(self, quota):
        files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
        assert quota("1:cpu:/\n0::/\n", files) == math.inf

    def test_cpuacct_and_cpuset_are_not_cpu(self, quota):
        files = {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}
        assert quota("2:cpuacct:/\n3:cpuset:/\n", files) == math.inf

    @pytest.mark.parametrize("text", ["", "few many\n", "1\n", "100000 0 0\n"])
    def test_files_that_make_no_sense(self, quota, text):
        assert quota("0::/\n", {"cpu.max": text}) == math.inf

    def test_no_control_groups(self, tmp_path):
        assert _runtime._cgroup_quota(str(tmp_path / "none"), str(tmp_path)) == math.inf
        (tmp_path / "odd").write_text("odd\n")
        assert _runtime._cgroup_quota(str(tmp_path / "odd"), str(tmp_path)) == math.inf

    @needs_openmp
    @pytest.mark.parametrize(("quota", "number"), [(0.1, 1), (1.0, 1), (1.5, 2), (1000.0, CPUS), (math.inf, CPUS)])
    def test_rounded_up(self, monkeypatch, quota, number):
        monkeypatch.setattr(_runtime, "_cgroup_quota", lambda: quota)
        assert _runtime._thread_policy({})[0] == min(number, CPUS)


@needs_fork
class TestFork:
    """A child of a process that has run OpenMP threads: it must compute, not hang."""

    def test_child(self):
        program = """
import signal
child = os.fork()
if child == 0:
    signal.alarm(30)
    why = fastkl.show_config("dicts")["threads"]["why"]
    os._exit(0 if agrees() and fastkl.get_num_threads() == 1 and "forked" in why else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert agrees()
"""
        run(PREAMBLE + program)

    def test_grandchild(self):
        program = """
import signal
def descend(generations):
    signal.alarm(30)
    if generations:
        child = os.fork()
        if child == 0:
            descend(generations - 1)
        os._exit(0 if os.waitpid(child, 0)[1] == 0 and agrees() else 1)
    os._exit(0 if agrees() else 1)
child = os.fork()
if child == 0:
    descend(2)
assert os.waitpid(child, 0)[1] == 0
"""
        run(PREAMBLE + program)

    def test_fork_while_threads_compute(self):
        program = """
import signal, threading
stop = threading.Event()
def work():
    while not stop.is_set():
        assert agrees()
workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if agrees() else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for worker in workers:
    worker.join()
"""
        run(PREAMBLE + program)

    def test_multiprocessing(self):
        program = """
import multiprocessing
def work(i):
    return agrees(), fastkl.get_num_threads()
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map_async(work, range(12)).get(timeout=60) == [(True, 1)] * 12
assert agrees()
"""
        run(PREAMBLE + program)

    def test_functions_of_single_elements(self):
        program = """
import multiprocessing
from fastkl.compat.scipy_special import kl_div
expected = kl_div(p, 0.5)
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert np.array_equal(pool.apply_async(kl_div, (p, 0.5)).get(timeout=60), expected)
"""
        run(PREAMBLE + program)

    def test_workers_that_load_data(self):
        program = """
import multiprocessing, queue
def worker(indices, batches):
    for index in iter(indices.get, None):
        batches.put((index, fastkl.kl_divergence(p[index : index + 1000], q[index : index + 1000])))
context = multiprocessing.get_context("fork")
indices, batches = context.Queue(), context.Queue()
workers = [context.Process(target=worker, args=(indices, batches), daemon=True) for _ in range(2)]
for process in workers:
    process.start()
    # The parent goes on computing while its workers do.
    assert agrees()
for index in range(0, 4000, 1000):
    indices.put(index)
for _ in range(4):
    index, values = batches.get(timeout=60)
    assert np.array_equal(values, expected[index : index + 1000])
    assert agrees()
for process in workers:
    indices.put(None)
for process in workers:
    process.join(timeout=60)
    assert process.exitcode == 0
"""
        run(PREAMBLE + program)

    def test_torch_data_loader(self):
        pytest.importorskip("torch")
        program = """
import torch
class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        part = slice(1000 * i, 1000 * (i + 1))
        return torch.from_numpy(fastkl.kl_divergence(p[part], q[part]))
torch.randn(300, 300) @ torch.randn(300, 300)
assert agrees()
loader = torch.utils.data.DataLoader(Pairs(), batch_size=2, num_workers=2, timeout=60, multiprocessing_context="fork")
for _ in range(2):
    values = torch.cat([batch.reshape(-1) for batch in loader])
    assert np.array_equal(values.numpy(), expected)
    assert agrees()
"""
        run(PREAMBLE + program)


class TestConcurrentCalls:
    def test_many_threads(self):
        p, q = np.random.default_rng(4).random((2, 2000, 50))
        expected = fastkl.js_divergence(p, q, n_threads=1)
        start = threading.Barrier(8)

        def work(i):
            start.wait()
            return [fastkl.js_divergence(p, q, n_threads=1 + (i + j) % 3) for j in range(20)]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for results in pool.map(work, range(8)):
                for result in results:
                    np.testing.assert_array_equal(result, expected)

    def test_while_the_level_changes(self, level):
        p, q = np.random.default_rng(5).random((2, 2000, 50))
        expected = fastkl.kl_divergence(p, q)
        done = threading.Event()

        def change():
            while not done.is_set():
                for name in _engine.usable_levels():
                    fastkl.set_simd_level(name)

        changer = threading.Thread(target=change)
        changer.start()
        try:
            for _ in range(50):
                # Levels agree within the 8 ulp that each may be off by.
                np.testing.assert_allclose(fastkl.kl_divergence(p, q), expected, rtol=4e-15)
        finally:
            done.set()
            changer.join()

    def test_other_threads_run_meanwhile(self):
        p, q = (np.broadcast_to(row, (200_000, 100)) for row in np.random.default_rng(6).random((2, 100)))
        ticks = 0
        done = threading.Event()

        def compute():
            for _ in range(5):
                fastkl.js_distance(p, q, n_threads=1)
            done.set()

        worker = threading.Thread(target=compute)
        worker.start()
        while not done.wait(timeout=0.001):
            ticks += 1
        worker.join()
        # Five calls of tens of milliseconds each: had they held the lock, about one tick for each.
        assert ticks > 15

    @pytest.mark.parametrize("backend", ["threading", "loky"])
    def test_joblib(self, backend):
        pytest.importorskip("joblib")
        program = f"""
import joblib
def work(p, q):
    import fastkl
    return fastkl.kl_divergence(p, q), fastkl.get_num_threads()
with joblib.parallel_config(backend="{backend}", n_jobs=2):
    results = joblib.Parallel()(joblib.delayed(work)(p, q) for _ in range(6))
for values, _ in results:
    assert np.array_equal(values, expected)
if "{backend}" == "loky":
    # Its workers are told by OMP_NUM_THREADS to share the CPUs.
    assert all(n_threads == max(1, joblib.cpu_count() // 2) for _, n_threads in results), results
"""
        run(PREAMBLE + program)

    @needs_openmp
    @pytest.mark.skipif(sys.platform != "linux", reason="finds libgomp in /proc")
    def test_inside_a_parallel_region(self):
        program = """
import ctypes
from fastkl._kernels import _engine
with open("/proc/self/maps") as maps:
    libraries = {line.split()[-1] for line in maps if "libgomp" in line}
if not libraries:
    print("no libgomp")
    sys.exit()
(library,) = libraries
seen = []
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def region(_):
    seen.append((_engine.in_parallel(), fastkl.get_num_threads(), agrees()))
assert not _engine.in_parallel()
ctypes.CDLL(library).GOMP_parallel(region, None, 2, 0)
assert seen == [(True, 1, True)] * 2, seen
assert not _engine.in_parallel()
"""
        if run(PREAMBLE + program, FASTKL_NUM_THREADS="2") == "no libgomp":
            pytest.skip("built with another OpenMP than libgomp")


class TestLevels:
    def test_built_and_usable(self):
        usable = _engine.usable_levels()
        assert usable[0] == "baseline"
        assert set(usable) <= set(_engine.built_levels())
        assert fastkl.simd_level() in usable

    def test_every_usable_level_can_be_set(self, level):
        assert fastkl.simd_level() == level

    @pytest.mark.parametrize("name", ["sse9", "", "AVX2 ", "avx512,avx2"])
    def test_unknown_level(self, name):
        before = fastkl.simd_level()
        with pytest.raises(ValueError, match="level"):
            fastkl.set_simd_level(name)
        assert fastkl.simd_level() == before

    @pytest.mark.parametrize("name", _engine.usable_levels())
    def test_variable(self, name):
        for text in (name, f" {name.upper()} "):
            levels = shown_config(FASTKL_SIMD=text)["levels"]
            assert levels["in use"] == name
            assert levels["why"] == f"FASTKL_SIMD={name}"

    def test_without_the_variable(self):
        for variables in ({}, {"FASTKL_SIMD": ""}):
            levels = shown_config(**variables)["levels"]
            assert levels["in use"] == levels["usable"][-1]
            assert levels["why"].startswith("the highest")

    def test_variable_that_makes_no_sense(self):
        program = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastkl
(warning,) = caught
assert warning.category is RuntimeWarning
assert "FASTKL_SIMD=sse9 is ignored" in str(warning.message)
levels = fastkl.show_config("dicts")["levels"]
assert levels["in use"] == levels["usable"][-1]
assert "FASTKL_SIMD=sse9 is ignored" in levels["why"]
"""
        run(program, FASTKL_SIMD="sse9")


class TestShowConfig:
    def test_printed_and_returned(self, capsys):
        config = fastkl.show_config(mode="dicts")
        assert json.loads(json.dumps(config)) == config
        assert fastkl.show_config() is None
        printed = capsys.readouterr().out
        assert f"version: {fastkl.__version__}" in printed
        assert f"in use: {fastkl.simd_level()}" in printed
        assert f"default: {fastkl.get_num_threads()}" in printed

    def test_says_who_set_the_level(self, level):
        levels = fastkl.show_config(mode="dicts")["levels"]
        assert levels["in use"] == level
        assert (levels["why"] == "set_simd_level()") == (level != _runtime._LEVEL_AT_IMPORT)

    def test_other_modes(self):
        with pytest.raises(ValueError, match="mode must be 'stdout' or 'dicts', got 'json'"):
            fastkl.show_config(mode="json")


class TestImport:
    def test_brings_in_no_other_package(self):
        # In particular none of those whose arrays are recognised: SciPy, ml_dtypes, PyTorch. What Cython shares among
        # its modules has no file.
        program = """
import sys, numpy
before = set(sys.modules)
import fastkl
new = {name for name in set(sys.modules) - before if hasattr(sys.modules[name], "__file__")}
print(*(name for name in new if name.split(".")[0] != "fastkl"))
"""
        assert run(program) in ("", "__future__")

    def test_subnormal_numbers_stay(self):
        program = """
import numpy as np
smallest = np.array([5e-324, 1e-310, 2e-308])
import fastkl
for n_threads in (1, 4):
    fastkl.kl_divergence(np.ones((4000, 64)), np.ones(64), n_threads=n_threads)
    assert (smallest * 1.0 == smallest).all()
    assert (smallest > 0).all()
    assert (smallest[1:] / 4 > 0).all()
    assert float(smallest[0]) * 2.0 == 1e-323
    result = fastkl.kl_divergence([5e-324, 5e-324], [5e-324, 1.5e-323])
    assert abs(result - 0.14384103622589045) < 1e-15, result
"""
        run(program)

    @pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="reads MXCSR as glibc lays it out on x86-64"
    )
    def test_floating_point_control_stays(self):
        program = """
import ctypes, ctypes.util, threading
import numpy as np

def control():
    # fenv_t: seven words of the x87 unit, then MXCSR, whose six lowest bits are status.
    environment = (ctypes.c_uint32 * 16)()
    assert ctypes.CDLL(ctypes.util.find_library("m")).fegetenv(environment) == 0
    return environment[7] & ~0x3F

before = control()
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO = 0x8000, 0x40
assert before & (FLUSH_TO_ZERO | DENORMALS_ARE_ZERO) == 0
import fastkl
assert control() == before
fastkl.kl_divergence(np.ones((4000, 64)), np.ones(64), n_threads=4)
assert control() == before
thread = threading.Thread(target=lambda: print(control()))
thread.start()
thread.join()
print(before)
"""
        of_thread, of_process = run(program).split()
        assert of_thread == of_process
