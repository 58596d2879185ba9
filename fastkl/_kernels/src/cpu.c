/* cpu.c: the levels of this build, and which of them this CPU and operating system can run. */
#include "kernels.h"

#include <string.h>

#ifdef FASTKL_HAVE_BASELINE
extern const fkl_level fkl_level_baseline;
#endif
#ifdef FASTKL_HAVE_AVX2
extern const fkl_level fkl_level_avx2;
#endif
#ifdef FASTKL_HAVE_AVX512
extern const fkl_level fkl_level_avx512;
#endif
#ifdef FASTKL_HAVE_NEON
extern const fkl_level fkl_level_neon;
#endif

const fkl_level *const fkl_levels[] = {
#ifdef FASTKL_HAVE_BASELINE
    &fkl_level_baseline,
#endif
#ifdef FASTKL_HAVE_AVX2
    &fkl_level_avx2,
#endif
#ifdef FASTKL_HAVE_AVX512
    &fkl_level_avx512,
#endif
#ifdef FASTKL_HAVE_NEON
    &fkl_level_neon,
#endif
    NULL,
};

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>

/* The bits of XCR0 say which registers the operating system saves. */
static unsigned saved_registers(void)
{
    unsigned a, d;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

/* 0: baseline, 1: AVX2 with FMA and F16C, 2: AVX-512 F, CD, BW, DQ and VL as well. */
static int x86_rank(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    const unsigned osxsave = 1u << 27, avx = 1u << 28, fma = 1u << 12, f16c = 1u << 29;
    const unsigned needed = osxsave | avx | fma | f16c;
    if ((c & needed) != needed || (saved_registers() & 0x6) != 0x6)
        return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 5)))
        return 0;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31; /* F, DQ, CD, BW, VL */
    return (b & avx512) == avx512 && (saved_registers() & 0xe6) == 0xe6 ? 2 : 1;
}

int fkl_level_usable(const char *name)
{
    int rank = strcmp(name, "avx512") == 0 ? 2 : strcmp(name, "avx2") == 0 ? 1 : 0;
    return rank <= x86_rank();
}
#else
int fkl_level_usable(const char *name)
{
    (void)name; /* NEON is part of every AArch64 CPU, the baseline of every CPU */
    return 1;
}
#endif
