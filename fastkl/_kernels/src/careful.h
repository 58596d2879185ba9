/* careful.h: what the files that take one element at a time have in common: elements of any layout, exponents apart
 * from their mantissas, sums that keep what they lose. They use the one-lane form of simd.h and vmath.h. */
#ifndef FASTKL_CAREFUL_H
#define FASTKL_CAREFUL_H

#define FASTKL_SCALAR
#include "convert.inl.h"
#include "kernels.h"
#include "vmath.h"

#include <math.h>

/* Element j of the first row. */
static inline double get(const fkl_rows *rows, ptrdiff_t j)
{
    return load_any((enum fkl_type)rows->type, rows->swapped, rows->data + j * rows->item_stride);
}

/* mantissa 2^exponent, the mantissa in [1, 2) but for its sign, or both 0. */
struct split {
    double mantissa;
    int exponent;
};

static inline struct split split(double x)
{
    struct split s = {0.0, 0};
    if (x != 0.0) {
        s.mantissa = 2.0 * frexp(x, &s.exponent);
        s.exponent -= 1;
    }
    return s;
}

/* high + low: a sum and what adding it up has lost. */
struct pair {
    double high, low;
};

static inline void add(struct pair *sum, double x)
{
    double error;
    vd_two_sum(sum->high, x, &sum->high, &error);
    sum->low += error;
}

#endif
