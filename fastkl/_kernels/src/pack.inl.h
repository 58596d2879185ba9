/* pack.inl.h: rows of any type and layout to contiguous rows of doubles or floats. */
#ifndef FASTKL_PACK_H
#define FASTKL_PACK_H

#include "convert.inl.h"

FKL_INLINE void convert_loop(const enum fkl_type from_type, const enum fkl_type to_type, const char *from,
                             ptrdiff_t stride, ptrdiff_t n, char *to)
{
    ptrdiff_t i = 0;
#if VD > 1
    if (from_type == FKL_F16 && to_type == FKL_F32 && stride == 2) /* what compilers make no vector code of */
        for (; i + VF <= n; i += VF)
            vf_store((float *)(void *)(to + i * 4), vf_load_f16(from + i * 2));
#endif
    for (; i < n; i++) {
        double x = load_one(from_type, from + i * stride);
        float narrow = (float)x; /* exact: a float row is asked for only where its elements are floats */
        if (to_type == FKL_F64)
            memcpy(to + i * 8, &x, 8);
        else
            memcpy(to + i * 4, &narrow, 4);
    }
}

/* n elements at equal distances: loops with a known distance become vector code. */
FKL_INLINE void convert_as(const enum fkl_type to_type, const enum fkl_type from_type, const char *from,
                           ptrdiff_t stride, ptrdiff_t n, char *to)
{
    const ptrdiff_t size = type_size(from_type);
    if (stride == size)
        convert_loop(from_type, to_type, from, size, n, to);
    else if (stride == -size)
        convert_loop(from_type, to_type, from, -size, n, to);
    else
        convert_loop(from_type, to_type, from, stride, n, to);
}

FKL_INLINE void convert_to(const enum fkl_type to_type, enum fkl_type from_type, int swapped, const char *from,
                           ptrdiff_t stride, ptrdiff_t n, char *to)
{
    if (swapped) {
        for (ptrdiff_t i = 0; i < n; i++) {
            double x = load_any(from_type, 1, from + i * stride);
            convert_loop(FKL_F64, to_type, (const char *)&x, 8, 1, to + i * type_size(to_type));
        }
        return;
    }
#define FKL_CASE(TYPE)                                                                                                 \
    case TYPE:                                                                                                         \
        convert_as(to_type, TYPE, from, stride, n, to);                                                                \
        break;
    switch (from_type) {
        FKL_CASE(FKL_F64) FKL_CASE(FKL_F32) FKL_CASE(FKL_F16) FKL_CASE(FKL_BF16)
        FKL_CASE(FKL_I8) FKL_CASE(FKL_I16) FKL_CASE(FKL_I32) FKL_CASE(FKL_I64)
        FKL_CASE(FKL_U8) FKL_CASE(FKL_U16) FKL_CASE(FKL_U32) FKL_CASE(FKL_U64)
    default:
        break;
    }
#undef FKL_CASE
}

static FKL_NOINLINE void convert(enum fkl_type from_type, int swapped, const char *from, ptrdiff_t stride, ptrdiff_t n,
                                 enum fkl_type to_type, char *to)
{
    if (to_type == FKL_F64)
        convert_to(FKL_F64, from_type, swapped, from, stride, n, to);
    else
        convert_to(FKL_F32, from_type, swapped, from, stride, n, to);
}

/* columns[j][0..count) for j < SQUARE, to rows of SQUARE contiguous elements, row_stride bytes apart. */
#define SQUARE 8
FKL_INLINE void transpose_strip(const enum fkl_type type, const char *const columns[SQUARE], ptrdiff_t count, char *to,
                                ptrdiff_t row_stride)
{
    const ptrdiff_t size = type_size(type);
    ptrdiff_t row = 0;
#if VD > 1
    const int side = type == FKL_F64 ? VD : 4;
    for (; row + side <= count; row += side)
        for (int j = 0; j < SQUARE; j += side) {
            char *corner = to + row * row_stride + j * size;
            if (type == FKL_F64) {
                vd square[VD];
                FKL_UNROLL
                for (int i = 0; i < VD; i++)
                    square[i] = vd_in_register(vd_load(columns[j + i] + row * 8));
                vd_transpose(square);
                FKL_UNROLL
                for (int i = 0; i < VD; i++)
                    vd_store((double *)(void *)(corner + i * row_stride), square[i]);
            } else {
                v4 square[4];
                FKL_UNROLL
                for (int i = 0; i < 4; i++)
                    memcpy(&square[i], columns[j + i] + row * 4, 16);
                v4_transpose(square);
                FKL_UNROLL
                for (int i = 0; i < 4; i++)
                    memcpy(corner + i * row_stride, &square[i], 16);
            }
        }
#endif
    for (; row < count; row++)
        for (int j = 0; j < SQUARE; j++)
            memcpy(to + row * row_stride + j * size, columns[j] + row * size, (size_t)size);
}

/* The elements [start, start + n) of rows [first, first + count), to rows to_stride bytes apart. Rows that lie next to
 * each other in memory (a reduction over another axis than the last) are read across, a stretch of many at a time: the
 * memory gives a stretch quickly, and a cache line is read once. */
static FKL_NOINLINE void pack(const fkl_rows *rows, ptrdiff_t first, ptrdiff_t count, ptrdiff_t start, ptrdiff_t n,
                              enum fkl_type to_type, char *to, ptrdiff_t to_stride)
{
    const enum fkl_type type = (enum fkl_type)rows->type;
    const ptrdiff_t size = type_size(to_type);
    const char *from = rows->data + first * rows->row_stride + start * rows->item_stride;
    ptrdiff_t done = 0;

    if (rows->row_stride == type_size(type) && count >= 4 && n >= SQUARE) {
        double converted[SQUARE][FKL_PACKED_ROWS];
        const char *columns[SQUARE];
        for (; done < n; done += SQUARE) {
            if (done + SQUARE > n) /* some for a second time */
                done = n - SQUARE;
            for (int j = 0; j < SQUARE; j++) {
                columns[j] = from + (done + j) * rows->item_stride;
                /* Some strips further on, or among the first of the next rows. */
                const ptrdiff_t far = done + j + 4 * SQUARE, later = far < n ? far : far - n;
                const ptrdiff_t ahead = later * rows->item_stride + (later < done ? count * rows->row_stride : 0);
                for (ptrdiff_t line = 0; line < count * rows->row_stride; line += 64)
                    fkl_prefetch_far(from, ahead + line);
                if (type != to_type || rows->swapped) {
                    convert(type, rows->swapped, columns[j], rows->row_stride, count, to_type, (char *)converted[j]);
                    columns[j] = (const char *)converted[j];
                }
            }
            if (to_type == FKL_F64)
                transpose_strip(FKL_F64, columns, count, to + done * 8, to_stride);
            else
                transpose_strip(FKL_F32, columns, count, to + done * 4, to_stride);
        }
    }
    /* Along the rows; those some way ahead are asked for meanwhile. */
    const ptrdiff_t row_bytes = n * type_size(type), near = rows->item_stride < 0 ? -row_bytes : row_bytes;
    const ptrdiff_t rows_ahead = 8192 / row_bytes + 1;
    for (ptrdiff_t i = 0; i < count && done < n; i++) {
        const char *row = from + i * rows->row_stride;
        const ptrdiff_t ahead = rows_ahead * rows->row_stride + (rows->item_stride < 0 ? near : 0);
        if (n * rows->item_stride == near)
            for (ptrdiff_t line = 0; line < row_bytes; line += 64)
                fkl_prefetch_far(row, ahead + line);
        convert(type, rows->swapped, row + done * rows->item_stride, rows->item_stride, n - done, to_type,
                to + i * to_stride + done * size);
    }
}

/* The first two elements of eight rows as two columns of eight. Rows lie along the memory (the elements of a row next
 * to each other) or across it (the rows' first elements, and so on). */
FKL_INLINE void two_columns(const enum fkl_type from_type, const enum fkl_type to_type, const int along,
                            const fkl_rows *rows, const char *from, char *to)
{
    if (from_type == FKL_F32 && to_type == FKL_F32) {
        float *first = (float *)(void *)to, *second = first + LANES;
        if (along) {
            vf_store_columns(from, rows->row_stride, first, second);
        } else {
            memcpy(first, from, LANES * sizeof *first);
            memcpy(second, from + rows->item_stride, LANES * sizeof *second);
        }
        return;
    }
    double *first = (double *)(void *)to, *second = first + LANES;
    for (int part = 0; part < LANES; part += VD, from += VD * rows->row_stride) {
        vd x, y;
        if (along) {
            if (from_type == FKL_F64)
                vd_load_columns(from, rows->row_stride, &x, &y);
            else
                vh_load_columns(from, rows->row_stride, &x, &y);
        } else {
            x = from_type == FKL_F64 ? vd_load(from) : vh_load_double(from);
            y = from_type == FKL_F64 ? vd_load(from + rows->item_stride) : vh_load_double(from + rows->item_stride);
        }
        vd_store(first + part, x);
        vd_store(second + part, y);
    }
}

/* The eight short rows from `row` on are asked for, of n elements each: beside the arithmetic of others, so that the
 * memory works while the processor does. */
FKL_INLINE void ask_for_eight_rows(const fkl_rows *rows, ptrdiff_t row, ptrdiff_t n)
{
    const ptrdiff_t size = type_size((enum fkl_type)rows->type), stride = rows->row_stride, ahead = row * stride;
    if (stride == size) {
        for (ptrdiff_t j = 0; j < n; j++)
            fkl_prefetch_far(rows->data, ahead + j * rows->item_stride);
    } else if (stride == n * size) {
        for (ptrdiff_t line = 0; line < LANES * stride; line += 64)
            fkl_prefetch_far(rows->data, ahead + line);
    } else if (stride != 0) {
        for (int i = 0; i < LANES; i++) {
            fkl_prefetch_far(rows->data, ahead + i * stride);
            fkl_prefetch_far(rows->data, ahead + i * stride + (n - 1) * rows->item_stride);
        }
    }
}

#if VD >= 4
/* Are eight elements of eight rows quicker together than two at a time? */
FKL_INLINE int has_eight_columns(const enum fkl_type from_type, const enum fkl_type to_type)
{
    return from_type == to_type && (from_type == FKL_F32 || VD == 8);
}

FKL_INLINE void eight_columns(const enum fkl_type type, const fkl_rows *rows, const char *from, char *to)
{
    if (type == FKL_F32) {
        vf_store_eight_columns(from, rows->row_stride, (float *)(void *)to);
        return;
    }
#if VD == 8
    vd square[VD];
    for (int i = 0; i < VD; i++)
        square[i] = vd_in_register(vd_load(from + i * rows->row_stride));
    vd_transpose(square);
    for (int i = 0; i < VD; i++)
        vd_store((double *)(void *)to + i * LANES, square[i]);
#endif
}
#endif

/* pack_columns() for `groups` whole groups. */
FKL_INLINE void whole_groups(const enum fkl_type from_type, const enum fkl_type to_type, const int along,
                             const fkl_rows *rows, const char *from, ptrdiff_t groups, ptrdiff_t n, char *to)
{
    const ptrdiff_t column = LANES * type_size(to_type);
    for (; groups > 0; groups--, from += LANES * rows->row_stride, to += n * column) {
        ptrdiff_t i = 0;
#if VD >= 4
        for (; along && has_eight_columns(from_type, to_type) && i + 8 <= n; i += 8)
            eight_columns(from_type, rows, from + i * rows->item_stride, to + i * column);
#endif
        for (; i + 2 <= n; i += 2)
            two_columns(from_type, to_type, along, rows, from + i * rows->item_stride, to + i * column);
        if (i < n) /* never past the end of a row: its last two elements again */
            two_columns(from_type, to_type, along, rows, from + (n - 2) * rows->item_stride, to + (n - 2) * column);
    }
}

/* The same by type and layout. */
static FKL_NOINLINE void plain_groups(enum fkl_type from_type, enum fkl_type to_type, int along, const fkl_rows *rows,
                                      const char *from, ptrdiff_t groups, ptrdiff_t n, char *to)
{
#define FKL_CASE(FROM, TO)                                                                                             \
    if (from_type == FROM && to_type == TO) {                                                                          \
        if (along)                                                                                                     \
            whole_groups(FROM, TO, 1, rows, from, groups, n, to);                                                      \
        else                                                                                                           \
            whole_groups(FROM, TO, 0, rows, from, groups, n, to);                                                      \
    }
    FKL_CASE(FKL_F64, FKL_F64)
    FKL_CASE(FKL_F32, FKL_F64)
    FKL_CASE(FKL_F32, FKL_F32)
#undef FKL_CASE
}

/* The elements [start, start + n) of rows [first, first + count) as doubles or floats, in groups of eight rows: their
 * first elements, then their second ones, and so on. The last group repeats its last row to be whole. */
static FKL_NOINLINE void pack_columns(const fkl_rows *rows, ptrdiff_t first, ptrdiff_t count, ptrdiff_t start,
                                      ptrdiff_t n, enum fkl_type to_type, char *to)
{
    const enum fkl_type type = (enum fkl_type)rows->type;
    const ptrdiff_t size = type_size(type), to_size = type_size(to_type), groups = count / LANES;
    const int plain = n > 1 && !rows->swapped && (type == FKL_F64 || type == FKL_F32);
    const int along = plain && rows->item_stride == size, across = plain && rows->row_stride == size;
    const char *from = rows->data + first * rows->row_stride + start * rows->item_stride;
    ptrdiff_t done = along || across ? groups * LANES : 0;

    if (done > 0)
        plain_groups(type, to_type, along, rows, from, groups, n, to);
    if (along && done < count && n <= FKL_SHORT) {
        char last[LANES * FKL_SHORT * 8];
        const fkl_rows last_rows = {last, n * size, size, type, 0};
        for (int i = 0; i < LANES; i++) {
            const ptrdiff_t row = done + i < count ? done + i : count - 1;
            memcpy(last + i * n * size, from + row * rows->row_stride, (size_t)(n * size));
        }
        plain_groups(type, to_type, 1, &last_rows, last, 1, n, to + done * n * to_size);
        return;
    }
    for (; done < count; done += LANES)
        for (int i = 0; i < LANES; i++) {
            const ptrdiff_t row = done + i < count ? done + i : count - 1;
            for (ptrdiff_t j = 0; j < n; j++)
                convert(type, rows->swapped, from + row * rows->row_stride + j * rows->item_stride, 0, 1, to_type,
                        to + (done * n + j * LANES + i) * to_size);
        }
}

#endif
