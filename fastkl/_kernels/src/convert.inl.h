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

/* A float to one of the other FKL_ROW_TYPES. */
FKL_INLINE void store_one(const enum fkl_type type, char *address, float x)
{
    const uint16_t half = type == FKL_F16 ? float_to_f16(x) : float_to_bf16(x);
    memcpy(address, type == FKL_F32 ? (const void *)&x : (const void *)&half, (size_t)type_size(type));
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
