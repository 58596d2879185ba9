"""The command line: what ``fastkl score`` writes, says and refuses, and what is left when it is stopped half-way.

Files of the size that memory cannot hold are sparse: they take no room on the disk, and their zero rows score NaN.
"""

import contextlib
import json
import math
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from logits_oracle import METRICS as LOGITS_METRICS
from oracles import bfloat16_bits

import fastkl
from fastkl import _summary, cli

N, K = 1000, 24


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory with P.npy and Q.npy in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(fastkl.__file__).parents[1]))  # other processes test it too
    rng = np.random.default_rng(7)
    np.save("P.npy", rng.gamma(0.5, size=(N, K)))
    np.save("Q.npy", rng.gamma(0.5, size=(N, K)))
    return tmp_path


def load_inputs():
    return np.load("P.npy"), np.load("Q.npy")


def run(*arguments, status=0, before="", after="", **options):
    """The completed process of ``fastkl`` with these arguments, its exit status checked.

    ``before`` and ``after`` are statements that the process runs around the command.
    """
    program = (
        f"import os, re, resource, sys\n{before}\nfrom fastkl.cli import main\nstatus = main(sys.argv[1:])\n{after}"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nsys.exit(status)", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == status, done.stderr
    return done


def assert_refused(capsys, *arguments, says, status=cli.EXIT_REFUSED):
    """The command ends with one line of error that holds ``says``, and leaves the directory as it was."""
    before = {path: path.read_bytes() for path in pathlib.Path().iterdir() if path.is_file() and not path.is_symlink()}
    assert cli.main([*map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastkl: error: ") and captured.err.count("\n") == 1
    assert says in captured.err
    after = {path: path.read_bytes() for path in pathlib.Path().iterdir() if path.is_file() and not path.is_symlink()}
    assert after == before


def make_sparse(path, n_rows, row_length, rows=()):
    """An .npy file of zeros, except for the given rows {number: values}, that takes almost no room on the disk."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (n_rows, row_length)}
        )
        start = file.tell()
        file.truncate(start + n_rows * row_length * 8)
        for number, values in dict(rows).items():
            file.seek(start + number * row_length * 8)
            file.write(np.asarray(values, "<f8").tobytes())


def _heed_signals():
    """As from a terminal: a process in the background, or under nohup, inherits that some signals are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def long_job(*arguments):
    """A process that scores 128 GiB of zeros and has begun to; its partial file is there."""
    for name in ("P_long.npy", "Q_long.npy"):
        make_sparse(name, 1 << 17, 1 << 16)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastkl", "score", "P_long.npy", "Q_long.npy", "-o", "OUT.npy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_signals,
    )
    try:
        deadline = time.monotonic() + 60
        while not partial_files():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate()


def partial_files():
    return [path.name for path in pathlib.Path().glob("*.partial")]


# What is written


def test_one_metric_is_a_plain_array(folder):
    run("score", "P.npy", "Q.npy", "-o", "OUT.npy")
    written = np.load("OUT.npy")
    np.testing.assert_array_equal(written, fastkl.kl_divergence(*load_inputs()))
    assert written.dtype == np.float64
    assert partial_files() == []


def test_several_metrics_are_fields(folder):
    run("score", "P.npy", "Q.npy", "-o", "OUT.npy", "--metric", "kl", "--metric", "js", "--metric", "wasserstein")
    written = np.load("OUT.npy")
    assert written.shape == (N,)
    assert written.dtype.names == ("kl", "js", "wasserstein")
    for name, expected in fastkl.score(*load_inputs(), ("kl", "js", "wasserstein")).items():
        np.testing.assert_array_equal(written[name], expected)


def test_options_reach_the_functions(folder):
    np.save("X.npy", np.arange(K) ** 2.0)
    metrics = ("kl", "js", "renyi", "wasserstein")
    options = ["--base", 2, "--weight", 0.25, "--alpha", 0.5, "--no-normalize", "--positions", "X.npy", "--threads", 1]
    run("score", "P.npy", "Q.npy", "-o", "OUT.npy", *options, *(f"--metric={name}" for name in metrics))
    expected = fastkl.score(
        *load_inputs(), metrics, base=2, weight=0.25, alpha=0.5, normalize=False, positions=np.arange(K) ** 2.0
    )
    for name in metrics:
        np.testing.assert_array_equal(np.load("OUT.npy")[name], expected[name])


@pytest.mark.parametrize(
    ("p_shape", "q_shape", "result_shape"),
    [
        ((N, K), (K,), (N,)),
        ((N, K), (1, K), (N,)),
        ((K,), (N, K), (N,)),
        ((10, 20, K), (10, 20, K), (10, 20)),
        ((10, 20, K), (1, 1, K), (10, 20)),
        ((10, 1, K), (1, K), (10, 1)),
        ((K,), (K,), ()),
        ((1, K), (K,), (1,)),
        ((0, K), (0, K), (0,)),
        ((0, K), (K,), (0,)),
    ],
)
def test_shapes(folder, capsys, p_shape, q_shape, result_shape):
    p, q = (np.random.default_rng(1).random(shape) for shape in (p_shape, q_shape))
    np.save("P.npy", p)
    np.save("Q.npy", q)
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy"]) == 0
    written = np.load("OUT.npy")
    assert written.shape == result_shape
    np.testing.assert_array_equal(written, fastkl.kl_divergence(p, q))
    assert f"{math.prod(result_shape):,} rows" in capsys.readouterr().out


@pytest.mark.parametrize("window_bytes", [1, 5 * K * 8, 1 << 20])
@pytest.mark.parametrize("q_rows", [N, 1])
def test_result_does_not_depend_on_the_window(folder, monkeypatch, window_bytes, q_rows):
    q = np.load("Q.npy")[:q_rows]
    np.save("Q.npy", q)
    monkeypatch.setattr(cli, "_WINDOW_BYTES", window_bytes)
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy"]) == 0
    np.testing.assert_array_equal(np.load("OUT.npy"), fastkl.kl_divergence(np.load("P.npy"), q))


def test_fortran_order(folder, monkeypatch):
    monkeypatch.setattr(cli, "_WINDOW_BYTES", 7 * K * 8)
    p, q = load_inputs()
    np.save("P.npy", np.asfortranarray(p))
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy"]) == 0
    np.testing.assert_array_equal(np.load("OUT.npy"), fastkl.kl_divergence(p, q))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_format_versions(folder, version):
    p, q = load_inputs()
    with open("P.npy", "wb") as file:
        np.lib.format.write_array(file, p, version=version)
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy"]) == 0
    np.testing.assert_array_equal(np.load("OUT.npy"), fastkl.kl_divergence(p, q))


@pytest.mark.parametrize("dtype", [">f8", ">f4", "f4", "f2", "u1", "i8", "?"])
def test_dtypes(folder, dtype):
    p, q = ((array * 100).astype(dtype) for array in load_inputs())
    np.save("P.npy", p)
    np.save("Q.npy", q)
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--metric", "js"]) == 0
    expected = fastkl.js_divergence(p, q)
    written = np.load("OUT.npy")
    assert written.dtype == expected.dtype
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("saved_as", ["bfloat16", "uint16"])
def test_bfloat16(folder, saved_as):
    p, q = (array.astype(ml_dtypes.bfloat16) for array in load_inputs())
    np.save("P.npy", p.view(saved_as) if saved_as == "uint16" else p)
    np.save("Q.npy", q.view(saved_as) if saved_as == "uint16" else q)
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--metric", "js", "--dtype", "bfloat16"]) == 0
    np.testing.assert_array_equal(np.load("OUT.npy"), fastkl.js_divergence(p, q))


def test_a_file_against_itself(folder):
    assert cli.main(["score", "P.npy", "P.npy", "-o", "OUT.npy"]) == 0
    np.testing.assert_array_equal(np.load("OUT.npy"), np.zeros(N))


# What is said


def spoil_some_rows():
    """Give P and Q rows of every outcome: finite, infinite and NaN."""
    p, q = load_inputs()
    q[10:40] *= np.arange(K) > 2
    p[100:103] = 0
    p[200, 5] = np.nan
    np.save("P.npy", p)
    np.save("Q.npy", q)


def recomputed(values):
    """The summary of one metric, from the values written, by NumPy."""
    numbers = values[~np.isnan(values)]
    finite = values[np.isfinite(values)]
    quantiles = np.quantile(finite, [0.5, 0.9, 0.95, 0.99, 0.999]) if finite.size == numbers.size else None
    with np.errstate(invalid="ignore"):
        standard_error = values.std(ddof=1) / math.sqrt(values.size)
    return {
        "mean": values.mean(),
        "standard_error": standard_error,
        "finite_mean": finite.mean(),
        "finite_standard_error": finite.std(ddof=1) / math.sqrt(finite.size),
        "min": numbers.min(),
        "quantiles": quantiles,
        "max": numbers.max(),
        "inf": np.isinf(values).sum(),
        "nan": np.isnan(values).sum(),
    }


@pytest.mark.parametrize("spoiled", [False, True])
def test_json_is_what_the_output_gives(folder, spoiled):
    if spoiled:
        spoil_some_rows()
    done = run("score", "P.npy", "Q.npy", "-o", "OUT.npy", "--metric", "kl", "--metric", "js", "--base", 2, "--json")
    assert done.stderr == ""
    said = json.loads(done.stdout, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    written = np.load("OUT.npy")
    for metric in ("kl", "js"):
        numbers = {key: float(value) for key, value in said["metrics"][metric].items()}
        expected = recomputed(written[metric])
        quantiles = expected.pop("quantiles")
        if quantiles is not None:
            expected |= dict(zip(["median", "p90", "p95", "p99", "p99_9"], quantiles, strict=True))
        for key, value in expected.items():
            np.testing.assert_allclose(numbers[key], value, rtol=1e-13, err_msg=key)
    if spoiled:
        assert said["metrics"]["kl"]["mean"] == "NaN"
        assert said["metrics"]["kl"]["p99_9"] == "Infinity"
        assert (said["metrics"]["kl"]["inf"], said["metrics"]["kl"]["nan"]) == (30, 4)
        assert (said["metrics"]["js"]["inf"], said["metrics"]["js"]["nan"]) == (0, 4)
    assert (said["rows"], said["row_length"], said["shape"], said["base"]) == (N, K, [N], 2)
    assert said["simd_level"] == fastkl.simd_level()
    np.testing.assert_allclose(said["rows_per_second"] * said["seconds"], N)
    np.testing.assert_allclose(said["gigabytes_per_second"] * 1e9 * said["seconds"], 2 * N * K * 8)


def test_words(folder):
    spoil_some_rows()
    done = run("score", "P.npy", "Q.npy", "-o", "OUT.npy", "--metric", "kl", "--metric", "js")
    lines = {line[:20].strip(): line[20:].split() for line in done.stdout.splitlines()[2:-1]}
    assert done.stdout.startswith(f"1,000 rows of {K} scored")
    js = np.load("OUT.npy")["js"]
    assert lines["mean"] == ["nan", "nan"]
    assert float(lines["mean of finite rows"][1]) == pytest.approx(np.nanmean(js), rel=1e-8)
    assert lines["max"] == ["inf", f"{np.nanmax(js):.9g}"]
    assert lines["infinite rows"] == ["30", "0"]
    assert lines["NaN rows"] == ["4", "4"]
    assert "rows/s" in done.stdout.splitlines()[-1] and "GB/s" in done.stdout.splitlines()[-1]


def test_summary_of_no_rows(folder):
    np.save("P.npy", np.empty((0, K)))
    said = json.loads(run("score", "P.npy", "P.npy", "-o", "OUT.npy", "--json").stdout)
    assert said["rows"] == 0
    assert said["metrics"]["kl"] | {"inf": "NaN", "nan": "NaN"} == dict.fromkeys(said["metrics"]["kl"], "NaN")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("gathered", [0, 50, 1 << 21])
@pytest.mark.parametrize("kind", ["spread", "signed", "repeated", "close", "infinite"])
def test_order_statistics_are_exact(monkeypatch, kind, gathered, dtype):
    monkeypatch.setattr(_summary, "_GATHERED", gathered)
    rng = np.random.default_rng(3)
    values = {
        "spread": 10 ** rng.uniform(-30, 30, 5000),
        "signed": rng.normal(size=5000),
        "repeated": rng.integers(0, 3, 5000),
        "close": 1 + rng.integers(0, 1000, 5000) * 2.0**-52,
        "infinite": np.where(rng.random(5000) < 0.3, np.inf, rng.random(5000)),
    }[kind].astype(dtype)
    with_nan = np.concatenate([values, np.full(100, np.nan, dtype)])
    rng.shuffle(with_nan)
    ranks = [0, 1, 2500, 4499, 4990, 4999]
    found = _summary._order_statistics(lambda: iter(np.array_split(with_nan, 7)), ranks, values.size)
    assert found == dict(zip(ranks, np.sort(values)[ranks].tolist(), strict=True))


def test_moments_of_pieces_are_those_of_the_whole():
    values = 1e6 + np.random.default_rng(5).random(10_000)
    moments = _summary.RunningMoments()
    for piece in np.array_split(values, 9):
        moments.add(piece)
    assert moments.mean == pytest.approx(math.fsum(values) / values.size, rel=1e-15)
    assert moments.standard_error == pytest.approx(np.std(values, ddof=1) / 100, rel=1e-9)


def test_mean_of_both_infinities_is_nan():
    moments = _summary.RunningMoments()
    moments.add(np.array([-np.inf, 1.0, np.inf]))
    assert math.isnan(moments.mean) and moments.finite_mean == 1 and math.isnan(moments.standard_error)


@pytest.mark.parametrize(("bound", "status"), [("1e-3", 3), ("inf", 0), ("1e3", 0), ("-inf", 3)])
def test_fail_above(folder, bound, status):
    done = run("score", "P.npy", "Q.npy", "-o", "OUT.npy", f"--fail-above={bound}", status=status)
    assert ("exceeds" in done.stderr) == (status == 3)
    assert np.load("OUT.npy").shape == (N,)


def test_fail_above_fails_for_nan_and_looks_at_every_metric(folder):
    spoil_some_rows()
    done = run("score", "P.npy", "Q.npy", "-o", "OUT.npy", "--fail-above", "1e9", status=3)
    assert done.stderr == "fastkl: the mean kl of nan exceeds 1e+09\n"
    np.save("P.npy", np.ones((N, K)))  # Q has zeros: kl is infinite, js at most log 2
    done = run(
        "score", "P.npy", "Q.npy", "-o", "OUT.npy", "--force", "--metric=js", "--metric=kl", "--fail-above=1", status=3
    )
    assert done.stderr == "fastkl: the mean kl of inf exceeds 1\n"


def test_progress_on_a_terminal_only(folder):
    leader, terminal = pty.openpty()
    try:
        run("score", "P.npy", "Q.npy", "-o", "OUT.npy", stderr=terminal)
        shown = os.read(leader, 4096).decode()
    finally:
        os.close(leader)
        os.close(terminal)
    assert "100.0% of 1,000 rows" in shown and "GB/s" in shown
    assert shown.endswith("\r\x1b[K")  # the line is taken away at the end
    assert run("score", "P.npy", "Q.npy", "-o", "OUT.npy", "--force").stderr == ""


def test_reader_of_the_summary_may_leave(folder):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run("score", "P.npy", "Q.npy", "-o", "OUT.npy", "--fail-above=1e-9", stdout=writing, status=3)
    finally:
        os.close(writing)
    assert done.stderr.startswith("fastkl: the mean kl")
    assert np.load("OUT.npy").shape == (N,)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device of this system that is always full")
def test_summary_that_cannot_be_printed(folder):
    with open("/dev/full", "w") as full:
        done = run("score", "P.npy", "Q.npy", "-o", "OUT.npy", stdout=full, status=1)
    assert done.stderr == "fastkl: error: standard output: No space left on device\n"
    assert np.load("OUT.npy").shape == (N,)


def test_info(folder):
    said = run("info").stdout
    assert fastkl.simd_level() in said
    assert isinstance(json.loads(run("info", "--json").stdout), dict)


def test_version_and_help(folder):
    assert run("--version").stdout == f"fastkl {fastkl.__version__}\n"
    for metric in ("kl", "wasserstein"):
        assert metric in run("score", "--help").stdout
    assert "COMMAND" in run(status=2).stderr


# What is refused


def test_usage_errors_exit_with_2(folder, capsys):
    for arguments in (
        ["score"],
        ["score", "P.npy", "Q.npy"],
        ["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--metric", "kld"],
        ["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--fail-above", "nan"],
        ["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--fail-above", "much"],
        ["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--logits", "--gaussian", "var"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
        assert "fastkl score: error: " in capsys.readouterr().err
    assert not os.path.exists("OUT.npy")


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "Q.npy: is not an .npy file"),
        (b"1,2,3\n", "Q.npy: is not an .npy file"),
        (b"\x93NUMPY\x01\x00\x76\x00nonsense", "Q.npy: is not an .npy file"),
        (b"\x93NUMPY\x09\x00\x76\x00", "version 9.0"),
        (b"PK\x03\x04....", ".npz archive"),
    ],
    ids=["empty", "text", "header", "version", "npz"],
)
def test_what_is_no_npy_file(folder, capsys, contents, says):
    pathlib.Path("Q.npy").write_bytes(contents)
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "OUT.npy", says=says)


def test_truncated_file(folder, capsys):
    os.truncate("P.npy", 5000)
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "OUT.npy", says="P.npy: is truncated")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([None, {}]), "holds Python objects"),
        (np.float64(3), "single number"),
        (np.ones((N, K + 1)), "rows differ in length"),
        (np.ones((N - 1, K)), "the same shape, or one row in one"),
        (np.ones((2, K)), "the same shape, or one row in one"),
        (np.ones((N, K), complex), "complex"),
        (np.ones((N, K), "U3"), "U3"),
        (np.zeros((N, K), "M8[s]"), "datetime"),
        (np.ones((N, K), [("a", "f8")]), "'a'"),
        (np.ones((N, K), ml_dtypes.bfloat16), "--dtype bfloat16"),
        (np.asfortranarray(np.ones((4, N // 4, K))), "Fortran order"),
    ],
)
def test_arrays_that_cannot_be_scored(folder, capsys, array, says):
    np.save("Q.npy", array)
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "OUT.npy", says=says)


def test_rows_without_cells(folder, capsys):
    np.save("P.npy", np.empty((N, 0)))
    assert_refused(capsys, "score", "P.npy", "P.npy", "-o", "OUT.npy", says="0")


@pytest.mark.parametrize(
    "options",
    [
        ["--base", "1"],
        ["--base", "-2"],
        ["--threads", "0"],
        ["--metric", "js", "--weight", "2"],
        ["--metric", "renyi"],
        ["--metric", "renyi", "--alpha", "-1"],
        ["--metric", "wasserstein", "--positions", "P.npy"],
        ["--metric", "wasserstein", "--positions", "short.npy"],
        ["--metric", "wasserstein", "--positions", "absent.npy"],
    ],
    ids=" ".join,
)
def test_options_out_of_range(folder, capsys, options):
    np.save("short.npy", np.arange(3.0))
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "OUT.npy", *options, says="")


@pytest.mark.parametrize("scale", ["var", "std", "logvar"])
def test_gaussians(folder, capsys, monkeypatch, scale):
    monkeypatch.setattr(cli, "_WINDOW_BYTES", 777 * K * 8)  # two windows
    m, s = load_inputs()
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--gaussian", scale, "--json"]) == 0
    np.testing.assert_array_equal(np.load("OUT.npy"), fastkl.gaussian_kl(m, s, scale=scale))
    summary = json.loads(capsys.readouterr().out)
    assert (summary["mean_p"], summary["scale_p"], summary["rows"]) == ("P.npy", "Q.npy", N)
    assert "mean_q" not in summary

    np.save("mean.npy", m[:1] + 1)
    arguments = ["score", "P.npy", "Q.npy", "mean.npy", "Q.npy", "-o", "PAIRS.npy", "--gaussian", scale]
    assert cli.main([*arguments, "--fail-above", "0.001"]) == cli.EXIT_MEAN_EXCEEDED
    np.testing.assert_array_equal(np.load("PAIRS.npy"), fastkl.gaussian_kl(m, s, m[:1] + 1, s, scale=scale))


def test_logits(folder, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_WINDOW_BYTES", 777 * K * 8)  # two windows
    p, q = (np.log(x) for x in load_inputs())
    p[3, 5], q[7, 5], p[11] = -np.inf, -np.inf, -np.inf
    np.save("P.npy", p)
    np.save("Q.npy", q)
    metrics = [f"--metric={name}" for name in LOGITS_METRICS]
    arguments = ["score", "P.npy", "Q.npy", "-o", "OUT.npy", "--logits"]
    assert cli.main([*arguments, *metrics, "--temperature", "2.5", "--base", "2", "--weight", "0.25", "--json"]) == 0
    written = np.load("OUT.npy")
    expected = fastkl.score_from_logits(p, q, LOGITS_METRICS, temperature=2.5, base=2, weight=0.25)
    for name in LOGITS_METRICS:
        np.testing.assert_array_equal(written[name], expected[name])
    summary = json.loads(capsys.readouterr().out)
    assert (summary["p"], summary["temperature"], summary["base"]) == ("P.npy", 2.5, 2)
    assert summary["metrics"]["kl"]["inf"] == 1 and summary["metrics"]["kl"]["nan"] == 1

    np.save("one.npy", q[:1].astype(np.float32))
    assert cli.main(["score", "P.npy", "one.npy", "-o", "ONE.npy", "--logits", "--fail-above", "0"]) == 3
    np.testing.assert_array_equal(np.load("ONE.npy"), fastkl.kl_divergence_from_logits(p, q[:1].astype(np.float32)))
    np.save("bits.npy", bfloat16_bits(q))
    assert cli.main(["score", "bits.npy", "bits.npy", "-o", "BITS.npy", "--logits", "--dtype", "bfloat16"]) == 0
    assert not np.load("BITS.npy").any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--logits", "--metric", "renyi"], "unknown metric 'renyi'; the metrics are kl, reverse_kl"),
        (["--metric", "top1_agreement"], "unknown metric 'top1_agreement'"),
        (["--logits", "--alpha", "2", "--no-normalize"], "the softmax of rows: leave out --no-normalize, --alpha"),
        (["--logits", "--positions", "P.npy"], "leave out --positions"),
        (["--logits", "--temperature", "0"], "temperature must be a finite number > 0, got 0.0"),
        (["--logits", "--temperature", "nan"], "temperature must be a finite number > 0, got nan"),
        (["--temperature", "2"], "leave out --temperature"),
        (["--gaussian", "var", "--temperature", "2"], "leave out --temperature"),
        (["P.npy", "--logits"], "3 files: two are compared"),
    ],
    ids=" ".join,
)
def test_what_logits_refuse(folder, capsys, arguments, says):
    assert_refused(capsys, "score", "P.npy", "Q.npy", *arguments, "-o", "OUT.npy", says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["P.npy", "Q.npy", "P.npy", "--gaussian", "var"], "two files, or four with those of Q, got 3"),
        (["P.npy", "Q.npy", "P.npy"], "3 files: two are compared, unless --gaussian"),
        (["P.npy", "Q.npy", "--gaussian", "var", "--metric", "js"], "leave out --metric"),
        (["P.npy", "Q.npy", "--gaussian", "var", "--base", "2", "--no-normalize"], "leave out --no-normalize, --base"),
        (["P.npy", "Q.npy", "short.npy", "Q.npy", "--gaussian", "var"], "their rows differ in length"),
        (["P.npy", "Q.npy", "two.npy", "Q.npy", "--gaussian", "var"], "the same shape, or one row in some, is needed"),
    ],
)
def test_what_gaussians_refuse(folder, capsys, arguments, says):
    np.save("short.npy", np.ones((N, K - 1)))
    np.save("two.npy", np.ones((2, K)))
    assert_refused(capsys, "score", *arguments, "-o", "OUT.npy", says=says)


def test_inputs_that_cannot_be_opened(folder, capsys):
    assert_refused(capsys, "score", "absent.npy", "Q.npy", "-o", "OUT.npy", says="absent.npy: No such file")
    assert_refused(capsys, "score", "P.npy", ".", "-o", "OUT.npy", says=".: Is a directory")
    assert_refused(capsys, "score", "/dev/null", "Q.npy", "-o", "OUT.npy", says="/dev/null: is not a regular file")


def test_outputs_that_cannot_be_made(folder, capsys):
    os.mkdir("sub")
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "absent/OUT.npy", says="no directory")
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "sub", "--force", says="is a directory")
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "P.npy/OUT.npy", says="no directory")
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "/dev/null", "--force", says="not a regular file")
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "n" * 250, says="File name too long")


def test_an_input_is_never_the_output(folder, capsys):
    os.link("Q.npy", "other name.npy")
    os.symlink("P.npy", "link.npy")
    for output in ("P.npy", "./Q.npy", "other name.npy", "link.npy"):
        assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", output, "--force", says="one of the inputs")


def test_existing_output_needs_force(folder, capsys):
    pathlib.Path("OUT.npy").write_text("precious")
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "OUT.npy", says="--force")
    os.symlink("OUT.npy", "link.npy")
    assert_refused(capsys, "score", "P.npy", "Q.npy", "-o", "link.npy", says="--force")
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "link.npy", "--force"]) == 0
    assert os.path.islink("link.npy")
    assert np.load("OUT.npy").shape == (N,)


def test_output_that_appears_during_the_work_is_left(folder, capsys, monkeypatch):
    def score(p, *arguments, **options):
        if len(p):  # the first call is without rows, to look at types and options
            pathlib.Path("OUT.npy").write_text("precious")
        return original(p, *arguments, **options)

    original = fastkl.score
    monkeypatch.setattr(fastkl, "score", score)
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy"]) == cli.EXIT_REFUSED
    assert "appeared during the work" in capsys.readouterr().err
    assert pathlib.Path("OUT.npy").read_text() == "precious"
    assert partial_files() == []


def test_input_that_shrinks_during_the_work(folder, capsys, monkeypatch):
    def score(*arguments, **options):
        result = original(*arguments, **options)
        if len(result["kl"]):
            os.truncate("Q.npy", 4096)
        return result

    original = fastkl.score
    monkeypatch.setattr(fastkl, "score", score)
    monkeypatch.setattr(cli, "_WINDOW_BYTES", 10 * K * 8)
    assert cli.main(["score", "P.npy", "Q.npy", "-o", "OUT.npy"]) == cli.EXIT_FAILED
    assert capsys.readouterr().err == "fastkl: error: Q.npy: the file became shorter while it was read\n"
    assert sorted(os.listdir()) == ["P.npy", "Q.npy"]


# What is left when the work ends early


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("force", [False, True])
def test_a_signal_leaves_nothing_new(folder, number, force):
    if force:
        pathlib.Path("OUT.npy").write_text("precious")
    with long_job(*["--force"] * force) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 128 + number
    assert errors == f"fastkl: error: stopped by {signal.Signals(number).name}\n"
    assert partial_files() == []
    assert pathlib.Path("OUT.npy").read_text() == "precious" if force else not os.path.exists("OUT.npy")


def test_a_kill_leaves_no_file_under_the_final_name(folder):
    with long_job() as process:
        process.kill()
        process.communicate(timeout=30)
    assert not os.path.exists("OUT.npy")
    assert len(partial_files()) == 1
    run("score", "P.npy", "Q.npy", "-o", "OUT.npy")  # and the next run is not in the way of the leftover
    assert np.load("OUT.npy").shape == (N,)


def test_full_disk(folder):
    disk = folder / "small disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root; the file-size limit below stands in for it")
    try:
        make_sparse("P_many.npy", 100_000, 2)
        done = run("score", "P_many.npy", "P_many.npy", "-o", disk / "OUT.npy", status=cli.EXIT_FAILED)
        assert "No space left on device" in done.stderr and done.stderr.count("\n") == 1
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("reserves", [True, False])
def test_file_size_limit(folder, reserves):
    """The limit strikes when the space is reserved, or in the middle of the writing where it cannot be."""
    make_sparse("P_many.npy", 100_000, 64)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))"
    done = run(
        *("score", "P_many.npy", "P_many.npy", "-o", "OUT.npy"),
        before=limit if reserves else f"{limit}; del os.posix_fallocate",
        status=cli.EXIT_FAILED,
    )
    assert done.stderr.startswith("fastkl: error: OUT.npy: File too large") and done.stderr.count("\n") == 1
    assert not os.path.exists("OUT.npy") and partial_files() == []


def test_inputs_larger_than_the_address_space(folder):
    """Two files of 512 MiB under a limit of 768 MiB for all mappings of the process together."""
    n_rows, row_length = 1 << 14, 1 << 12
    rng = np.random.default_rng(11)
    p, q = ({number: rng.random(row_length) for number in (0, n_rows // 3, n_rows - 1)} for _ in range(2))
    make_sparse("P_large.npy", n_rows, row_length, p)
    make_sparse("Q_large.npy", n_rows, row_length, q)
    run(
        *("score", "P_large.npy", "Q_large.npy", "-o", "OUT.npy"),
        before="resource.setrlimit(resource.RLIMIT_AS, (3 << 28, 3 << 28))",
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # NumPy's BLAS reserves address space for each thread
    )
    written = np.load("OUT.npy")
    for number in p:
        assert written[number] == fastkl.kl_divergence(p[number], q[number])
    assert np.isnan(written).sum() == n_rows - 3


def test_memory_use_is_flat(folder):
    """Files of 64 MiB and of 512 MiB: the peak of resident memory, mapped pages included, hardly differs."""
    peaks = []
    for n_rows in (1 << 17, 1 << 20):
        make_sparse("P_large.npy", n_rows, 64)
        done = run(
            *("score", "P_large.npy", "P_large.npy", "-o", "OUT.npy", "--force"),
            after="""print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])""",
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 24, f"MiB: {peaks}"
