"""The figures of the performance and accuracy contracts, each one a ratio taken in one run.

One file per section, each with a ``measure(settings)`` that yields figures; ``python -m bench`` runs them.
"""

import importlib.util
import os

if importlib.util.find_spec("threadpoolctl") is None:
    # Nothing can set the number of BLAS threads per call then, so that numpy.dot is held to one from the start, before
    # NumPy is imported, and gets its threads from Python.
    for _variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[_variable] = "1"
