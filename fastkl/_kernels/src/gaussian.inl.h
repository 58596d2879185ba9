/* gaussian.inl.h: the Gaussian family, compiled once per level.
 *
 * The KL divergence between diagonal Gaussians is half a sum of terms >= 0, (mp - mq)^2/vq + (r - 1 - log r) with
 * r = vp/vq, so one pass is enough and what little cancels does so inside a term. From the inside out: the formula
 * (gaussian_term()), its sums over a row (add_gaussian()), rows one after the other (gaussian_along()) or, short ones,
 * a row in each lane (gaussian_across()). Rows with numbers near the ends of the range go to careful_gaussian.c.
 */
#include "load.inl.h"
#include "pack.inl.h"
#include "vmath.h"

#include <float.h>

/* Variances in [2^-256, 2^256) and standard deviations in [2^-128, 2^128) leave every product here far from the ends
 * of the range: the octaves to either side of 1, a power of two. Less the bits of the lower bound, those of a number
 * within have no bit of the mask; a number below, 0 and negative numbers, infinity and NaN have one. */
FKL_INLINE uint64_t gaussian_octaves(const enum fkl_scale scale) { return scale == FKL_VAR ? 256 : 128; }
FKL_INLINE uint64_t gaussian_lowest(const enum fkl_scale scale) { return (1023 - gaussian_octaves(scale)) << 52; }
FKL_INLINE uint64_t gaussian_outside(const enum fkl_scale scale)
{
    return ~((2 * gaussian_octaves(scale) << 52) - 1);
}

/* Bounds of what exponentials are taken of; in float arithmetic see vf_excess(). */
#define LOGARITHM_LIMIT 600.0
#define FLOAT_LIMIT 80.0f

/* What tells whether all numbers of a row were within these bounds: of scales all bits (see above), of logarithms the
 * largest without their signs. A NaN there is one in the terms. */
struct extent {
    vi bits[PARTS];
    vd largest[PARTS];
#if FKL_FLOAT_KERNELS
    vf largest_float[PARTS];
#endif
};

FKL_INLINE void extend_scale(const enum fkl_scale scale, struct extent *extent, const int part, vd x)
{
    extent->bits[part] |= vd_bits(x) - vi_set(gaussian_lowest(scale));
}
FKL_INLINE void extend_logarithm(struct extent *extent, const int part, vd x)
{
    extent->largest[part] = vd_max(vd_abs(x), extent->largest[part]);
}

/* Twice the divergence between two numbers' Gaussians: means m and mq, scales s and sq. Without a prior these are 0 and
 * a scale of 1, which fold away. Each bracket is right to a few ulp however close the two are:
 *
 *     var      d^2/vq + phi(vq, vp)/vq                                  d = m - mq
 *     std      (d/sq)^2 + ((s - sq)/sq)^2 + 2 phi(sq, s)/sq             r - 1 - log r for r = x^2
 *     logvar   d^2 e^-lq + E(lp - lq)                                   E(x) = e^x - 1 - x
 */
FKL_INLINE struct vd_begun gaussian_term(const enum fkl_scale scale, const int prior, vd m, vd s, vd mq, vd sq,
                                         struct extent *extent, const int part)
{
    const vd one = vd_set(1.0), zero = vd_set(0.0);
    vd d = prior ? m - mq : m;
    if (scale == FKL_LOGVAR) {
        if (!prior) {
            vd exponential;
            extend_logarithm(extent, part, s);
            return (struct vd_begun){zero, zero, vd_madd(d, d, vd_exp_excess(s, &exponential))};
        }
        vd x, low, ratio, root, half = vd_set(-0.5) * sq;
        vd_two_sum(s, -sq, &x, &low); /* e^x makes much of an error of x */
        extend_logarithm(extent, part, x);
        extend_logarithm(extent, part, half);
        vd_exp_excess(half, &root);
        vd y = d * root, excess = vd_exp_excess(x, &ratio);
        return (struct vd_begun){zero, zero, vd_madd(y, y, vd_madd(ratio - one, low, excess))};
    }
    extend_scale(scale, extent, part, s);
    if (prior)
        extend_scale(scale, extent, part, sq);
    vd inverse = one, y = d;
    struct vd_begun phi;
    if (prior) {
        phi = vd_begin_phi_over(sq, s, &inverse);
        y = d * inverse;
    } else {
        phi = vd_begin_phi(one, s);
    }
    if (scale == FKL_VAR)
        return (struct vd_begun){phi.s2, phi.w, vd_madd(d, y, phi.base)};
    vd x = prior ? (s - sq) * inverse : s - one;
    return (struct vd_begun){phi.s2, phi.w + phi.w, vd_madd(y, y, vd_madd(x, x, phi.base + phi.base))};
}

/* Is there more to a term than its base? */
FKL_INLINE int gaussian_begins(const enum fkl_scale scale) { return scale != FKL_LOGVAR; }

/* What has been summed of a row: blocks of elements, added up with TwoSum, as in the discrete family. */
struct gaussian_sums {
    vd high[PARTS], low[PARTS];
    struct extent extent;
};

FKL_INLINE void start_gaussian(struct gaussian_sums *sums)
{
    for (int j = 0; j < PARTS; j++) {
        sums->high[j] = sums->low[j] = sums->extent.largest[j] = vd_set(0.0);
        sums->extent.bits[j] = vi_set(0);
#if FKL_FLOAT_KERNELS
        sums->extent.largest_float[j] = vf_set(0.0f);
#endif
    }
}

/* LANES elements from the i-th at `at` on, or the last n < LANES of a row where n >= 0: their bases are added
 * to run, the terms, begun, are returned. */
FKL_INLINE void gaussian_step(const enum fkl_scale scale, const int prior, const enum fkl_type type, const int across,
                              const char *const at[FKL_MOST_OPERANDS], ptrdiff_t i, ptrdiff_t n,
                              vd run[PARTS], struct extent *extent, struct vd_begun terms[PARTS])
{
    const ptrdiff_t size = type_size(type);
    const int operands = prior ? 4 : 2;
    FKL_UNROLL
    for (int k = 0; !across && k < operands; k++)
        ask_far_ahead(operands, at[k], i * size, LANES * size);
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        vd x[FKL_MOST_OPERANDS];
        const ptrdiff_t part = part_length(n, j * VD, VD), offset = (n < 0 || part ? i + j * VD : i) * size;
        FKL_UNROLL
        for (int k = 0; k < operands; k++) {
            x[k] = n < 0 ? load(type, at[k] + offset) : load_part(type, at[k] + offset, part);
            if (n >= 0 && scale != FKL_LOGVAR && k % 2 == 1) /* ones' terms are 0, and zero logarithms' */
                x[k] = ones_behind(x[k], part);
        }
        terms[j] = gaussian_term(scale, prior, x[0], x[1], prior ? x[2] : x[0], prior ? x[3] : x[1], extent, j);
        run[j] += terms[j].base;
    }
}

#if FKL_FLOAT_KERNELS
/* The same for the term of a variational autoencoder, m^2 + E(lp), of floats in float arithmetic: 2 LANES elements, or
 * the last n < 2 LANES of a row. */
FKL_INLINE void gaussian_step_float(const int across, const char *const at[FKL_MOST_OPERANDS], ptrdiff_t i,
                                    ptrdiff_t n, vf run[PARTS], struct extent *extent)
{
    for (int k = 0; !across && k < 2; k++)
        ask_far_ahead(2, at[k], i * 4, 8 * LANES);
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        const ptrdiff_t part = part_length(n, j * VF, VF), first = (n < 0 || part ? i + j * VF : i) * 4;
        vf m = n < 0 ? vf_load(at[0] + first) : load_float_part(FKL_F32, at[0] + first, part);
        vf l = n < 0 ? vf_load(at[1] + first) : load_float_part(FKL_F32, at[1] + first, part);
        extent->largest_float[j] = vf_max(vf_abs(l), extent->largest_float[j]);
        run[j] += vf_madd(m, m, vf_excess(l));
    }
}
#endif

/* Are rows of this type worked on in float arithmetic? */
FKL_INLINE int gaussian_in_float(const enum fkl_scale scale, const int prior, const enum fkl_type type)
{
    return FKL_FLOAT_KERNELS && scale == FKL_LOGVAR && !prior && type == FKL_F32;
}

/* What a step's terms are beyond their bases is added to ends. */
FKL_INLINE void end_gaussian_step(const enum fkl_scale scale, const struct vd_begun terms[PARTS], vd ends[PARTS])
{
    for (int j = 0; gaussian_begins(scale) && j < PARTS; j++)
        ends[j] = vd_end((struct vd_begun){terms[j].s2, terms[j].w, ends[j]});
}

/* The elements [i, end), a run, whose sum is added to that of the block, acc: floats' terms are added up in float, and
 * then in double. The terms of a step are begun before those of the step before it are ended. */
FKL_INLINE void add_gaussian_run(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                                 const int across, const char *const at[FKL_MOST_OPERANDS], ptrdiff_t i, ptrdiff_t end,
                                 vd acc[PARTS], struct extent *extent)
{
#if FKL_FLOAT_KERNELS
    if (gaussian_in_float(scale, prior, type)) {
        const ptrdiff_t step = 2 * LANES;
        vf run[PARTS];
        for (int j = 0; j < PARTS; j++)
            run[j] = vf_set(0.0f);
        if (FKL_LIKELY(end - i == RUN * LANES)) { /* in one piece: the constants of a loop are loaded before it */
            FKL_UNROLL
            for (ptrdiff_t j = 0; j < RUN * LANES; j += step)
                gaussian_step_float(across, at, i + j, -1, run, extent);
        } else {
            for (; i + step <= end; i += step)
                gaussian_step_float(across, at, i, -1, run, extent);
            if (i < end)
                gaussian_step_float(across, at, i, end - i, run, extent);
        }
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++)
            add_floats(acc, j, run[j]);
        return;
    }
#endif
    struct vd_begun waiting[PARTS], next[PARTS];
    vd run[PARTS], ends[PARTS];
    for (int j = 0; j < PARTS; j++)
        run[j] = ends[j] = vd_set(0.0);
    if (i + LANES <= end) {
        gaussian_step(scale, prior, type, across, at, i, -1, run, extent, waiting);
        for (i += LANES; i + LANES <= end; i += LANES) {
            gaussian_step(scale, prior, type, across, at, i, -1, run, extent, next);
            end_gaussian_step(scale, waiting, ends);
            for (int j = 0; j < PARTS; j++)
                waiting[j] = next[j];
        }
        end_gaussian_step(scale, waiting, ends);
    }
    if (i < end) {
        gaussian_step(scale, prior, type, across, at, i, end - i, run, extent, next);
        end_gaussian_step(scale, next, ends);
    }
    for (int j = 0; j < PARTS; j++)
        acc[j] += gaussian_begins(scale) ? run[j] + ends[j] : run[j];
}

/* The elements [start, end) at `at`, a block: their sum. */
FKL_INLINE void sum_gaussian_block(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                                   const int across, const char *const at[FKL_MOST_OPERANDS], ptrdiff_t start,
                                   ptrdiff_t end, vd acc[PARTS], struct extent *extent)
{
    const ptrdiff_t run = RUN * LANES;
    for (int j = 0; j < PARTS; j++)
        acc[j] = vd_set(0.0);
    for (ptrdiff_t i = start; i < end; i += run)
        add_gaussian_run(scale, prior, type, across, at, i, end - i < run ? end : i + run, acc, extent);
}

/* n elements at `at` added to sums: of a row from a multiple of BLOCK on, or (across) eight rows' in turn. */
FKL_INLINE void add_gaussian(const enum fkl_scale scale, const int prior, const enum fkl_type type, const int across,
                             const char *const at[FKL_MOST_OPERANDS], ptrdiff_t n, struct gaussian_sums *sums)
{
    struct extent extent = sums->extent; /* in registers */
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        vd acc[PARTS];
        sum_gaussian_block(scale, prior, type, across, at, start, n - start < BLOCK ? n : start + BLOCK, acc, &extent);
        for (int j = 0; j < PARTS; j++) {
            vd lost;
            vd_two_sum(sums->high[j], acc[j], &sums->high[j], &lost);
            sums->low[j] += lost;
        }
    }
    sums->extent = extent;
}

/* Were all numbers within the bounds? A bit for each lane. */
FKL_INLINE unsigned within(const enum fkl_scale scale, const int in_float, const struct extent *extent)
{
    unsigned lanes = 0;
#if FKL_FLOAT_KERNELS
    if (in_float) {
        float largest[2 * LANES];
        for (int j = 0; j < PARTS; j++)
            vf_store(largest + j * VF, extent->largest_float[j]);
        for (int i = 0; i < LANES; i++)
            lanes |= (unsigned)(largest[i] <= FLOAT_LIMIT && largest[i + LANES] <= FLOAT_LIMIT) << i;
        return lanes;
    }
#endif
    (void)in_float;
    if (scale == FKL_LOGVAR) {
        for (int j = 0; j < PARTS; j++)
            lanes |= md_lanes(vd_le(extent->largest[j], vd_set(LOGARITHM_LIMIT))) << j * VD;
        return lanes;
    }
    uint64_t bits[LANES];
    memcpy(bits, extent->bits, sizeof bits);
    for (int i = 0; i < LANES; i++)
        lanes |= (unsigned)((bits[i] & gaussian_outside(scale)) == 0) << i;
    return lanes;
}

/* Were they in all lanes? */
FKL_INLINE int all_within(const enum fkl_scale scale, const int in_float, const struct extent *extent)
{
#if FKL_FLOAT_KERNELS
    if (in_float) {
        vf largest = extent->largest_float[0];
        for (int j = 1; j < PARTS; j++)
            largest = vf_max(largest, extent->largest_float[j]);
        return mf_all(vf_le(largest, vf_set(FLOAT_LIMIT)));
    }
#endif
    if (scale == FKL_LOGVAR)
        return within(scale, in_float, extent) == (1u << LANES) - 1u;
    vi bits = extent->bits[0];
    for (int j = 1; j < PARTS; j++)
        bits |= extent->bits[j];
    return !vi_any(bits & vi_set(gaussian_outside(scale)));
}

/* Is a result finite, and in float arithmetic far from where squares over- and underflow? NaN is not. */
FKL_INLINE int in_range(const int in_float, double result)
{
    return in_float ? 0x1p-80 <= result && result <= 0x1p120 : result <= DBL_MAX;
}

/* The most rows that are worked on between two packings, and how much of each is packed at a time. */
#define GAUSSIAN_ROWS 64
FKL_INLINE ptrdiff_t packed_length(ptrdiff_t length) { return length < 4 * BLOCK ? length : 4 * BLOCK; }

/* Rows [first, first + count) of a block. */
struct stretch {
    const fkl_rows *operands;
    ptrdiff_t first, count, length;
    char *tiles[FKL_MOST_OPERANDS]; /* what of the operands does not lie as the kernel reads it is packed into these */
    double *result;                 /* from the first of the rows on */
};

/* Short rows, a row in each lane: their results, and a bit for each row whose numbers are within the limit. */
FKL_INLINE uint64_t gaussian_across(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                                    const struct stretch *s)
{
    const ptrdiff_t length = s->length, size = type_size(type);
    const int n_operands = prior ? 4 : 2, in_float = gaussian_in_float(scale, prior, type);
    const char *columns[FKL_MOST_OPERANDS];
    uint64_t good = 0;
    for (int k = 0; k < n_operands; k++) {
        const fkl_rows *rows = &s->operands[k];
        /* Of rows of one element, eight are a vector as they lie. */
        const int in_place = length == 1 && s->count == GAUSSIAN_ROWS && rows->row_stride == size &&
                             (enum fkl_type)rows->type == type && !rows->swapped;
        if (!in_place && (s->first == 0 || rows->row_stride != 0)) /* one row for all is there already */
            pack_columns(rows, s->first, s->count, 0, length, type, s->tiles[k]);
        columns[k] = in_place ? rows->data + s->first * size : s->tiles[k];
    }
    for (ptrdiff_t i = 0; i < s->count; i += LANES) {
        const char *at[FKL_MOST_OPERANDS] = {0};
        for (int k = 0; k < n_operands; k++) {
            at[k] = columns[k] + i * length * size;
            ask_for_eight_rows(&s->operands[k], s->first + i + GAUSSIAN_ROWS, length);
        }
        struct gaussian_sums sum; /* at most FKL_SHORT elements a lane: one block */
        start_gaussian(&sum);
        add_gaussian(scale, prior, type, 1, at, LANES * length, &sum);
        good |= (uint64_t)within(scale, in_float, &sum.extent) << i;
        double lanes[LANES];
        for (int j = 0; j < PARTS; j++)
            vd_store(lanes + j * VD, vd_set(0.5) * sum.high[j]);
        for (ptrdiff_t j = 0; j < LANES && i + j < s->count; j++)
            s->result[i + j] = lanes[j];
    }
    return good;
}

/* The same of rows of one block, one after the other where they lie. */
FKL_INLINE uint64_t gaussian_blocks(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                                    const struct stretch *s)
{
    const int n_operands = prior ? 4 : 2, in_float = gaussian_in_float(scale, prior, type);
    const char *at[FKL_MOST_OPERANDS] = {0};
    _Alignas(64) double lanes[LANES][LANES] = {{0}};
    uint64_t good = 0;
    for (int k = 0; k < n_operands; k++)
        at[k] = s->operands[k].data + s->first * s->operands[k].row_stride;
    for (ptrdiff_t i = 0; i < s->count; i += LANES) {
        const ptrdiff_t rows = s->count - i < LANES ? s->count - i : LANES;
        for (ptrdiff_t row = 0; row < rows; row++) {
            struct gaussian_sums sums;
            start_gaussian(&sums);
            sum_gaussian_block(scale, prior, type, 0, at, 0, s->length, sums.high, &sums.extent);
            for (int j = 0; j < PARTS; j++)
                vd_store(lanes[row] + j * VD, sums.high[j]);
            good |= (uint64_t)all_within(scale, in_float, &sums.extent) << (i + row);
            for (int k = 0; k < n_operands; k++)
                at[k] += s->operands[k].row_stride;
        }
        double totals[LANES];
        vd_add_lanes_of_rows(lanes[0], LANES, totals);
        for (ptrdiff_t row = 0; row < rows; row++)
            s->result[i + row] = 0.5 * totals[row];
    }
    return good;
}

/* The same of longer rows, and of those that are packed. */
FKL_INLINE uint64_t gaussian_along(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                                   const struct stretch *s)
{
    const ptrdiff_t length = s->length, size = type_size(type), packed = packed_length(length);
    const int n_operands = prior ? 4 : 2, in_float = gaussian_in_float(scale, prior, type);
    int direct[FKL_MOST_OPERANDS], all_direct = 1;
    for (int k = 0; k < n_operands; k++) {
        direct[k] = is_direct(&s->operands[k], type);
        all_direct &= direct[k];
    }
    if (all_direct && length <= BLOCK)
        return gaussian_blocks(scale, prior, type, s);
    const ptrdiff_t chunk = all_direct ? length : packed;
    struct gaussian_sums sums[GAUSSIAN_ROWS];
    uint64_t good = 0;
    for (ptrdiff_t start = 0; start < length; start += chunk) {
        const ptrdiff_t n = length - start < chunk ? length - start : chunk;
        for (int k = 0; k < n_operands; k++)
            if (!direct[k])
                pack(&s->operands[k], s->first, s->operands[k].row_stride == 0 ? 1 : s->count, start, n, type,
                     s->tiles[k], packed * size);
        for (ptrdiff_t i = 0; i < s->count; i++) {
            const char *at[FKL_MOST_OPERANDS] = {0};
            for (int k = 0; k < n_operands; k++) {
                const fkl_rows *rows = &s->operands[k];
                at[k] = direct[k] ? rows->data + (s->first + i) * rows->row_stride + start * size
                                  : s->tiles[k] + (rows->row_stride == 0 ? 0 : i) * packed * size;
            }
            struct gaussian_sums sum; /* in registers, for most rows are of one chunk */
            if (start == 0)
                start_gaussian(&sum);
            else
                sum = sums[i];
            add_gaussian(scale, prior, type, 0, at, n, &sum);
            if (start + n < length) {
                sums[i] = sum;
                continue;
            }
            double total = vd_add_lanes(sum.high);
            if (length > BLOCK)
                total += vd_add_lanes(sum.low);
            s->result[i] = 0.5 * total;
            good |= (uint64_t)all_within(scale, in_float, &sum.extent) << i;
        }
    }
    return good;
}

/* n_rows rows, some at a time; those with numbers out of range one by one. */
FKL_INLINE void gaussian_rows(const enum fkl_scale scale, const int prior, const enum fkl_type type,
                              const fkl_rows *operands, ptrdiff_t n_rows, const fkl_problem *problem, double *result,
                              char *scratch)
{
    const ptrdiff_t length = problem->length, fitting = FKL_GAUSSIAN_TILE / packed_length(length);
    const ptrdiff_t most = fitting < GAUSSIAN_ROWS ? fitting : GAUSSIAN_ROWS;
    const int in_float = gaussian_in_float(scale, prior, type);
    struct stretch s = {.operands = operands, .length = length};
    for (int k = 0; k < FKL_MOST_OPERANDS; k++)
        s.tiles[k] = scratch + k * 8 * FKL_GAUSSIAN_TILE;

    for (ptrdiff_t first = 0; first < n_rows; first += most) {
        s.first = first;
        s.count = n_rows - first < most ? n_rows - first : most;
        s.result = result + first;
        const uint64_t good = length <= FKL_SHORT ? gaussian_across(scale, prior, type, &s)
                                                  : gaussian_along(scale, prior, type, &s);
        for (ptrdiff_t i = 0; i < s.count; i++) {
            if (FKL_LIKELY((good >> i & 1) && in_range(in_float, s.result[i])))
                continue;
            fkl_rows row[FKL_MOST_OPERANDS];
            for (int k = 0; k < problem->operands; k++) {
                row[k] = operands[k];
                row[k].data += (first + i) * row[k].row_stride;
            }
            s.result[i] = fkl_careful_gaussian_row(row, problem);
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
