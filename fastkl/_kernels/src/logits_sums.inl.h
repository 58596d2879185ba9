/* logits_sums.inl.h: the KL divergence between softmaxes of logits as sums over a row.
 *
 * With p = softmax(a/T), q = softmax(b/T), weights w = 2^(a c - shift), c = log2(e)/T, which are p but for a factor,
 * and x = (a - b)/T - delta for any delta,
 *
 *     KL = m + log1p(t - m),    m = sum(w x)/sum(w),    t = sum(w E(-x))/sum(w),    E(y) = e^y - 1 - y >= 0,
 *
 * so one pass over a row is enough, no largest logit is subtracted, and what the result is the difference of is little
 * larger than itself as long as delta is near the p-mean of (a - b)/T. A guess at that is taken from the first
 * elements. After every chunk of a row the sums tell how good the guess was; if it wasn't, what has been summed is
 * moved,
 *
 *     w E(-(x - y)) = e^y w E(-x) + w E(y) + w x (1 - e^y),
 *
 * and the chunk, which is in the cache, summed again; the shift is mended likewise. So a row is read from memory once,
 * however long it is, and nothing of its size is stored.
 *
 * From the inside out: the terms in double and in float arithmetic (double_step(), float_steps(), and wide_step() for
 * probabilities of 0 and ratios out of the others' reach), their sums over a chunk (add_chunk()), and a row from chunk
 * to chunk (struct logit_row, extend_row()).
 */
#ifndef FASTKL_LOGITS_SUMS_H
#define FASTKL_LOGITS_SUMS_H

#include "load.inl.h"
#include "vmath.h"

#include <float.h>

/* What a row's terms are taken from. */
struct reference {
    double c, c_low, octave; /* log2(e)/T, and how many logits are an octave */
    double delta, delta_low; /* in units of logits */
    double shift;            /* an integer */
    int exact;               /* of float rows: is delta so large that differences need more than a float? */
};

/* The range of each arithmetic, in octaves: weights from 2^-depth up to 2^height, e^-x from 2^-reach to 2^reach. Lower
 * weights count as 2^-depth: times e^-x, that is nothing yet. With the reach, what e^-x makes of the rounding of x
 * grows by log 2/2 ulp an octave. */
#define DEPTH 900.0
#define HEIGHT 500.0
#define REACH 40.0
#define DEPTH_FLOAT 120.0
#define HEIGHT_FLOAT 60.0
#define REACH_FLOAT 24.0
/* Up to this shift, what the low half of c makes of a logit is much less than an octave. */
#define LARGEST_SHIFT 0x1p40
#define LARGEST_SHIFT_FLOAT 0x1p17
/* Up to this delta, in octaves, differences from it are known to much less than one: from two doubles, from two
 * floats. */
#define LARGEST_DELTA 0x1p40
#define LARGEST_DELTA_FLOAT 0x1p26

/* Sums over a chunk, without the division by T in the moment. */
struct chunk_sums {
    vd weight[PARTS], moment[PARTS], excess[PARTS];
    vd other[PARTS]; /* q's weights, w e^-x: of double arithmetic */
    vd alone[PARTS]; /* the weight that p has where q = 0, which is in no other sum */
    int bad;         /* a logit is NaN or +inf */
    int outside;     /* p > 0 where q = 0 */
};

/* ---- terms, in double arithmetic ------------------------------------------------------------------------------ */

/* The numbers of a reference in registers. */
struct vreference {
    vd c, c_low, delta, delta_low, magic, least, most, reach, decayed;
};

FKL_INLINE struct vreference vreference(const struct reference *ref)
{
    return (struct vreference){
        vd_set(ref->c), vd_set(ref->c_low), vd_set(ref->delta), vd_set(ref->delta_low),
        vd_set(FKL_MAGIC - ref->shift), vd_set((ref->shift - DEPTH) * ref->octave),
        vd_set((ref->shift + HEIGHT) * ref->octave), vd_set(REACH * ref->octave), vd_set(-DEPTH * ref->octave),
    };
}

/* With k the nearest integer to z c, the fraction z c - k times log 2, and k + magic. */
FKL_INLINE vd fraction_of(vd z, vd magic, const struct vreference *ref, vd *shifted)
{
    *shifted = vd_madd(z, ref->c, magic);
    vd f = vd_madd(z, ref->c_low, vd_fma(z, ref->c, magic - *shifted));
    return f * vd_set(FKL_LN2);
}

FKL_INLINE vd weight_of(vd a, const struct vreference *ref)
{
    vd shifted, r = fraction_of(a, ref->magic, ref, &shifted);
    return vd_exp_at(vi_double(vd_bits(shifted) << 52), r);
}

FKL_INLINE vd apart(vd a, vd b, const struct vreference *ref)
{
    vd d, lost;
    vd_two_sum(a, -b, &d, &lost);
    return (d - ref->delta) + (lost - ref->delta_low);
}

/* E(-x/T), and e^(-x/T). */
FKL_INLINE vd excess_of(vd x, const struct vreference *ref, vd *exponential)
{
    vd shifted, r = fraction_of(-x, vd_set(FKL_MAGIC), ref, &shifted);
    return vd_excess_at(shifted - vd_set(FKL_MAGIC), vi_double(vd_bits(shifted) << 52), r, exponential);
}

/* z 2^e for an integer e, |e| <= 2000. */
FKL_INLINE vd scale(vd z, vd e)
{
    const vd magic = vd_set(FKL_MAGIC);
    vd shifted = vd_madd(e, vd_set(0.5), magic), rest = e - (shifted - magic) + magic;
    return z * vi_double(vd_bits(shifted) << 52) * vi_double(vd_bits(rest) << 52);
}

/* 2^(z c - shift), where that is beyond 2^+-2000 as good as there. */
FKL_INLINE vd weight_far(vd z, const struct reference *ref, const struct vreference *v)
{
    z = vd_max(vd_set((ref->shift - 2000.0) * ref->octave), vd_min(vd_set((ref->shift + 2000.0) * ref->octave), z));
    vd shifted, r = fraction_of(z, v->magic, v, &shifted);
    const vd k = vd_max(vd_set(-2000.0), vd_min(vd_set(2000.0), shifted - vd_set(FKL_MAGIC)));
    return scale(vd_exp_at(vd_set(1.0), r), k);
}

/* The nearest integer, for |x| < 2^51; far beyond, x. */
FKL_INLINE double nearest(double x)
{
    const double sum = x + 0x1.8p52;
    return fabs(x) < 0x1p51 ? sum - 0x1.8p52 : x;
}

/* w e^-x = 2^(b c - (shift - delta c)) from the logit of q alone, whatever that of p. */
FKL_INLINE vd q_weight(vd b, const struct reference *ref)
{
    const double octaves = nearest(ref->delta * ref->c), low = ref->delta * ref->c_low + ref->delta_low * ref->c;
    const vd rest = vd_fma(vd_set(ref->delta), vd_set(ref->c), vd_set(-octaves)) + vd_set(low);
    struct reference q_ref = *ref;
    q_ref.shift -= octaves;
    const struct vreference v = vreference(&q_ref);
    return weight_far(b, &q_ref, &v) * vd_exp_at(vd_set(1.0), rest * vd_set(FKL_LN2));
}

/* 2^k, 0 and infinity beyond the range of normal numbers. */
FKL_INLINE double power_of_two(double k)
{
    const uint64_t bits = k < -1022.0 ? 0 : (uint64_t)(int64_t)((k > 1023.0 ? 1024.0 : k) + 1023.0) << 52;
    double power;
    memcpy(&power, &bits, 8);
    return power;
}

/* The terms of up to 2 LANES elements of any kind. Where e^-x is far from 1, w E(-x) = v - w + w x, v being w e^-x: the
 * weight that q gives the element. Out of line, for it is the exception. */
static FKL_NOINLINE void wide_step(enum fkl_type type, const char *a, const char *b, ptrdiff_t n,
                                   const struct reference *ref, struct chunk_sums *sums)
{
    const ptrdiff_t size = type_size(type);
    const vd zero = vd_set(0.0), largest = vd_set(DBL_MAX);
    const struct vreference v = vreference(ref);
    for (ptrdiff_t i = 0; i < n; i += VD) {
        const int j = (int)(i / VD % PARTS);
        double lanes_a[VD], lanes_b[VD];
        for (int k = 0; k < VD; k++) { /* what is behind the end has no probability */
            lanes_a[k] = i + k < n ? load_one(type, a + (i + k) * size) : -INFINITY;
            lanes_b[k] = i + k < n ? load_one(type, b + (i + k) * size) : -INFINITY;
        }
        vd va = vd_load(lanes_a), vb = vd_load(lanes_b);
        if (!md_all(md_and(vd_le(va, largest), vd_le(vb, largest))))
            sums->bad = 1;
        const md has_a = vd_le(-largest, va), has_b = vd_le(-largest, vb);
        if (!md_all(md_or(has_b, md_not(has_a))))
            sums->outside = 1;
        va = vd_select(has_a, va, zero);
        vb = vd_select(has_b, vb, zero);
        vd exponential, x = apart(va, vb, &v);
        const md near = md_and(md_and(has_a, has_b), vd_le(vd_abs(x), vd_set(REACH_FLOAT * ref->octave)));
        const vd own = vd_select(has_a, weight_far(va, ref, &v), zero), p = vd_select(has_b, own, zero);
        vd q = vd_select(has_b, q_weight(vb, ref), zero);
        vd excess = excess_of(vd_select(near, x, zero), &v, &exponential);
        vd product = vd_select(vd_eq(p, zero), zero, p * x);
        sums->weight[j] += p;
        sums->other[j] += q;
        sums->alone[j] += own - p;
        sums->moment[j] += product;
        sums->excess[j] += vd_select(near, p * excess, (q - p) + product * vd_set(ref->c * FKL_LN2));
    }
}

/* LANES elements, or the last n of a row where n > 0, added to run, or to sums if not all are within reach. */
FKL_INLINE void double_step(const enum fkl_type type, const char *a, const char *b, ptrdiff_t n,
                            const struct vreference *v, const struct reference *ref, vd run[4][PARTS],
                            struct chunk_sums *sums)
{
    const ptrdiff_t size = type_size(type);
    static const double kept[2 * LANES] = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0};
    vd w[PARTS], x[PARTS], excess[PARTS], exponential[PARTS];
    md near = vd_le(v->c, v->c);
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        const ptrdiff_t part = part_length(n, j * VD, VD), at = n == 0 || part ? j * VD * size : 0;
        vd va = n > 0 ? load_part(type, a + at, part) : load(type, a + at), keep = v->c;
        vd vb = n > 0 ? load_part(type, b + at, part) : load(type, b + at);
        if (n > 0) { /* behind the end there is no weight, and x is 0 */
            keep = vd_load(kept + LANES - n + j * VD);
            va = vd_select(vd_lt(vd_set(0.0), keep), va, v->delta);
        }
        x[j] = apart(va, vb, v);
        near = md_and(near, md_and(vd_le(vd_abs(x[j]), v->reach), vd_le(va, v->most)));
        w[j] = weight_of(vd_max(va, v->least), v);
        excess[j] = excess_of(x[j], v, &exponential[j]);
        if (n > 0)
            w[j] *= keep;
    }
    if (FKL_LIKELY(md_all(near))) {
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++) {
            run[0][j] += w[j];
            run[1][j] = vd_madd(w[j], x[j], run[1][j]);
            run[2][j] = vd_madd(w[j], excess[j], run[2][j]);
            run[3][j] = vd_madd(w[j], exponential[j], run[3][j]);
        }
    } else {
        wide_step(type, a, b, n > 0 ? n : LANES, ref, sums);
    }
}

/* Up to LOGIT_RUN elements' terms. */
FKL_INLINE void double_run(const enum fkl_type type, const char *a, const char *b, ptrdiff_t n,
                           const struct vreference *v, const struct reference *ref, struct chunk_sums *sums)
{
    const ptrdiff_t size = type_size(type);
    vd run[4][PARTS];
    ptrdiff_t i = 0;
    for (int j = 0; j < PARTS; j++)
        run[0][j] = run[1][j] = run[2][j] = run[3][j] = vd_set(0.0);
    for (; i + LANES <= n; i += LANES) {
        ask_far_ahead(2, a, i * size, 64);
        ask_far_ahead(2, b, i * size, 64);
        double_step(type, a + i * size, b + i * size, 0, v, ref, run, sums);
    }
    if (i < n)
        double_step(type, a + i * size, b + i * size, n - i, v, ref, run, sums);
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        sums->weight[j] += run[0][j];
        sums->moment[j] += run[1][j];
        sums->excess[j] += run[2][j];
        sums->other[j] += run[3][j];
    }
}

/* ---- terms, in float arithmetic ------------------------------------------------------------------------------- */

#if FKL_FLOAT_KERNELS

struct float_reference {
    vf c, c_low, delta, delta_low, magic, least, most, reach;
};

FKL_INLINE struct float_reference float_reference(const struct reference *ref)
{
    const float c = (float)ref->c, delta = (float)ref->delta;
    return (struct float_reference){
        vf_set(c), vf_set((float)(ref->c - c + ref->c_low)), vf_set(delta), vf_set((float)(ref->delta - delta)),
        vf_set((float)(12582912.0 - ref->shift)), vf_set((float)((ref->shift - DEPTH_FLOAT) * ref->octave)),
        vf_set((float)((ref->shift + HEIGHT_FLOAT) * ref->octave)), vf_set((float)(REACH_FLOAT * ref->octave)),
    };
}

struct float_terms {
    vf weight, x, excess, power, fraction; /* e^-x = power 2^fraction */
};

/* The terms of VF elements, E(-x) in units of log 2, and whether all are within reach. E needs nothing of what c loses
 * by rounding: that is another temperature by less than an ulp. */
FKL_INLINE struct float_terms float_terms(const int exact, vf a, vf b, const struct float_reference *ref, int *near)
{
    const vf magic = vf_set(FKL_MAGIC_FLOAT);
    vf d = a - b, x = d - ref->delta;
    if (exact) {
        vf turned = d - a, lost = (a - (d - turned)) - (b + turned);
        x += lost - ref->delta_low;
    }
    *near &= mf_all(mf_and(vf_le(vf_abs(x), ref->reach), vf_le(a, ref->most)));
    vf bounded = vf_max(a, ref->least), shifted = vf_fma(bounded, ref->c, ref->magic);
    vf f = vf_fma(bounded, ref->c_low, vf_fma(bounded, ref->c, ref->magic - shifted));
    vf w = vw_float(vf_bits(vf_exp2_fraction(f)) + (vf_bits(shifted) << 23));
    shifted = vf_fma(-x, ref->c, magic);
    vf k = shifted - magic, power = vw_float(vf_bits(shifted) << 23), fraction = vf_fma(-x, ref->c, -k);
    return (struct float_terms){w, x, vf_excess2_at(k, power, fraction), power, fraction};
}

/* Steps of 2 LANES elements that are taken side by side, for two registers' chains of operations to overlap. */
#define STEPS (PARTS > 1 ? 1 : 2)

/* The terms of the step-th step, added to run. */
FKL_INLINE void add_float_step(const struct float_terms t[STEPS * PARTS], const int step, vf run[3][PARTS])
{
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        const struct float_terms *x = &t[step * PARTS + j];
        run[0][j] += x->weight;
        run[1][j] = vf_fma(x->weight, x->x, run[1][j]);
        run[2][j] = vf_fma(x->weight, x->excess, run[2][j]);
    }
}

/* `steps` steps, or the last n elements of a row where n > 0, added to run; to sums those steps of which not all are
 * within reach. */
FKL_INLINE void float_steps(const enum fkl_type type, const int exact, const int steps, const char *a, const char *b,
                            ptrdiff_t n, const struct float_reference *v, const struct reference *ref,
                            vf run[3][PARTS], struct chunk_sums *sums)
{
    const ptrdiff_t size = type_size(type);
    static const float kept[4 * LANES] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f,
                                          1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    struct float_terms t[STEPS * PARTS];
    int near[STEPS], all = 1;
    FKL_UNROLL
    for (int j = 0; j < steps * PARTS; j++) {
        const ptrdiff_t part = part_length(n, j * VF, VF), at = n == 0 || part ? j * VF * size : 0;
        vf va = n > 0 ? load_float_part(type, a + at, part) : load_float(type, a + at), keep = v->c;
        vf vb = n > 0 ? load_float_part(type, b + at, part) : load_float(type, b + at);
        if (n > 0) { /* behind the end there is no weight, and x is 0 */
            keep = vf_load(kept + 2 * LANES - n + j * VF);
            va = vf_select(vf_lt(vf_set(0.0f), keep), va, v->delta);
        }
        if (j % PARTS == 0)
            near[j / PARTS] = 1;
        t[j] = float_terms(exact, va, vb, v, &near[j / PARTS]);
        if (n > 0)
            t[j].weight *= keep;
    }
    for (int step = 0; step < steps; step++)
        all &= near[step];
    if (FKL_LIKELY(all)) {
        FKL_UNROLL
        for (int step = 0; step < steps; step++)
            add_float_step(t, step, run);
        return;
    }
    for (int step = 0; step < steps; step++, a += 2 * LANES * size, b += 2 * LANES * size) {
        if (near[step])
            add_float_step(t, step, run);
        else
            wide_step(type, a, b, n > 0 ? n : 2 * LANES, ref, sums);
    }
}

/* Up to LOGIT_RUN elements' terms, added up in float; those out of reach go to wide. */
FKL_INLINE void float_run(const enum fkl_type type, const int exact, const char *a, const char *b, ptrdiff_t n,
                          const struct float_reference *v, const struct reference *ref, struct chunk_sums *sums,
                          struct chunk_sums *wide)
{
    const ptrdiff_t size = type_size(type), step = 2 * LANES;
    vf run[3][PARTS];
    ptrdiff_t i = 0;
    for (int j = 0; j < PARTS; j++)
        run[0][j] = run[1][j] = run[2][j] = vf_set(0.0f);
    for (; i + STEPS * step <= n; i += STEPS * step) {
        ask_far_ahead(2, a, i * size, STEPS * step * size);
        ask_far_ahead(2, b, i * size, STEPS * step * size);
        float_steps(type, exact, STEPS, a + i * size, b + i * size, 0, v, ref, run, wide);
    }
    if (STEPS > 1 && i + step <= n) {
        float_steps(type, exact, 1, a + i * size, b + i * size, 0, v, ref, run, wide);
        i += step;
    }
    if (i < n)
        float_steps(type, exact, 1, a + i * size, b + i * size, n - i, v, ref, run, wide);
    FKL_UNROLL
    for (int j = 0; j < PARTS; j++) {
        add_floats(sums->weight, j, run[0][j]);
        add_floats(sums->moment, j, run[1][j]);
        add_floats(sums->excess, j, run[2][j]);
    }
}
#endif

/* ---- a chunk, and a row from chunk to chunk -------------------------------------------------------------------- */

#define LOGIT_RUN 128 /* terms that are added up in the type they are worked out in */

FKL_INLINE int logits_in_float(const enum fkl_type type) { return FKL_FLOAT_KERNELS && type != FKL_F64; }

FKL_INLINE void add_chunk(const enum fkl_type type, const int in_float, const char *a, const char *b, ptrdiff_t n,
                          const struct reference *ref, struct chunk_sums *sums)
{
    const ptrdiff_t size = type_size(type);
    for (int j = 0; j < PARTS; j++)
        sums->weight[j] = sums->moment[j] = sums->excess[j] = sums->other[j] = sums->alone[j] = vd_set(0.0);
    sums->bad = sums->outside = 0;
#if FKL_FLOAT_KERNELS
    if (in_float) {
        /* What wide_step() adds, in other units, goes by itself. */
        struct chunk_sums fast = *sums;
        const struct float_reference v = float_reference(ref);
        for (ptrdiff_t i = 0; i < n; i += LOGIT_RUN) {
            const ptrdiff_t m = n - i < LOGIT_RUN ? n - i : LOGIT_RUN;
            if (ref->exact)
                float_run(type, 1, a + i * size, b + i * size, m, &v, ref, &fast, sums);
            else
                float_run(type, 0, a + i * size, b + i * size, m, &v, ref, &fast, sums);
        }
        for (int j = 0; j < PARTS; j++) {
            sums->weight[j] += fast.weight[j];
            sums->moment[j] += fast.moment[j];
            sums->excess[j] = vd_madd(fast.excess[j], vd_set(FKL_LN2), sums->excess[j]);
        }
        return;
    }
#endif
    (void)in_float;
    const struct vreference v = vreference(ref);
    for (ptrdiff_t i = 0; i < n; i += LOGIT_RUN)
        double_run(type, a + i * size, b + i * size, n - i < LOGIT_RUN ? n - i : LOGIT_RUN, &v, ref, sums);
}

/* A pair of rows of which a part has been summed: the sums, without the division by T in the moment, and what they are
 * taken from. */
struct logit_row {
    struct reference ref;
    double weight, moment, excess, other, alone;
    double temperature, per_temperature;
    int started, bad, outside;
    int lost; /* it is for careful_logits.c */
};

FKL_INLINE void open_row(struct logit_row *row, double temperature)
{
    memset(row, 0, sizeof *row);
    row->temperature = temperature;
    row->per_temperature = 1.0 / temperature;
    row->ref.octave = temperature * FKL_LN2;
    fkl_octaves_per_logit(temperature, &row->ref.c, &row->ref.c_low);
    row->lost = !(0x1p-400 <= temperature && temperature <= 0x1p400);
}

/* A delta as the arithmetic holds it: float_terms() takes differences from a float, or where these are exact from
 * two. */
FKL_INLINE void set_delta(struct reference *ref, double delta, double low, const int in_float)
{
    const float head = (float)delta, tail = (float)(delta - head);
    ref->delta = !in_float ? delta : ref->exact ? (double)head + tail : head;
    ref->delta_low = in_float ? 0.0 : low;
}

/* The largest of the first 2 LANES logits of p and the mean of their differences, if these are finite. */
FKL_INLINE int look_ahead(const enum fkl_type type, const char *a, const char *b, double *most, double *mean)
{
    const ptrdiff_t size = type_size(type);
    vd difference[PARTS], top = vd_set(-DBL_MAX);
    for (int j = 0; j < PARTS; j++)
        difference[j] = vd_set(0.0);
#if FKL_FLOAT_KERNELS
    if (type != FKL_F64) {
        vf highest = vf_set(-FLT_MAX);
        float lanes[VF];
        for (int j = 0; j < PARTS; j++) {
            const vf x = load_float(type, a + j * VF * size);
            highest = vf_max(x, highest);
            add_floats(difference, j, x - load_float(type, b + j * VF * size));
        }
        vf_store(lanes, highest);
        *most = lanes[0];
        for (int k = 1; k < VF; k++)
            *most = lanes[k] > *most ? lanes[k] : *most;
    } else
#endif
    {
        double lanes[VD];
        for (int j = 0; j < 2 * PARTS; j++) {
            const vd x = load(type, a + j * VD * size);
            top = vd_max(x, top);
            difference[j % PARTS] += x - load(type, b + j * VD * size);
        }
        vd_store(lanes, top);
        *most = lanes[0];
        for (int k = 1; k < VD; k++)
            *most = lanes[k] > *most ? lanes[k] : *most;
    }
    *mean = vd_add_lanes(difference) * (1.0 / (2 * LANES));
    return fabs(*mean) <= 0x1p900;
}

/* Before the first chunk: the weight of the first elements that p has is about 1, and their difference about the mean.
 */
FKL_INLINE void guess(struct logit_row *row, const enum fkl_type type, const char *a, const char *b, ptrdiff_t n,
                      const int in_float)
{
    const ptrdiff_t size = type_size(type);
    double most = -INFINITY, other = -INFINITY, difference = 0.0;
    if (!(n >= 2 * LANES && look_ahead(type, a, b, &most, &difference))) {
        most = -INFINITY;
        difference = 0.0;
        for (ptrdiff_t i = 0, seen = 0; i < n && seen < 2 * LANES; i++) {
            const double x = load_one(type, a + i * size), y = load_one(type, b + i * size);
            seen += x > -INFINITY;
            if (x > most) {
                most = x;
                difference = x - y;
            }
            other = y > other ? y : other;
        }
        if (most == -INFINITY) /* q's weights are taken from the same */
            most = other;
    }
    row->ref.shift = nearest(most * row->ref.c);
    set_delta(&row->ref, isfinite(difference) ? difference : 0.0, 0.0, in_float);
    if (!isfinite(row->ref.shift)) /* NaN or an infinity is there */
        row->ref.shift = 0.0;
    row->started = 1;
}

/* Take weights from the largest logit of p in this chunk; 0 if there is none. */
static FKL_NOINLINE int lift(struct logit_row *row, enum fkl_type type, const char *a, ptrdiff_t n)
{
    const ptrdiff_t size = type_size(type);
    double most = -INFINITY;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double x = load_one(type, a + i * size);
        most = x > most ? x : most;
    }
    if (most == -INFINITY)
        return 0;
    const double shift = nearest(most * row->ref.c), by = row->ref.shift - shift;
    const double factor = power_of_two(by);
    /* However little p weighs from here, q's weights are in the excess, and may be most of what q has. */
    row->lost |= row->excess > 0.0 && row->excess * factor < 0x1p-900;
    row->weight *= factor;
    row->moment *= factor;
    row->excess *= factor;
    row->other *= factor;
    row->alone *= factor;
    row->ref.shift = shift;
    return 1;
}

/* Take differences from a delta that is larger by `mean`, in nats, and what has been summed as well: see above. */
static FKL_NOINLINE void move(struct logit_row *row, double mean, const int in_float)
{
    struct reference *ref = &row->ref;
    const double old = ref->delta, old_low = ref->delta_low, by = mean * row->temperature, sum = old + by;
    set_delta(ref, sum, (old - (sum - (sum - old))) + (by - (sum - old)) + old_low, in_float);
    if (!(row->weight > 0.0 || row->excess > 0.0))
        return;
    const double moved = (ref->delta - old) + (ref->delta_low - old_low), y = moved / row->temperature;
    double e[VD], exponential[VD];
    vd power, excess = vd_exp_excess(vd_set(y), &power);
    vd_store(e, excess);
    vd_store(exponential, power);
    row->lost |= fabs(y) > 600.0;
    row->excess = exponential[0] * row->excess + row->weight * e[0] - row->moment / row->temperature * (e[0] + y);
    row->other *= exponential[0];
    row->moment -= row->weight * moved;
}

/* Results below this are good enough whatever their last bits are. */
FKL_INLINE double negligible(const int in_float) { return in_float ? 0x1p-50 : 0x1p-100; }

/* How often a chunk is summed again: delta converges by the precision of the arithmetic at every turn. */
#define MOST_TURNS 8

/* One more chunk of the row. */
FKL_INLINE void extend_row(struct logit_row *row, const enum fkl_type type, const int in_float, const char *a,
                           const char *b, ptrdiff_t n)
{
    const double least = 0.0625 * negligible(in_float);
    const double heaviest = in_float ? 0x1p31 : 0x1p250, largest = in_float ? LARGEST_SHIFT_FLOAT : LARGEST_SHIFT;
    const double farthest = in_float ? LARGEST_DELTA_FLOAT : LARGEST_DELTA;
    if (row->bad | row->lost)
        return;
    if (!row->started)
        guess(row, type, a, b, n, in_float);
    for (int turn = 0;; turn++) {
        if (!(fabs(row->ref.shift) <= largest && fabs(row->ref.delta * row->ref.c) <= farthest)) {
            row->lost = 1;
            return;
        }
        struct chunk_sums sums;
        add_chunk(type, in_float, a, b, n, &row->ref, &sums);
        if (sums.bad) {
            row->bad = 1;
            return;
        }
        row->outside |= sums.outside;
        const double own = vd_add_lanes(sums.weight), alone = row->alone + vd_add_lanes(sums.alone);
        const double weight = row->weight + own, w = weight + alone, moment = row->moment + vd_add_lanes(sums.moment);
        const double excess = row->excess + vd_add_lanes(sums.excess), other = row->other + vd_add_lanes(sums.other);
        if (turn < MOST_TURNS) {
            if ((!(w <= heaviest) || (w < 0.25 && w > 0.0)) && lift(row, type, a, n))
                continue;
            if (weight > 0.0) {
                /* The mean m and t, but for the weight, lest there be divisions. */
                const double m = moment * row->per_temperature, offset = row->ref.delta * row->per_temperature;
                if (in_float && !row->ref.exact && offset * offset * weight > 8.0 * excess) {
                    row->ref.exact = 1;
                    continue;
                }
                if (excess > least * weight && !(fabs(m) <= 0.5 * weight && m * m <= 0.75 * excess * weight) &&
                    isfinite(m)) {
                    move(row, m / weight, in_float);
                    continue;
                }
            }
        }
        row->weight = weight;
        row->moment = moment;
        row->excess = excess;
        row->other = other;
        row->alone = alone;
        return;
    }
}

#endif
