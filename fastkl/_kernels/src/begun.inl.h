/* begun.inl.h: the terms of a run of elements, begun and not yet ended: see struct vd_begun.
 *
 * A term is base + w c(s^2). Its base is added up at once; what is left of it waits here while the run behind it, of the
 * same row or of the next, is begun. One half is mostly additions and integer operations, the other multiplications:
 * side by side in one loop, they keep all units of a processor busy.
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

/* Two runs by turns: one that is being begun, and one of `count` elements that waits to be added to `sum`, lane by
 * lane. */
struct begun_runs {
    struct begun_run runs[2];
    int waits;
    ptrdiff_t count;
    double *sum;
};

/* Nothing waits; sum: any eight doubles. */
FKL_INLINE void start_begun(struct begun_runs *begun, double sum[LANES])
{
    begun->waits = 0;
    begun->count = 0;
    begun->sum = sum;
}

/* One division of the terms of the vector from the i-th element on. */
FKL_INLINE void keep_begun(struct vd_begun x, struct begun_run *run, const int division, ptrdiff_t i)
{
    vd_store(run->s2[division] + i, x.s2);
    vd_store(run->w[division] + i, x.w);
}

/* `vectors` vectors from the i-th element on, ended and added to ends. */
FKL_INLINE void end_begun(const int divisions, const int vectors, const struct begun_run *run, ptrdiff_t i,
                          vd ends[PARTS])
{
    FKL_UNROLL
    for (int j = 0; j < vectors; j++, i += VD)
        for (int k = 0; k < divisions; k++)
            ends[j % PARTS] = vd_end((struct vd_begun){vd_load(run->s2[k] + i), vd_load(run->w[k] + i),
                                                       ends[j % PARTS]});
}

/* What waited has been ended: `ends` goes into its sum. What has been begun, n elements, waits in its place. */
FKL_INLINE void turn_begun(struct begun_runs *begun, const vd ends[PARTS], ptrdiff_t n, double sum[LANES])
{
    for (int j = 0; j < PARTS; j++)
        vd_store(begun->sum + j * VD, vd_load(begun->sum + j * VD) + ends[j]);
    begun->waits ^= 1;
    begun->count = n;
    begun->sum = sum;
}

/* What waits, by itself. */
FKL_INLINE void end_run(const int divisions, const struct begun_runs *begun, vd ends[PARTS])
{
    for (ptrdiff_t i = 0; i < begun->count; i += LANES)
        end_begun(divisions, PARTS, &begun->runs[begun->waits], i, ends);
}

/* No more follows. */
FKL_INLINE void end_last(const int divisions, struct begun_runs *begun)
{
    vd ends[PARTS];
    for (int j = 0; j < PARTS; j++)
        ends[j] = vd_set(0.0);
    end_run(divisions, begun, ends);
    turn_begun(begun, ends, 0, begun->sum);
}

#endif
