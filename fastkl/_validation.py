"""The checks: the one place that knows shapes, dtypes, axes, ``out`` and errors.

A public function takes its operands through :func:`row_pairs`, :func:`gaussian_rows` or :func:`elements` and its other
options through the function of the same name here, asks :func:`target_for` where to write, computes, and returns what
:func:`deliver` gives. Nothing compiled is imported, so that the compiled functions and their NumPy twins in
:mod:`fastkl.reference` share every rule and message.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

    Array: TypeAlias = NDArray[Any]
    #: What a reduction returns: an array, or a NumPy scalar when no axis is left. The second is spelt Any, because a
    #: union would make every caller test for the case it knows it is not in.
    Result: TypeAlias = NDArray[np.floating[Any]] | Any
    Shape: TypeAlias = tuple[int, ...]
    #: Of a row in float64 and the name of its operand: what is wrong with it, empty if nothing is.
    Fault: TypeAlias = Callable[[NDArray[np.float64], str], str]

#: The names that ``score`` knows.
METRICS = (
    "kl",
    "reverse_kl",
    "jeffreys",
    "js",
    "js_distance",
    "cross_entropy",
    "entropy",
    "renyi",
    "total_variation",
    "hellinger",
    "wasserstein",
)

#: The names that ``score_from_logits`` knows.
LOGITS_METRICS = ("kl", "reverse_kl", "js", "js_distance", "cross_entropy", "entropy", "top1_agreement")

#: The names of two operands that are judged by the same rule, as :func:`row_pairs` takes them.
PAIR = ("p", "q")
LOGITS = ("p_logits", "q_logits")
DISTILLED = ("teacher_logits", "student_logits")

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)

_INTEGER_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
_NUMPY_TYPES = ("float64", "float32", "float16", *_INTEGER_TYPES)
_TYPE_NAMES: dict[np.dtype[Any], str] = {np.dtype(name): name for name in _NUMPY_TYPES}

# The types that give float32 together with bfloat16; all others give float64.
_FLOAT32_WITH_BFLOAT16 = ("float16", "float32", "int8", "uint8", "bool")


class Types(NamedTuple):
    """The types of the operands by name, and what follows from them."""

    operands: tuple[str, ...]
    row: str  # in which rows are held: float64, float32, float16 or bfloat16
    result: np.dtype[Any]


class Rows:
    """Operands that have passed every check, to be taken row by row.

    ``batch_shape`` is their broadcast shape without the reduced axis; ``axis`` is negative, counted from the end, so
    that it fits all operands whatever their number of axes, or None for rows of one element, along no axis; ``length``
    is that of a row. ``names`` are those of the operands in messages. A bfloat16 operand is held as uint16 bit
    patterns, whatever it came as: :func:`decoded` gives its values.
    """

    # Not a NamedTuple, which takes twice as long to make.
    __slots__ = ("axis", "batch_shape", "length", "names", "operands", "types")

    def __init__(
        self,
        operands: tuple[Array, ...],
        names: tuple[str, ...],
        types: Types,
        axis: int | None,
        length: int,
        batch_shape: Shape,
    ) -> None:
        self.operands = operands
        self.names = names
        self.types = types
        self.axis = axis
        self.length = length
        self.batch_shape = batch_shape

    def row(self, i: int, index: Shape) -> NDArray[np.float64]:
        """The numbers of operand i in the row at an index of the batch."""
        every_row = np.broadcast_to(rows_last(self, self.operands[i]), (*self.batch_shape, self.length))
        return decoded(every_row[index], self.types.operands[i]).astype(np.float64)


class FullRows(Rows):
    """Operands of Gaussians with full covariances: the rows lie along the last axis, and some of them are matrices.

    ``whole`` says which operands are matrices, with their lines along the last but one axis; ``asymmetry`` by how much
    an element of each of them may differ from its mirror image, relative to the deviations.
    """

    __slots__ = ("asymmetry", "whole")

    def __init__(
        self,
        operands: tuple[Array, ...],
        names: tuple[str, ...],
        types: Types,
        length: int,
        batch_shape: Shape,
        whole: tuple[bool, ...],
    ) -> None:
        super().__init__(operands, names, types, -1, length, batch_shape)
        self.whole = whole
        self.asymmetry = tuple(_ASYMMETRY.get(name, 2**-26) for name in types.operands)

    def row(self, i: int, index: Shape) -> NDArray[np.float64]:
        shape = (*self.batch_shape, *(self.length,) * (2 if self.whole[i] else 1))
        return decoded(np.broadcast_to(self.operands[i], shape)[index], self.types.operands[i]).astype(np.float64)


class Contained(TypeError):
    """Operands that are no arrays in memory: Dask's arrays, pandas' frames and series, xarray's arrays.

    A public function that catches it has :mod:`fastkl._containers` take them apart and call it again; from any other it
    is the error that it says. ``check`` is the check that came upon them: it takes others in their places.
    """

    def __init__(self, operands: tuple[ArrayLike, ...], names: tuple[str, ...], check: Callable[..., Rows]) -> None:
        packages = [container_of(x) for x in operands]
        i = next(i for i, package in enumerate(packages) if package)
        super().__init__(
            f"{names[i]} comes from {packages[i]} ({_type_of(operands[i])}), which this function does not take apart; "
            f"pass an array in memory, for instance numpy.asarray({names[i]})"
        )
        self.operands = operands
        self.names = names
        self.check = check
        self.packages = packages

    @property
    def is_lazy(self) -> bool:
        """Whether to give what is computed later, for Dask."""
        return "dask" in self.packages and "xarray" not in self.packages


# How symmetric a covariance must be, by its type: the root of the type's relative precision.
_ASYMMETRY = {"float32": 2**-11.5, "float16": 2**-5.0, "bfloat16": 2**-3.5}


def row_pairs(
    p: ArrayLike, q: ArrayLike, axis: SupportsIndex, dtype: str | None, names: tuple[str, str] = PAIR
) -> Rows:
    """Check two operands of these names against each other; for a function of one operand, pass it twice."""
    # Most calls pass two plain arrays that match, and this keeps a small one of them well below a microsecond. What
    # does not fit, right or wrong, takes the road below.
    if type(p) is np.ndarray and type(q) is np.ndarray and type(axis) is int and axis == -1 and dtype is None:
        shape = p.shape
        types = _MATCHING.get(p.dtype)
        if types is not None and q.dtype is p.dtype and q.shape == shape and shape and shape[-1]:
            return Rows((p, q), names, types, -1, shape[-1], shape[:-1])

    # Not as a lambda: what a function shares with one is slower to get at on every call.
    if _in_a_container((p, q)):
        raise Contained((p, q), names, partial(row_pairs, axis=axis, dtype=dtype, names=names))
    _dtype(dtype)
    p_name, q_name = names
    p_array, p_type = _numbers(p, p_name, dtype)
    q_array, q_type = (p_array, p_type) if q is p else _numbers(q, q_name, dtype)
    _some_bfloat16(dtype, (p_type, q_type))

    shapes = f"{p_name} has shape {p_array.shape}"
    if q is not p:
        shapes += f", {q_name} has shape {q_array.shape}"
    if p_array.ndim == 0 or q_array.ndim == 0:
        raise ValueError(f"an operand without axes has no rows: {shapes}")
    negative_axis = _negative_axis(axis, max(p_array.ndim, q_array.ndim), shapes)
    length = _length(p_array.shape, negative_axis)
    if length != _length(q_array.shape, negative_axis):
        raise ValueError(f"rows must be equally long along axis {axis}: {shapes}")
    if length == 0:
        raise ValueError(f"rows along axis {axis} must not be empty: {shapes}")
    try:
        batch_shape = np.broadcast_shapes(
            _batch_shape(p_array.shape, negative_axis), _batch_shape(q_array.shape, negative_axis)
        )
    except ValueError:
        raise ValueError(f"shapes do not broadcast outside axis {axis}: {shapes}") from None

    return Rows((p_array, q_array), names, _types((p_type, q_type)), negative_axis, length, batch_shape)


def gaussian_rows(
    operands: tuple[ArrayLike, ...], names: tuple[str, ...], axis: SupportsIndex | None, dtype: str | None
) -> Rows:
    """Check the means and scales of diagonal Gaussians against each other.

    They broadcast; but along ``axis``, only a scalar is stretched.
    """
    first = operands[0]
    if type(first) is np.ndarray and (axis is None or (type(axis) is int and axis == -1)) and dtype is None:
        shape = first.shape  # as in row_pairs()
        matching = _MATCHING_FOUR if len(operands) == 4 else _MATCHING
        known = matching.get(first.dtype)
        if known is not None and (axis is None or (shape and shape[-1])):
            for operand in operands:
                if type(operand) is not np.ndarray or operand.dtype is not first.dtype or operand.shape != shape:
                    break
            else:
                if axis is None:
                    return Rows(operands, names, known, None, 1, shape)
                return Rows(operands, names, known, -1, shape[-1], shape[:-1])

    if axis is None:
        return elements(operands, names, dtype)
    if _in_a_container(operands):
        raise Contained(operands, names, partial(_again, gaussian_rows, names=names, axis=axis, dtype=dtype))
    arrays, types, shapes = _promoted(operands, names, dtype)
    ndim = max(array.ndim for array in arrays)
    if ndim == 0:
        raise ValueError(f"scalars have no axis to reduce, pass axis=None: {shapes}")
    negative_axis = _negative_axis(axis, ndim, shapes)
    lengths = {_length(array.shape, negative_axis) for array in arrays if array.ndim}
    if len(lengths) > 1:
        raise ValueError(f"rows must be equally long along axis {axis}: {shapes}")
    (length,) = lengths
    if length == 0:
        raise ValueError(f"rows along axis {axis} must not be empty: {shapes}")
    try:
        batch_shape = np.broadcast_shapes(*(_batch_shape(array.shape, negative_axis) for array in arrays))
    except ValueError:
        raise ValueError(f"shapes do not broadcast outside axis {axis}: {shapes}") from None
    return Rows(arrays, names, _types(types), negative_axis, length, batch_shape)


def elements(operands: tuple[ArrayLike, ...], names: tuple[str, ...], dtype: str | None) -> Rows:
    """Check operands that broadcast against each other, to be taken one number of each at a time."""
    if _in_a_container(operands):
        raise Contained(operands, names, partial(_again, elements, names=names, dtype=dtype))
    arrays, types, shapes = _promoted(operands, names, dtype)
    try:
        batch_shape = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        raise ValueError(f"shapes do not broadcast: {shapes}") from None
    return Rows(arrays, names, _types(types), None, 1, batch_shape)


def full_gaussian_rows(
    operands: tuple[ArrayLike, ...], names: tuple[str, ...], diagonal: str | None, dtype: str | None
) -> FullRows:
    """Check the means and the covariances, or factors of them, of Gaussians against each other.

    The batch axes of all broadcast; among the components, only a scalar is stretched.
    """
    if diagonal not in (None, "neither", "p", "q", "both"):
        raise ValueError(f"diagonal must be None, 'neither', 'p', 'q' or 'both', got {diagonal!r}")
    if _in_a_container(operands):
        check = partial(_again, full_gaussian_rows, names=names, diagonal=diagonal, dtype=dtype)
        raise Contained(operands, names, check)
    arrays, types, shapes = _promoted(operands, names, dtype)
    lengths = {array.shape[-1] for array in arrays if array.ndim}
    if not lengths:
        raise ValueError(f"scalars alone do not tell how many components there are: {shapes}")
    if len(lengths) > 1:
        raise ValueError(f"the last axis must be equally long: {shapes}")
    (length,) = lengths
    if length == 0:
        raise ValueError(f"Gaussians must have components: {shapes}")

    whole = []
    for i, (array, name) in enumerate(zip(arrays, names, strict=True)):
        square = array.ndim > 1 and array.shape[-2] == length
        if name.startswith("mean"):
            is_matrix = False
        elif diagonal is None:
            mean = arrays[i - 1]
            if square and 1 < array.ndim <= mean.ndim and mean.shape[-2] == length > 1:
                raise ValueError(
                    f"{name} is a matrix for all means, or a diagonal for each: pass diagonal='neither' or one that "
                    f"names it: {shapes}"
                )
            is_matrix = square
        else:
            is_matrix = diagonal not in (name[-1], "both")
            if is_matrix and not square:
                says = f"with diagonal={diagonal!r}, {name} must have shape (..., {length}, {length})"
                raise ValueError(f"{says}: {shapes}")
        whole.append(is_matrix)
    try:
        batch_shape = np.broadcast_shapes(
            *(array.shape[: -2 if is_matrix else -1] for array, is_matrix in zip(arrays, whole, strict=True))
        )
    except ValueError:
        raise ValueError(f"shapes do not broadcast outside the components: {shapes}") from None
    return FullRows(arrays, names, _types(types), length, batch_shape, tuple(whole))


def decoded(array: Array, type_name: str) -> Array:
    """The numbers in an operand of :class:`Rows`: bfloat16 bit patterns as float32, all else as it is."""
    if type_name == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def rows_last(rows: Rows, operand: Array) -> Array:
    """A view of an operand of :class:`Rows` with its rows along the last axis; the others still broadcast."""
    if rows.axis is None:
        return operand[..., np.newaxis]
    padded = operand.reshape((1,) * (-rows.axis - operand.ndim) + operand.shape)
    return np.moveaxis(padded, rows.axis, -1)


def stretches(rows: Rows, gradients: tuple[Array, ...], most: int) -> Iterator[tuple[Rows, tuple[Array, ...]]]:
    """The batch in stretches of ``most`` rows at most, in order, each with its part of :func:`gradient_for` arrays."""
    shape = rows.batch_shape
    if math.prod(shape) <= most:
        yield rows, gradients
        return
    operands = tuple(np.broadcast_to(rows_last(rows, x), (*shape, rows.length)) for x in rows.operands)
    last = tuple(rows_last(rows, x) for x in gradients)
    cut = len(shape) - 1
    while math.prod(shape[cut:]) <= most:
        cut -= 1
    step = max(1, most // math.prod(shape[cut + 1 :]))
    for outer in np.ndindex(shape[:cut]):
        for start in range(0, shape[cut], step):
            at = (*outer, slice(start, start + step))
            parts = tuple(x[at] for x in operands)
            part = Rows(parts, rows.names, rows.types, -1, rows.length, parts[0].shape[:-1])
            yield part, tuple(x[at] for x in last)


def gradient_for(rows: Rows) -> Array:
    """Where to write a gradient: a number for each of the broadcast operands, the rows along the reduced axis."""
    shape = rows.batch_shape
    if rows.axis is not None:
        at = len(shape) + 1 + rows.axis
        shape = (*shape[:at], rows.length, *shape[at:])
    return np.empty(shape, rows.types.result)


def target_for(rows: Rows, keepdims: bool, out: Array | None) -> tuple[Array, Array | None]:
    """Check ``out``; where to write the results, in the batch shape, and where to copy them from there, if anywhere."""
    if out is None:
        return np.empty(rows.batch_shape, rows.types.result), None

    if not isinstance(out, np.ndarray) or _comes_from(out, "numpy.ma"):
        raise TypeError(f"out must be a numpy.ndarray, got {_type_of(out)}")
    shape = rows.batch_shape
    if keepdims and rows.axis is not None:
        at = len(shape) + 1 + rows.axis
        shape = (*shape[:at], 1, *shape[at:])
    if out.shape != shape or out.dtype != rows.types.result:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}, "
            f"but the result has shape {shape} and dtype {rows.types.result}"
        )
    if not out.flags.writeable:
        raise ValueError(f"out, of shape {out.shape}, is read-only")
    view = np.asarray(out)
    if keepdims and rows.axis is not None:
        view = view.squeeze(rows.axis)
    # By the bounds of memory alone: columns of one table pass for overlapping, at the cost of copying the results.
    overlaps = any(np.may_share_memory(view, operand) for operand in rows.operands)
    if overlaps or not view.flags.aligned:
        return np.empty(rows.batch_shape, rows.types.result), view
    return view, None


def deliver(
    rows: Rows,
    target: Array,
    copy_to: Array | None,
    fault: Fault,
    keepdims: bool,
    out: Array | None,
    invalid: str,
) -> Result:
    """What the caller gets once the target is filled; ValueError for NaN in it with ``invalid="raise"``.

    ``fault`` tells what is wrong with a row. ``out`` holds the results by then, so that whoever catches the error still
    has those of the good rows.
    """
    if copy_to is not None:
        copy_to[...] = target
    if invalid == "raise":
        _raise_for_nan(rows, target, fault)
    if out is not None:
        return out
    if keepdims and rows.axis is not None:
        return np.expand_dims(target, rows.axis)
    return target if rows.batch_shape else target[()]


def axis_number(axis: SupportsIndex) -> int:
    """Check that ``axis`` is a number."""
    try:
        return operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an int, got {_type_of(axis)}") from None


def invalid_choice(invalid: str) -> str:
    """Check ``invalid``."""
    if invalid not in ("nan", "raise"):
        raise ValueError(f"invalid must be 'nan' or 'raise', got {invalid!r}")
    return invalid


def thread_bound(n_threads: SupportsIndex | None) -> int | None:
    """Check ``n_threads``."""
    if n_threads is None:
        return None
    try:
        bound = operator.index(n_threads)
    except TypeError:
        raise TypeError(f"n_threads must be None or an int, got {_type_of(n_threads)}") from None
    if bound < 1:
        raise ValueError(f"n_threads must be at least 1, got {bound}")
    return min(bound, 2**31 - 1)  # as many as a C int can count, which no system has


def log_base(base: float | None, *, above: float = 0.0) -> float:
    """The natural logarithm of ``base``, by which nats are divided; 1.0 for None, exactly.

    A distance is a root, which a base below 1 would take of a negative number: it asks for a base ``above`` 1.
    """
    if base is None:
        return 1.0
    if isinstance(base, Real) and above < base < math.inf:
        logarithm = math.log(base)
        if logarithm != 0.0:
            return logarithm
    limits = "> 1" if above else "> 0 other than 1"
    raise ValueError(f"base must be None, for nats, or a finite number {limits}, got {base!r}")


def js_weight(weight: float) -> float:
    """Check the weight of ``p`` in the mixture of a Jensen-Shannon divergence."""
    if not isinstance(weight, Real):
        raise TypeError(f"weight must be a number, got {_type_of(weight)}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be between 0 and 1, got {weight!r}")
    return float(weight)


def renyi_order(alpha: float) -> float:
    """Check the order of a Rényi divergence."""
    if not isinstance(alpha, Real):
        raise TypeError(f"alpha must be a number, got {_type_of(alpha)}")
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0 (it may be inf), got {alpha!r}")
    return float(alpha)


def softmax_temperature(temperature: float) -> float:
    """Check the temperature by which logits are divided."""
    if type(temperature) is float and 0 < temperature < math.inf:  # as in row_pairs()
        return temperature
    if not isinstance(temperature, Real):
        raise TypeError(f"temperature must be a number, got {_type_of(temperature)}")
    try:
        value = float(temperature)
    except OverflowError:
        value = math.inf
    if not 0 < value < math.inf:
        raise ValueError(f"temperature must be a finite number > 0, got {temperature!r}")
    return value


def distillation_temperature(temperature: float) -> float:
    """Check a temperature whose square is a factor of a loss."""
    value = softmax_temperature(temperature)
    if not 1e-150 <= value <= 1e150:
        raise ValueError(f"temperature must be between 1e-150 and 1e150, for its square is needed, got {temperature!r}")
    return value


def loss_reduction(reduction: str) -> str:
    """Check what becomes of the losses of all rows."""
    if reduction not in ("batchmean", "sum", "none"):
        raise ValueError(f"reduction must be 'batchmean', 'sum' or 'none', got {reduction!r}")
    return reduction


def bin_positions(positions: ArrayLike | None, length: int) -> NDArray[np.float64] | None:
    """Check the positions of the bins; a contiguous float64 copy of them, or None for 0, 1, ..., length - 1."""
    if positions is None:
        return None
    given = decoded(*_numbers(positions, "positions", None))
    if given.shape != (length,):
        raise ValueError(f"positions must have shape ({length},), one for each bin, got shape {given.shape}")
    copied = np.array(given, dtype=np.float64)
    finite = np.isfinite(copied)
    if not finite.all():
        at = int(finite.argmin())
        raise ValueError(f"positions must be finite, got {copied[at]} at index {at}")
    decreasing = copied[1:] < copied[:-1]
    if decreasing.any():
        at = int(decreasing.argmax())
        raise ValueError(f"positions must not decrease, got {copied[at]} before {copied[at + 1]} at index {at}")
    if math.isinf(float(copied[-1]) - float(copied[0])):
        raise ValueError(f"positions from {copied[0]} to {copied[-1]} are further apart than the largest float64")
    return copied


def gaussian_scale(scale: str, name: str = "scale") -> str:
    """Check what the scales of Gaussians are, an option of this name."""
    if scale not in ("var", "std", "logvar"):
        raise ValueError(f"{name} must be 'var', 'std' or 'logvar', got {scale!r}")
    return scale


def estimator(kind: str) -> str:
    """Check the name of an estimator of the KL divergence from samples."""
    if kind not in ("k1", "k2", "k3"):
        raise ValueError(f"kind must be 'k1', 'k2' or 'k3', got {kind!r}")
    return kind


def clip_range(clip: float) -> float:
    """Check how far from 1 the ratio of a clipped objective may count."""
    if not isinstance(clip, Real):
        raise TypeError(f"clip must be a number, got {_type_of(clip)}")
    if not 0 <= clip < math.inf:
        raise ValueError(f"clip must be at least 0 and finite, got {clip!r}")
    return float(clip)


def covariance_kind(cov: str) -> str:
    """Check what the scales of Gaussians with full covariances are."""
    if cov not in ("covariance", "cholesky"):
        raise ValueError(f"cov must be 'covariance' or 'cholesky', got {cov!r}")
    return cov


def gaussian_operands(
    mean_p: ArrayLike,
    scale_p: ArrayLike,
    mean_q: ArrayLike | None,
    scale_q: ArrayLike | None,
    scale_name: str = "scale",
) -> tuple[tuple[ArrayLike, ...], tuple[str, ...]]:
    """Those of two Gaussians that are given, and their names; q may be left out."""
    names = ("mean_p", f"{scale_name}_p", "mean_q", f"{scale_name}_q")
    if mean_q is None and scale_q is None:
        return (mean_p, scale_p), names[:2]
    if mean_q is None or scale_q is None:
        missing, other = ("mean_q", names[3]) if mean_q is None else (names[3], "mean_q")
        raise ValueError(f"{other} without {missing}: pass both, or neither for N(0, I)")
    return (mean_p, scale_p, mean_q, scale_q), names


def metric_names(
    metrics: Iterable[str], known: tuple[str, ...] = METRICS, alpha: float | None = None
) -> tuple[str, ...]:
    """Check the names of the metrics to score against the known ones; each of them once, in the order given."""
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be several names, got the string {metrics!r}; pass ({metrics!r},)")
    names = tuple(dict.fromkeys(metrics))
    if not names:
        raise ValueError("metrics must name at least one metric, got none")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown metric {name!r}; the metrics are {', '.join(known)}")
    if "renyi" in names and alpha is None:
        raise ValueError("the metric 'renyi' needs an order: pass alpha, got None")
    return names


def _in_a_container(operands: tuple[ArrayLike, ...]) -> bool:
    """Whether one of them is not to be taken by numpy.asarray, which would compute it, or drop its labels."""
    return any(type(operand) not in _PLAIN and container_of(operand) for operand in operands)


def _again(check: Callable[..., Rows], *operands: ArrayLike, **options: Any) -> Rows:
    """A check of other operands, one by one."""
    return check(operands, **options)


def container_of(operand: object) -> str:
    """The package that an operand's container comes from: dask, pandas, xarray, or none of them."""
    for base in type(operand).__mro__:
        package = base.__module__.partition(".")[0]
        if base.__name__ in _CONTAINERS.get(package, ()):
            return package
    return ""


# What needs no look at the classes that its own inherits from.
_PLAIN = (np.ndarray, list)

# Named, not imported: whoever passes one has imported its package.
_CONTAINERS = {"dask": ("Array",), "pandas": ("DataFrame", "Series"), "xarray": ("DataArray",)}


def _numbers(operand: ArrayLike, name: str, dtype: str | None) -> tuple[Array, str]:
    """An operand as a plain array with the name of its type, or TypeError."""
    if type(operand) not in _PLAIN:
        if _comes_from(operand, "scipy.sparse"):
            raise TypeError(f"{name} is a sparse {_type_of(operand)}; pass a dense array, {name}.toarray()")
        if _comes_from(operand, "numpy.ma"):
            raise TypeError(f"{name} is a masked array; pass {name}.filled(0), or the rows without masked values")
        if _comes_from(operand, "dask"):
            advice = f"{name}.to_dask_array(lengths=True), or {name}.compute()"
            raise TypeError(f"{name} is a {_type_of(operand)} of Dask's; pass an array, {advice}")
    array = np.asarray(operand)
    # A byte-swapped type has the name of the native one; the array keeps its byte order.
    type_name = _TYPE_NAMES.get(array.dtype.newbyteorder("="))
    if type_name == "uint16" and dtype == "bfloat16":
        return array, "bfloat16"
    if type_name is not None:
        return array, type_name
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16), "bfloat16"
    if array.dtype.kind == "c":
        advice = f"pass real numbers, for instance abs({name})"
    elif array.dtype.kind == "O":
        advice = f"pass an array of numbers, for instance np.asarray({name}, dtype=np.float64)"
    else:
        advice = f"pass float64, float32, float16, bfloat16, integers or bool, for instance {name}.astype(np.float64)"
    raise TypeError(f"{name} has dtype {array.dtype}; {advice}")


def _promoted(
    operands: tuple[ArrayLike, ...], names: tuple[str, ...], dtype: str | None
) -> tuple[tuple[Array, ...], tuple[str, ...], str]:
    """Operands as arrays, the names of their types, and their shapes in words; Python numbers take the others' type."""
    _dtype(dtype)
    weak = [float(x) if type(x) is int else x if type(x) is float else None for x in operands]
    numbers = [
        _numbers(x if number is None else number, name, dtype)
        for x, number, name in zip(operands, weak, names, strict=True)
    ]
    strong = tuple(type_name for (_, type_name), number in zip(numbers, weak, strict=True) if number is None)
    if len(strong) < len(operands) and strong and _types(strong).result == _FLOAT32:
        with np.errstate(over="ignore"):
            for i, number in enumerate(weak):
                if number is not None:
                    numbers[i] = np.float32(number)[...], "float32"
    arrays = tuple(array for array, _ in numbers)
    types = tuple(type_name for _, type_name in numbers)
    _some_bfloat16(dtype, types)
    shapes = ", ".join(f"{name} has shape {array.shape}" for name, array in zip(names, arrays, strict=True))
    return arrays, types, shapes


def _types(types: tuple[str, ...]) -> Types:
    """The type of the rows and of the result for the types of the operands."""
    row_type = "float64"
    others = set(types) - {"bfloat16"}
    if len(set(types)) == 1 and types[0] not in _INTEGER_TYPES:
        row_type = types[0]
    elif "bfloat16" in types:
        # NumPy knows no bfloat16: its promotion is written down here.
        if others.issubset(_FLOAT32_WITH_BFLOAT16):
            row_type = "float32"
    elif np.result_type(*types) in ("float32", "float16"):
        row_type = "float32"
    return Types(types, row_type, _FLOAT64 if row_type == "float64" else _FLOAT32)


def result_type(types: tuple[str, ...]) -> np.dtype[Any]:
    """The type of the result for operands of types of these names."""
    return _types(types).result


_MATCHING = {dtype: _types((name,) * 2) for dtype, name in _TYPE_NAMES.items()}
_MATCHING_FOUR = {dtype: _types((name,) * 4) for dtype, name in _TYPE_NAMES.items()}


def _dtype(dtype: str | None) -> None:
    if dtype is not None and dtype != "bfloat16":
        raise ValueError(f"dtype must be None or 'bfloat16', got {dtype!r}")


def _some_bfloat16(dtype: str | None, types: tuple[str, ...]) -> None:
    if dtype == "bfloat16" and "bfloat16" not in types:
        listed = f"{', '.join(types[:-1])} and {types[-1]}"
        raise TypeError(
            "dtype='bfloat16' says that uint16 operands hold bfloat16 bit patterns, but the operands are "
            f"{listed}; pass uint16 arrays, or leave dtype out"
        )


def _negative_axis(axis: SupportsIndex, ndim: int, shapes: str) -> int:
    """The reduced axis, counted from the end."""
    index = axis_number(axis)
    if not -ndim <= index < ndim:
        raise np.exceptions.AxisError(f"axis {index} is out of bounds: {shapes}")
    return index if index < 0 else index - ndim


def _length(shape: Shape, negative_axis: int) -> int:
    """How long the rows are; 1 if the axis is one that broadcasting puts before the first."""
    return shape[negative_axis] if -negative_axis <= len(shape) else 1


def _batch_shape(shape: Shape, negative_axis: int) -> Shape:
    """The shape without the reduced axis."""
    at = len(shape) + negative_axis
    return shape[:at] + shape[at + 1 :] if at >= 0 else shape


def weights_fault(normalize: bool) -> Fault:
    """What makes a row of weights invalid."""

    def fault(row: NDArray[np.float64], name: str) -> str:
        faults = {"NaN": np.isnan(row), "negative value": row < 0, "infinite value": np.isinf(row)}
        return _first(faults, name) or (f"sum is zero in {name}" if normalize and not row.any() else "")

    return fault


def logits_fault(row: NDArray[np.float64], name: str) -> str:
    """What makes a row of logits invalid."""
    found = _first({"NaN": np.isnan(row), "+inf": row == np.inf}, name)
    return found or (f"every value is -inf in {name}" if np.all(row == -np.inf) else "")


def gaussian_fault(scale: str) -> Fault:
    """What makes a row of means, or of scales, invalid."""

    def fault(row: NDArray[np.float64], name: str) -> str:
        faults = {"NaN": np.isnan(row)}
        if name.startswith("scale") and scale != "logvar":
            faults["negative value"] = row < 0
        faults["infinite value"] = np.isinf(row) if name.startswith("mean") else row == np.inf
        if name == "scale_q":
            faults |= {"zero variance": row == -np.inf} if scale == "logvar" else {"zero": row == 0}
        return _first(faults, name)

    return fault


def full_gaussian_fault(rows: FullRows, cov: str) -> Fault:
    """What makes a mean, a covariance, a factor or a diagonal invalid."""

    def fault(row: NDArray[np.float64], name: str) -> str:
        faults = {"NaN": np.isnan(row), "infinite value": np.isinf(row)}
        found = _first(faults, name)
        if found or name.startswith("mean"):
            return found
        is_matrix = row.ndim == 2
        scales = np.diagonal(row) if is_matrix else row
        faults = {"negative value": scales < 0}
        if name == "cov_q":
            faults |= {"zero": scales == 0}
        if is_matrix and cov == "cholesky":
            faults |= {"value other than 0 above the diagonal": np.triu(row, 1) != 0}
        found = _first(faults, name)
        if found or not is_matrix or cov == "cholesky":
            return found
        deviations = np.sqrt(scales)
        allowed = rows.asymmetry[rows.names.index(name)] * np.outer(deviations, deviations)
        found = _first({"value that differs from its mirror image": np.abs(row - row.T) > allowed}, name)
        if found:
            return found
        try:
            np.linalg.cholesky(row)
        except np.linalg.LinAlgError:
            return f"{name} is not positive definite"
        return ""

    return fault


def log_probability_fault(row: NDArray[np.float64], name: str) -> str:
    """What makes a logarithm of a probability invalid: two of -inf are. And an advantage."""
    faults = {"NaN": np.isnan(row)}
    if name == "advantage":
        faults |= {"infinite value": np.isinf(row)}
    else:
        faults |= {"infinite value": row == np.inf, "zero probability": row == -np.inf}
    return _first(faults, name)


def _first(faults: dict[str, NDArray[np.bool_]], name: str) -> str:
    """The first of some faults that a row has, and where; empty if it has none. Each comes with a mask of the row."""
    for what, wrong in faults.items():
        if wrong.any():
            at = tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
            return f"{what} in {name} at position {at[0] if len(at) == 1 else at}"
    return ""


def _raise_for_nan(rows: Rows, result: Array, fault: Fault) -> None:
    """Raise ValueError if a result is NaN: how many rows are bad, which is the first, what is wrong with it."""
    n_bad = n_seen = first = 0
    # Piece by piece, as a mask of the whole would take memory in proportion to the batch.
    pieces: Any = np.nditer(result, ["external_loop", "buffered", "zerosize_ok"], order="C")
    for piece in pieces:
        bad = np.isnan(piece)
        n_bad_here = int(np.count_nonzero(bad))
        if n_bad_here and not n_bad:
            first = n_seen + int(bad.argmax())
        n_bad += n_bad_here
        n_seen += piece.size
    if not n_bad:
        return

    index = tuple(int(i) for i in np.unravel_index(first, rows.batch_shape)) if rows.batch_shape else ()
    faults = []
    for i, (operand, name) in enumerate(zip(rows.operands, rows.names, strict=True)):
        if rows.names in (PAIR, LOGITS, DISTILLED) and any(operand is other for other in rows.operands[:i]):
            continue  # it is what it was, and has been judged by the same rule
        faults.append(fault(rows.row(i, index), name))
    # Finite values near the largest float can add up to infinity, with nothing wrong in any of them; and roundings
    # decide about a covariance that is hardly definite.
    cause = "; ".join(found for found in faults if found)
    if not cause:
        cause = "a covariance is not definite" if isinstance(rows, FullRows) else "its sums overflow"
    if rows.batch_shape == ():
        raise ValueError(f"the row is invalid: {cause}")
    where = index[0] if len(index) == 1 else index
    raise ValueError(f"{n_bad} of {n_seen} rows are invalid, the first at index {where}: {cause}")


def _comes_from(value: object, package: str) -> bool:
    """Whether a value's class, or one that it inherits from, is defined in a package, which need not be imported."""
    return any(f"{base.__module__}.".startswith(f"{package}.") for base in type(value).__mro__)


def _type_of(value: object) -> str:
    return type(value).__name__
