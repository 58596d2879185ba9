/* The kernels for level "baseline"; setup.py has the flags. */
#define FKL_LEVEL baseline
#include "level.inl.h"
