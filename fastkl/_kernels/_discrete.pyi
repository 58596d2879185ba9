from typing import Any

import numpy as np
from numpy.typing import NDArray

OPS: dict[str, int]
TYPES: dict[str, int]

def reduce(
    ops: tuple[int, ...],
    p: NDArray[Any],
    p_type: int,
    q: NDArray[Any],
    q_type: int,
    row_type: int,
    axis: int,
    outs: tuple[NDArray[Any], ...],
    normalize: bool,
    log_base: float,
    parameter: float,
    positions: NDArray[np.float64] | None,
    n_threads: int,
) -> None: ...
