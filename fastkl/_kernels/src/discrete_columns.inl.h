/* discrete_columns.inl.h: rows that lie next to each other across the memory (a reduction over another axis than the
 * last), a row in each lane: the one-pass KL and JS, where they lie.
 *
 * Element i belongs to virtual lane i mod 8, here too: a column of the memory has sums for each of its eight lanes,
 * which are added to in the order of discrete_sums.inl.h, so results have the same bits. As many elements as a step
 * takes (2 of doubles, 4 of floats), 8 apart, are read from one end of a stretch of columns to the other before the
 * next ones are: pieces of the memory that are long enough for it to be quick, and few enough of them at a time for the
 * first-level cache, in which they fall on each other's places if the rows of the memory are 2^n bytes apart.
 */
#include "discrete_groups.inl.h"

/* Columns of the memory that are worked on side by side: a kilobyte of doubles. */
#define COLUMNS FKL_COLUMNS
#define COLUMNS_AT_ONCE 16 /* of which a multiple is taken */
#define COLUMN_SUMS 4      /* of these passes, at most */

/* Sums of each virtual lane of each column. */
struct column_sums {
    _Alignas(64) double run[LANES][SUMS][COLUMNS]; /* of a run; behind the pass's sums, what terms are beyond bases */
    double block[LANES][COLUMN_SUMS][COLUMNS];
    double high[LANES][COLUMN_SUMS][COLUMNS], low[LANES][COLUMN_SUMS][COLUMNS]; /* of blocks, and what that has lost */
    uint64_t special[COLUMNS]; /* see set_aside() */
};
_Static_assert(sizeof(struct column_sums) <= FKL_COLUMNS_SCRATCH, "see fkl_scratch_bytes()");

/* One operand's columns: those of a stretch, and the bytes from one element to the next. */
struct columns {
    const char *data;
    ptrdiff_t stride;
};

/* `rows` elements, 8 apart, are asked for, `ahead` bytes from x: of the next stretch of columns. */
FKL_INLINE void ask_for_columns(const char *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t ahead)
{
    for (ptrdiff_t j = 0; j < rows; j++)
        fkl_prefetch_far(x, ahead + j * LANES * stride);
}

/* Where a step stands in its run, and the run in its block. */
struct place {
    int starts, ends, first; /* the step begins the run, ends it; the run is the block's first */
};

/* `rows` <= 2 elements, 8 apart, of the VD columns from p and q on, added to the sums of their run at `run`, and the
 * run's to those of their block at `block`. The distance from sum to sum is COLUMNS. */
FKL_INLINE void columns_step(const enum pass pass, const enum fkl_type type, const int rows, const char *p,
                             ptrdiff_t p_stride, const char *q, ptrdiff_t q_stride, struct place place, double *run,
                             double *block, uint64_t special[VD])
{
    const int plain = pass_sums(pass), divisions = pass_divisions(pass);
    struct begun begun[2];
    vd x[2], y[2], sums[SUMS], ends[MOST_DIVISIONS], none = vd_set(0.0);
    for (int k = 0; k < plain; k++)
        sums[k] = place.starts ? vd_set(0.0) : vd_load(run + k * COLUMNS);
    for (int k = 0; k < divisions; k++)
        ends[k] = place.starts ? vd_set(0.0) : vd_load(run + (plain + k) * COLUMNS);
    FKL_UNROLL
    for (int j = 0; j < rows; j++) {
        x[j] = load(type, p + j * LANES * p_stride);
        y[j] = load(type, q + j * LANES * q_stride);
        add_elements(pass, x[j], y[j], sums);
    }
    vd least = rows > 0 ? vd_min(x[0], y[0]) : vd_set(SMALLEST);
    FKL_UNROLL
    for (int j = 1; j < rows; j++)
        least = vd_min(vd_min(x[j], y[j]), least);
    if (FKL_LIKELY(md_all(vd_le(vd_set(SMALLEST), least)))) {
        FKL_UNROLL
        for (int j = 0; j < rows; j++) {
            begun[j] = begin(pass, x[j], y[j], none);
            add_bases(pass, &begun[j], sums);
        }
    } else {
        vi bits = vi_set(0);
        uint64_t lanes[VD];
        FKL_UNROLL
        for (int j = 0; j < rows; j++) {
            vd term[MOST_DIVISIONS];
            set_aside(pass, &x[j], &y[j], &none, term, &bits);
            begun[j] = begin(pass, x[j], y[j], none);
            add_bases(pass, &begun[j], sums);
            for (int k = 0; k < divisions; k++)
                sums[division_sum(pass, k)] += term[k];
        }
        memcpy(lanes, &bits, sizeof lanes);
        for (int i = 0; i < VD; i++)
            special[i] |= lanes[i];
    }
    FKL_UNROLL
    for (int j = 0; j < rows; j++)
        for (int k = 0; k < divisions; k++)
            ends[k] = vd_end((struct vd_begun){begun[j].s2[k], begun[j].w[k], ends[k]});
    if (place.ends) {
        for (int k = 0; k < divisions; k++)
            sums[division_sum(pass, k)] += ends[k];
        for (int k = 0; k < plain; k++)
            vd_store(block + k * COLUMNS, place.first ? sums[k] : vd_load(block + k * COLUMNS) + sums[k]);
        return;
    }
    for (int k = 0; k < plain; k++)
        vd_store(run + k * COLUMNS, sums[k]);
    for (int k = 0; k < divisions; k++)
        vd_store(run + (plain + k) * COLUMNS, ends[k]);
}

/* Elements [start, start + n) of `count` columns, n <= BLOCK: the sums of a block. */
FKL_INLINE void columns_block(const enum pass pass, const enum fkl_type type, const struct columns *p,
                              const struct columns *q, ptrdiff_t start, ptrdiff_t n, ptrdiff_t count,
                              struct column_sums *s)
{
    const ptrdiff_t size = type_size(type), step = 2 * LANES, run = RUN * LANES;
    for (ptrdiff_t i = 0; i < n; i += step) {
        const struct place place = {i % run == 0, (i + step) % run == 0 || i + step >= n, i < run};
        for (int v = 0; v < LANES; v++) {
            const int rows = i + v >= n ? 0 : i + v + LANES >= n ? 1 : 2;
            const ptrdiff_t row = start + i + v;
            const char *x = p->data + row * p->stride, *y = q->data + row * q->stride;
            for (ptrdiff_t c = 0; c < count; c += 64 / size) {
                ask_for_columns(x, p->stride, rows, (c + count) * size);
                ask_for_columns(y, q->stride, rows, (c + count) * size);
#define FKL_STEP(ROWS)                                                                                                 \
    columns_step(pass, type, ROWS, x + at * size, p->stride, y + at * size, q->stride, place, s->run[v][0] + at,       \
                 s->block[v][0] + at, s->special + at)
                for (ptrdiff_t at = c; at < c + 64 / size; at += VD) {
                    if (FKL_LIKELY(rows == 2))
                        FKL_STEP(2);
                    else if (rows == 1)
                        FKL_STEP(1);
                    else
                        FKL_STEP(0);
                }
#undef FKL_STEP
            }
        }
    }
}

#if FKL_FLOAT_KERNELS
/* `rows` <= 4 elements, 8 apart, of VF columns: a run of their lane, added up in float like add_folded()'s. */
FKL_INLINE void add_column_run(const vf x[4], const int rows, vd sum[2])
{
    if (rows == 0)
        return;
    vf run = rows > 2 ? x[0] + x[2] : x[0];
    if (rows > 1)
        run += rows > 3 ? x[1] + x[3] : x[1];
    sum[0] += vf_low(run);
    sum[1] += vf_high(run);
}

/* columns_step() of floats in float arithmetic: `rows` <= 4 elements of VF columns. */
FKL_INLINE void columns_step_float(const enum pass pass, const int rows, const char *p, ptrdiff_t p_stride,
                                   const char *q, ptrdiff_t q_stride, const int starts,
                                   double sums[COLUMN_SUMS][COLUMNS], ptrdiff_t c, uint64_t special[COLUMNS])
{
    vf x[4], y[4], terms[4], none = vf_set(0.0f);
    vd sum[3][2];
    for (int k = 0; k < 3; k++)
        for (int half = 0; half < 2; half++)
            sum[k][half] = starts ? vd_set(0.0) : vd_load(&sums[k][c + half * VD]);
    FKL_UNROLL
    for (int j = 0; j < rows; j++) {
        const char *const at = p + j * LANES * p_stride;
        x[j] = vf_load(at);
        y[j] = vf_load(q + j * LANES * q_stride);
        for (int half = 0; !adds_p_in_float(pass, 0) && half < 2; half++)
            sum[1][half] += vh_load_double(at + half * 4 * VD);
    }
    if (adds_p_in_float(pass, 0))
        add_column_run(x, rows, sum[1]);
    add_column_run(y, rows, sum[2]);
    vf least = rows > 0 ? vf_min(x[0], y[0]) : vf_set(SMALLEST_FLOAT);
    FKL_UNROLL
    for (int j = 1; j < rows; j++)
        least = vf_min(vf_min(x[j], y[j]), least);
    if (FKL_LIKELY(mf_all(vf_le(vf_set(SMALLEST_FLOAT), least)))) {
        FKL_UNROLL
        for (int j = 0; j < rows; j++)
            terms[j] = end_float(pass, begin_float(pass, x[j], y[j], none));
    } else {
        vw bits = vw_set(0);
        uint32_t lanes[VF];
        FKL_UNROLL
        for (int j = 0; j < rows; j++)
            terms[j] = end_float(pass, begin_float_aside(pass, x[j], y[j], none, &bits));
        memcpy(lanes, &bits, sizeof lanes);
        for (int i = 0; i < VF; i++)
            special[c + i] |= lanes[i];
    }
    add_column_run(terms, rows, sum[0]);
    for (int k = 0; k < 3; k++)
        for (int half = 0; half < 2; half++)
            vd_store(&sums[k][c + half * VD], sum[k][half]);
}

FKL_INLINE void columns_block_float(const enum pass pass, const struct columns *p, const struct columns *q,
                                    ptrdiff_t start, ptrdiff_t n, ptrdiff_t count, struct column_sums *s)
{
    const ptrdiff_t step = FLOAT_RUN * 2 * LANES;
    for (ptrdiff_t i = 0; i < n; i += step)
        for (int v = 0; v < LANES; v++) {
            const ptrdiff_t row = start + i + v, rest = (n - i - v + LANES - 1) / LANES;
            const char *x = p->data + row * p->stride, *y = q->data + row * q->stride;
            for (ptrdiff_t c = 0; c < count; c += 16) {
                ask_for_columns(x, p->stride, rest < 4 ? rest : 4, (c + count) * 4);
                ask_for_columns(y, q->stride, rest < 4 ? rest : 4, (c + count) * 4);
                for (ptrdiff_t at = c; at < c + 16; at += VF) {
                    const char *at_p = x + at * 4, *at_q = y + at * 4;
#define FKL_STEP(ROWS)                                                                                                 \
    columns_step_float(pass, ROWS, at_p, p->stride, at_q, q->stride, i == 0, s->block[v], at, s->special)
                    if (FKL_LIKELY(rest >= 4))
                        FKL_STEP(4);
                    else if (rest == 3)
                        FKL_STEP(3);
                    else if (rest == 2)
                        FKL_STEP(2);
                    else if (rest == 1)
                        FKL_STEP(1);
                    else
                        FKL_STEP(0);
#undef FKL_STEP
                }
            }
        }
}
#endif

/* What the virtual lanes of a register of columns add up to: the tree of vd_add_lanes(). */
FKL_INLINE vd add_column_lanes(double sums[LANES][COLUMN_SUMS][COLUMNS], const int k, ptrdiff_t c)
{
    vd x[LANES];
    for (int v = 0; v < LANES; v++)
        x[v] = vd_load(&sums[v][k][c]);
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* A pass over the rows of some whole groups, which lie side by side. */
FKL_INLINE void pass_columns(const enum pass pass, const enum fkl_type type, const struct group *g, int groups,
                             struct totals *totals)
{
    const ptrdiff_t length = g->problem->length, count = groups * LANES;
    const struct columns p = {g->p.rows->data + g->p.first * type_size(type), g->p.rows->item_stride};
    const struct columns q = {g->q.rows->data + g->q.first * type_size(type), g->q.rows->item_stride};
    const int count_sums = in_float(pass, type) ? 3 : pass_sums(pass);
    struct column_sums *const s = g->column_sums;

    memset(s->special, 0, sizeof s->special);
    for (ptrdiff_t start = 0; start < length; start += BLOCK) {
        const ptrdiff_t n = length - start < BLOCK ? length - start : BLOCK;
#if FKL_FLOAT_KERNELS
        if (in_float(pass, type))
            columns_block_float(pass, &p, &q, start, n, count, s);
        else
#endif
            columns_block(pass, type, &p, &q, start, n, count, s);
        for (int v = 0; length > BLOCK && v < LANES; v++)
            for (int k = 0; k < count_sums; k++)
                for (ptrdiff_t c = 0; c < count; c += VD)
                    add_block_sum(vd_load(&s->block[v][k][c]), start == 0, &s->high[v][k][c], &s->low[v][k][c]);
    }
    for (int i = 0; i < groups; i++) {
        totals[i].special = 0;
        for (int j = 0; j < LANES; j++)
            totals[i].special |= (unsigned)(s->special[i * LANES + j] != 0) << j;
        for (int k = 0; k < count_sums; k++)
            for (int j = 0; j < LANES; j += VD) {
                const ptrdiff_t c = i * LANES + j;
                vd sum = add_column_lanes(length > BLOCK ? s->high : s->block, k, c);
                if (length > BLOCK) { /* where it is infinite, what adding it up lost is NaN */
                    md infinite = vd_eq(vd_abs(sum), vd_infinity());
                    sum = vd_select(infinite, sum, sum + add_column_lanes(s->low, k, c));
                }
                vd_store(&totals[i].sum[k][j], sum);
            }
    }
}

#define FKL_PASSES(DO, TYPE) DO(PASS_KL, TYPE) DO(PASS_JS_ONCE, TYPE)
#define FKL_COLUMNS_OF(PASS, TYPE)                                                                                     \
    static FKL_NOINLINE void columns_##PASS##_##TYPE(struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end,      \
                                                     struct totals *t)                                                 \
    {                                                                                                                  \
        (void)begin, (void)end;                                                                                        \
        pass_columns(PASS, TYPE, g, groups, t);                                                                        \
    }
FKL_PASSES(FKL_COLUMNS_OF, FKL_F64)
FKL_PASSES(FKL_COLUMNS_OF, FKL_F32)

#define FKL_NAME_COLUMNS(PASS, TYPE) [TYPE][PASS] = columns_##PASS##_##TYPE,
static pass_runner *const runners_columns[FKL_ROW_TYPES][PASSES] = {
    FKL_PASSES(FKL_NAME_COLUMNS, FKL_F64)
    FKL_PASSES(FKL_NAME_COLUMNS, FKL_F32)
};
#undef FKL_PASSES
#undef FKL_COLUMNS_OF
#undef FKL_NAME_COLUMNS
