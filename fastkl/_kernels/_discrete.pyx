# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The discrete family over batches: axes, broadcasting and threads around the row kernels.

A batch of pairs is walked as blocks of rows at equal distances. The batch axes are sorted by p's strides and merged
where memory allows, so that the innermost one is the best run of rows; a block is a stretch of it, small enough that
several operations on it find it in the cache. Threads share the blocks. Broadcasting is a stride of 0, so nothing is
copied for it, and a row's result does not depend on how the walk cut the batch.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange
from libc.stdlib cimport free, malloc

from fastkl._kernels._engine cimport *

cnp.import_array()

OPS = {
    "kl": FKL_KL,
    "reverse_kl": FKL_REVERSE_KL,
    "jeffreys": FKL_JEFFREYS,
    "js": FKL_JS,
    "js_distance": FKL_JS_DISTANCE,
    "cross_entropy": FKL_CROSS_ENTROPY,
    "entropy": FKL_ENTROPY,
    "renyi": FKL_RENYI,
    "total_variation": FKL_TOTAL_VARIATION,
    "hellinger": FKL_HELLINGER,
    "wasserstein": FKL_WASSERSTEIN,
}

TYPES = {
    "float64": FKL_F64,
    "float32": FKL_F32,
    "float16": FKL_F16,
    "bfloat16": FKL_BF16,
    "int8": FKL_I8,
    "int16": FKL_I16,
    "int32": FKL_I32,
    "int64": FKL_I64,
    "uint8": FKL_U8,
    "uint16": FKL_U16,
    "uint32": FKL_U32,
    "uint64": FKL_U64,
    "bool": FKL_U8,
}

cdef enum:
    MAX_AXES = 64        # NumPy's own limit
    MAX_OPS = 16
    BLOCK_ELEMENTS = 8192  # of each operand: what two doubles' worth of it is fits the second-level cache
    BLOCK_ROWS = 1024

cdef struct Plan:
    # The walk: axes of the batch from the outermost in, and the strides of p, q and the outputs along them.
    int axes
    Py_ssize_t shape[MAX_AXES]
    Py_ssize_t p_strides[MAX_AXES]
    Py_ssize_t q_strides[MAX_AXES]
    Py_ssize_t out_strides[MAX_OPS][MAX_AXES]
    Py_ssize_t block_rows, blocks_per_run, blocks
    # The work on each block.
    fkl_rows p, q
    fkl_problem problem
    int row_type
    int n_ops
    int ops[MAX_OPS]
    char *out[MAX_OPS]
    int out_is_float[MAX_OPS]
    fkl_pair_kernel *kernel


cdef inline Py_ssize_t magnitude(Py_ssize_t x) noexcept nogil:
    return -x if x < 0 else x


cdef void swap_axes(Plan *plan, int i, int j) noexcept nogil:
    cdef int k
    plan.shape[i], plan.shape[j] = plan.shape[j], plan.shape[i]
    plan.p_strides[i], plan.p_strides[j] = plan.p_strides[j], plan.p_strides[i]
    plan.q_strides[i], plan.q_strides[j] = plan.q_strides[j], plan.q_strides[i]
    for k in range(plan.n_ops):
        plan.out_strides[k][i], plan.out_strides[k][j] = plan.out_strides[k][j], plan.out_strides[k][i]


cdef bint mergeable(const Plan *plan, int i) noexcept nogil:
    # Is axis i + 1 the continuation of axis i in every array?
    cdef Py_ssize_t n = plan.shape[i + 1]
    cdef int k
    if plan.p_strides[i] != n * plan.p_strides[i + 1] or plan.q_strides[i] != n * plan.q_strides[i + 1]:
        return False
    for k in range(plan.n_ops):
        if plan.out_strides[k][i] != n * plan.out_strides[k][i + 1]:
            return False
    return True


cdef void drop_axis(Plan *plan, int i) noexcept nogil:
    plan.axes -= 1
    while i < plan.axes:
        swap_axes(plan, i, i + 1)
        i += 1


cdef void simplify(Plan *plan) noexcept nogil:
    # No axes of length 1, the widest strides of p (then of q) outermost, neighbours merged, at least one axis left.
    cdef int i = plan.axes - 1, j
    while i >= 0:
        if plan.shape[i] == 1:
            drop_axis(plan, i)
        i -= 1
    for i in range(1, plan.axes):
        j = i
        while j > 0 and (
            magnitude(plan.p_strides[j - 1]) < magnitude(plan.p_strides[j])
            or (plan.p_strides[j - 1] == plan.p_strides[j]
                and magnitude(plan.q_strides[j - 1]) < magnitude(plan.q_strides[j]))
        ):
            swap_axes(plan, j - 1, j)
            j -= 1
    i = plan.axes - 2
    while i >= 0:
        if mergeable(plan, i):
            plan.shape[i + 1] *= plan.shape[i]
            drop_axis(plan, i)
        i -= 1
    if plan.axes == 0:
        plan.axes = 1
        plan.shape[0] = 1
        plan.p_strides[0] = plan.q_strides[0] = 0
        for i in range(plan.n_ops):
            plan.out_strides[i][0] = 0


cdef void run_block(const Plan *plan, Py_ssize_t block, double *result, void *scratch) noexcept nogil:
    cdef fkl_rows p = plan.p, q = plan.q
    cdef Py_ssize_t offset[MAX_OPS]
    cdef Py_ssize_t run = block // plan.blocks_per_run
    cdef Py_ssize_t first = (block % plan.blocks_per_run) * plan.block_rows
    cdef Py_ssize_t inner = plan.shape[plan.axes - 1]
    cdef Py_ssize_t n = min(plan.block_rows, inner - first), index, i
    cdef int axis = plan.axes - 1, k
    cdef char *to

    p.data += first * plan.p_strides[axis]
    q.data += first * plan.q_strides[axis]
    for k in range(plan.n_ops):
        offset[k] = first * plan.out_strides[k][axis]
    for axis in range(plan.axes - 2, -1, -1):
        index = run % plan.shape[axis]
        run = run // plan.shape[axis]
        p.data += index * plan.p_strides[axis]
        q.data += index * plan.q_strides[axis]
        for k in range(plan.n_ops):
            offset[k] += index * plan.out_strides[k][axis]

    axis = plan.axes - 1
    for k in range(plan.n_ops):
        plan.kernel(plan.ops[k], plan.row_type, &p, &q, n, &plan.problem, result, scratch)
        to = plan.out[k] + offset[k]
        if plan.out_is_float[k]:
            for i in range(n):
                (<float *>(to + i * plan.out_strides[k][axis]))[0] = <float>result[i]
        else:
            for i in range(n):
                (<double *>(to + i * plan.out_strides[k][axis]))[0] = result[i]


cdef void *make_scratch(const Plan *plan) noexcept nogil:
    # The results of a block and the kernels' own space behind them, in one piece.
    return malloc(<size_t>plan.block_rows * sizeof(double) + fkl_scratch_bytes(plan.problem.length) + 64)


cdef inline void *aligned(void *memory, const Plan *plan) noexcept nogil:
    cdef size_t address = <size_t>memory + <size_t>plan.block_rows * sizeof(double)
    return <void *>((address + 63) & ~<size_t>63)


cdef int walk(const Plan *plan, int n_threads) noexcept nogil:
    # -1 where memory ran out.
    cdef Py_ssize_t block
    cdef void *memory = NULL
    cdef int no_memory = 0
    cdef int *failed = &no_memory  # behind a pointer: every thread may set it, none adds to it
    if n_threads <= 1 or plan.blocks == 1:
        memory = make_scratch(plan)
        if memory == NULL:
            return -1
        for block in range(plan.blocks):
            run_block(plan, block, <double *>memory, aligned(memory, plan))
        free(memory)
        return 0
    with parallel(num_threads=n_threads):
        memory = make_scratch(plan)
        if memory == NULL:
            failed[0] = 1
        for block in prange(plan.blocks, schedule="guided"):
            if memory != NULL:
                run_block(plan, block, <double *>memory, aligned(memory, plan))
        free(memory)
    return -1 if no_memory else 0


cdef void fill_operand(fkl_rows *rows, cnp.ndarray array, int axis, int code) noexcept:
    # An operand with fewer axes than the one reduced has rows of length 1.
    cdef int own = cnp.PyArray_NDIM(array) + axis
    rows.data = <const char *>cnp.PyArray_DATA(array)
    rows.item_stride = cnp.PyArray_STRIDES(array)[own] if own >= 0 else 0
    rows.row_stride = 0
    rows.type = code
    rows.swapped = not cnp.PyArray_ISNOTSWAPPED(array)


cdef Py_ssize_t batch_stride(cnp.ndarray array, int ndim, int axis) noexcept:
    # The stride of array along `axis` of ndim, after NumPy's broadcasting: 0 where it is stretched or absent.
    axis -= ndim - cnp.PyArray_NDIM(array)
    if axis < 0 or cnp.PyArray_DIMS(array)[axis] == 1:
        return 0
    return cnp.PyArray_STRIDES(array)[axis]


def reduce(tuple ops, cnp.ndarray p not None, int p_type, cnp.ndarray q not None, int q_type, int row_type, int axis,
           tuple outs, bint normalize, double log_base, double parameter, positions, int n_threads):
    """Write ops of the rows of p and q along `axis` into outs.

    axis counts from the end (-1 is the last) and means the same axis of both operands, whose batch axes broadcast.
    The arguments are taken to be right: `fastkl._validation` is where they are checked.
    """
    cdef Plan plan
    cdef int ndim = max(cnp.PyArray_NDIM(p), cnp.PyArray_NDIM(q))
    cdef int reduced = ndim + axis, i, k, failed
    cdef cnp.ndarray out
    cdef const double[::1] places

    if len(ops) > MAX_OPS or ndim > MAX_AXES:
        raise ValueError(f"at most {MAX_OPS} operations at a time, got {len(ops)}")
    plan.n_ops = len(ops)
    plan.kernel = active_level().discrete
    plan.row_type = row_type
    fill_operand(&plan.p, p, axis, p_type)
    fill_operand(&plan.q, q, axis, q_type)
    i = cnp.PyArray_NDIM(p) + axis
    plan.problem.length = cnp.PyArray_DIMS(p)[i] if i >= 0 else 1
    plan.problem.normalize = normalize
    plan.problem.log_base = log_base
    plan.problem.parameter = parameter
    plan.problem.positions = NULL
    if positions is not None:
        places = positions
        plan.problem.positions = &places[0]

    out = outs[0]
    if cnp.PyArray_SIZE(out) == 0:
        return
    plan.axes = 0
    for i in range(ndim):
        if i == reduced:
            continue
        plan.shape[plan.axes] = cnp.PyArray_DIMS(out)[plan.axes]
        plan.p_strides[plan.axes] = batch_stride(p, ndim, i)
        plan.q_strides[plan.axes] = batch_stride(q, ndim, i)
        plan.axes += 1
    for k in range(plan.n_ops):
        out = outs[k]
        plan.ops[k] = ops[k]
        plan.out[k] = <char *>cnp.PyArray_DATA(out)
        plan.out_is_float[k] = cnp.PyArray_TYPE(out) == cnp.NPY_FLOAT32
        for i in range(plan.axes):
            plan.out_strides[k][i] = cnp.PyArray_STRIDES(out)[i]

    simplify(&plan)
    cdef Py_ssize_t inner = plan.shape[plan.axes - 1], runs = 1
    for i in range(plan.axes - 1):
        runs *= plan.shape[i]
    plan.p.row_stride = plan.p_strides[plan.axes - 1]
    plan.q.row_stride = plan.q_strides[plan.axes - 1]
    plan.block_rows = max(8, min(<Py_ssize_t>BLOCK_ROWS, BLOCK_ELEMENTS // plan.problem.length))
    if runs * inner < plan.block_rows * n_threads:  # few long rows: a share for each thread
        plan.block_rows = max(1, (inner + n_threads - 1) // n_threads)
    plan.block_rows = min(plan.block_rows, inner)
    plan.blocks_per_run = (inner + plan.block_rows - 1) // plan.block_rows
    plan.blocks = runs * plan.blocks_per_run
    with nogil:
        failed = walk(&plan, n_threads)
    if failed:
        raise MemoryError(f"no memory for {n_threads} threads' scratch space")
