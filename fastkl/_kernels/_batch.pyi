# The types of _batch.pyx.

from typing import Any

import numpy as np
from numpy.typing import NDArray

FAMILIES: dict[str, int]
SCALES: dict[str, int]
FULL_SCALES: dict[str, int]
OPS: dict[str, int]
GAUSSIAN_OPS: dict[str, int]
LOGITS_OPS: dict[str, int]
TERMS_OPS: dict[str, int]
TYPES: dict[str, int]

def reduce(
    family: int,
    ops: tuple[int, ...],
    operands: tuple[NDArray[Any], ...],
    types: tuple[int, ...],
    row_type: int,
    axis: int | None,
    length: int,
    outs: tuple[NDArray[Any], ...],
    n_threads: int,
    normalize: bool = True,
    log_base: float = 1.0,
    parameter: float = 0.0,
    positions: NDArray[np.float64] | None = None,
    scale: int = 0,
    temperature: float = 1.0,
    matrices: tuple[tuple[int | None, float], ...] | None = None,
) -> None: ...
def pair(
    operation: int, p: object, q: object, normalize: bool, log_base: float, parameter: float
) -> np.floating[Any] | None: ...
def pair_at(
    operation: int, row_type: int, length: int, p: int, q: int, normalize: bool, log_base: float, parameter: float
) -> NDArray[np.floating[Any]]: ...
