/* logits.inl.h: the logits family, compiled once per level.
 *
 *   logits_sums     KL as sums over a row, which it is read once for;
 *   logits_pairs    the sums of the other operations, and those from both probabilities of each element;
 *   this one        results from sums, short rows (a row in each lane), and blocks of rows.
 *
 * Rows nobody vouches for go to careful_logits.c.
 */
#include "logits_pairs.inl.h"
#include "pack.inl.h"

/* ---- the state of a row ---------------------------------------------------------------------------------------- */

/* What is summed of the rows. PAIRS has a second look at each element's two probabilities to follow, and so has JS,
 * whose weight is 1/2: halves and floats are worked on in float arithmetic for it, as for KL. */
enum look { LOOK_KL, LOOK_PAIRS, LOOK_JS, LOOK_ENTROPY, LOOK_CROSS, LOOK_TOP };

FKL_INLINE int look_in_float(const enum look look, const enum fkl_type type)
{
    return (look == LOOK_KL || look == LOOK_JS) && logits_in_float(type);
}
FKL_INLINE int look_at_sums(const enum look look) { return look == LOOK_KL || look == LOOK_PAIRS || look == LOOK_JS; }

struct row_state {
    union {
        struct logit_row kl;
        struct entropy_row entropy;
        struct top_row top[2];
    } of;
};

FKL_INLINE void open_state(const enum look look, struct row_state *row, double temperature)
{
    struct logit_row opened;
    open_row(&opened, temperature);
    memset(row, 0, sizeof *row);
    if (look_at_sums(look)) {
        row->of.kl = opened;
    } else if (look == LOOK_TOP) {
        row->of.top[0].top = row->of.top[1].top = -INFINITY;
    } else {
        row->of.entropy.ref = opened.ref;
        row->of.entropy.ref.delta = -INFINITY;
        row->of.entropy.lost = opened.lost;
    }
}

FKL_INLINE void extend_state(const enum look look, struct row_state *row, const enum fkl_type type, const char *a,
                             const char *b, ptrdiff_t start, ptrdiff_t n)
{
    if (look_at_sums(look)) {
        extend_row(&row->of.kl, type, look_in_float(look, type), a, b, n);
    } else if (look == LOOK_TOP) {
        extend_top(&row->of.top[0], type, a, start, n);
        extend_top(&row->of.top[1], type, b, start, n);
    } else {
        extend_entropy(&row->of.entropy, type, look == LOOK_ENTROPY, a, b, n);
    }
}

/* ---- results --------------------------------------------------------------------------------------------------- */

/* Has q any probability? It hasn't if all its logits are -inf. */
static int has_any(const fkl_rows *rows, ptrdiff_t row, ptrdiff_t length)
{
    const char *at = rows->data + row * rows->row_stride;
    for (ptrdiff_t i = 0; i < length; i++, at += rows->item_stride)
        if (load_any((enum fkl_type)rows->type, rows->swapped, at) > -INFINITY)
            return 1;
    return 0;
}

static double careful_logits(int op, const fkl_rows *operands, ptrdiff_t row, const fkl_problem *problem)
{
    fkl_rows one[FKL_MOST_OPERANDS];
    for (int k = 0; k < problem->operands; k++) {
        one[k] = operands[k];
        one[k].data += row * one[k].row_stride;
    }
    return fkl_careful_logits_row(op, one, problem);
}

/* m + log1p(t - m), or t - [(t - m) - log1p(t - m)], in eight lanes; a bit for each that is vouched for. */
FKL_INLINE unsigned kl_of_sums(const double weight[LANES], const double moment[LANES], const double excess[LANES],
                               double temperature, double least, double kl[LANES])
{
    unsigned good = 0;
    for (int j = 0; j < LANES; j += VD) {
        const vd w = vd_load(weight + j), t = vd_load(excess + j) / w;
        const vd m = vd_load(moment + j) / w / vd_set(temperature);
        const md centred = md_or(md_and(vd_le(vd_abs(m), vd_set(0.51)), vd_le(m * m, vd_set(0.8) * t)),
                                 md_and(vd_le(m * m, vd_set(least)), vd_le(t, vd_set(least))));
        const md positive = md_and(vd_lt(vd_set(0.0), w), vd_le(t, vd_set(0x1p900)));
        const vd y = vd_select(md_and(centred, positive), t - m, vd_set(0.0));
        const vd value = vd_select(vd_lt(vd_abs(y), vd_set(0.5)), t - vd_less_log1p(y), m + vd_log1p(y));
        vd_store(kl + j, vd_max(vd_set(0.0), value));
        good |= md_lanes(md_and(centred, positive)) << j;
    }
    return good;
}

/* KL of up to eight rows from their sums. */
static FKL_NOINLINE void finish_kl_rows(const struct row_state *row, int n, int in_float, const fkl_rows *operands,
                                        ptrdiff_t first, const fkl_problem *problem, double *result)
{
    double weight[LANES], moment[LANES], excess[LANES], kl[LANES];
    for (int j = 0; j < LANES; j++) {
        const struct logit_row *x = &row[j < n ? j : n - 1].of.kl;
        weight[j] = x->weight, moment[j] = x->moment, excess[j] = x->excess;
    }
    const unsigned good = kl_of_sums(weight, moment, excess, problem->temperature, negligible(in_float), kl);
    for (int j = 0; j < n; j++) {
        const struct logit_row *x = &row[j].of.kl;
        if (x->bad)
            result[j] = NAN;
        else if (!x->lost && x->outside)
            result[j] = has_any(&operands[1], first + j, problem->length) ? INFINITY / problem->log_base : NAN;
        else if (x->lost || !(good >> j & 1))
            result[j] = careful_logits(FKL_LOGITS_KL, operands, first + j, problem);
        else
            result[j] = kl[j] / problem->log_base;
    }
}

static FKL_NOINLINE double finish_top(const struct top_row top[2])
{
    const int bad = top[0].bad || top[1].bad || top[0].top == -INFINITY || top[1].top == -INFINITY;
    return bad ? NAN : top[0].at == top[1].at;
}

static FKL_NOINLINE double finish_entropy(const struct entropy_row *row, int op, const fkl_rows *operands, ptrdiff_t i,
                                          const fkl_problem *problem)
{
    double others[VD];
    if (row->bad || (!row->lost && (row->weight == 0.0 || row->ties == 0.0)))
        return NAN;
    if (row->lost)
        return careful_logits(op, operands, i, problem);
    if (row->outside)
        return INFINITY / problem->log_base;
    vd_store(others, vd_log1p(vd_set(row->others + (row->ties - 1.0))));
    const double entropy = (row->moment / problem->temperature / row->weight + others[0]) / problem->log_base;
    return entropy <= DBL_MAX ? entropy : careful_logits(op, operands, i, problem);
}

/* Jensen-Shannon from the sum of its terms. */
static FKL_NOINLINE double finish_js(int op, double total, const fkl_problem *problem)
{
    total = (total > 0.0 ? total : 0.0) / problem->log_base;
    double root[VD];
    vd_store(root, vd_sqrt(vd_set(total)));
    return op == FKL_LOGITS_JS ? total : root[0];
}

/* ---- short rows, one in each lane ------------------------------------------------------------------------------ */

/* Eight rows whose elements are the columns of eight at a and b; the weights are kept at `weights`. The lanes' sums
 * about their own means: a bit for each row within the reach of this. */
FKL_INLINE unsigned sum_across(const double *a, const double *b, double *weights, ptrdiff_t length,
                               const struct reference *ref, struct chunk_sums *sums)
{
    const vd largest = vd_set(0x1p900), zero = vd_set(0.0);
    struct vreference v = vreference(ref);
    unsigned good = 0;
    for (int j = 0; j < PARTS; j++) {
        const double *pa = a + j * VD, *pb = b + j * VD;
        double *pw = weights + j * VD;
        vd most = vd_load(pa), delta = most - vd_load(pb);
        md fine = vd_le(v.c, v.c);
        for (ptrdiff_t i = 0; i < length; i++) {
            const vd x = vd_load(pa + i * LANES), y = vd_load(pb + i * LANES);
            const md higher = vd_lt(most, x);
            fine = md_and(fine, md_and(vd_le(vd_abs(x), largest), vd_le(vd_abs(y), largest)));
            most = vd_select(higher, x, most);
            delta = vd_select(higher, x - y, delta);
        }
        most = vd_select(fine, most, zero);
        v.delta = vd_select(fine, delta, zero);
        v.delta_low = zero;
        const vd shift = vd_madd(most, v.c, vd_set(FKL_MAGIC)) - vd_set(FKL_MAGIC);
        fine = md_and(fine, vd_le(vd_abs(shift), vd_set(LARGEST_SHIFT)));
        v.magic = vd_set(FKL_MAGIC) - vd_select(fine, shift, zero);
        v.least = (vd_select(fine, shift, zero) - vd_set(DEPTH)) * vd_set(ref->octave);
        vd weight = zero, moment = zero, excess = zero;
        for (ptrdiff_t i = 0; i < length; i++) {
            const vd x = vd_load(pa + i * LANES), y = vd_load(pb + i * LANES);
            const vd w = weight_of(vd_max(x, v.least), &v);
            vd_store(pw + i * LANES, w);
            weight += w;
            moment = vd_madd(w, apart(x, y, &v), moment);
        }
        vd by = moment / weight;
        vd_two_sum(v.delta, vd_select(fine, by, zero), &v.delta, &v.delta_low);
        moment = zero;
        for (ptrdiff_t i = 0; i < length; i++) {
            const vd x = apart(vd_load(pa + i * LANES), vd_load(pb + i * LANES), &v), w = vd_load(pw + i * LANES);
            vd exponential;
            fine = md_and(fine, vd_le(vd_abs(x), v.reach));
            moment = vd_madd(w, x, moment);
            excess = vd_madd(w, excess_of(x, &v, &exponential), excess);
        }
        sums->weight[j] = weight;
        sums->moment[j] = moment;
        sums->excess[j] = excess;
        good |= md_lanes(fine) << j * VD;
    }
    return good;
}

/* ---- blocks of rows -------------------------------------------------------------------------------------------- */

#define LOGIT_ROWS 64 /* that are worked on together */

FKL_INLINE void short_rows(const fkl_rows *operands, ptrdiff_t n_rows, const fkl_problem *problem, double *result,
                           char *scratch)
{
    const ptrdiff_t length = problem->length;
    double *column[2] = {(double *)(void *)scratch, (double *)(void *)(scratch + FKL_LOGITS_TILE)};
    double *weights = (double *)(void *)(scratch + 2 * FKL_LOGITS_TILE);
    struct logit_row opened;
    open_row(&opened, problem->temperature);
    for (ptrdiff_t first = 0; first < n_rows; first += LOGIT_ROWS) {
        const ptrdiff_t rows = n_rows - first < LOGIT_ROWS ? n_rows - first : LOGIT_ROWS;
        for (int k = 0; k < 2; k++)
            pack_columns(&operands[k], first, rows, 0, length, FKL_F64, (char *)column[k]);
        for (ptrdiff_t i = 0; i < rows; i += LANES) {
            for (int k = 0; k < 2; k++)
                ask_for_eight_rows(&operands[k], first + i + LOGIT_ROWS, length);
            struct chunk_sums sums;
            double weight[LANES], moment[LANES], excess[LANES], kl[LANES];
            unsigned good =
                sum_across(column[0] + i * length, column[1] + i * length, weights, length, &opened.ref, &sums);
            for (int j = 0; j < PARTS; j++) {
                vd_store(weight + j * VD, sums.weight[j]);
                vd_store(moment + j * VD, sums.moment[j]);
                vd_store(excess + j * VD, sums.excess[j]);
            }
            good &= kl_of_sums(weight, moment, excess, problem->temperature, negligible(0), kl);
            for (ptrdiff_t j = 0; j < LANES && i + j < rows; j++)
                result[first + i + j] = FKL_LIKELY(!opened.lost && good >> j & 1)
                                            ? kl[j] / problem->log_base
                                            : careful_logits(FKL_LOGITS_KL, operands, first + i + j, problem);
        }
    }
}

/* Rows on their way through the chunks: of those that are not read where they lie, a tile holds a piece of each. */
struct pieces {
    const fkl_rows *operands;
    int direct[2], same;
    ptrdiff_t whole;
    const char *base[2]; /* the piece of the first row */
    ptrdiff_t stride[2];
    char *scratch;
};

FKL_INLINE void take_pieces(struct pieces *x, const enum fkl_type type, ptrdiff_t first, ptrdiff_t rows,
                            ptrdiff_t start, ptrdiff_t n)
{
    const ptrdiff_t size = type_size(type);
    for (int k = 0; k < 2; k++) {
        const fkl_rows *operand = &x->operands[k];
        x->base[k] = operand->data + first * operand->row_stride + start * size;
        x->stride[k] = operand->row_stride;
        if (k == 1 && x->same) {
            x->base[1] = x->base[0];
            x->stride[1] = x->stride[0];
        } else if (!x->direct[k]) {
            char *tile = x->scratch + k * FKL_LOGITS_TILE;
            const int alike = operand->row_stride == 0;
            pack(operand, first, alike ? 1 : rows, start, n, type, tile, x->whole * size);
            x->base[k] = tile;
            x->stride[k] = alike ? 0 : x->whole * size;
        }
    }
}

/* The second look at row `row`, the i-th of those that were taken, unless they were taken piece by piece: the sum of
 * its terms, or none, but its gradients in their arrays. */
FKL_INLINE double look_again(const enum look look, int op, const enum fkl_type type, struct pieces *x, ptrdiff_t row,
                             ptrdiff_t i, int taken, ptrdiff_t chunk, const struct pair_sums *sums,
                             const fkl_problem *problem)
{
    const ptrdiff_t length = problem->length, size = type_size(type), piece = taken ? length : x->whole;
    double total = 0.0;
    for (ptrdiff_t start = 0; start < length; start += piece) {
        const ptrdiff_t n = length - start < piece ? length - start : piece;
        if (!taken) {
            take_pieces(x, type, row, 1, start, n);
            i = 0;
        }
        for (ptrdiff_t at = 0; at < n; at += chunk) {
            const char *a = x->base[0] + i * x->stride[0] + at * size, *b = x->base[1] + i * x->stride[1] + at * size;
            const ptrdiff_t m = n - at < chunk ? n - at : chunk;
#if FKL_FLOAT_KERNELS
            if (look_in_float(look, type)) {
                total += sums->ref.exact ? js_of_chunk_float(sums, type, 1, a, b, m)
                                         : js_of_chunk_float(sums, type, 0, a, b, m);
                continue;
            }
#else
            (void)look;
#endif
            if (op == FKL_LOGITS_JS || op == FKL_LOGITS_JS_DISTANCE)
                total += js_of_chunk(sums, type, a, b, m, problem->parameter);
            else
                gradients_of_chunk(sums, type, a, b, m, x->operands + 2, problem->operands - 2, row, start + at,
                                   problem->parameter);
        }
    }
    return total;
}

FKL_INLINE void long_rows(const enum look look, int op, const enum fkl_type type, const fkl_rows *operands,
                          ptrdiff_t n_rows, const fkl_problem *problem, double *result, char *scratch)
{
    const ptrdiff_t length = problem->length, size = type_size(type);
    const ptrdiff_t chunk = FKL_LOGITS_CHUNK / (type == FKL_F64 ? 2 : 1), whole = length < chunk ? length : chunk;
    struct pieces x = {operands, {is_direct(&operands[0], type), is_direct(&operands[1], type)},
                       look == LOOK_ENTROPY, whole, {0, 0}, {0, 0}, scratch};
    const int all_direct = x.direct[0] && (x.same || x.direct[1]), taken = all_direct || whole == length;
    const ptrdiff_t piece = all_direct ? length : whole, fitting = FKL_LOGITS_TILE / (whole * size);
    const ptrdiff_t stretch = fitting < LOGIT_ROWS ? fitting : LOGIT_ROWS;
    struct row_state opened;
    open_state(look, &opened, problem->temperature);

    for (ptrdiff_t first = 0; first < n_rows; first += stretch) {
        const ptrdiff_t rows = n_rows - first < stretch ? n_rows - first : stretch;
        struct row_state row[LOGIT_ROWS];
        for (ptrdiff_t i = 0; i < rows; i++)
            row[i] = opened;
        for (ptrdiff_t start = 0; start < length; start += piece) {
            const ptrdiff_t n = length - start < piece ? length - start : piece;
            take_pieces(&x, type, first, rows, start, n);
            for (ptrdiff_t i = 0; i < rows; i++)
                for (ptrdiff_t at = 0; at < n; at += chunk)
                    extend_state(look, &row[i], type, x.base[0] + i * x.stride[0] + at * size,
                                 x.base[1] + i * x.stride[1] + at * size, start + at, n - at < chunk ? n - at : chunk);
        }
        for (ptrdiff_t i = 0; i < rows; i += LANES) {
            const int n = (int)(rows - i < LANES ? rows - i : LANES);
            double *to = result + first + i;
            if (look == LOOK_KL)
                finish_kl_rows(&row[i], n, logits_in_float(type), operands, first + i, problem, to);
            for (int j = 0; j < n; j++) {
                struct pair_sums sums;
                if (look == LOOK_TOP)
                    to[j] = finish_top(row[i + j].of.top);
                else if (look == LOOK_ENTROPY || look == LOOK_CROSS)
                    to[j] = finish_entropy(&row[i + j].of.entropy, op, operands, first + i + j, problem);
                else if (look != LOOK_KL && !pair_of_sums(&row[i + j].of.kl, look_in_float(look, type), &sums))
                    to[j] = careful_logits(op, operands, first + i + j, problem);
                else if (look != LOOK_KL)
                    to[j] = finish_js(
                        op, look_again(look, op, type, &x, first + i + j, i + j, taken, chunk, &sums, problem),
                        problem);
            }
        }
    }
}

/* How rows are read: halves as they are where they lie so and are worked on in float arithmetic, else as floats. */
FKL_INLINE enum fkl_type logit_type(const enum look look, enum fkl_type row_type, const fkl_rows *operands)
{
    if (row_type == FKL_F64 || row_type == FKL_F32)
        return row_type;
    const int direct = is_direct(&operands[0], row_type) && is_direct(&operands[1], row_type);
    return look_in_float(look, row_type) && direct ? row_type : FKL_F32;
}

FKL_INLINE void rows_of_type(const enum look look, int op, enum fkl_type row_type, const fkl_rows *operands,
                             ptrdiff_t n_rows, const fkl_problem *problem, double *result, char *scratch)
{
#define FKL_CASE(TYPE)                                                                                                 \
    case TYPE:                                                                                                         \
        long_rows(look, op, TYPE, operands, n_rows, problem, result, scratch);                                         \
        return;
    const enum fkl_type type = logit_type(look, row_type, operands);
#if FKL_FLOAT_KERNELS
    if (look == LOOK_KL || look == LOOK_JS)
        switch (type) {
            FKL_CASE(FKL_F16)
            FKL_CASE(FKL_BF16)
        default:
            break;
        }
#endif
    switch (type) {
        FKL_CASE(FKL_F64)
    default:
        FKL_CASE(FKL_F32)
    }
#undef FKL_CASE
}

static FKL_NOINLINE void kl_block(enum fkl_type type, const fkl_rows *operands, ptrdiff_t n_rows,
                                  const fkl_problem *problem, double *result, char *scratch)
{
    if (problem->length <= FKL_SHORT)
        short_rows(operands, n_rows, problem, result, scratch);
    else
        rows_of_type(LOOK_KL, FKL_LOGITS_KL, type, operands, n_rows, problem, result, scratch);
}

static void logits_block(int operation, int row_type, const fkl_rows *operands, ptrdiff_t n_rows,
                         const fkl_problem *problem, double *result, void *scratch)
{
    const enum fkl_type type = (enum fkl_type)row_type;
    switch (operation) {
    case FKL_LOGITS_KL:
        kl_block(type, operands, n_rows, problem, result, scratch);
        break;
    case FKL_LOGITS_REVERSE_KL: {
        const fkl_rows turned[2] = {operands[1], operands[0]};
        kl_block(type, turned, n_rows, problem, result, scratch);
        break;
    }
    case FKL_LOGITS_CROSS_ENTROPY:
        rows_of_type(LOOK_CROSS, operation, type, operands, n_rows, problem, result, scratch);
        break;
    case FKL_LOGITS_ENTROPY:
        rows_of_type(LOOK_ENTROPY, operation, type, operands, n_rows, problem, result, scratch);
        break;
    case FKL_LOGITS_TOP1_AGREEMENT:
        rows_of_type(LOOK_TOP, operation, type, operands, n_rows, problem, result, scratch);
        break;
    case FKL_LOGITS_JS:
    case FKL_LOGITS_JS_DISTANCE:
        if (problem->parameter == 0.5)
            rows_of_type(LOOK_JS, operation, type, operands, n_rows, problem, result, scratch);
        else
            rows_of_type(LOOK_PAIRS, operation, type, operands, n_rows, problem, result, scratch);
        break;
    default:
        rows_of_type(LOOK_PAIRS, operation, type, operands, n_rows, problem, result, scratch);
        if (operation == FKL_LOGITS_KL_GRAD || operation == FKL_LOGITS_KL_GRAD_Q) {
            /* The divergence itself, in the arithmetic and with the bits that it has without gradients. */
            fkl_problem alone = *problem;
            alone.operands = 2;
            kl_block(type, operands, n_rows, &alone, result, scratch);
        }
        break;
    }
}
