# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Every family over batches: axes, broadcasting and threads around the row kernels.

A batch of rows is walked as blocks of rows at equal distances. The batch axes are sorted by the operands' strides and
merged where memory allows, so that the innermost one is the best run of rows; a block is a stretch of it, small enough
that several operations on it find it in the cache. Threads share the blocks. Broadcasting is a stride of 0, so nothing
is copied for it, and a row's result does not depend on how the walk cut the batch.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange
from libc.stdlib cimport free, malloc

from fastkl._kernels._engine cimport *

cnp.import_array()

FAMILIES = {
    "discrete": FKL_DISCRETE,
    "gaussian": FKL_GAUSSIAN,
    "gaussian_full": FKL_GAUSSIAN_FULL,
    "logits": FKL_LOGITS,
    "terms": FKL_TERMS,
}

SCALES = {"var": FKL_VAR, "std": FKL_STD, "logvar": FKL_LOGVAR}

FULL_SCALES = {"covariance": FKL_COVARIANCE, "cholesky": FKL_CHOLESKY}

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

GAUSSIAN_OPS = {"kl": FKL_GAUSSIAN_KL}

LOGITS_OPS = {
    "kl": FKL_LOGITS_KL,
    "reverse_kl": FKL_LOGITS_REVERSE_KL,
    "js": FKL_LOGITS_JS,
    "js_distance": FKL_LOGITS_JS_DISTANCE,
    "cross_entropy": FKL_LOGITS_CROSS_ENTROPY,
    "entropy": FKL_LOGITS_ENTROPY,
    "top1_agreement": FKL_LOGITS_TOP1_AGREEMENT,
    "kl_grad": FKL_LOGITS_KL_GRAD,
    "kl_grad_q": FKL_LOGITS_KL_GRAD_Q,
}

TERMS_OPS = {"kl": FKL_KL_TERM, "kl_log": FKL_KL_TERM_LOG}

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

cdef extern from "numpy/arrayobject.h":
    object PyArray_Scalar(void *value, cnp.dtype dtype, object base)

cdef cnp.dtype _FLOAT64 = cnp.PyArray_DescrFromType(cnp.NPY_FLOAT64)
cdef cnp.dtype _FLOAT32 = cnp.PyArray_DescrFromType(cnp.NPY_FLOAT32)

cdef enum:
    MAX_AXES = 64        # NumPy's own limit
    MAX_OPS = 16
    BLOCK_ELEMENTS = 8192  # of each operand: what two doubles' worth of it is fits the second-level cache
    BLOCK_ROWS = 1024
    HOLDING = 1024         # elements of a pair by itself: with fewer, Python's lock is held
    LANES_ROWS = 512       # the same for pairs of full Gaussians, of few components and of many
    PANELS_ROWS = 8
    THREAD_BYTES = 1 << 20  # of scratch space for each thread; what a family needs beyond it, all threads together
    SHARED_BYTES = 15 << 20

cdef struct Plan:
    # The walk: axes of the batch from the outermost in, and the strides of the operands and the outputs along them.
    int axes
    Py_ssize_t shape[MAX_AXES]
    Py_ssize_t strides[FKL_MOST_OPERANDS][MAX_AXES]
    Py_ssize_t out_strides[MAX_OPS][MAX_AXES]
    Py_ssize_t block_rows, blocks_per_run, blocks
    # The work on each block.
    fkl_rows operands[FKL_MOST_OPERANDS]
    fkl_problem problem
    fkl_matrix matrices[FKL_MOST_OPERANDS]
    int family
    int row_type
    int n_ops
    int ops[MAX_OPS]
    char *out[MAX_OPS]
    int out_is_float[MAX_OPS]
    fkl_kernel *kernel


cdef inline Py_ssize_t magnitude(Py_ssize_t x) noexcept nogil:
    return -x if x < 0 else x


cdef void swap_axes(Plan *plan, int i, int j) noexcept nogil:
    cdef int k
    plan.shape[i], plan.shape[j] = plan.shape[j], plan.shape[i]
    for k in range(plan.problem.operands):
        plan.strides[k][i], plan.strides[k][j] = plan.strides[k][j], plan.strides[k][i]
    for k in range(plan.n_ops):
        plan.out_strides[k][i], plan.out_strides[k][j] = plan.out_strides[k][j], plan.out_strides[k][i]


cdef bint mergeable(const Plan *plan, int i) noexcept nogil:
    # Is axis i + 1 the continuation of axis i in every array?
    cdef Py_ssize_t n = plan.shape[i + 1]
    cdef int k
    for k in range(plan.problem.operands):
        if plan.strides[k][i] != n * plan.strides[k][i + 1]:
            return False
    for k in range(plan.n_ops):
        if plan.out_strides[k][i] != n * plan.out_strides[k][i + 1]:
            return False
    return True


cdef bint is_wider(const Plan *plan, int i, int j) noexcept nogil:
    # Are the strides along axis i wider than those along j? The first operand in which they differ decides.
    cdef Py_ssize_t a, b
    cdef int k
    for k in range(plan.problem.operands):
        a, b = magnitude(plan.strides[k][i]), magnitude(plan.strides[k][j])
        if a != b:
            return a > b
    return False


cdef void drop_axis(Plan *plan, int i) noexcept nogil:
    plan.axes -= 1
    while i < plan.axes:
        swap_axes(plan, i, i + 1)
        i += 1


cdef void simplify(Plan *plan) noexcept nogil:
    # No axes of length 1, the widest strides outermost, neighbours merged, at least one axis left.
    cdef int i = plan.axes - 1, j
    while i >= 0:
        if plan.shape[i] == 1:
            drop_axis(plan, i)
        i -= 1
    for i in range(1, plan.axes):
        j = i
        while j > 0 and is_wider(plan, j, j - 1):
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
        for i in range(plan.problem.operands):
            plan.strides[i][0] = 0
        for i in range(plan.n_ops):
            plan.out_strides[i][0] = 0


cdef void run_block(const Plan *plan, Py_ssize_t block, double *result, void *scratch) noexcept nogil:
    cdef fkl_rows operands[FKL_MOST_OPERANDS]
    cdef Py_ssize_t offset[MAX_OPS]
    cdef Py_ssize_t run = block // plan.blocks_per_run
    cdef Py_ssize_t first = (block % plan.blocks_per_run) * plan.block_rows
    cdef Py_ssize_t inner = plan.shape[plan.axes - 1]
    cdef Py_ssize_t n = min(plan.block_rows, inner - first), index, i
    cdef int axis = plan.axes - 1, k
    cdef char *to

    for k in range(plan.problem.operands):
        operands[k] = plan.operands[k]
        operands[k].data += first * plan.strides[k][axis]
    for k in range(plan.n_ops):
        offset[k] = first * plan.out_strides[k][axis]
    for axis in range(plan.axes - 2, -1, -1):
        index = run % plan.shape[axis]
        run = run // plan.shape[axis]
        for k in range(plan.problem.operands):
            operands[k].data += index * plan.strides[k][axis]
        for k in range(plan.n_ops):
            offset[k] += index * plan.out_strides[k][axis]

    axis = plan.axes - 1
    for k in range(plan.n_ops):
        plan.kernel(plan.ops[k], plan.row_type, operands, n, &plan.problem, result, scratch)
        to = plan.out[k] + offset[k]
        if plan.out_is_float[k]:
            for i in range(n):
                (<float *>(to + i * plan.out_strides[k][axis]))[0] = <float>result[i]
        else:
            for i in range(n):
                (<double *>(to + i * plan.out_strides[k][axis]))[0] = result[i]


cdef void *make_scratch(const Plan *plan) noexcept nogil:
    # The results of a block and the kernels' own space behind them, in one piece.
    cdef size_t results = <size_t>plan.block_rows * sizeof(double)
    return malloc(results + fkl_scratch_bytes(plan.family, plan.problem.length) + 64)


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


cdef Py_ssize_t own_stride(cnp.ndarray array, int ndim, int axis, bint stretch) noexcept:
    # The stride of array along `axis` of ndim: 0 where NumPy's broadcasting puts the axis before its own or, if it may
    # stretch this axis, where the array has length 1 there.
    axis -= ndim - cnp.PyArray_NDIM(array)
    if axis < 0 or (stretch and cnp.PyArray_DIMS(array)[axis] == 1):
        return 0
    return cnp.PyArray_STRIDES(array)[axis]


def reduce(int family, tuple ops, tuple operands, tuple types, int row_type, axis, Py_ssize_t length, tuple outs,
           int n_threads, bint normalize=True, double log_base=1.0, double parameter=0.0, positions=None, int scale=0,
           double temperature=1.0, tuple matrices=None):
    """Write ops of the rows of the operands along `axis` into outs.

    axis counts from the end (-1 is the last) and means the same axis of all operands, whose batch axes broadcast; None
    stands for rows of one element, along no axis. length: of the rows. matrices: what of full Gaussians' operands the
    arrays do not say, which for a matrix are its first line: the distance of its lines, or None where the operand is no
    matrix, and the asymmetry allowed. The arguments are taken to be right: `fastkl._validation` is where they are
    checked.
    """
    cdef Plan plan
    cdef int ndim = 0, reduced, in_operands, i, k, failed
    cdef cnp.ndarray array, out
    cdef const double[::1] places

    if len(ops) > MAX_OPS:
        raise ValueError(f"at most {MAX_OPS} operations at a time, got {len(ops)}")
    plan.n_ops = len(ops)
    plan.family = family
    plan.kernel = active_level().kernels[family]
    plan.row_type = row_type
    plan.problem.length = length
    plan.problem.operands = len(operands)
    plan.problem.scale = scale
    plan.problem.normalize = normalize
    plan.problem.log_base = log_base
    plan.problem.parameter = parameter
    plan.problem.temperature = temperature
    plan.problem.positions = NULL
    if positions is not None:
        places = positions
        plan.problem.positions = &places[0]
    plan.problem.matrices = plan.matrices
    if matrices is not None:
        for k, (line_stride, asymmetry) in enumerate(matrices):
            plan.matrices[k].whole = line_stride is not None
            plan.matrices[k].line_stride = line_stride or 0
            plan.matrices[k].asymmetry = asymmetry
    for array in operands:
        ndim = max(ndim, cnp.PyArray_NDIM(array))
    if ndim > MAX_AXES:
        raise ValueError(f"at most {MAX_AXES} axes, got {ndim}")
    reduced = ndim if axis is None else ndim + <int>axis

    out = outs[0]
    if cnp.PyArray_SIZE(out) == 0:
        return
    plan.axes = cnp.PyArray_NDIM(out)
    for i in range(plan.axes):
        in_operands = i if i < reduced else i + 1
        plan.shape[i] = cnp.PyArray_DIMS(out)[i]
        for k in range(plan.problem.operands):
            plan.strides[k][i] = own_stride(operands[k], ndim, in_operands, True)
        for k in range(plan.n_ops):
            plan.out_strides[k][i] = cnp.PyArray_STRIDES(outs[k])[i]
    for k in range(plan.problem.operands):
        array = operands[k]
        plan.operands[k].data = <const char *>cnp.PyArray_DATA(array)
        plan.operands[k].type = types[k]
        plan.operands[k].swapped = not cnp.PyArray_ISNOTSWAPPED(array)
        plan.operands[k].item_stride = 0 if reduced == ndim else own_stride(array, ndim, reduced, False)
    for k in range(plan.n_ops):
        out = outs[k]
        plan.ops[k] = ops[k]
        plan.out[k] = <char *>cnp.PyArray_DATA(out)
        plan.out_is_float[k] = cnp.PyArray_TYPE(out) == cnp.NPY_FLOAT32

    simplify(&plan)
    cdef Py_ssize_t inner = plan.shape[plan.axes - 1], runs = 1
    for i in range(plan.axes - 1):
        runs *= plan.shape[i]
    cdef bint side_by_side = True
    for k in range(plan.problem.operands):
        plan.operands[k].row_stride = plan.strides[k][plan.axes - 1]
        side_by_side = side_by_side and plan.operands[k].row_stride == cnp.PyArray_ITEMSIZE(operands[k])
    plan.block_rows = max(8, min(<Py_ssize_t>BLOCK_ROWS, (BLOCK_ELEMENTS // plan.problem.length + 4) // 8 * 8))
    if plan.block_rows > FKL_PACKED_ROWS:  # rows that are packed are packed so many at a time
        plan.block_rows -= plan.block_rows % FKL_PACKED_ROWS
    if family == FKL_DISCRETE and side_by_side:  # rows across the memory are columns of it, so many at a time
        plan.block_rows = max(plan.block_rows, <Py_ssize_t>(4 * FKL_COLUMNS))
    if matrices is not None:  # a q that all pairs of a block have in common is factored once
        plan.block_rows = LANES_ROWS if plan.problem.length <= FKL_LANES_MOST else PANELS_ROWS
    if runs * inner < plan.block_rows * n_threads:  # few long rows: a share for each thread
        plan.block_rows = max(1, (inner + n_threads - 1) // n_threads)
    plan.block_rows = min(plan.block_rows, inner)
    plan.blocks_per_run = (inner + plan.block_rows - 1) // plan.block_rows
    plan.blocks = runs * plan.blocks_per_run
    cdef Py_ssize_t beyond = <Py_ssize_t>fkl_scratch_bytes(plan.family, plan.problem.length) - THREAD_BYTES
    if beyond > 0:
        n_threads = max(1, min(<Py_ssize_t>n_threads, SHARED_BYTES // beyond))
    with nogil:
        failed = walk(&plan, n_threads)
    if failed:
        raise MemoryError(f"no memory for {n_threads} threads' scratch space")


cdef int run_pair(int operation, const fkl_rows *operands, const fkl_problem *problem, double *result) noexcept nogil:
    # -1 where memory ran out.
    cdef void *memory = malloc(fkl_scratch_bytes(FKL_DISCRETE, problem.length) + 64)
    if memory == NULL:
        return -1
    active_level().kernels[FKL_DISCRETE](operation, operands[0].type, operands, 1, problem, result,
                                         <void *>((<size_t>memory + 63) & ~<size_t>63))
    free(memory)
    return 0


cdef double value_of_pair(int operation, int row_type, Py_ssize_t length, const void *p, const void *q, bint normalize,
                          double log_base, double parameter) except? -1.0:
    cdef Py_ssize_t size = 8 if row_type == FKL_F64 else 4 if row_type == FKL_F32 else 2
    cdef fkl_rows operands[2]
    cdef fkl_problem problem
    cdef double result
    cdef int failed
    operands[0] = fkl_rows(<const char *>p, 0, size, row_type, 0)
    operands[1] = fkl_rows(<const char *>q, 0, size, row_type, 0)
    problem.length = length
    problem.operands = 2
    problem.normalize = normalize
    problem.log_base = log_base
    problem.parameter = parameter
    problem.positions = NULL
    if length < HOLDING:  # no longer than it takes to let another thread in
        failed = run_pair(operation, operands, &problem, &result)
    else:
        with nogil:
            failed = run_pair(operation, operands, &problem, &result)
    if failed:
        raise MemoryError("no memory for one thread's scratch space")
    return result


def pair(int operation, p, q, bint normalize, double log_base, double parameter):
    """An operation of the discrete family on two rows that need no plan, as a NumPy scalar.

    None unless both are contiguous arrays of one axis, of one length, of the same floats and in this machine's order of
    bytes: `reduce` takes them all, and gives the same bits.
    """
    cdef cnp.ndarray x, y
    cdef double result
    cdef float rounded
    cdef int row_type, type_number
    if not (cnp.PyArray_CheckExact(p) and cnp.PyArray_CheckExact(q)):
        return None
    x, y = p, q
    type_number = cnp.PyArray_TYPE(x)
    if type_number == cnp.NPY_FLOAT64:
        row_type = FKL_F64
    elif type_number == cnp.NPY_FLOAT32:
        row_type = FKL_F32
    elif type_number == cnp.NPY_FLOAT16:
        row_type = FKL_F16
    else:
        return None
    if not (cnp.PyArray_TYPE(y) == type_number and cnp.PyArray_NDIM(x) == 1 and cnp.PyArray_NDIM(y) == 1
            and cnp.PyArray_DIMS(x)[0] == cnp.PyArray_DIMS(y)[0] and cnp.PyArray_DIMS(x)[0] > 0
            and cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_IS_C_CONTIGUOUS(y)
            and cnp.PyArray_ISNOTSWAPPED(x) and cnp.PyArray_ISNOTSWAPPED(y)):
        return None
    result = value_of_pair(operation, row_type, cnp.PyArray_DIMS(x)[0], cnp.PyArray_DATA(x), cnp.PyArray_DATA(y),
                           normalize, log_base, parameter)
    if row_type == FKL_F64:
        return PyArray_Scalar(&result, _FLOAT64, None)
    rounded = <float>result
    return PyArray_Scalar(&rounded, _FLOAT32, None)


def pair_at(int operation, int row_type, Py_ssize_t length, size_t p, size_t q, bint normalize, double log_base,
            double parameter):
    """The same, as an array without axes, for rows of one of FKL_ROW_TYPES (enum fkl_type) that lie at p and at q."""
    cdef double result = value_of_pair(operation, row_type, length, <const void *>p, <const void *>q, normalize, log_base,
                                       parameter)
    cdef cnp.ndarray array
    if row_type == FKL_F64:
        array = cnp.PyArray_SimpleNew(0, NULL, cnp.NPY_FLOAT64)
        (<double *>cnp.PyArray_DATA(array))[0] = result
    else:
        array = cnp.PyArray_SimpleNew(0, NULL, cnp.NPY_FLOAT32)
        (<float *>cnp.PyArray_DATA(array))[0] = <float>result
    return array
