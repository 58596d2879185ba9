/* careful_logits.c: rows of the logits family that the vector kernels leave alone, one element at a time.
 *
 * Their logits or the temperature are near the ends of the range, or p and q so far apart that their ratio is. Here
 * each row's probabilities are taken from its own largest logit, and a divergence from the differences of the logits
 * where it is small and from the two rows' normalising sums where it is large. Compiled once, for every CPU, in the
 * one-lane form of simd.h and vmath.h.
 */
#include "careful.h"

#include "divergence.inl.h"

#include <float.h>

static struct pair plus(struct pair x, double y)
{
    add(&x, y);
    return x;
}

static struct pair minus(double x, double y) { return plus((struct pair){x, 0.0}, -y); }

/* A pair of rows, and what is known of them after each function below. */
struct rows {
    const fkl_rows *p, *q;
    ptrdiff_t length;
    double unit, temperature;       /* logits and temperature are taken times `unit`, so that differences stay finite */
    double c, c_low;                /* log2(e)/T */
    double p_most, q_most;          /* the largest logits */
    int bad, outside;               /* NaN or +inf, or no probability at all; p > 0 where q = 0 */
    double p_sum, q_sum;            /* of e^((logit - most)/T) */
    struct pair delta;              /* the p-mean of the differences */
    double mean;                    /* what is left of it, in nats */
    double log_ratio;               /* log(p/q) = (a - b - delta)/T + this */
    double kl;
};

static double logit(const struct rows *r, const fkl_rows *rows, ptrdiff_t i)
{
    return r->unit * get(rows, i);
}

static struct pair apart(const struct rows *r, double a, double b)
{
    const struct pair x = plus(minus(a, b), -r->delta.high);
    return plus((struct pair){x.low - r->delta.low, 0.0}, x.high);
}

/* e^(x/T), 0 and infinity beyond the range. The low half may be the larger one: what is left of logits that cancel. */
static double exponential(const struct rows *r, struct pair x)
{
    x = plus((struct pair){x.low, 0.0}, x.high);
    const double y = x.high * r->c;
    if (!(y > -1100.0))
        return x.high == 0.0 ? 1.0 : 0.0;
    if (!(y < 1100.0))
        return INFINITY;
    const double k = nearbyint(y), f = fma(x.high, r->c, -k) + (x.high * r->c_low + x.low * r->c);
    return ldexp(vd_exp_at(1.0, f * FKL_LN2), (int)k);
}

/* What a logit weighs beside the largest of its row. */
static double weight(const struct rows *r, double x, double most)
{
    return x > -INFINITY ? exponential(r, minus(x, most)) : 0.0;
}

static double in_nats(const struct rows *r, struct pair x) { return x.high / r->temperature + x.low / r->temperature; }

void fkl_octaves_per_logit(double temperature, double *high, double *low)
{
    *high = FKL_LOG2_E / temperature;
    *low = (fma(-*high, temperature, FKL_LOG2_E) + FKL_LOG2_E_LOW) / temperature;
}

/* The first look: units, maxima, what is wrong. */
static void judge(struct rows *r)
{
    double largest = 0.0;
    r->p_most = r->q_most = -INFINITY;
    for (ptrdiff_t i = 0; i < r->length; i++) {
        const double a = logit(r, r->p, i), b = logit(r, r->q, i);
        r->bad |= !(a < INFINITY) || !(b < INFINITY);
        r->outside |= a > -INFINITY && b == -INFINITY;
        r->p_most = a > r->p_most ? a : r->p_most;
        r->q_most = b > r->q_most ? b : r->q_most;
        if (a > -INFINITY && fabs(a) > largest)
            largest = fabs(a);
        if (b > -INFINITY && fabs(b) > largest)
            largest = fabs(b);
    }
    r->bad |= r->p_most == -INFINITY || r->q_most == -INFINITY;
    if (largest > 0x1p1000) {
        r->unit = 0x1p-8;
        r->p_most *= r->unit;
        r->q_most *= r->unit;
    }
    /* A temperature that leaves its inverse no room: what does not cancel in these differences is beyond any range. */
    r->temperature *= r->unit;
    fkl_octaves_per_logit(r->temperature, &r->c, &r->c_low);
    if (!isfinite(r->c)) {
        r->c = DBL_MAX;
        r->c_low = 0.0;
    }
    if (!isfinite(r->c_low))
        r->c_low = 0.0;
}

/* The normalising sums and, to twice the precision, the mean difference. */
static void sum(struct rows *r)
{
    struct pair p = {0.0, 0.0}, q = {0.0, 0.0};
    for (ptrdiff_t i = 0; i < r->length; i++) {
        const double a = logit(r, r->p, i), b = logit(r, r->q, i);
        if (a == r->p_most && b > -INFINITY)
            r->delta = minus(a, b);
        add(&p, weight(r, a, r->p_most));
        add(&q, weight(r, b, r->q_most));
    }
    r->p_sum = p.high + p.low;
    r->q_sum = q.high + q.low;
    for (int turn = 0; turn < 4 && !r->outside; turn++) {
        struct pair moment = {0.0, 0.0};
        for (ptrdiff_t i = 0; i < r->length; i++) {
            const double a = logit(r, r->p, i), b = logit(r, r->q, i);
            const double w = weight(r, a, r->p_most);
            if (w > 0.0)
                add(&moment, w * apart(r, a, b).high);
        }
        const double by = (moment.high + moment.low) / r->p_sum;
        r->mean = by / r->temperature;
        if (by == 0.0 || turn == 3)
            break;
        const struct pair delta = plus(r->delta, by);
        vd_two_sum(delta.high, delta.low, &r->delta.high, &r->delta.low);
    }
}

/* The divergence: m + log1p(t - m) as in logits_sums.inl.h where that is in range. */
static void diverge(struct rows *r)
{
    struct pair offset = plus(minus(r->q_most, r->p_most), r->delta.high);
    offset.low += r->delta.low;
    const double ratio = exponential(r, offset); /* q's weights times this are measured as p's are */
    struct pair excess = {0.0, 0.0};
    for (ptrdiff_t i = 0; i < r->length; i++) {
        const double a = logit(r, r->p, i), b = logit(r, r->q, i);
        const double p = weight(r, a, r->p_most);
        const double q = weight(r, b, r->q_most);
        double term = q > 0.0 ? q * ratio : 0.0, power;
        if (p > 0.0 && b > -INFINITY) {
            const double x = in_nats(r, apart(r, a, b));
            term = fabs(x) < 30.0 ? p * vd_exp_excess(-x, &power) : (term - p) + p * x;
        }
        add(&excess, term);
    }
    const double t = (excess.high + excess.low) / r->p_sum;
    if (t < 0x1p200 && fabs(r->mean) < 0.5) {
        const double y = t - r->mean;
        r->log_ratio = vd_log1p(y);
        r->kl = fabs(y) < 0.5 ? t - vd_less_log1p(y) : r->mean + r->log_ratio;
    } else {
        r->log_ratio = (log(r->q_sum) - log(r->p_sum)) + in_nats(r, offset);
        r->kl = r->mean + r->log_ratio;
    }
    r->kl = r->outside ? INFINITY : r->kl > 0.0 ? r->kl : 0.0;
}

/* p, q, p - q and log(p/q) - KL of an element. */
struct element {
    double p, q, difference, beyond;
};

static struct element element(const struct rows *r, ptrdiff_t i)
{
    const double a = logit(r, r->p, i), b = logit(r, r->q, i);
    struct element e = {weight(r, a, r->p_most) / r->p_sum, weight(r, b, r->q_most) / r->q_sum, 0.0, 0.0};
    e.difference = e.p - e.q;
    if (e.p > 0.0 && b > -INFINITY) {
        double power;
        const double x = in_nats(r, apart(r, a, b)), log_ratio = x + r->log_ratio;
        if (fabs(r->log_ratio) < 1.0 && fabs(log_ratio) < 1.0) /* else it is no better known than p and q */
            e.difference = -e.p * (vd_exp_excess(-log_ratio, &power) - log_ratio);
        e.beyond = x - r->mean;
    }
    return e;
}

static double jensen_shannon(const struct rows *r, double share)
{
    struct pair total = {0.0, 0.0};
    for (ptrdiff_t i = 0; i < r->length; i++) {
        const struct element e = element(r, i);
        add(&total, js_of_probabilities(e.p, e.q, e.difference, share));
    }
    return total.high + total.low;
}

/* sum p (q_most - b)/T + log1p of what the others weigh beside the largest. */
static double cross_entropy(const struct rows *r)
{
    struct pair total = {0.0, 0.0}, others = {0.0, 0.0};
    int seen = 0;
    for (ptrdiff_t i = 0; i < r->length; i++) {
        const double a = logit(r, r->p, i), b = logit(r, r->q, i);
        const double p = weight(r, a, r->p_most) / r->p_sum;
        if (b == -INFINITY)
            continue;
        if (p > 0.0)
            add(&total, p * in_nats(r, minus(r->q_most, b)));
        if (b == r->q_most && !seen)
            seen = 1;
        else
            add(&others, weight(r, b, r->q_most));
    }
    if (r->outside || total.high > DBL_MAX) /* what a sum beyond the largest double has lost is NaN */
        return INFINITY;
    return total.high + (total.low + vd_log1p(others.high + others.low));
}

static void put(const fkl_rows *rows, ptrdiff_t i, double x)
{
    char *to = (char *)rows->data + i * rows->item_stride; /* an array to be written */
    const float narrow = (float)x;
    if (rows->type == FKL_F64)
        memcpy(to, &x, 8);
    else
        memcpy(to, &narrow, 4);
}

double fkl_careful_logits_row(int op, const fkl_rows *operands, const fkl_problem *problem)
{
    const int only_p = op == FKL_LOGITS_ENTROPY;
    struct rows r = {.p = &operands[0], .q = &operands[!only_p], .length = problem->length, .unit = 1.0,
                     .temperature = problem->temperature};
    const int gradients = op == FKL_LOGITS_KL_GRAD ? 2 : op == FKL_LOGITS_KL_GRAD_Q ? 1 : 0;
    double result = NAN;
    judge(&r);
    if (!r.bad) {
        sum(&r);
        if (op == FKL_LOGITS_CROSS_ENTROPY || op == FKL_LOGITS_ENTROPY) {
            result = cross_entropy(&r);
        } else {
            diverge(&r);
            result = r.kl;
            if (op == FKL_LOGITS_JS || op == FKL_LOGITS_JS_DISTANCE)
                result = jensen_shannon(&r, problem->parameter);
        }
        result /= problem->log_base;
        if (op == FKL_LOGITS_JS_DISTANCE)
            result = sqrt(result);
    }
    for (ptrdiff_t i = 0; gradients && i < r.length; i++) {
        const double factor = problem->parameter / problem->temperature;
        double by_p = NAN, by_q = NAN;
        if (!r.bad) {
            const struct element e = element(&r, i);
            by_q = 0.0 - factor * e.difference; /* of equal rows 0, not -0 */
            by_p = r.outside ? NAN : e.p > 0.0 ? factor * e.p * e.beyond : 0.0;
        }
        if (gradients == 2)
            put(&operands[2], i, by_p);
        put(&operands[gradients + 1], i, by_q);
    }
    return result;
}
