# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Functions of single elements as NumPy ufuncs: broadcasting, `out`, `where`, casting and subclasses are NumPy's own.

Here is their inner loop, which hands what it is given to the level in force, in shares for several threads where it is
much; and what they are called.
"""

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport isfinite
from libc.stdlib cimport free, malloc

from fastkl._kernels._engine cimport *

from fastkl import _runtime

cnp.import_array()
cnp.import_umath()

cdef extern from "flags.h" nogil:
    void fkl_clear_flags()

cdef enum:
    SHARE = 32768  # elements that a thread takes at a time
    ROW = 4096     # elements whose terms are summed in one go
    ROWS = 8       # and so many of these does a thread take at a time
    MOST_TYPES = 4
    MOST_ARRAYS = 3

cdef struct Task:
    int operation, type, operands
    Py_ssize_t size  # of an element

cdef Py_ssize_t serial_below = _runtime.SERIAL_BELOW


cdef Py_ssize_t size_of(int type) noexcept nogil:
    return 8 if type == FKL_F64 else 4 if type == FKL_F32 else 2


cdef int threads_for(Py_ssize_t n) noexcept with gil:
    return _runtime.threads_for(None, n)


cdef bint overlap(const char *a, Py_ssize_t a_stride, const char *b, Py_ssize_t b_stride, Py_ssize_t n,
                  Py_ssize_t size) noexcept nogil:
    # Do the places from the first to the last of n elements have any in common?
    cdef const char *a_last = a + (n - 1) * a_stride
    cdef const char *b_last = b + (n - 1) * b_stride
    return min(a, a_last) < max(b, b_last) + size and min(b, b_last) < max(a, a_last) + size


cdef bint reads_own_results(const Task *task, char **arrays, const Py_ssize_t *strides, Py_ssize_t n) noexcept nogil:
    # As reduce() and accumulate() do. An element that is written where it has been read is no such case.
    cdef const char *out = arrays[task.operands]
    cdef Py_ssize_t stride = strides[task.operands]
    cdef int k
    for k in range(task.operands):
        if arrays[k] == out and strides[k] == stride and stride != 0:
            continue
        if overlap(arrays[k], strides[k], out, stride, n, task.size):
            return True
    return False


cdef void run(const Task *task, fkl_elementwise *function, Py_ssize_t first, Py_ssize_t n, char **arrays,
              const Py_ssize_t *strides) noexcept nogil:
    # Elements [first, first + n).
    cdef char *part[MOST_ARRAYS]
    cdef int k
    for k in range(task.operands + 1):
        part[k] = arrays[k] + first * strides[k]
    function(task.operation, task.type, n, part, strides)


cdef void apply(const Task *task, Py_ssize_t n, char **arrays, const Py_ssize_t *strides) noexcept nogil:
    # n elements of which none is written before it has been read.
    cdef fkl_elementwise *function = active_level().elementwise
    cdef Py_ssize_t i
    cdef int threads = threads_for(n) if n >= serial_below else 1
    if threads > 1:
        for i in prange((n + SHARE - 1) // SHARE, num_threads=threads, schedule="guided"):
            run(task, function, i * SHARE, min(<Py_ssize_t>SHARE, n - i * SHARE), arrays, strides)
    else:
        function(task.operation, task.type, n, arrays, strides)


cdef void loop(char **arrays, const cnp.npy_intp *lengths, const cnp.npy_intp *steps, void *data) noexcept nogil:
    cdef const Task *task = <const Task *>data
    cdef const Py_ssize_t *strides = <const Py_ssize_t *>steps
    cdef Py_ssize_t n = lengths[0], i
    if n > 1 and reads_own_results(task, arrays, strides, n):
        for i in range(n):
            run(task, active_level().elementwise, i, 1, arrays, strides)
    else:
        apply(task, n, arrays, strides)
    fkl_clear_flags()  # of intermediate results, or NumPy would warn of them


# What a ufunc points to for as long as it lives.
cdef struct Definition:
    Task tasks[MOST_TYPES]
    void *data[MOST_TYPES]
    char types[MOST_TYPES * MOST_ARRAYS]

cdef Definition definitions[FKL_ELEMENT_OPS]
cdef cnp.PyUFuncGenericFunction loops[MOST_TYPES]
for _k in range(MOST_TYPES):
    loops[_k] = <cnp.PyUFuncGenericFunction>loop  # NumPy's Cython declaration lacks the consts
_texts = []


cdef object define(int operation, int operands, list types, str name, str text):
    # types: pairs of enum fkl_type and the type that NumPy knows its elements by.
    cdef Definition *definition = &definitions[operation]
    cdef bytes name_bytes = name.encode(), text_bytes = text.encode()
    cdef int i, k, row_type, type_number
    for i, (row_type, type_number) in enumerate(types):
        definition.tasks[i] = Task(operation, row_type, operands, size_of(row_type))
        definition.data[i] = &definition.tasks[i]
        for k in range(operands + 1):
            definition.types[i * (operands + 1) + k] = type_number
    _texts.extend([name_bytes, text_bytes])
    return cnp.PyUFunc_FromFuncAndData(loops, definition.data, definition.types, len(types), operands, 1,
                                       cnp.PyUFunc_Zero, name_bytes, text_bytes, 0)


_FLOATS = [(FKL_F32, cnp.NPY_FLOAT32), (FKL_F64, cnp.NPY_FLOAT64)]
# NumPy takes the first that an operand can be cast to; bfloat16 comes as the integers of its bits.
_WITH_HALVES = [(FKL_F16, cnp.NPY_FLOAT16), (FKL_BF16, cnp.NPY_UINT16), *_FLOATS]

rel_entr = define(FKL_REL_ENTR, 2, _FLOATS, "rel_entr", """The terms of the relative entropy, x log(x/y).

0 for x = 0 and y >= 0; infinite where x > 0 is over y = 0, and for negative numbers.

Parameters
----------
x, y : array_like
    Real numbers; they broadcast.
out : ndarray, optional
    Where the result goes. The other keywords of a ufunc (``where``, ``dtype``, ...) are understood as well.

Returns
-------
scalar or ndarray
    The value in nats; float32 of float16, float32 and integers of up to 16 bits, float64 of all others. NaN where x or
    y is, and where both are infinite.

Notes
-----
The drop-in for :data:`scipy.special.rel_entr`, with which it agrees to a few units in the last place. It is within 3.5
of them of the exact value for all finite x and y, and within 0.51 for float32.

Examples
--------
>>> from fastkl.compat.scipy_special import rel_entr
>>> rel_entr([0.0, 0.5, 1.0], [0.5, 0.5, 0.0])
array([ 0.,  0., inf])
""")

kl_div = define(FKL_KL_DIV, 2, _FLOATS, "kl_div", """The terms of the Kullback-Leibler divergence of weights, x log(x/y) - x + y.

y for x = 0 and y >= 0; infinite where x > 0 is over y = 0, and for negative numbers.

Parameters
----------
x, y : array_like
    Real numbers; they broadcast.
out : ndarray, optional
    Where the result goes. The other keywords of a ufunc (``where``, ``dtype``, ...) are understood as well.

Returns
-------
scalar or ndarray
    The value in nats, never negative; float32 of float16, float32 and integers of up to 16 bits, float64 of all others.
    NaN where x or y is, and where both are infinite.

Notes
-----
The drop-in for :data:`scipy.special.kl_div`. It is within 6.5 units in the last place of the exact value for all finite
x and y, and within 0.51 for float32, where SciPy's loses digits the more the nearer y comes to x, can be negative, and
is infinite where x/y or x log(x/y) leaves the range and the value does not, and NaN where only x or y is infinite.

Examples
--------
>>> from fastkl.compat.scipy_special import kl_div
>>> kl_div([0.0, 0.5, 1.0], [0.5, 0.5, 0.0])
array([0.5, 0. , inf])
""")

entr = define(FKL_ENTR, 1, _FLOATS, "entr", """The terms of the entropy, -x log x.

0 for x = 0, and minus infinity for negative numbers.

Parameters
----------
x : array_like
    Real numbers.
out : ndarray, optional
    Where the result goes. The other keywords of a ufunc (``where``, ``dtype``, ...) are understood as well.

Returns
-------
scalar or ndarray
    The value in nats; float32 of float16, float32 and integers of up to 16 bits, float64 of all others. NaN where x is.

Notes
-----
The drop-in for :data:`scipy.special.entr`, with which it agrees to a few units in the last place. It is within 3.5 of
them of the exact value for all finite x, and within 0.51 for float32.

Examples
--------
>>> from fastkl.compat.scipy_special import entr
>>> entr([0.0, 1.0, -1.0])
array([  0.,  -0., -inf])
""")

kl_term = define(FKL_KL_TERM, 2, _WITH_HALVES, "kl_term", """
t (log t - x) for an input x and a target t, as PyTorch's kl_div defines it: -0 x for t = 0. float16, bfloat16 as
uint16, float32 or float64.
""")

kl_term_log = define(FKL_KL_TERM_LOG, 2, _WITH_HALVES, "kl_term_log", """
e^t (t - x) for an input x and the logarithm t of a target. float16, bfloat16 as uint16, float32 or float64.
""")


cdef struct Sum:
    int operation, type
    fkl_kernel *kernel
    fkl_rows operands[2]  # whose rows follow each other
    fkl_problem problem
    Py_ssize_t rows
    double *sums


cdef void sum_rows(const Sum *work, Py_ssize_t first) noexcept nogil:
    # Up to ROWS of them.
    cdef fkl_rows operands[2]
    cdef int k
    for k in range(2):
        operands[k] = work.operands[k]
        operands[k].data += first * operands[k].row_stride
    work.kernel(work.operation, work.type, operands, min(<Py_ssize_t>ROWS, work.rows - first), &work.problem,
                work.sums + first, NULL)


cdef double total(const double *sums, Py_ssize_t n) noexcept nogil:
    # In their order, with what the additions lose.
    cdef double high = 0.0, low = 0.0, both, moved
    cdef Py_ssize_t i
    for i in range(n):
        both = high + sums[i]
        moved = both - high
        low += (high - (both - moved)) + (sums[i] - moved)
        high = both
    return high + low if isfinite(high) else high


def kl_terms_at(bint log_target, int row_type, Py_ssize_t n, size_t x, size_t t, size_t out):
    """kl_term or kl_term_log of n elements of one type (enum fkl_type) that lie one behind the other at x and at t."""
    cdef Py_ssize_t size = size_of(row_type)
    cdef Task task = Task(FKL_KL_TERM_LOG if log_target else FKL_KL_TERM, row_type, 2, size)
    cdef char *arrays[MOST_ARRAYS]
    cdef Py_ssize_t[MOST_ARRAYS] strides = [size, size, size]
    arrays[0], arrays[1], arrays[2] = <char *>x, <char *>t, <char *>out
    with nogil:
        apply(&task, n, arrays, strides)


def kl_sum_at(bint log_target, int row_type, Py_ssize_t n, size_t x, size_t t):
    """Their sum. In which order they are added depends on n alone."""
    cdef Sum work
    cdef Py_ssize_t size = size_of(row_type), row = min(n, <Py_ssize_t>ROW), i
    cdef int threads = threads_for(n) if n >= serial_below else 1
    cdef double sum
    if n == 0:
        return 0.0
    work.operation = FKL_KL_TERM_LOG if log_target else FKL_KL_TERM
    work.type = row_type
    work.kernel = active_level().kernels[FKL_TERMS]
    work.operands[0] = fkl_rows(<const char *>x, row * size, size, row_type, 0)
    work.operands[1] = fkl_rows(<const char *>t, row * size, size, row_type, 0)
    work.problem.length = row
    work.rows = n // row
    work.sums = <double *>malloc((work.rows + 1) * sizeof(double))
    if work.sums == NULL:
        raise MemoryError(f"no memory for {work.rows + 1} sums")
    with nogil:
        if threads > 1:
            for i in prange((work.rows + ROWS - 1) // ROWS, num_threads=threads, schedule="guided"):
                sum_rows(&work, i * ROWS)
        else:
            for i in range((work.rows + ROWS - 1) // ROWS):
                sum_rows(&work, i * ROWS)
        i = work.rows
        work.sums[i] = 0.0
        if n % row:  # a shorter row behind the others
            work.problem.length = n % row
            work.rows += 1
            sum_rows(&work, i)
        sum = total(work.sums, i + 1)
        free(work.sums)
    return sum
