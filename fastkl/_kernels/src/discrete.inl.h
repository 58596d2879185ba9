/* discrete.inl.h: the discrete family, compiled once per level.
 *
 * From the inside out, each file including the one before it:
 *
 *   discrete_terms     what a *pass* over a row adds up: the formulae (element(), begin());
 *   discrete_sums      the sums over 256 elements of a row (add_block()) and over longer rows (pass_along());
 *   discrete_groups    a pass over up to eight rows: long ones one after the other, short ones a row in each lane;
 *   discrete_columns   a pass over rows that lie side by side, across the memory;
 *   discrete_results   the row sums and from them c = sum(p)/sum(q), as two doubles (prepare()); from the sums of terms
 *                      the results, with a mask of those that are vouched for (finish());
 *   this one           blocks of many rows: discrete_block() plans the work and packs what needs it, one_pass() and
 *                      two_passes() do it, exact_row() takes the rows nobody vouches for.
 */
#include "discrete_results.inl.h"

/* Groups of rows whose sums are taken before their results are, at most and where they are not columns. */
#define GROUPS (COLUMNS / LANES)
#define ROW_GROUPS (FKL_PACKED_ROWS / LANES)
/* Rows that are passed over twice go in groups of at most so many bytes of each operand, which stay in the cache in
 * between. A group is asked for during the second pass over the one before it, behind that pass's arithmetic. */
#define CACHED 131072

/* ---- rows, one at a time, exactly ---------------------------------------------------------------------------- */

/* What all groups of a block have in common. */
static void start_group(struct group *g, const fkl_rows *p, const fkl_rows *q, const fkl_problem *problem,
                        enum fkl_type type, double order, void *scratch)
{
    g->column_sums = (struct column_sums *)(void *)((char *)scratch + fkl_group_scratch(problem->length));
    g->p.rows = p;
    g->q.rows = q;
    g->p.direct = is_direct(p, type);
    g->q.direct = is_direct(q, type);
    g->p.tile = scratch;
    g->q.tile = (char *)scratch + FKL_TILE_ROWS * 8 * fkl_tile_length(problem->length);
    g->p.share = g->q.share = g->p.pieces = g->q.pieces = 0; /* nothing is to be asked for */
    g->chunk = g->p.direct && g->q.direct ? problem->length : FKL_TILE_LENGTH;
    g->problem = problem;
    g->order = order;
}

FKL_INLINE void open_group(struct group *g, ptrdiff_t first, int count)
{
    g->p.first = g->q.first = first;
    g->count = count;
    g->packed_at = -1;
    g->packed = 0;
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
    along_PASS_SUMS_FKL_F64(g, 1, 0, at, &before);
    along_PASS_SUMS_FKL_F64(g, 1, at + 1, length, &after);
    double others = at > 0 ? before.sum[1][0] : 0.0;
    others += at + 1 < length ? after.sum[1][0] : 0.0;
    double lanes[LANES];
    vd_store(lanes, vd_log1p(vd_set(others / cell)));
    double value = p_cell == 0.0 ? 0.0 : p_cell * lanes[0];
    along_PASS_CROSS_FKL_F64(g, 1, 0, at, &before);
    along_PASS_CROSS_FKL_F64(g, 1, at + 1, length, &after);
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

    start_group(&g, p, q, problem, FKL_F64, order, scratch);
    open_group(&g, row, 1);
    along_PASS_SUMS_EXACT_FKL_F64(&g, 1, 0, length, &sums);
    for (int k = 0; k < SUMS; k++) /* all lanes alike, so that none holds rubbish */
        for (int i = 1; i < LANES; i++)
            sums.sum[k][i] = sums.sum[k][0];
    if (problem->normalize && !(sums.special & 1) && (sums.sum[0][0] == 0.0 || sums.sum[1][0] == 0.0))
        return NAN;
    if (op != FKL_WASSERSTEIN && (prepare(&g, &sums, 1, SUM_LOW, SUM_HIGH) & 1)) {
        if (op == FKL_CROSS_ENTROPY) {
            along_PASS_SUMS_MAX_FKL_F64(&g, 1, 0, length, &terms);
            return peaked_cross_entropy(&g, terms.sum[2][0]);
        }
        runners(FKL_F64, 0)[term_pass(op, problem, 1)](&g, 1, 0, length, &terms);
        if (op == FKL_RENYI) {
            if (renyi_overflows(&g, &terms, 0))
                return careful(op, p, q, row, problem);
            result[0] = finish_renyi(&g, &terms, 0);
        } else {
            for (int k = 0; k < SUMS; k++)
                for (int i = 1; i < LANES; i++)
                    terms.sum[k][i] = terms.sum[k][0];
            finish(op, term_pass(op, problem, 1), 0, &g, &terms, &sums, 1, result);
        }
        /* Terms this small in a row this small may have underflowed. */
        const double p_sum = g.context.p_sum[0], sum = terms.sum[0][0];
        const int underflowed = p_sum < 0x1p-30 && sum < 0x1p-900;
        const int proportional = problem->normalize && g.context.c_low[0] != 0.0 && op != FKL_CROSS_ENTROPY &&
                                 sum < (op == FKL_TOTAL_VARIATION ? PROPORTIONAL : PROPORTIONAL * PROPORTIONAL) * p_sum;
        if (!underflowed && !proportional)
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
    int taken = FKL_FLOAT_KERNELS && problem->length > FKL_SHORT && problem->normalize &&
                is_direct(p, type) && is_direct(q, type) &&
                (op == FKL_KL || ((op == FKL_JS || op == FKL_JS_DISTANCE) && problem->parameter == 0.5));
    return narrow && !taken ? FKL_F32 : type;
}

/* Are these rows packed before anything is done with them? Short rows need not be if pack_columns() has vector code for
 * them; rows longer than a tile are packed group by group, a part at a time. */
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

/* Do rows lie side by side across the memory, long enough not to be packed for that? */
static int are_columns(const fkl_rows *rows, enum fkl_type type, ptrdiff_t length)
{
    return length > FKL_SHORT && (enum fkl_type)rows->type == type && !rows->swapped &&
           rows->row_stride == type_size(type) && rows->item_stride != rows->row_stride;
}

/* Rows [first, first + count) as *taken: packed into the tile, or where they are. Short rows that lie end to end are
 * packed as one. */
static const fkl_rows *take_rows(const fkl_rows *rows, int packs, ptrdiff_t first, ptrdiff_t count, ptrdiff_t length,
                                 enum fkl_type type, char *tile, fkl_rows *taken)
{
    *taken = *rows;
    taken->data += first * rows->row_stride;
    if (packs) {
        const int same = rows->row_stride == 0; /* one row against many */
        const ptrdiff_t size = type_size((enum fkl_type)rows->type);
        const int joined = length <= FKL_SHORT && rows->item_stride == size && rows->row_stride == length * size;
        const ptrdiff_t stride = joined ? length * type_size(type) : fkl_packed_stride(length);
        const fkl_rows packed = {tile, same ? 0 : stride, type_size(type), type, 0};
        pack(taken, 0, same || joined ? 1 : count, 0, joined ? count * length : length, type, tile, stride);
        *taken = packed;
    }
    return taken;
}

/* The rows behind [first, first + count) are packed next, be it by the next call: the group-th group asks for its part
 * of them, if they are to be read across. */
static void expect_rows(struct side *side, const fkl_rows *rows, int packs, ptrdiff_t first, ptrdiff_t count,
                        ptrdiff_t length, int group)
{
    const ptrdiff_t size = type_size((enum fkl_type)rows->type);
    side->share = side->pieces = 0;
    if (!packs || rows->row_stride != size)
        return;
    side->share = (length + count - 1) / count;
    const ptrdiff_t done = group * LANES * side->share;
    side->coming = rows->data + (first + count) * size + done * rows->item_stride;
    side->piece_stride = rows->item_stride;
    side->piece = count * size;
    side->pieces = length - done;
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
    pass_runner *const *run;  /* by pass */
    pass_runner *const *once; /* the same for the one pass that will do for most rows */
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

/* g stands for the groups [from, to) of a batch, here and below. */
static void start_groups(const struct plan *plan, struct group *g, int from, int to)
{
    const ptrdiff_t columns = LANES * type_size(plan->type) * plan->problem->length;
    for (int i = from; i < to; i++, g++) {
        start_group(g, plan->p, plan->q, plan->problem, plan->type, plan->order, plan->scratch);
        if (plan->across) {
            g->p.tile = plan->p_columns + i * columns;
            g->q.tile = plan->q_columns + i * columns;
        }
    }
}

static void open_groups(const struct plan *plan, const struct batch *batch, struct group *g, int from, int to,
                        struct totals *totals)
{
    for (int i = from; i < to; i++, g++, totals++) {
        open_group(g, batch->first + i * plan->together, batch->counts[i]);
        if (!plan->across && batch->counts[i] < LANES) /* lanes without a row must not hold rubbish */
            memset(totals, 0, sizeof *totals);
    }
}

/* The sums of groups [from, to). */
static void take_sums(const struct plan *plan, const struct batch *batch, struct group *g, int from, int to,
                      struct totals *sums)
{
    open_groups(plan, batch, g, from, to, sums);
    plan->run[plan->sums_pass](g, to - from, 0, plan->problem->length, sums);
}

/* Their results, from their sums and a second pass. */
static void second_pass(const struct plan *plan, struct batch *batch, struct group *g, int from, int to,
                        const struct totals *sums)
{
    const ptrdiff_t length = plan->problem->length, group_size = plan->together * length * type_size(plan->type);
    const int exact = plan->sums_pass == PASS_SUMS_EXACT, groups = to - from;
    struct totals terms[GROUPS];

    for (int i = 0; i < groups; i++) {
        batch->good[from + i] = prepare(&g[i], &sums[i], exact, plan->floats ? SUM_LOW_FLOAT : SUM_LOW,
                                        plan->floats ? SUM_HIGH_FLOAT : SUM_HIGH);
        g[i].ahead = group_size <= CACHED ? group_size : AHEAD;
        if (!plan->across && batch->counts[from + i] < LANES)
            memset(&terms[i], 0, sizeof terms[i]);
    }
    if (plan->op == FKL_WASSERSTEIN) {
        for (int i = 0; i < groups; i++)
            wasserstein(&g[i], batch->result[from + i]);
        return;
    }
    plan->run[plan->terms_pass](g, groups, 0, length, terms);
    for (int i = 0; i < groups; i++) {
        double *result = batch->result[from + i];
        unsigned *good = &batch->good[from + i];
        if (plan->op != FKL_RENYI) {
            *good &= finish(plan->op, plan->terms_pass, plan->floats, &g[i], &terms[i], &sums[i], 0, result);
            continue;
        }
        for (int j = 0; j < g[i].count; j++) {
            result[j] = *good >> j & 1 ? finish_renyi(&g[i], &terms[i], j) : 0.0;
            const int other = renyi_overflows(&g[i], &terms[i], j) || renyi_vanishes(&g[i], &terms[i], j);
            *good &= ~((unsigned)other << j);
        }
    }
}

static void two_passes(const struct plan *plan, struct batch *batch, struct group *g, int from, int to)
{
    struct totals sums[GROUPS];
    take_sums(plan, batch, g, from, to, sums);
    second_pass(plan, batch, g, from, to, sums);
}

/* Is every row of the i-th group vouched for? */
FKL_INLINE int all_good(const struct batch *batch, int i)
{
    const unsigned all = (1u << batch->counts[i]) - 1u;
    return (batch->good[i] & all) == all;
}

/* Rows that have been vouched for keep these results, whatever came of them afterwards. */
FKL_INLINE void keep_results(struct batch *batch, int i, unsigned good, const double result[LANES])
{
    for (int j = 0; j < batch->counts[i]; j++)
        if (good >> j & 1)
            batch->result[i][j] = result[j];
    batch->good[i] |= good;
}

/* The one pass that will do for most rows of groups [from, to), if they are normalised: KL, where the difference that
 * is the result does not cancel, and Jensen-Shannon divergences where both rows weigh the same. Returns how many rows
 * are left. */
static int one_pass(const struct plan *plan, struct batch *batch, struct group *g, int from, int to)
{
    struct totals terms[GROUPS];
    int left = 0;
    open_groups(plan, batch, g, from, to, terms);
    plan->once[plan->op == FKL_KL ? PASS_KL : PASS_JS_ONCE](g, to - from, 0, plan->problem->length, terms);
    /* All groups' sums are taken before their results: the divisions of one hide behind those of the others. */
    for (int i = from; i < to; i++) {
        const struct totals *t = &terms[i - from];
        batch->good[i] = plan->op == FKL_KL
                             ? finish_kl(t, plan->problem, plan->floats, batch->result[i])
                             : finish_js_once(plan->op, t, plan->problem, plan->floats, batch->result[i]);
    }
    for (int i = from; i < to; i++)
        for (int j = 0; !all_good(batch, i) && j < batch->counts[i]; j++)
            left += !(batch->good[i] >> j & 1);
    return left;
}

/* The rows that are left of them, by two passes; by the second alone where their sums have been taken. */
static void pass_again(const struct plan *plan, struct batch *batch, struct group *g, int from, int to,
                       const struct totals *sums)
{
    struct plan second = *plan;
    if (plan->op == FKL_KL) { /* in doubles, of any rows */
        second.type = plan->type == FKL_F64 ? FKL_F64 : FKL_F32;
        second.run = runners(second.type, plan->across);
        second.floats = 0;
    }
    for (int i = from; i < to; i++) {
        const unsigned good = batch->good[i];
        struct group again, *group = &g[i - from];
        double result[LANES];
        if (FKL_LIKELY(all_good(batch, i)))
            continue;
        memcpy(result, batch->result[i], sizeof result);
        if (plan->op == FKL_KL) {
            group = &again;
            start_groups(&second, group, i, i + 1);
        }
        if (sums)
            second_pass(&second, batch, group, i, i + 1, &sums[i - from]);
        else
            two_passes(&second, batch, group, i, i + 1);
        keep_results(batch, i, good, result);
    }
}

/* Jensen-Shannon divergences of groups [from, to), in one pass or in two. *apart says what the groups before were like,
 * and so which pass comes first: whose result is taken depends on the row alone. Returns how many rows took two. */
static int js_in_one_pass(const struct plan *plan, struct batch *batch, struct group *g, int from, int to, int *apart)
{
    struct totals sums[GROUPS];
    const int sums_first = *apart;
    int once = !sums_first, left = 0;
    if (sums_first)
        take_sums(plan, batch, g, from, to, sums);
    for (int i = from; sums_first && i < to; i++) {
        once |= (rows_alike(&sums[i - from], plan->floats) & ((1u << batch->counts[i]) - 1u)) != 0;
        batch->good[i] = 0;
        left += batch->counts[i];
    }
    if (once)
        left = one_pass(plan, batch, g, from, to);
    *apart = left > 0;
    pass_again(plan, batch, g, from, to, sums_first ? sums : NULL);
    return left;
}

static void discrete_block(int operation, int row_type, const fkl_rows *operands, ptrdiff_t n_rows,
                           const fkl_problem *problem, double *result, void *scratch)
{
    const fkl_rows *p = &operands[0], *q = &operands[1];
    const ptrdiff_t length = problem->length;
    enum fkl_op op = (enum fkl_op)operation;

    if (op == FKL_RENYI && problem->parameter == 1.0)
        op = FKL_KL;
    const int turned = op == FKL_RENYI && fkl_renyi_turned(problem->parameter);
    const double order = fkl_renyi_order(problem->parameter);
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

    const int across = length <= FKL_SHORT, js = op == FKL_JS || op == FKL_JS_DISTANCE;
    const int kl_once = op == FKL_KL && problem->normalize;
    const int js_once = js && problem->normalize && problem->parameter == 0.5;
    /* Where c enters in first order, or times a large alpha, it must be known to twice the precision. */
    const int exact = op == FKL_TOTAL_VARIATION || op == FKL_RENYI || op == FKL_WASSERSTEIN;
    struct plan plan = {
        .op = op, .p = p, .q = q, .problem = problem, .order = order, .across = across, .scratch = scratch,
        .type = effective_type(op, (enum fkl_type)row_type, p, q, problem),
        .terms_pass = term_pass(op, problem, 0),
        .p_columns = scratch,
    };
    plan.q_columns = q == p ? plan.p_columns : plan.p_columns + FKL_PACKED_ROWS * 8 * length;
    plan.run = runners(plan.type, across);
    plan.floats = in_float(kl_once ? PASS_KL : plan.terms_pass, plan.type);
    /* Where c enters squared, or not at all, the plain sums will do. Of float rows, PASS_SUMS is good for terms in
     * float alone. */
    const int plain = js || (op == FKL_KL && !problem->normalize);
    const int will_do = plain && (plan.floats || plan.type == FKL_F64);
    plan.sums_pass = exact ? PASS_SUMS_EXACT : will_do ? PASS_SUMS : PASS_SUMS_MAX;
    const ptrdiff_t fitting = CACHED / (length * type_size(plan.type));
    const ptrdiff_t together = across || fitting > LANES ? LANES : fitting < 1 ? 1 : fitting;

    struct group groups[GROUPS];
    fkl_rows p_packed, q_packed;
    char *p_tile = (char *)scratch + fkl_group_scratch(length);
    char *q_tile = p_tile + fkl_packed_rows(length) * fkl_packed_stride(length);
    const int packs_p = wants_packing(p, plan.type, length), packs_q = q != p && wants_packing(q, plan.type, length);
    const ptrdiff_t whole = ROW_GROUPS * together, packed_rows = fkl_packed_rows(length);
    const ptrdiff_t stretch = (packs_p || packs_q) && packed_rows < whole ? packed_rows : whole;
    const int side_by_side = (kl_once || js_once) && (plan.type == FKL_F64 || plan.type == FKL_F32) &&
                             are_columns(p, plan.type, length) && are_columns(q, plan.type, length);

    int apart = plan.type == FKL_F16 || plan.type == FKL_BF16; /* rows of halves hardly ever weigh the same */
    int many = 0; /* of the rows before, more than one in eight took two passes, for which they are better packed */

    for (ptrdiff_t first = 0, n; first < n_rows; first += n) {
        const ptrdiff_t rest = n_rows - first;
        struct batch batch;
        batch.first = first;
        batch.groups = 0;
        const int columns = side_by_side && rest >= COLUMNS_AT_ONCE && !many;
        const ptrdiff_t most = columns ? COLUMNS : stretch;
        plan.once = columns ? runners_columns[plan.type] : plan.run;
        plan.together = columns ? LANES : together;
        n = columns ? rest / COLUMNS_AT_ONCE * COLUMNS_AT_ONCE : rest;
        n = n < most ? n : most;
        if (side_by_side)
            plan.p = p, plan.q = q;
        if (!columns && (packs_p || packs_q)) {
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
        if (first == 0 || side_by_side) /* no later stretch has more groups */
            start_groups(&plan, groups, 0, batch.groups);
        for (int i = 0; !across && !columns && (packs_p || packs_q) && i < batch.groups; i++) {
            expect_rows(&groups[i].p, p, packs_p, first, n, length, i);
            expect_rows(&groups[i].q, q, packs_q, first, n, length, i);
        }
        if (columns || kl_once) {
            const int left = one_pass(&plan, &batch, groups, 0, batch.groups);
            many = 8 * left > n;
            if (columns && many) { /* once more, packed */
                n = 0;
                continue;
            }
            if (left > 0)
                pass_again(&plan, &batch, groups, 0, batch.groups, NULL);
        } else {
            ptrdiff_t left = 0;
            for (int i = 0, next; i < batch.groups; i = next) {
                next = across ? batch.groups : i + 1;
                if (js_once)
                    left += js_in_one_pass(&plan, &batch, &groups[i], i, next, &apart);
                else
                    two_passes(&plan, &batch, &groups[i], i, next);
            }
            many = 8 * left > n;
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
