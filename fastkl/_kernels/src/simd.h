/* simd.h: the vectors every kernel is written in.
 *
 * One set of names, four implementations, chosen by the flags the file is compiled with: AVX-512 (8 doubles in a
 * register), AVX2 with FMA (4), SSE2 or NEON (2), and a plain C fallback (1) for compilers without vector types.
 * Arithmetic is written with the operators + - * /, everything else with the functions below.
 *
 *   vd  VD doubles      vi  VD 64-bit unsigned integers      md  a mask over VD lanes
 *   vf  VF floats       vw  VF 32-bit unsigned integers      mf  a mask over VF lanes      (VF = 2 VD)
 *
 * The arithmetic of a row is defined on LANES = 8 *virtual* lanes: element i belongs to lane i mod 8, whatever the
 * register width, and a virtual vector is PARTS = 8 / VD registers. That is what makes the levels agree bit for bit.
 *
 * Everything is `static inline`: no symbol leaves the object of its level, so no level's code can be linked into
 * another's. The files are compiled with -ffp-contract=off: a fused multiply-add happens where vd_fma is written and
 * nowhere else.
 */
#ifndef FASTKL_SIMD_H
#define FASTKL_SIMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 8

#if defined(__GNUC__) || defined(__clang__)
#define FKL_INLINE static inline __attribute__((always_inline, unused))
#define FKL_NOINLINE __attribute__((noinline))
#define FKL_UNROLL _Pragma("GCC unroll 8")
#define FKL_LIKELY(x) __builtin_expect(!!(x), 1)
/* What is asked for may lie outside the array, where no pointer may point: the address is a number. */
#define FKL_AT(base, offset) ((const void *)((uintptr_t)(base) + (uintptr_t)(offset)))
#define fkl_prefetch(base, offset) __builtin_prefetch(FKL_AT(base, offset), 0, 3)
#define fkl_prefetch_far(base, offset) __builtin_prefetch(FKL_AT(base, offset), 0, 2) /* to the second-level cache */
#else
#define FKL_INLINE static inline
#define FKL_NOINLINE
#define FKL_UNROLL
#define FKL_LIKELY(x) (x)
#define fkl_prefetch(base, offset) ((void)(base), (void)(offset))
#define fkl_prefetch_far(base, offset) ((void)(base), (void)(offset))
#endif

/* FASTKL_SCALAR forces the one-lane fallback, which the careful files are written in: see careful.h. */
#if defined(FASTKL_SCALAR) || !(defined(__GNUC__) || defined(__clang__))
#define FKL_SCALAR 1
#elif defined(__AVX2__) || defined(__SSE2__)
#define FKL_X86 1
#include <immintrin.h>
#elif defined(__aarch64__)
#define FKL_NEON 1
#include <arm_neon.h>
#else
#define FKL_SCALAR 1
#endif

/* ---- register width ------------------------------------------------------------------------------------------- */

#if defined(FKL_SCALAR)
#define VD 1
#elif defined(__AVX512F__)
#define VD 8
#elif defined(__AVX2__)
#define VD 4
#else
#define VD 2
#endif
#define VF (2 * VD)
#define PARTS (LANES / VD)

/* Is a * b + c with one rounding a single instruction? Where it isn't, vd_fma() emulates it and vd_madd() rounds
 * twice: use vd_madd where either will do. */
#if defined(__FMA__) || defined(__AVX512F__) || defined(FKL_NEON)
#define FKL_HAVE_FMA 1
#else
#define FKL_HAVE_FMA 0
#endif
/* Is there arithmetic on floats? It is no good without the fused multiply-add: a level that has none takes doubles. */
#define FKL_FLOAT_KERNELS (VD > 1 && FKL_HAVE_FMA)

#if VD > 1
typedef double vd __attribute__((vector_size(8 * VD)));
typedef uint64_t vi __attribute__((vector_size(8 * VD)));
typedef float vf __attribute__((vector_size(8 * VD)));
typedef uint32_t vw __attribute__((vector_size(8 * VD)));
/* The same, for addresses with any alignment. */
typedef double vd_any __attribute__((vector_size(8 * VD), aligned(1), may_alias));
typedef float vf_any __attribute__((vector_size(8 * VD), aligned(1), may_alias));

FKL_INLINE vi vd_bits(vd x) { return (vi)x; }
FKL_INLINE vd vi_double(vi x) { return (vd)x; }
FKL_INLINE vw vf_bits(vf x) { return (vw)x; }
FKL_INLINE vf vw_float(vw x) { return (vf)x; }
FKL_INLINE vd vd_set(double x) { return x - (vd){0}; }
FKL_INLINE vi vi_set(uint64_t x) { return x - (vi){0}; }
FKL_INLINE vf vf_set(float x) { return x - (vf){0}; }
FKL_INLINE vw vw_set(uint32_t x) { return x - (vw){0}; }
FKL_INLINE vd vd_load(const void *address) { return *(const vd_any *)address; }
FKL_INLINE vf vf_load(const void *address) { return *(const vf_any *)address; }
FKL_INLINE void vd_store(double *address, vd x) { *(vd_any *)address = x; }
FKL_INLINE void vf_store(float *address, vf x) { *(vf_any *)address = x; }
#else
typedef double vd;
typedef uint64_t vi;
FKL_INLINE vi vd_bits(vd x) { vi y; memcpy(&y, &x, 8); return y; }
FKL_INLINE vd vi_double(vi x) { vd y; memcpy(&y, &x, 8); return y; }
FKL_INLINE vd vd_set(double x) { return x; }
FKL_INLINE vi vi_set(uint64_t x) { return x; }
FKL_INLINE vd vd_load(const void *address) { vd x; memcpy(&x, address, 8); return x; }
FKL_INLINE void vd_store(double *address, vd x) { memcpy(address, &x, 8); }
#endif

/* ---- masks, selection, minima, square roots, fused multiply-add ------------------------------------------------ */

#if VD == 8
typedef __mmask8 md;
typedef __mmask16 mf;
FKL_INLINE md vd_lt(vd a, vd b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ); }
FKL_INLINE md vd_le(vd a, vd b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LE_OQ); }
FKL_INLINE md vd_eq(vd a, vd b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ); }
FKL_INLINE mf vf_lt(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
FKL_INLINE mf vf_le(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
FKL_INLINE vd vd_select(md m, vd a, vd b) { return (vd)_mm512_mask_blend_pd(m, (__m512d)b, (__m512d)a); }
FKL_INLINE vf vf_select(mf m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
FKL_INLINE vi vi_or_where(md m, vi a, vi b) { return (vi)_mm512_mask_or_epi64((__m512i)a, m, (__m512i)a, (__m512i)b); }
FKL_INLINE vw vw_or_where(mf m, vw a, vw b) { return (vw)_mm512_mask_or_epi32((__m512i)a, m, (__m512i)a, (__m512i)b); }
FKL_INLINE md md_or(md a, md b) { return (md)(a | b); }
FKL_INLINE md md_and(md a, md b) { return (md)(a & b); }
FKL_INLINE md md_not(md a) { return (md)~a; }
FKL_INLINE mf mf_or(mf a, mf b) { return (mf)(a | b); }
FKL_INLINE mf mf_and(mf a, mf b) { return (mf)(a & b); }
FKL_INLINE int md_all(md m) { return m == 0xff; }
FKL_INLINE int mf_all(mf m) { return m == 0xffff; }
FKL_INLINE unsigned md_lanes(md m) { return m; }
FKL_INLINE vd vd_max(vd a, vd b) { return (vd)_mm512_max_pd((__m512d)a, (__m512d)b); }
FKL_INLINE vd vd_min(vd a, vd b) { return (vd)_mm512_min_pd((__m512d)a, (__m512d)b); }
FKL_INLINE vf vf_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
FKL_INLINE vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
FKL_INLINE vd vd_sqrt(vd a) { return (vd)_mm512_sqrt_pd((__m512d)a); }
FKL_INLINE vd vd_fma(vd a, vd b, vd c) { return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
FKL_INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif VD == 4
typedef __m256d md;
typedef __m256 mf;
FKL_INLINE md vd_lt(vd a, vd b) { return _mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LT_OQ); }
FKL_INLINE md vd_le(vd a, vd b) { return _mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LE_OQ); }
FKL_INLINE md vd_eq(vd a, vd b) { return _mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_EQ_OQ); }
FKL_INLINE mf vf_lt(vf a, vf b) { return _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ); }
FKL_INLINE mf vf_le(vf a, vf b) { return _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ); }
FKL_INLINE vd vd_select(md m, vd a, vd b) { return (vd)_mm256_blendv_pd((__m256d)b, (__m256d)a, m); }
FKL_INLINE vf vf_select(mf m, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, m); }
FKL_INLINE vi vi_or_where(md m, vi a, vi b) { return a | ((vi)m & b); }
FKL_INLINE vw vw_or_where(mf m, vw a, vw b) { return a | ((vw)m & b); }
FKL_INLINE md md_or(md a, md b) { return _mm256_or_pd(a, b); }
FKL_INLINE md md_and(md a, md b) { return _mm256_and_pd(a, b); }
FKL_INLINE md md_not(md a) { return _mm256_xor_pd(a, _mm256_castsi256_pd(_mm256_set1_epi32(-1))); }
FKL_INLINE mf mf_or(mf a, mf b) { return _mm256_or_ps(a, b); }
FKL_INLINE mf mf_and(mf a, mf b) { return _mm256_and_ps(a, b); }
FKL_INLINE int md_all(md m) { return _mm256_movemask_pd(m) == 0xf; }
FKL_INLINE int mf_all(mf m) { return _mm256_movemask_ps(m) == 0xff; }
FKL_INLINE unsigned md_lanes(md m) { return (unsigned)_mm256_movemask_pd(m); }
FKL_INLINE vd vd_max(vd a, vd b) { return (vd)_mm256_max_pd((__m256d)a, (__m256d)b); }
FKL_INLINE vd vd_min(vd a, vd b) { return (vd)_mm256_min_pd((__m256d)a, (__m256d)b); }
FKL_INLINE vf vf_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
FKL_INLINE vf vf_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
FKL_INLINE vd vd_sqrt(vd a) { return (vd)_mm256_sqrt_pd((__m256d)a); }
FKL_INLINE vd vd_fma(vd a, vd b, vd c) { return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
FKL_INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else /* SSE2, NEON and one lane: masks are integers of all ones or all zeros */
#if VD > 1
typedef vi md;
typedef vw mf;
#define FKL_MASK(comparison) ((vi)(comparison))
FKL_INLINE mf vf_lt(vf a, vf b) { return (vw)(a < b); }
FKL_INLINE mf vf_le(vf a, vf b) { return (vw)(a <= b); }
FKL_INLINE vf vf_select(mf m, vf a, vf b) { return (vf)((m & (vw)a) | (~m & (vw)b)); }
FKL_INLINE vw vw_or_where(mf m, vw a, vw b) { return a | (m & b); }
FKL_INLINE mf mf_or(mf a, mf b) { return a | b; }
FKL_INLINE mf mf_and(mf a, mf b) { return a & b; }
#if defined(FKL_X86)
FKL_INLINE int mf_all(mf m) { return _mm_movemask_ps((__m128)m) == 0xf; }
#else
FKL_INLINE int mf_all(mf m) { vi x = (vi)m; return (x[0] & x[1]) == UINT64_MAX; }
#endif
FKL_INLINE vf vf_min(vf a, vf b) { return vf_select(vf_lt(a, b), a, b); }
FKL_INLINE vf vf_max(vf a, vf b) { return vf_select(vf_lt(b, a), a, b); }
#else
typedef uint64_t md;
#define FKL_MASK(comparison) ((uint64_t)0 - (uint64_t)(comparison))
#endif
FKL_INLINE md vd_lt(vd a, vd b) { return FKL_MASK(a < b); }
FKL_INLINE md vd_le(vd a, vd b) { return FKL_MASK(a <= b); }
FKL_INLINE md vd_eq(vd a, vd b) { return FKL_MASK(a == b); }
FKL_INLINE vd vd_select(md m, vd a, vd b) { return vi_double((m & vd_bits(a)) | (~m & vd_bits(b))); }
FKL_INLINE vi vi_or_where(md m, vi a, vi b) { return a | (m & b); }
FKL_INLINE md md_or(md a, md b) { return a | b; }
FKL_INLINE md md_and(md a, md b) { return a & b; }
FKL_INLINE md md_not(md a) { return ~a; }
FKL_INLINE vd vd_max(vd a, vd b) { return vd_select(vd_lt(b, a), a, b); }
FKL_INLINE vd vd_min(vd a, vd b) { return vd_select(vd_lt(a, b), a, b); }
#if defined(FKL_X86) /* to take a lane out of a mask costs a false dependency on what a register held before */
FKL_INLINE int md_all(md m) { return _mm_movemask_pd((__m128d)m) == 0x3; }
FKL_INLINE unsigned md_lanes(md m) { return (unsigned)_mm_movemask_pd((__m128d)m); }
#elif VD > 1
FKL_INLINE int md_all(md m) { return (m[0] & m[1]) != 0; }
FKL_INLINE unsigned md_lanes(md m) { return (unsigned)((m[0] & 1) | (m[1] & 2)); }
#else
FKL_INLINE int md_all(md m) { return m != 0; }
FKL_INLINE unsigned md_lanes(md m) { return (unsigned)(m & 1); }
#endif
#if defined(FKL_NEON)
FKL_INLINE vd vd_sqrt(vd a) { return (vd)vsqrtq_f64((float64x2_t)a); }
FKL_INLINE vd vd_fma(vd a, vd b, vd c) { return (vd)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
FKL_INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#elif defined(FKL_X86)
FKL_INLINE vd vd_sqrt(vd a) { return (vd)_mm_sqrt_pd((__m128d)a); }
#else
FKL_INLINE vd vd_sqrt(vd a) { return sqrt(a); }
FKL_INLINE vd vd_fma(vd a, vd b, vd c) { return fma(a, b, c); }
#endif
#endif

/* For the end of what is called from without: leaves the registers' upper parts empty, which code for SSE that comes
 * next would have to keep (it takes three times as long). GCC does that by itself, but not behind a last call to a
 * function of the same file that uses no vectors. */
FKL_INLINE void vd_leave(void)
{
#if defined(__AVX__)
    _mm256_zeroupper();
#endif
}

/* Is any bit set? */
FKL_INLINE int vi_any(vi x)
{
#if VD == 8
    return _mm512_test_epi64_mask((__m512i)x, (__m512i)x) != 0;
#elif VD == 4
    return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#elif VD == 2
    return (x[0] | x[1]) != 0;
#else
    return x != 0;
#endif
}

/* The sum over the virtual lanes: at every level the tree ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). */
FKL_INLINE double vd_add_lanes(const vd x[PARTS])
{
#if VD == 8
    __m512d all = (__m512d)x[0];
    __m256d four = _mm512_castpd512_pd256(all) + _mm512_extractf64x4_pd(all, 1);
    __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
    return two[0] + two[1];
#elif VD == 4
    __m256d four = (__m256d)(x[0] + x[1]);
    __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
    return two[0] + two[1];
#elif VD == 2
    vd two = (x[0] + x[2]) + (x[1] + x[3]);
    return two[0] + two[1];
#else
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
#endif
}

/* The same of eight rows whose lanes lie `stride` doubles apart. */
FKL_INLINE void vd_add_lanes_of_rows(const double *lanes, ptrdiff_t stride, double sums[8])
{
#if VD == 8
    __m512d half[4], quarter[2]; /* of rows 0 and 2, 4 and 6, 1 and 3, 5 and 7; then of 0, 2, 4, 6 and of 1, 3, 5, 7 */
    for (int i = 0; i < 4; i++) {
        const double *row = lanes + ((i & 1) * 4 + i / 2) * stride;
        const __m512d a = _mm512_loadu_pd(row), b = _mm512_loadu_pd(row + 2 * stride);
        half[i] = _mm512_shuffle_f64x2(a, b, 0x44) + _mm512_shuffle_f64x2(a, b, 0xee);
    }
    for (int i = 0; i < 2; i++)
        quarter[i] = _mm512_shuffle_f64x2(half[2 * i], half[2 * i + 1], 0x88) +
                     _mm512_shuffle_f64x2(half[2 * i], half[2 * i + 1], 0xdd);
    vd_store(sums, (vd)(_mm512_unpacklo_pd(quarter[0], quarter[1]) + _mm512_unpackhi_pd(quarter[0], quarter[1])));
#elif VD == 4
    for (int i = 0; i < 8; i += 4, lanes += 4 * stride) {
        __m256d half[4], quarter[2];
        for (int j = 0; j < 4; j++)
            half[j] = (__m256d)(vd_load(lanes + j * stride) + vd_load(lanes + j * stride + 4));
        for (int j = 0; j < 2; j++)
            quarter[j] = _mm256_permute2f128_pd(half[j], half[j + 2], 0x20) +
                         _mm256_permute2f128_pd(half[j], half[j + 2], 0x31);
        vd_store(sums + i, (vd)(_mm256_unpacklo_pd(quarter[0], quarter[1]) +
                                _mm256_unpackhi_pd(quarter[0], quarter[1])));
    }
#else
    for (int i = 0; i < 8; i++, lanes += stride) {
        vd parts[PARTS];
        for (int j = 0; j < PARTS; j++)
            parts[j] = vd_load(lanes + j * VD);
        sums[i] = vd_add_lanes(parts);
    }
#endif
}

/* x, loaded once: GCC takes it for cheaper to load a vector again than to keep it, which it is not across two lines. */
FKL_INLINE vd vd_in_register(vd x)
{
#if defined(FKL_X86)
    __asm__("" : "+v"(x));
#endif
    return x;
}

FKL_INLINE vd vd_abs(vd a) { return vi_double(vd_bits(a) & vi_set(UINT64_C(0x7fffffffffffffff))); }
#if VD > 1
FKL_INLINE vf vf_abs(vf a) { return vw_float(vf_bits(a) & vw_set(UINT32_C(0x7fffffff))); }
#endif

/* ---- exact products and sums ----------------------------------------------------------------------------------- */

/* a + b = *sum + *error exactly (Knuth's TwoSum: no condition on the magnitudes, six operations). */
FKL_INLINE void vd_two_sum(vd a, vd b, vd *sum, vd *error)
{
    vd s = a + b;
    vd t = s - a;
    *sum = s;
    *error = (a - (s - t)) + (b - t);
}

/* a * b = *product + *error exactly, barring underflow of the error (magnitudes below 2^995 where there is no FMA:
 * Dekker's product splits its factors by 2^27 + 1). */
FKL_INLINE void vd_two_product(vd a, vd b, vd *product, vd *error)
{
    vd x = a * b;
    *product = x;
#if FKL_HAVE_FMA || VD == 1
    *error = vd_fma(a, b, -x);
#else
    vd split = vd_set(134217729.0);
    vd at = split * a, bt = split * b;
    vd ah = at - (at - a), bh = bt - (bt - b);
    vd al = a - ah, bl = b - bh;
    *error = al * bl - (((x - ah * bh) - al * bh) - ah * bl);
#endif
}

#if !FKL_HAVE_FMA && VD > 1
/* a * b + c with an error far below one rounding (not always the last bit: the two errors are added in double). */
FKL_INLINE vd vd_fma(vd a, vd b, vd c)
{
    vd product, product_error, sum, sum_error;
    vd_two_product(a, b, &product, &product_error);
    vd_two_sum(product, c, &sum, &sum_error);
    return sum + (sum_error + product_error);
}
FKL_INLINE vd vd_madd(vd a, vd b, vd c) { return a * b + c; }
#else
FKL_INLINE vd vd_madd(vd a, vd b, vd c) { return vd_fma(a, b, c); }
#if VD > 1
FKL_INLINE vf vf_madd(vf a, vf b, vf c) { return vf_fma(a, b, c); }
#endif
#endif

/* ---- transposition ---------------------------------------------------------------------------------------------- */

/* A square of VD by VD doubles, in place: vector i becomes the i-th elements of all. */
FKL_INLINE void vd_transpose(vd r[VD])
{
#if VD == 8
    __m512d t[8], s[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_pd((__m512d)r[i], (__m512d)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_pd((__m512d)r[i], (__m512d)r[i + 1]);
    }
    for (int i = 0; i < 2; i++) { /* t[i], t[i + 2], t[i + 4], t[i + 6] hold columns i, i + 2, i + 4, i + 6 by pairs */
        s[0] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x88);
        s[1] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x88);
        s[2] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xdd);
        s[3] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xdd);
        r[i] = (vd)_mm512_shuffle_f64x2(s[0], s[1], 0x88);
        r[i + 4] = (vd)_mm512_shuffle_f64x2(s[0], s[1], 0xdd);
        r[i + 2] = (vd)_mm512_shuffle_f64x2(s[2], s[3], 0x88);
        r[i + 6] = (vd)_mm512_shuffle_f64x2(s[2], s[3], 0xdd);
    }
#elif VD == 4
    __m256d low0 = _mm256_unpacklo_pd((__m256d)r[0], (__m256d)r[1]);
    __m256d low1 = _mm256_unpacklo_pd((__m256d)r[2], (__m256d)r[3]);
    __m256d high0 = _mm256_unpackhi_pd((__m256d)r[0], (__m256d)r[1]);
    __m256d high1 = _mm256_unpackhi_pd((__m256d)r[2], (__m256d)r[3]);
    r[0] = (vd)_mm256_permute2f128_pd(low0, low1, 0x20);
    r[1] = (vd)_mm256_permute2f128_pd(high0, high1, 0x20);
    r[2] = (vd)_mm256_permute2f128_pd(low0, low1, 0x31);
    r[3] = (vd)_mm256_permute2f128_pd(high0, high1, 0x31);
#elif VD == 2
    vd first = {r[0][0], r[1][0]}, second = {r[0][1], r[1][1]};
    r[0] = first;
    r[1] = second;
#else
    (void)r;
#endif
}

#if VD > 1
/* Four by four floats. */
typedef float v4 __attribute__((vector_size(16)));
#if defined(__clang__) || __GNUC__ >= 12
#define FKL_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define FKL_SHUFFLE(a, b, i, j, k, l)                                                                                  \
    __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif
FKL_INLINE void v4_transpose(v4 r[4])
{
    v4 low01 = FKL_SHUFFLE(r[0], r[1], 0, 4, 1, 5), high01 = FKL_SHUFFLE(r[0], r[1], 2, 6, 3, 7);
    v4 low23 = FKL_SHUFFLE(r[2], r[3], 0, 4, 1, 5), high23 = FKL_SHUFFLE(r[2], r[3], 2, 6, 3, 7);
    r[0] = FKL_SHUFFLE(low01, low23, 0, 1, 4, 5);
    r[1] = FKL_SHUFFLE(low01, low23, 2, 3, 6, 7);
    r[2] = FKL_SHUFFLE(high01, high23, 0, 1, 4, 5);
    r[3] = FKL_SHUFFLE(high01, high23, 2, 3, 6, 7);
}
#endif

/* Two neighbouring doubles of each of VD rows that are `stride` bytes apart: the first ones, and the second ones. */
FKL_INLINE void vd_load_columns(const char *from, ptrdiff_t stride, vd *first, vd *second)
{
#if VD == 8
    __m512d even = _mm512_castpd128_pd512(_mm_loadu_pd((const double *)(const void *)from));
    __m512d odd = _mm512_castpd128_pd512(_mm_loadu_pd((const double *)(const void *)(from + stride)));
#define FKL_ROWS(I)                                                                                                    \
    even = _mm512_insertf64x2(even, _mm_loadu_pd((const double *)(const void *)(from + 2 * (I) * stride)), I);         \
    odd = _mm512_insertf64x2(odd, _mm_loadu_pd((const double *)(const void *)(from + (2 * (I) + 1) * stride)), I);
    FKL_ROWS(1)
    FKL_ROWS(2)
    FKL_ROWS(3)
#undef FKL_ROWS
    *first = (vd)_mm512_unpacklo_pd(even, odd);
    *second = (vd)_mm512_unpackhi_pd(even, odd);
#elif VD == 4
    __m128d row[4];
    for (int i = 0; i < 4; i++)
        row[i] = _mm_loadu_pd((const double *)(const void *)(from + i * stride));
    __m256d even = _mm256_insertf128_pd(_mm256_castpd128_pd256(row[0]), row[2], 1);
    __m256d odd = _mm256_insertf128_pd(_mm256_castpd128_pd256(row[1]), row[3], 1);
    *first = (vd)_mm256_unpacklo_pd(even, odd);
    *second = (vd)_mm256_unpackhi_pd(even, odd);
#elif VD == 2
    vd even = vd_load(from), odd = vd_load(from + stride);
    *first = (vd){even[0], odd[0]};
    *second = (vd){even[1], odd[1]};
#else
    (void)stride;
    *first = vd_load(from);
    *second = vd_load(from + 8);
#endif
}

/* ---- conversions ----------------------------------------------------------------------------------------------- */

/* VD floats as doubles. */
#if VD == 1
FKL_INLINE vd vh_load_double(const void *address)
{
    float x;
    memcpy(&x, address, sizeof x);
    return x;
}
#else
#if VD == 8
FKL_INLINE vd vh_load_double(const void *address) { return (vd)_mm512_cvtps_pd(_mm256_loadu_ps(address)); }
FKL_INLINE vd vf_low(vf x) { return (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x)); }
FKL_INLINE __m256 vf_upper(vf x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)(vd)x, 1)); }
FKL_INLINE vd vf_high(vf x) { return (vd)_mm512_cvtps_pd(vf_upper(x)); }
/* x[i] + x[i + 8] in float, as doubles. */
FKL_INLINE vd vf_folded(vf x)
{
    return (vd)_mm512_cvtps_pd(_mm256_add_ps(_mm512_castps512_ps256((__m512)x), vf_upper(x)));
}
FKL_INLINE vf vf_load_f16(const void *address)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)address));
}
FKL_INLINE vf vf_load_bf16(const void *address)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)address));
    return (vf)_mm512_slli_epi32(wide, 16);
}
#elif VD == 4
FKL_INLINE vd vh_load_double(const void *address) { return (vd)_mm256_cvtps_pd(_mm_loadu_ps(address)); }
FKL_INLINE vd vf_low(vf x) { return (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x)); }
FKL_INLINE vd vf_high(vf x) { return (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1)); }
FKL_INLINE vf vf_load_f16(const void *address)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)address));
}
FKL_INLINE vf vf_load_bf16(const void *address)
{
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)address)), 16);
}
#else
FKL_INLINE vd vh_load_double(const void *address)
{
    float x[2];
    memcpy(x, address, sizeof x);
    return (vd){x[0], x[1]};
}
#if defined(FKL_X86)
FKL_INLINE vd vf_low(vf x) { return (vd)_mm_cvtps_pd((__m128)x); }
FKL_INLINE vd vf_high(vf x) { return (vd)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x)); }
#else
FKL_INLINE vd vf_low(vf x) { return (vd){x[0], x[1]}; }
FKL_INLINE vd vf_high(vf x) { return (vd){x[2], x[3]}; }
#endif
FKL_INLINE vf vf_load_bf16(const void *address)
{
    uint16_t h[4];
    memcpy(h, address, sizeof h);
    return (vf)(vw){(uint32_t)h[0] << 16, (uint32_t)h[1] << 16, (uint32_t)h[2] << 16, (uint32_t)h[3] << 16};
}
#if defined(FKL_NEON)
FKL_INLINE vf vf_load_f16(const void *address)
{
    float16x4_t h; /* the address may be odd */
    memcpy(&h, address, sizeof h);
    return (vf)vcvt_f32_f16(h);
}
#else
/* Binary16 in integer steps: the magnitude's 15 bits, moved to a float's place, are the value times 2^-112; infinities
 * and NaNs (magnitude >= 0x7c00) get the float's top exponent instead. */
FKL_INLINE vf vf_load_f16(const void *address)
{
    uint16_t h[4];
    memcpy(h, address, sizeof h);
    vw x = {h[0], h[1], h[2], h[3]};
    vw magnitude = (x & vw_set(0x7fff)) << 13;
    vw special = (vw)((x & vw_set(0x7fff)) > vw_set(0x7bff));
    vf value = vw_float(magnitude) * vf_set(0x1p112f);
    return vw_float((special & (magnitude | vw_set(0x7f800000))) | (~special & vf_bits(value)) |
                    ((x & vw_set(0x8000)) << 16));
}
#endif
#endif
#endif

/* To the nearest binary16 or bfloat16, of a NaN to one. */
FKL_INLINE uint16_t float_to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

FKL_INLINE uint16_t float_to_f16(float x)
{
    float magnitude = fabsf(x), anchor;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (!(magnitude < 65520.0f)) /* half way from the largest to the next */
        return (uint16_t)(sign | (x != x ? 0x7e00 : 0x7c00));
    /* Beside 2^13 times its power of two, or the least normal number's, only the bits that stay have room. */
    memcpy(&bits, &magnitude, 4);
    bits = (magnitude < 0x1p-14f ? UINT32_C(113) << 23 : bits & 0x7f800000) + (UINT32_C(13) << 23);
    memcpy(&anchor, &bits, 4);
    magnitude = ((magnitude + anchor) - anchor) * 0x1p-112f; /* in the exponent's place: see half_to_float() */
    memcpy(&bits, &magnitude, 4);
    return (uint16_t)(sign | bits >> 13);
}

#if VD > 1
#if VD == 8
FKL_INLINE vf vf_join(vd low, vd high)
{
    const __m256 halves[2] = {_mm512_cvtpd_ps((__m512d)low), _mm512_cvtpd_ps((__m512d)high)};
    return (vf)_mm512_insertf32x8(_mm512_castps256_ps512(halves[0]), halves[1], 1);
}
FKL_INLINE void vf_store_f16(void *address, vf x)
{
    _mm256_storeu_si256((__m256i_u *)address, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}
#elif VD == 4
FKL_INLINE vf vf_join(vd low, vd high)
{
    return (vf)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)high), _mm256_cvtpd_ps((__m256d)low));
}
FKL_INLINE void vf_store_f16(void *address, vf x)
{
    _mm_storeu_si128((__m128i_u *)address, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
#else
FKL_INLINE vf vf_join(vd low, vd high)
{
#if defined(FKL_X86)
    return (vf)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
#else
    return (vf){(float)low[0], (float)low[1], (float)high[0], (float)high[1]};
#endif
}
FKL_INLINE void vf_store_f16(void *address, vf x)
{
    const uint16_t h[4] = {float_to_f16(x[0]), float_to_f16(x[1]), float_to_f16(x[2]), float_to_f16(x[3])};
    memcpy(address, h, sizeof h);
}
#endif
FKL_INLINE void vf_store_bf16(void *address, vf x)
{
#if VD == 8
    const __m512i bits = (__m512i)x, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    const __m512i upper = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i_u *)address, _mm512_cvtepi32_epi16(upper));
#elif VD == 4
    const __m256i bits = (__m256i)x, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps((__m256)x, (__m256)x, _CMP_UNORD_Q));
    const __m256i upper = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
    _mm_storeu_si128((__m128i_u *)address,
                     _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1)));
#else
    uint16_t h[VF];
    for (int i = 0; i < VF; i++)
        h[i] = float_to_bf16(x[i]);
    memcpy(address, h, sizeof h);
#endif
}
#endif

#if VD > 1
/* Two neighbouring floats of each of four rows: the first ones to *first, the second ones to *second. */
FKL_INLINE void v4_store_columns(const char *from, ptrdiff_t stride, float first[4], float second[4])
{
    typedef double v2 __attribute__((vector_size(16))); /* two floats are moved as a double */
    v4 rows[2];
    for (int i = 0; i < 2; i++) {
        double low, high;
        memcpy(&low, from + 2 * i * stride, 8);
        memcpy(&high, from + (2 * i + 1) * stride, 8);
        rows[i] = (v4)(v2){low, high};
    }
    v4 even = FKL_SHUFFLE(rows[0], rows[1], 0, 2, 4, 6), odd = FKL_SHUFFLE(rows[0], rows[1], 1, 3, 5, 7);
    memcpy(first, &even, 16);
    memcpy(second, &odd, 16);
}
#endif

#if VD >= 4
/* Eight neighbouring floats of each of eight rows, as eight columns one behind the other. */
FKL_INLINE void vf_store_eight_columns(const char *from, ptrdiff_t stride, float *columns)
{
    for (int half = 0; half < 2; half++, from += 16, columns += 32) {
        __m256 row[4], pair[4]; /* rows 0 to 3, and 4 to 7 in the upper half */
        for (int i = 0; i < 4; i++)
            row[i] = _mm256_insertf128_ps(
                _mm256_castps128_ps256(_mm_loadu_ps((const float *)(const void *)(from + i * stride))),
                _mm_loadu_ps((const float *)(const void *)(from + (i + 4) * stride)), 1);
        for (int i = 0; i < 2; i++) {
            pair[i] = _mm256_unpacklo_ps(row[2 * i], row[2 * i + 1]);
            pair[i + 2] = _mm256_unpackhi_ps(row[2 * i], row[2 * i + 1]);
        }
        for (int i = 0; i < 4; i += 2) {
            _mm256_storeu_ps(columns + 8 * i, _mm256_shuffle_ps(pair[i], pair[i + 1], 0x44));
            _mm256_storeu_ps(columns + 8 * i + 8, _mm256_shuffle_ps(pair[i], pair[i + 1], 0xee));
        }
    }
}
#endif

/* vd_load_columns() for rows of floats. */
FKL_INLINE void vh_load_columns(const char *from, ptrdiff_t stride, vd *first, vd *second)
{
#if VD >= 4
    float columns[2][VD];
    for (int i = 0; i < VD; i += 4)
        v4_store_columns(from + i * stride, stride, columns[0] + i, columns[1] + i);
    *first = vh_load_double(columns[0]);
    *second = vh_load_double(columns[1]);
#elif VD == 2
    vd even = vh_load_double(from), odd = vh_load_double(from + stride);
    *first = (vd){even[0], odd[0]};
    *second = (vd){even[1], odd[1]};
#else
    (void)stride;
    *first = vh_load_double(from);
    *second = vh_load_double(from + 4);
#endif
}

/* Two neighbouring floats of each of eight rows: the first ones to *first, the second ones to *second. */
FKL_INLINE void vf_store_columns(const char *from, ptrdiff_t stride, float first[LANES], float second[LANES])
{
#if VD == 1
    for (int i = 0; i < LANES; i++) {
        memcpy(&first[i], from + i * stride, 4);
        memcpy(&second[i], from + i * stride + 4, 4);
    }
#else
    for (int i = 0; i < LANES; i += 4)
        v4_store_columns(from + i * stride, stride, first + i, second + i);
#endif
}

#endif
