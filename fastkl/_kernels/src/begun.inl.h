/* begun.inl.h: the terms of a run of elements, begun and not yet ended: see struct vd_begun.
 *
 * A term is base + w c(s^2). Its base is added up at once; what is left of it waits here while the run behind it, of
 * the same row or of the next, is begun. One half is mostly additions and integer operations, the other
 * multiplications: side by side in one loop, they keep all units of a processor busy.
 */
#ifndef FASTKL_BEGUN_H
#define FASTKL_BEGUN_H

#include "load.inl.h"
#include "vmath.h"

/* How many divisions a term has, with an s^2 and a w for each. */
#define MOST_DIVISIONS 2

/* A run's terms, by division. */
struct begun_run {
    _Alignas(64) double s2[MOST_DIVISIONS][RUN * LANES], w[MOST_DIVISIONS][RUN * LANES];
};

/* Two runs by turns: one that is being begun, and one of `count` elements that waits to be added to a sum for each
 * division, lane by lane. */
struct begun_runs {
    struct begun_run runs[2];
    int waits;
    ptrdiff_t count;
    double *sums[MOST_DIVISIONS];
};

/* Nothing waits; sum: any eight doubles. */
FKL_INLINE void start_begun(struct begun_runs *begun, double sum[LANES])
{
    begun->waits = 0;
    begun->count = 0;
    for (int k = 0; k < MOST_DIVISIONS; k++)
        begun->sums[k] = sum;
}

/* What has been ended of each division. */
struct ends {
    vd sum[MOST_DIVISIONS][PARTS];
};

FKL_INLINE struct ends no_ends(void)
{
    struct ends ends;
    for (int k = 0; k < MOST_DIVISIONS; k++)
        for (int j = 0; j < PARTS; j++)
            ends.sum[k][j] = vd_set(0.0);
    return ends;
}

/* One division of the terms of the vector from the i-th element on. */
FKL_INLINE void keep_begun(struct vd_begun x, struct begun_run *run, const int division, ptrdiff_t i)
{
    vd_store(run->s2[division] + i, x.s2);
    vd_store(run->w[division] + i, x.w);
}

/* `vectors` vectors from the i-th element on are ended. */
FKL_INLINE void end_begun(const int divisions, const int vectors, const struct begun_run *run, ptrdiff_t i,
                          struct ends *ends)
{
    FKL_UNROLL
    for (int j = 0; j < vectors; j++, i += VD)
        for (int k = 0; k < divisions; k++) {
            vd *const sum = &ends->sum[k][j % PARTS];
            *sum = vd_end((struct vd_begun){vd_load(run->s2[k] + i), vd_load(run->w[k] + i), *sum});
        }
}

/* What waits is ended by itself. */
FKL_INLINE void end_run(const int divisions, const struct begun_runs *begun, struct ends *ends)
{
    for (ptrdiff_t i = 0; i < begun->count; i += LANES)
        end_begun(divisions, PARTS, &begun->runs[begun->waits], i, ends);
}

/* What waited has been ended, and goes into its sums; `waits` ^ 1, of n elements, waits for these instead. */
FKL_INLINE void turn_begun(const int divisions, struct begun_runs *begun, const struct ends *ends, ptrdiff_t n,
                           double *const sums[MOST_DIVISIONS])
{
    for (int k = 0; k < divisions; k++) {
        double *const sum = begun->sums[k];
        for (int j = 0; j < PARTS; j++)
            vd_store(sum + j * VD, vd_load(sum + j * VD) + ends->sum[k][j]);
        begun->sums[k] = sums[k];
    }
    begun->waits ^= 1;
    begun->count = n;
}

/* No more follows. */
FKL_INLINE void end_last(const int divisions, struct begun_runs *begun)
{
    struct ends ends = no_ends();
    end_run(divisions, begun, &ends);
    turn_begun(divisions, begun, &ends, 0, begun->sums);
}

#endif
