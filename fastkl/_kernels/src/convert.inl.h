/* convert.inl.h: elements of every type and byte order, one at a time. */
#ifndef FASTKL_CONVERT_H
#define FASTKL_CONVERT_H

#include "kernels.h"
#include "simd.h"

FKL_INLINE ptrdiff_t type_size(const enum fkl_type type)
{
    switch (type) {
    case FKL_F64: case FKL_I64: case FKL_U64:
        return 8;
    case FKL_F32: case FKL_I32: case FKL_U32:
        return 4;
    case FKL_I8: case FKL_U8:
        return 1;
    default:
        return 2;
    }
}

/* binary16 to float by the exponent's place: 15 bits of magnitude are a float's, times 2^-112. */
FKL_INLINE float half_to_float(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16, bits;
    float value;
    memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;
    memcpy(&bits, &value, 4);
    if ((h & 0x7fff) >= 0x7c00)
        bits = magnitude | 0x7f800000;
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

/* A double to the nearest of the first FKL_ROW_TYPES, to halves by way of floats. */
FKL_INLINE uint16_t float_to_bfloat(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* To binary16: what is left of the significand is rounded by an addition, in the place of the last bit that stays. */
FKL_INLINE uint16_t float_to_half(float x)
{
    uint32_t bits, sign;
    float magnitude = fabsf(x), anchor;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    if (!(magnitude < 65520.0f)) /* half way from the largest to the next */
        return (uint16_t)(sign | (x != x ? 0x7e00 : 0x7c00));
    /* 2^13 times the power of two below it, or below the least normal number. */
    memcpy(&bits, &magnitude, 4);
    bits = magnitude < 0x1p-14f ? UINT32_C(113) << 23 : bits & 0x7f800000;
    const uint32_t anchor_bits = bits + (UINT32_C(13) << 23);
    memcpy(&anchor, &anchor_bits, 4);
    magnitude = (magnitude + anchor) - anchor;
    magnitude *= 0x1p-112f; /* the exponent's place: subnormal numbers fall into theirs */
    memcpy(&bits, &magnitude, 4);
    return (uint16_t)(sign | bits >> 13);
}

/* One element as a double; 64-bit integers round to nearest. */
FKL_INLINE double load_one(const enum fkl_type type, const char *address)
{
#define FKL_LOAD(T)                                                                                                    \
    {                                                                                                                  \
        T x;                                                                                                           \
        memcpy(&x, address, sizeof x);                                                                                 \
        return (double)x;                                                                                              \
    }
    switch (type) {
    case FKL_F64: FKL_LOAD(double)
    case FKL_F32: FKL_LOAD(float)
    case FKL_I8: FKL_LOAD(int8_t)
    case FKL_I16: FKL_LOAD(int16_t)
    case FKL_I32: FKL_LOAD(int32_t)
    case FKL_I64: FKL_LOAD(int64_t)
    case FKL_U8: FKL_LOAD(uint8_t)
    case FKL_U16: FKL_LOAD(uint16_t)
    case FKL_U32: FKL_LOAD(uint32_t)
    case FKL_U64: FKL_LOAD(uint64_t)
    case FKL_F16: {
        uint16_t x;
        memcpy(&x, address, 2);
        return half_to_float(x);
    }
    default: { /* FKL_BF16 */
        uint16_t x;
        memcpy(&x, address, 2);
        uint32_t bits = (uint32_t)x << 16;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    }
#undef FKL_LOAD
}

FKL_INLINE double load_any(const enum fkl_type type, int swapped, const char *address)
{
    char reversed[8];
    if (!swapped)
        return load_one(type, address);
    ptrdiff_t size = type_size(type);
    for (ptrdiff_t i = 0; i < size; i++)
        reversed[i] = address[size - 1 - i];
    return load_one(type, reversed);
}

/* Are the rows contiguous, of this type and in this machine's byte order? */
FKL_INLINE int is_direct(const fkl_rows *rows, enum fkl_type type)
{
    return (enum fkl_type)rows->type == type && rows->item_stride == type_size(type) && !rows->swapped;
}

#endif
