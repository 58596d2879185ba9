/* level.inl.h: all families' kernels and the table of one level; the including file defines FKL_LEVEL. */
#include "discrete.inl.h"
#include "gaussian.inl.h"
#include "gaussian_full.inl.h"
#include "logits.inl.h"
#include "elementwise.inl.h"
#include "probe.inl.h"

#define FKL_JOIN_(a, b) a##b
#define FKL_JOIN(a, b) FKL_JOIN_(a, b)
#define FKL_TEXT_(a) #a
#define FKL_TEXT(a) FKL_TEXT_(a)

extern const fkl_level FKL_JOIN(fkl_level_, FKL_LEVEL);
const fkl_level FKL_JOIN(fkl_level_, FKL_LEVEL) = {
    FKL_TEXT(FKL_LEVEL),
    {[FKL_DISCRETE] = discrete_block, [FKL_GAUSSIAN] = gaussian_block, [FKL_GAUSSIAN_FULL] = gaussian_full_block,
     [FKL_LOGITS] = logits_block, [FKL_TERMS] = kl_term_sums},
    elementwise,
    probe,
};
