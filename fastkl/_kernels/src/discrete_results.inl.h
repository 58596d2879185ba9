/* discrete_results.inl.h: from the sums of up to eight rows their results, and which of these are vouched for. */
#include "discrete_columns.inl.h"

/* Rows that differ by less than this part of themselves are so near to proportional that c must be known to more than
 * twice the precision; divergences are of its square. */
#define PROPORTIONAL 0x1p-54

/* The pass that sums an operation's terms once c is known. */
FKL_INLINE enum pass term_pass(enum fkl_op op, const fkl_problem *problem, int exact)
{
    switch (op) {
    case FKL_JEFFREYS:
        return PASS_JEFFREYS;
    case FKL_JS:
    case FKL_JS_DISTANCE:
        return problem->parameter == 0.5 && !exact ? PASS_JS_HALF : PASS_JS;
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
        const md fine = md_and(md_and(vd_le(vd_set(low), p), vd_le(p, vd_set(high))),
                               md_and(vd_le(vd_set(low), q), vd_le(q, vd_set(high))));
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

/* Do rows that sum to p and to q count as equally heavy, where the sums are known to `slack` of themselves? With
 * c = p/q = 1 + d, sum phi(p, m) + phi(c q, m) is what it is for c = 1, and d sum phi(q, m), to first order; what is of
 * second order must not tell beside the least result that finish_js_once() vouches for. Floats have one sum for both.
 * Of every term the second part makes 0.28 to 0.72 (q/p = 0 and the other end): with 1/2 in its place this bound leaves
 * less than a quarter of d, half an ulp. */
FKL_INLINE md js_alike(int floats, vd p, vd q, double slack)
{
    return vd_le(vd_abs(p - q), vd_set((floats ? 0x1p-22 : 0x1p-47) + slack) * vd_min(p, q));
}

/* A bit for each row of which the sums of PASS_SUMS do not say that finish_js_once() won't do: floats' are known better
 * here than there. */
static unsigned rows_alike(const struct totals *sums, int floats)
{
    const double slack = floats ? 0x1.1p-22 : 0.0; /* half of it for either sum, each of two roundings */
    unsigned alike = 0;
    for (int j = 0; j < LANES; j += VD)
        alike |= md_lanes(js_alike(floats, vd_load(&sums->sum[0][j]), vd_load(&sums->sum[1][j]), slack)) << j;
    return alike;
}

/* JS from the sums of PASS_JS_ONCE, where both rows weigh the same and the result is large against the error of m. */
static unsigned finish_js_once(enum fkl_op op, const struct totals *t, const fkl_problem *problem, int floats,
                               double *result)
{
    unsigned good = 0;
    const vd low = vd_set(floats ? SUM_LOW_FLOAT : SUM_LOW), high = vd_set(floats ? SUM_HIGH_FLOAT : SUM_HIGH);
    for (int j = 0; j < LANES; j += VD) {
        const vd half = vd_set(0.5);
        const vd sum = vd_load(&t->sum[0][j]), p = vd_load(&t->sum[1][j]), q = vd_load(&t->sum[2][j]);
        const vd second = floats ? half * sum : vd_load(&t->sum[3][j]), whole = floats ? sum : sum + second;
        const md fine = md_and(md_and(vd_le(low, p), vd_le(p, high)), js_alike(floats, p, q, 0.0));
        vd value = half * vd_madd((p - q) / vd_select(fine, q, vd_set(1.0)), second, whole) /
                   vd_select(fine, p, vd_set(1.0));
        good |= md_lanes(md_and(fine, vd_le(vd_set(floats ? 0x1p-20 : 0x1p-40), value))) << j;
        value = vd_min(value, vd_set(FKL_LN2)) / vd_set(problem->log_base);
        vd_store(result + j, op == FKL_JS_DISTANCE ? vd_sqrt(value) : value);
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
                const vd mass = problem->normalize ? one
                                                   : vd_max(vd_load(&sums->sum[0][j]), vd_load(&sums->sum[1][j]));
                value = vd_set(0.5) * value;
                fine = vd_le(vd_set(floats ? 0x1p-20 : 0x1p-40) * mass, value);
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
            fine = md_or(vd_le(vd_set(PROPORTIONAL), value), vd_eq(vd_load(&g->context.c_low[j]), zero));
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
    return exact || (!problem->normalize && pass != PASS_JS_HALF) ? 0xffu : good;
}

/* A divergence in nats, in the base asked for; of normalised rows it is >= 0, whatever rounding has left of a 0. */
FKL_INLINE double renyi_value(const fkl_problem *problem, double value)
{
    return (problem->normalize && !(value > 0.0) ? 0.0 : value + 0.0) / problem->log_base; /* + 0.0: no negative zero */
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

/* Is the row so near to proportional that c is to be known better still? */
FKL_INLINE int renyi_vanishes(const struct group *g, const struct totals *t, int lane)
{
    const double excess = fabs(t->sum[0][lane]), bound = PROPORTIONAL * PROPORTIONAL * g->context.p_sum[lane];
    return g->problem->normalize && g->problem->parameter > 0.0 && g->context.c_low[lane] != 0.0 && excess < bound;
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
