/* flags.h: the processor's record of overflows, divisions by zero and the like. */
#ifndef FASTKL_FLAGS_H
#define FASTKL_FLAGS_H

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
/* feclearexcept() clears the old coprocessor's as well, which no arithmetic here sets: that takes as long as some
 * hundred elements do. */
static inline void fkl_clear_flags(void) { _mm_setcsr(_mm_getcsr() & ~(unsigned)_MM_EXCEPT_MASK); }
#else
#include <fenv.h>
static inline void fkl_clear_flags(void) { feclearexcept(FE_ALL_EXCEPT); }
#endif

#endif
