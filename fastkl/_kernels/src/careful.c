/* careful.c: one row by scalar arithmetic, every element with an exponent of its own.
 *
 * The vector kernels hand over a row when it holds something they don't look after: a subnormal number, a negative
 * zero, sums beyond their range, p and q so nearly proportional that p - c q is lost in the rounding of c. Here such a
 * row is first judged (NaN, a negative number or an infinity make the result NaN) and then worked out with p and q
 * scaled by powers of two, with logarithms taken of the mantissas, and with exact differences. Nothing of the row's
 * size is stored: every pass reads the row again. Speed doesn't matter here, the last bit does. Compiled once, for
 * every CPU.
 */
#include "careful.h"

#define ROOM 512

static struct pair divide(struct pair a, struct pair b)
{
    struct pair c;
    c.high = a.high / b.high;
    double remainder = fma(-c.high, b.high, a.high);
    c.low = (remainder + (a.low - c.high * b.low)) / b.high;
    return c;
}

/* p and c q as split numbers: p_z 2^p_e, and c q = (q_z + q_low) 2^q_e. Where `exact`, n is p - c q to the last bits,
 * in units of 2^unit(). */
struct terms {
    double p_z, q_z, q_low;
    int p_e, q_e;
    double n;
    int exact;
};

/* The larger of the two exponents. */
static int unit(const struct terms *x)
{
    return x->p_z == 0.0 || (x->q_z != 0.0 && x->q_e > x->p_e) ? x->q_e : x->p_e;
}

/* A sum without any rounding: parts that don't overlap, from the smallest to the largest. */
#define PARTS_MOST 64
struct expansion {
    double part[PARTS_MOST + 1];
    int count;
};

/* The same in the fewest parts, each of 53 bits: the range of a double's exponents holds no more than 41. */
static void compress(struct expansion *sum)
{
    double parts[PARTS_MOST + 1], top = 0.0;
    int count = 0;
    for (int i = sum->count - 1; i >= 0; i--) {
        double error;
        vd_two_sum(top, sum->part[i], &top, &error);
        if (error != 0.0) {
            parts[count++] = top;
            top = error;
        }
    }
    sum->count = 0;
    if (top != 0.0)
        sum->part[sum->count++] = top;
    while (count > 0)
        sum->part[sum->count++] = parts[--count];
}

static void grow(struct expansion *sum, double x)
{
    int count = 0;
    for (int i = 0; i < sum->count; i++) {
        double error;
        vd_two_sum(x, sum->part[i], &x, &error);
        if (error != 0.0)
            sum->part[count++] = error;
    }
    sum->part[count++] = x;
    sum->count = count;
    if (count > PARTS_MOST)
        compress(sum);
}

static void add_products(struct expansion *sum, double x, const struct expansion *y)
{
    for (int i = 0; i < y->count; i++) {
        double product, error;
        vd_two_product(x, y->part[i], &product, &error);
        grow(sum, error);
        grow(sum, product);
    }
}

static double rounded(const struct expansion *sum)
{
    double total = 0.0;
    for (int i = 0; i < sum->count; i++)
        total += sum->part[i];
    return total;
}

/* The sum to twice the precision. */
static struct pair as_pair(const struct expansion *sum)
{
    struct expansion rest = *sum;
    const double high = rounded(sum);
    grow(&rest, -high);
    return (struct pair){high, rounded(&rest)};
}

/* p - c q, c = sum(p)/sum(q), as (p sum(q) - q sum(p)) / sum(q): where the rows are proportional but for their last
 * bits, or but for tiny elements, no c of so many digits is exact enough. */
static double exact_difference(const struct terms *x, double q_z, const struct expansion *p_sum,
                               const struct expansion *q_sum)
{
    struct expansion difference = {{0.0}, 0};
    add_products(&difference, ldexp(x->p_z, x->p_e - unit(x)), q_sum);
    add_products(&difference, -ldexp(q_z, x->q_e - unit(x)), p_sum);
    return rounded(&difference) / rounded(q_sum);
}

/* log(p / c q) for p, q > 0, with k, s and t of vmath.h and the octave of c q next to p's mantissa. */
struct ratio {
    double k, s, t, n, q2;
};

static struct ratio ratio(const struct terms *x)
{
    struct ratio r;
    double octaves = vd_octaves(x->p_z, x->q_z, &r.q2);
    r.n = (x->p_z - r.q2) - x->q_low * exp2(octaves);
    r.k = octaves + (double)(x->p_e - x->q_e);
    if (x->exact && r.k == 0.0)
        r.n = ldexp(x->n, unit(x) - x->p_e);
    r.s = r.n / (x->p_z + r.q2);
    const double s2 = r.s * r.s;
    r.t = vd_atanh_tail(s2) * s2;
    return r;
}

static double log_of(const struct ratio *r)
{
    return fma(r->k, FKL_LN2, fma(r->s, r->t, fma(r->k, FKL_LN2_LOW, 2.0 * r->s)));
}

static double phi(const struct terms *x)
{
    if (x->p_z == 0.0)
        return ldexp(x->q_z, x->q_e);
    if (x->q_z == 0.0)
        return INFINITY;
    struct ratio r = ratio(x);
    const double near = fma(x->p_z, r.t, r.n);
    if (fabs(r.k) <= 2.0) { /* p and c q in the same units, so that what cancels does so exactly: see vd_phi_pair() */
        double q = r.q2 * exp2(-r.k), low = x->q_low * exp2((double)(x->q_e - x->p_e)), low2 = low * exp2(r.k);
        return ldexp(fma(r.s, near, vd_far(x->p_z, r.k, q - r.q2) + (low - low2)), x->p_e);
    }
    double curved = fma(r.s, near, x->p_z * r.k * FKL_LN2);
    return ldexp(curved, x->p_e) + (ldexp(x->q_z, x->q_e) - ldexp(r.q2, x->p_e));
}

/* p, c q, what the rounding of c q has lost, and p - c q, in units of 2^e in which the larger of the two is in [1, 4):
 * for terms that are homogeneous in (p, c q). */
struct in_units {
    double p, q, low, n;
    int e;
};

static struct in_units in_units(const struct terms *x)
{
    struct in_units u;
    u.e = unit(x);
    u.p = ldexp(x->p_z, x->p_e - u.e);
    u.q = ldexp(x->q_z, x->q_e - u.e);
    u.low = ldexp(x->q_low, x->q_e - u.e);
    u.n = x->exact ? x->n : (u.p - u.q) - u.low;
    return u;
}

static double js_term(const struct terms *x, double weight)
{
    const struct in_units u = in_units(x);
    double m_low, m = vd_mean(weight, u.p, 1.0 - weight, u.q, u.low, &m_low);
    if (m < 0x1p-1000)
        return 0.0;
    double phi_p = u.p < 0x1p-1000 ? m : vd_phi_near(u.p, 0.0, m, m_low, (1.0 - weight) * u.n);
    double phi_q = u.q < 0x1p-1000 ? m : vd_phi_near(u.q, u.low, m, m_low, -weight * u.n);
    return ldexp(weight * phi_p + (1.0 - weight) * phi_q, u.e);
}

static double hellinger_term(const struct terms *x)
{
    const struct in_units u = in_units(x);
    if (u.p == 0.0 && u.q == 0.0)
        return 0.0;
    double d = u.n / (sqrt(u.p) + sqrt(u.q));
    return ldexp(d * d, u.e);
}

/* D_alpha, by logarithms of whole terms. The sum of p^alpha q^(1-alpha) is 1 + sum [p (e^(bL) - 1 - bL) + b phi(p, q)]
 * (see discrete_terms.inl.h), which is used while it is near 1; else it is the largest term times a sum of
 * exponentials. */
static double renyi_row(const fkl_rows *p, const fkl_rows *q, const fkl_problem *problem, double p_max, double q_max)
{
    const ptrdiff_t length = problem->length;
    const int normalize = problem->normalize;
    const double alpha = problem->parameter;
    const double b = fkl_renyi_order(alpha); /* p and q have changed places already */
    const int p_scale = split(p_max).exponent, q_scale = split(q_max).exponent;
    struct expansion p_exact = {{0.0}, 0}, q_exact = {{0.0}, 0};
    struct pair c = {1.0, 0.0}, inside = {0.0, 0.0}, outside = {0.0, 0.0};

    for (ptrdiff_t j = 0; j < length; j++) {
        struct split x = split(get(p, j)), y = split(get(q, j));
        double q_j = ldexp(y.mantissa, y.exponent - q_scale);
        grow(&p_exact, ldexp(x.mantissa, x.exponent - p_scale));
        grow(&q_exact, q_j);
        add(x.mantissa == 0.0 ? &outside : &inside, q_j);
    }
    const struct pair p_sum = as_pair(&p_exact), q_sum = as_pair(&q_exact);
    if (alpha == 0.0) {
        double in = inside.high + inside.low, out = outside.high + outside.low, value;
        if (in == 0.0)
            return INFINITY / problem->log_base;
        if (normalize)
            value = out < in ? -log1p(-out / (in + out)) : -log(in / (in + out));
        else
            value = -(log(in) + q_scale * FKL_LN2);
        return (value == 0.0 ? 0.0 : value) / problem->log_base;
    }
    /* Normalised, q is c q in units of p's scale; else c = 1 and the scales of both are their own. */
    const int p_unit = normalize ? p_scale : 0, q_unit = normalize ? q_scale : 0;
    const double p_total = normalize ? p_sum.high : 1.0;
    if (normalize)
        c = divide(p_sum, q_sum);

    double largest_ratio = -INFINITY, largest_term = -INFINITY, total = 0.0;
    struct pair excess = {0.0, 0.0};
    for (int pass = 0; pass < 2; pass++) {
        for (ptrdiff_t j = 0; j < length; j++) {
            struct split x = split(get(p, j)), y = split(get(q, j));
            struct terms term = {x.mantissa, 0.0, 0.0, x.exponent - p_unit, y.exponent - q_unit, 0.0, normalize};
            vd_two_product(c.high, y.mantissa, &term.q_z, &term.q_low);
            term.q_low += c.low * y.mantissa;
            if (normalize)
                term.n = exact_difference(&term, y.mantissa, &p_exact, &q_exact);
            double p_j = ldexp(term.p_z, term.p_e);
            if (x.mantissa == 0.0 || y.mantissa == 0.0) {
                if (x.mantissa != 0.0 && alpha > 1.0)
                    return INFINITY / problem->log_base;
                if (pass == 1)
                    add(&excess, x.mantissa == 0.0 ? b * ldexp(term.q_z, term.q_e) : -(b + 1.0) * p_j);
                continue;
            }
            struct ratio r = ratio(&term);
            double log_ratio = log_of(&r), exponent = b * log_ratio;
            /* log(p^alpha q^(1 - alpha) / sum p): the octaves of p and of r^b may be many and opposite, so they are
             * added up exactly first. */
            double octaves, octaves_low, error;
            vd_two_product(b, r.k, &octaves, &octaves_low);
            vd_two_sum(octaves, term.p_e, &octaves, &error);
            octaves_low += error;
            double rest = b * fma(r.s, r.t, 2.0 * r.s) + log(term.p_z / p_total);
            double log_term = fma(octaves, FKL_LN2, fma(octaves, FKL_LN2_LOW, octaves_low * FKL_LN2) + rest);
            if (pass == 0) {
                largest_ratio = log_ratio > largest_ratio ? log_ratio : largest_ratio;
                largest_term = log_term > largest_term ? log_term : largest_term;
                continue;
            }
            total += exp(log_term - largest_term);
            double power, curved = vd_exp_excess(exponent, &power);
            if (fabs(exponent) < 1.0)
                add(&excess, ldexp(term.p_z * curved, term.p_e) + b * phi(&term));
            else { /* p r^b - alpha p + b c q, whose terms no longer cancel */
                double product = fabs(exponent) < 690.0 ? ldexp(term.p_z * power, term.p_e) : p_total * exp(log_term);
                add(&excess, product - (b + 1.0) * p_j + b * ldexp(term.q_z, term.q_e));
            }
        }
        if (largest_ratio == -INFINITY)
            return INFINITY / problem->log_base;
        if (isinf(alpha))
            return (normalize && !(largest_ratio > 0.0) ? 0.0 : largest_ratio) / problem->log_base;
    }
    double log_sum = largest_term + log(total), beyond = (excess.high + excess.low) / p_total;
    if (normalize && log_sum > -0.5 && log_sum < 0.5)
        log_sum = log1p(beyond);
    double value = log_sum / (alpha - 1.0);
    return (normalize && !(value > 0.0) ? 0.0 : value + 0.0) / problem->log_base; /* + 0.0: no negative zero */
}

double fkl_careful_row(int operation, const fkl_rows *p, const fkl_rows *q, const fkl_problem *problem)
{
    const ptrdiff_t length = problem->length;
    double p_max = 0.0, q_max = 0.0;
    ptrdiff_t peak = 0;
    for (ptrdiff_t j = 0; j < length; j++) {
        double x = get(p, j), y = get(q, j);
        if (!(x >= 0.0 && x <= 0x1.fffffffffffffp1023 && y >= 0.0 && y <= 0x1.fffffffffffffp1023))
            return NAN;
        p_max = x > p_max ? x : p_max;
        if (y > q_max)
            q_max = y, peak = j;
    }
    const int normalize = problem->normalize;
    if (normalize && (p_max == 0.0 || q_max == 0.0))
        return NAN;
    if (normalize && length == 1)
        return 0.0;
    if (operation == FKL_RENYI)
        return renyi_row(p, q, problem, p_max, q_max);

    /* Scales and sums. Rows are scaled to a largest element near 2^ROOM, so that small elements, and terms that are the
     * square of a small difference, have room below them. Without normalising, both rows share one scale where they
     * are compared, and the result carries it. */
    int p_scale = split(p_max).exponent - ROOM, q_scale = split(q_max).exponent - ROOM;
    if (!normalize && operation != FKL_CROSS_ENTROPY) {
        const int common = p_max == 0.0 ? q_scale : q_max == 0.0 ? p_scale : p_scale > q_scale ? p_scale : q_scale;
        p_scale = q_scale = common;
    }
    struct expansion p_total = {{0.0}, 0}, q_total = {{0.0}, 0};
    double others = 0.0;
    for (ptrdiff_t j = 0; normalize && j < length; j++) {
        struct split x = split(get(p, j)), y = split(get(q, j));
        double q_j = ldexp(y.mantissa, y.exponent - q_scale);
        grow(&p_total, ldexp(x.mantissa, x.exponent - p_scale));
        grow(&q_total, q_j);
        if (j != peak)
            others += q_j;
    }
    const struct pair p_sum = as_pair(&p_total), q_sum = as_pair(&q_total), one = {1.0, 0.0};
    const struct pair c = normalize ? divide(p_sum, q_sum) : one;

    const double alpha = problem->parameter;
    struct pair sum = {0.0, 0.0}, second = {0.0, 0.0}, cumulative = {0.0, 0.0};

    for (ptrdiff_t j = 0; j < length; j++) {
        struct split x = split(get(p, j)), y = split(get(q, j));
        struct terms term = {x.mantissa, 0.0, 0.0, x.exponent - p_scale, y.exponent - q_scale, 0.0,
                             normalize};
        vd_two_product(c.high, y.mantissa, &term.q_z, &term.q_low);
        term.q_low += c.low * y.mantissa;
        const double p_j = ldexp(term.p_z, term.p_e), q_j = ldexp(term.q_z, term.q_e);
        const int no_p = x.mantissa == 0.0, no_q = y.mantissa == 0.0;
        if (normalize)
            term.n = exact_difference(&term, y.mantissa, &p_total, &q_total);
        const double n = normalize ? ldexp(term.n, unit(&term)) : p_j - q_j;

        switch (operation) {
        case FKL_KL:
            add(&sum, phi(&term));
            if (!normalize)
                add(&second, p_j), add(&second, -q_j);
            break;
        case FKL_JEFFREYS:
            if (no_p != no_q)
                add(&sum, INFINITY);
            else if (!no_p) {
                struct ratio r = ratio(&term);
                add(&sum, n * log_of(&r));
            }
            break;
        case FKL_JS:
        case FKL_JS_DISTANCE:
            add(&sum, js_term(&term, alpha));
            break;
        case FKL_CROSS_ENTROPY:
            if (no_p)
                break;
            if (no_q) {
                add(&sum, INFINITY);
            } else if (normalize && j == peak) {
                add(&sum, p_j * log1p(others / ldexp(y.mantissa, y.exponent - q_scale)));
            } else {
                struct terms share = {normalize ? q_sum.high : 1.0, y.mantissa, 0.0, 0,
                                      normalize ? y.exponent - q_scale : y.exponent, 0.0, 0};
                struct split total = split(share.p_z);
                share.p_z = total.mantissa;
                share.p_e = total.exponent;
                struct ratio r = ratio(&share);
                add(&sum, p_j * log_of(&r));
            }
            break;
        case FKL_TOTAL_VARIATION:
            add(&sum, fabs(n));
            break;
        case FKL_HELLINGER:
            add(&sum, hellinger_term(&term));
            break;
        case FKL_WASSERSTEIN:
            /* The bins up to this one against the gap to the next. */
            if (j > 0) {
                double gap = problem->positions ? problem->positions[j] - problem->positions[j - 1] : 1.0;
                add(&sum, fabs(cumulative.high + cumulative.low) * gap);
            }
            add(&cumulative, p_j);
            add(&cumulative, -q_j);
            add(&cumulative, -ldexp(term.q_low, term.q_e));
            break;
        }
    }

    double value = sum.high + (isinf(sum.high) ? 0.0 : sum.low);
    if (operation == FKL_KL && !normalize && !isinf(value))
        value += second.high + second.low;
    /* The result is value 2^carried; a square root has an even power of two to take half of. */
    int carried = normalize ? -ROOM : p_scale;
    if (normalize)
        value /= ldexp(p_sum.high, -ROOM);
    if ((operation == FKL_JS_DISTANCE || operation == FKL_HELLINGER) && carried & 1) {
        value *= 2.0;
        carried -= 1;
    }
    switch (operation) {
    case FKL_JS_DISTANCE:
        return ldexp(sqrt(value / problem->log_base), carried / 2);
    case FKL_TOTAL_VARIATION:
        value = ldexp(0.5 * value, carried);
        return normalize && value > 1.0 ? 1.0 : value;
    case FKL_HELLINGER:
        value = ldexp(sqrt(0.5 * value), carried / 2);
        return normalize && value > 1.0 ? 1.0 : value;
    case FKL_WASSERSTEIN:
        return ldexp(value, carried);
    default:
        return ldexp(value / problem->log_base, carried);
    }
}
