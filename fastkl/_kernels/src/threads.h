/* threads.h: the little of OpenMP that the walkers ask for, with or without OpenMP. */
#ifndef FASTKL_THREADS_H
#define FASTKL_THREADS_H

#ifdef _OPENMP
#include <omp.h>
static inline int fkl_openmp_version(void) { return _OPENMP; }
static inline int fkl_in_parallel(void) { return omp_in_parallel(); }
#else
static inline int fkl_openmp_version(void) { return 0; }
static inline int fkl_in_parallel(void) { return 0; }
#endif

#endif
