/* kernels.h: what Cython sees of the C side: the types of a row, the list of operations, and one table per level. */
#ifndef FASTKL_KERNELS_H
#define FASTKL_KERNELS_H

#include <stddef.h>

/* How the elements of an operand lie in memory. A kernel's rows are of one of the first FKL_ROW_TYPES; everything else
 * is converted on the way into the scratch tile. */
enum fkl_type {
    FKL_F64, FKL_F32, FKL_F16, FKL_BF16,
    FKL_ROW_TYPES,
    FKL_I8 = FKL_ROW_TYPES, FKL_I16, FKL_I32, FKL_I64, FKL_U8, FKL_U16, FKL_U32, FKL_U64,
    FKL_TYPES
};

enum fkl_family { FKL_DISCRETE, FKL_GAUSSIAN, FKL_GAUSSIAN_FULL, FKL_LOGITS, FKL_TERMS, FKL_FAMILIES };

/* The discrete family: operands p and q. */
enum fkl_op {
    FKL_KL, FKL_REVERSE_KL, FKL_JEFFREYS, FKL_JS, FKL_JS_DISTANCE, FKL_CROSS_ENTROPY, FKL_ENTROPY, FKL_RENYI,
    FKL_TOTAL_VARIATION, FKL_HELLINGER, FKL_WASSERSTEIN,
    FKL_OPS
};

/* The Gaussian family: operands mean and scale of p, and of q unless that is N(0, I). The scale may be given as the
 * variance, as its root or as its logarithm. */
enum fkl_gaussian_op { FKL_GAUSSIAN_KL };
enum fkl_scale { FKL_VAR, FKL_STD, FKL_LOGVAR };

/* The same with full covariances, whose scales are those or their lower Cholesky factors. */
enum fkl_full_scale { FKL_COVARIANCE, FKL_CHOLESKY };

/* The logits family: operands p and q, and behind them, for an operation with gradients, arrays that it writes: those
 * with respect to the logits of p and of q, or of q alone, times `parameter`. */
enum fkl_logits_op {
    FKL_LOGITS_KL, FKL_LOGITS_REVERSE_KL, FKL_LOGITS_JS, FKL_LOGITS_JS_DISTANCE, FKL_LOGITS_CROSS_ENTROPY,
    FKL_LOGITS_ENTROPY, FKL_LOGITS_TOP1_AGREEMENT, FKL_LOGITS_KL_GRAD, FKL_LOGITS_KL_GRAD_Q
};

/* Functions of single elements, x and y: SciPy's rel_entr, kl_div and entr (of x alone), and the term that PyTorch's
 * kl_div adds up, of x = input and y = target or its logarithm. Of the last two there are sums over rows: the family
 * of terms. */
enum fkl_element_op { FKL_REL_ENTR, FKL_KL_DIV, FKL_ENTR, FKL_KL_TERM, FKL_KL_TERM_LOG, FKL_ELEMENT_OPS };

/* Renyi's divergence of order alpha is worked out as sum p r^b with r = p/q and this b. The orders from 1/2 up are the
 * well-conditioned ones: below, p and q change places, for sum p^alpha q^(1 - alpha) is sum q^(1 - alpha) p^alpha. The
 * infinite order is a maximum of r, whatever b. */
static inline int fkl_renyi_turned(double alpha) { return alpha > 0.0 && alpha < 0.5; }
static inline double fkl_renyi_order(double alpha)
{
    return fkl_renyi_turned(alpha) ? -alpha : alpha > 0x1.fffffffffffffp1023 ? 1.0 : alpha - 1.0;
}

#define FKL_MOST_OPERANDS 4

/* Rows at equal distances: element j of row i is at data + i * row_stride + j * item_stride (bytes, any sign, or 0). */
typedef struct {
    const char *data;
    ptrdiff_t row_stride, item_stride;
    int type;    /* enum fkl_type */
    int swapped; /* the bytes of an element are in the other order than this machine's */
} fkl_rows;

/* What an operand of full Gaussians is besides its rows: of a matrix these are the first lines. */
typedef struct {
    int whole;             /* a matrix; else a mean, or a scale that is a diagonal */
    ptrdiff_t line_stride; /* from one line of the matrix to the next */
    double asymmetry;      /* elements (i, j) and (j, i) of a covariance differ by at most so many sqrt(S_ii S_jj) */
} fkl_matrix;

typedef struct {
    ptrdiff_t length;        /* K */
    int operands;            /* how many there are */
    int scale;               /* enum fkl_scale, or enum fkl_full_scale */
    int normalize;           /* divide each row by its sum? */
    double log_base;         /* results in nats are divided by this */
    double parameter;        /* the weight of JS, the order alpha of Renyi, the factor of gradients */
    double temperature;      /* of logits */
    const double *positions; /* K ascending positions for Wasserstein, or NULL for 0, 1, 2, ... */
    const fkl_matrix *matrices; /* of full Gaussians, one for each operand */
} fkl_problem;

/* result[i] of an operation for n_rows rows of each operand, held as row_type while they are worked on. scratch:
 * fkl_scratch_bytes() of the calling thread's own, 64-byte aligned. */
typedef void fkl_kernel(int operation, int row_type, const fkl_rows *operands, ptrdiff_t n_rows,
                        const fkl_problem *problem, double *result, void *scratch);

/* An operation (enum fkl_element_op) over n elements of its operands and the result behind them, all of one of the
 * FKL_ROW_TYPES, at distances in bytes. The result may lie where an operand does, element by element, and must not
 * overlap one otherwise. */
typedef void fkl_elementwise(int operation, int type, ptrdiff_t n, char *const *arrays, const ptrdiff_t *strides);

/* Scratch space of the discrete family: first the tiles of a group of FKL_TILE_ROWS rows of p and of q, up to
 * FKL_TILE_LENGTH elements of each row at a time, which is a multiple of the summation block; behind them the rows of p
 * and of q that are packed ahead of several groups, if a whole row fits, or the sums of columns. Elements are counted
 * as doubles. */
#define FKL_SHORT 31 /* rows up to this length go eight at a time, one per lane; FKL_PACKED_ROWS of them are a tile */
#define FKL_TILE_ROWS 8
#define FKL_TILE_LENGTH 4096
#define FKL_PACKED_ROWS 64
#define FKL_PACKED_BYTES 131072 /* of each operand: they stay in the second-level cache */
#define FKL_COLUMNS 128 /* rows across the memory that are worked on side by side, and the space for their sums */
#define FKL_COLUMNS_SCRATCH ((8 * 18 + 1) * 8 * FKL_COLUMNS)
static inline ptrdiff_t fkl_tile_length(ptrdiff_t length)
{
    return length < FKL_TILE_LENGTH ? length : FKL_TILE_LENGTH;
}
static inline ptrdiff_t fkl_group_scratch(ptrdiff_t length)
{
    return 2 * (length <= FKL_SHORT ? FKL_PACKED_ROWS : FKL_TILE_ROWS) * 8 * fkl_tile_length(length);
}
/* From one packed row to the next: whole cache lines, and one more, lest rows fall on each other's places in the
 * cache. */
static inline ptrdiff_t fkl_packed_stride(ptrdiff_t length) { return (length * 8 + 63) / 64 * 64 + 64; }
static inline ptrdiff_t fkl_packed_rows(ptrdiff_t length)
{
    ptrdiff_t rows = FKL_PACKED_BYTES / fkl_packed_stride(length) / FKL_TILE_ROWS * FKL_TILE_ROWS;
    return rows < FKL_TILE_ROWS ? FKL_TILE_ROWS : rows > FKL_PACKED_ROWS ? FKL_PACKED_ROWS : rows;
}
/* That of the Gaussian family: a tile for each operand. */
#define FKL_GAUSSIAN_TILE 8192 /* elements, counted as doubles */

/* That of full Gaussians of up to FKL_LANES_MOST components: the matrices of eight pairs, those of q, as many elements
 * that are converted, and 16 lines. With more, the two factors in panels of 8 rows, two panels of full length, and 8
 * lines. */
#define FKL_LANES_MOST 32
static inline ptrdiff_t fkl_full_panels(ptrdiff_t length) { return (length + 7) / 8; }
static inline ptrdiff_t fkl_full_scratch(ptrdiff_t length)
{
    const ptrdiff_t panels = fkl_full_panels(length);
    return length <= FKL_LANES_MOST ? 64 * (3 * length * length + 16 * length)
                                    : 64 * (8 * panels * (panels + 1) + 24 * panels);
}

/* That of the logits family: a tile of rows of each operand, or of up to FKL_LOGITS_CHUNK elements of each row. */
#define FKL_LOGITS_TILE 131072 /* bytes, of each operand */
#define FKL_LOGITS_CHUNK 4096

static inline size_t fkl_scratch_bytes(enum fkl_family family, ptrdiff_t length)
{
    if (family == FKL_GAUSSIAN_FULL)
        return (size_t)fkl_full_scratch(length);
    if (family == FKL_TERMS)
        return 0;
    if (family == FKL_GAUSSIAN)
        return FKL_MOST_OPERANDS * 8 * FKL_GAUSSIAN_TILE;
    if (family == FKL_LOGITS)
        return FKL_MOST_OPERANDS * FKL_LOGITS_TILE;
    ptrdiff_t packed = length > FKL_TILE_LENGTH ? 0 : 2 * fkl_packed_rows(length) * fkl_packed_stride(length);
    if (length > FKL_SHORT && packed < FKL_COLUMNS_SCRATCH) /* in the same place */
        packed = FKL_COLUMNS_SCRATCH;
    return (size_t)(fkl_group_scratch(length) + packed);
}

/* Functions of vmath.h by number, for the tests that measure their errors. */
enum fkl_probe {
    FKL_PROBE_PHI, FKL_PROBE_LOG_RATIO, FKL_PROBE_LOG1P, FKL_PROBE_EXP, FKL_PROBE_EXP_EXCESS, FKL_PROBE_PHI_OVER,
    FKL_PROBE_LESS_LOG1P,
    FKL_PROBE_PHI_FLOAT, FKL_PROBE_EXCESS_FLOAT, FKL_PROBE_EXP2_FRACTION_FLOAT, FKL_PROBE_EXCESS2_FLOAT, /* of floats */
    FKL_PROBE_EXP_FLOAT,
    FKL_PROBES
};

typedef struct {
    const char *name;
    fkl_kernel *kernels[FKL_FAMILIES];
    fkl_elementwise *elementwise;
    void (*probe)(int function, ptrdiff_t n, const double *a, const double *b, double *result);
} fkl_level;

/* The levels this build has, from the lowest up, ending with a NULL; `fkl_level_usable` asks the CPU and the OS. */
extern const fkl_level *const fkl_levels[];
int fkl_level_usable(const char *name);

/* One row by scalar arithmetic with exponents of their own: for rows the vector kernels leave alone (subnormal numbers,
 * sums beyond the largest float, negative zeros), and the judge of what is a valid row. Any layout, slow, exact. */
double fkl_careful_row(int op, const fkl_rows *p, const fkl_rows *q, const fkl_problem *problem);
double fkl_careful_gaussian_row(const fkl_rows *operands, const fkl_problem *problem);
/* r^2 - 1 - log r^2 for r = s/t, positive s and t. */
double fkl_careful_spread(double s, double t);
void fkl_octaves_per_logit(double temperature, double *high, double *low); /* log2(e)/T */
double fkl_careful_element(int op, double x, double y);
double fkl_careful_logits_row(int op, const fkl_rows *operands, const fkl_problem *problem);

#endif
