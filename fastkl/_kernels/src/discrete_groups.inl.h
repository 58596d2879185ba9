/* discrete_groups.inl.h: a pass over a group of up to eight rows, wherever and however they lie. */
#include "discrete_sums.inl.h"
#include "pack.inl.h"

/* One operand's rows of a group, and the tile its elements are packed into where they are not contiguous. */
struct side {
    const fkl_rows *rows;
    ptrdiff_t first; /* the group's first row */
    int direct;      /* rows lie in memory as the kernel reads them */
    char *tile;
    /* Where rows lie across the memory, the ones that will be packed next: `pieces` of `piece` bytes, of which `share`
     * are asked for with each row of the group, so that the memory works while the processor does. */
    const char *coming;
    ptrdiff_t piece_stride, piece, share, pieces;
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
    struct column_sums *column_sums; /* where rows are taken as columns */
};

/* Where the kernel reads the group's first row from its element `start` on, and how far from there the next one is. */
FKL_INLINE const char *first_row(const struct side *side, const enum fkl_type type, ptrdiff_t start)
{
    const fkl_rows *rows = side->rows;
    return side->direct ? rows->data + side->first * rows->row_stride + start * type_size(type) : side->tile;
}
FKL_INLINE ptrdiff_t row_distance(const struct side *side, const enum fkl_type type, ptrdiff_t tile_length)
{
    return side->direct ? side->rows->row_stride : tile_length * type_size(type);
}

FKL_INLINE void ask_for_coming(const struct side *side, int row)
{
    const ptrdiff_t first = row * side->share, end = first + side->share;
    for (ptrdiff_t i = first; i < end && i < side->pieces; i++)
        for (ptrdiff_t line = 0; line < side->piece; line += 64)
            fkl_prefetch_far(side->coming, i * side->piece_stride + line);
}

/* Elements [begin, end) of the group's rows through one pass. */
FKL_INLINE void run_range(const enum pass pass, const enum fkl_type type, struct group *g, ptrdiff_t begin,
                          ptrdiff_t end, struct totals *t)
{
    const ptrdiff_t tile_length = fkl_tile_length(g->problem->length);
    const int coming = g->p.pieces > 0 || g->q.pieces > 0;
    /* Rows of one block have plain sums for each lane, which are added up for all rows at a time. */
    const int one_block = end - begin <= BLOCK && pass != PASS_SUMS_EXACT && pass != PASS_DIFFERENCE;
    _Alignas(64) double lanes[LANES][SUMS][LANES];
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
        const ptrdiff_t p_stride = row_distance(&g->p, type, tile_length);
        const ptrdiff_t q_stride = row_distance(&g->q, type, tile_length);
        const char *p = first_row(&g->p, type, start), *q = first_row(&g->q, type, start);
        for (int i = 0; i < g->count; i++, p += p_stride, q += q_stride) {
            const struct vcontext c = row_context(&g->context, i, g->problem->parameter, g->order, g->ahead);
            if (coming) {
                ask_for_coming(&g->p, i);
                ask_for_coming(&g->q, i);
            }
            if (one_block) {
                struct exceptions others = no_exceptions();
                add_block(pass, type, 0, p, q, n, &c, lanes[i], &others);
                t->special |= (unsigned)any_special(&others) << i;
            } else {
                pass_along(pass, type, p, q, n, &c, &sums[i]);
                if (start + n == end)
                    total_row(pass, &sums[i], t, i);
            }
        }
    }
    if (!one_block)
        return;
    for (int k = 0; k < pass_sums(pass); k++) {
        if (pass_has_maximum(pass) && k == 2) {
            for (int i = 0; i < g->count; i++)
                t->sum[k][i] = largest_lane(lanes[i][k]);
        } else if (g->count == LANES) {
            vd_add_lanes_of_rows(lanes[0][k], SUMS * LANES, t->sum[k]);
        } else {
            for (int i = 0; i < g->count; i++)
                t->sum[k][i] = add_lanes(lanes[i][k]);
        }
    }
}

/* Of short rows in columns, where the same group of the next stretch lies, if it does end to end, to be asked for bit
 * by bit. If not it is asked for here, and there is nothing more to ask for but the columns themselves. */
FKL_INLINE const char *coming_columns(const struct side *side, const enum fkl_type type, ptrdiff_t length)
{
    const fkl_rows *rows = side->rows;
    const ptrdiff_t next = side->first + FKL_PACKED_ROWS;
    if (rows->row_stride == length * type_size(type) && length > 1)
        return FKL_AT(rows->data, next * rows->row_stride);
    ask_for_eight_rows(rows, next, length);
    return side->tile;
}

/* Groups of eight rows of at most FKL_SHORT elements, one row per lane: see pack_columns(). */
FKL_INLINE void pass_across(const enum pass pass, const enum fkl_type type, const struct group *groups, int count,
                            struct totals *totals)
{
    for (int k = 0; k < count; k++) {
        const struct group *g = &groups[k];
        struct totals *t = &totals[k];
        struct vcontext c = lane_context(&g->context, g->problem->parameter, g->order, 0);
        struct exceptions others = no_exceptions();
        c.p_coming = coming_columns(&g->p, type, g->problem->length);
        c.q_coming = coming_columns(&g->q, type, g->problem->length);
        add_block(pass, type, 1, g->p.tile, g->q.tile, LANES * g->problem->length, &c, t->sum, &others);
        t->special = 0;
        if (!any_special(&others))
            continue;
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

/* A pass over the rows of some groups. Each is a function by itself, instantiated here and nowhere else. */
typedef void pass_runner(struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end, struct totals *t);

#define FKL_FLOAT_PASSES(DO, TYPE) DO(PASS_SUMS, TYPE) DO(PASS_KL, TYPE) DO(PASS_JS_HALF, TYPE)  \
    DO(PASS_JS_ONCE, TYPE)
#define FKL_PASSES(DO, TYPE)                                                                                           \
    FKL_FLOAT_PASSES(DO, TYPE)                                                                                         \
    DO(PASS_SUMS_MAX, TYPE) DO(PASS_SUMS_EXACT, TYPE) DO(PASS_KL_PAIR, TYPE) DO(PASS_DIFFERENCE, TYPE)                 \
    DO(PASS_JEFFREYS, TYPE) DO(PASS_JS, TYPE) DO(PASS_CROSS, TYPE) DO(PASS_VARIATION, TYPE) DO(PASS_HELLINGER, TYPE)   \
    DO(PASS_RENYI, TYPE) DO(PASS_SUPPORT, TYPE)

#define FKL_ALONG(PASS, TYPE)                                                                                          \
    static FKL_NOINLINE void along_##PASS##_##TYPE(struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end,        \
                                                   struct totals *t)                                                   \
    {                                                                                                                  \
        for (int i = 0; i < groups; i++)                                                                               \
            run_range(PASS, TYPE, &g[i], begin, end, &t[i]);                                                           \
    }
#define FKL_ACROSS(PASS, TYPE)                                                                                         \
    static FKL_NOINLINE void across_##PASS##_##TYPE(struct group *g, int groups, ptrdiff_t begin, ptrdiff_t end,       \
                                                    struct totals *t)                                                  \
    {                                                                                                                  \
        (void)begin, (void)end;                                                                                        \
        pass_across(PASS, TYPE, g, groups, t);                                                                         \
    }
FKL_PASSES(FKL_ALONG, FKL_F64)
FKL_PASSES(FKL_ALONG, FKL_F32)
FKL_FLOAT_PASSES(FKL_ALONG, FKL_F16)
FKL_FLOAT_PASSES(FKL_ALONG, FKL_BF16)
FKL_PASSES(FKL_ACROSS, FKL_F64)
FKL_PASSES(FKL_ACROSS, FKL_F32)

/* By type and pass. */
#define FKL_NAME_ALONG(PASS, TYPE) [TYPE][PASS] = along_##PASS##_##TYPE,
#define FKL_NAME_ACROSS(PASS, TYPE) [TYPE][PASS] = across_##PASS##_##TYPE,
static pass_runner *const runners_along[FKL_ROW_TYPES][PASSES] = {
    FKL_PASSES(FKL_NAME_ALONG, FKL_F64)
    FKL_PASSES(FKL_NAME_ALONG, FKL_F32)
    FKL_FLOAT_PASSES(FKL_NAME_ALONG, FKL_F16)
    FKL_FLOAT_PASSES(FKL_NAME_ALONG, FKL_BF16)
};
static pass_runner *const runners_across[FKL_ROW_TYPES][PASSES] = {
    FKL_PASSES(FKL_NAME_ACROSS, FKL_F64)
    FKL_PASSES(FKL_NAME_ACROSS, FKL_F32)
};
#undef FKL_FLOAT_PASSES
#undef FKL_PASSES
#undef FKL_ALONG
#undef FKL_ACROSS
#undef FKL_NAME_ALONG
#undef FKL_NAME_ACROSS

static pass_runner *const *runners(enum fkl_type type, int across)
{
    return across ? runners_across[type] : runners_along[type];
}
