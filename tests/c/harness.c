/* harness.c: the row kernels of every level of a build, without Python.
 *
 * Rows of every kind (zeros, subnormal numbers, NaN, sums beyond the largest double, ...), type, layout and of lengths
 * around the lane widths go through all operations. Results are compared with a plain evaluation in long double, with
 * those of the same rows in another layout or alone, and with those of the other levels that have fused multiply-adds:
 * the last three to the bit. Every array is allocated to its exact size, so that a sanitizer sees a read or a write
 * past its end. The bounds here are loose, for this is about memory, corner cases and agreement; the tight ones are
 * held by the Python tests.
 *
 * run_sanitizers.sh and run_neon.sh build and run it. With an argument N it takes every Nth of its cases, which are
 * combinations of lengths and types (and of scales and shapes) that follow each other.
 */
#include "kernels.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef long double real;

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define MOST_LEVELS 8
#define FAILURES_SHOWN 20

static long passed, failed;

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    if (!memory) {
        fputs("no memory\n", stderr);
        exit(2);
    }
    return memory;
}

/* ---- random numbers (splitmix64) ----------------------------------------------------------------------------------- */

static uint64_t random_state = 1;

static uint64_t random_bits(void)
{
    uint64_t x = random_state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* In (0, 1). */
static double uniform(void) { return ((double)(random_bits() >> 12) + 0.5) * 0x1p-52; }

/* ---- types --------------------------------------------------------------------------------------------------------- */

static const struct type {
    const char *name;
    int size;
    int digits;          /* of a float's significand; 0 for integers */
    int is_signed;
    double normal, most; /* the smallest normal number (of integers, 1) and the largest number */
} types[FKL_TYPES] = {
    [FKL_F64] = {"float64", 8, 53, 1, DBL_MIN, DBL_MAX},
    [FKL_F32] = {"float32", 4, 24, 1, FLT_MIN, FLT_MAX},
    [FKL_F16] = {"float16", 2, 11, 1, 0x1p-14, 65504.0},
    [FKL_BF16] = {"bfloat16", 2, 8, 1, FLT_MIN, 0x1.fep127},
    [FKL_I8] = {"int8", 1, 0, 1, 1.0, 0x1p7 - 1.0},
    [FKL_I16] = {"int16", 2, 0, 1, 1.0, 0x1p15 - 1.0},
    [FKL_I32] = {"int32", 4, 0, 1, 1.0, 0x1p31 - 1.0},
    [FKL_I64] = {"int64", 8, 0, 1, 1.0, 0x1p63 - 0x1p10},
    [FKL_U8] = {"uint8", 1, 0, 0, 1.0, 0x1p8 - 1.0},
    [FKL_U16] = {"uint16", 2, 0, 0, 1.0, 0x1p16 - 1.0},
    [FKL_U32] = {"uint32", 4, 0, 0, 1.0, 0x1p32 - 1.0},
    [FKL_U64] = {"uint64", 8, 0, 0, 1.0, 0x1p64 - 0x1p11},
};

/* The nearest number that the type has, as a double. */
static double rounded(const struct type *type, double x)
{
    if (type->digits == 0)
        return !(x >= 0.0) ? (type->is_signed && x < 0.0 ? -1.0 : 0.0) : x > type->most ? type->most : floor(x);
    if (isnan(x) || isinf(x) || x == 0.0)
        return x;
    int exponent;
    frexp(fabs(x) < type->normal ? type->normal : x, &exponent);
    double quantum = ldexp(1.0, exponent - type->digits);
    x = type->digits == 53 ? x : rint(x / quantum) * quantum;
    return x > type->most ? type->most : x;
}

/* The bytes of a number that the type has. */
static void encode(enum fkl_type type, double x, char *to)
{
    const struct type *t = &types[type];
    if (type == FKL_F64) {
        memcpy(to, &x, 8);
    } else if (type == FKL_F32 || type == FKL_BF16) { /* a bfloat16 is the upper half of a float */
        float y = (float)x;
        uint32_t bits;
        memcpy(&bits, &y, 4);
        uint16_t upper = (uint16_t)(bits >> 16);
        memcpy(to, type == FKL_F32 ? (const void *)&bits : (const void *)&upper, (size_t)t->size);
    } else if (type == FKL_F16) {
        int exponent = 0;
        double size = fabs(x);
        unsigned bits = 0x7e00; /* NaN */
        if (isinf(x))
            bits = 0x7c00;
        else if (size < t->normal)
            bits = (unsigned)(size * 0x1p24);
        else if (!isnan(x)) {
            double fraction = 2.0 * frexp(size, &exponent) - 1.0;
            bits = (unsigned)(exponent + 14) << 10 | (unsigned)(fraction * 0x1p10);
        }
        uint16_t half = (uint16_t)(bits | (signbit(x) ? 0x8000u : 0u));
        memcpy(to, &half, 2);
    } else { /* the low bytes of a 64-bit integer, whichever end they stand at */
        uint64_t bits = x < 0.0 ? (uint64_t)(int64_t)x : (uint64_t)x;
        for (int i = 0; i < t->size; i++) {
            const uint16_t probe = 1;
            int little = *(const unsigned char *)&probe;
            to[little ? i : t->size - 1 - i] = (char)(bits >> 8 * i);
        }
    }
}

/* ---- rows of every kind -------------------------------------------------------------------------------------------- */

enum kind {
    PLAIN, ZEROS, EQUAL, DOUBLED, NEARLY_EQUAL, WITH_NAN, DISJOINT, WIDE, NEGATIVE, SUBNORMAL, INFINITE, HUGE_SUM, EMPTY,
    PEAKED, NEGATIVE_ZERO, ALL_SUBNORMAL, ONE_CELL,
    KINDS
};
static const char *const kind_names[KINDS] = {
    "plain", "zeros", "equal", "doubled", "nearly equal", "NaN", "disjoint", "wide", "negative", "subnormal",
    "infinite", "huge sum", "empty", "peaked", "negative zero", "all subnormal", "one cell"
};

/* A number of the type's range, evenly spread by its logarithm, and what is near the range's upper end. */
static double wide(const struct type *t)
{
    return exp2(log2(t->normal) + uniform() * (log2(t->most) - log2(t->normal)));
}
static double plain(const struct type *t) { return t->digits ? uniform() : 1.0 + uniform() * fmin(t->most - 1.0, 5e4); }
static double subnormal(const struct type *t) { return t->normal * uniform(); }

/* One pair of rows, as numbers that the types have. */
static void fill(enum kind kind, int into_q, const struct type *p_type, const struct type *q_type, ptrdiff_t n,
                 double *p, double *q)
{
    /* Where one row alone has a flaw, which of the two. */
    double *flawed = into_q ? q : p;
    const struct type *t = into_q ? q_type : p_type;
    ptrdiff_t at = (ptrdiff_t)(random_bits() % (uint64_t)n);

    for (ptrdiff_t j = 0; j < n; j++) {
        p[j] = plain(p_type);
        q[j] = plain(q_type);
        switch (kind) {
        case ZEROS: /* q is 0 where p isn't in every other such row only: else KL is infinite */
            p[j] = random_bits() % 3 ? p[j] : 0.0;
            q[j] = random_bits() % 3 || (into_q && p[j] != 0.0) ? q[j] : 0.0;
            break;
        case EQUAL:
            q[j] = p[j] = rounded(p_type, p[j]);
            break;
        case DOUBLED:
            q[j] = 2.0 * (p[j] = rounded(p_type, p[j] * 0.4));
            break;
        case NEARLY_EQUAL:
            q[j] = p[j] * (1.0 + 1e-3 * uniform());
            break;
        case DISJOINT:
            *(j % 2 ? &p[j] : &q[j]) = 0.0;
            break;
        case WIDE:
            p[j] = wide(p_type);
            q[j] = wide(q_type);
            break;
        case SUBNORMAL:
            if (random_bits() % 5 == 0)
                flawed[j] = subnormal(t);
            break;
        case ALL_SUBNORMAL:
            p[j] = subnormal(p_type);
            q[j] = subnormal(q_type);
            break;
        case HUGE_SUM:
            p[j] = p_type->most * (0.5 + 0.5 * uniform());
            q[j] = q_type->most * (0.5 + 0.5 * uniform());
            break;
        case EMPTY:
            flawed[j] = 0.0;
            break;
        case PEAKED:
            p[j] *= j == at ? 1.0 : 1e-12;
            q[j] *= j == at ? 1.0 : 1e-12;
            break;
        case ONE_CELL:
            p[j] *= j == at;
            q[j] *= j == at;
            break;
        default:
            break;
        }
    }
    if (kind == WITH_NAN || kind == INFINITE || kind == NEGATIVE || kind == NEGATIVE_ZERO)
        flawed[at] = kind == WITH_NAN ? (double)NAN : kind == INFINITE ? (double)INFINITY : kind == NEGATIVE ? -plain(t) : -0.0;
    for (ptrdiff_t j = 0; j < n; j++) {
        p[j] = rounded(p_type, p[j]);
        q[j] = rounded(q_type, q[j]);
    }
}

/* ---- the layouts of an operand --------------------------------------------------------------------------------------- */

enum layout {
    CONTIGUOUS, ODD_ROWS, RECORDS, FIRST_AXIS, BACKWARDS, ROWS_BACKWARDS, UNALIGNED, SWAPPED,
    LAYOUTS
};
static const char *const layout_names[LAYOUTS] = {
    "contiguous", "odd row stride", "fields of records", "first axis", "backwards", "rows backwards", "unaligned", "swapped"
};

/* An operand, and the memory it lies in: not a byte more than its elements span. */
struct operand {
    fkl_rows rows;
    char *memory;
};

static struct operand place(enum fkl_type type, const double *values, ptrdiff_t n_rows, ptrdiff_t n, enum layout layout)
{
    const ptrdiff_t size = types[type].size;
    ptrdiff_t item = size, row = n * size, lead = 0;
    switch (layout) {
    case ODD_ROWS:
        row += 1;
        break;
    case RECORDS:
        item = 3 * size + 1;
        row = n * item;
        break;
    case FIRST_AXIS:
        item = n_rows * size;
        row = size;
        break;
    case BACKWARDS:
        item = -size;
        row = -n * size;
        break;
    case ROWS_BACKWARDS:
        row = -n * size;
        break;
    case UNALIGNED:
        lead = 1;
        break;
    default:
        break;
    }
    const ptrdiff_t rows_span = (n_rows - 1) * row, items_span = (n - 1) * item;
    const ptrdiff_t lowest = (rows_span < 0 ? rows_span : 0) + (items_span < 0 ? items_span : 0);
    const ptrdiff_t span = (rows_span < 0 ? -rows_span : rows_span) + (items_span < 0 ? -items_span : items_span) + size;
    struct operand operand;
    operand.memory = allocate((size_t)(lead + span));
    char *start = operand.memory + lead - lowest;
    for (ptrdiff_t i = 0; i < n_rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            char bytes[8];
            encode(type, values[i * n + j], bytes);
            for (ptrdiff_t k = 0; k < size; k++)
                start[i * row + j * item + k] = bytes[layout == SWAPPED ? size - 1 - k : k];
        }
    operand.rows = (fkl_rows){start, row, item, (int)type, layout == SWAPPED};
    return operand;
}

/* ---- what is asked of the kernels ------------------------------------------------------------------------------------ */

static const struct task {
    int op;
    double parameter;
    const char *name;
} tasks[] = {
    {FKL_KL, 0.0, "kl"},
    {FKL_REVERSE_KL, 0.0, "reverse_kl"},
    {FKL_JEFFREYS, 0.0, "jeffreys"},
    {FKL_JS, 0.5, "js(0.5)"},
    {FKL_JS, 0.3, "js(0.3)"},
    {FKL_JS, 0.0, "js(0)"},
    {FKL_JS, 1.0, "js(1)"},
    {FKL_JS_DISTANCE, 0.5, "js_distance(0.5)"},
    {FKL_JS_DISTANCE, 0.9, "js_distance(0.9)"},
    {FKL_CROSS_ENTROPY, 0.0, "cross_entropy"},
    {FKL_ENTROPY, 0.0, "entropy"},
    {FKL_RENYI, 0.0, "renyi(0)"},
    {FKL_RENYI, 0.25, "renyi(0.25)"},
    {FKL_RENYI, 0.5, "renyi(0.5)"},
    {FKL_RENYI, 1.0, "renyi(1)"},
    {FKL_RENYI, 2.0, "renyi(2)"},
    {FKL_RENYI, 7.5, "renyi(7.5)"},
    {FKL_RENYI, (double)INFINITY, "renyi(inf)"},
    {FKL_TOTAL_VARIATION, 0.0, "total_variation"},
    {FKL_HELLINGER, 0.0, "hellinger"},
    {FKL_WASSERSTEIN, 0.0, "wasserstein"},
    {FKL_WASSERSTEIN, 1.0, "wasserstein with positions"}, /* the parameter is the harness's own mark */
};

static int is_distance(int op) { return op == FKL_JS_DISTANCE || op == FKL_HELLINGER; }

/* ---- the plain evaluation --------------------------------------------------------------------------------------------- */

/* A pair of rows as the formulas take them: shares of their sums, or the numbers themselves, and their logarithms. */
struct pair {
    ptrdiff_t n;
    int normalize;
    int p_valid, q_valid; /* every number finite and >= 0, and a sum to divide by */
    int same;             /* the shares are the same ones */
    real p_sum, q_sum;
    real *p, *q, *log_p, *log_q;
};

/* The value, its size (what a relative bound is relative to: more than the value where a plain sum cancels), and what
 * the evaluation here loses to rounding. */
struct expectation {
    real value, size, noise;
};

static struct pair make_pair(const double *p, const double *q, ptrdiff_t n, int normalize)
{
    struct pair pair = {n, normalize, 1, 1, 1, 0.0L, 0.0L, NULL, NULL, NULL, NULL};
    real **arrays[] = {&pair.p, &pair.q, &pair.log_p, &pair.log_q};
    for (int k = 0; k < COUNT(arrays); k++)
        *arrays[k] = allocate((size_t)n * sizeof(real));
    for (ptrdiff_t j = 0; j < n; j++) {
        pair.p_valid &= p[j] >= 0.0 && p[j] <= DBL_MAX;
        pair.q_valid &= q[j] >= 0.0 && q[j] <= DBL_MAX;
        pair.p_sum += p[j];
        pair.q_sum += q[j];
    }
    pair.p_valid &= !normalize || pair.p_sum > 0.0L;
    pair.q_valid &= !normalize || pair.q_sum > 0.0L;
    for (ptrdiff_t j = 0; j < n; j++) {
        pair.same &= q[j] == p[j] || (normalize && q[j] == 2.0 * p[j] && pair.q_sum == 2.0L * pair.p_sum);
        pair.p[j] = normalize ? p[j] / pair.p_sum : p[j];
        pair.q[j] = normalize ? q[j] / pair.q_sum : q[j];
        pair.log_p[j] = pair.p_valid && p[j] > 0.0 ? logl(pair.p[j]) : 0.0L;
        pair.log_q[j] = pair.q_valid && q[j] > 0.0 ? logl(pair.q[j]) : 0.0L;
    }
    return pair;
}

static void free_pair(struct pair *pair)
{
    free(pair->p);
    free(pair->q);
    free(pair->log_p);
    free(pair->log_q);
}

static struct expectation certain(real value) { return (struct expectation){value, fabsl(value), 0.0L}; }

/* log sum p^alpha q^(1 - alpha) / (alpha - 1) and its limits. A power exp(t) is known to 1 + |t| roundings: that is
 * what the kernels' error may be as well, where rows are not normalised and log of the sum happens to be near 0. */
static struct expectation expect_renyi(const struct pair *r, double alpha)
{
    real sum = 0.0L, size = 0.0L, largest = -INFINITY;
    for (ptrdiff_t j = 0; j < r->n; j++) {
        if (r->p[j] == 0.0L)
            continue;
        if (r->q[j] == 0.0L) {
            if (alpha >= 1.0)
                return certain(INFINITY);
            continue;
        }
        real ratio = r->log_p[j] - r->log_q[j];
        real exponent = isinf(alpha) ? 0.0L : ratio * (alpha - 1.0);
        largest = fmaxl(largest, ratio);
        real term = alpha == 0.0 ? r->q[j] : isinf(alpha) ? 0.0L : expl(r->log_p[j] + exponent);
        sum += term;
        size += term * (1.0L + fabsl(r->log_p[j]) + fabsl(exponent));
    }
    if (largest == -INFINITY)
        return certain(INFINITY);
    if (isinf(alpha))
        return (struct expectation){largest, fabsl(largest), 1.0L};
    real value = logl(sum) / (alpha - 1.0), error = size / sum / fabsl((real)alpha - 1.0L);
    return (struct expectation){value, r->normalize ? fabsl(value) : fabsl(value) + error, error};
}

static struct expectation expect(const struct task *task, const struct pair *r, const double *positions)
{
    const int op = task->op;
    const real w = task->parameter, v = 1.0L - w;
    real sum = 0.0L, size = 0.0L, cumulative = 0.0L;

    if (!r->p_valid || (!r->q_valid && op != FKL_ENTROPY))
        return certain(NAN);
    if (op == FKL_RENYI && task->parameter != 1.0) {
        if (r->same && r->normalize)
            return certain(0.0L);
        return expect_renyi(r, task->parameter);
    }
    if (r->same && op != FKL_CROSS_ENTROPY && op != FKL_ENTROPY)
        return certain(0.0L);
    if ((op == FKL_JS || op == FKL_JS_DISTANCE) && (w == 0.0L || v == 0.0L))
        return certain(0.0L);
    for (ptrdiff_t j = 0; j < r->n; j++) {
        const real p = r->p[j], q = r->q[j], ratio = r->log_p[j] - r->log_q[j];
        real term = 0.0L, lost = 0.0L;
        switch (op) {
        case FKL_REVERSE_KL:
            term = q == 0.0L ? 0.0L : p == 0.0L ? (real)INFINITY : -q * ratio;
            lost = q * (1.0L + fabsl(r->log_p[j]) + fabsl(r->log_q[j]));
            break;
        case FKL_JEFFREYS:
            term = p == 0.0L && q == 0.0L ? 0.0L : p == 0.0L || q == 0.0L ? (real)INFINITY : (p - q) * ratio;
            lost = (p + q) * (1.0L + fabsl(r->log_p[j]) + fabsl(r->log_q[j]));
            break;
        case FKL_JS:
        case FKL_JS_DISTANCE: {
            real m = w * p + v * q, log_m = m > 0.0L ? logl(m) : 0.0L;
            term = (p > 0.0L ? w * p * (r->log_p[j] - log_m) : 0.0L) + (q > 0.0L ? v * q * (r->log_q[j] - log_m) : 0.0L);
            lost = m * (1.0L + fabsl(log_m));
            break;
        }
        case FKL_CROSS_ENTROPY:
            term = p == 0.0L ? 0.0L : q == 0.0L ? (real)INFINITY : -p * r->log_q[j];
            lost = p * (1.0L + fabsl(r->log_q[j]));
            break;
        case FKL_ENTROPY:
            term = -p * r->log_p[j];
            lost = p * (1.0L + fabsl(r->log_p[j]));
            break;
        case FKL_TOTAL_VARIATION:
            term = 0.5L * fabsl(p - q);
            lost = p + q;
            break;
        case FKL_HELLINGER:
            term = 0.5L * (sqrtl(p) - sqrtl(q)) * (sqrtl(p) - sqrtl(q));
            lost = p + q;
            break;
        case FKL_WASSERSTEIN:
            cumulative += p - q;
            if (j + 1 < r->n)
                term = fabsl(cumulative) * (positions ? (real)positions[j + 1] - positions[j] : 1.0L);
            lost = (p + q) * (positions ? (real)positions[r->n - 1] - positions[0] : (real)r->n);
            break;
        default:
            term = p == 0.0L ? 0.0L : q == 0.0L ? (real)INFINITY : p * ratio;
            lost = p * (1.0L + fabsl(r->log_p[j]) + fabsl(r->log_q[j]));
        }
        sum += term;
        size += lost;
    }
    struct expectation e = {sum, fabsl(sum), size};
    if (!r->normalize && (op == FKL_KL || op == FKL_RENYI))
        e.size = fabsl(sum - r->p_sum + r->q_sum) + fabsl(r->p_sum - r->q_sum);
    else if (!r->normalize && op == FKL_REVERSE_KL)
        e.size = fabsl(sum - r->q_sum + r->p_sum) + fabsl(r->p_sum - r->q_sum);
    else if (!r->normalize && (op == FKL_CROSS_ENTROPY || op == FKL_ENTROPY))
        e.size = size;
    return e;
}

/* Is the result what is expected? relative: the bound of the row type. Distances are compared by their squares, which
 * the evaluation keeps. */
static int agrees(double result, const struct task *task, struct expectation e, double log_base, double relative)
{
    real got = is_distance(task->op) ? (real)result * result : (real)result;
    if (task->op < FKL_TOTAL_VARIATION) {
        e.value /= log_base;
        e.size /= log_base;
        e.noise /= log_base;
    }
    if (isnan(e.value) || isinf(e.value))
        return isnan(e.value) ? isnan(result) : got == e.value;
    if (e.value == 0.0L && e.noise == 0.0L)
        return result == 0.0;
    real allowed = relative * e.size + 256.0L * LDBL_EPSILON * e.noise + 64.0L * 0x1p-1074L;
    if (isinf(result)) /* a plain sum beyond the largest double */
        return fabsl(e.value) + allowed > DBL_MAX && (result > 0.0) == (e.value > 0.0L);
    return fabsl(got - e.value) <= allowed;
}

/* ---- one batch ---------------------------------------------------------------------------------------------------------- */

/* Two operands' values, and how they are to be worked on. */
struct batch {
    enum fkl_type p_type, q_type, row_type;
    ptrdiff_t n, n_rows;
    const enum kind *kinds;
    const double *p, *q;
    const double *positions;
    void *scratch;
};

static void report(const struct batch *b, const char *level, const char *how, const struct task *task, int normalize,
                   ptrdiff_t row, double got, real want)
{
    if (++failed > FAILURES_SHOWN)
        return;
    printf("%s, %s, %s, normalize=%d, K=%td, %s and %s as %s, row %td of %td (%s): %.17g instead of %.20Lg\n", level, how,
           task->name, normalize, b->n, types[b->p_type].name, types[b->q_type].name, types[b->row_type].name, row,
           b->n_rows, b->kinds ? kind_names[b->kinds[row]] : "broadcast", got, want);
}

static int same_bits(double a, double b)
{
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

static fkl_problem make_problem(const struct batch *b, const struct task *task, int normalize)
{
    /* Bits for half of the cases, nats for the others. */
    const double log_base = (b->n + task->op) % 2 && task->op < FKL_TOTAL_VARIATION ? 0.69314718055994531 : 1.0;
    const double *positions = task->op == FKL_WASSERSTEIN && task->parameter != 0.0 ? b->positions : NULL;
    return (fkl_problem){.length = b->n, .operands = 2, .normalize = normalize, .log_base = log_base,
                         .parameter = task->parameter, .positions = positions};
}

/* Runs a task and checks that it gives the bits of `expected`. */
static void compare_bits(const struct batch *b, const fkl_level *level, const char *how, const struct task *task,
                         int normalize, const fkl_rows *p, const fkl_rows *q, const double *expected)
{
    const fkl_problem problem = make_problem(b, task, normalize);
    double *result = allocate((size_t)b->n_rows * sizeof(double));
    const fkl_rows operands[] = {*p, *q};
    level->kernels[FKL_DISCRETE](task->op, b->row_type, operands, b->n_rows, &problem, result, b->scratch);
    for (ptrdiff_t i = 0; i < b->n_rows; i++)
        if (same_bits(result[i], expected[i]))
            passed++;
        else
            report(b, level->name, how, task, normalize, i, result[i], expected[i]);
    free(result);
}

/* All tasks at one level, over contiguous rows: results[task][normalize][row]. */
static double *run_contiguous(const struct batch *b, const fkl_level *level, const fkl_rows *p, const fkl_rows *q)
{
    double *all = allocate((size_t)(COUNT(tasks) * 2 * b->n_rows) * sizeof(double)), *result = all;
    for (int t = 0; t < COUNT(tasks); t++)
        for (int normalize = 0; normalize < 2; normalize++, result += b->n_rows) {
            const fkl_problem problem = make_problem(b, &tasks[t], normalize);
            double *exact_size = allocate((size_t)b->n_rows * sizeof(double));
            const fkl_rows operands[] = {*p, *q};
            level->kernels[FKL_DISCRETE](tasks[t].op, b->row_type, operands, b->n_rows, &problem, exact_size,
                                         b->scratch);
            memcpy(result, exact_size, (size_t)b->n_rows * sizeof(double));
            free(exact_size);
        }
    return all;
}

/* Every task at every level, against the plain evaluation, and the levels with FMA against one another. */
static void check_values(const struct batch *b, const fkl_level *const *levels, double *const *results)
{
    const double relative = b->row_type == FKL_F64 ? 1e-12 : 1e-6;
    for (ptrdiff_t i = 0; i < b->n_rows; i++)
        for (int normalize = 0; normalize < 2; normalize++) {
            struct pair pair = make_pair(b->p + i * b->n, b->q + i * b->n, b->n, normalize);
            for (int t = 0; t < COUNT(tasks); t++) {
                const fkl_problem problem = make_problem(b, &tasks[t], normalize);
                const struct expectation e = expect(&tasks[t], &pair, problem.positions);
                const ptrdiff_t at = (t * 2 + normalize) * b->n_rows + i;
                int first = -1; /* the lowest level with FMA */
                for (int k = 0; levels[k]; k++) {
                    if (agrees(results[k][at], &tasks[t], e, problem.log_base, relative))
                        passed++;
                    else
                        report(b, levels[k]->name, "value", &tasks[t], normalize, i, results[k][at],
                               is_distance(tasks[t].op) ? sqrtl(e.value / problem.log_base) : e.value / problem.log_base);
                    if (strcmp(levels[k]->name, "baseline") == 0)
                        continue;
                    if (first < 0)
                        first = k;
                    else if (same_bits(results[k][at], results[first][at]))
                        passed++;
                    else
                        report(b, levels[k]->name, "another level", &tasks[t], normalize, i, results[k][at],
                               results[first][at]);
                }
            }
            free_pair(&pair);
        }
}

/* The same rows in other layouts, and one at a time: the same bits. */
static void check_layouts(const struct batch *b, const fkl_level *level, const fkl_rows *p, const fkl_rows *q,
                          const double *expected, int first_layout, int n_layouts)
{
    for (int k = 0; k < n_layouts; k++) {
        enum layout layout = (enum layout)((first_layout + k) % LAYOUTS);
        enum layout other = k % 2 ? layout : (enum layout)((layout + 3) % LAYOUTS);
        struct operand a = place(b->p_type, b->p, b->n_rows, b->n, layout);
        struct operand c = place(b->q_type, b->q, b->n_rows, b->n, other);
        for (int t = 0; t < COUNT(tasks); t++)
            for (int normalize = 0; normalize < 2; normalize++)
                compare_bits(b, level, layout_names[layout], &tasks[t], normalize, &a.rows, &c.rows,
                             expected + (t * 2 + normalize) * b->n_rows);
        free(a.memory);
        free(c.memory);
    }
    struct batch one = *b;
    one.n_rows = 1;
    for (ptrdiff_t i = 0; i < b->n_rows; i++) {
        fkl_rows a = *p, c = *q;
        a.data += i * a.row_stride;
        c.data += i * c.row_stride;
        one.kinds = b->kinds + i;
        const int t = (int)(i % COUNT(tasks)), normalize = (int)(i / COUNT(tasks) + b->n) % 2;
        compare_bits(&one, level, "alone", &tasks[t], normalize, &a, &c, expected + (t * 2 + normalize) * b->n_rows + i);
    }
}

/* One row of p against all of q, by a stride of 0, and one element in place of all of a row's. */
static void check_broadcast(const struct batch *b, const fkl_level *level, const fkl_rows *q)
{
    const ptrdiff_t n = b->n, n_rows = b->n_rows;
    double *values = allocate((size_t)(n_rows * n) * sizeof(double));
    for (int items = 0; items < 2; items++) {
        for (ptrdiff_t i = 0; i < n_rows; i++)
            for (ptrdiff_t j = 0; j < n; j++)
                values[i * n + j] = rounded(&types[b->p_type], items ? 3.0 : 1.0 + 0.5 * (double)(j % 7));
        struct operand all = place(b->p_type, values, n_rows, n, CONTIGUOUS);
        struct operand one = place(b->p_type, values, 1, items ? 1 : n, CONTIGUOUS);
        one.rows.row_stride = 0;
        if (items)
            one.rows.item_stride = 0;
        struct batch stretched = *b;
        stretched.kinds = NULL;
        double *expected = run_contiguous(&stretched, level, &all.rows, q);
        for (int t = 0; t < COUNT(tasks); t++)
            for (int normalize = 0; normalize < 2; normalize++)
                compare_bits(&stretched, level, items ? "one element" : "one row", &tasks[t], normalize, &one.rows, q,
                             expected + (t * 2 + normalize) * n_rows);
        free(expected);
        free(one.memory);
        free(all.memory);
    }
    free(values);
}

static void check_batch(enum fkl_type p_type, enum fkl_type q_type, enum fkl_type row_type, ptrdiff_t n,
                        ptrdiff_t n_rows, int turn, int n_layouts, const fkl_level *const *levels)
{
    const size_t count = (size_t)(n_rows * n);
    double *p = allocate(count * sizeof(double)), *q = allocate(count * sizeof(double));
    double *positions = allocate((size_t)n * sizeof(double));
    enum kind *kinds = allocate((size_t)n_rows * sizeof(enum kind));
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        kinds[i] = (enum kind)((i + turn) % KINDS);
        fill(kinds[i], (int)(i + turn / KINDS) % 2, &types[p_type], &types[q_type], n, p + i * n, q + i * n);
    }
    for (ptrdiff_t j = 0; j < n; j++)
        positions[j] = (j > 0 ? positions[j - 1] : -3.5) + (j % 4 ? uniform() : 0.0);
    /* aligned_alloc takes multiples of the alignment; the scratch is one. */
    void *scratch = aligned_alloc(64, fkl_scratch_bytes(FKL_DISCRETE, n));
    if (!scratch)
        exit(2);
    const struct batch b = {p_type, q_type, row_type, n, n_rows, kinds, p, q, positions, scratch};
    struct operand a = place(p_type, p, n_rows, n, CONTIGUOUS), c = place(q_type, q, n_rows, n, CONTIGUOUS);
    double *results[MOST_LEVELS];
    for (int k = 0; levels[k]; k++)
        results[k] = run_contiguous(&b, levels[k], &a.rows, &c.rows);
    check_values(&b, levels, results);
    for (int k = 0; levels[k]; k++) {
        check_layouts(&b, levels[k], &a.rows, &c.rows, results[k], turn, n_layouts);
        check_broadcast(&b, levels[k], &c.rows);
        free(results[k]);
    }
    free(a.memory);
    free(c.memory);
    free(scratch);
    free(kinds);
    free(positions);
    free(p);
    free(q);
}

/* ---- Gaussians ---------------------------------------------------------------------------------------------------- */

/* What no vector kernel takes, in one place of a row each: the mean or the scale of p or of q. */
static const double odd_numbers[] = {NAN, INFINITY, -INFINITY, -1.0, 0.0, -0.0, 5e-324, 1e-310, 1e-40, 1e300, 800.0};

static real gaussian_term(enum fkl_scale scale, real m, real s, real mq, real sq)
{
    const real d = m - mq;
    if (scale == FKL_LOGVAR)
        return d * d * expl(-sq) + (expm1l(s - sq) - (s - sq));
    const real change = (s - sq) / sq, logarithm = fabsl(change) < 0.5L ? log1pl(change) : logl(s) - logl(sq);
    if (scale == FKL_VAR)
        return d * d / sq + (change - logarithm);
    return d * d / (sq * sq) + (2.0L * (change - logarithm) + change * change);
}

static void check_gaussian_value(const char *level, const char *how, enum fkl_scale scale, const struct type *type,
                                 ptrdiff_t n, ptrdiff_t row, double got, double want, double allowed)
{
    if (isfinite(allowed) && allowed > 0.0 ? fabs(got - want) <= allowed : same_bits(got, want))
        passed++;
    else if (++failed <= FAILURES_SHOWN)
        printf("%s, %s, Gaussians, scale %d, K=%td, %s, row %td: %.17g instead of %.17g\n", level, how, (int)scale, n,
               type->name, row, got, want);
}

/* Rows of a scale and type at every level: against the plain evaluation, in other layouts, alone, at other levels. */
static void check_gaussians(enum fkl_scale scale, int n_operands, enum fkl_type type, ptrdiff_t n,
                            const fkl_level *const *levels, int turn)
{
    enum { ROWS = 13, PLAIN = 9 }; /* the rows behind the plain ones hold an odd number */
    const enum fkl_type row_type = type == FKL_F64 ? FKL_F64 : FKL_F32;
    const double relative = row_type == FKL_F64 ? 1e-12 : 1e-6;
    double *values[FKL_MOST_OPERANDS], first[ROWS] = {0.0};
    for (int k = 0; k < n_operands; k++) {
        values[k] = allocate((size_t)(ROWS * n) * sizeof(double));
        for (ptrdiff_t i = 0; i < ROWS * n; i++) {
            double x = k % 2 == 0 ? 4.0 * uniform() - 2.0 : 0.2 + 2.0 * uniform();
            values[k][i] = rounded(&types[type], k % 2 && scale == FKL_LOGVAR ? log(x) : x);
        }
    }
    for (ptrdiff_t j = 0; j < n && n_operands == 4; j++) /* equal, and nearly */
        for (int k = 0; k < 2; k++) {
            values[k + 2][j] = values[k][j];
            values[k + 2][n + j] = rounded(&types[type], values[k][n + j] * (1.0 + 1e-6));
        }
    for (int i = PLAIN; i < ROWS; i++)
        values[(turn + i) % n_operands][i * n + (turn * 7 + i) % n] =
            rounded(&types[type], odd_numbers[(turn * 4 + i) % COUNT(odd_numbers)]);

    const fkl_problem problem = {.length = n, .operands = n_operands, .scale = scale, .normalize = 1, .log_base = 1.0};
    void *scratch = aligned_alloc(64, fkl_scratch_bytes(FKL_GAUSSIAN, n));
    double *result = allocate(ROWS * sizeof(double));
    if (!scratch)
        exit(2);
    for (int l = 0, seen = 0; levels[l]; l++) {
        fkl_kernel *const kernel = levels[l]->kernels[FKL_GAUSSIAN];
        double expected[ROWS];
        for (int layout = 0; layout < LAYOUTS; layout++) {
            struct operand placed[FKL_MOST_OPERANDS];
            fkl_rows operands[FKL_MOST_OPERANDS];
            for (int k = 0; k < n_operands; k++) {
                placed[k] = place(type, values[k], ROWS, n, (enum layout)(layout ? (layout + k * turn) % LAYOUTS : 0));
                operands[k] = placed[k].rows;
            }
            kernel(FKL_GAUSSIAN_KL, row_type, operands, ROWS, &problem, result, scratch);
            for (int i = 0; i < ROWS && layout; i++)
                check_gaussian_value(levels[l]->name, layout_names[layout], scale, &types[type], n, i, result[i],
                                     expected[i], 0.0);
            if (layout == 0)
                memcpy(expected, result, sizeof expected);
            for (int i = 0; i < ROWS && layout == 0; i++) {
                fkl_rows one[FKL_MOST_OPERANDS];
                for (int k = 0; k < n_operands; k++) {
                    one[k] = operands[k];
                    one[k].data += i * one[k].row_stride;
                }
                kernel(FKL_GAUSSIAN_KL, row_type, one, 1, &problem, result, scratch);
                check_gaussian_value(levels[l]->name, "alone", scale, &types[type], n, i, *result, expected[i], 0.0);
            }
            for (int k = 0; k < n_operands; k++)
                free(placed[k].memory);
        }
        for (ptrdiff_t i = 0; i < ROWS; i++) {
            real sum = 0.0L;
            for (ptrdiff_t j = i * n; j < (i + 1) * n && i < PLAIN; j++)
                sum += gaussian_term(scale, values[0][j], values[1][j], n_operands == 4 ? values[2][j] : 0.0,
                                     n_operands == 4 ? values[3][j] : scale == FKL_LOGVAR ? 0.0 : 1.0);
            if (i < PLAIN) /* the plain evaluation cancels next to 0 */
                check_gaussian_value(levels[l]->name, "value", scale, &types[type], n, i, expected[i],
                                     (double)(0.5L * sum), relative * (double)sum + (double)n * 1e-18);
            if (strcmp(levels[l]->name, "baseline") != 0 && seen)
                check_gaussian_value(levels[l]->name, "another level", scale, &types[type], n, i, expected[i], first[i],
                                     0.0);
        }
        if (strcmp(levels[l]->name, "baseline") != 0) {
            memcpy(first, expected, sizeof first);
            seen = 1;
        }
    }
    free(result);
    free(scratch);
    for (int k = 0; k < n_operands; k++)
        free(values[k]);
}

/* Full Gaussians: what of the operands is a matrix. */
enum shapes { BOTH_WHOLE, STANDARD, P_DIAGONAL, Q_DIAGONAL, SHAPES };

/* The lower Cholesky factor of a d by d covariance, or 0 where there is none. */
static int plain_factor(const real *cov, ptrdiff_t d, real *factor)
{
    for (ptrdiff_t j = 0; j < d; j++)
        for (ptrdiff_t i = 0; i < d; i++) {
            real x = cov[i * d + j];
            for (ptrdiff_t k = 0; k < j && i >= j; k++)
                x -= factor[i * d + k] * factor[j * d + k];
            if (i == j && !(x > 0.0L))
                return 0;
            factor[i * d + j] = i < j ? 0.0L : i == j ? sqrtl(x) : x / factor[j * d + j];
        }
    return 1;
}

/* The plain evaluation for one pair of means and factors, which cancels where it is near 0. */
static real plain_full(const double *m, const real *p, const double *mq, const real *q, ptrdiff_t d)
{
    real sum = 0.0L, *column = allocate((size_t)d * sizeof(real));
    for (ptrdiff_t j = 0; j <= d; j++) { /* of Lq^-1 Lp, and last of all the means */
        for (ptrdiff_t i = 0; i < d; i++) {
            column[i] = j < d ? p[i * d + j] : (real)m[i] - mq[i];
            for (ptrdiff_t k = 0; k < i; k++)
                column[i] -= q[i * d + k] * column[k];
            column[i] /= q[i * d + i];
            sum += column[i] * column[i];
        }
        if (j < d)
            sum -= 1.0L + 2.0L * logl(p[j * d + j] / q[j * d + j]);
    }
    free(column);
    return 0.5L * sum;
}

/* Pairs of a type and size at every level: against the plain evaluation, in other layouts, alone, at other levels. */
static void check_full(enum fkl_full_scale scale, enum shapes shapes, enum fkl_type type, ptrdiff_t d,
                       const fkl_level *const *levels, int turn)
{
    enum { PAIRS = 11, PLAIN = 9 }; /* the pairs behind the plain ones hold an odd number */
    const int n_operands = shapes == STANDARD ? 2 : 4;
    double *values[FKL_MOST_OPERANDS], first[PAIRS] = {0.0};
    ptrdiff_t sizes[FKL_MOST_OPERANDS];
    fkl_matrix matrices[FKL_MOST_OPERANDS] = {{0, 0, 0.0}};
    real *whole[FKL_MOST_OPERANDS] = {NULL}; /* factors */
    for (int k = 0; k < 4; k++) {
        const int is_scale = k % 2, is_whole = is_scale && shapes != (k == 1 ? P_DIAGONAL : Q_DIAGONAL);
        sizes[k] = is_whole ? d * d : d;
        matrices[k].whole = is_whole;
        matrices[k].asymmetry = 0x1p-4;
        values[k] = allocate((size_t)(PAIRS * sizes[k]) * sizeof(double));
        for (ptrdiff_t at = 0; at < PAIRS * sizes[k]; at++) {
            const ptrdiff_t i = at % sizes[k] / d, j = at % d;
            const int diagonal = !is_whole || i == j;
            double x = 2.0 * uniform() - 1.0;
            if (is_scale)
                x = diagonal ? 2.0 + x : scale == FKL_CHOLESKY && j > i ? 0.0 : 0.5 * x / (double)d;
            values[k][at] = types[type].digits ? rounded(&types[type], x) : is_scale ? diagonal * 3.0 : floor(4.0 * x);
            if (k >= 2 && shapes == STANDARD)
                values[k][at] = is_scale && diagonal;
        }
        for (ptrdiff_t at = 0; at < PAIRS * sizes[k] && is_whole && scale == FKL_COVARIANCE; at++) {
            const ptrdiff_t pair = at / sizes[k], i = at % sizes[k] / d, j = at % d;
            values[k][at] = values[k][pair * sizes[k] + (i < j ? j * d + i : i * d + j)];
        }
        if (is_scale)
            whole[k] = allocate((size_t)(d * d) * sizeof(real));
    }
    if (shapes == BOTH_WHOLE) /* equal ones */
        for (int k = 0; k < 2; k++)
            memcpy(values[k + 2], values[k], (size_t)sizes[k] * sizeof(double));
    for (int i = PLAIN; i < PAIRS && types[type].digits; i++) {
        const int k = (turn + i) % n_operands;
        values[k][i * sizes[k] + (turn * 7 + i) % sizes[k]] =
            rounded(&types[type], odd_numbers[(turn * 4 + i) % COUNT(odd_numbers)]);
    }

    const fkl_problem problem = {.length = d, .operands = n_operands, .scale = scale, .matrices = matrices};
    void *scratch = aligned_alloc(64, fkl_scratch_bytes(FKL_GAUSSIAN_FULL, d));
    double *result = allocate(PAIRS * sizeof(double));
    if (!scratch)
        exit(2);
    for (int l = 0, seen = 0; levels[l]; l++) {
        fkl_kernel *const kernel = levels[l]->kernels[FKL_GAUSSIAN_FULL];
        double expected[PAIRS];
        for (int layout = 0; layout < LAYOUTS; layout++) {
            struct operand placed[FKL_MOST_OPERANDS];
            fkl_rows operands[FKL_MOST_OPERANDS];
            for (int k = 0; k < n_operands; k++) {
                const enum layout here = (enum layout)(layout ? (layout + k * turn) % LAYOUTS : 0);
                placed[k] = place(type, values[k], PAIRS, sizes[k], here);
                operands[k] = placed[k].rows;
                matrices[k].line_stride = d * operands[k].item_stride;
            }
            kernel(FKL_GAUSSIAN_KL, FKL_F64, operands, PAIRS, &problem, result, scratch);
            for (int i = 0; i < PAIRS && layout; i++)
                check_gaussian_value(levels[l]->name, layout_names[layout], FKL_VAR, &types[type], d, i, result[i],
                                     expected[i], 0.0);
            if (layout == 0)
                memcpy(expected, result, sizeof expected);
            for (int i = 0; i < PAIRS && layout == 0; i++) {
                fkl_rows one[FKL_MOST_OPERANDS];
                for (int k = 0; k < n_operands; k++) {
                    one[k] = operands[k];
                    one[k].data += i * one[k].row_stride;
                }
                kernel(FKL_GAUSSIAN_KL, FKL_F64, one, 1, &problem, result, scratch);
                check_gaussian_value(levels[l]->name, "full, alone", FKL_VAR, &types[type], d, i, *result, expected[i],
                                     0.0);
            }
            for (int k = 0; k < n_operands; k++)
                free(placed[k].memory);
        }
        for (ptrdiff_t i = 0; i < PAIRS; i++) {
            int definite = i < PLAIN;
            for (int k = 1; k < 4 && definite; k += 2) {
                real *const matrix = allocate((size_t)(d * d) * sizeof(real));
                const double *const given = values[k] + i * sizes[k];
                for (ptrdiff_t at = 0; at < d * d; at++)
                    matrix[at] = matrices[k].whole ? given[at] : at % (d + 1) ? 0.0 : given[at / (d + 1)];
                if (scale == FKL_CHOLESKY)
                    memcpy(whole[k], matrix, (size_t)(d * d) * sizeof(real));
                else
                    definite = plain_factor(matrix, d, whole[k]);
                free(matrix);
            }
            if (definite) {
                const real value = plain_full(values[0] + i * d, whole[1], values[2] + i * d, whole[3], d);
                check_gaussian_value(levels[l]->name, "full", FKL_VAR, &types[type], d, i, expected[i], (double)value,
                                     1e-11 * (double)value + (double)d * 1e-17);
            }
            if (strcmp(levels[l]->name, "baseline") != 0 && seen)
                check_gaussian_value(levels[l]->name, "full, another level", FKL_VAR, &types[type], d, i, expected[i],
                                     first[i], 0.0);
        }
        if (strcmp(levels[l]->name, "baseline") != 0) {
            memcpy(first, expected, sizeof first);
            seen = 1;
        }
    }
    free(result);
    free(scratch);
    for (int k = 0; k < 4; k++) {
        free(values[k]);
        free(whole[k]);
    }
}

/* ---- logits --------------------------------------------------------------------------------------------------------- */

static const struct task logits_tasks[] = {
    {FKL_LOGITS_KL, 0.0, "kl"},
    {FKL_LOGITS_REVERSE_KL, 0.0, "reverse_kl"},
    {FKL_LOGITS_JS, 0.5, "js(0.5)"},
    {FKL_LOGITS_JS, 0.3, "js(0.3)"},
    {FKL_LOGITS_JS_DISTANCE, 0.9, "js_distance(0.9)"},
    {FKL_LOGITS_CROSS_ENTROPY, 0.0, "cross_entropy"},
    {FKL_LOGITS_ENTROPY, 0.0, "entropy"},
    {FKL_LOGITS_TOP1_AGREEMENT, 0.0, "top1_agreement"},
    {FKL_LOGITS_KL_GRAD, 1.5, "kl_grad"}, /* the gradients from here on */
    {FKL_LOGITS_KL_GRAD_Q, -0.75, "kl_grad_q"},
};
#define FIRST_GRADIENT 8

enum logits_kind {
    MODERATE, SAME, CLOSE, SHIFTED, P_MASKED, Q_MASKED, BOTH_MASKED, APART, FAR_APART, RISING, ENDS, ODD_NUMBER,
    NOTHING, LOGITS_KINDS
};
static const char *const logits_kind_names[LOGITS_KINDS] = {
    "moderate", "same", "close", "shifted", "p masked", "q masked", "both masked", "apart", "far apart", "rising",
    "ends of the range", "NaN or +inf", "nothing"
};

/* One pair of rows, as numbers that the types have. */
static void fill_logits(enum logits_kind kind, int turn, const struct type *p_type, const struct type *q_type,
                        ptrdiff_t n, double *p, double *q)
{
    const double most = fmin(p_type->most, q_type->most), shift = 100.0 * uniform();
    const ptrdiff_t at = (ptrdiff_t)(random_bits() % (uint64_t)n);
    for (ptrdiff_t j = 0; j < n; j++) {
        const double width = kind == APART ? 100.0 : kind == FAR_APART ? 3e4 : kind == ENDS ? 0.9 * most : 6.0;
        const int masked = j != at && random_bits() % 3 == 0;
        p[j] = rounded(p_type, width * (2.0 * uniform() - 1.0) + (kind == RISING ? 0.3 * (double)j : 0.0));
        q[j] = kind == SAME      ? p[j]
               : kind == CLOSE   ? p[j] + 1e-2 * uniform()
               : kind == SHIFTED ? p[j] + shift + uniform()
                                 : width * (2.0 * uniform() - 1.0);
        if (kind == NOTHING || (masked && (kind == P_MASKED || kind == BOTH_MASKED)))
            p[j] = kind == NOTHING && turn % 2 ? p[j] : -INFINITY;
        if (kind == NOTHING || (masked && (kind == Q_MASKED || kind == BOTH_MASKED)))
            q[j] = kind == NOTHING && turn % 2 == 0 ? q[j] : -INFINITY;
        q[j] = rounded(q_type, q[j]);
    }
    if (kind == ODD_NUMBER)
        (turn % 2 ? q : p)[at] = turn % 4 < 2 ? (double)NAN : (double)INFINITY;
}

/* A batch of rows, and how they are to be worked on. */
struct logits_batch {
    enum fkl_type p_type, q_type, row_type;
    ptrdiff_t n, n_rows;
    const enum logits_kind *kinds;
    const double *p, *q;
    double temperature;
    void *scratch;
};

static fkl_problem logits_problem(const struct logits_batch *b, const struct task *task)
{
    const int gradients = task->op == FKL_LOGITS_KL_GRAD ? 2 : task->op == FKL_LOGITS_KL_GRAD_Q;
    return (fkl_problem){.length = b->n, .operands = 2 + gradients, .normalize = 1, .parameter = task->parameter,
                         .log_base = b->n % 2 ? 0.69314718055994531 : 1.0, .temperature = b->temperature};
}

/* What a task gives: a result for each row, and the gradients one after the other. */
static ptrdiff_t logits_results(const struct logits_batch *b) { return b->n_rows * (1 + 2 * b->n); }

static void run_logits(const struct logits_batch *b, const fkl_level *level, const struct task *task,
                       const fkl_rows *p, const fkl_rows *q, enum fkl_type output, enum layout layout, double *results)
{
    const fkl_problem problem = logits_problem(b, task);
    const ptrdiff_t count = b->n_rows * b->n;
    double *result = allocate((size_t)b->n_rows * sizeof(double)), *unset = allocate((size_t)count * sizeof(double));
    fkl_rows operands[FKL_MOST_OPERANDS] = {*p, *q};
    struct operand outputs[2] = {{{0}, NULL}};
    for (ptrdiff_t i = 0; i < count; i++)
        unset[i] = 1e30;
    for (int k = 0; k < problem.operands - 2; k++) {
        outputs[k] = place(output, unset, b->n_rows, b->n, layout == SWAPPED ? CONTIGUOUS : layout);
        operands[2 + k] = outputs[k].rows;
    }
    level->kernels[FKL_LOGITS](task->op, b->row_type, operands, b->n_rows, &problem, result, b->scratch);
    memcpy(results, result, (size_t)b->n_rows * sizeof(double));
    for (int k = 0; k < problem.operands - 2; k++) {
        const fkl_rows *from = &outputs[k].rows;
        for (ptrdiff_t i = 0; i < count; i++) {
            const char *at = from->data + i / b->n * from->row_stride + i % b->n * from->item_stride;
            float narrow;
            memcpy(&narrow, at, sizeof narrow);
            results[b->n_rows + k * count + i] = narrow;
            if (output == FKL_F64)
                memcpy(&results[b->n_rows + k * count + i], at, sizeof *results);
        }
        free(outputs[k].memory);
    }
    free(unset);
    free(result);
}

static void report_logits(const struct logits_batch *b, const char *level, const char *how, const struct task *task,
                          ptrdiff_t row, ptrdiff_t element, double got, real want)
{
    if (++failed > FAILURES_SHOWN)
        return;
    printf("%s, %s, logits, %s, K=%td, T=%g, %s and %s as %s, row %td of %td (%s), ", level, how, task->name, b->n,
           b->temperature, types[b->p_type].name, types[b->q_type].name, types[b->row_type].name, row, b->n_rows,
           logits_kind_names[b->kinds[row]]);
    if (element >= 0)
        printf("gradient %td: ", element);
    printf("%.17g instead of %.20Lg\n", got, want);
}

/* Has a task given the bits of `expected`, in which there may be more rows, of which these begin at `first`? */
static void compare_logits(const struct logits_batch *b, const char *level, const char *how, const struct task *task,
                           const double *results, const double *expected, ptrdiff_t first, ptrdiff_t expected_rows)
{
    const int gradients = logits_problem(b, task).operands - 2;
    for (ptrdiff_t i = 0; i < b->n_rows; i++) {
        if (same_bits(results[i], expected[first + i]))
            passed++;
        else
            report_logits(b, level, how, task, i, -1, results[i], expected[first + i]);
        for (ptrdiff_t j = 0, different = 0; j < gradients * b->n && !different; j++) {
            const ptrdiff_t k = j / b->n, element = j % b->n;
            const double got = results[b->n_rows * (1 + k * b->n) + i * b->n + element];
            const double want = expected[expected_rows * (1 + k * b->n) + (first + i) * b->n + element];
            different = !same_bits(got, want);
            if (different)
                report_logits(b, level, how, task, i, j, got, want);
        }
    }
}

/* The plain evaluation: of a row of logits its validity and, of each element, the probability and its logarithm. */
static int plain_softmax(const double *logits, ptrdiff_t n, double temperature, real *share, real *logarithm)
{
    real most = -INFINITY, sum = 0.0L;
    int valid = 1;
    for (ptrdiff_t j = 0; j < n; j++) {
        valid &= logits[j] < INFINITY;
        most = logits[j] > most ? (real)logits[j] : most;
    }
    if (!valid || most == -INFINITY)
        return 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        logarithm[j] = ((real)logits[j] - most) / temperature;
        share[j] = expl(logarithm[j]);
        sum += share[j];
    }
    for (ptrdiff_t j = 0; j < n; j++) {
        share[j] /= sum;
        logarithm[j] -= logl(sum);
    }
    return 1;
}

static ptrdiff_t highest(const double *logits, ptrdiff_t n)
{
    ptrdiff_t at = 0;
    for (ptrdiff_t j = 1; j < n; j++)
        at = logits[j] > logits[at] ? j : at;
    return at;
}

struct softmaxes {
    const double *a, *b; /* logits */
    ptrdiff_t n;
    int p_valid, q_valid;
    real *p, *q, *log_p, *log_q;
};

static struct expectation expect_logits(const struct task *task, const struct softmaxes *r)
{
    const int op = task->op, is_js = op == FKL_LOGITS_JS || op == FKL_LOGITS_JS_DISTANCE;
    const real w = task->parameter, v = 1.0L - w;
    struct expectation e = {0.0L, 0.0L, 0.0L};
    if (!r->p_valid || (!r->q_valid && op != FKL_LOGITS_ENTROPY))
        return certain(NAN);
    if (op == FKL_LOGITS_TOP1_AGREEMENT)
        return certain(highest(r->a, r->n) == highest(r->b, r->n));
    for (ptrdiff_t j = 0; j < r->n; j++) {
        const int turned = op == FKL_LOGITS_REVERSE_KL;
        const double a = turned ? r->b[j] : r->a[j], b = turned ? r->a[j] : r->b[j];
        const real p = turned ? r->q[j] : r->p[j], q = turned ? r->p[j] : r->q[j];
        const real log_p = turned ? r->log_q[j] : r->log_p[j], log_q = turned ? r->log_p[j] : r->log_q[j];
        real term = 0.0L, size = 0.0L;
        if (is_js) {
            const real m = w * p + v * q, log_m = m > 0.0L ? logl(m) : 0.0L;
            term = (p > 0.0L ? w * p * (log_p - log_m) : 0.0L) + (q > 0.0L ? v * q * (log_q - log_m) : 0.0L);
            size = m > 0.0L ? m * (1.0L + fabsl(log_m)) : 0.0L;
        } else if (op == FKL_LOGITS_ENTROPY) {
            term = p > 0.0L ? -p * log_p : 0.0L;
            size = fabsl(term) + p;
        } else if (a > -INFINITY) {
            if (b == -INFINITY)
                return certain(INFINITY);
            term = p * (op == FKL_LOGITS_CROSS_ENTROPY ? -log_q : log_p - log_q);
            size = p * (1.0L + fabsl(log_p) + fabsl(log_q));
        }
        e.value += term;
        e.noise += size * (1.0L + (p > 0.0L ? fabsl(log_p) : 0.0L));
    }
    e.size = fabsl(e.value);
    return e;
}

static int agrees_logits(double result, const struct task *task, struct expectation e, const fkl_problem *problem,
                         double relative, double least)
{
    const real scale = task->op == FKL_LOGITS_TOP1_AGREEMENT ? 1.0L : (real)problem->log_base;
    const real got = task->op == FKL_LOGITS_JS_DISTANCE ? (real)result * result : (real)result, value = e.value / scale;
    if (isnan(value) || isinf(value))
        return isnan(value) ? isnan(result) : got == value;
    const real allowed = (relative * e.size + 16.0L * LDBL_EPSILON * e.noise) / scale + least;
    return isinf(result) ? value + allowed > DBL_MAX : got >= 0.0L && fabsl(got - value) <= allowed;
}

/* The gradients of row i, of which the larger of two terms bounds the error. */
static void check_gradients(const struct logits_batch *b, const char *level, const struct task *task, ptrdiff_t i,
                            const struct softmaxes *r, const double *results, double relative)
{
    static const struct task kl_task = {FKL_LOGITS_KL, 0.0, "kl"};
    const int gradients = logits_problem(b, task).operands - 2;
    const real factor = (real)task->parameter / b->temperature, kl = expect_logits(&kl_task, r).value;
    for (int k = 0; k < gradients; k++)
        for (ptrdiff_t j = 0; j < b->n; j++) {
            const double got = results[b->n_rows * (1 + k * b->n) + i * b->n + j];
            const real log_ratio = r->log_p[j] - r->log_q[j];
            real want = NAN, size = 0.0L;
            if (r->p_valid && r->q_valid && k + 1 == gradients) {
                want = factor * (r->q[j] - r->p[j]);
                const real by_p = r->p[j] > 0.0L ? r->p[j] * (1.0L + fabsl(r->log_p[j])) : 0.0L;
                const real by_q = r->q[j] > 0.0L ? r->q[j] * (1.0L + fabsl(r->log_q[j])) : 0.0L;
                size = fabsl(factor) * fmaxl(by_p, by_q);
            } else if (r->p_valid && r->q_valid && !isinf(kl)) {
                want = r->p[j] > 0.0L ? factor * r->p[j] * (log_ratio - kl) : 0.0L;
                size = r->p[j] > 0.0L ? fabsl(factor) * r->p[j] * (1.0L + fabsl(log_ratio) + kl) : 0.0L;
            }
            const int near = fabsl(got - want) <= relative * size + 1e-44L || (isinf(got) && size > FLT_MAX);
            if (isnan(want) ? isnan(got) : near) {
                passed++;
            } else {
                report_logits(b, level, "value", task, i, k * b->n + j, got, want);
                return;
            }
        }
}

/* Every task at every level: against the plain evaluation and the other levels with FMA, in other layouts, alone. */
static void check_logits(enum fkl_type p_type, enum fkl_type q_type, enum fkl_type row_type, ptrdiff_t n,
                         ptrdiff_t n_rows, int turn, int n_layouts, const fkl_level *const *levels)
{
    static const double temperatures[] = {1.0, 2.5, 0.1, 30.0};
    const double relative = row_type == FKL_F64 ? 1e-12 : 1e-6, least = row_type == FKL_F64 ? 1e-30 : 1e-15;
    const enum fkl_type output = turn % 3 ? FKL_F32 : FKL_F64; /* of the gradients */
    double *p = allocate((size_t)(n_rows * n) * sizeof(double)), *q = allocate((size_t)(n_rows * n) * sizeof(double));
    enum logits_kind *kinds = allocate((size_t)n_rows * sizeof(enum logits_kind));
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        kinds[i] = (enum logits_kind)((i + turn * n_rows) % LOGITS_KINDS);
        fill_logits(kinds[i], turn + (int)i, &types[p_type], &types[q_type], n, p + i * n, q + i * n);
    }
    void *scratch = aligned_alloc(64, fkl_scratch_bytes(FKL_LOGITS, n));
    if (!scratch)
        exit(2);
    const struct logits_batch b = {p_type, q_type, row_type, n, n_rows, kinds, p, q,
                                   temperatures[turn % COUNT(temperatures)], scratch};
    const size_t results_size = (size_t)logits_results(&b) * sizeof(double);
    double *expected[COUNT(logits_tasks)], *first[COUNT(logits_tasks)] = {NULL}, *results = allocate(results_size);
    real *shares[4];
    for (int k = 0; k < 4; k++)
        shares[k] = allocate((size_t)n * sizeof(real));
    for (int l = 0; levels[l]; l++) {
        const char *const name = levels[l]->name;
        struct operand x = place(p_type, p, n_rows, n, CONTIGUOUS), y = place(q_type, q, n_rows, n, CONTIGUOUS);
        for (int t = 0; t < COUNT(logits_tasks); t++) {
            expected[t] = allocate(results_size);
            run_logits(&b, levels[l], &logits_tasks[t], &x.rows, &y.rows, output, CONTIGUOUS, expected[t]);
        }
        for (ptrdiff_t i = 0; i < n_rows; i++) {
            struct softmaxes r = {p + i * n, q + i * n, n, 0, 0, shares[0], shares[1], shares[2], shares[3]};
            r.p_valid = plain_softmax(r.a, n, b.temperature, r.p, r.log_p);
            r.q_valid = plain_softmax(r.b, n, b.temperature, r.q, r.log_q);
            for (int t = 0; t < FIRST_GRADIENT; t++) {
                const fkl_problem problem = logits_problem(&b, &logits_tasks[t]);
                struct expectation e = expect_logits(&logits_tasks[t], &r);
                if (kinds[i] == SAME && p_type == q_type && logits_tasks[t].op <= FKL_LOGITS_JS_DISTANCE)
                    e = certain(0.0L);
                const int zero = e.value == 0.0L && e.noise == 0.0L;
                if (zero ? expected[t][i] == 0.0
                         : agrees_logits(expected[t][i], &logits_tasks[t], e, &problem, relative, least))
                    passed++;
                else
                    report_logits(&b, name, "value", &logits_tasks[t], i, -1, expected[t][i],
                                  e.value / problem.log_base);
            }
            for (int t = FIRST_GRADIENT; t < COUNT(logits_tasks); t++) {
                check_gradients(&b, name, &logits_tasks[t], i, &r, expected[t],
                                row_type == FKL_F64 && output == FKL_F64 ? 1e-12 : 1e-6);
                if (same_bits(expected[t][i], expected[0][i]))
                    passed++;
                else
                    report_logits(&b, name, "beside its gradients", &logits_tasks[t], i, -1, expected[t][i],
                                  expected[0][i]);
            }
        }
        for (int k = 0; k < n_layouts; k++) {
            const enum layout layout = (enum layout)((turn + k) % LAYOUTS);
            const enum layout other = (enum layout)((layout + 3 * k) % LAYOUTS);
            struct operand c = place(p_type, p, n_rows, n, layout), d = place(q_type, q, n_rows, n, other);
            for (int t = 0; t < COUNT(logits_tasks); t++) {
                run_logits(&b, levels[l], &logits_tasks[t], &c.rows, &d.rows, output, layout, results);
                compare_logits(&b, name, layout_names[layout], &logits_tasks[t], results, expected[t], 0, n_rows);
            }
            free(c.memory);
            free(d.memory);
        }
        struct logits_batch one = b;
        one.n_rows = 1;
        for (ptrdiff_t i = 0; i < n_rows; i++) {
            const int t = (int)(i + turn) % COUNT(logits_tasks);
            fkl_rows c = x.rows, d = y.rows;
            c.data += i * c.row_stride;
            d.data += i * d.row_stride;
            one.kinds = kinds + i;
            run_logits(&one, levels[l], &logits_tasks[t], &c, &d, output, CONTIGUOUS, results);
            compare_logits(&one, name, "alone", &logits_tasks[t], results, expected[t], i, n_rows);
        }
        /* Row 0 of p against all of q, by a stride of 0 and by copies. */
        double *copies = allocate((size_t)(n_rows * n) * sizeof(double)), *by_copies = allocate(results_size);
        for (ptrdiff_t i = 0; i < n_rows; i++)
            memcpy(copies + i * n, p, (size_t)n * sizeof(double));
        struct operand c = place(p_type, copies, n_rows, n, CONTIGUOUS);
        struct operand d = place(p_type, p, 1, n, (enum layout)(turn % LAYOUTS));
        d.rows.row_stride = 0;
        for (int t = turn % 2; t < COUNT(logits_tasks); t += 2) {
            run_logits(&b, levels[l], &logits_tasks[t], &c.rows, &y.rows, output, CONTIGUOUS, by_copies);
            run_logits(&b, levels[l], &logits_tasks[t], &d.rows, &y.rows, output, CONTIGUOUS, results);
            compare_logits(&b, name, "one row", &logits_tasks[t], results, by_copies, 0, n_rows);
        }
        free(c.memory);
        free(d.memory);
        free(copies);
        free(by_copies);
        free(x.memory);
        free(y.memory);
        for (int t = 0; t < COUNT(logits_tasks); t++) {
            if (first[t])
                compare_logits(&b, name, "another level", &logits_tasks[t], expected[t], first[t], 0, n_rows);
            if (first[t] || strcmp(name, "baseline") == 0)
                free(expected[t]);
            else
                first[t] = expected[t];
        }
    }
    for (int t = 0; t < COUNT(logits_tasks); t++)
        free(first[t]);
    for (int k = 0; k < 4; k++)
        free(shares[k]);
    free(results);
    free(scratch);
    free(kinds);
    free(p);
    free(q);
}

/* ---- single elements ------------------------------------------------------------------------------------------------ */

/* The number that these bytes of a type of the first FKL_ROW_TYPES are. */
static double decode(enum fkl_type type, const char *from)
{
    double x;
    float y;
    uint16_t half;
    if (type == FKL_F64) {
        memcpy(&x, from, 8);
        return x;
    }
    if (type == FKL_F32) {
        memcpy(&y, from, 4);
        return y;
    }
    memcpy(&half, from, 2);
    if (type == FKL_BF16) {
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(&y, &bits, 4);
        return y;
    }
    const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    x = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : ldexp(exponent ? fraction + 0x400 : fraction, (exponent ? exponent : 1) - 25);
    return half & 0x8000 ? -x : x;
}

/* The value, and in *size how large the parts are of which it is the difference. */
static real plain_element(enum fkl_element_op op, real x, real y, real *size)
{
    const real logarithm = op == FKL_KL_TERM_LOG ? y : logl(op == FKL_KL_TERM ? y : x) -
                                                       (op == FKL_REL_ENTR || op == FKL_KL_DIV ? logl(y) : 0.0L);
    const int none = x == 0.0L && y >= 0.0L, outside = x < 0.0L || y < 0.0L || (y == 0.0L && x > 0.0L);
    *size = 0.0L;
    if (isnan(x) || (isnan(y) && op != FKL_ENTR))
        return NAN;
    if (op == FKL_ENTR) {
        *size = x > 0.0L ? fabsl(x * logarithm) : 0.0L;
        return x == 0.0L ? 0.0L : x < 0.0L ? -INFINITY : -x * logarithm;
    }
    if (op == FKL_REL_ENTR || op == FKL_KL_DIV) {
        *size = none || outside ? 0.0L : fabsl(x) * (fabsl(logl(x)) + fabsl(logl(y)) + 1.0L) + fabsl(y);
        if (none || outside)
            return outside ? INFINITY : op == FKL_KL_DIV ? y : 0.0L;
        if (isinf(x) && isinf(y))
            return NAN;
        if (op == FKL_KL_DIV && (isinf(x) || isinf(y)))
            return INFINITY;
        return x * logarithm - (op == FKL_KL_DIV ? x - y : 0.0L);
    }
    const real weight = op == FKL_KL_TERM ? y : isinf(x) ? (real)exp((double)y) : expl(y);
    *size = weight == 0.0L ? 0.0L : fabsl(weight) * (fabsl(logarithm) + fabsl(x));
    if (op == FKL_KL_TERM && (weight == 0.0L || isinf(weight))) /* as PyTorch's product and difference are */
        return (weight == 0.0L ? 0.0L : weight * logarithm) - weight * x;
    return weight * (logarithm - x);
}

static void check_element(const char *level, const char *how, int op, enum fkl_type type, ptrdiff_t n, ptrdiff_t i,
                          double got, real want, real allowed)
{
    const real most = types[type].most * (1.0L + 0x1p-9L);
    const int infinite = fabsl(want) > most, near = fabsl(want) > types[type].most * 0.99L; /* either will do */
    if ((isnan(want) && isnan(got)) || (near && isinf(got) && got * want > 0.0L) ||
        (!infinite && fabsl(got - want) <= allowed))
        passed++;
    else if (++failed <= FAILURES_SHOWN)
        printf("%s, %s, operation %d, n=%td, %s, element %td: %.17g instead of %.20Lg\n", level, how, op, n,
               types[type].name, i, got, want);
}

/* Elements of every operation at a type and every level: against the plain evaluation, in other layouts and in place,
 * at other levels; and sums of terms over rows of n, alone and in other layouts. */
static void check_elements(enum fkl_type type, ptrdiff_t n, const fkl_level *const *levels, int turn)
{
    const ptrdiff_t size = types[type].size;
    const real relative = type == FKL_F64 ? 1e-14L : type == FKL_F32 ? 4e-7L : type == FKL_F16 ? 1e-3L : 8e-3L;
    double *values[2], *expected = allocate((size_t)n * sizeof(double)), *first = allocate((size_t)n * sizeof(double));
    for (int op = 0; op < FKL_ELEMENT_OPS; op++) {
        const int operands = op == FKL_ENTR ? 1 : 2, is_term = op == FKL_KL_TERM || op == FKL_KL_TERM_LOG;
        if (!is_term && type != FKL_F64 && type != FKL_F32)
            continue;
        for (int k = 0; k < 2; k++) {
            values[k] = allocate((size_t)n * sizeof(double));
            for (ptrdiff_t i = 0; i < n; i++) {
                const double x = i % 3 == turn % 3 && turn % 2 ? odd_numbers[random_bits() % COUNT(odd_numbers)]
                                                               : uniform();
                values[k][i] = rounded(&types[type], is_term && (k == 0 || op == FKL_KL_TERM_LOG) && x > 0.0 && x < 1.0
                                                         ? 4.0 * log(x) : x);
            }
        }
        real sum = 0.0L, sum_size = 0.0L;
        for (ptrdiff_t i = 0; i < n; i++) {
            real part;
            sum += plain_element((enum fkl_element_op)op, values[0][i], values[1][i], &part);
            sum_size += part;
        }
        for (int l = 0, seen = 0; levels[l]; l++) {
            for (int layout = 0; layout < LAYOUTS; layout++) {
                struct operand placed[2];
                char *arrays[3];
                ptrdiff_t strides[3];
                for (int k = 0; k < 2; k++) {
                    placed[k] = place(type, values[k], 1, n, (enum layout)((layout + k * turn * (layout > 0)) % LAYOUTS));
                    arrays[k] = (char *)(uintptr_t)placed[k].rows.data;
                    strides[k] = placed[k].rows.item_stride;
                }
                if (placed[0].rows.swapped || placed[1].rows.swapped) {
                    free(placed[0].memory);
                    free(placed[1].memory);
                    continue;
                }
                const fkl_rows rows[2] = {placed[0].rows, placed[1].rows};
                for (int in_place = 0; in_place < 2; in_place++) {
                    /* Forwards, backwards, and with gaps that must stay as they are. */
                    const ptrdiff_t stride = layout % 3 == 0 ? size : layout % 3 == 1 ? -size : 2 * size;
                    char *memory = allocate((size_t)(n * 2 * size));
                    memset(memory, 0x5a, (size_t)(n * 2 * size));
                    arrays[operands] = in_place ? arrays[0] : stride < 0 ? memory + (n - 1) * size : memory;
                    strides[operands] = in_place ? strides[0] : stride;
                    levels[l]->elementwise(op, type, n, arrays, strides);
                    for (ptrdiff_t i = 0; i < n; i++) {
                        const double got = decode(type, arrays[operands] + i * strides[operands]);
                        real part;
                        const real want = plain_element((enum fkl_element_op)op, values[0][i], values[1][i], &part);
                        if (layout == 0 && !in_place) {
                            check_element(levels[l]->name, "value", op, type, n, i, got, want,
                                          relative * part + (real)types[type].normal * relative);
                            expected[i] = got;
                        } else if (same_bits(got, expected[i])) {
                            passed++;
                        } else if (++failed <= FAILURES_SHOWN) {
                            printf("%s, %s, operation %d, n=%td, %s: other bits\n", levels[l]->name,
                                   in_place ? "in place" : layout_names[layout], op, n, types[type].name);
                        }
                        if (!in_place && stride == 2 * size && decode(type, arrays[operands] + i * stride + size) !=
                                                                   decode(type, memory + (2 * n - 1) * size))
                            failed++;
                    }
                    free(memory);
                    if (in_place == 0 && is_term && isfinite((double)sum)) {
                        const fkl_problem problem = {.length = n};
                        double result;
                        levels[l]->kernels[FKL_TERMS](op, type, rows, 1, &problem, &result, NULL);
                        /* Exponentials of floats are floats: terms that are none count as 0. */
                        const real lost = op == FKL_KL_TERM_LOG && type != FKL_F64 ? (real)n * 0x1p-149L : 0.0L;
                        check_element(levels[l]->name, "sum", op, FKL_F64, n, 0, result, sum,
                                      (op == FKL_KL_TERM ? 1e-14L : 4e-7L) * sum_size + lost);
                    }
                    if (layout % LAYOUTS != 0 && strides[0] == 0)
                        break; /* one element for all cannot be overwritten */
                }
                free(placed[0].memory);
                free(placed[1].memory);
            }
            for (ptrdiff_t i = 0; i < n && seen && strcmp(levels[l]->name, "baseline") != 0; i++)
                if (same_bits(expected[i], first[i]))
                    passed++;
                else if (++failed <= FAILURES_SHOWN)
                    printf("%s, operation %d, n=%td, %s: other bits than another level's\n", levels[l]->name, op, n,
                           types[type].name);
            if (strcmp(levels[l]->name, "baseline") != 0) {
                memcpy(first, expected, (size_t)n * sizeof(double));
                seen = 1;
            }
        }
        free(values[0]);
        free(values[1]);
    }
    free(expected);
    free(first);
}

/* The functions of vmath.h over arrays of exactly their size; what they compute is for tests/test_vmath.py. */
static void check_probe(const fkl_level *level)
{
    for (int function = 0; function < FKL_PROBES; function++)
        for (ptrdiff_t n = 16; n <= 48; n += 16) {
            double *a = allocate((size_t)n * sizeof(double)), *b = allocate((size_t)n * sizeof(double));
            double *result = allocate((size_t)n * sizeof(double));
            for (ptrdiff_t i = 0; i < n; i++)
                a[i] = uniform(), b[i] = uniform();
            level->probe(function, n, a, b, result);
            for (ptrdiff_t i = 0; i < n; i++)
                if (isfinite(result[i]))
                    passed++;
                else
                    failed++;
            free(a);
            free(b);
            free(result);
        }
}

/* Whether a case is taken: one of so many, spread over lengths and types alike. */
static int is_taken(int turn, int every)
{
    return ((uint32_t)turn * UINT32_C(2654435761) >> 16) % (uint32_t)every == 0;
}

int main(int arguments, char **argument)
{
    /* The types of p, of q, and the one in which their rows are held. Long rows go through the first few. */
    static const enum fkl_type pairs[][3] = {
        {FKL_F64, FKL_F64, FKL_F64}, {FKL_F32, FKL_F32, FKL_F32}, {FKL_F16, FKL_F16, FKL_F16},
        {FKL_BF16, FKL_BF16, FKL_BF16}, {FKL_U64, FKL_F64, FKL_F64}, {FKL_F32, FKL_BF16, FKL_F32},
        {FKL_F16, FKL_BF16, FKL_F32}, {FKL_U8, FKL_F16, FKL_F32}, {FKL_F32, FKL_F64, FKL_F64},
        {FKL_I8, FKL_I8, FKL_F64}, {FKL_I16, FKL_U16, FKL_F64}, {FKL_I32, FKL_I32, FKL_F64},
        {FKL_I64, FKL_I64, FKL_F64}, {FKL_U8, FKL_U8, FKL_F64}, {FKL_U32, FKL_I16, FKL_F64},
    };
    static const int logits_pairs[] = {0, 1, 2, 3, 6, 8}; /* of these */
    static const ptrdiff_t lengths[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 97, 255, 256, 257, 1000, 4097, 9000};
    const fkl_level *levels[MOST_LEVELS] = {NULL};
    const int every = arguments > 1 ? atoi(argument[1]) : 1;
    int n_levels = 0, turn = 0;

    if (every < 1)
        return 2;

    for (int k = 0; fkl_levels[k] && n_levels + 1 < MOST_LEVELS; k++) {
        int usable = fkl_level_usable(fkl_levels[k]->name);
        printf("%s%s\n", fkl_levels[k]->name, usable ? "" : ": this CPU can't run it");
        if (usable)
            levels[n_levels++] = fkl_levels[k];
    }
    for (int k = 0; k < n_levels; k++)
        check_probe(levels[k]);
    for (int i = 0; i < COUNT(lengths); i++)
        for (int j = 0; j < COUNT(pairs); j++, turn++) {
            const ptrdiff_t n = lengths[i];
            if (!is_taken(turn, every))
                continue;
            if (n <= 33) /* all kinds of rows in all layouts; two groups of eight and a part of one */
                check_batch(pairs[j][0], pairs[j][1], pairs[j][2], n, 19, turn, LAYOUTS, levels);
            else if (n <= 257)
                check_batch(pairs[j][0], pairs[j][1], pairs[j][2], n, 9, turn, 3, levels);
            else if (j < 4)
                check_batch(pairs[j][0], pairs[j][1], pairs[j][2], n, n <= 4097 ? 5 : 2, turn, 2, levels);
        }
    static const enum fkl_type gaussian_types[] = {FKL_F64, FKL_F32, FKL_F16, FKL_BF16, FKL_I16};
    for (int i = 0; i < COUNT(lengths); i++)
        for (int scale = FKL_VAR; scale <= FKL_LOGVAR; scale++)
            for (int j = 0; j < COUNT(gaussian_types); j++, turn++)
                for (int n_operands = 2; n_operands <= 4 && is_taken(turn, every); n_operands += 2)
                    check_gaussians((enum fkl_scale)scale, n_operands, gaussian_types[j], lengths[i], levels, turn);
    static const ptrdiff_t sizes[] = {1, 2, 3, 5, 8, 9, 16, 17, 32, 33, 40, 50};
    for (int i = 0; i < COUNT(sizes); i++)
        for (int j = 0; j < COUNT(gaussian_types); j++)
            for (int shapes = 0; shapes < SHAPES; shapes++, turn++)
                for (int scale = FKL_COVARIANCE; scale <= FKL_CHOLESKY && is_taken(turn, every); scale++)
                    check_full((enum fkl_full_scale)scale, (enum shapes)shapes, gaussian_types[j], sizes[i], levels,
                               turn);
    for (ptrdiff_t n = 1; n <= 40; n++)
        for (int j = 0; j < 6; j++, turn++) /* all kinds of rows */
            if (is_taken(turn, every))
                check_logits(pairs[logits_pairs[j]][0], pairs[logits_pairs[j]][1], pairs[logits_pairs[j]][2], n,
                         LOGITS_KINDS, turn, n <= 17 || n >= 31 ? 3 : 1, levels);
    static const ptrdiff_t long_lengths[] = {127, 128, 129, 130, 131, 1000, 4095, 4096, 4097, 9000};
    for (int i = 0; i < COUNT(long_lengths); i++)
        for (int j = 0; j < 4; j++, turn++)
            if (is_taken(turn, every))
                check_logits(pairs[j][0], pairs[j][1], pairs[j][2], long_lengths[i],
                         long_lengths[i] <= 131 ? LOGITS_KINDS : 4, turn, 2, levels);
    for (int i = 0; i < COUNT(lengths); i++)
        for (int type = 0; type < FKL_ROW_TYPES; type++)
            for (int k = 0; k < 2; k++, turn++)
                if (is_taken(turn, every))
                    check_elements((enum fkl_type)type, lengths[i], levels, turn);
    if (failed > FAILURES_SHOWN)
        printf("... and %ld more\n", failed - FAILURES_SHOWN);
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0 || n_levels == 0;
}
