/* discrete_groups.inl.h: a pass over a group of up to eight rows, wherever and however they lie. */
#include "discrete_sums.inl.h"
#include "pack.inl.h"

/* One operand's rows of a group, and the tile its elements are packed into where they are not contiguous. */
struct side {
    const fkl_rows *rows;
    ptrdiff_t first; /* the group's first row */
    int direct;      /* rows lie in memory as the kernel reads them */
    char *tile;
};

struct group {
    struct side p, q;
    int count;            /* rows in the group */
    ptrdiff_t chunk;      /* elements of each row that are packed at a time; K where both operands are direct */
    ptrdiff_t packed_at, packed; /* the tiles hold [packed_at, packed_at + packed) of each row */
    const fkl_problem *problem;
    struct context context;
    double order; /* the b of PASS_RENYI */
    ptrdiff_t ahead;
};

FKL_INLINE const char *row_start(const struct side *side, int row, const enum fkl_type type, ptrdiff_t start,
                                 ptrdiff_t tile_length)
{
    if (side->direct)
        return side->rows->data + (side->first + row) * side->rows->row_stride + start * type_size(type);
    return side->tile + row * tile_length * type_size(type);
}

/* Elements [begin, end) of the group's rows through one pass. */
FKL_INLINE void run_range(const enum pass pass, const enum fkl_type type, struct group *g, ptrdiff_t begin,
                          ptrdiff_t end, struct totals *t)
{
    const ptrdiff_t tile_length = fkl_tile_length(g->problem->length);
    struct sums sums[LANES];

    t->special = 0;
    for (int i = 0; i < g->count; i++)
        sums[i].blocks = sums[i].special = 0;
    for (ptrdiff_t start = begin; start < end; start += g->chunk) {
        ptrdiff_t n = end - start < g->chunk ? end - start : g->chunk;
        if (g->packed_at != start || g->packed < n) {
            if (!g->p.direct)
                pack(g->p.rows, g->p.first, g->count, start, n, type, g->p.tile, tile_length * type_size(type));
            if (!g->q.direct)
                pack(g->q.rows, g->q.first, g->count, start, n, type, g->q.tile, tile_length * type_size(type));
            g->packed_at = start;
            g->packed = n;
        }
        for (int i = 0; i < g->count; i++) {
            const char *p = row_start(&g->p, i, type, start, tile_length);
            const char *q = row_start(&g->q, i, type, start, tile_length);
            const struct vcontext c = row_context(&g->context, i, g->problem->parameter, g->order, g->ahead);
            if (end - begin <= BLOCK && pass != PASS_SUMS_EXACT && pass != PASS_DIFFERENCE) {
                /* Short rows, sums and all in registers. */
                vd acc[SUMS][PARTS];
                struct exceptions others = no_exceptions();
                add_block(pass, type, p, q, n, &c, acc, &others);
                t->special |= (unsigned)any_special(&others) << i;
                for (int k = 0; k < pass_sums(pass); k++)
                    t->sum[k][i] = pass_has_maximum(pass) && k == 2 ? vd_max_lanes(acc[k]) : vd_add_lanes(acc[k]);
            } else {
                pass_along(pass, type, p, q, n, &c, &sums[i]);
                if (start + n == end)
                    total_row(pass, &sums[i], t, i);
            }
        }
    }
}

/* Eight rows of at most FKL_SHORT elements, one row per lane: see pack_columns(). */
FKL_INLINE void pass_across(const enum pass pass, const enum fkl_type type, const struct group *g, struct totals *t)
{
    const struct vcontext c = lane_context(&g->context, g->problem->parameter, g->order, 0);
    vd acc[SUMS][PARTS];
    struct exceptions others = no_exceptions();
    add_block(pass, type, g->p.tile, g->q.tile, LANES * g->problem->length, &c, acc, &others);
    for (int k = 0; k < pass_sums(pass); k++)
        for (int j = 0; j < PARTS; j++)
            vd_store(&t->sum[k][j * VD], acc[k][j]);
    t->special = 0;
    if (any_special(&others)) {
        if (in_float(pass, type)) {
            uint32_t bits[2 * LANES];
            memcpy(bits, others.special, sizeof bits);
            for (int i = 0; i < 2 * LANES; i++)
                t->special |= (unsigned)(bits[i] != 0) << i % LANES;
        } else {
            uint64_t bits[LANES];
            memcpy(bits, others.special, sizeof bits);
            for (int i = 0; i < LANES; i++)
                t->special |= (unsigned)(bits[i] != 0) << i;
        }
    }
}

/* One pass over the rows of some groups, whichever way they lie. The switch is the one place where passes are
 * instantiated. */
#define FKL_RUN(PASS)                                                                                                  \
    case PASS:                                                                                                         \
        for (int i = 0; i < groups; i++) {                                                                             \
            if (across)                                                                                                \
                pass_across(PASS, type, &g[i], &t[i]);                                                                 \
            else                                                                                                       \
                run_range(PASS, type, &g[i], begin, end, &t[i]);                                                       \
        }                                                                                                              \
        return;

FKL_INLINE void run_pass_typed(const enum fkl_type type, const int across, enum pass pass, struct group *g, int groups,
                               ptrdiff_t begin, ptrdiff_t end, struct totals *t)
{
    switch (pass) { /* what the 16-bit types are read for: see effective_type() */
        FKL_RUN(PASS_SUMS)
        FKL_RUN(PASS_KL)
        FKL_RUN(PASS_JS_HALF)
    default:
        break;
    }
    if (type == FKL_F16 || type == FKL_BF16)
        return;
    switch (pass) {
        FKL_RUN(PASS_SUMS_MAX)
        FKL_RUN(PASS_SUMS_EXACT)
        FKL_RUN(PASS_KL_PAIR)
        FKL_RUN(PASS_DIFFERENCE)
        FKL_RUN(PASS_JEFFREYS)
        FKL_RUN(PASS_JS)
        FKL_RUN(PASS_CROSS)
        FKL_RUN(PASS_VARIATION)
        FKL_RUN(PASS_HELLINGER)
        FKL_RUN(PASS_RENYI)
        FKL_RUN(PASS_SUPPORT)
    default:
        break;
    }
}
#undef FKL_RUN

typedef void pass_runner(enum pass pass, struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end,
                         struct totals *t);
#define FKL_RUNNER(NAME, TYPE, ACROSS)                                                                                 \
    static void NAME(enum pass pass, struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end, struct totals *t)    \
    {                                                                                                                  \
        run_pass_typed(TYPE, ACROSS, pass, g, groups, begin, end, t);                                                  \
    }
FKL_RUNNER(run_f64, FKL_F64, 0)
FKL_RUNNER(run_f32, FKL_F32, 0)
FKL_RUNNER(run_f16, FKL_F16, 0)
FKL_RUNNER(run_bf16, FKL_BF16, 0)
FKL_RUNNER(run_across_f64, FKL_F64, 1)
FKL_RUNNER(run_across_f32, FKL_F32, 1)
#undef FKL_RUNNER

static pass_runner *runner(enum fkl_type type, int across)
{
    static pass_runner *const along[FKL_ROW_TYPES] = {run_f64, run_f32, run_f16, run_bf16};
    return !across ? along[type] : type == FKL_F64 ? run_across_f64 : run_across_f32;
}
