/* The kernels for level "avx512"; setup.py has the flags. */
#define FKL_LEVEL avx512
#include "level.inl.h"
