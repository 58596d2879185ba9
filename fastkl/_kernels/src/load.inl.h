/* load.inl.h: the elements of contiguous rows as vectors, whole ones and the last part of a row; to which lane a float
 * belongs, and in what portions rows are summed. */
#ifndef FASTKL_LOAD_H
#define FASTKL_LOAD_H

#include "convert.inl.h"

/* How far ahead of itself a stream is asked for, in bytes: over the ends of pages, where the processor's own
 * prefetching stops. Into the first-level cache not far, for it holds little: on Zen 4 KL of doubles took 40 per cent
 * longer with 8 KiB than with 512 bytes, on Zen 3 5 to 10. */
#define AHEAD 1024
/* Into the second-level cache, all streams together, as much as a fast memory delivers between the question and the
 * answer. On Zen 5, where a core reads 42 GB/s, KL of doubles took 25 per cent longer with 4 KiB, and the Gaussians'
 * four streams 10 with 20 KiB; distances of 8 KiB and its multiples fall on each other's places in the cache. */
#define FAR_AHEAD 12288

/* A row is summed in blocks of so many elements, and a block in runs of so many steps over all lanes. */
#define BLOCK 256
#define RUN 8

/* One of some streams of which nothing is in a cache is asked for: `bytes` bytes, some way from those at offset i. */
FKL_INLINE void ask_far_ahead(const int streams, const char *stream, ptrdiff_t i, ptrdiff_t bytes)
{
    for (ptrdiff_t line = 0; line < bytes; line += 64)
        fkl_prefetch_far(stream, i + line + FAR_AHEAD / streams);
}

/* VD elements of a double or float row as doubles. */
FKL_INLINE vd load(const enum fkl_type type, const char *address)
{
    return type == FKL_F32 ? vh_load_double(address) : vd_load(address);
}

#if VD == 4
/* A mask of the first n lanes is a window into these. */
static const int64_t first_lanes[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
static const int32_t first_float_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#endif

/* The first n of them, n <= VD, and zeros: never reads past the n-th. */
FKL_INLINE vd load_part(const enum fkl_type type, const char *address, ptrdiff_t n)
{
#if VD == 8
    __mmask8 lanes = (__mmask8)((1u << n) - 1u);
    if (type == FKL_F32)
        return (vd)_mm512_cvtps_pd(_mm256_maskz_loadu_ps(lanes, address));
    return (vd)_mm512_maskz_loadu_pd(lanes, address);
#elif VD == 4
    if (type == FKL_F32) {
        __m128i mask = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(
            _mm256_loadu_si256((const __m256i_u *)(first_lanes + 4 - n)), _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0)));
        return (vd)_mm256_cvtps_pd(_mm_maskload_ps((const float *)(const void *)address, mask));
    }
    return (vd)_mm256_maskload_pd((const double *)(const void *)address,
                                  _mm256_loadu_si256((const __m256i_u *)(first_lanes + 4 - n)));
#else
    char whole[8 * VD] = {0};
    memcpy(whole, address, (size_t)(n * type_size(type)));
    return load(type, whole);
#endif
}

/* How many of n elements fall to the part of a step that begins at `first`. */
FKL_INLINE ptrdiff_t part_length(ptrdiff_t n, ptrdiff_t first, ptrdiff_t width)
{
    n -= first;
    return n < 0 ? 0 : n > width ? width : n;
}

/* Ones in the place of all but the first n elements: pairs of ones have no terms. */
FKL_INLINE vd ones_behind(vd x, ptrdiff_t n)
{
#if VD == 8
    return vd_select((md)((1u << n) - 1u), x, vd_set(1.0));
#elif VD == 4
    return vd_select((md)_mm256_loadu_pd((const double *)(const void *)(first_lanes + 4 - n)), x, vd_set(1.0));
#else
    double lanes[VD];
    vd_store(lanes, x);
    for (ptrdiff_t i = n; i < VD; i++)
        lanes[i] = 1.0;
    return vd_load(lanes);
#endif
}

#if VD > 1
FKL_INLINE vf load_float(const enum fkl_type type, const char *address)
{
    if (type == FKL_F16)
        return vf_load_f16(address);
    if (type == FKL_BF16)
        return vf_load_bf16(address);
    return vf_load(address);
}

FKL_INLINE void store_float(const enum fkl_type type, char *address, vf x)
{
    if (type == FKL_F16)
        vf_store_f16(address, x);
    else if (type == FKL_BF16)
        vf_store_bf16(address, x);
    else
        vf_store((float *)(void *)address, x);
}

FKL_INLINE vf load_float_part(const enum fkl_type type, const char *address, ptrdiff_t n)
{
#if VD == 8
    __mmask16 lanes = (__mmask16)((1u << n) - 1u);
    if (type == FKL_F16)
        return (vf)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, address));
    if (type == FKL_BF16)
        return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, address)), 16);
    return (vf)_mm512_maskz_loadu_ps(lanes, address);
#else
#if VD == 4
    if (type == FKL_F32)
        return (vf)_mm256_maskload_ps((const float *)(const void *)address,
                                      _mm256_loadu_si256((const __m256i_u *)(first_float_lanes + 8 - n)));
#endif
    char whole[4 * VF] = {0};
    memcpy(whole, address, (size_t)(n * type_size(type)));
    return load_float(type, whole);
#endif
}

FKL_INLINE vf float_ones_behind(vf x, ptrdiff_t n)
{
#if VD == 8
    return vf_select((mf)((1u << n) - 1u), x, vf_set(1.0f));
#elif VD == 4
    return vf_select((mf)_mm256_loadu_ps((const float *)(const void *)(first_float_lanes + 8 - n)), x, vf_set(1.0f));
#else
    float lanes[VF];
    vf_store(lanes, x);
    for (ptrdiff_t i = n; i < VF; i++)
        lanes[i] = 1.0f;
    return vf_load(lanes);
#endif
}

/* Float i belongs to lane i mod 8, as doubles do; j: the register's place in its step. */
FKL_INLINE void add_floats(vd acc[PARTS], const int j, vf x)
{
    acc[2 * j % PARTS] += vf_low(x);
    acc[(2 * j + 1) % PARTS] += vf_high(x);
}

/* The same of a whole step's, of which those of one lane are added up in float first. */
FKL_INLINE void add_folded(vd acc[PARTS], const vf x[PARTS])
{
#if PARTS == 1
    acc[0] += vf_folded(x[0]);
#else
    for (int j = 0; j < PARTS / 2; j++) {
        const vf both = x[j] + x[j + PARTS / 2];
        acc[2 * j] += vf_low(both);
        acc[2 * j + 1] += vf_high(both);
    }
#endif
}

#endif

#endif
