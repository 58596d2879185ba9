/* begun.inl.h: the terms of a block of elements, begun and not yet ended: see struct vd_begun.
 *
 * A term is base + w c(s^2). Its base is added up at once; what is left of it waits here until the block is through,
 * and is added up in a loop of its own.
 */
#ifndef FASTKL_BEGUN_H
#define FASTKL_BEGUN_H

#include "load.inl.h"
#include "vmath.h"

struct begun_block {
    _Alignas(64) double s2[BLOCK], w[BLOCK];
};

/* Of the vector from the i-th element on. */
FKL_INLINE void keep_begun(struct vd_begun x, struct begun_block *begun, ptrdiff_t i)
{
    vd_store(begun->s2 + i, x.s2);
    vd_store(begun->w + i, x.w);
}

/* The n elements of each of `count` blocks, run by run, added to sum. */
FKL_INLINE void end_blocks(const int count, const struct begun_block *begun, ptrdiff_t n, vd sum[PARTS])
{
    for (ptrdiff_t first = 0; first < n; first += RUN * LANES) {
        const ptrdiff_t end = n - first < RUN * LANES ? n : first + RUN * LANES;
        vd run[PARTS];
        for (int j = 0; j < PARTS; j++)
            run[j] = vd_set(0.0);
        for (ptrdiff_t i = first; i < end; i += LANES) {
            FKL_UNROLL
            for (int j = 0; j < PARTS; j++)
                for (int k = 0; k < count; k++)
                    run[j] = vd_end((struct vd_begun){vd_load(begun[k].s2 + i + j * VD),
                                                      vd_load(begun[k].w + i + j * VD), run[j]});
        }
        for (int j = 0; j < PARTS; j++)
            sum[j] += run[j];
    }
}

#endif
