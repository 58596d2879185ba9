/* discrete_terms.inl.h: the formulae of the discrete family, for one vector of p and one of q.
 *
 * A *pass* goes over a row and adds something up. What it adds for a pair of elements stands in add_elements(), begin()
 * or element(), and nowhere else; KL and JS, whose speed matters most, have a twin in float arithmetic for float rows.
 */
#include "divergence.inl.h"
#include "kernels.h"
#include "vmath.h"

/* Elements below this (but for 0) and row sums out of this range are for careful.c: with them a product with c, or a
 * term that matters, could overflow or lose bits to underflow. */
#define SMALLEST 0x1p-700
#define SUM_LOW 0x1p-100
#define SUM_HIGH 0x1p200
/* The same for float arithmetic (the float kernels of KL and JS). */
#define SMALLEST_FLOAT 0x1p-126f
#define SUM_LOW_FLOAT 0x1p-60
#define SUM_HIGH_FLOAT 0x1p100

enum pass {
    PASS_SUMS,       /* sum p, sum q */
    PASS_SUMS_MAX,   /* sum p, sum q, max q, and the compensations of the sums */
    PASS_KL,         /* sum phi(p, q), sum p, sum q */
    PASS_KL_PAIR,    /* sum phi(p, c q) */
    PASS_DIFFERENCE, /* sum phi(p, q), sum (p - q) with a compensation */
    PASS_JEFFREYS,   /* sum (p - c q) log(p / c q) */
    PASS_JS,         /* sum w phi(p, m) + (1 - w) phi(c q, m) */
    PASS_JS_HALF,    /* sum phi(p, m) + phi(c q, m), m = (p + c q)/2, for rows that aren't nearly equal */
    PASS_JS_ONCE,    /* the same for c = 1: sum phi(p, m), sum p, sum q, sum phi(q, m) */
    PASS_CROSS,      /* sum p log(total / q) */
    PASS_VARIATION,  /* sum max(p - c q, 0) and sum max(c q - p, 0), without a cell that holds most of p */
    PASS_HELLINGER,  /* sum (sqrt p - sqrt(c q))^2 */
    PASS_RENYI,      /* sum p (r^b - 1), sum p r^b, max log r, where r = p / c q: see element() */
    PASS_SUPPORT,    /* sum of q where p > 0, and where p = 0 */
    PASS_SUMS_EXACT, /* sum p, sum q, sum (p - q), and the compensations of all three */
    PASSES
};
#define SUMS 6

/* Per-row numbers that a term needs, one per lane of a group of rows. */
struct context {
    double c[LANES], c_low[LANES];     /* sum(p)/sum(q) = c + c_low, or 1 and 0 */
    double p_sum[LANES], q_sum[LANES]; /* what the terms' sums are divided by, and cross-entropy's total */
    double half[LANES];                /* half of sum(p): more than that, only one cell can hold */
};

/* The same in registers: for the elements of one row alike in all lanes, else a row in each lane. */
struct vcontext {
    vd c[PARTS], c_low[PARTS], total[PARTS], half[PARTS], weight, order;
    ptrdiff_t ahead; /* what a stream is asked for ahead of itself, in bytes */
    const char *p_coming, *q_coming; /* of short rows: what is asked for beside the elements of a block */
};

FKL_INLINE vd vd_infinity(void) { return vd_set(INFINITY); }

/* ---- the terms -------------------------------------------------------------------------------------------- */

/* Is it the only one over most rows, with their sums and terms at once? */
FKL_INLINE int pass_is_single(const enum pass pass) { return pass == PASS_KL || pass == PASS_JS_ONCE; }

/* The halves of the Jensen-Shannon divergence, of terms phi(p, m) + phi(q, m). */
FKL_INLINE int pass_halves(const enum pass pass) { return pass == PASS_JS_HALF || pass == PASS_JS_ONCE; }

/* Does the pass compare p with c q? */
FKL_INLINE int pass_scales(const enum pass pass)
{
    return !(pass == PASS_SUMS || pass == PASS_SUMS_MAX || pass == PASS_SUMS_EXACT || pass_is_single(pass) ||
             pass == PASS_DIFFERENCE || pass == PASS_SUPPORT || pass == PASS_CROSS);
}

/* c q to twice the precision: the nearest double, and in *low what its rounding has lost. */
FKL_INLINE vd scaled(vd q, vd c, vd c_low, vd *low)
{
    vd product;
    vd_two_product(c, q, &product, low);
    *low = vd_madd(c_low, q, *low);
    return product;
}

/* The sums of the elements themselves, in the passes that take them. */
FKL_INLINE void add_elements(const enum pass pass, vd p, vd q, vd acc[SUMS])
{
    if (pass == PASS_SUMS_EXACT || pass == PASS_SUMS_MAX) {
        vd difference, error, lost;
        vd_two_sum(acc[0], p, &acc[0], &lost);
        acc[3] += lost;
        vd_two_sum(acc[1], q, &acc[1], &lost);
        acc[4] += lost;
        if (pass == PASS_SUMS_MAX) {
            acc[2] = vd_max(acc[2], q);
            return;
        }
        vd_two_sum(p, -q, &difference, &error);
        vd_two_sum(acc[2], difference, &acc[2], &lost);
        acc[5] += lost + error;
    } else if (pass == PASS_DIFFERENCE) {
        /* p - q is exact where p and q are within an octave, and elsewhere its rounding is below the last of phi. */
        vd lost;
        vd_two_sum(acc[1], p - q, &acc[1], &lost);
        acc[2] += lost;
    } else if (pass == PASS_SUMS || pass_is_single(pass)) {
        acc[pass == PASS_SUMS ? 0 : 1] += p;
        acc[pass == PASS_SUMS ? 1 : 2] += q;
    }
}

/* How many divisions a term has at most, each with a part of it. */
#define MOST_DIVISIONS 2

/* The passes whose terms are begun some time before they are ended (see struct vd_begun). */
FKL_INLINE int pass_begins(const enum pass pass)
{
    return pass_is_single(pass) || pass == PASS_KL_PAIR || pass == PASS_DIFFERENCE || pass == PASS_JS_HALF;
}

/* Passes whose arithmetic takes positive elements for granted: a branch, taken only where there are others, puts 1 in
 * both places of such a pair and adds its term by itself. */
FKL_INLINE int pass_wants_positive(const enum pass pass)
{
    return pass == PASS_SUMS || pass == PASS_SUMS_MAX || pass == PASS_SUMS_EXACT || pass_begins(pass);
}

/* That branch. *special collects the bits of every element below SMALLEST but for 0: a row in which any is set (tiny or
 * negative numbers) is judged element by element elsewhere. NaN and infinity need no test: they reach the sums. */
FKL_INLINE void set_aside(const enum pass pass, vd *p, vd *q, vd *low, vd term[MOST_DIVISIONS], vi *special)
{
    const vd zero = vd_set(0.0), one = vd_set(1.0), smallest = vd_set(SMALLEST);
    md no_p, no_q;
    if (pass == PASS_JS_HALF || pass == PASS_KL_PAIR || pass == PASS_DIFFERENCE) {
        /* The pass for the sums has judged the elements. */
        no_p = vd_eq(*p, zero), no_q = vd_eq(*q, zero);
        *low = vd_select(md_or(no_p, no_q), zero, *low);
    } else {
        no_p = vd_lt(*p, smallest), no_q = vd_lt(*q, smallest);
        /* Twice the bits: the sign falls off, and -0.0 is a 0 like the other. */
        *special = vi_or_where(no_p, *special, vd_bits(*p) + vd_bits(*p));
        *special = vi_or_where(no_q, *special, vd_bits(*q) + vd_bits(*q));
        if (!pass_begins(pass))
            return;
    }
    term[1] = zero;
    if (pass == PASS_JS_HALF) { /* phi(x, x/2) + phi(0, x/2) */
        term[0] = vd_select(md_or(no_p, no_q), (*p + *q) * vd_set(FKL_LN2), zero);
    } else if (pass == PASS_JS_ONCE) { /* the one and the other */
        const vd x = *p + *q, far = x * vd_set(FKL_LN2 - 0.5), near = x * vd_set(0.5);
        term[0] = vd_select(no_p, near, vd_select(no_q, far, zero));
        term[1] = vd_select(no_p, far, vd_select(no_q, near, zero));
    } else {
        term[0] = vd_select(no_p, *q, vd_select(no_q, vd_infinity(), zero));
    }
    *p = vd_select(md_or(no_p, no_q), one, *p);
    *q = vd_select(md_or(no_p, no_q), one, *q);
}

/* How many divisions such a term has; 0 for those of the other passes. */
FKL_INLINE int pass_divisions(const enum pass pass) { return pass_halves(pass) ? 2 : pass_begins(pass) ? 1 : 0; }

/* To which of a pass's sums does a division's part of the terms belong? */
FKL_INLINE int division_sum(const enum pass pass, const int division)
{
    return pass == PASS_JS_ONCE && division == 1 ? 3 : 0;
}

/* A term: the sum of base + w c(s2) over its divisions. */
struct begun {
    vd s2[MOST_DIVISIONS], w[MOST_DIVISIONS], base[MOST_DIVISIONS];
};

FKL_INLINE struct begun begin(const enum pass pass, vd p, vd q, vd low)
{
    if (pass_halves(pass)) {
        /* The mean may be rounded, for the sum of the two terms is stationary in it: its error enters squared, and
         * finish() vouches only for results that are large against that. */
        vd m = vd_half(p + q);
        struct vd_begun first = vd_begin_half(p, m);
        struct vd_begun second = pass == PASS_JS_ONCE ? vd_begin_half(q, m) : vd_begin_half_shifted(q, low, m);
        return (struct begun){{first.s2, second.s2}, {first.w, second.w}, {first.base, second.base}};
    }
    struct vd_begun x = pass == PASS_KL_PAIR ? vd_begin_phi_pair(p, q, low) : vd_begin_phi(p, q);
    return (struct begun){{x.s2}, {x.w}, {x.base}};
}

/* One vector of terms of p and q of the other passes, added to acc[0..SUMS-1]; low: see scaled(); part: of c. */
FKL_INLINE void element(const enum pass pass, vd p, vd q, vd low, const struct vcontext *c, const int part,
                        vd acc[SUMS])
{
    const vd zero = vd_set(0.0);

    if (pass == PASS_SUPPORT) {
        md no_p = vd_eq(p, zero);
        acc[0] += vd_select(no_p, zero, q);
        acc[1] += vd_select(no_p, q, zero);
        return;
    }
    if (pass == PASS_CROSS) {
        md no_p = vd_eq(p, zero), no_q = vd_eq(q, zero);
        vd term = p * vd_log_ratio(c->total[part], vd_select(no_q, vd_set(1.0), q), zero);
        acc[0] += vd_select(no_p, zero, vd_select(no_q, vd_infinity(), term));
        return;
    }

    /* The rest compares p with c q: n = p - c q keeps its last bits however close the two are. */
    vd n = (p - q) - low;

    if (pass == PASS_VARIATION) {
        vd kept = vd_select(vd_lt(c->half[part], p), zero, n);
        acc[0] += vd_max(kept, zero);
        acc[1] += vd_max(-kept, zero);
        return;
    }
    md no_p = vd_eq(p, zero), no_q = vd_eq(q, zero), none = md_or(no_p, no_q);
    if (pass == PASS_JS) {
        acc[0] += js_term(p, q, low, n, c->weight);
        return;
    }
    if (pass == PASS_HELLINGER) {
        vd roots = vd_sqrt(p) + vd_sqrt(q);
        vd d = n / vd_select(vd_eq(roots, zero), vd_set(1.0), roots);
        acc[0] = vd_madd(d, d, acc[0]);
        return;
    }

    vd p1 = vd_select(none, vd_set(1.0), p), q1 = vd_select(none, vd_set(1.0), q);
    vd low1 = vd_select(none, zero, low);
    vd log_ratio = vd_log_ratio(p1, q1, low1);
    if (pass == PASS_JEFFREYS) {
        md both = md_and(no_p, no_q);
        acc[0] += vd_select(none, vd_select(both, zero, vd_infinity()), n * log_ratio);
        return;
    }
    if (pass == PASS_RENYI) {
        /* With b = alpha - 1 and L = log(p / c q), p^alpha (c q)^(1-alpha) = p e^(bL), and its sum over a normalised
         * row is 1 + sum [p (e^(bL) - 1 - bL) + b phi(p, c q)]: for b > 0 both terms are >= 0, for b >= -1/2 their sum
         * has condition number at most 3. acc[0] is that, acc[1] the plain sum for rows that hardly overlap. */
        vd b = c->order, exponential, exponent = b * log_ratio, one = vd_set(1.0);
        vd excess = vd_exp_excess(exponent, &exponential);
        vd near = vd_madd(p, excess, b * vd_phi_pair(p1, q1, low1));
        /* Far from r = 1 the parts of both terms that are linear in L would cancel, and the 1 doesn't matter. */
        vd far = vd_madd(p, exponential, vd_madd(b, q, -(b + one) * p));
        vd term = vd_select(vd_lt(vd_abs(exponent), one), near, far);
        acc[0] += vd_select(no_p, b * q, vd_select(no_q, -(b + one) * p, term));
        acc[1] += vd_select(none, zero, p * exponential);
        acc[2] = vd_max(acc[2], vd_select(no_p, -vd_infinity(), vd_select(no_q, vd_infinity(), log_ratio)));
    }
}

#if FKL_FLOAT_KERNELS
/* The same in float arithmetic, for the passes whose speed float rows are measured by. The terms, each right to a
 * few ulp of float and >= 0, are added up in double. scaled: c as two floats. */
struct fcontext {
    vf c[PARTS], c_low[PARTS];
};

/* c q as the nearest float, and in *low what its rounding has lost. What has underflowed counts as 0. */
FKL_INLINE vf scaled_float(vf q, vf c, vf c_low, vf *low)
{
    vf product = c * q;
    *low = vf_madd(c_low, q, vf_fma(c, q, -product));
    return product;
}

/* The branch for elements that are not positive normal floats: see set_aside(). */
FKL_INLINE void set_aside_float(const enum pass pass, vf *p, vf *q, vf *low, vf *term, vw *special)
{
    const vf zero = vf_set(0.0f), one = vf_set(1.0f), smallest = vf_set(SMALLEST_FLOAT);
    mf no_p = vf_lt(*p, smallest), no_q = vf_lt(*q, smallest);
    if (pass == PASS_JS_HALF) {
        *low = vf_select(mf_or(no_p, no_q), zero, *low);
    } else {
        vw bits = vw_or_where(no_p, vw_set(0), vf_bits(*p) + vf_bits(*p));
        *special |= vw_or_where(no_q, bits, vf_bits(*q) + vf_bits(*q));
        if (!pass_begins(pass))
            return;
    }
    if (pass_halves(pass))
        *term = vf_select(mf_or(no_p, no_q), (*p + *q) * vf_set((float)FKL_LN2), zero);
    else
        *term = vf_select(no_p, *q, vf_select(no_q, vf_set(INFINITY), zero));
    *p = vf_select(mf_or(no_p, no_q), one, *p);
    *q = vf_select(mf_or(no_p, no_q), one, *q);
}

/* A term whose divisions are done. */
struct float_begun {
    struct vf_begun part[MOST_DIVISIONS];
};

FKL_INLINE struct float_begun begin_float(const enum pass pass, vf p, vf q, vf low)
{
    if (pass_halves(pass)) {
        vf m = vf_half(p + q);
        return (struct float_begun){{vf_begin_phi(p, m), pass == PASS_JS_ONCE ? vf_begin_phi(q, m)
                                                                              : vf_begin_phi_shifted(q, m, low)}};
    }
    struct vf_begun x = vf_begin_phi(p, q);
    return (struct float_begun){{x}};
}

/* The same of elements of which some are not positive normal floats. */
FKL_INLINE struct float_begun begin_float_aside(const enum pass pass, vf p, vf q, vf low, vw *special)
{
    vf term;
    set_aside_float(pass, &p, &q, &low, &term, special);
    struct float_begun x = begin_float(pass, p, q, low);
    x.part[0].far += term;
    return x;
}

FKL_INLINE vf end_float(const enum pass pass, struct float_begun x)
{
    vf term = vf_end(x.part[0]);
    return pass_halves(pass) ? term + vf_end(x.part[1]) : term;
}
#endif
