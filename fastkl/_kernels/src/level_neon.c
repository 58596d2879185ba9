/* The kernels for level "neon"; setup.py has the flags. */
#define FKL_LEVEL neon
#include "level.inl.h"
