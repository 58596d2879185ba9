/* gaussian_full.inl.h: Gaussians with full covariances, compiled once per level.
 *
 * With Lp and Lq the Cholesky factors (lower, with a positive diagonal), E = Lp - Lq, N = Lq^-1 E, which is lower
 * triangular, and y = Lq^-1 (mp - mq), twice the divergence is
 *
 *     sum_i y_i^2 + sum_{i > j} N_ij^2 + sum_j (r_j^2 - 1 - log r_j^2),        r_j = Lp_jj / Lq_jj = 1 + N_jj,
 *
 * for I + N is the factor of the whitened covariance of p. All terms are >= 0 and no smaller than N_ij^2, so what
 * counts is the error of N relative to all of N. Of given factors E is a difference of given numbers, and this is all
 * there is to it. Of covariances there are two ways to N:
 *
 *     far     Both are factored, and N = Lq^-1 Lp - I. The factors' errors, some ulp of kappa, are errors of N next to
 *             I: good where the divergence is not small.
 *     near    With D = Sp - Sq, in exact differences, E solves D = Lq E' + E Lq' + E E', column by column like a
 *             Cholesky factorisation and at twice its cost, in which nothing but D is of the size of the result.
 *
 * Far comes first, as it also shows whether p is positive definite. Where it gives less than NEAR_LIMIT, near is done
 * as well, and counts. The eigenvalues of the whitened covariance are above 0.15 there, so near is well-conditioned.
 *
 * Components are measured in *units*, powers of two that bring q's standard deviations (of factors, the diagonal of Lq)
 * to [1, 2): that changes nothing but the range. From the inside out: terms of the diagonal (spread()), 8 pairs in the
 * lanes of vectors for up to FKL_LANES_MOST components (gaussian_full_lanes.inl.h), one pair at a time in panels of 8
 * rows for more (gaussian_full_panels.inl.h), pairs of a block (gaussian_full_block()).
 *
 * Bad pairs: a *poison* is added to the result, NaN where a pair is no pair of Gaussians, and infinity where p has no
 * width in some direction. The latter is seen where a pivot is 0 and its column is, too.
 */
#include "load.inl.h"
#include "pack.inl.h"
#include "vmath.h"

#include <float.h>

/* Twice the divergence below which its small parts count. */
#define NEAR_LIMIT 1.0

/* Is a diagonal's root in [1/limit, limit]? Beyond, a covariance is scaled before it is factored. */
#define ROOT_LIMIT 0x1p400

/* 1 over the power of two in positive x, at most 2^1022: it brings normal numbers to [1, 2). */
FKL_INLINE vd unit_of(vd x)
{
    vd power = vi_double(vd_bits(x) & vi_set(UINT64_C(0x7ff0000000000000)));
    return vd_set(1.0) / vd_max(power, vd_set(0x1p-1022));
}

FKL_INLINE md finite_lanes(vd x) { return vd_le(vd_abs(x), vd_set(DBL_MAX)); }

/* NaN in place of the poison where a pair is not good. */
FKL_INLINE vd poison_others(md good, vd poison) { return vd_select(good, poison, vd_set((double)NAN)); }

/* r^2 - 1 - log r^2 = x^2 + 2 (x - log r) for r = s/t = 1 + x, with t in [2^-60, 2] and `inverse` = 1/t; 8 ulp. s and t
 * are the given true_s and true_t times one power of two, which may have brought s out of range. Next to r = 1, x is
 * right to a few ulp, and r = 1 + x is kept as two numbers. */
FKL_INLINE vd spread(vd s, vd t, vd inverse, const double *true_s, const double *true_t)
{
    const vd least = vd_set(0x1p-450), most = vd_set(0x1p450);
    vd x = (s - t) * inverse, r, low;
    vd_two_sum(vd_set(1.0), x, &r, &low);
    md close = vd_le(vd_abs(x), vd_set(0.5));
    r = vd_select(close, r, s * inverse);
    low = vd_select(close, low, vd_set(0.0));
    vd phi = vd_max(vd_phi_pair(vd_set(1.0), r, low), vd_set(0.0));
    vd value = vd_madd(x, x, phi + phi);
    md inside = md_and(vd_le(least, s), vd_le(s, most));
    if (FKL_LIKELY(md_all(inside)))
        return value;
    double lanes[VD];
    for (int i = 0; i < VD; i++)
        lanes[i] = fkl_careful_spread(true_s[i], true_t[i]);
    return vd_select(inside, value, vd_load(lanes));
}

/* From twice the divergence to the result. A pair without flaw has no sum but one that is out of range. */
FKL_INLINE vd full_result(vd twice, vd poison)
{
    vd half = vd_select(vd_le(twice, vd_set(DBL_MAX)), vd_set(0.5) * twice, vd_set((double)INFINITY));
    return vd_select(vd_eq(poison, vd_set(0.0)), half, poison);
}

#include "gaussian_full_lanes.inl.h"
#include "gaussian_full_panels.inl.h"

static void gaussian_full_block(int operation, int row_type, const fkl_rows *operands, ptrdiff_t n_rows,
                                const fkl_problem *problem, double *result, void *scratch)
{
    (void)operation; /* there is one, */
    (void)row_type;  /* and all is done in double */
    if (problem->length > FKL_LANES_MOST)
        full_panels(operands, n_rows, problem, result, scratch);
    else if (problem->scale == FKL_CHOLESKY)
        full_lanes(FKL_CHOLESKY, operands, n_rows, problem, result, scratch);
    else
        full_lanes(FKL_COVARIANCE, operands, n_rows, problem, result, scratch);
}
