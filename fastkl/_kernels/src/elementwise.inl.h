/* elementwise.inl.h: functions of an element of x and one of y, over arrays, and their sums over rows.
 *
 * From the inside out: the formulae (value_of()); a vector of which some lanes are out of their range (mixed()); arrays
 * as they lie (double_loop(), float_loop()), of any layout in portions (elementwise()); sums over rows of terms
 * (kl_term_sums()).
 *
 * All but the exponentials of floats and halves are computed in double arithmetic and rounded to the result's type at
 * the end: the nearest numbers, but for a rare last bit, and none is out of range on the way. What is lies in doubles
 * alone, in infinities and in what is not a number: zeros and negative numbers have their values in mixed(),
 * careful_elementwise.c has the others. An element's value does not depend on its neighbours.
 */
#include "load.inl.h"
#include "pack.inl.h"
#include "vmath.h"

/* Where neither log(x/y) nor phi(x, y) leaves the range on the way: see vd_phi(). And e^y: see vd_exp_excess(). */
#define ELEMENT_LEAST 0x1p-1021
#define ELEMENT_MOST 0x1p960
#define EXPONENT_MOST 700.0
#define FLOAT_EXPONENT_MOST 80.0f

/* Within 3.5 ulp, phi within 6.5, x and y being in range. Of the two terms, t (log t - i) and e^t (t - i) for an input
 * i = x and a target t = y, that is of the larger of the two products that each is the difference of. */
FKL_INLINE vd value_of(const enum fkl_element_op op, vd x, vd y)
{
    vd power;
    switch (op) {
    case FKL_REL_ENTR:
        return x * vd_log_quotient(x, y);
    case FKL_KL_DIV:
        return vd_phi(x, y);
    case FKL_ENTR:
        return -x * vd_log_quotient(x, vd_set(1.0));
    case FKL_KL_TERM:
        return y * (vd_log_quotient(y, vd_set(1.0)) - x);
    default: /* FKL_KL_TERM_LOG */
        vd_exp_excess(y, &power);
        return power * (y - x);
    }
}

/* The lanes that value_of() computes. */
FKL_INLINE md within_reach(const enum fkl_element_op op, vd x, vd y)
{
    const vd least = vd_set(ELEMENT_LEAST), most = vd_set(ELEMENT_MOST);
    if (op == FKL_KL_TERM_LOG)
        return vd_le(vd_abs(y), vd_set(EXPONENT_MOST));
    const md x_in = md_and(vd_le(least, x), vd_le(x, most)), y_in = md_and(vd_le(least, y), vd_le(y, most));
    return op == FKL_ENTR ? x_in : op == FKL_KL_TERM ? y_in : md_and(x_in, y_in);
}

/* The lanes that hold a zero or a negative number, and their values in *value. */
FKL_INLINE md at_the_edge(const enum fkl_element_op op, vd x, vd y, vd *value)
{
    const vd zero = vd_set(0.0), infinity = vd_set(INFINITY);
    if (op == FKL_ENTR) {
        const md none = vd_eq(x, zero), negative = vd_lt(x, zero);
        *value = vd_select(none, zero, vd_select(negative, -infinity, *value));
        return md_or(none, negative);
    }
    if (op == FKL_KL_TERM) { /* 0 - 0 i, which for an infinite i is not a number */
        const md none = vd_eq(y, zero);
        *value = vd_select(none, zero - y * x, *value);
        return none;
    }
    if (op == FKL_KL_TERM_LOG)
        return vd_lt(zero, zero);
    const md none = md_and(vd_eq(x, zero), vd_le(zero, y));
    const md numbers = md_and(vd_eq(x, x), vd_eq(y, y));
    const md outside = md_and(numbers, md_or(vd_lt(x, zero), vd_le(y, zero)));
    *value = vd_select(none, op == FKL_KL_DIV ? y : zero, vd_select(outside, infinity, *value));
    return md_or(none, outside);
}

/* value_of() of any numbers; `fine` lanes are within reach. */
FKL_INLINE vd mixed_op(const enum fkl_element_op op, vd x, vd y, md fine)
{
    const vd one = vd_set(1.0);
    vd value = value_of(op, vd_select(fine, x, one), vd_select(fine, y, one));
    const md known = md_or(fine, at_the_edge(op, x, y, &value));
    if (FKL_LIKELY(md_all(known)))
        return value;
    const unsigned lanes = md_lanes(known);
    double xs[VD], ys[VD], values[VD];
    vd_store(xs, x);
    vd_store(ys, y);
    vd_store(values, value);
    for (int i = 0; i < VD; i++)
        if (!(lanes >> i & 1))
            values[i] = fkl_careful_element(op, xs[i], ys[i]);
    return vd_load(values);
}

/* The same out of the loops, where it would take most of the room. */
static FKL_NOINLINE vd mixed(enum fkl_element_op op, vd x, vd y, md fine)
{
#define FKL_CASE(OP)                                                                                                   \
    case OP:                                                                                                           \
        return mixed_op(OP, x, y, fine);
    switch (op) {
        FKL_CASE(FKL_REL_ENTR)
        FKL_CASE(FKL_KL_DIV)
        FKL_CASE(FKL_ENTR)
        FKL_CASE(FKL_KL_TERM)
    default:
        FKL_CASE(FKL_KL_TERM_LOG)
    }
#undef FKL_CASE
}

FKL_INLINE vd value_of_any(const enum fkl_element_op op, vd x, vd y)
{
    const md fine = within_reach(op, x, y);
    return FKL_LIKELY(md_all(fine)) ? value_of(op, x, y) : mixed(op, x, y, fine);
}

#if VD > 1
/* The same for floats, and for halves that were read as such. */
FKL_INLINE vf float_value_of_any(const enum fkl_element_op op, vf x, vf y)
{
#if FKL_FLOAT_KERNELS
    if (op == FKL_KL_TERM_LOG) {
        const mf near = vf_le(vf_abs(y), vf_set(FLOAT_EXPONENT_MOST));
        const vf value = vf_exp(y) * (y - x);
        if (FKL_LIKELY(mf_all(near)))
            return value;
        const vd low = value_of_any(op, vf_low(x), vf_low(y)), high = value_of_any(op, vf_high(x), vf_high(y));
        return vf_select(near, value, vf_join(low, high));
    }
#endif
    return vf_join(value_of_any(op, vf_low(x), vf_low(y)), value_of_any(op, vf_high(x), vf_high(y)));
}
#endif

/* ---- arrays ------------------------------------------------------------------------------------------------------ */

/* n doubles that lie one behind the other. to may be x or y. */
FKL_INLINE void double_loop(const enum fkl_element_op op, const char *x, const char *y, ptrdiff_t n, char *to)
{
    ptrdiff_t i = 0;
    for (; i + VD <= n; i += VD)
        vd_store((double *)(void *)(to + i * 8), value_of_any(op, vd_load(x + i * 8), vd_load(y + i * 8)));
    if (i < n) { /* ones are in reach of all operations */
        double last[VD];
        const vd a = ones_behind(load_part(FKL_F64, x + i * 8, n - i), n - i);
        const vd b = ones_behind(load_part(FKL_F64, y + i * 8, n - i), n - i);
        vd_store(last, value_of_any(op, a, b));
        memcpy(to + i * 8, last, (size_t)(n - i) * 8);
    }
}

/* The same of floats or halves. */
FKL_INLINE void float_loop(const enum fkl_element_op op, const enum fkl_type type, const char *x, const char *y,
                           ptrdiff_t n, char *to)
{
    const ptrdiff_t size = type_size(type);
#if VD > 1
    ptrdiff_t i = 0;
    for (; i + VF <= n; i += VF)
        store_float(type, to + i * size,
                    float_value_of_any(op, load_float(type, x + i * size), load_float(type, y + i * size)));
    if (i < n) {
        char last[4 * VF];
        const vf a = float_ones_behind(load_float_part(type, x + i * size, n - i), n - i);
        const vf b = float_ones_behind(load_float_part(type, y + i * size, n - i), n - i);
        store_float(type, last, float_value_of_any(op, a, b));
        memcpy(to + i * size, last, (size_t)((n - i) * size));
    }
#else
    for (ptrdiff_t i = 0; i < n * size; i += size)
        store_one(type, to + i, (float)value_of_any(op, load_one(type, x + i), load_one(type, y + i)));
#endif
}

/* Elements at other distances are brought together, so many at a time: a multiple of BLOCK. */
#define PORTION 1024

FKL_INLINE void copy_loop(const ptrdiff_t size, const char *from, ptrdiff_t from_stride, ptrdiff_t n, char *to,
                          ptrdiff_t to_stride)
{
    for (ptrdiff_t i = 0; i < n; i++)
        memcpy(to + i * to_stride, from + i * from_stride, (size_t)size);
}

static FKL_NOINLINE void copy_elements(ptrdiff_t size, const char *from, ptrdiff_t from_stride, ptrdiff_t n, char *to,
                                       ptrdiff_t to_stride)
{
    if (size == 8)
        copy_loop(8, from, from_stride, n, to, to_stride);
    else if (size == 4)
        copy_loop(4, from, from_stride, n, to, to_stride);
    else
        copy_loop(2, from, from_stride, n, to, to_stride);
}

FKL_INLINE void any_loop(const enum fkl_element_op op, enum fkl_type type, const char *x, const char *y, ptrdiff_t n,
                         char *to)
{
    if (type == FKL_F64)
        double_loop(op, x, y, n, to);
    else if (type == FKL_F32)
        float_loop(op, FKL_F32, x, y, n, to);
    else if (op != FKL_KL_TERM && op != FKL_KL_TERM_LOG) /* the others have no halves */
        return;
    else if (type == FKL_F16)
        float_loop(op, FKL_F16, x, y, n, to);
    else
        float_loop(op, FKL_BF16, x, y, n, to);
}

FKL_INLINE void elementwise_op(const enum fkl_element_op op, enum fkl_type type, ptrdiff_t n, char *const *arrays,
                               const ptrdiff_t *strides)
{
    const ptrdiff_t size = type_size(type);
    const int operands = op == FKL_ENTR ? 1 : 2; /* whose second operand is its first */
    if (strides[0] == size && strides[operands - 1] == size && strides[operands] == size) {
        any_loop(op, type, arrays[0], arrays[operands - 1], n, arrays[operands]);
        return;
    }
    double tiles[2][PORTION], values[PORTION];
    for (ptrdiff_t i = 0; i < n; i += PORTION) {
        const ptrdiff_t count = n - i < PORTION ? n - i : PORTION;
        for (int k = 0; k < operands; k++)
            if (i == 0 || strides[k] != 0)
                copy_elements(size, arrays[k] + i * strides[k], strides[k], count, (char *)tiles[k], size);
        any_loop(op, type, (const char *)tiles[0], (const char *)tiles[operands - 1], count, (char *)values);
        copy_elements(size, (const char *)values, size, count, arrays[operands] + i * strides[operands],
                      strides[operands]);
    }
}

static void elementwise(int op, int type, ptrdiff_t n, char *const *arrays, const ptrdiff_t *strides)
{
#define FKL_CASE(OP)                                                                                                   \
    case OP:                                                                                                           \
        elementwise_op(OP, (enum fkl_type)type, n, arrays, strides);                                                   \
        break;
    switch ((enum fkl_element_op)op) {
        FKL_CASE(FKL_REL_ENTR)
        FKL_CASE(FKL_KL_DIV)
        FKL_CASE(FKL_ENTR)
        FKL_CASE(FKL_KL_TERM)
        FKL_CASE(FKL_KL_TERM_LOG)
    case FKL_ELEMENT_OPS:
        break;
    }
#undef FKL_CASE
    vd_leave();
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

struct kl_sums {
    vd high[PARTS], low[PARTS]; /* by lanes: the sums, and what their additions have lost */
};

/* LANES doubles, or 2 * LANES of another type; the last n of a row where n >= 0. Behind the end there are terms that
 * are 0: those of a target that is 1, or of its logarithm, and of an input that is 0. */
FKL_INLINE void add_kl_step(const enum fkl_element_op op, const enum fkl_type type, const char *x, const char *y,
                            ptrdiff_t n, vd acc[PARTS])
{
    const ptrdiff_t size = type_size(type);
#if VD > 1
    const ptrdiff_t width = type == FKL_F64 ? VD : VF;
#else
    const ptrdiff_t width = 1;
#endif
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        const ptrdiff_t part = part_length(n, j * width, width), at = (n < 0 || part ? j * width : 0) * size;
        if (type == FKL_F64) {
            vd a = n < 0 ? vd_load(x + at) : load_part(FKL_F64, x + at, part);
            vd b = n < 0 ? vd_load(y + at) : load_part(FKL_F64, y + at, part);
            if (n >= 0 && op == FKL_KL_TERM)
                b = ones_behind(b, part);
            acc[j] += value_of_any(op, a, b);
            continue;
        }
#if VD > 1
        vf a = n < 0 ? load_float(type, x + at) : load_float_part(type, x + at, part);
        vf b = n < 0 ? load_float(type, y + at) : load_float_part(type, y + at, part);
        if (n >= 0 && op == FKL_KL_TERM)
            b = float_ones_behind(b, part);
        if (op == FKL_KL_TERM_LOG && FKL_FLOAT_KERNELS) {
            add_floats(acc, j, float_value_of_any(op, a, b));
        } else {
            acc[2 * j % PARTS] += value_of_any(op, vf_low(a), vf_low(b));
            acc[(2 * j + 1) % PARTS] += value_of_any(op, vf_high(a), vf_high(b));
        }
#endif
    }
#if VD == 1
    if (type != FKL_F64)
        for (ptrdiff_t i = 0; i < (n < 0 ? 2 * LANES : n); i++)
            acc[i % LANES] += value_of_any(op, load_one(type, x + i * size), load_one(type, y + i * size));
#endif
}

/* n elements one behind the other, from a multiple of BLOCK on in their row. */
FKL_INLINE void add_kl_terms(const enum fkl_element_op op, const enum fkl_type type, const char *x, const char *y,
                             ptrdiff_t n, struct kl_sums *sums)
{
    const ptrdiff_t size = type_size(type), step = type == FKL_F64 ? LANES : 2 * LANES;
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        const ptrdiff_t end = n - start < BLOCK ? n : start + BLOCK;
        ptrdiff_t i = start;
        vd acc[PARTS];
        for (int j = 0; j < PARTS; j++)
            acc[j] = vd_set(0.0);
        for (; i + step <= end; i += step) {
            ask_far_ahead(2, x, i * size, 64);
            ask_far_ahead(2, y, i * size, 64);
            add_kl_step(op, type, x + i * size, y + i * size, -1, acc);
        }
        if (i < end)
            add_kl_step(op, type, x + i * size, y + i * size, end - i, acc);
        for (int j = 0; j < PARTS; j++) {
            vd lost;
            vd_two_sum(sums->high[j], acc[j], &sums->high[j], &lost);
            sums->low[j] += lost;
        }
    }
}

FKL_INLINE double kl_sum(const enum fkl_element_op op, const enum fkl_type type, const fkl_rows *x, const fkl_rows *y,
                         ptrdiff_t row, ptrdiff_t length)
{
    const ptrdiff_t size = type_size(type);
    const char *from[2] = {x->data + row * x->row_stride, y->data + row * y->row_stride};
    const ptrdiff_t strides[2] = {x->item_stride, y->item_stride};
    struct kl_sums sums;
    for (int j = 0; j < PARTS; j++)
        sums.high[j] = sums.low[j] = vd_set(0.0);
    if (strides[0] == size && strides[1] == size) {
        add_kl_terms(op, type, from[0], from[1], length, &sums);
    } else {
        double tiles[2][PORTION];
        for (ptrdiff_t i = 0; i < length; i += PORTION) {
            const ptrdiff_t count = length - i < PORTION ? length - i : PORTION;
            for (int k = 0; k < 2; k++)
                copy_elements(size, from[k] + i * strides[k], strides[k], count, (char *)tiles[k], size);
            add_kl_terms(op, type, (const char *)tiles[0], (const char *)tiles[1], count, &sums);
        }
    }
    const double sum = vd_add_lanes(sums.high);
    return isfinite(sum) ? sum + vd_add_lanes(sums.low) : sum; /* what an infinity has lost is not a number */
}

/* The operands are of the row type, in this machine's byte order. */
static void kl_term_sums(int operation, int row_type, const fkl_rows *operands, ptrdiff_t n_rows,
                         const fkl_problem *problem, double *result, void *scratch)
{
    (void)scratch;
#define FKL_CASE(TYPE)                                                                                                 \
    case TYPE:                                                                                                         \
        for (ptrdiff_t i = 0; i < n_rows; i++)                                                                         \
            result[i] = operation == FKL_KL_TERM                                                                       \
                            ? kl_sum(FKL_KL_TERM, TYPE, &operands[0], &operands[1], i, problem->length)                \
                            : kl_sum(FKL_KL_TERM_LOG, TYPE, &operands[0], &operands[1], i, problem->length);           \
        break;
    switch ((enum fkl_type)row_type) {
        FKL_CASE(FKL_F64) FKL_CASE(FKL_F32) FKL_CASE(FKL_F16) FKL_CASE(FKL_BF16)
    default:
        break;
    }
#undef FKL_CASE
    vd_leave();
}
