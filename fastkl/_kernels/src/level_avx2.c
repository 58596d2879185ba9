/* The kernels for level "avx2"; setup.py has the flags. */
#define FKL_LEVEL avx2
#include "level.inl.h"
