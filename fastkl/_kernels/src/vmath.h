/* vmath.h: the mathematics of the kernels, one vector at a time.
 *
 * Everything rests on one decomposition. For positive normal p and q let k = round(log2(p/q)), q' = q 2^k and
 * s = (p - q') / (p + q'). Then p - q' is exact (Sterbenz: q'/2 <= p <= 2 q'), |s| <= 1/5, and
 *
 *     log(p/q) = k log 2 + 2 atanh(s) = k log 2 + s (2 + t),        t = (2/3) s^2 + (2/5) s^4 + ...
 *
 * with one division and no logarithm. k comes from the difference of the bit patterns, in which exponent and mantissa
 * stand next to each other: log2 of the mantissa is taken for linear, an error of at most 0.086, so p/q' lies in
 * [2/3, 3/2] instead of [1/sqrt 2, sqrt 2].
 *
 * The deviance term phi(p, q) = p log(p/q) - p + q >= 0 is what all divergences are summed from, because a sum of
 * terms >= 0 has condition number 1. In the quantities above
 *
 *     phi(p, q) = s (p - q' + p t) + (p k log 2 + q - q'),
 *
 * where the second bracket is exactly 0 for k = 0: the relative error stays at a few ulp however close p and q are.
 *
 * Errors are stated in ulp of the result, as measured by tests/test_vmath.py, which holds the functions to them.
 */
#ifndef FASTKL_VMATH_H
#define FASTKL_VMATH_H

#include "simd.h"

#define FKL_LN2 0.693147180559945309417232121458
#define FKL_LN2_LOW 2.3190468138462995584e-17 /* log 2 - (double)log 2 */
/* log 2 as its first bits, so few (32, or 15 of a float) that their product with an exponent is exact, and the rest. */
#define FKL_LN2_HEAD 6.93147180369123816490e-1
#define FKL_LN2_TAIL 1.90821492927058770002e-10
#define FKL_LN2_HEAD_FLOAT 0x1.62e4p-1f
#define FKL_LN2_TAIL_FLOAT 0x1.7f7d1cp-20f
#define FKL_LOG2_E 1.4426950408889634074
#define FKL_LOG2_E_LOW 2.0355273740931033e-17 /* log2 e - (double)log2 e */

/* c = t/s^2, where t = 2 atanh(s)/s - 2, from s^2 <= 0.0401; minimax for phi, whose relative error is that of t over
 * 2 s (next to the seam of the octaves, up to 2.5 times that): 1.9e-16. */
FKL_INLINE vd vd_atanh_tail(vd s2)
{
    vd c = vd_set(0x1.3952db0822551p-3);
    c = vd_madd(c, s2, vd_set(0x1.3888654fb9eebp-3));
    c = vd_madd(c, s2, vd_set(0x1.7471ca2f4b614p-3));
    c = vd_madd(c, s2, vd_set(0x1.c71c17fcb40d6p-3));
    c = vd_madd(c, s2, vd_set(0x1.249249885cd2cp-2));
    c = vd_madd(c, s2, vd_set(0x1.9999999937e0fp-2));
    return vd_madd(c, s2, vd_set(0x1.5555555555633p-1));
}

/* k = round(log2(p/q)) in units of 1/FKL_OCTAVE, and *scaled = q 2^k, for positive normal p and q. AVX-512 converts
 * integers of 64 bits, and so k where it stands, in the exponent's place. */
#if VD == 8
#define FKL_OCTAVE 0x1p52
#else
#define FKL_OCTAVE 1.0
#endif
FKL_INLINE vd vd_octaves(vd p, vd q, vd *scaled)
{
#if VD == 8
    const vi difference = vd_bits(p) - vd_bits(q) + vi_set(UINT64_C(1) << 51);
    const vi octaves = difference & vi_set(UINT64_C(0xfff) << 52);
    *scaled = vi_double(vd_bits(q) + octaves);
    return (vd)_mm512_cvtepi64_pd((__m512i)octaves);
#else
    /* AVX2 has no arithmetic shift: k + 2048 is shifted, into the mantissa of 2^52. The 2048 turns the sign of q 2^k,
     * which costs nothing to turn back: sums and differences change places. */
    vi difference = vd_bits(p) - vd_bits(q) + vi_set(UINT64_C(0x8008) << 48);
    *scaled = -vi_double(vd_bits(q) + (difference & vi_set(UINT64_C(0xfff) << 52)));
    vi biased = difference >> 52;
    return vi_double(biased | vi_set(UINT64_C(0x4330000000000000))) - vd_set(4503599627372544.0);
#endif
}

/* (p + low) k log 2 + difference. Next to the seam of the octaves this is a small difference, and phi hardly larger:
 * there the last bits of log 2, and what low makes of them, count. */
FKL_INLINE vd vd_far(vd p, vd k, vd difference)
{
    vd kp = k * p;
    return vd_madd(kp, vd_set(FKL_LN2_LOW / FKL_OCTAVE), vd_fma(kp, vd_set(FKL_LN2 / FKL_OCTAVE), difference));
}
FKL_INLINE vd vd_far_shifted(vd p, vd low, vd k, vd difference)
{
    vd octaves = k * vd_set(FKL_LN2 / FKL_OCTAVE);
    low = vd_madd(p, vd_set(FKL_LN2_LOW / FKL_LN2), low);
    return vd_madd(low, octaves, vd_fma(p, octaves, difference));
}

/* A term base + w c(s^2): what phi is once its division is done. base >= 0 is within 10 % of it. A loop begins the
 * next terms before it ends these: the chain of operations from an element to its term is longer than a processor sees
 * ahead. In between they stay in registers: beside multiplications, Zen 5 takes as long for storing 64 bytes as for
 * three of them. */
struct vd_begun {
    vd s2, w, base;
};

/* s (n + p t) + far, with t = s^2 c(s^2). */
FKL_INLINE struct vd_begun vd_begin_at(vd s, vd p, vd n, vd far)
{
    vd s2 = s * s;
    return (struct vd_begun){s2, s * p * s2, vd_fma(s, n, far)};
}

FKL_INLINE vd vd_end(struct vd_begun x) { return vd_madd(x.w, vd_atanh_tail(x.s2), x.base); }

FKL_INLINE struct vd_begun vd_begin_phi(vd p, vd q)
{
    vd q2, k = vd_octaves(p, q, &q2);
    vd n = p - q2;
    return vd_begin_at(n / (p + q2), p, n, vd_far(p, k, q - q2));
}

/* phi(p, m), and phi(p + low, m) with |low| <= ulp(p)/2, to be added to the other half of a Jensen-Shannon term,
 * phi(2 m - p, m): their sum is too large for the last bits of log 2 to tell. */
FKL_INLINE struct vd_begun vd_begin_half(vd p, vd m)
{
    vd p_m, k = vd_octaves(p, m, &p_m), n = p - p_m;
    return vd_begin_at(n / (p + p_m), p, n, vd_fma(k * p, vd_set(FKL_LN2 / FKL_OCTAVE), m - p_m));
}
FKL_INLINE struct vd_begun vd_begin_half_shifted(vd p, vd low, vd m)
{
    vd p_m, k = vd_octaves(p, m, &p_m), n = (p - p_m) + low, octaves = k * vd_set(FKL_LN2 / FKL_OCTAVE);
    return vd_begin_at(n / (p + p_m), p, n, vd_madd(low, octaves, vd_fma(p, octaves, m - p_m)));
}

/* phi(p, q) for p and q in [2^-1021, 2^960]; 4.5 ulp. Next to the seam of the octaves (p = 1.5 q) the two brackets have
 * opposite signs, and both must be right to more than the result is. */
FKL_INLINE vd vd_phi(vd p, vd q) { return vd_end(vd_begin_phi(p, q)); }

/* phi(p, q)/p and 1/p with one division for the two, for p and q in [2^-450, 2^450]; 7 ulp. */
FKL_INLINE struct vd_begun vd_begin_phi_over(vd p, vd q, vd *inverse)
{
    vd q2, k = vd_octaves(p, q, &q2);
    vd n = p - q2, sum = p + q2, both = vd_set(1.0) / (p * sum);
    *inverse = sum * both;
    vd s = n * (p * both), s2 = s * s;
    return (struct vd_begun){s2, s * s2, vd_fma(s, n, vd_far(p, k, q - q2)) * *inverse};
}
FKL_INLINE vd vd_phi_over(vd p, vd q, vd *inverse) { return vd_end(vd_begin_phi_over(p, q, inverse)); }

/* Half of a normal number, exactly, without the multiplier. */
FKL_INLINE vd vd_half(vd x) { return vi_double(vd_bits(x) - vi_set(UINT64_C(1) << 52)); }

/* 2^k for |k| <= 1, 0 for all other k of vd_octaves(): what the low half of an unevaluated sum q + low is multiplied by
 * when q is multiplied by 2^k. Beyond one octave the low half, at most 2^-53 q, no longer matters in phi. */
FKL_INLINE vd vd_power_near(vd k)
{
    md one = vd_eq(k, vd_set(FKL_OCTAVE)), minus = vd_eq(k, vd_set(-FKL_OCTAVE)), zero = vd_eq(k, vd_set(0.0));
    vd w = vd_select(zero, vd_set(1.0), vd_set(0.0));
    return vd_select(one, vd_set(2.0), vd_select(minus, vd_set(0.5), w));
}

/* 2^k for |k| <= 1022, from normal q and q2 = q 2^k. */
FKL_INLINE vd vd_power(vd q, vd q2) { return vi_double((vd_bits(q2) - vd_bits(q)) + vi_set(UINT64_C(1023) << 52)); }

/* w p + v (q + q_low) as the nearest double and, in *low, what its rounding has lost. */
FKL_INLINE vd vd_mean(vd w, vd p, vd v, vd q, vd q_low, vd *low)
{
    vd wp, vq, mean, wp_low, vq_low;
    vd_two_product(w, p, &wp, &wp_low);
    vd_two_product(v, q, &vq, &vq_low);
    vd_two_sum(wp, vq, &mean, low);
    *low += vd_madd(v, q_low, wp_low + vq_low);
    return mean;
}

/* phi(p + p_low, q + q_low), lows of at most half an ulp, where the difference of the two sums is known better than
 * they are: n0 stands for it wherever k = 0. This is how a row keeps its last bits when p is a rounded product, or q a
 * rounded mean. */
FKL_INLINE vd vd_phi_near(vd p, vd p_low, vd q, vd q_low, vd n0)
{
    vd q2, k = vd_octaves(p, q, &q2);
    vd q_low2 = q_low * vd_power_near(k);
    vd n = vd_select(vd_eq(k, vd_set(0.0)), n0, (p - q2) + (p_low - q_low2));
    return vd_end(vd_begin_at(n / (p + q2), p, n, vd_far_shifted(p, p_low, k, q - q2) + (q_low - q_low2)));
}

/* phi(p, q + low) for an unevaluated sum with |low| <= ulp(q)/2 and p/q in [2^-1000, 2^1000]; the error of vd_phi, of
 * the exact value for the pair. The rounding of n counts twice, in n and in s: n_low is what it has lost. */
FKL_INLINE struct vd_begun vd_begin_phi_pair(vd p, vd q, vd low)
{
    vd q2, k = vd_octaves(p, q, &q2);
    vd low2 = low * vd_power(q, q2), apart = p - q2;
    vd n = apart - low2, n_low = (apart - n) - low2, s = n / (p + q2);
    /* q - q2 is exact, and the small difference that vd_far() is has room for what low makes of it. */
    vd far = vd_far(p, k, q - q2) + (low - low2);
    return vd_begin_at(s, p, n, vd_madd(s, n_low + n_low, far));
}
FKL_INLINE vd vd_phi_pair(vd p, vd q, vd low) { return vd_end(vd_begin_phi_pair(p, q, low)); }

/* k log 2 + 2 atanh(n/sum), k as vd_octaves() gives it. */
FKL_INLINE vd vd_log_at(vd k, vd n, vd sum)
{
    vd s = n / sum;
    vd s2 = s * s;
    vd near = vd_madd(s * s2, vd_atanh_tail(s2), vd_madd(k, vd_set(FKL_LN2_LOW / FKL_OCTAVE), s + s));
    return vd_fma(k, vd_set(FKL_LN2 / FKL_OCTAVE), near);
}

/* log(p / (q + low)) for p >= 2^-1021 and normal q; 3 ulp. */
FKL_INLINE vd vd_log_ratio(vd p, vd q, vd low)
{
    vd q2, k = vd_octaves(p, q, &q2);
    return vd_log_at(k, (p - q2) - low * vd_power_near(k), p + q2);
}

/* log(p/q), likewise; 3 ulp. */
FKL_INLINE vd vd_log_quotient(vd p, vd q)
{
    vd q2, k = vd_octaves(p, q, &q2);
    return vd_log_at(k, p - q2, p + q2);
}

/* log(1 + x) for x > -1 with 1 + x normal; 3 ulp. */
FKL_INLINE vd vd_log1p(vd x)
{
    vd sum, low;
    vd_two_sum(vd_set(1.0), x, &sum, &low);
    vd one2, k = vd_octaves(sum, vd_set(1.0), &one2);
    return vd_log_at(k, vd_select(vd_eq(k, vd_set(0.0)), x, (sum - one2) + low), sum + one2);
}

/* x - log(1 + x) >= 0 for x > -1 with 1 + x normal, as phi(1, 1 + x); 4.5 ulp. */
FKL_INLINE vd vd_less_log1p(vd x)
{
    vd sum, low;
    vd_two_sum(vd_set(1.0), x, &sum, &low);
    return vd_max(vd_phi_pair(vd_set(1.0), sum, low), vd_set(0.0));
}

/* x - k log 2 for whole numbers |k| < 2^21, to two roundings; x itself for k = 0. */
FKL_INLINE vd vd_less_octaves(vd x, vd k)
{
    return vd_madd(k, vd_set(-FKL_LN2_TAIL), vd_fma(k, vd_set(-FKL_LN2_HEAD), x));
}

/* Added to a number that is small against it, this leaves the nearest integer k in the low bits, so that shifted up by
 * 52 these are the bits of 2^k; for floats, up by 23. */
#define FKL_MAGIC (6755399441055744.0 + 1023.0)
#define FKL_MAGIC_FLOAT (12582912.0f + 127.0f)

/* (e^r - 1 - r)/r^2; absolute error 2.5e-18 for |r| <= 0.347, and 1.4e-17 up to 0.36. Evaluated in pairs (Estrin), for
 * a loop waits for it, but for the last step, in which two roundings would tell. */
FKL_INLINE vd vd_excess_tail(vd r)
{
    const vd r2 = r * r, r4 = r2 * r2;
    vd a = vd_madd(vd_set(0x1.5555555555558p-5), r, vd_set(0x1.5555555555557p-3));
    vd b = vd_madd(vd_set(0x1.6c16c16c151bep-10), r, vd_set(0x1.11111111100b6p-7));
    vd c = vd_madd(vd_set(0x1.a01a01ad11c33p-16), r, vd_set(0x1.a01a01abfcacdp-13));
    vd d = vd_madd(vd_set(0x1.27e4cc969b5bap-22), r, vd_set(0x1.71de01f0202f7p-19));
    vd e = vd_madd(vd_set(0x1.1f8ba9a5630f0p-29), r, vd_set(0x1.af4e71797f15cp-26));
    vd high = vd_madd(e, r4, vd_madd(d, r2, c)), low = vd_madd(b, r2, a);
    return vd_madd(vd_madd(high, r4, low), r, vd_set(0.5));
}

/* 2^k e^r, given 2^k; 1.5 ulp. */
FKL_INLINE vd vd_exp_at(vd power, vd r) { return vd_madd(power, r + (r * r) * vd_excess_tail(r), power); }

/* E(x) and e^x at x = k log 2 + r, given 2^k, to what vd_exp_excess() states: E(x) = 2^k E(r) + (2^k - 1) r + (2^k - 1
 * - k log 2), of which the last two are exactly 0 for k = 0. */
FKL_INLINE vd vd_excess_at(vd k, vd power, vd r, vd *exponential)
{
    vd excess = (r * r) * vd_excess_tail(r), apart = power - vd_set(1.0);
    *exponential = vd_madd(power, r + excess, power);
    return vd_madd(power, excess, vd_madd(apart, r, vd_less_octaves(apart, k)));
}

/* E(x) = e^x - 1 - x and *exponential = e^x, for |x| <= 700 (x beyond is taken for the bound); e^x to 1.5 ulp, E to
 * 5 ulp (next to the ends of the first interval, |x| = 0.35; 3 ulp inside). */
FKL_INLINE vd vd_exp_excess(vd x, vd *exponential)
{
    x = vd_max(vd_set(-700.0), vd_min(vd_set(700.0), x)); /* NaN stays NaN */
    vd shifted = vd_madd(x, vd_set(FKL_LOG2_E), vd_set(FKL_MAGIC)), k = shifted - vd_set(FKL_MAGIC);
    return vd_excess_at(k, vi_double(vd_bits(shifted) << 52), vd_less_octaves(x, k), exponential);
}

#if FKL_FLOAT_KERNELS
/* The float versions: the same formulae, a shorter polynomial: relative error of phi 3.1e-8. */
FKL_INLINE vf vf_atanh_tail(vf s2)
{
    vf c = vf_set(0x1.3610fep-2f);
    c = vf_madd(c, s2, vf_set(0x1.9938ecp-2f));
    return vf_madd(c, s2, vf_set(0x1.555598p-1f));
}

/* k in units of 1/FKL_OCTAVE_FLOAT. */
#define FKL_OCTAVE_FLOAT 0x1p23
FKL_INLINE vf vf_octaves(vf p, vf q, vf *scaled)
{
    typedef int32_t vs __attribute__((vector_size(8 * VD)));
    const vw difference = vf_bits(p) - vf_bits(q) + vw_set(UINT32_C(1) << 22);
    const vw octaves = difference & vw_set(UINT32_C(0x1ff) << 23);
    *scaled = vw_float(vf_bits(q) + octaves);
    return __builtin_convertvector((vs)octaves, vf);
}

/* A term s (n + p t) + far, s = n/sum. */
struct vf_begun {
    vf s, p, n, sum, far;
};

/* What s has lost, times the sum, is `lost`: it would tell next to the seam of the octaves, where the term may be less
 * than half of s n. */
FKL_INLINE vf vf_end(struct vf_begun x)
{
    const vf s2 = x.s * x.s, lost = vf_fma(-x.s, x.sum, x.n);
    return vf_fma(x.s, x.n + vf_madd(x.p * s2, vf_atanh_tail(s2), lost), x.far);
}

FKL_INLINE struct vf_begun vf_begin_phi(vf p, vf q)
{
    vf q2, k = vf_octaves(p, q, &q2);
    vf n = p - q2, sum = p + q2;
    return (struct vf_begun){n / sum, p, n, sum, vf_fma(p, k * vf_set((float)(FKL_LN2 / FKL_OCTAVE_FLOAT)), q - q2)};
}

FKL_INLINE struct vf_begun vf_begin_phi_shifted(vf p, vf q, vf low)
{
    vf q2, k = vf_octaves(p, q, &q2), octaves = k * vf_set((float)(FKL_LN2 / FKL_OCTAVE_FLOAT));
    vf n = (p - q2) + low, sum = p + q2;
    return (struct vf_begun){n / sum, p, n, sum, vf_madd(low, octaves, vf_fma(p, octaves, q - q2))};
}

/* phi(p, q) for floats in [2^-125, 2^118]; 3.5 ulp of float. */
FKL_INLINE vf vf_phi(vf p, vf q) { return vf_end(vf_begin_phi(p, q)); }

/* x - k log 2 for whole numbers |k| < 2^9. */
FKL_INLINE vf vf_less_octaves(vf x, vf k)
{
    return vf_madd(k, vf_set(-FKL_LN2_TAIL_FLOAT), vf_fma(k, vf_set(-FKL_LN2_HEAD_FLOAT), x));
}

/* (e^r - 1 - r)/r^2 for |r| <= 0.347. */
FKL_INLINE vf vf_excess_tail(vf r)
{
    vf c = vf_set(0x1.a0f992p-13f);
    c = vf_madd(c, r, vf_set(0x1.6d1254p-10f));
    c = vf_madd(c, r, vf_set(0x1.1110f6p-7f));
    c = vf_madd(c, r, vf_set(0x1.555518p-5f));
    c = vf_madd(c, r, vf_set(0x1.555556p-3f));
    return vf_madd(c, r, vf_set(0.5f));
}

/* x = k log 2 + r for a whole k, and *power = 2^k. */
FKL_INLINE vf vf_reduce(vf x, vf *k, vf *power)
{
    const vf magic = vf_set(0x1.8p23f);
    vf shifted = vf_madd(x, vf_set((float)FKL_LOG2_E), magic);
    *k = shifted - magic;
    *power = vw_float((vf_bits(shifted) << 23) + vw_set(UINT32_C(127) << 23));
    return vf_less_octaves(x, *k);
}

/* E(x) = e^x - 1 - x for |x| <= 80; 3 ulp of float. With x = k log 2 + r it is 2^k E(r) + (2^k - 1) r + (2^k - 1 - k
 * log 2), terms of which the last two are exactly 0 for k = 0. */
FKL_INLINE vf vf_excess(vf x)
{
    vf k, power, r = vf_reduce(x, &k, &power);
    vf apart = power - vf_set(1.0f);
    return vf_madd(power, (r * r) * vf_excess_tail(r), vf_madd(apart, r, vf_less_octaves(apart, k)));
}

/* e^x for |x| <= 80; 1.5 ulp of float. */
FKL_INLINE vf vf_exp(vf x)
{
    vf k, power, r = vf_reduce(x, &k, &power);
    return vf_madd(power, vf_madd(r * r, vf_excess_tail(r), r), power);
}

/* 2^f for |f| <= 0.502; 3 ulp of float just below f = 0, where an ulp is least, 2 above. */
FKL_INLINE vf vf_exp2_fraction(vf f)
{
    vf c = vf_set(0x1.5c05d6p-10f);
    c = vf_madd(c, f, vf_set(0x1.3d102ap-7f));
    c = vf_madd(c, f, vf_set(0x1.c6b6cp-5f));
    c = vf_madd(c, f, vf_set(0x1.ebf8f8p-3f));
    c = vf_madd(c, f, vf_set(0x1.62e42cp-1f));
    return vf_madd(c, f, vf_set(0x1.000002p+0f));
}

/* E(x)/log 2 at x = (k + f) log 2, given 2^k, for |f| <= 0.502: 2^k E(f) + (2^k - 1) f + ((2^k - 1)/log 2 - k) in these
 * units, for |k| <= 115; 6.5 ulp of float (around f = -0.45 for k = 1; 4.5 ulp for k = 0, less for other k). */
FKL_INLINE vf vf_excess2_at(vf k, vf power, vf f)
{
    vf c = vf_set(0x1.d275fep-13f);
    c = vf_madd(c, f, vf_set(0x1.fa15cap-10f));
    c = vf_madd(c, f, vf_set(0x1.c6b116p-7f));
    c = vf_madd(c, f, vf_set(0x1.47fccap-4f));
    c = vf_madd(c, f, vf_set(0x1.62e43p-2f));
    vf apart = power - vf_set(1.0f), constant = vf_madd(apart, vf_set(0x1.715476p+0f), -k);
    return vf_madd(power, (f * f) * c, vf_madd(apart, f, constant));
}

FKL_INLINE vf vf_half(vf x) { return vw_float(vf_bits(x) - vw_set(UINT32_C(1) << 23)); }
#endif

#endif
