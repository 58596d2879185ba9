/* discrete.inl.h: the discrete family, compiled once per level.
 *
 * A row kernel is a *pass* or two over the row: `element()` holds what each pass does with one vector of p and one of
 * q, and is the one place where a divergence's formula stands. What is around it is common to all of them:
 *
 *   add_block()     up to 256 elements of one row, the vector running along the row; pass_along() for longer rows;
 *   pass_across()   eight short rows, one row per lane;
 *   prepare()       the row sums and from them c = sum(p)/sum(q), as two doubles;
 *   finish()        sums of terms -> results, eight rows at once, with the mask of those it vouches for;
 *   exact_row()     the rows finish() did not vouch for, with sums to twice the precision;
 *   run_block()     the loop over rows, and the packing of rows that are not contiguous.
 *
 * Sums: on eight virtual lanes, in blocks of 256 elements; block sums are added with TwoSum, so the error of a sum of
 * K terms >= 0 is that of a block's 32 additions per lane, whatever K. Which additions happen depends on K alone:
 * a row's result depends on its values, never on its neighbours, its layout or the number of threads.
 */
#include "kernels.h"
#include "pack.inl.h"
#include "vmath.h"

#include <math.h>

/* Groups of rows whose sums are taken before their results are. */
#define GROUPS (FKL_PACKED_ROWS / LANES)
#define BLOCK 256
/* How far ahead of itself a stream is asked for, in bytes. A group of rows that is passed over twice is asked for during
 * the second pass over the group before it, where there is arithmetic to hide the wait behind. */
#define AHEAD 8192
/* Registers of each operand that are worked on at a time: one chain of dependent operations leaves units idle. */
#define MOST_VECTORS (PARTS > 2 ? PARTS : 2)
/* Is the next vector's term begun before the last one's is ended? Narrow registers make many instructions, and the
 * processor does not see far enough ahead of itself; wide ones leave it no need. */
#define BEGIN_EARLY (VD == 4)

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
    PASS_SUMS_MAX,   /* sum p, sum q, max q */
    PASS_KL,         /* sum phi(p, q), sum p, sum q */
    PASS_KL_PAIR,    /* sum phi(p, c q) */
    PASS_DIFFERENCE, /* sum phi(p, q), sum (p - q) with a compensation */
    PASS_JEFFREYS,   /* sum (p - c q) log(p / c q) */
    PASS_JS,         /* sum w phi(p, m) + (1 - w) phi(c q, m) */
    PASS_JS_HALF,    /* sum phi(p, m) + phi(c q, m), m = (p + c q)/2, for rows that aren't nearly equal */
    PASS_CROSS,      /* sum p log(total / q) */
    PASS_VARIATION,  /* sum max(p - c q, 0) and sum max(c q - p, 0), without a cell that holds most of p */
    PASS_HELLINGER,  /* sum (sqrt p - sqrt(c q))^2 */
    PASS_RENYI,      /* sum p (r^b - 1), sum p r^b, max log r, where r = p / c q: see element() */
    PASS_SUPPORT,    /* sum of q where p > 0, and where p = 0 */
    PASS_SUMS_EXACT  /* sum p, sum q, sum (p - q), and the compensations of all three */
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
    int across;      /* a row in each lane? */
    ptrdiff_t ahead; /* what a stream is asked for ahead of itself, in bytes */
};

FKL_INLINE vd vd_infinity(void) { return vd_set(INFINITY); }

/* ---- the terms -------------------------------------------------------------------------------------------- */

/* Does the pass compare p with c q? */
FKL_INLINE int pass_scales(const enum pass pass)
{
    return !(pass == PASS_SUMS || pass == PASS_SUMS_MAX || pass == PASS_SUMS_EXACT || pass == PASS_KL ||
             pass == PASS_SUPPORT || pass == PASS_CROSS);
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
    if (pass == PASS_SUMS_EXACT) {
        vd difference, error, lost;
        vd_two_sum(acc[0], p, &acc[0], &lost);
        acc[3] += lost;
        vd_two_sum(acc[1], q, &acc[1], &lost);
        acc[4] += lost;
        vd_two_sum(p, -q, &difference, &error);
        vd_two_sum(acc[2], difference, &acc[2], &lost);
        acc[5] += lost + error;
    } else if (pass == PASS_SUMS || pass == PASS_SUMS_MAX || pass == PASS_KL) {
        acc[pass == PASS_KL ? 1 : 0] += p;
        acc[pass == PASS_KL ? 2 : 1] += q;
        if (pass == PASS_SUMS_MAX)
            acc[2] = vd_max(acc[2], q);
    }
}

/* Passes whose arithmetic takes positive elements for granted: a branch, taken only where there are others, puts 1 in
 * both places of such a pair and adds its term by itself. */
FKL_INLINE int pass_wants_positive(const enum pass pass)
{
    return pass == PASS_SUMS || pass == PASS_SUMS_MAX || pass == PASS_SUMS_EXACT || pass == PASS_KL ||
           pass == PASS_JS_HALF;
}

/* That branch. *special collects the bits of every element below SMALLEST but for 0: a row in which any is set (tiny or
 * negative numbers) is judged element by element elsewhere. NaN and infinity need no test: they reach the sums. */
FKL_INLINE void set_aside(const enum pass pass, vd *p, vd *q, vd *low, vd *term, vi *special)
{
    const vd zero = vd_set(0.0), one = vd_set(1.0), smallest = vd_set(SMALLEST);
    md no_p, no_q;
    if (pass == PASS_JS_HALF) {
        no_p = vd_eq(*p, zero), no_q = vd_eq(*q, zero);
        *low = vd_select(no_p, zero, *low);
        *term += vd_select(md_or(no_p, no_q), (*p + *q) * vd_set(FKL_LN2), zero); /* phi(x, x/2) + phi(0, x/2) */
    } else {
        no_p = vd_lt(*p, smallest), no_q = vd_lt(*q, smallest);
        /* Twice the bits: the sign falls off, and -0.0 is a 0 like the other. */
        *special = vi_or_where(no_p, *special, vd_bits(*p) + vd_bits(*p));
        *special = vi_or_where(no_q, *special, vd_bits(*q) + vd_bits(*q));
        if (pass != PASS_KL)
            return;
        *term += vd_select(no_p, *q, vd_select(no_q, vd_infinity(), zero));
    }
    *p = vd_select(md_or(no_p, no_q), one, *p);
    *q = vd_select(md_or(no_p, no_q), one, *q);
}

/* The passes whose terms are begun and ended apart, and a vector of such terms in between: that of JS is a sum of two. */
FKL_INLINE int pass_begins(const enum pass pass) { return pass == PASS_KL || pass == PASS_JS_HALF; }

struct begun {
    struct vd_begun first, second;
};

FKL_INLINE struct begun begin(const enum pass pass, vd p, vd q, vd low)
{
    struct begun x = {vd_begin_phi(p, q), {vd_set(0.0), vd_set(0.0), vd_set(0.0), vd_set(0.0)}};
    if (pass == PASS_JS_HALF) {
        /* The mean may be rounded, for the sum of the two terms is stationary in it: its error enters squared, and
         * finish() vouches only for results that are large against that. */
        vd m = vd_half(p + q);
        x.first = vd_begin_phi(p, m);
        x.second = vd_begin_phi_shifted(q, m, low);
        x.second.far += x.first.far;
    }
    return x;
}

FKL_INLINE vd end(const enum pass pass, struct begun x)
{
    if (pass == PASS_JS_HALF)
        x.first.far = vd_end(x.second);
    return vd_end(x.first);
}

/* One vector of terms of p and q of the other passes, added to acc[0..SUMS-1]; low: see scaled(); part: of c. */
FKL_INLINE void element(const enum pass pass, vd p, vd q, vd low, const struct vcontext *c, const int part, vd acc[SUMS])
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
        /* p - m and c q - m as multiples of n: right to the last bits however close the rows are. */
        vd w = c->weight, v = vd_set(1.0) - w;
        vd m = vd_madd(w, p, v * q);
        md empty = vd_eq(m, zero);
        m = vd_select(empty, vd_set(1.0), m);
        vd phi_p = vd_phi_near(vd_select(no_p, m, p), m, vd_select(no_p, zero, v * n));
        vd phi_q = vd_phi_near(vd_select(no_q, m, q), m, vd_select(no_q, zero, -(w * n)));
        vd term = vd_madd(w, vd_select(no_p, m, phi_p), v * vd_select(no_q, m, phi_q));
        acc[0] += vd_select(empty, zero, term);
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
    if (pass == PASS_KL_PAIR || pass == PASS_DIFFERENCE) {
        vd term = vd_phi_pair(p1, q1, low1);
        acc[0] += vd_select(none, vd_select(no_p, q, vd_infinity()), term);
        if (pass == PASS_DIFFERENCE) { /* p - q = n + error exactly, and TwoSum keeps what the sum of n loses */
            vd difference, error, lost;
            vd_two_sum(p, -q, &difference, &error);
            vd_two_sum(acc[1], difference, &acc[1], &lost);
            acc[2] += error + lost;
        }
        return;
    }
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

#if VD > 1 && FKL_HAVE_FMA
#define FKL_FLOAT_KERNELS 1
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
        *term += vf_select(mf_or(no_p, no_q), (*p + *q) * vf_set((float)FKL_LN2), zero);
    } else {
        vw bits = vw_or_where(no_p, vw_set(0), vf_bits(*p) + vf_bits(*p));
        *special |= vw_or_where(no_q, bits, vf_bits(*q) + vf_bits(*q));
        if (pass != PASS_KL)
            return;
        *term += vf_select(no_p, *q, vf_select(no_q, vf_set(INFINITY), zero));
    }
    *p = vf_select(mf_or(no_p, no_q), one, *p);
    *q = vf_select(mf_or(no_p, no_q), one, *q);
}

/* One vector of terms; low: what the rounding of c q has lost. */
FKL_INLINE vf element_float(const enum pass pass, vf p, vf q, vf low)
{
    if (pass == PASS_KL)
        return vf_phi(p, q);
    vf m = vf_half(p + q);
    struct vf_begun first = vf_begin_phi(p, m), second = vf_begin_phi_shifted(q, m, low);
    second.far += first.far;
    first.far = vf_end(second);
    return vf_end(first);
}
#else
#define FKL_FLOAT_KERNELS 0
#endif

/* ---- one row, along ---------------------------------------------------------------------------------------- */

/* What a pass has summed of a row so far: block sums and, in `low`, what adding them up lost. */
struct sums {
    double high[SUMS][LANES], low[SUMS][LANES];
    int blocks, special;
};

/* How many sums a pass keeps, and whether the last of them is a maximum instead. */
FKL_INLINE int pass_sums(const enum pass pass)
{
    switch (pass) {
    case PASS_SUMS_EXACT:
        return 6;
    case PASS_SUMS_MAX:
    case PASS_KL:
    case PASS_DIFFERENCE:
    case PASS_RENYI:
        return 3;
    case PASS_SUMS:
    case PASS_VARIATION:
    case PASS_SUPPORT:
        return 2;
    default:
        return 1;
    }
}
FKL_INLINE int pass_has_maximum(const enum pass pass) { return pass == PASS_SUMS_MAX || pass == PASS_RENYI; }

/* VD elements of a double or float row as doubles. */
FKL_INLINE vd load(const enum fkl_type type, const char *address)
{
    return type == FKL_F32 ? vh_load_double(address) : vd_load(address);
}

#if VD == 4
/* A mask of the first n lanes is a window into these. */
static const int64_t first_lanes[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
static const int32_t first_float_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#endif

/* The first n of them, n <= VD, and zeros: never reads past the n-th. */
FKL_INLINE vd load_part(const enum fkl_type type, const char *address, ptrdiff_t n)
{
#if VD == 8
    __mmask8 lanes = (__mmask8)((1u << n) - 1u);
    if (type == FKL_F32)
        return (vd)_mm512_cvtps_pd(_mm256_maskz_loadu_ps(lanes, address));
    return (vd)_mm512_maskz_loadu_pd(lanes, address);
#elif VD == 4
    if (type == FKL_F32) {
        __m128i mask = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(
            _mm256_loadu_si256((const __m256i_u *)(first_lanes + 4 - n)), _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0)));
        return (vd)_mm256_cvtps_pd(_mm_maskload_ps((const float *)(const void *)address, mask));
    }
    return (vd)_mm256_maskload_pd((const double *)(const void *)address,
                                  _mm256_loadu_si256((const __m256i_u *)(first_lanes + 4 - n)));
#else
    char whole[8 * VD] = {0};
    memcpy(whole, address, (size_t)(n * type_size(type)));
    return load(type, whole);
#endif
}

/* How many of n elements fall to the part of a step that begins at `first`. */
FKL_INLINE ptrdiff_t part_length(ptrdiff_t n, ptrdiff_t first, ptrdiff_t width)
{
    n -= first;
    return n < 0 ? 0 : n > width ? width : n;
}

/* The sums of one register out of those of all, and back. */
FKL_INLINE void take(vd acc[SUMS][PARTS], const int part, vd a[SUMS])
{
    for (int k = 0; k < SUMS; k++)
        a[k] = acc[k][part];
}
FKL_INLINE void give(vd acc[SUMS][PARTS], const int part, const vd a[SUMS])
{
    for (int k = 0; k < SUMS; k++)
        acc[k][part] = a[k];
}

/* Ones in the place of all but the first n elements: pairs of ones have no terms. */
FKL_INLINE vd ones_behind(vd x, ptrdiff_t n)
{
#if VD == 8
    return vd_select((md)((1u << n) - 1u), x, vd_set(1.0));
#elif VD == 4
    return vd_select((md)_mm256_loadu_pd((const double *)(const void *)(first_lanes + 4 - n)), x, vd_set(1.0));
#else
    double lanes[VD];
    vd_store(lanes, x);
    for (ptrdiff_t i = n; i < VD; i++)
        lanes[i] = 1.0;
    return vd_load(lanes);
#endif
}

/* What a block's pairs have left that are not two positive normal numbers: the terms of those with a zero, apart from
 * the others' so that the order of additions is that of the elements at every level; the bits of special elements. */
struct exceptions {
    vd terms[PARTS];
    vi special[PARTS];
};

FKL_INLINE struct exceptions no_exceptions(void)
{
    struct exceptions others;
    for (int j = 0; j < PARTS; j++) {
        others.terms[j] = vd_set(0.0);
        others.special[j] = vi_set(0);
    }
    return others;
}

/* A term that is 0, begun. */
FKL_INLINE struct begun begin_nothing(void)
{
    const vd zero = vd_set(0.0);
    return (struct begun){{zero, zero, zero, zero}, {zero, zero, zero, zero}};
}

/* `vectors` registers' worth of elements; the last n < LANES of a row where n >= 0. */
FKL_INLINE void step_double(const enum pass pass, const enum fkl_type type, const int vectors, ptrdiff_t n,
                            const char *p, const char *q, const struct vcontext *c, vd acc[SUMS][PARTS],
                            struct exceptions *others, struct begun *last)
{
    const ptrdiff_t stride = VD * type_size(type);
    vd x[MOST_VECTORS], y[MOST_VECTORS], low[MOST_VECTORS];
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        ptrdiff_t part = part_length(n, j * VD, VD);
        x[j] = n < 0 ? load(type, p + j * stride) : load_part(type, part ? p + j * stride : p, part);
        y[j] = n < 0 ? load(type, q + j * stride) : load_part(type, part ? q + j * stride : q, part);
    }
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        vd a[SUMS];
        take(acc, j % PARTS, a);
        add_elements(pass, x[j], y[j], a);
        give(acc, j % PARTS, a);
        low[j] = vd_set(0.0);
        if (pass_scales(pass))
            y[j] = scaled(y[j], c->c[j % PARTS], c->c_low[j % PARTS], &low[j]);
        if (pass_wants_positive(pass) && n >= 0) {
            x[j] = ones_behind(x[j], part_length(n, j * VD, VD));
            y[j] = ones_behind(y[j], part_length(n, j * VD, VD));
        }
    }
    if (pass_wants_positive(pass)) {
        vd least = vd_min(x[0], y[0]);
        FKL_UNROLL
        for (int j = 1; j < vectors; j++)
            least = vd_min(least, vd_min(x[j], y[j]));
        if (!FKL_LIKELY(!md_any(vd_lt(least, vd_set(SMALLEST))))) {
            FKL_UNROLL
            for (int j = 0; j < vectors; j++)
                set_aside(pass, &x[j], &y[j], &low[j], &others->terms[j % PARTS], &others->special[j % PARTS]);
        }
    }
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        if (pass_begins(pass)) {
            struct begun next = begin(pass, x[j], y[j], low[j]);
            if (BEGIN_EARLY) {
                acc[0][(j + PARTS - 1) % PARTS] += end(pass, *last);
                *last = next;
            } else {
                acc[0][j % PARTS] += end(pass, next);
            }
        } else {
            vd a[SUMS];
            take(acc, j % PARTS, a);
            element(pass, x[j], y[j], low[j], c, j % PARTS, a);
            give(acc, j % PARTS, a);
        }
    }
}

#if FKL_FLOAT_KERNELS
FKL_INLINE vf load_float(const enum fkl_type type, const char *address)
{
    if (type == FKL_F16)
        return vf_load_f16(address);
    if (type == FKL_BF16)
        return vf_load_bf16(address);
    return vf_load(address);
}

FKL_INLINE vf load_float_part(const enum fkl_type type, const char *address, ptrdiff_t n)
{
#if VD == 8
    __mmask16 lanes = (__mmask16)((1u << n) - 1u);
    if (type == FKL_F16)
        return (vf)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, address));
    if (type == FKL_BF16)
        return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, address)), 16);
    return (vf)_mm512_maskz_loadu_ps(lanes, address);
#elif VD == 4
    if (type == FKL_F32)
        return (vf)_mm256_maskload_ps((const float *)(const void *)address,
                                      _mm256_loadu_si256((const __m256i_u *)(first_float_lanes + 8 - n)));
    char whole[4 * VF] = {0};
    memcpy(whole, address, (size_t)(n * type_size(type)));
    return load_float(type, whole);
#else
    char whole[4 * VF] = {0};
    memcpy(whole, address, (size_t)(n * type_size(type)));
    return load_float(type, whole);
#endif
}

FKL_INLINE vf float_ones_behind(vf x, ptrdiff_t n)
{
#if VD == 8
    return vf_select((mf)((1u << n) - 1u), x, vf_set(1.0f));
#elif VD == 4
    return vf_select((mf)_mm256_loadu_ps((const float *)(const void *)(first_float_lanes + 8 - n)), x, vf_set(1.0f));
#else
    float lanes[VF];
    vf_store(lanes, x);
    for (ptrdiff_t i = n; i < VF; i++)
        lanes[i] = 1.0f;
    return vf_load(lanes);
#endif
}

/* Terms and elements of floats are added up in float for at most FLOAT_RUN steps of sixteen, three roundings a lane,
 * then in double: float i belongs to lane i mod 8, as doubles do. */
#define FLOAT_RUN 4

FKL_INLINE void add_floats(vd acc[PARTS], const vf x[PARTS])
{
#if PARTS == 1
    acc[0] += vf_low(x[0]);
    acc[0] += vf_high(x[0]);
#else
    FKL_UNROLL
    for (int j = 0; j < PARTS; j += 2) {
        acc[j] += vf_low(x[j / 2]);
        acc[j + 1] += vf_high(x[j / 2]);
    }
    FKL_UNROLL
    for (int j = 0; j < PARTS; j += 2) {
        acc[j] += vf_low(x[PARTS / 2 + j / 2]);
        acc[j + 1] += vf_high(x[PARTS / 2 + j / 2]);
    }
#endif
}

FKL_INLINE void step_float(const enum pass pass, const enum fkl_type type, const int vectors, ptrdiff_t n,
                           const char *p, const char *q, const struct fcontext *c, vf run[4][PARTS],
                           struct exceptions *others)
{
    const ptrdiff_t stride = VF * type_size(type);
    vf x[MOST_VECTORS], y[MOST_VECTORS], low[MOST_VECTORS];
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        ptrdiff_t part = part_length(n, j * VF, VF);
        x[j] = n < 0 ? load_float(type, p + j * stride) : load_float_part(type, part ? p + j * stride : p, part);
        y[j] = n < 0 ? load_float(type, q + j * stride) : load_float_part(type, part ? q + j * stride : q, part);
    }
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        run[1][j % PARTS] += x[j];
        run[2][j % PARTS] += y[j];
        low[j] = vf_set(0.0f);
        if (pass_scales(pass))
            y[j] = scaled_float(y[j], c->c[j % PARTS], c->c_low[j % PARTS], &low[j]);
        if (n >= 0) {
            x[j] = float_ones_behind(x[j], part_length(n, j * VF, VF));
            y[j] = float_ones_behind(y[j], part_length(n, j * VF, VF));
        }
    }
    vf least = vf_min(x[0], y[0]);
    FKL_UNROLL
    for (int j = 1; j < vectors; j++)
        least = vf_min(least, vf_min(x[j], y[j]));
    if (!FKL_LIKELY(!mf_any(vf_lt(least, vf_set(SMALLEST_FLOAT))))) {
        FKL_UNROLL
        for (int j = 0; j < vectors; j++) {
            vw bits = (vw)others->special[j % PARTS];
            set_aside_float(pass, &x[j], &y[j], &low[j], &run[3][j % PARTS], &bits);
            others->special[j % PARTS] = (vi)bits;
        }
    }
    if (pass != PASS_SUMS) {
        FKL_UNROLL
        for (int j = 0; j < vectors; j++)
            run[0][j % PARTS] += element_float(pass, x[j], y[j], low[j]);
    }
}

FKL_INLINE void add_block_float(const enum pass pass, const enum fkl_type type, const char *p, const char *q,
                                ptrdiff_t n, const struct fcontext *c, ptrdiff_t ahead, vd acc[SUMS][PARTS],
                                struct exceptions *others)
{
    const ptrdiff_t step = 2 * LANES, most = MOST_VECTORS * VF, size = type_size(type);
    const int terms = pass != PASS_SUMS, sums = pass != PASS_JS_HALF;
    ptrdiff_t i = 0;
    while (i < n) {
        vf run[4][PARTS]; /* the terms, sum p, sum q, the terms set aside */
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < PARTS; j++)
                run[k][j] = vf_set(0.0f);
        const ptrdiff_t end = n - i < FLOAT_RUN * step ? n : i + FLOAT_RUN * step;
        for (; i + most <= end; i += most) {
            for (ptrdiff_t line = 0; line < most * size; line += 64) {
                fkl_prefetch(p + i * size + line + ahead);
                fkl_prefetch(q + i * size + line + ahead);
            }
            step_float(pass, type, MOST_VECTORS, -1, p + i * size, q + i * size, c, run, others);
        }
        if (most > step && i + step <= end) {
            step_float(pass, type, PARTS, -1, p + i * size, q + i * size, c, run, others);
            i += step;
        }
        if (i < end) {
            step_float(pass, type, PARTS, end - i, p + i * size, q + i * size, c, run, others);
            i = end;
        }
        if (terms) {
            FKL_UNROLL
            for (int j = 0; j < PARTS; j++)
                run[0][j] += run[3][j];
            add_floats(acc[0], run[0]);
        }
        if (sums) {
            add_floats(acc[terms ? 1 : 0], run[1]);
            add_floats(acc[terms ? 2 : 1], run[2]);
        }
    }
}
#endif

/* Are this pass's terms computed in float for rows of this type? */
FKL_INLINE int in_float(const enum pass pass, const enum fkl_type type)
{
    return FKL_FLOAT_KERNELS && type != FKL_F64 && (pass == PASS_SUMS || pass == PASS_KL || pass == PASS_JS_HALF);
}

/* The context of one row, in every lane. */
FKL_INLINE struct vcontext row_context(const struct context *context, int row, double weight, double order,
                                      ptrdiff_t ahead)
{
    struct vcontext c = {.weight = vd_set(weight), .order = vd_set(order), .ahead = ahead};
    for (int j = 0; j < PARTS; j++) {
        c.c[j] = vd_set(context->c[row]);
        c.c_low[j] = vd_set(context->c_low[row]);
        c.total[j] = vd_set(context->q_sum[row]);
        c.half[j] = vd_set(context->half[row]);
    }
    return c;
}

/* Those of eight rows, each in its lane. */
FKL_INLINE struct vcontext lane_context(const struct context *context, double weight, double order, ptrdiff_t ahead)
{
    struct vcontext c = {.weight = vd_set(weight), .order = vd_set(order), .across = 1, .ahead = ahead};
    for (int j = 0; j < PARTS; j++) {
        c.c[j] = vd_load(&context->c[j * VD]);
        c.c_low[j] = vd_load(&context->c_low[j * VD]);
        c.total[j] = vd_load(&context->q_sum[j * VD]);
        c.half[j] = vd_load(&context->half[j * VD]);
    }
    return c;
}

#if FKL_FLOAT_KERNELS
/* c as two floats: of one row, or of eight, where floats i and i + 8 belong to row i. */
FKL_INLINE struct fcontext float_context(const enum pass pass, const struct vcontext *c)
{
    struct fcontext f;
    for (int j = 0; j < PARTS; j++) {
        const double high = c->c[0][0];
        f.c[j] = vf_set((float)high);
        f.c_low[j] = vf_set((float)((high - (float)high) + c->c_low[0][0]));
    }
    if (c->across && pass_scales(pass)) {
        double high[LANES], low[LANES];
        float c_high[2 * LANES], c_low[2 * LANES];
        for (int j = 0; j < PARTS; j++) {
            vd_store(high + j * VD, c->c[j]);
            vd_store(low + j * VD, c->c_low[j]);
        }
        for (int i = 0; i < 2 * LANES; i++) {
            c_high[i] = (float)high[i % LANES];
            c_low[i] = (float)((high[i % LANES] - c_high[i]) + low[i % LANES]);
        }
        for (int j = 0; j < PARTS; j++) {
            f.c[j] = vf_load(c_high + j * VF);
            f.c_low[j] = vf_load(c_low + j * VF);
        }
    }
    return f;
}
#endif

/* A block of n <= BLOCK elements, of one row or (across) eight elements of as many rows in turn: its sums, and the bits
 * of special elements added to others. */
FKL_INLINE void add_block(const enum pass pass, const enum fkl_type type, const char *p, const char *q, ptrdiff_t n,
                          const struct vcontext *c, vd acc[SUMS][PARTS], struct exceptions *others)
{
    for (int j = 0; j < PARTS; j++)
        others->terms[j] = vd_set(0.0);
    for (int k = 0; k < SUMS; k++)
        for (int j = 0; j < PARTS; j++)
            acc[k][j] = vd_set(pass_has_maximum(pass) && k == 2 ? -INFINITY : 0.0);
#if FKL_FLOAT_KERNELS
    if (in_float(pass, type)) {
        const struct fcontext f = float_context(pass, c);
        add_block_float(pass, type, p, q, n, &f, c->ahead, acc, others);
        return;
    }
#endif
    const ptrdiff_t size = type_size(type), most = MOST_VECTORS * VD;
    struct begun last = begin_nothing();
    ptrdiff_t i = 0;
    for (; i + most <= n; i += most) {
        for (ptrdiff_t line = 0; line < most * size; line += 64) {
            fkl_prefetch(p + i * size + line + c->ahead);
            fkl_prefetch(q + i * size + line + c->ahead);
        }
        step_double(pass, type, MOST_VECTORS, -1, p + i * size, q + i * size, c, acc, others, &last);
    }
    if (most > LANES && i + LANES <= n) {
        step_double(pass, type, PARTS, -1, p + i * size, q + i * size, c, acc, others, &last);
        i += LANES;
    }
    if (i < n)
        step_double(pass, type, PARTS, n - i, p + i * size, q + i * size, c, acc, others, &last);
    if (BEGIN_EARLY && pass_begins(pass))
        acc[0][PARTS - 1] += end(pass, last);
    if (pass_begins(pass)) {
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++)
            acc[0][j] += others->terms[j];
    }
}

FKL_INLINE int any_special(const struct exceptions *others)
{
    vi bits = others->special[0];
    for (int j = 1; j < PARTS; j++)
        bits |= others->special[j];
    return vi_any(bits);
}

/* Elements [0, n) of a row, or of a part of one that begins at a multiple of BLOCK, added to s. */
FKL_INLINE void pass_along(const enum pass pass, const enum fkl_type type, const char *p, const char *q, ptrdiff_t n,
                           const struct vcontext *c, struct sums *s)
{
    struct exceptions others = no_exceptions();
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        vd acc[SUMS][PARTS];
        add_block(pass, type, p + start * type_size(type), q + start * type_size(type),
                  n - start < BLOCK ? n - start : BLOCK, c, acc, &others);
        for (int k = 0; k < pass_sums(pass); k++) {
            for (int j = 0; j < PARTS; j++) {
                vd high = acc[k][j], low = vd_set(0.0);
                if (s->blocks > 0) {
                    high = vd_load(&s->high[k][j * VD]);
                    if (pass_has_maximum(pass) && k == 2) {
                        high = vd_max(high, acc[k][j]);
                    } else {
                        vd_two_sum(high, acc[k][j], &high, &low);
                        low += vd_load(&s->low[k][j * VD]);
                    }
                }
                vd_store(&s->high[k][j * VD], high);
                vd_store(&s->low[k][j * VD], low);
            }
        }
        s->blocks++;
    }
    s->special |= any_special(&others);
}

FKL_INLINE double add_lanes(const double x[LANES])
{
    vd parts[PARTS];
    for (int j = 0; j < PARTS; j++)
        parts[j] = vd_load(x + j * VD);
    return vd_add_lanes(parts);
}

FKL_INLINE double vd_max_lanes(const vd x[PARTS])
{
    double lanes[LANES], m = -INFINITY;
    for (int j = 0; j < PARTS; j++)
        vd_store(lanes + j * VD, x[j]);
    for (int i = 0; i < LANES; i++)
        m = lanes[i] > m ? lanes[i] : m;
    return m;
}

/* *high + *low = the sum of n numbers to twice the precision. */
FKL_INLINE void add_exactly(const double *x, int n, double *high, double *low)
{
    for (int i = 0; i < n; i++) {
        double sum = *high + x[i], t = sum - *high;
        *low += (*high - (sum - t)) + (x[i] - t);
        *high = sum;
    }
}

/* What a pass found out about up to eight rows, one per lane. */
struct totals {
    double sum[SUMS][LANES];
    unsigned special; /* a bit for each row that must be judged element by element */
};

FKL_INLINE void total_row(const enum pass pass, const struct sums *s, struct totals *t, int row)
{
    const int count = pass_sums(pass), maximum = pass_has_maximum(pass);
    t->special |= (unsigned)s->special << row;

    if (pass == PASS_SUMS_EXACT || pass == PASS_DIFFERENCE) {
        const int pairs = pass == PASS_SUMS_EXACT ? 3 : 1, first = pass == PASS_SUMS_EXACT ? 0 : 1;
        for (int k = first; k < first + pairs; k++) {
            double high = 0.0, low = 0.0, rest = 0.0;
            add_exactly(s->high[k], LANES, &high, &low);
            add_exactly(s->low[k], LANES, &high, &low);
            add_exactly(s->high[k + pairs], LANES, &high, &low);
            add_exactly(s->low[k + pairs], LANES, &high, &low);
            add_exactly(&low, 1, &high, &rest);
            t->sum[k][row] = high;
            t->sum[k + pairs][row] = rest;
        }
        if (pass == PASS_SUMS_EXACT)
            return;
    }
    for (int k = 0; k < (pass == PASS_DIFFERENCE ? 1 : count); k++) {
        if (maximum && k == 2) {
            vd parts[PARTS];
            for (int j = 0; j < PARTS; j++)
                parts[j] = vd_load(&s->high[k][j * VD]);
            t->sum[k][row] = vd_max_lanes(parts);
        } else {
            double high = add_lanes(s->high[k]); /* where it is infinite, what adding it up lost is NaN */
            t->sum[k][row] = s->blocks > 1 && !isinf(high) ? high + add_lanes(s->low[k]) : high;
        }
    }
}

/* ---- a group of up to eight rows ----------------------------------------------------------------------------- */

/* One operand's rows of a group, and the tile its elements are packed into where they are not contiguous. */
struct side {
    const fkl_rows *rows;
    ptrdiff_t first; /* the group's first row */
    int direct;      /* rows lie in memory as the kernel reads them */
    char *tile;
};

struct group {
    struct side p, q;
    int count;            /* rows in the group */
    ptrdiff_t chunk;      /* elements of each row that are packed at a time; K where both operands are direct */
    ptrdiff_t packed_at, packed; /* the tiles hold [packed_at, packed_at + packed) of each row */
    const fkl_problem *problem;
    struct context context;
    double order; /* the b of PASS_RENYI */
    ptrdiff_t ahead;
};

FKL_INLINE const char *row_start(const struct side *side, int row, const enum fkl_type type, ptrdiff_t start,
                                 ptrdiff_t tile_length)
{
    if (side->direct)
        return side->rows->data + (side->first + row) * side->rows->row_stride + start * type_size(type);
    return side->tile + row * tile_length * type_size(type);
}

/* Elements [begin, end) of the group's rows through one pass. */
FKL_INLINE void run_range(const enum pass pass, const enum fkl_type type, struct group *g, ptrdiff_t begin,
                          ptrdiff_t end, struct totals *t)
{
    const ptrdiff_t tile_length = fkl_tile_length(g->problem->length);
    struct sums sums[LANES];

    t->special = 0;
    for (int i = 0; i < g->count; i++)
        sums[i].blocks = sums[i].special = 0;
    for (ptrdiff_t start = begin; start < end; start += g->chunk) {
        ptrdiff_t n = end - start < g->chunk ? end - start : g->chunk;
        if (g->packed_at != start || g->packed < n) {
            if (!g->p.direct)
                pack(g->p.rows, g->p.first, g->count, start, n, type, g->p.tile, tile_length * type_size(type));
            if (!g->q.direct)
                pack(g->q.rows, g->q.first, g->count, start, n, type, g->q.tile, tile_length * type_size(type));
            g->packed_at = start;
            g->packed = n;
        }
        for (int i = 0; i < g->count; i++) {
            const char *p = row_start(&g->p, i, type, start, tile_length);
            const char *q = row_start(&g->q, i, type, start, tile_length);
            const struct vcontext c = row_context(&g->context, i, g->problem->parameter, g->order, g->ahead);
            if (end - begin <= BLOCK && pass != PASS_SUMS_EXACT && pass != PASS_DIFFERENCE) {
                /* Short rows, sums and all in registers. */
                vd acc[SUMS][PARTS];
                struct exceptions others = no_exceptions();
                add_block(pass, type, p, q, n, &c, acc, &others);
                t->special |= (unsigned)any_special(&others) << i;
                for (int k = 0; k < pass_sums(pass); k++)
                    t->sum[k][i] = pass_has_maximum(pass) && k == 2 ? vd_max_lanes(acc[k]) : vd_add_lanes(acc[k]);
            } else {
                pass_along(pass, type, p, q, n, &c, &sums[i]);
                if (start + n == end)
                    total_row(pass, &sums[i], t, i);
            }
        }
    }
}

/* Eight rows of at most FKL_SHORT elements, one row per lane: see pack_columns(). */
FKL_INLINE void pass_across(const enum pass pass, const enum fkl_type type, const struct group *g, struct totals *t)
{
    const struct vcontext c = lane_context(&g->context, g->problem->parameter, g->order, 0);
    vd acc[SUMS][PARTS];
    struct exceptions others = no_exceptions();
    add_block(pass, type, g->p.tile, g->q.tile, LANES * g->problem->length, &c, acc, &others);
    for (int k = 0; k < pass_sums(pass); k++)
        for (int j = 0; j < PARTS; j++)
            vd_store(&t->sum[k][j * VD], acc[k][j]);
    t->special = 0;
    if (any_special(&others)) {
        if (in_float(pass, type)) {
            uint32_t bits[2 * LANES];
            memcpy(bits, others.special, sizeof bits);
            for (int i = 0; i < 2 * LANES; i++)
                t->special |= (unsigned)(bits[i] != 0) << i % LANES;
        } else {
            uint64_t bits[LANES];
            memcpy(bits, others.special, sizeof bits);
            for (int i = 0; i < LANES; i++)
                t->special |= (unsigned)(bits[i] != 0) << i;
        }
    }
}

/* One pass over the rows of some groups, whichever way they lie. The switch is the one place where passes are
 * instantiated. */
#define FKL_RUN(PASS)                                                                                                  \
    case PASS:                                                                                                         \
        for (int i = 0; i < groups; i++) {                                                                             \
            if (across)                                                                                                \
                pass_across(PASS, type, &g[i], &t[i]);                                                                      \
            else                                                                                                       \
                run_range(PASS, type, &g[i], begin, end, &t[i]);                                                       \
        }                                                                                                              \
        return;

FKL_INLINE void run_pass_typed(const enum fkl_type type, const int across, enum pass pass, struct group *g, int groups,
                               ptrdiff_t begin, ptrdiff_t end, struct totals *t)
{
    switch (pass) { /* what the 16-bit types are read for: see row_type() */
        FKL_RUN(PASS_SUMS)
        FKL_RUN(PASS_KL)
        FKL_RUN(PASS_JS_HALF)
    default:
        break;
    }
    if (type == FKL_F16 || type == FKL_BF16)
        return;
    switch (pass) {
        FKL_RUN(PASS_SUMS_MAX)
        FKL_RUN(PASS_SUMS_EXACT)
        FKL_RUN(PASS_KL_PAIR)
        FKL_RUN(PASS_DIFFERENCE)
        FKL_RUN(PASS_JEFFREYS)
        FKL_RUN(PASS_JS)
        FKL_RUN(PASS_CROSS)
        FKL_RUN(PASS_VARIATION)
        FKL_RUN(PASS_HELLINGER)
        FKL_RUN(PASS_RENYI)
        FKL_RUN(PASS_SUPPORT)
    default:
        break;
    }
}
#undef FKL_RUN

typedef void pass_runner(enum pass pass, struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end,
                         struct totals *t);
#define FKL_RUNNER(NAME, TYPE, ACROSS)                                                                                 \
    static void NAME(enum pass pass, struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end, struct totals *t)    \
    {                                                                                                                  \
        run_pass_typed(TYPE, ACROSS, pass, g, groups, begin, end, t);                                                  \
    }
FKL_RUNNER(run_f64, FKL_F64, 0)
FKL_RUNNER(run_f32, FKL_F32, 0)
FKL_RUNNER(run_f16, FKL_F16, 0)
FKL_RUNNER(run_bf16, FKL_BF16, 0)
FKL_RUNNER(run_across_f64, FKL_F64, 1)
FKL_RUNNER(run_across_f32, FKL_F32, 1)
#undef FKL_RUNNER

static pass_runner *runner(enum fkl_type type, int across)
{
    static pass_runner *const along[FKL_ROW_TYPES] = {run_f64, run_f32, run_f16, run_bf16};
    return !across ? along[type] : type == FKL_F64 ? run_across_f64 : run_across_f32;
}

/* ---- from sums to results ------------------------------------------------------------------------------------ */

/* The pass that sums an operation's terms once c is known. */
FKL_INLINE enum pass term_pass(enum fkl_op op, const fkl_problem *problem, int exact)
{
    switch (op) {
    case FKL_JEFFREYS:
        return PASS_JEFFREYS;
    case FKL_JS:
    case FKL_JS_DISTANCE:
        return problem->parameter == 0.5 && problem->normalize && !exact ? PASS_JS_HALF : PASS_JS;
    case FKL_CROSS_ENTROPY:
        return PASS_CROSS;
    case FKL_TOTAL_VARIATION:
        return PASS_VARIATION;
    case FKL_HELLINGER:
        return PASS_HELLINGER;
    case FKL_RENYI:
        return problem->parameter == 0.0 ? PASS_SUPPORT : PASS_RENYI;
    default:
        return problem->normalize ? PASS_KL_PAIR : PASS_DIFFERENCE;
    }
}

/* From the sums of up to eight rows, their contexts; returns a bit for each row the vector kernels can take. */
static unsigned prepare(struct group *g, const struct totals *t, int exact, double low, double high)
{
    unsigned usable = 0;
    for (int j = 0; j < LANES; j += VD) {
        const vd one = vd_set(1.0), zero = vd_set(0.0);
        vd p = vd_load(&t->sum[0][j]), q = vd_load(&t->sum[1][j]), p_low = zero, q_low = zero, d = zero;
        if (exact) {
            vd_two_sum(p, vd_load(&t->sum[3][j]), &p, &p_low);
            vd_two_sum(q, vd_load(&t->sum[4][j]), &q, &q_low);
            d = vd_load(&t->sum[2][j]) + vd_load(&t->sum[5][j]);
        }
        md fine = md_and(md_and(vd_le(vd_set(low), p), vd_le(p, vd_set(high))),
                         md_and(vd_le(vd_set(low), q), vd_le(q, vd_set(high))));
        usable |= md_lanes(fine) << j;
        p = vd_select(fine, p, one);
        q = vd_select(fine, q, one);
        p_low = vd_select(fine, p_low, zero);
        q_low = vd_select(fine, q_low, zero);
        /* c = p/q to twice the precision: the remainder p - c q is exact. */
        vd c = p / q, product, error;
        vd_two_product(c, q, &product, &error);
        vd c_low = (((p - product) - error) + (p_low - c * q_low)) / q;
        if (exact) /* next to 1, c - 1 = d / q is known to its own last bits, which are far below those of c */
            c_low = vd_select(vd_eq(c, one), vd_select(fine, d, zero) / q, c_low);
        const int normalize = g->problem->normalize;
        vd_store(&g->context.c[j], normalize ? c : one);
        vd_store(&g->context.c_low[j], normalize ? c_low : zero);
        vd_store(&g->context.p_sum[j], normalize ? p : one);
        vd_store(&g->context.q_sum[j], normalize ? q : one);
        vd_store(&g->context.half[j], normalize ? vd_set(0.5) * p : vd_infinity());
    }
    return usable & ~t->special;
}

/* The one-pass KL: sum phi / P - phi(1, Q/P) where that difference does not cancel. */
static unsigned finish_kl(const struct totals *t, const fkl_problem *problem, int floats, double *result)
{
    unsigned good = 0;
    const double low = floats ? SUM_LOW_FLOAT : SUM_LOW, high = floats ? SUM_HIGH_FLOAT : SUM_HIGH;
    /* A bound of the error of r. It changes the result by that times (r - 1 + itself), which `near` keeps below an
     * eighth of that times the result. */
    const double slack = floats ? 0x1p-22 : 0x1p-50;
    for (int j = 0; j < LANES; j += VD) {
        const vd one = vd_set(1.0), eight = vd_set(8.0);
        vd sum = vd_load(&t->sum[0][j]), p = vd_load(&t->sum[1][j]), q = vd_load(&t->sum[2][j]);
        md fine = md_and(md_and(vd_le(vd_set(low), vd_min(p, q)), vd_le(vd_max(p, q), vd_set(high))),
                         md_and(vd_le(p, p), vd_le(q, q)));
        p = vd_select(fine, p, one);
        q = vd_select(fine, q, one);
        vd a = sum / p, value = a;
        /* Of rows that both sum to 1, as most do, what would be subtracted is below the last bit of a. */
        vd apart = vd_abs(q - p), bound = apart + vd_set(0x1p-50) * p;
        md alike = vd_le(bound * bound, vd_set(floats ? 0x1p-32 : 0x1p-58) * (p * sum));
        md near = vd_le(vd_set(16.0) * (apart + vd_set(slack) * p), sum);
        if (!FKL_LIKELY(md_lanes(md_and(alike, near)) == (1u << VD) - 1u)) {
            vd r = q / p, off = vd_abs(r - one), excess = vd_phi(one, r);
            md infinite = vd_eq(a, vd_infinity());
            near = md_and(vd_le(eight * (off + vd_set(slack)), a), vd_le(eight * excess, a));
            near = md_or(near, infinite);
            value = vd_select(md_or(alike, infinite), a, a - excess);
        }
        vd_store(result + j, problem->log_base == 1.0 ? value : value / vd_set(problem->log_base));
        good |= md_lanes(md_and(fine, near)) << j;
    }
    return good & ~t->special;
}

/* The other operations, and KL with a known c. A bit is set for each row whose error bound holds: sums of terms whose
 * first-order dependence on c vanishes or is as small as they are need c to working precision only while they are large
 * against the square of its error. exact: c is known to twice the precision, the bound holds. */
static unsigned finish(enum fkl_op op, enum pass pass, int floats, const struct group *g, const struct totals *t,
                       const struct totals *sums, int exact, double *result)
{
    unsigned good = 0;
    const fkl_problem *problem = g->problem;
    const double weight = problem->parameter;
    for (int j = 0; j < LANES; j += VD) {
        const vd zero = vd_set(0.0), one = vd_set(1.0), base = vd_set(problem->log_base);
        vd p_sum = vd_load(&g->context.p_sum[j]), q_sum = vd_load(&g->context.q_sum[j]);
        vd sum = vd_load(&t->sum[0][j]);
        vd value = sum / p_sum;
        /* Equal rows: every term is exactly 0, and none of a row of this size can have underflowed to it. */
        md equal = md_and(vd_eq(sum, zero), md_and(vd_eq(vd_load(&g->context.c_low[j]), zero),
                                                   vd_le(vd_set(0x1p-30), p_sum)));
        md large = md_and(vd_le(vd_set(0x1p-40), value), vd_le(vd_set(0x1p-900), sum));
        md fine = md_or(large, equal);
        switch (op) {
        case FKL_JS:
        case FKL_JS_DISTANCE:
            if (pass == PASS_JS_HALF) {
                value = vd_set(0.5) * value;
                fine = vd_le(vd_set(floats ? 0x1p-20 : 0x1p-40), value);
            }
            if (weight == 0.5 && problem->normalize)
                value = vd_min(value, vd_set(FKL_LN2));
            value = value / base;
            if (op == FKL_JS_DISTANCE)
                value = vd_sqrt(value);
            break;
        case FKL_CROSS_ENTROPY:
            /* A cell with more than half of q's mass has a logarithm that the rounding of the total may spoil. */
            fine = md_or(vd_le(vd_set(0.25), value),
                         vd_le(vd_set(2.0) * vd_load(&sums->sum[2][j]), q_sum));
            if (!problem->normalize)
                fine = vd_eq(zero, zero);
            value = value / base;
            break;
        case FKL_TOTAL_VARIATION:
            /* Normalised, what p has more of is what q has more of. Where one cell holds most of p, p - c q there is
             * a small difference of large numbers: it was left out, and the larger of the two sums is the whole. */
            if (problem->normalize)
                value = vd_min(vd_max(sum, vd_load(&t->sum[1][j])) / p_sum, one);
            else
                value = vd_set(0.5) * (sum + vd_load(&t->sum[1][j]));
            fine = vd_eq(zero, zero);
            break;
        case FKL_HELLINGER:
            value = vd_sqrt(vd_set(0.5) * value);
            if (problem->normalize)
                value = vd_min(value, one);
            break;
        case FKL_RENYI:
            continue; /* see finish_renyi() */
        case FKL_KL:
            if (!problem->normalize) /* terms at working precision, and the difference of the sums to twice that */
                value = sum + (vd_load(&t->sum[1][j]) + vd_load(&t->sum[2][j]));
            value = value / base;
            break;
        default:
            value = value / base;
        }
        vd_store(result + j, value);
        good |= md_lanes(fine) << j;
    }
    return exact || !problem->normalize ? 0xffu : good;
}

/* A divergence in nats, in the base asked for; of normalised rows it is >= 0, whatever rounding has left of a 0. */
FKL_INLINE double renyi_value(const fkl_problem *problem, double value)
{
    return (problem->normalize && !(value > 0.0) ? 0.0 : value) / problem->log_base;
}

FKL_INLINE double first_lane(vd x)
{
    double lanes[VD];
    vd_store(lanes, x);
    return lanes[0];
}

/* May a power in one of PASS_RENYI's terms have left the range of vd_exp_excess()? */
FKL_INLINE int renyi_overflows(const struct group *g, const struct totals *t, int lane)
{
    const double largest = t->sum[2][lane];
    return g->problem->parameter > 1.0 && !isinf(largest) && g->order * largest > 600.0;
}

/* D_alpha of one row from the sums of PASS_RENYI or PASS_SUPPORT. */
static double finish_renyi(const struct group *g, const struct totals *t, int lane)
{
    const fkl_problem *problem = g->problem;
    const double alpha = problem->parameter, p_sum = g->context.p_sum[lane], largest = t->sum[2][lane];
    if (alpha == 0.0) { /* -log of q's share where p > 0, from the smaller of the two shares */
        double inside = t->sum[0][lane], outside = t->sum[1][lane], total = g->context.q_sum[lane];
        if (inside == 0.0)
            return renyi_value(problem, INFINITY);
        if (problem->normalize && outside <= 0.5 * total)
            return renyi_value(problem, -first_lane(vd_log1p(vd_set(-(outside / total)))));
        return renyi_value(problem, first_lane(vd_log_ratio(vd_set(total), vd_set(inside), vd_set(0.0))));
    }
    if (alpha > 1.0 && (isinf(largest) || isinf(alpha))) /* -INFINITY: p is all 0 */
        return renyi_value(problem, largest == -INFINITY ? INFINITY : largest);
    double excess = t->sum[0][lane] / p_sum, plain = t->sum[1][lane] / p_sum;
    if (plain == 0.0)
        return renyi_value(problem, INFINITY);
    /* The logarithm of 1 + excess, or of the plain sum where that has lost most of the 1 or there is no 1. */
    vd logarithm = problem->normalize && excess > -0.5 ? vd_log1p(vd_set(excess))
                                                       : vd_log_ratio(vd_set(plain), vd_set(1.0), vd_set(0.0));
    return renyi_value(problem, first_lane(logarithm) / (alpha - 1.0));
}

/* ---- rows, one at a time, exactly ---------------------------------------------------------------------------- */

static void start_group(struct group *g, const fkl_rows *p, const fkl_rows *q, ptrdiff_t first, int count,
                        const fkl_problem *problem, enum fkl_type type, double order, void *scratch)
{
    g->p.rows = p;
    g->q.rows = q;
    g->p.first = g->q.first = first;
    g->p.direct = is_direct(p, type);
    g->q.direct = is_direct(q, type);
    g->p.tile = scratch;
    g->q.tile = (char *)scratch + FKL_TILE_ROWS * 8 * fkl_tile_length(problem->length);
    g->count = count;
    g->chunk = g->p.direct && g->q.direct ? problem->length : FKL_TILE_LENGTH;
    g->packed_at = -1;
    g->packed = 0;
    g->problem = problem;
    g->order = order;
    g->ahead = AHEAD;
}

/* Cross-entropy where one cell holds most of q: its logarithm is log(1 + others / cell), with `others` summed from the
 * other cells alone. */
static double peaked_cross_entropy(struct group *g, double cell)
{
    const ptrdiff_t length = g->problem->length;
    ptrdiff_t at = 0;
    while (load_any((enum fkl_type)g->q.rows->type, g->q.rows->swapped,
                    g->q.rows->data + g->q.first * g->q.rows->row_stride + at * g->q.rows->item_stride) != cell)
        at++;
    double p_cell = load_any((enum fkl_type)g->p.rows->type, g->p.rows->swapped,
                             g->p.rows->data + g->p.first * g->p.rows->row_stride + at * g->p.rows->item_stride);
    struct totals before = {{{0}}, 0}, after = {{{0}}, 0};
    run_f64(PASS_SUMS, g, 1, 0, at, &before);
    run_f64(PASS_SUMS, g, 1, at + 1, length, &after);
    double others = at > 0 ? before.sum[1][0] : 0.0;
    others += at + 1 < length ? after.sum[1][0] : 0.0;
    double lanes[LANES];
    vd_store(lanes, vd_log1p(vd_set(others / cell)));
    double value = p_cell == 0.0 ? 0.0 : p_cell * lanes[0];
    run_f64(PASS_CROSS, g, 1, 0, at, &before);
    run_f64(PASS_CROSS, g, 1, at + 1, length, &after);
    value += at > 0 ? before.sum[0][0] : 0.0;
    value += at + 1 < length ? after.sum[0][0] : 0.0;
    return value / g->context.p_sum[0] / g->problem->log_base;
}

static double careful(enum fkl_op op, const fkl_rows *p, const fkl_rows *q, ptrdiff_t row, const fkl_problem *problem)
{
    fkl_rows p1 = *p, q1 = *q;
    p1.data += row * p1.row_stride;
    q1.data += row * q1.row_stride;
    return fkl_careful_row(op, &p1, &q1, problem);
}

static double exact_row(enum fkl_op op, const fkl_rows *p, const fkl_rows *q, ptrdiff_t row,
                        const fkl_problem *problem, double order, void *scratch)
{
    struct group g;
    struct totals sums, terms;
    double result[LANES];
    const ptrdiff_t length = problem->length;

    start_group(&g, p, q, row, 1, problem, FKL_F64, order, scratch);
    run_f64(PASS_SUMS_EXACT, &g, 1, 0, length, &sums);
    for (int k = 0; k < SUMS; k++) /* all lanes alike, so that none holds rubbish */
        for (int i = 1; i < LANES; i++)
            sums.sum[k][i] = sums.sum[k][0];
    if (problem->normalize && !(sums.special & 1) && (sums.sum[0][0] == 0.0 || sums.sum[1][0] == 0.0))
        return NAN;
    if (op != FKL_WASSERSTEIN && (prepare(&g, &sums, 1, SUM_LOW, SUM_HIGH) & 1)) {
        if (op == FKL_CROSS_ENTROPY) {
            run_f64(PASS_SUMS_MAX, &g, 1, 0, length, &terms);
            return peaked_cross_entropy(&g, terms.sum[2][0]);
        }
        run_f64(term_pass(op, problem, 1), &g, 1, 0, length, &terms);
        if (op == FKL_RENYI)
            return renyi_overflows(&g, &terms, 0) ? careful(op, p, q, row, problem) : finish_renyi(&g, &terms, 0);
        for (int k = 0; k < SUMS; k++)
            for (int i = 1; i < LANES; i++)
                terms.sum[k][i] = terms.sum[k][0];
        finish(op, term_pass(op, problem, 1), 0, &g, &terms, &sums, 1, result);
        /* Terms this small in a row this small may have underflowed. */
        if (!(g.context.p_sum[0] < 0x1p-30 && terms.sum[0][0] < 0x1p-900))
            return result[0];
    }
    return careful(op, p, q, row, problem);
}

/* ---- blocks of rows -------------------------------------------------------------------------------------------- */

/* The area between the cumulative distributions of up to eight rows, one per lane. The difference of the two is a sum
 * of numbers of both signs and is kept to twice the precision; the area is a sum of numbers >= 0 but may be of very
 * many, so it is compensated. */
static void wasserstein(struct group *g, double *result)
{
    const fkl_problem *problem = g->problem;
    const ptrdiff_t length = problem->length, tile_length = fkl_tile_length(length);
    double state[4][LANES] = {{0}};
    const double *p = (const double *)(const void *)g->p.tile, *q = (const double *)(const void *)g->q.tile;

    for (ptrdiff_t start = 0; start < length; start += tile_length) {
        ptrdiff_t n = length - start < tile_length ? length - start : tile_length;
        pack_columns(g->p.rows, g->p.first, g->count, start, n, FKL_F64, g->p.tile);
        pack_columns(g->q.rows, g->q.first, g->count, start, n, FKL_F64, g->q.tile);
        for (int j = 0; j < LANES; j += VD) {
            const vd c = vd_load(&g->context.c[j]), c_low = vd_load(&g->context.c_low[j]);
            vd ahead = vd_load(&state[0][j]), ahead_low = vd_load(&state[1][j]);
            vd area = vd_load(&state[2][j]), area_low = vd_load(&state[3][j]);
            for (ptrdiff_t i = 0; i < n; i++) {
                const ptrdiff_t bin = start + i;
                double gap = bin == 0 ? 0.0 : 1.0;
                if (bin > 0 && problem->positions)
                    gap = problem->positions[bin] - problem->positions[bin - 1];
                vd x = vd_load(p + i * LANES + j), y = vd_load(q + i * LANES + j), scaled, low, n0, lost;
                vd_two_sum(area, vd_abs(ahead + ahead_low) * vd_set(gap), &area, &lost);
                area_low += lost;
                vd_two_product(c, y, &scaled, &low);
                low = vd_madd(c_low, y, low);
                vd_two_sum(x, -scaled, &n0, &lost);
                ahead_low += lost - low;
                vd_two_sum(ahead, n0, &ahead, &lost);
                ahead_low += lost;
            }
            vd_store(&state[0][j], ahead);
            vd_store(&state[1][j], ahead_low);
            vd_store(&state[2][j], area);
            vd_store(&state[3][j], area_low);
        }
    }
    for (int j = 0; j < LANES; j += VD) {
        vd area = vd_load(&state[2][j]) + vd_load(&state[3][j]);
        vd_store(result + j, area / vd_load(&g->context.p_sum[j]));
    }
}

/* The type in which rows are read: 16-bit floats as they are where the float kernels take them, else as floats. */
FKL_INLINE enum fkl_type effective_type(enum fkl_op op, enum fkl_type type, const fkl_rows *p, const fkl_rows *q,
                                        const fkl_problem *problem)
{
    int narrow = type == FKL_F16 || type == FKL_BF16;
    int taken = FKL_FLOAT_KERNELS && problem->length > FKL_SHORT && problem->normalize && is_direct(p, type) && is_direct(q, type) &&
                (op == FKL_KL || ((op == FKL_JS || op == FKL_JS_DISTANCE) && problem->parameter == 0.5));
    return narrow && !taken ? FKL_F32 : type;
}

/* Are these rows packed before anything is done with them? Short rows that lie next to each other are read across as
 * they are, and rows longer than a tile are packed group by group, a part at a time. */
static int wants_packing(const fkl_rows *rows, enum fkl_type type, ptrdiff_t length)
{
    const ptrdiff_t size = type_size((enum fkl_type)rows->type);
    if (length > FKL_TILE_LENGTH)
        return 0;
    if (length <= FKL_SHORT)
        return (enum fkl_type)rows->type != type || rows->swapped ||
               !(rows->row_stride == size || rows->item_stride == size);
    return !is_direct(rows, type);
}

/* Rows [first, first + count) as *taken: packed into the tile, or where they are. */
static const fkl_rows *take_rows(const fkl_rows *rows, int packs, ptrdiff_t first, ptrdiff_t count, ptrdiff_t length,
                                 enum fkl_type type, char *tile, fkl_rows *taken)
{
    *taken = *rows;
    taken->data += first * rows->row_stride;
    if (packs) {
        const int same = rows->row_stride == 0; /* one row against many */
        const fkl_rows packed = {tile, same ? 0 : fkl_packed_stride(length), type_size(type), type, 0};
        pack(taken, 0, same ? 1 : count, 0, length, type, tile, fkl_packed_stride(length));
        *taken = packed;
    }
    return taken;
}

/* How an operation is carried out on the rows of a block. */
struct plan {
    enum fkl_op op;
    const fkl_rows *p, *q;
    const fkl_problem *problem;
    double order;       /* the b of PASS_RENYI */
    int across;         /* rows are short: eight at a time, one per lane */
    enum fkl_type type; /* in which rows are read */
    int floats;         /* sums and terms are taken in float arithmetic */
    pass_runner *run;
    enum pass sums_pass, terms_pass;
    ptrdiff_t together; /* rows in a group */
    void *scratch;
    char *p_columns, *q_columns; /* short rows: their elements, see pack_columns() */
};

/* Rows that are worked on together, in groups, and what comes of them. */
struct batch {
    ptrdiff_t first;
    int groups, counts[GROUPS];
    double result[GROUPS][LANES];
    unsigned good[GROUPS]; /* a bit for each row whose result is vouched for */
};

static void open_groups(const struct plan *plan, const struct batch *batch, int from, int to, struct group g[GROUPS],
                        struct totals totals[GROUPS])
{
    const ptrdiff_t columns = LANES * type_size(plan->type) * plan->problem->length;
    for (int i = from; i < to; i++, g++, totals++) {
        start_group(g, plan->p, plan->q, batch->first + i * plan->together, batch->counts[i], plan->problem, plan->type,
                    plan->order, plan->scratch);
        if (plan->across) {
            g->p.tile = plan->p_columns + i * columns;
            g->q.tile = plan->q_columns + i * columns;
        } else if (batch->counts[i] < LANES) { /* lanes without a row must not hold rubbish */
            memset(totals, 0, sizeof *totals);
        }
    }
}

/* The results of groups [from, to) from their sums and then their terms. */
static void two_passes(const struct plan *plan, struct batch *batch, int from, int to)
{
    const ptrdiff_t length = plan->problem->length;
    const int exact = plan->sums_pass == PASS_SUMS_EXACT, groups = to - from;
    struct group g[GROUPS];
    struct totals sums[GROUPS], terms[GROUPS];

    open_groups(plan, batch, from, to, g, sums);
    if (from > 0 && plan->together * length * type_size(plan->type) <= AHEAD)
        g[0].ahead = 0; /* the group before has asked for this one */
    plan->run(plan->sums_pass, g, groups, 0, length, sums);
    for (int i = 0; i < groups; i++) {
        batch->good[from + i] = prepare(&g[i], &sums[i], exact, plan->floats ? SUM_LOW_FLOAT : SUM_LOW,
                                        plan->floats ? SUM_HIGH_FLOAT : SUM_HIGH);
        g[i].ahead = AHEAD;
        if (!plan->across && batch->counts[from + i] < LANES)
            memset(&terms[i], 0, sizeof terms[i]);
    }
    if (plan->op == FKL_WASSERSTEIN) {
        for (int i = 0; i < groups; i++)
            wasserstein(&g[i], batch->result[from + i]);
        return;
    }
    plan->run(plan->terms_pass, g, groups, 0, length, terms);
    for (int i = 0; i < groups; i++) {
        double *result = batch->result[from + i];
        unsigned *good = &batch->good[from + i];
        if (plan->op != FKL_RENYI) {
            *good &= finish(plan->op, plan->terms_pass, plan->floats, &g[i], &terms[i], &sums[i], 0, result);
            continue;
        }
        for (int j = 0; j < g[i].count; j++) {
            result[j] = *good >> j & 1 ? finish_renyi(&g[i], &terms[i], j) : 0.0;
            *good &= ~((unsigned)renyi_overflows(&g[i], &terms[i], j) << j);
        }
    }
}

/* Normalised KL in one pass. Several groups' sums are taken before their results: the divisions of one hide behind those
 * of the others. Where the difference that is the result would cancel, or the row sums are too far apart for it, the
 * group goes through two passes. */
static void one_pass(const struct plan *plan, struct batch *batch)
{
    struct group g[GROUPS];
    struct totals terms[GROUPS];
    open_groups(plan, batch, 0, batch->groups, g, terms);
    plan->run(PASS_KL, g, batch->groups, 0, plan->problem->length, terms);
    for (int i = 0; i < batch->groups; i++)
        batch->good[i] = finish_kl(&terms[i], plan->problem, plan->floats, batch->result[i]);
    for (int i = 0; i < batch->groups; i++) {
        const unsigned all = (1u << batch->counts[i]) - 1u, good = batch->good[i];
        double first[LANES];
        if (FKL_LIKELY((good & all) == all))
            continue;
        struct plan second = *plan;
        second.type = plan->type == FKL_F64 ? FKL_F64 : FKL_F32;
        second.run = runner(second.type, plan->across);
        second.floats = 0;
        memcpy(first, batch->result[i], sizeof first);
        two_passes(&second, batch, i, i + 1);
        for (int j = 0; j < batch->counts[i]; j++)
            if (good >> j & 1)
                batch->result[i][j] = first[j];
        batch->good[i] |= good;
    }
}

static void run_block(int operation, int row_type, const fkl_rows *p, const fkl_rows *q, ptrdiff_t n_rows,
                      const fkl_problem *problem, double *result, void *scratch)
{
    const ptrdiff_t length = problem->length;
    enum fkl_op op = (enum fkl_op)operation;

    if (op == FKL_RENYI && problem->parameter == 1.0)
        op = FKL_KL;
    /* The orders from 1/2 up are the well-conditioned ones: sum p^a q^(1-a) is sum q^(1-a) p^a, whose b is -a. */
    const double alpha = problem->parameter;
    const int turned = op == FKL_RENYI && alpha > 0.0 && alpha < 0.5;
    const double order = turned ? -alpha : isinf(alpha) ? 1.0 : alpha - 1.0;
    if (op == FKL_REVERSE_KL || turned) {
        const fkl_rows *other = p;
        p = q, q = other;
        op = turned ? FKL_RENYI : FKL_KL;
    }
    if (op == FKL_ENTROPY) {
        q = p;
        op = FKL_CROSS_ENTROPY;
    }
    if (length == 1 && problem->normalize) {
        for (ptrdiff_t i = 0; i < n_rows; i++)
            result[i] = careful(op, p, q, i, problem);
        return;
    }

    const int across = length <= FKL_SHORT, single = op == FKL_KL && problem->normalize;
    const int js = op == FKL_JS || op == FKL_JS_DISTANCE;
    /* Where c enters in first order, or times a large alpha, it must be known to twice the precision. */
    const int exact = op == FKL_TOTAL_VARIATION || op == FKL_RENYI || op == FKL_WASSERSTEIN;
    struct plan plan = {
        .op = op, .p = p, .q = q, .problem = problem, .order = order, .across = across, .scratch = scratch,
        .type = effective_type(op, (enum fkl_type)row_type, p, q, problem),
        .terms_pass = term_pass(op, problem, 0),
        .p_columns = scratch,
    };
    plan.q_columns = q == p ? plan.p_columns : plan.p_columns + FKL_PACKED_ROWS * 8 * length;
    plan.run = runner(plan.type, across);
    plan.floats = in_float(single ? PASS_KL : plan.terms_pass, plan.type);
    /* Of float rows, PASS_SUMS is good for terms in float alone. */
    plan.sums_pass = exact ? PASS_SUMS_EXACT : js && (plan.floats || plan.type == FKL_F64) ? PASS_SUMS : PASS_SUMS_MAX;
    /* Rows that are passed over twice go in groups that stay in the cache in between. */
    const ptrdiff_t fitting = 131072 / (length * type_size(plan.type));
    plan.together = across || fitting > LANES ? LANES : fitting < 1 ? 1 : fitting;

    fkl_rows p_packed, q_packed;
    char *p_tile = (char *)scratch + fkl_group_scratch(length);
    char *q_tile = p_tile + fkl_packed_rows(length) * fkl_packed_stride(length);
    const int packs_p = wants_packing(p, plan.type, length), packs_q = q != p && wants_packing(q, plan.type, length);
    const ptrdiff_t most = GROUPS * plan.together, packed_rows = fkl_packed_rows(length);
    const ptrdiff_t stretch = (packs_p || packs_q) && packed_rows < most ? packed_rows : most;

    for (ptrdiff_t first = 0; first < n_rows; first += stretch) {
        const ptrdiff_t n = n_rows - first < stretch ? n_rows - first : stretch;
        struct batch batch;
        batch.first = first;
        batch.groups = 0;
        if (packs_p || packs_q) {
            plan.p = take_rows(p, packs_p, first, n, length, plan.type, p_tile, &p_packed);
            plan.q = q == p ? plan.p : take_rows(q, packs_q, first, n, length, plan.type, q_tile, &q_packed);
            batch.first = 0;
        }
        if (across) {
            pack_columns(plan.p, batch.first, n, 0, length, plan.type, plan.p_columns);
            if (q != p)
                pack_columns(plan.q, batch.first, n, 0, length, plan.type, plan.q_columns);
        }
        for (ptrdiff_t at = 0; at < n; at += plan.together)
            batch.counts[batch.groups++] = (int)(n - at < plan.together ? n - at : plan.together);
        if (single) {
            one_pass(&plan, &batch);
        } else {
            for (int i = 0; i < batch.groups; i += across ? batch.groups : 1)
                two_passes(&plan, &batch, i, across ? batch.groups : i + 1);
        }
        for (int i = 0; i < batch.groups; i++) {
            const ptrdiff_t at = i * plan.together;
            double *to = result + first + at;
            if (FKL_LIKELY(batch.counts[i] == LANES && (batch.good[i] & 0xffu) == 0xffu)) {
                memcpy(to, batch.result[i], sizeof batch.result[i]);
                continue;
            }
            for (int j = 0; j < batch.counts[i]; j++)
                to[j] = batch.good[i] >> j & 1
                            ? batch.result[i][j]
                            : exact_row(op, plan.p, plan.q, batch.first + at + j, problem, order, scratch);
        }
    }
}
