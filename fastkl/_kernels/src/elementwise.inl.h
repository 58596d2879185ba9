/* elementwise.inl.h: functions of an element of x and one of y, over arrays, and their sums over rows.
 *
 * From the inside out: the formulae (value_of()); a vector of which some lanes are out of their range (mixed()); arrays
 * of doubles or floats as they lie (element_loop()), of any layout and type in portions (elementwise()); sums over rows
 * of terms (term_sums()).
 *
 * Everything is computed in double arithmetic and rounded to the result's type at the end: of floats and halves the
 * results are the nearest ones but for a rare last bit, and none of them is out of range. What is then lies in doubles
 * alone, in infinities and in what is not a number: zeros and negative numbers have their values in mixed(),
 * careful_elementwise.c has the others.
 */
#include "load.inl.h"
#include "pack.inl.h"
#include "vmath.h"

/* Where neither log(x/y) nor phi(x, y) leaves the range on the way: see vd_phi(). And e^y: see vd_exp_excess(). */
#define ELEMENT_LEAST 0x1p-1021
#define ELEMENT_MOST 0x1p980
#define EXPONENT_MOST 700.0

/* Within 4.5 ulp, phi within 6.5, x and y being in range. Of the two terms, t (log t - i) and e^t (t - i) for an input
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

/* value_of() of any numbers; `fine` lanes are in range. */
FKL_INLINE vd mixed(const enum fkl_element_op op, vd x, vd y, md fine)
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

FKL_INLINE vd value_of_any(const enum fkl_element_op op, vd x, vd y)
{
    const md fine = within_reach(op, x, y);
    return FKL_LIKELY(md_all(fine)) ? value_of(op, x, y) : mixed(op, x, y, fine);
}

/* ---- arrays ------------------------------------------------------------------------------------------------------ */

/* n elements that lie one behind the other, as doubles or floats. to may be x or y. */
FKL_INLINE void element_loop(const enum fkl_element_op op, const enum fkl_type type, const char *x, const char *y,
                             ptrdiff_t n, char *to)
{
    const ptrdiff_t size = type_size(type);
    ptrdiff_t i = 0;
    for (; i + VD <= n; i += VD) {
        const vd a = load(type, x + i * size);
        store(type, to + i * size, value_of_any(op, a, op == FKL_ENTR ? a : load(type, y + i * size)));
    }
    if (i < n) { /* ones are in range of all of them */
        const vd a = ones_behind(load_part(type, x + i * size, n - i), n - i);
        const vd b = op == FKL_ENTR ? a : ones_behind(load_part(type, y + i * size, n - i), n - i);
        char last[8 * VD];
        store(type, last, value_of_any(op, a, b));
        memcpy(to + i * size, last, (size_t)((n - i) * size));
    }
}

/* Elements of other types or distances are converted so many at a time. */
#define PORTION 512

FKL_INLINE void store_loop(const enum fkl_type type, const double *values, ptrdiff_t n, char *to, ptrdiff_t stride)
{
    for (ptrdiff_t i = 0; i < n; i++, to += stride) {
        const float narrow = (float)values[i];
        const uint16_t half = type == FKL_F16 ? float_to_half(narrow) : float_to_bfloat(narrow);
        if (type == FKL_F64)
            memcpy(to, &values[i], 8);
        else if (type == FKL_F32)
            memcpy(to, &narrow, 4);
        else
            memcpy(to, &half, 2);
    }
}

/* n elements of any type and at equal distances as doubles. */
static FKL_NOINLINE void load_doubles(enum fkl_type type, int swapped, const char *from, ptrdiff_t stride, ptrdiff_t n,
                                      double *values)
{
#if VD > 1
    for (; type == FKL_F16 && !swapped && stride == 2 && n >= VF; from += 2 * VF, n -= VF, values += VF) {
        const vf x = vf_load_f16(from);
        vd_store(values, vf_low(x));
        vd_store(values + VD, vf_high(x));
    }
#endif
    convert(type, swapped, from, stride, n, FKL_F64, (char *)values);
}

/* n doubles to elements of any of the FKL_ROW_TYPES, at equal distances. */
static FKL_NOINLINE void store_doubles(enum fkl_type type, const double *values, ptrdiff_t n, char *to,
                                       ptrdiff_t stride)
{
#if defined(__F16C__) /* the compiler does not find it */
    for (; type == FKL_F16 && stride == 2 && n >= 4; values += 4, n -= 4, to += 8)
        _mm_storel_epi64((__m128i_u *)to, _mm_cvtps_ph(_mm256_cvtpd_ps(_mm256_loadu_pd(values)), 0));
#endif
#define FKL_CASE(TYPE)                                                                                                 \
    case TYPE:                                                                                                         \
        if (stride == type_size(TYPE))                                                                                 \
            store_loop(TYPE, values, n, to, type_size(TYPE));                                                          \
        else                                                                                                           \
            store_loop(TYPE, values, n, to, stride);                                                                   \
        break;
    switch (type) {
        FKL_CASE(FKL_F64) FKL_CASE(FKL_F32) FKL_CASE(FKL_F16) FKL_CASE(FKL_BF16)
    default:
        break;
    }
#undef FKL_CASE
}

FKL_INLINE void elementwise_op(const enum fkl_element_op op, const enum fkl_type type, ptrdiff_t n, char *const *arrays,
                               const ptrdiff_t *strides)
{
    const ptrdiff_t size = type_size(type);
    const int operands = op == FKL_ENTR ? 1 : 2;
    int direct = 1;
    for (int k = 0; k <= operands; k++)
        direct &= strides[k] == size;
    if (type == FKL_F64 && direct) {
        element_loop(op, FKL_F64, arrays[0], arrays[operands - 1], n, arrays[operands]);
        return;
    }
    if (type == FKL_F32 && direct) {
        element_loop(op, FKL_F32, arrays[0], arrays[operands - 1], n, arrays[operands]);
        return;
    }
    double tiles[2][PORTION];
    for (ptrdiff_t i = 0; i < n; i += PORTION) {
        const ptrdiff_t count = n - i < PORTION ? n - i : PORTION;
        for (int k = 0; k < operands; k++)
            if (i == 0 || strides[k] != 0)
                load_doubles(type, 0, arrays[k] + i * strides[k], strides[k], count, tiles[k]);
        double values[PORTION];
        element_loop(op, FKL_F64, (const char *)tiles[0], (const char *)tiles[operands - 1], count, (char *)values);
        store_doubles(type, values, count, arrays[operands] + i * strides[operands], strides[operands]);
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
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

struct term_sums {
    vd high[PARTS], low[PARTS]; /* by lanes: the sums, and what their additions have lost */
};

/* n elements one behind the other, from a multiple of BLOCK on in their row. */
FKL_INLINE void add_kl_terms(const enum fkl_element_op op, const enum fkl_type type, const char *x, const char *y,
                          ptrdiff_t n, struct term_sums *sums)
{
    const ptrdiff_t size = type_size(type);
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        const ptrdiff_t end = n - start < BLOCK ? n : start + BLOCK;
        vd acc[PARTS];
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++)
            acc[j] = vd_set(0.0);
        ptrdiff_t i = start;
        for (; i + LANES <= end; i += LANES) {
            fkl_prefetch(x, i * size + AHEAD);
            fkl_prefetch(y, i * size + AHEAD);
            FKL_UNROLL
            for (int j = 0; j < PARTS; j++)
                acc[j] += value_of_any(op, load(type, x + (i + j * VD) * size), load(type, y + (i + j * VD) * size));
        }
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++) { /* behind the end: a target that is 1, or its logarithm, and an input 0 */
            const ptrdiff_t part = part_length(end, i + j * VD, VD);
            if (part == 0)
                continue;
            const vd a = load_part(type, x + (i + j * VD) * size, part);
            const vd b = load_part(type, y + (i + j * VD) * size, part);
            acc[j] += value_of_any(op, a, op == FKL_KL_TERM ? ones_behind(b, part) : b);
        }
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++) {
            vd lost;
            vd_two_sum(sums->high[j], acc[j], &sums->high[j], &lost);
            sums->low[j] += lost;
        }
    }
}

FKL_INLINE double term_sum(const enum fkl_element_op op, const fkl_rows *x, const fkl_rows *y, ptrdiff_t row,
                           ptrdiff_t length)
{
    const char *from_x = x->data + row * x->row_stride, *from_y = y->data + row * y->row_stride;
    struct term_sums sums;
    for (int j = 0; j < PARTS; j++)
        sums.high[j] = sums.low[j] = vd_set(0.0);
    if (is_direct(x, FKL_F64) && is_direct(y, FKL_F64)) {
        add_kl_terms(op, FKL_F64, from_x, from_y, length, &sums);
    } else if (is_direct(x, FKL_F32) && is_direct(y, FKL_F32)) {
        add_kl_terms(op, FKL_F32, from_x, from_y, length, &sums);
    } else {
        double tiles[2][PORTION]; /* whole BLOCKs */
        for (ptrdiff_t i = 0; i < length; i += PORTION) {
            const ptrdiff_t count = length - i < PORTION ? length - i : PORTION;
            load_doubles((enum fkl_type)x->type, x->swapped, from_x + i * x->item_stride, x->item_stride, count, tiles[0]);
            load_doubles((enum fkl_type)y->type, y->swapped, from_y + i * y->item_stride, y->item_stride, count, tiles[1]);
            add_kl_terms(op, FKL_F64, (const char *)tiles[0], (const char *)tiles[1], count, &sums);
        }
    }
    const double sum = vd_add_lanes(sums.high);
    return isfinite(sum) ? sum + vd_add_lanes(sums.low) : sum; /* what an infinity has lost is not a number */
}

static void term_sums(int operation, int row_type, const fkl_rows *operands, ptrdiff_t n_rows,
                      const fkl_problem *problem, double *result, void *scratch)
{
    (void)row_type, (void)scratch; /* rows are read as they are */
    for (ptrdiff_t i = 0; i < n_rows; i++)
        result[i] = operation == FKL_KL_TERM
                        ? term_sum(FKL_KL_TERM, &operands[0], &operands[1], i, problem->length)
                        : term_sum(FKL_KL_TERM_LOG, &operands[0], &operands[1], i, problem->length);
}
