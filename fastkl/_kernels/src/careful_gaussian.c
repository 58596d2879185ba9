/* careful_gaussian.c: rows of the Gaussian family that the vector kernels leave alone, one element at a time.
 *
 * They hold numbers near the ends of the range, or something that is not a Gaussian at all: here a row is first judged,
 * and then every term is worked out from mantissas and exponents, so that nothing overflows or underflows but what the
 * result itself makes. Compiled once, for every CPU.
 */
#include "careful.h"

/* e^x for finite x, of which all beyond +-10^6 is as good as that. */
static struct split exponential(double x)
{
    x = x < -1e6 ? -1e6 : x > 1e6 ? 1e6 : x;
    const double k = nearbyint(x * FKL_LOG2_E);
    double value;
    vd_exp_excess(vd_less_octaves(x, k), &value);
    struct split y = split(value);
    y.exponent += (int)k;
    return y;
}

/* f^2 m 2^e, m in [1/4, 4): what leaves the range is the result. */
static double squared_times(struct split f, double m, int e)
{
    return ldexp(f.mantissa * f.mantissa * m, 2 * f.exponent + e);
}

/* a - b as a split number: the halves' difference where theirs overflows. */
static struct split difference(double a, double b)
{
    double d = a - b;
    if (!isinf(d))
        return split(d);
    struct split half = split(0.5 * a - 0.5 * b);
    half.exponent++;
    return half;
}

/* 2^shift (r - 1 - log r) for r = p/q, or r = (p/q)^2 where `squared`; p, q > 0. */
static double ratio_term(double p, double q, int squared, int shift)
{
    struct split x = split(p), y = split(q);
    const int k = x.exponent - y.exponent;
    if (-4 <= k && k <= 4) { /* what cancels does so in the same units */
        double a = ldexp(x.mantissa, k), b = y.mantissa, phi = vd_phi(b, a) / b, apart = (a - b) / b;
        return ldexp(squared ? apart * apart + 2.0 * phi : phi, shift);
    }
    const double ratio = x.mantissa / y.mantissa;
    const double logarithm = k * FKL_LN2 + vd_log_ratio(x.mantissa, y.mantissa, 0.0);
    if (squared)
        return ldexp(ratio * ratio, 2 * k + shift) - ldexp(1.0 + 2.0 * logarithm, shift);
    return ldexp(ratio, k + shift) - ldexp(1.0 + logarithm, shift);
}

/* 2^shift (e^x - 1 - x) for x = a - b. */
static double excess(double a, double b, int shift)
{
    double value, x, low;
    vd_two_sum(a, -b, &x, &low); /* e^x makes much of an error of x */
    if (-700.0 <= x && x <= 700.0) {
        const double at_x = vd_exp_excess(x, &value);
        return ldexp(at_x + (value - 1.0) * low, shift);
    }
    if (x > 1e6)
        return INFINITY;
    struct split y = exponential(x);
    if (x > -1e6) /* below, low may be NaN, and e^x is 0 */
        y.mantissa += y.mantissa * low;
    return (ldexp(y.mantissa, y.exponent + shift) - ldexp(1.0, shift)) - (ldexp(a, shift) - ldexp(b, shift));
}

enum verdict { FINE, POINT, BAD }; /* POINT: p has no width */

static enum verdict judge(enum fkl_scale scale, double m, double s, int is_prior)
{
    if (!isfinite(m) || isnan(s) || s == INFINITY || (scale != FKL_LOGVAR && s < 0.0))
        return BAD;
    if (s == (scale == FKL_LOGVAR ? -INFINITY : 0.0))
        return is_prior ? BAD : POINT;
    return FINE;
}

/* Twice the divergence of one element's Gaussians, times 2^shift. */
static double term(enum fkl_scale scale, double m, double s, double mq, double sq, int shift)
{
    const struct split d = difference(m, mq);
    if (scale == FKL_LOGVAR) {
        struct split y = exponential(-sq);
        return squared_times(d, y.mantissa, y.exponent + shift) + excess(s, sq, shift);
    }
    struct split y = split(sq);
    if (scale == FKL_VAR)
        return squared_times(d, 1.0 / y.mantissa, shift - y.exponent) + ratio_term(s, sq, 0, shift);
    return squared_times(d, 1.0 / (y.mantissa * y.mantissa), shift - 2 * y.exponent) + ratio_term(s, sq, 1, shift);
}

/* The sum of the terms times 2^shift; NAN for what is no pair of Gaussians. */
static double sum_terms(const fkl_rows *operands, const fkl_problem *problem, int shift)
{
    const enum fkl_scale scale = (enum fkl_scale)problem->scale;
    struct pair sum = {0.0, 0.0};
    int points = 0;
    for (ptrdiff_t j = 0; j < problem->length; j++) {
        double x[FKL_MOST_OPERANDS] = {0.0, 0.0, 0.0, scale == FKL_LOGVAR ? 0.0 : 1.0};
        for (int k = 0; k < problem->operands; k++)
            x[k] = get(&operands[k], j);
        const enum verdict p = judge(scale, x[0], x[1], 0), q = judge(scale, x[2], x[3], 1);
        if (p == BAD || q == BAD)
            return NAN;
        points |= p == POINT;
        if (!points)
            add(&sum, term(scale, x[0], x[1], x[2], x[3], shift));
    }
    return points || isinf(sum.high) ? INFINITY : sum.high + sum.low;
}

double fkl_careful_gaussian_row(const fkl_rows *operands, const fkl_problem *problem)
{
    const double sum = sum_terms(operands, problem, 0);
    return isinf(sum) ? 2.0 * sum_terms(operands, problem, -2) : 0.5 * sum; /* half of it may be in range */
}

double fkl_careful_spread(double s, double t) { return ratio_term(s, t, 1, 0); }
