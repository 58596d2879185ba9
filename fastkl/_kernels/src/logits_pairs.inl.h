/* logits_pairs.inl.h: what needs a second look at the rows, or another sum, in double arithmetic but for Jensen-Shannon
 * of floats and halves: that and the gradients of KL, from both probabilities of an element (struct couple);
 * cross-entropy and entropy (struct entropy_row); whether the largest logits are in the same place (struct top_row).
 */
#ifndef FASTKL_LOGITS_PAIRS_H
#define FASTKL_LOGITS_PAIRS_H

#include "divergence.inl.h"
#include "logits_sums.inl.h"

/* ---- both probabilities of an element -------------------------------------------------------------------------- */

/* What the sums of a pair of rows say about its elements: p = w/weight, q = p e^-x/(1 + rest), and as KL is the mean of
 * log(p/q), log(p/q) - KL = x - mean. */
struct pair_sums {
    struct reference ref;
    double per_weight, per_q; /* 1/weight, 1/(1 + rest) */
    double rest, mean, temperature; /* mean: of x under p, NaN where KL is infinite */
    int alike; /* are the rows so near that p - q is best taken from rest and x? */
};

/* 0 where they don't say it well enough: where next to all of p has no probability in q, q may lie where p is so small
 * that its weights count as 2^-depth, and q's are that times e^-x up to its reach. */
static FKL_NOINLINE int pair_of_sums(const struct logit_row *row, const int in_float, struct pair_sums *sums)
{
    const double least = in_float ? 0x1p-30 : 0x1p-780;
    const double p = row->weight + row->alone, more = row->excess - row->moment / row->temperature;
    /* In float arithmetic there is no such sum; in double that of differences would lose digits to large x. */
    const double q = in_float ? row->weight + more : row->other, rest = (more - row->alone) / p;
    if (row->bad || row->lost || !(p > 0.0) || !(least * p < q && q < 0x1p900 * p))
        return 0;
    const double mean = row->outside ? NAN : row->moment / row->weight / row->temperature;
    *sums = (struct pair_sums){row->ref, 1.0 / p, p / q, rest, mean, row->temperature, fabs(rest) < 0.5};
    return 1;
}

struct couple {
    vd p, q, difference, x;
};

FKL_INLINE struct couple couple(vd a, vd b, const struct pair_sums *sums, const struct vreference *v)
{
    const vd zero = vd_set(0.0), per_weight = vd_set(sums->per_weight), per_q = vd_set(sums->per_q);
    const vd rest = vd_set(sums->rest), nats = vd_set(sums->ref.c * FKL_LN2);
    const md has_a = vd_le(vd_set(-DBL_MAX), a), has_b = vd_le(vd_set(-DBL_MAX), b);
    a = vd_select(has_a, a, zero);
    b = vd_select(has_b, b, zero);
    vd exponential, x = apart(a, b, v);
    const md near = md_and(md_and(has_a, has_b), vd_le(vd_abs(x), vd_set(REACH_FLOAT * sums->ref.octave)));
    const vd p = vd_select(has_a, weight_of(vd_max(a, v->least), v) * per_weight, zero);
    const vd excess = excess_of(vd_select(near, x, zero), v, &exponential);
    const vd in_nats = x * nats;
    struct couple pair = {p, p * exponential * per_q, zero, in_nats};
    pair.difference = sums->alike ? p * per_q * ((rest + in_nats) - excess) : p - pair.q;
    if (FKL_LIKELY(md_all(near)))
        return pair;
    const vd q = vd_select(has_b, q_weight(b, &sums->ref) * per_weight * per_q, zero);
    pair.q = vd_select(near, pair.q, q);
    pair.difference = vd_select(near, pair.difference, p - q);
    return pair;
}

/* Elements [i, i + VD) of a chunk of n: those behind its end have no probability. */
FKL_INLINE vd load_logits(const enum fkl_type type, const char *at, ptrdiff_t i, ptrdiff_t n)
{
    const ptrdiff_t size = type_size(type);
    double last[VD];
    if (i + VD <= n)
        return load(type, at + i * size);
    for (int k = 0; k < VD; k++)
        last[k] = i + k < n ? load_one(type, at + (i + k) * size) : -INFINITY;
    return vd_load(last);
}

/* The sum of a chunk's Jensen-Shannon terms. */
FKL_INLINE double js_of_chunk(const struct pair_sums *sums, const enum fkl_type type, const char *a, const char *b,
                              ptrdiff_t n, double weight)
{
    const struct vreference v = vreference(&sums->ref);
    vd total[PARTS];
    for (int j = 0; j < PARTS; j++)
        total[j] = vd_set(0.0);
    for (ptrdiff_t first = 0; first < n; first += LOGIT_RUN) {
        vd run[PARTS];
        for (int j = 0; j < PARTS; j++)
            run[j] = vd_set(0.0);
        for (ptrdiff_t i = first; i < n && i < first + LOGIT_RUN; i += LANES)
            for (int j = 0; j < PARTS; j++) {
                const vd va = load_logits(type, a, i + j * VD, n), vb = load_logits(type, b, i + j * VD, n);
                const struct couple x = couple(va, vb, sums, &v);
                run[j] += js_of_probabilities(x.p, x.q, x.difference, vd_set(weight));
            }
        for (int j = 0; j < PARTS; j++)
            total[j] += run[j];
    }
    return vd_add_lanes(total);
}

#if FKL_FLOAT_KERNELS
/* Weights below 2^-depth count as that, and what q has within reach of them is at most 2^24 times as much: a million
 * of them are nothing beside a weight of 1. Neither is LEAST_WEIGHT, which keeps q's weights normal floats. Rows for
 * which 1/(1 + rest) is less than LEAST_PER_Q are left to double arithmetic. */
#define DEPTH_PAIRS 100.0
#define LEAST_WEIGHT 0x1p-124f
#define LEAST_PER_Q 0x1p-60

/* What a pair of rows has in common, in registers: the sums' numbers, and x in nats to what c gives it. */
struct float_pair {
    struct float_reference ref;
    vf per_q, rest, nats;
    int alike;
};

FKL_INLINE struct float_pair float_pair(const struct pair_sums *sums)
{
    struct float_pair pair = {
        float_reference(&sums->ref), vf_set((float)sums->per_q), vf_set((float)sums->rest),
        vf_set((float)(sums->ref.c * FKL_LN2)), sums->alike,
    };
    pair.ref.least = vf_set((float)((sums->ref.shift - DEPTH_PAIRS) * sums->ref.octave));
    return pair;
}

/* The probabilities of up to LOGIT_RUN elements, times the weight of the row, and the differences of the two. */
struct float_couples {
    _Alignas(64) float p[LOGIT_RUN], q[LOGIT_RUN], n[LOGIT_RUN];
};

/* Those of VF elements from the i-th on; are all within reach? */
FKL_INLINE int couple_floats(const int exact, vf a, vf b, const struct float_pair *pair, struct float_couples *to,
                             ptrdiff_t i)
{
    int near = 1;
    const struct float_terms t = float_terms(exact, a, b, &pair->ref, &near);
    const vf exponential = t.power * vf_exp2_fraction(t.fraction);
    const vf per_q = t.weight * pair->per_q, q = vf_max(vf_set(LEAST_WEIGHT), per_q * exponential);
    const vf apart = vf_madd(t.x, pair->nats, pair->rest);
    vf_store(to->p + i, t.weight);
    vf_store(to->q + i, q);
    vf_store(to->n + i, pair->alike ? per_q * vf_madd(t.excess, vf_set(-(float)FKL_LN2), apart) : t.weight - q);
    return near;
}

/* Steps with other elements, and the last elements of a row, in double. */
static FKL_NOINLINE double js_of_step(const struct pair_sums *sums, enum fkl_type type, const char *a, const char *b,
                                      ptrdiff_t n)
{
    const ptrdiff_t size = type_size(type);
    double rows[2][2 * LANES];
    for (ptrdiff_t i = 0; i < n; i++) {
        rows[0][i] = load_one(type, a + i * size);
        rows[1][i] = load_one(type, b + i * size);
    }
    return js_of_chunk(sums, FKL_F64, (const char *)rows[0], (const char *)rows[1], n, 0.5);
}

FKL_INLINE double js_of_chunk_float(const struct pair_sums *sums, const enum fkl_type type, const int exact,
                                    const char *a, const char *b, ptrdiff_t n)
{
    const struct float_pair pair = float_pair(sums);
    const ptrdiff_t size = type_size(type), step = 2 * LANES;
    vd total[PARTS];
    double others = 0.0;
    ptrdiff_t i = 0;
    for (int j = 0; j < PARTS; j++)
        total[j] = vd_set(0.0);
    for (; sums->per_q < LEAST_PER_Q && i + step <= n; i += step)
        others += js_of_step(sums, type, a + i * size, b + i * size, step);
    while (i + step <= n) {
        const ptrdiff_t end = n - i < LOGIT_RUN ? n : i + LOGIT_RUN;
        struct float_couples couples;
        const ptrdiff_t first = i;
        for (; i + step <= end; i += step) {
            int near = 1;
            FKL_UNROLL
            for (int j = 0; j < PARTS; j++)
                near &= couple_floats(exact, load_float(type, a + (i + j * VF) * size),
                                      load_float(type, b + (i + j * VF) * size), &pair, &couples, i - first + j * VF);
            if (!FKL_LIKELY(near)) {
                others += js_of_step(sums, type, a + i * size, b + i * size, step);
                for (int j = 0; j < step; j++) { /* these have no term */
                    couples.p[i - first + j] = couples.q[i - first + j] = 1.0f;
                    couples.n[i - first + j] = 0.0f;
                }
            }
        }
        vf run[PARTS];
        for (int j = 0; j < PARTS; j++)
            run[j] = vf_set(0.0f);
        for (ptrdiff_t at = 0; at < i - first; at += step) {
            FKL_UNROLL
            for (int j = 0; j < PARTS; j++)
                run[j] += js_term_float(vf_load(couples.p + at + j * VF), vf_load(couples.q + at + j * VF),
                                        vf_load(couples.n + at + j * VF));
        }
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++)
            add_floats(total, j, run[j]);
    }
    if (i < n)
        others += js_of_step(sums, type, a + i * size, b + i * size, n - i);
    return vd_add_lanes(total) * (0.5 * sums->per_weight) + others;
}
#endif

#define STORED 256 /* gradients on their way from registers to an array */

FKL_INLINE void store_logits(const fkl_rows *to, char *at, const double *from, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const float narrow = (float)from[i];
        if (to->type == FKL_F64)
            memcpy(at + i * to->item_stride, &from[i], 8);
        else
            memcpy(at + i * to->item_stride, &narrow, 4);
    }
}

/* The gradients for n elements from the `start`-th on of row `row`: by the logits of q to the last of the `outputs`,
 * and of p to the first of two. */
FKL_INLINE void gradients_of_chunk(const struct pair_sums *sums, const enum fkl_type type, const char *a, const char *b,
                                   ptrdiff_t n, const fkl_rows *outputs, int n_outputs, ptrdiff_t row, ptrdiff_t start,
                                   double factor)
{
    const struct vreference v = vreference(&sums->ref);
    const double per_logit = factor / sums->temperature;
    for (ptrdiff_t first = 0; first < n; first += STORED) {
        const ptrdiff_t m = n - first < STORED ? n - first : STORED;
        double by[2][STORED];
        for (ptrdiff_t i = 0; i < m; i += VD) {
            const struct couple x =
                couple(load_logits(type, a, first + i, n), load_logits(type, b, first + i, n), sums, &v);
            vd_store(by[0] + i, vd_set(per_logit) * (x.p * (x.x - vd_set(sums->mean))));
            vd_store(by[1] + i, vd_set(0.0) - vd_set(per_logit) * x.difference); /* of equal rows 0, not -0 */
        }
        for (int k = 0; k < n_outputs; k++) {
            char *at = (char *)outputs[k].data + row * outputs[k].row_stride + (start + first) * outputs[k].item_stride;
            const fkl_rows *to = &outputs[k];
            const double *from = by[n_outputs == 2 ? k : 1];
            if (to->item_stride == type_size((enum fkl_type)to->type)) { /* a loop with known distances is vectorised */
                const fkl_rows doubles = {0, 0, 8, FKL_F64, 0}, floats = {0, 0, 4, FKL_F32, 0};
                if (to->type == FKL_F64)
                    store_logits(&doubles, at, from, m);
                else
                    store_logits(&floats, at, from, m);
            } else {
                store_logits(to, at, from, m);
            }
        }
    }
}

/* ---- cross-entropy --------------------------------------------------------------------------------------------- */

/* H(p, q) = sum p (top - b)/T + log(1 + what the others weigh beside the largest logit of q): both are >= 0. `top` is
 * the largest so far, and its weight is 1; ties have the same. */
struct entropy_row {
    struct reference ref; /* delta: the top */
    double weight, moment, others, ties;
    int bad, outside;
    int lost; /* it is for careful_logits.c */
};

/* e^((z + low)/T) for z <= 0 that is a difference of logits. */
FKL_INLINE vd decay(vd z, vd low, const struct vreference *v)
{
    vd shifted, bounded = vd_max(z, v->decayed), r = fraction_of(bounded, vd_set(FKL_MAGIC), v, &shifted);
    r += low * (v->c * vd_set(FKL_LN2));
    const vd w = vd_exp_at(vi_double(vd_bits(shifted) << 52), r);
    return vd_select(vd_eq(bounded, z), w, vd_set(0.0));
}

/* The largest logit of a chunk; NaN if one of them is NaN or +inf. */
FKL_INLINE double top_of_chunk(const enum fkl_type type, const char *at, ptrdiff_t n)
{
    vd top = vd_set(-INFINITY);
    md fine = vd_le(top, top);
    double lanes[VD], most = -INFINITY;
    for (ptrdiff_t i = 0; i < n; i += VD) {
        const vd x = load_logits(type, at, i, n);
        fine = md_and(fine, vd_le(x, vd_set(DBL_MAX)));
        top = vd_max(top, x);
    }
    if (!md_all(fine))
        return NAN;
    vd_store(lanes, top);
    for (int k = 0; k < VD; k++)
        most = lanes[k] > most ? lanes[k] : most;
    return most;
}

/* What the move of the top makes of what has been summed. */
static FKL_NOINLINE void raise_top(struct entropy_row *row, double top, int same)
{
    const double old = row->ref.delta, by = top - old;
    row->ref.delta = top;
    if (!(old > -INFINITY))
        return;
    const struct vreference v = vreference(&row->ref);
    double factor[VD];
    vd_store(factor, decay(vd_set(-by), vd_set(0.0), &v));
    row->others = (row->others + row->ties) * factor[0];
    row->ties = 0.0;
    row->moment += row->weight * by;
    if (same) {
        row->weight *= factor[0];
        row->moment *= factor[0];
    }
}

/* One more chunk of a pair of rows; of one row, where p is q. */
FKL_INLINE void extend_entropy(struct entropy_row *row, const enum fkl_type type, const int same, const char *a,
                               const char *b, ptrdiff_t n)
{
    const double p_top = top_of_chunk(type, a, n), q_top = same ? p_top : top_of_chunk(type, b, n);
    row->bad |= !(p_top < INFINITY) || !(q_top < INFINITY);
    if (row->bad)
        return;
    if (q_top == -INFINITY && row->ref.delta == -INFINITY) { /* nothing of q yet */
        row->outside |= p_top > -INFINITY;
        return;
    }
    if (q_top > row->ref.delta)
        raise_top(row, q_top, same);
    const double shift = nearest(p_top * row->ref.c);
    if (p_top > -INFINITY && (row->weight == 0.0 || shift > row->ref.shift + 200.0)) {
        const double by = row->ref.shift - shift, factor = power_of_two(by);
        if (row->weight > 0.0 && !same) {
            row->weight *= factor;
            row->moment *= factor;
        }
        row->ref.shift = shift;
    }
    row->lost |= !(fabs(row->ref.shift) <= LARGEST_SHIFT) || fabs(row->ref.delta) > 0x1p900;
    if (row->lost)
        return;

    const struct vreference v = vreference(&row->ref);
    const vd zero = vd_set(0.0), one = vd_set(1.0), least = vd_set(-DBL_MAX), top = vd_set(row->ref.delta);
    vd weight[PARTS], moment[PARTS], others[PARTS], ties[PARTS];
    md inside = vd_le(zero, zero);
    for (int j = 0; j < PARTS; j++)
        weight[j] = moment[j] = others[j] = ties[j] = zero;
    for (ptrdiff_t i = 0; i < n; i += LANES)
        for (int j = 0; j < PARTS; j++) {
            const vd y = load_logits(type, b, i + j * VD, n);
            const md has_b = vd_le(least, y), tie = vd_eq(y, top);
            vd z, low;
            vd_two_sum(vd_select(has_b, y, top), -top, &z, &low);
            const vd q = vd_select(has_b, decay(z, low, &v), zero);
            others[j] += vd_select(tie, zero, q);
            ties[j] += vd_select(tie, one, zero);
            vd p = q;
            if (!same) {
                const vd x = load_logits(type, a, i + j * VD, n);
                const md has_a = vd_le(v.least, x);
                p = vd_select(has_a, weight_of(vd_max(x, v.least), &v), zero);
                inside = md_and(inside, md_or(has_b, md_not(vd_le(least, x))));
            }
            weight[j] += p;
            moment[j] += vd_select(vd_eq(p, zero), zero, p * -z);
        }
    row->outside |= !md_all(inside);
    row->weight += vd_add_lanes(weight);
    row->moment += vd_add_lanes(moment);
    row->others += vd_add_lanes(others);
    row->ties += vd_add_lanes(ties);
}

/* ---- the largest logit ----------------------------------------------------------------------------------------- */

struct top_row {
    double top;
    ptrdiff_t at;
    int bad;
};

FKL_INLINE void extend_top(struct top_row *row, const enum fkl_type type, const char *at, ptrdiff_t start, ptrdiff_t n)
{
    const double top = top_of_chunk(type, at, n);
    row->bad |= !(top < INFINITY);
    if (!(top > row->top))
        return;
    row->top = top;
    for (row->at = 0; load_one(type, at + row->at * type_size(type)) != top;)
        row->at++;
    row->at += start;
}

#endif
