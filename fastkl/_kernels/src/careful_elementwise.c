/* careful_elementwise.c: single elements that the vector kernels leave alone: subnormal and huge numbers, infinities,
 * NaN. Compiled once, for every CPU.
 */
#include "careful.h"

/* log(x/y) for positive finite x and y. */
static double log_quotient(double x, double y)
{
    const struct split a = split(x), b = split(y);
    double scaled;
    const double k = vd_octaves(a.mantissa, b.mantissa, &scaled);
    return vd_log_at(k + (a.exponent - b.exponent), a.mantissa - scaled, a.mantissa + scaled);
}

/* x log(x/y) - x + y, likewise. */
static double phi(double x, double y)
{
    const struct split a = split(x), b = split(y);
    const int apart = a.exponent - b.exponent;
    if (-4 <= apart && apart <= 4) /* what cancels does so in the same units */
        return ldexp(vd_phi(ldexp(a.mantissa, apart), b.mantissa), b.exponent);
    const int top = apart > 0 ? a.exponent : b.exponent;
    const double rest = a.mantissa * (log_quotient(x, y) - 1.0);
    return ldexp(ldexp(rest, a.exponent - top) + ldexp(b.mantissa, b.exponent - top), top);
}

/* e^y (y - x): a tiny power times a large difference is not tiny, nor is a huge one times a small difference huge. */
static double log_term(double x, double y)
{
    if (!(fabs(y) <= 1e4) || !isfinite(x)) /* as the products are, over- and underflows and all */
        return exp(y) * (y - x);
    const double k = nearbyint(y * FKL_LOG2_E);
    double power;
    vd_exp_excess(vd_less_octaves(y, k), &power);
    const struct split apart = split(y - x);
    return ldexp(power * apart.mantissa, apart.exponent + (int)k);
}

double fkl_careful_element(int op, double x, double y)
{
    const int positive = x > 0.0 && y > 0.0, finite = isfinite(x) && isfinite(y);
    switch ((enum fkl_element_op)op) {
    case FKL_REL_ENTR:
    case FKL_KL_DIV:
        if (isnan(x) || isnan(y))
            return NAN;
        if (!positive)
            return x == 0.0 && y >= 0.0 ? (op == FKL_KL_DIV ? y : 0.0) : INFINITY;
        if (op == FKL_KL_DIV)
            return finite ? phi(x, y) : isinf(x) && isinf(y) ? NAN : INFINITY; /* the limit, where there is one */
        return finite ? x * log_quotient(x, y) : x > y ? INFINITY : x < y ? -INFINITY : NAN;
    case FKL_ENTR:
        if (isnan(x))
            return NAN;
        return x == 0.0 ? 0.0 : x < 0.0 || isinf(x) ? -INFINITY : -x * log_quotient(x, 1.0);
    case FKL_KL_TERM:
        if (y > 0.0 && isfinite(y))
            return y * (log_quotient(y, 1.0) - x);
        return (y == 0.0 ? 0.0 : y * log(y)) - y * x;
    default: /* FKL_KL_TERM_LOG */
        return log_term(x, y);
    }
}
