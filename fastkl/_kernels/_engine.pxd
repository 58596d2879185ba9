# The C side as Cython sees it (src/kernels.h), and the level in force.

cdef extern from "kernels.h" nogil:
    enum: FKL_F64
    enum: FKL_F32
    enum: FKL_F16
    enum: FKL_BF16
    enum: FKL_I8
    enum: FKL_I16
    enum: FKL_I32
    enum: FKL_I64
    enum: FKL_U8
    enum: FKL_U16
    enum: FKL_U32
    enum: FKL_U64

    enum: FKL_MOST_OPERANDS
    enum: FKL_LANES_MOST
    enum: FKL_PACKED_ROWS
    enum: FKL_COLUMNS

    enum: FKL_DISCRETE
    enum: FKL_GAUSSIAN
    enum: FKL_GAUSSIAN_FULL
    enum: FKL_LOGITS
    enum: FKL_TERMS
    enum: FKL_FAMILIES

    enum: FKL_GAUSSIAN_KL
    enum: FKL_VAR
    enum: FKL_STD
    enum: FKL_LOGVAR
    enum: FKL_COVARIANCE
    enum: FKL_CHOLESKY

    enum: FKL_LOGITS_KL
    enum: FKL_LOGITS_REVERSE_KL
    enum: FKL_LOGITS_JS
    enum: FKL_LOGITS_JS_DISTANCE
    enum: FKL_LOGITS_CROSS_ENTROPY
    enum: FKL_LOGITS_ENTROPY
    enum: FKL_LOGITS_TOP1_AGREEMENT
    enum: FKL_LOGITS_KL_GRAD
    enum: FKL_LOGITS_KL_GRAD_Q

    enum: FKL_REL_ENTR
    enum: FKL_KL_DIV
    enum: FKL_ENTR
    enum: FKL_KL_TERM
    enum: FKL_KL_TERM_LOG
    enum: FKL_ELEMENT_OPS

    enum: FKL_KL
    enum: FKL_REVERSE_KL
    enum: FKL_JEFFREYS
    enum: FKL_JS
    enum: FKL_JS_DISTANCE
    enum: FKL_CROSS_ENTROPY
    enum: FKL_ENTROPY
    enum: FKL_RENYI
    enum: FKL_TOTAL_VARIATION
    enum: FKL_HELLINGER
    enum: FKL_WASSERSTEIN

    ctypedef struct fkl_rows:
        const char *data
        Py_ssize_t row_stride
        Py_ssize_t item_stride
        int type
        int swapped

    ctypedef struct fkl_matrix:
        int whole
        Py_ssize_t line_stride
        double asymmetry

    ctypedef struct fkl_problem:
        Py_ssize_t length
        int operands
        int scale
        int normalize
        double log_base
        double parameter
        double temperature
        const double *positions
        const fkl_matrix *matrices

    ctypedef void fkl_kernel(int operation, int row_type, const fkl_rows *operands, Py_ssize_t n_rows,
                             const fkl_problem *problem, double *result, void *scratch) noexcept

    ctypedef void fkl_elementwise(int operation, int type, Py_ssize_t n, char **arrays,
                                  const Py_ssize_t *strides) noexcept

    ctypedef struct fkl_level:
        const char *name
        fkl_kernel *kernels[FKL_FAMILIES]
        fkl_elementwise *elementwise
        void (*probe)(int function, Py_ssize_t n, const double *a, const double *b, double *result) noexcept

    const fkl_level *const fkl_levels[]
    int fkl_level_usable(const char *name)
    size_t fkl_scratch_bytes(int family, Py_ssize_t length)

cdef extern from "threads.h" nogil:
    int fkl_openmp_version()
    int fkl_in_parallel()

cdef const fkl_level *active_level() noexcept nogil
