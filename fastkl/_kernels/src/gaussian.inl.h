/* gaussian.inl.h: the Gaussian family, compiled once per level.
 *
 * The KL divergence between diagonal Gaussians is half a sum of terms >= 0, (mp - mq)^2/vq + (r - 1 - log r) with
 * r = vp/vq, so one pass is enough and what little cancels does so inside a term. From the inside out: the formula
 * (gaussian_term()), its sums over a block of a row (add_gaussian()), rows one after the other or, short ones, a
 * row in each lane (gaussian_block()). Rows with numbers near the ends of the range go to careful_gaussian.c.
 */
#include "load.inl.h"
#include "pack.inl.h"
#include "vmath.h"

#include <float.h>

/* Scales in [1/limit, limit] leave every product here far from the ends of the range; with standard deviations squares
 * are taken. Of what an exponential is taken of the limit is a bound. */
FKL_INLINE double gaussian_limit(const enum fkl_scale scale)
{
    return scale == FKL_VAR ? 0x1p450 : scale == FKL_STD ? 0x1p225 : 600.0;
}

#define FLOAT_LIMIT 80.0f /* the same of logarithms in float arithmetic: see vf_excess() */

/* The smallest and the largest of the numbers that must stay within the limit. NaN in them is NaN in the terms. */
struct extent {
    vd least[PARTS], most[PARTS];
};

FKL_INLINE void extend(struct extent *extent, const int part, vd x)
{
    extent->least[part] = vd_min(x, extent->least[part]);
    extent->most[part] = vd_max(x, extent->most[part]);
}

/* Twice the divergence between two numbers' Gaussians: means m and mq, scales s and sq. Without a prior these are 0 and
 * a scale of 1, which fold away. Each bracket is right to a few ulp however close the two are:
 *
 *     var      d^2/vq + phi(vq, vp)/vq                                  d = m - mq
 *     std      (d/sq)^2 + ((s - sq)/sq)^2 + 2 phi(sq, s)/sq             r - 1 - log r for r = x^2
 *     logvar   d^2 e^-lq + E(lp - lq)                                   E(x) = e^x - 1 - x
 */
FKL_INLINE vd gaussian_term(const enum fkl_scale scale, const int prior, vd m, vd s, vd mq, vd sq,
                            struct extent *extent, const int part)
{
    const vd one = vd_set(1.0);
    vd d = prior ? m - mq : m;
    if (scale == FKL_LOGVAR) {
        if (!prior) {
            vd exponential;
            extend(extent, part, s);
            return vd_madd(d, d, vd_exp_excess(s, &exponential));
        }
        vd x, low, ratio, root, half = vd_set(-0.5) * sq;
        vd_two_sum(s, -sq, &x, &low); /* e^x makes much of an error of x */
        extend(extent, part, x);
        extend(extent, part, half);
        vd_exp_excess(half, &root);
        vd y = d * root, excess = vd_exp_excess(x, &ratio);
        return vd_madd(y, y, vd_madd(ratio - one, low, excess));
    }
    extend(extent, part, s);
    if (prior)
        extend(extent, part, sq);
    vd inverse = one, phi, y = d;
    if (prior) {
        phi = vd_phi_over(sq, s, &inverse);
        y = d * inverse;
    } else {
        phi = vd_phi(one, s);
    }
    if (scale == FKL_VAR)
        return vd_madd(d, y, phi);
    vd x = prior ? (s - sq) * inverse : s - one;
    return vd_madd(y, y, vd_madd(x, x, phi + phi));
}

/* What has been summed of a row: blocks of 256 elements, added up with TwoSum, as in the discrete family. */
#define GAUSSIAN_BLOCK 256
#define GAUSSIAN_RUN 4
struct gaussian_sums {
    vd high[PARTS], low[PARTS];
    struct extent extent;
#if VD > 1
    vf largest[PARTS]; /* in float arithmetic, the extent: of logarithms without their signs */
#endif
};

FKL_INLINE void start_gaussian(const enum fkl_scale scale, struct gaussian_sums *sums)
{
    for (int j = 0; j < PARTS; j++) {
        sums->high[j] = sums->low[j] = vd_set(0.0);
        sums->extent.least[j] = sums->extent.most[j] = vd_set(scale == FKL_LOGVAR ? 0.0 : 1.0);
#if VD > 1
        sums->largest[j] = vf_set(0.0f);
#endif
    }
}

/* LANES elements from the i-th at `at` on, or the last n < LANES of a row where n >= 0, added to run. */
FKL_INLINE void gaussian_step(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                              const char *const at[FKL_MOST_OPERANDS], ptrdiff_t i, ptrdiff_t n, ptrdiff_t ahead,
                              vd run[PARTS], struct extent *extent)
{
    const ptrdiff_t size = type_size(type);
    const int operands = prior ? 4 : 2;
    FKL_UNROLL
    for (int k = 0; k < operands; k++)
        fkl_prefetch(at[k], i * size + ahead);
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        vd x[FKL_MOST_OPERANDS];
        const ptrdiff_t part = part_length(n, j * VD, VD), first = (n < 0 || part ? i + j * VD : i) * size;
        FKL_UNROLL
        for (int k = 0; k < operands; k++) {
            x[k] = n < 0 ? load(type, at[k] + first) : load_part(type, at[k] + first, part);
            if (n >= 0 && scale != FKL_LOGVAR && k % 2 == 1) /* ones' terms are 0, and zero logarithms' */
                x[k] = ones_behind(x[k], part);
        }
        run[j] += gaussian_term(scale, prior, x[0], x[1], prior ? x[2] : x[0], prior ? x[3] : x[1], extent, j);
    }
}

/* n elements at `at` added to sums: of a row from a multiple of GAUSSIAN_BLOCK on, or eight rows' in turn. `ahead`: how
 * far ahead of itself memory is asked for, in bytes. */
FKL_INLINE void add_gaussian_doubles(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                                     const char *const at[FKL_MOST_OPERANDS], ptrdiff_t n, ptrdiff_t ahead,
                                     struct gaussian_sums *sums)
{
    struct extent extent = sums->extent;
    for (ptrdiff_t start = 0; start < n; start += GAUSSIAN_BLOCK) {
        const ptrdiff_t end = n - start < GAUSSIAN_BLOCK ? n : start + GAUSSIAN_BLOCK;
        vd acc[PARTS];
        for (int j = 0; j < PARTS; j++)
            acc[j] = vd_set(0.0);
        for (ptrdiff_t i = start; i < end;) {
            const ptrdiff_t run_end = end - i < GAUSSIAN_RUN * LANES ? end : i + GAUSSIAN_RUN * LANES;
            vd run[PARTS];
            for (int j = 0; j < PARTS; j++)
                run[j] = vd_set(0.0);
            for (; i + LANES <= run_end; i += LANES)
                gaussian_step(scale, prior, type, at, i, -1, ahead, run, &extent);
            if (i < run_end)
                gaussian_step(scale, prior, type, at, i, run_end - i, ahead, run, &extent);
            i = run_end;
            for (int j = 0; j < PARTS; j++)
                acc[j] += run[j];
        }
        for (int j = 0; j < PARTS; j++) {
            vd lost;
            vd_two_sum(sums->high[j], acc[j], &sums->high[j], &lost);
            sums->low[j] += lost;
        }
    }
    sums->extent = extent;
}

#if VD > 1 && FKL_HAVE_FMA
/* Sixteen floats' terms added to run, or those of the last n < 16 of a row where n >= 0. */
FKL_INLINE void standard_float_step(const char *means, const char *logarithms, ptrdiff_t n, vf run[PARTS],
                                    vf largest[PARTS])
{
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        const ptrdiff_t part = part_length(n, j * VF, VF), at = n < 0 || part ? j * VF * 4 : 0;
        vf m = n < 0 ? vf_load(means + at) : load_float_part(FKL_F32, means + at, part);
        vf l = n < 0 ? vf_load(logarithms + at) : load_float_part(FKL_F32, logarithms + at, part);
        largest[j] = vf_max(vf_abs(l), largest[j]);
        run[j] += vf_madd(m, m, vf_excess(l));
    }
}

/* The term of a variational autoencoder, m^2 + E(lp), for rows of floats in float arithmetic: terms are added up in
 * float for four steps of sixteen, and then in double. */
FKL_INLINE void add_standard_floats(const char *means, const char *logarithms, ptrdiff_t n, ptrdiff_t ahead,
                                    struct gaussian_sums *sums)
{
    const ptrdiff_t step = 2 * LANES;
    vf largest[PARTS];
    for (int j = 0; j < PARTS; j++)
        largest[j] = sums->largest[j];
    for (ptrdiff_t start = 0; start < n; start += GAUSSIAN_BLOCK) {
        const ptrdiff_t end = n - start < GAUSSIAN_BLOCK ? n : start + GAUSSIAN_BLOCK;
        vd acc[PARTS];
        for (int j = 0; j < PARTS; j++)
            acc[j] = vd_set(0.0);
        for (ptrdiff_t i = start; i < end;) {
            const ptrdiff_t run_end = end - i < GAUSSIAN_RUN * step ? end : i + GAUSSIAN_RUN * step;
            vf run[PARTS];
            for (int j = 0; j < PARTS; j++)
                run[j] = vf_set(0.0f);
            for (; i + step <= run_end; i += step) {
                fkl_prefetch(means, i * 4 + ahead);
                fkl_prefetch(logarithms, i * 4 + ahead);
                standard_float_step(means + i * 4, logarithms + i * 4, -1, run, largest);
            }
            if (i < run_end)
                standard_float_step(means + i * 4, logarithms + i * 4, run_end - i, run, largest);
            i = run_end;
            FKL_UNROLL
            for (int j = 0; j < PARTS; j++)
                add_floats(acc, j, run[j]);
        }
        for (int j = 0; j < PARTS; j++) {
            vd lost;
            vd_two_sum(sums->high[j], acc[j], &sums->high[j], &lost);
            sums->low[j] += lost;
        }
    }
    for (int j = 0; j < PARTS; j++)
        sums->largest[j] = largest[j];
}
#define FKL_GAUSSIAN_FLOATS 1
#else
#define FKL_GAUSSIAN_FLOATS 0
#endif

/* Are rows of this type worked on in float arithmetic? */
FKL_INLINE int gaussian_in_float(const enum fkl_scale scale, const int prior, const enum fkl_type type)
{
    return FKL_GAUSSIAN_FLOATS && scale == FKL_LOGVAR && !prior && type == FKL_F32;
}

FKL_INLINE void add_gaussian(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                             const char *const at[FKL_MOST_OPERANDS], ptrdiff_t n, ptrdiff_t ahead,
                             struct gaussian_sums *sums)
{
#if FKL_GAUSSIAN_FLOATS
    if (gaussian_in_float(scale, prior, type)) {
        add_standard_floats(at[0], at[1], n, ahead, sums);
        return;
    }
#endif
    add_gaussian_doubles(scale, prior, type, at, n, ahead, sums);
}

/* Are all lanes' numbers within the limit? A bit for each lane. */
FKL_INLINE unsigned within(const enum fkl_scale scale, const int in_float, const struct gaussian_sums *sums)
{
    const double limit = gaussian_limit(scale);
    const vd least = vd_set(scale == FKL_LOGVAR ? -limit : 1.0 / limit), most = vd_set(limit);
    unsigned lanes = 0;
#if FKL_GAUSSIAN_FLOATS
    if (in_float) {
        float largest[2 * LANES];
        for (int j = 0; j < PARTS; j++)
            vf_store(largest + j * VF, sums->largest[j]);
        for (int i = 0; i < LANES; i++)
            lanes |= (unsigned)(largest[i] <= FLOAT_LIMIT && largest[i + LANES] <= FLOAT_LIMIT) << i;
        return lanes;
    }
#endif
    (void)in_float;
    for (int j = 0; j < PARTS; j++)
        lanes |= md_lanes(md_and(vd_le(least, sums->extent.least[j]), vd_le(sums->extent.most[j], most))) << j * VD;
    return lanes;
}

/* Are they in all lanes? */
FKL_INLINE int all_within(const enum fkl_scale scale, const int in_float, const struct gaussian_sums *sums)
{
#if FKL_GAUSSIAN_FLOATS
    if (in_float) {
        vf largest = sums->largest[0];
        for (int j = 1; j < PARTS; j++)
            largest = vf_max(largest, sums->largest[j]);
        return mf_all(vf_le(largest, vf_set(FLOAT_LIMIT)));
    }
#endif
    return within(scale, in_float, sums) == (1u << LANES) - 1u;
}

/* Is a result finite, and in float arithmetic far from where squares over- and underflow? NaN is not. */
FKL_INLINE int in_range(const int in_float, double result)
{
    return in_float ? 0x1p-80 <= result && result <= 0x1p120 : result <= DBL_MAX;
}

/* The most rows that are worked on between two packings. */
#define GAUSSIAN_ROWS 64

/* n_rows rows, those that lie as the kernel reads them where they are, others packed into the operands' tiles. */
FKL_INLINE void gaussian_rows(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                              const fkl_rows *operands, ptrdiff_t n_rows, const fkl_problem *problem, double *result,
                              char *scratch)
{
    const ptrdiff_t length = problem->length, size = type_size(type);
    const int n_operands = prior ? 4 : 2, across = length <= FKL_SHORT;
    const int in_float = gaussian_in_float(scale, prior, type);
    int direct[FKL_MOST_OPERANDS], flat[FKL_MOST_OPERANDS], all_direct = !across;
    char *tile[FKL_MOST_OPERANDS];
    for (int k = 0; k < n_operands; k++) {
        direct[k] = !across && is_direct(&operands[k], type);
        all_direct &= direct[k];
        /* Of rows of one element, eight are a vector as they lie. */
        flat[k] = length == 1 && operands[k].row_stride == size && (enum fkl_type)operands[k].type == type &&
                  !operands[k].swapped;
        tile[k] = scratch + k * 8 * FKL_GAUSSIAN_TILE;
    }
    const ptrdiff_t whole = length < 1024 ? length : 1024, chunk = all_direct ? length : whole;
    const ptrdiff_t fitting = across ? GAUSSIAN_ROWS : FKL_GAUSSIAN_TILE / whole;
    const ptrdiff_t stretch = fitting < GAUSSIAN_ROWS ? fitting : GAUSSIAN_ROWS;

    for (ptrdiff_t first = 0; first < n_rows; first += stretch) {
        const ptrdiff_t rows = n_rows - first < stretch ? n_rows - first : stretch;
        struct gaussian_sums sums[GAUSSIAN_ROWS];
        unsigned good[GAUSSIAN_ROWS];
        if (across) {
            const char *columns[FKL_MOST_OPERANDS];
            for (int k = 0; k < n_operands; k++) {
                const int in_place = flat[k] && rows == GAUSSIAN_ROWS;
                if (!in_place && (first == 0 || operands[k].row_stride != 0)) /* one row for all is there already */
                    pack_columns(&operands[k], first, rows, 0, length, type, tile[k]);
                columns[k] = in_place ? operands[k].data + first * size : tile[k];
            }
            for (ptrdiff_t i = 0; i < rows; i += LANES) {
                const char *at[FKL_MOST_OPERANDS] = {0};
                for (int k = 0; k < n_operands; k++)
                    at[k] = columns[k] + i * length * size;
                struct gaussian_sums sum; /* at most 16 elements a lane: one block */
                start_gaussian(scale, &sum);
                add_gaussian(scale, prior, type, at, LANES * length, 0, &sum);
                const unsigned fine = within(scale, in_float, &sum);
                double lanes[LANES];
                for (int j = 0; j < PARTS; j++)
                    vd_store(lanes + j * VD, vd_set(0.5) * sum.high[j]);
                for (ptrdiff_t j = 0; j < LANES && i + j < rows; j++) {
                    result[first + i + j] = lanes[j];
                    good[i + j] = fine >> j & 1;
                }
            }
        } else {
            for (ptrdiff_t start = 0; start < length; start += chunk) {
                const ptrdiff_t n = length - start < chunk ? length - start : chunk;
                for (int k = 0; k < n_operands; k++)
                    if (!direct[k])
                        pack(&operands[k], first, operands[k].row_stride == 0 ? 1 : rows, start, n, type, tile[k],
                             whole * size);
                for (ptrdiff_t i = 0; i < rows; i++) {
                    const char *at[FKL_MOST_OPERANDS] = {0};
                    for (int k = 0; k < n_operands; k++)
                        at[k] = direct[k] ? operands[k].data + (first + i) * operands[k].row_stride + start * size
                                          : tile[k] + (operands[k].row_stride == 0 ? 0 : i) * whole * size;
                    struct gaussian_sums sum; /* in registers, for most rows are of one chunk */
                    if (start == 0)
                        start_gaussian(scale, &sum);
                    else
                        sum = sums[i];
                    add_gaussian(scale, prior, type, at, n, AHEAD, &sum);
                    if (start + n < length) {
                        sums[i] = sum;
                        continue;
                    }
                    double total = vd_add_lanes(sum.high);
                    if (length > GAUSSIAN_BLOCK)
                        total += vd_add_lanes(sum.low);
                    result[first + i] = 0.5 * total;
                    good[i] = all_within(scale, in_float, &sum);
                }
            }
        }
        for (ptrdiff_t i = first; i < first + rows; i++) {
            if (FKL_LIKELY(good[i - first] && in_range(in_float, result[i])))
                continue;
            fkl_rows row[FKL_MOST_OPERANDS];
            for (int k = 0; k < n_operands; k++) {
                row[k] = operands[k];
                row[k].data += i * row[k].row_stride;
            }
            result[i] = fkl_careful_gaussian_row(row, problem);
        }
    }
}

static void gaussian_block(int operation, int row_type, const fkl_rows *operands, ptrdiff_t n_rows,
                           const fkl_problem *problem, double *result, void *scratch)
{
    (void)operation; /* there is one */
#define FKL_CASE(SCALE)                                                                                                \
    case SCALE:                                                                                                        \
        if (row_type == FKL_F64) {                                                                                     \
            if (problem->operands == 4)                                                                                \
                gaussian_rows(SCALE, 1, FKL_F64, operands, n_rows, problem, result, scratch);                          \
            else                                                                                                       \
                gaussian_rows(SCALE, 0, FKL_F64, operands, n_rows, problem, result, scratch);                          \
        } else {                                                                                                       \
            if (problem->operands == 4)                                                                                \
                gaussian_rows(SCALE, 1, FKL_F32, operands, n_rows, problem, result, scratch);                          \
            else                                                                                                       \
                gaussian_rows(SCALE, 0, FKL_F32, operands, n_rows, problem, result, scratch);                          \
        }                                                                                                              \
        break;
    switch ((enum fkl_scale)problem->scale) {
        FKL_CASE(FKL_VAR)
        FKL_CASE(FKL_STD)
        FKL_CASE(FKL_LOGVAR)
    }
#undef FKL_CASE
}
