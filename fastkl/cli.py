"""The command ``fastkl``: score files of distributions that may be larger than memory, and say what was built.

``score`` walks its ``.npy`` files in windows of fixed size, so its memory use does not depend on theirs. Every input is
checked, and the room for the result reserved, before the first row is scored.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import fastkl
from fastkl._npyfile import Refused, ResultFile, RowFile
from fastkl._summary import RunningMoments, summarize
from fastkl._validation import LOGITS_METRICS, METRICS

EXIT_FAILED = 1
EXIT_REFUSED = 2  # also what argparse exits with
EXIT_MEAN_EXCEEDED = 3

_WINDOW_BYTES = 32 << 20  # of each input: large enough that mapping costs nothing, small enough for any machine
_RESULTS_PER_CHUNK = 1 << 18

_EPILOG = """\
exit status:
  0  done
  1  the work failed half-way (a full disk, a file that became shorter)
  2  an argument or a file was refused; nothing was written
  3  done, and a mean exceeds --fail-above
  129, 130, 143  stopped by a hang-up, Ctrl-C or SIGTERM
However it ends, OUT.npy is a whole result or what it was before.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: those of the process) and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except Refused as error:
        message, status = str(error), EXIT_REFUSED
    except _Stopped as stopped:
        message, status = f"stopped by {stopped.signal.name}", 128 + stopped.signal
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message, status = f"{where}{error.strerror or error}", EXIT_FAILED
    except MemoryError as error:
        message, status = f"out of memory: {error}", EXIT_FAILED
    print(f"fastkl: error: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastkl", description="Divergences of millions of pairs of distributions.")
    parser.add_argument("--version", action="version", version=f"fastkl {fastkl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    score = commands.add_parser(
        "score",
        help="score every row of P against the same row of Q",
        description="Score every row of P against the same row of Q (or one row against all), a number a row.\n"
        "With --logits the rows are logits, whose softmax is scored.\n"
        "With --gaussian the files are the means and scales of Gaussians: P's, and Q's unless Q is N(0, I).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.set_defaults(run=_score)
    score.add_argument("p", metavar="P.npy", help="array (..., K); a row along the last axis is one distribution")
    score.add_argument("q", metavar="Q.npy", help="array of the same shape; either file may hold one row, against all")
    score.add_argument(
        "prior", metavar="PRIOR.npy", nargs="*", help="with --gaussian: means and scales of Q; the two before are P's"
    )
    score.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT.npy",
        help="one metric: an array of the shape of P "
        "without its last axis; several: the same with a field each, numpy.load(OUT)['kl']",
    )
    score.add_argument(
        "--metric",
        action="append",
        metavar="NAME",
        choices=tuple(dict.fromkeys(METRICS + LOGITS_METRICS)),
        help="repeat for several in one pass (default: kl): "
        + ", ".join(METRICS)
        + "; with --logits: "
        + ", ".join(LOGITS_METRICS),
    )
    family = score.add_mutually_exclusive_group()
    family.add_argument("--logits", action="store_true", help="score the softmax of rows of logits")
    family.add_argument(
        "--gaussian",
        choices=("var", "std", "logvar"),
        help="score Gaussians with independent components; what their scales are",
    )
    score.add_argument("--no-normalize", action="store_true", help="do not divide rows by their sums")
    score.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of --logits (default: 1)")
    score.add_argument("--base", type=float, metavar="B", help="of the logarithms (default: e)")
    score.add_argument("--weight", type=float, default=0.5, metavar="W", help="of P in js, js_distance (default: 0.5)")
    score.add_argument("--alpha", type=float, metavar="A", help="order of renyi")
    score.add_argument("--positions", metavar="X.npy", help="of the K bins, for wasserstein (default: 0 … K-1)")
    score.add_argument("--dtype", choices=["bfloat16"], help="what 2-byte integers in the files stand for")
    score.add_argument("--threads", type=int, metavar="N", help="at most so many")
    score.add_argument("--force", action="store_true", help="replace OUT.npy, in one step, when the new one is whole")
    score.add_argument("--json", action="store_true", help="the summary as JSON; what is not finite as a string")
    score.add_argument(
        "--fail-above",
        type=_threshold,
        metavar="X",
        help="exit with status 3 when the mean of a metric exceeds X or is NaN",
    )

    info = commands.add_parser("info", help="what was built, what runs, how many threads and why")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if math.isnan(value):
        raise argparse.ArgumentTypeError("NaN is no bound")
    return value


def _info(arguments: argparse.Namespace) -> int:
    with _standard_output():
        if arguments.json:
            print(json.dumps(fastkl.show_config(mode="dicts"), indent=2))
        else:
            fastkl.show_config()
    return 0


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """For all that is printed: a reader that has seen enough and left is no failure, a full disk is one."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has somewhere to go
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None


def _score(arguments: argparse.Namespace) -> int:
    metrics = tuple(dict.fromkeys(arguments.metric or ["kl"]))
    bfloat16 = arguments.dtype == "bfloat16"
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_StopSignals())
        if arguments.gaussian:
            score = _gaussian_scoring(arguments)
        elif arguments.logits:
            score = _logits_scoring(arguments, metrics)
        else:
            score = _discrete_scoring(arguments, metrics)
        paths = (arguments.p, arguments.q, *arguments.prior)
        files = [stack.enter_context(RowFile(path, bfloat16=bfloat16)) for path in paths]
        shape = _result_shape(files)
        try:  # no rows: only the types and the options are looked at
            empty = score(*(np.empty((0, file.row_length), file.dtype) for file in files))
        except (TypeError, ValueError) as error:
            raise Refused(str(error)) from None
        dtype = _result_dtype(empty)
        result = stack.enter_context(
            ResultFile(arguments.output, shape, dtype, force=arguments.force, inputs=files),
        )

        started = time.perf_counter()
        moments = _score_rows(score, files, result, signals)
        seconds = time.perf_counter() - started
        result.commit()

        def column(metric: str) -> Iterator[NDArray[Any]]:
            for records in result.chunks(_RESULTS_PER_CHUNK):
                signals.check()
                yield records if dtype.names is None else records[metric]

        n_rows = math.prod(shape)
        names = ("mean_p", "scale_p", "mean_q", "scale_q") if arguments.gaussian else ("p", "q")
        summary = {
            **dict(zip(names, paths, strict=False)),
            "output": arguments.output,
            "shape": list(shape),
            "rows": n_rows,
            "row_length": files[0].row_length,
            "base": arguments.base,
            **({"temperature": arguments.temperature} if arguments.logits else {}),
            "metrics": {metric: summarize(moments[metric], partial(column, metric)) for metric in metrics},
            "seconds": seconds,
            "rows_per_second": n_rows / seconds,
            "gigabytes_per_second": n_rows * _bytes_per_row(files) / seconds / 1e9,
            "simd_level": fastkl.simd_level(),
            "threads": arguments.threads or fastkl.get_num_threads(),
        }
    with _standard_output():
        print(json.dumps(_strict(summary), indent=2) if arguments.json else _in_words(summary))
    return _verdict(summary["metrics"], arguments.fail_above)


#: Of a window of rows of each file: the results by metric.
_Scoring: TypeAlias = Callable[..., dict[str, Any]]


def _discrete_scoring(arguments: argparse.Namespace, metrics: tuple[str, ...]) -> _Scoring:
    _refuse_more_than_two_files(arguments)
    _refuse_unused("distributions have no temperature, unless --logits gives them", arguments, "--temperature")
    return partial(
        fastkl.score,
        metrics=metrics,
        normalize=not arguments.no_normalize,
        base=arguments.base,
        weight=arguments.weight,
        alpha=arguments.alpha,
        positions=None if arguments.positions is None else _load_positions(arguments.positions),
        n_threads=arguments.threads,
        dtype=arguments.dtype,
    )


def _logits_scoring(arguments: argparse.Namespace, metrics: tuple[str, ...]) -> _Scoring:
    _refuse_more_than_two_files(arguments)
    _refuse_unused("--logits scores the softmax of rows", arguments, "--no-normalize", "--alpha", "--positions")
    return partial(
        fastkl.score_from_logits,
        metrics=metrics,
        temperature=arguments.temperature,
        base=arguments.base,
        weight=arguments.weight,
        n_threads=arguments.threads,
        dtype=arguments.dtype,
    )


def _refuse_more_than_two_files(arguments: argparse.Namespace) -> None:
    if arguments.prior:
        raise Refused(f"{len(arguments.prior) + 2} files: two are compared, unless --gaussian says what they are")


def _refuse_unused(reason: str, arguments: argparse.Namespace, *options: str) -> None:
    """Refuse options that would have no effect."""
    is_given = {
        "--metric": arguments.metric not in (None, ["kl"]),
        "--no-normalize": arguments.no_normalize,
        "--temperature": arguments.temperature != 1,
        "--base": arguments.base is not None,
        "--alpha": arguments.alpha is not None,
        "--positions": arguments.positions is not None,
    }
    given = ", ".join(option for option in options if is_given[option])
    if given:
        raise Refused(f"{reason}: leave out {given}")


def _gaussian_scoring(arguments: argparse.Namespace) -> _Scoring:
    if len(arguments.prior) not in (0, 2):
        raise Refused(f"--gaussian needs two files, or four with those of Q, got {len(arguments.prior) + 2}")
    _refuse_unused(
        "--gaussian scores the KL divergence in nats",
        arguments,
        *("--metric", "--no-normalize", "--temperature", "--base", "--alpha", "--positions"),
    )

    def score(*operands: NDArray[Any]) -> dict[str, Any]:
        values = fastkl.gaussian_kl(
            *operands, scale=arguments.gaussian, n_threads=arguments.threads, dtype=arguments.dtype
        )
        return {"kl": values}

    return score


def _score_rows(
    score: _Scoring, files: Sequence[RowFile], result: ResultFile, signals: "_StopSignals"
) -> dict[str, RunningMoments]:
    """Fill the result window by window, and return the moments of each metric."""
    moments: dict[str, RunningMoments] = defaultdict(RunningMoments)
    with _Progress(result.n_rows, _bytes_per_row(files)) as progress:
        for stop, rows in _windows(files, result.n_rows):
            values = score(*rows)
            result.append(_as_records(values, result.dtype))
            for metric, column in values.items():
                moments[metric].add(column)
            progress.show(stop)
            signals.check()
    return moments


def _result_shape(files: Sequence[RowFile]) -> tuple[int, ...]:
    """Shape of the result: rows pair up one to one, or one row stands against all."""
    shapes = " and ".join(f"{file.path}{' has shape' if i == 0 else ''} {file.shape}" for i, file in enumerate(files))
    if len({file.row_length for file in files}) > 1:
        raise Refused(f"{shapes}: their rows differ in length")
    try:
        shape = np.broadcast_shapes(*(file.shape[:-1] for file in files))
    except ValueError:
        shape = None
    if shape is None or any(file.n_rows not in (1, math.prod(shape)) for file in files):
        raise Refused(f"{shapes}: the same shape, or one row in {'one' if len(files) == 2 else 'some'}, is needed")
    return shape


def _load_positions(path: str) -> NDArray[Any]:
    with RowFile(path) as file:
        if len(file.shape) != 1:
            raise Refused(f"{path}: has shape {file.shape}; positions are one number a bin")
        return np.array(file.rows(0, 1)[0])


def _result_dtype(values: Mapping[str, NDArray[Any]]) -> np.dtype[Any]:
    """One metric: its type; several: a record with a field each."""
    if len(values) == 1:
        return next(iter(values.values())).dtype
    return np.dtype([(metric, column.dtype) for metric, column in values.items()])


def _as_records(values: Mapping[str, NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.names is None:
        return next(iter(values.values()))
    records = np.empty(len(next(iter(values.values()))), dtype)
    for metric, column in values.items():
        records[metric] = column
    return records


def _bytes_per_row(files: Sequence[RowFile]) -> int:
    """Bytes read for one row of the result; a row that stands against all others is read once."""
    n_rows = max(file.n_rows for file in files)
    return sum(file.row_bytes for file in files if file.n_rows == n_rows)


def _windows(files: Sequence[RowFile], n_rows: int) -> Iterator[tuple[int, list[NDArray[Any]]]]:
    """Windows on the rows of all files, each with the number of rows up to its end; a single row is read but once."""
    held = {file: np.array(file.rows(0, 1)) for file in files if file.n_rows == 1}
    rows_per_window = max(1, _WINDOW_BYTES // max(file.row_bytes for file in files))
    for start in range(0, n_rows, rows_per_window):
        stop = min(start + rows_per_window, n_rows)
        yield stop, [held[file] if file in held else file.rows(start, stop) for file in files]


def _verdict(metrics: Mapping[str, Mapping[str, float]], threshold: float | None) -> int:
    """Exit status by the means, with the reason on standard error."""
    if threshold is None:
        return 0
    status = 0
    for metric, numbers in metrics.items():
        if not numbers["mean"] <= threshold:
            print(f"fastkl: the mean {metric} of {numbers['mean']:.6g} exceeds {threshold:g}", file=sys.stderr)
            status = EXIT_MEAN_EXCEEDED
    return status


_LINES = {
    "mean": "mean",
    "standard_error": "standard error",
    "finite_mean": "mean of finite rows",
    "finite_standard_error": "its standard error",
    "min": "min",
    "median": "median",
    "p90": "90 %",
    "p95": "95 %",
    "p99": "99 %",
    "p99_9": "99.9 %",
    "max": "max",
    "inf": "infinite rows",
    "nan": "NaN rows",
}


def _in_words(summary: Mapping[str, Any]) -> str:
    metrics = summary["metrics"]
    all_finite = not any(numbers["inf"] or numbers["nan"] for numbers in metrics.values())
    lines = [f"{summary['rows']:,} rows of {summary['row_length']:,} scored, written to {summary['output']}"]
    lines.append(" " * 20 + "".join(f"{metric:>18}" for metric in metrics))
    for key, label in _LINES.items():
        if key.startswith("finite") and all_finite:
            continue
        form = ",d" if key in ("inf", "nan") else ".9g"
        lines.append(f"{label:20}" + "".join(f"{numbers[key]:>18{form}}" for numbers in metrics.values()))
    lines.append(
        f"{summary['seconds']:.3g} s: {summary['rows_per_second'] / 1e6:.3g} million rows/s,"
        f" {summary['gigabytes_per_second']:.3g} GB/s with {summary['threads']} threads, {summary['simd_level']}"
    )
    return "\n".join(lines)


def _strict(value: Any) -> Any:
    """The value with each NaN and infinite number as a string, because JSON has no number for them."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class _Progress:
    """A line on standard error that tells how far the work is; nothing where standard error is no terminal."""

    def __init__(self, n_rows: int, bytes_per_row: int) -> None:
        self._n_rows = n_rows
        self._bytes_per_row = bytes_per_row
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._started = self._next = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + 0.2
        seconds = max(now - self._started, 1e-9)
        share = done / self._n_rows
        speed = done * self._bytes_per_row / seconds / 1e9
        left = seconds / share - seconds
        sys.stderr.write(f"\r\x1b[K{share:6.1%} of {self._n_rows:,} rows, {speed:.3g} GB/s, {left:.0f} s left")
        sys.stderr.flush()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class _Stopped(Exception):
    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


class _StopSignals:
    """Within the block, the first SIGINT, SIGTERM or SIGHUP makes the next ``check`` raise.

    Raised at a known place, the exception cannot strike in the middle of the clean-up that it causes. The second such
    signal ends the process at once.
    """

    _SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def __init__(self) -> None:
        self._received: int | None = None

    def check(self) -> None:
        if self._received is not None:
            raise _Stopped(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __enter__(self) -> "_StopSignals":
        # nohup and a shell's background jobs ignore some of them, and that stays so.
        heard = [each for each in self._SIGNALS if signal.getsignal(each) not in (signal.SIG_IGN, None)]
        self._before = {each: signal.signal(each, self._receive) for each in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
