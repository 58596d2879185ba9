/* gaussian_full_lanes.inl.h: full Gaussians of few components, a pair in each lane.
 *
 * The matrices of eight pairs are a tile, in which element (i, j) of all is one virtual vector. A covariance keeps its
 * lower triangle; once the upper one has been compared with it, the factor's lines lie there, as columns: L_ij, i > j,
 * is at (j, i), so that what belongs to one column of L is contiguous. The diagonal of L is a line of its own. No lane
 * knows of the others, so a virtual vector is worked on one register after the other.
 */

/* Element (i, j) of a tile, and element i of a line. */
#define TILE_AT(tile, i, j) ((tile) + ((i) * d + (j)) * LANES)
#define LINE_AT(line, i) ((line) + (i) * LANES)

/* What there is of the scratch space; the register's place in the virtual vector is added to each. */
struct full_scratch {
    double *p, *q;                  /* tiles */
    double *mean_p, *mean_q;        /* lines */
    double *unit;                   /* powers of two by which rows of the factors are multiplied */
    double *diagonal_q, *inverse_q; /* of q's factor in these units, and 1 over it */
    double *first;                  /* the diagonal of p's factor, later that of E, in the same units */
    double *spare, *more;           /* lines, more: four of them side by side */
    double *poison_q;               /* one vector */
};

/* The residuals of n neighbouring elements (i.., j) of a covariance that is being factored: what the columns before j
 * leave of them. */
FKL_INLINE void column_residuals(const double *tile, const ptrdiff_t d, ptrdiff_t j, ptrdiff_t i, const int n, vd r[4])
{
    FKL_UNROLL
    for (int m = 0; m < n; m++)
        r[m] = vd_load(TILE_AT(tile, i + m, j));
    for (ptrdiff_t k = 0; k < j; k++) {
        vd l = -vd_load(TILE_AT(tile, k, j));
        FKL_UNROLL
        for (int m = 0; m < n; m++)
            r[m] = vd_madd(l, vd_load(TILE_AT(tile, k, i + m)), r[m]);
    }
}

/* Factor the lower triangle of a tile; the diagonal and 1 over it. The poison of the pairs. */
FKL_INLINE vd factor_tile(double *tile, const ptrdiff_t d, double *diagonal, double *inverses)
{
    const vd zero = vd_set(0.0), one = vd_set(1.0), most = vd_set(DBL_MAX);
    vd poison = zero;
    for (ptrdiff_t j = 0; j < d; j++) {
        vd inverse = zero;
        md empty = vd_lt(one, zero); /* where the pivot is 0 */
        int some_empty = 0;
        for (ptrdiff_t i = j; i < d; i += 4) {
            const ptrdiff_t n = d - i;
            vd r[4];
            switch (n) {
            case 1:
                column_residuals(tile, d, j, i, 1, r);
                break;
            case 2:
                column_residuals(tile, d, j, i, 2, r);
                break;
            case 3:
                column_residuals(tile, d, j, i, 3, r);
                break;
            default:
                column_residuals(tile, d, j, i, 4, r);
                break;
            }
            if (i == j) {
                vd root = vd_sqrt(r[0]);
                inverse = one / root;
                if (!FKL_LIKELY(md_all(md_and(vd_lt(zero, r[0]), vd_le(r[0], most))))) {
                    some_empty = 1;
                    empty = vd_eq(r[0], zero);
                    poison = poison_others(md_and(vd_le(zero, r[0]), vd_le(r[0], most)), poison);
                    poison = vd_select(empty, poison + vd_set((double)INFINITY), poison);
                    inverse = vd_select(empty, zero, inverse);
                }
                vd_store(LINE_AT(diagonal, j), root);
                vd_store(LINE_AT(inverses, j), inverse);
            }
            for (int m = i == j; m < 4 && m < n; m++) {
                if (some_empty) /* the column of an empty pivot is empty, or the matrix is indefinite */
                    poison = vd_select(empty, poison_others(vd_eq(r[m], zero), poison), poison);
                vd_store(TILE_AT(tile, j, i + m), r[m] * inverse);
            }
        }
    }
    return poison;
}

/* Compare the triangles of a covariance, multiply the lower one by the units of its lines and columns, and factor it.
 * q's units are those of its own roots; p's are q's, unless they leave it far from 1. */
FKL_INLINE vd take_covariance(double *tile, const ptrdiff_t d, double asymmetry, const int is_q,
                              const struct full_scratch *s)
{
    double *roots = s->spare, *own = is_q ? s->unit : s->more;
    md good = vd_le(vd_set(0.0), vd_set(0.0)), usual = good;
    for (ptrdiff_t i = 0; i < d; i++) {
        vd root = vd_sqrt(vd_load(TILE_AT(tile, i, i)));
        good = md_and(good, md_and(vd_le(vd_set(0.0), root), finite_lanes(root)));
        vd_store(LINE_AT(roots, i), root);
        if (is_q) {
            vd_store(LINE_AT(own, i), unit_of(root));
        } else {
            vd unit = vd_load(LINE_AT(s->unit, i)), size = root * unit;
            md inside = md_and(vd_le(vd_set(1.0 / ROOT_LIMIT), size), vd_le(size, vd_set(ROOT_LIMIT)));
            usual = md_and(usual, inside);
            vd_store(LINE_AT(own, i), vd_select(inside, unit, unit_of(root)));
        }
    }
    for (ptrdiff_t i = 0; i < d; i++) {
        const vd unit = vd_load(LINE_AT(own, i)), allowed = vd_set(asymmetry) * vd_load(LINE_AT(roots, i));
        for (ptrdiff_t j = 0; j < i; j++) {
            vd x = vd_load(TILE_AT(tile, i, j)), difference = x - vd_load(TILE_AT(tile, j, i));
            good = md_and(good, vd_le(vd_abs(difference), allowed * vd_load(LINE_AT(roots, j))));
            vd_store(TILE_AT(tile, i, j), (x * unit) * vd_load(LINE_AT(own, j)));
        }
        vd_store(TILE_AT(tile, i, i), (vd_load(TILE_AT(tile, i, i)) * unit) * unit);
    }
    vd poison = factor_tile(tile, d, is_q ? s->diagonal_q : s->first, is_q ? s->inverse_q : roots);
    if (!is_q && !FKL_LIKELY(md_all(usual)))
        for (ptrdiff_t i = 0; i < d; i++) {
            vd back = vd_load(LINE_AT(s->unit, i)) / vd_load(LINE_AT(own, i));
            vd_store(LINE_AT(s->first, i), vd_load(LINE_AT(s->first, i)) * back);
            for (ptrdiff_t k = 0; k < i; k++)
                vd_store(TILE_AT(tile, k, i), vd_load(TILE_AT(tile, k, i)) * back);
        }
    return poison_others(good, poison);
}

/* Take a factor as it is given, in q's units: to the upper triangle, which must be 0. Of p it is E = Lp - Lq. */
FKL_INLINE vd take_factor(double *tile, const ptrdiff_t d, const int is_q, const struct full_scratch *s)
{
    const vd zero = vd_set(0.0);
    md good = vd_le(zero, zero), positive = good;
    for (ptrdiff_t i = 0; i < d; i++) {
        vd x = vd_load(TILE_AT(tile, i, i));
        good = md_and(good, md_and(vd_le(zero, x), finite_lanes(x)));
        positive = md_and(positive, vd_lt(zero, x));
        if (is_q)
            vd_store(LINE_AT(s->unit, i), unit_of(x));
        vd unit = vd_load(LINE_AT(s->unit, i));
        x = x * unit;
        if (is_q) {
            vd_store(LINE_AT(s->diagonal_q, i), x);
            vd_store(LINE_AT(s->inverse_q, i), vd_set(1.0) / x);
        } else {
            vd_store(LINE_AT(s->first, i), x - vd_load(LINE_AT(s->diagonal_q, i)));
        }
        for (ptrdiff_t j = 0; j < i; j++) {
            x = vd_load(TILE_AT(tile, i, j));
            good = md_and(good, md_and(finite_lanes(x), vd_eq(vd_load(TILE_AT(tile, j, i)), zero)));
            x = x * unit;
            vd_store(TILE_AT(tile, j, i), is_q ? x : x - vd_load(TILE_AT(s->q, j, i)));
        }
    }
    return poison_others(good, vd_select(positive, zero, vd_set((double)INFINITY)));
}

/* The sum of (Lq^-1 X)_ij^2 over i > j, for the factor or difference of factors X in p's tile: n columns from j on. */
FKL_INLINE vd whitened_columns(const ptrdiff_t d, ptrdiff_t j, const int n, const struct full_scratch *s)
{
    double *columns = s->more;
    vd sums[4];
    FKL_UNROLL
    for (int m = 0; m < n; m++)
        sums[m] = vd_set(0.0);
    for (ptrdiff_t i = j; i < d; i++) {
        const vd inverse = vd_load(LINE_AT(s->inverse_q, i));
        vd r[4];
        FKL_UNROLL
        for (int m = 0; m < n; m++)
            r[m] = i < j + m ? vd_set(0.0) : vd_load(i == j + m ? LINE_AT(s->first, i) : TILE_AT(s->p, j + m, i));
        for (ptrdiff_t k = j; k < i; k++) {
            vd l = -vd_load(TILE_AT(s->q, k, i));
            FKL_UNROLL
            for (int m = 0; m < n; m++)
                r[m] = vd_madd(l, vd_load(LINE_AT(columns, 4 * (k - j) + m)), r[m]);
        }
        FKL_UNROLL
        for (int m = 0; m < n; m++) {
            /* Above the diagonal zeros, and they stay so whatever is beside them. */
            r[m] = i < j + m ? vd_set(0.0) : r[m] * inverse;
            vd_store(LINE_AT(columns, 4 * (i - j) + m), r[m]);
            if (i > j + m)
                sums[m] = vd_madd(r[m], r[m], sums[m]);
        }
    }
    vd sum = sums[0];
    for (int m = 1; m < n; m++)
        sum += sums[m];
    return sum;
}

FKL_INLINE vd whitened_squares(const ptrdiff_t d, const struct full_scratch *s)
{
    vd sum = vd_set(0.0);
    for (ptrdiff_t j = 0; j < d; j += 4)
        switch (d - j) {
        case 1: /* a column of the diagonal alone */
            break;
        case 2:
            sum += whitened_columns(d, j, 1, s);
            break;
        case 3:
            sum += whitened_columns(d, j, 2, s);
            break;
        default:
            sum += whitened_columns(d, j, 4, s);
            break;
        }
    return sum;
}

/* Column j of E, elements i.. of it: the residuals of the difference of the covariances. */
FKL_INLINE void difference_residuals(const ptrdiff_t d, ptrdiff_t j, ptrdiff_t i, const int n,
                                     const struct full_scratch *s, vd r[4])
{
    FKL_UNROLL
    for (int m = 0; m < n; m++)
        r[m] = vd_load(TILE_AT(s->p, i + m, j)) - vd_load(TILE_AT(s->q, i + m, j));
    for (ptrdiff_t k = 0; k < j; k++) {
        vd l = -vd_load(TILE_AT(s->q, k, j)), e = -vd_load(TILE_AT(s->p, k, j)), sum = l + e;
        FKL_UNROLL
        for (int m = 0; m < n; m++) {
            r[m] = vd_madd(e, vd_load(TILE_AT(s->q, k, i + m)), r[m]);
            r[m] = vd_madd(sum, vd_load(TILE_AT(s->p, k, i + m)), r[m]);
        }
    }
}

/* The way near: E from the covariances' difference, to the place of p's factor, and twice the divergence but for the
 * means' part. NaN in lanes that are too far. */
FKL_INLINE vd full_near(const ptrdiff_t d, const struct full_scratch *s)
{
    vd total = vd_set(0.0);
    for (ptrdiff_t j = 0; j < d; j++) {
        const vd l = vd_load(LINE_AT(s->diagonal_q, j)), inverse_l = vd_load(LINE_AT(s->inverse_q, j));
        vd e = l, inverse = l;
        for (ptrdiff_t i = j; i < d; i += 4) {
            const ptrdiff_t n = d - i;
            vd r[4];
            switch (n) {
            case 1:
                difference_residuals(d, j, i, 1, s, r);
                break;
            case 2:
                difference_residuals(d, j, i, 2, s, r);
                break;
            case 3:
                difference_residuals(d, j, i, 3, s, r);
                break;
            default:
                difference_residuals(d, j, i, 4, s, r);
                break;
            }
            if (i == j) { /* (l + e)^2 - l^2 = r */
                vd sum = vd_sqrt(vd_madd(l, l, r[0]));
                e = r[0] / (l + sum);
                inverse = vd_set(1.0) / sum;
                total += vd_less_log1p((r[0] * inverse_l) * inverse_l);
                vd_store(LINE_AT(s->first, j), e);
            }
            for (int m = i == j; m < 4 && m < n; m++)
                vd_store(TILE_AT(s->p, j, i + m), vd_madd(-e, vd_load(TILE_AT(s->q, j, i + m)), r[m]) * inverse);
        }
    }
    return total + whitened_squares(d, s);
}

/* The means' part, y'y. */
FKL_INLINE vd means_part(const ptrdiff_t d, const struct full_scratch *s, md *good)
{
    vd sum = vd_set(0.0);
    for (ptrdiff_t i = 0; i < d; i++) {
        vd m = vd_load(LINE_AT(s->mean_p, i)), mq = vd_load(LINE_AT(s->mean_q, i)), unit = vd_load(LINE_AT(s->unit, i));
        *good = md_and(*good, md_and(finite_lanes(m), finite_lanes(mq)));
        vd r = m * unit - mq * unit;
        for (ptrdiff_t k = 0; k < i; k++)
            r = vd_madd(-vd_load(TILE_AT(s->q, k, i)), vd_load(LINE_AT(s->spare, k)), r);
        r = r * vd_load(LINE_AT(s->inverse_q, i));
        vd_store(LINE_AT(s->spare, i), r);
        sum = vd_madd(r, r, sum);
    }
    return sum;
}

/* One register of pairs; q is taken unless it has been. */
FKL_INLINE vd full_register(const enum fkl_full_scale scale, const ptrdiff_t d, const fkl_matrix *matrices,
                            int q_is_taken, const struct full_scratch *s)
{
    const int factors = scale == FKL_CHOLESKY;
    if (!q_is_taken) /* a q without width in some direction has no density */
        vd_store(s->poison_q,
                 factors ? take_factor(s->q, d, 1, s) : take_covariance(s->q, d, matrices[3].asymmetry, 1, s));
    vd poison = factors ? take_factor(s->p, d, 0, s) : take_covariance(s->p, d, matrices[1].asymmetry, 0, s);
    md good = vd_eq(vd_load(s->poison_q), vd_set(0.0));
    vd means = means_part(d, s, &good), total = vd_set(0.0);
    poison = poison_others(good, poison);
    for (ptrdiff_t j = 0; j < d; j++) {
        vd l = vd_load(LINE_AT(s->diagonal_q, j)), x = vd_load(LINE_AT(s->first, j));
        if (factors) {
            vd given = vd_load(TILE_AT(s->p, j, j)) * vd_load(LINE_AT(s->unit, j));
            total += spread(given, l, vd_load(LINE_AT(s->inverse_q, j)), TILE_AT(s->p, j, j), TILE_AT(s->q, j, j));
        } else {
            total += spread(x, l, vd_load(LINE_AT(s->inverse_q, j)), LINE_AT(s->first, j), LINE_AT(s->diagonal_q, j));
        }
    }
    total += whitened_squares(d, s);
    if (!factors) {
        md close = vd_lt(total, vd_set(NEAR_LIMIT));
        if (md_lanes(close)) {
            vd better = full_near(d, s);
            total = vd_select(md_and(close, vd_eq(better, better)), better, total);
        }
    }
    return full_result(total + means, poison);
}

/* The matrices of the `count` pairs from the first on, the last one repeated, as a tile. */
static FKL_NOINLINE void pack_tile(const fkl_rows *rows, const fkl_matrix *matrix, ptrdiff_t first, ptrdiff_t count,
                                   ptrdiff_t d, double *tile, double *converted)
{
    const enum fkl_type type = (enum fkl_type)rows->type;
    const char *from[LANES], *columns[LANES];
    const int direct = is_direct(rows, FKL_F64);
    for (int k = 0; k < LANES; k++)
        from[k] = rows->data + (first + (k < count ? k : count - 1)) * rows->row_stride;
    if (!matrix->whole) {
        memset(tile, 0, (size_t)(d * d * LANES) * sizeof *tile);
        for (ptrdiff_t i = 0; i < d; i++)
            for (int k = 0; k < LANES; k++)
                TILE_AT(tile, i, i)[k] = load_any(type, rows->swapped, from[k] + i * rows->item_stride);
        return;
    }
    if (count == LANES && rows->row_stride == 8 && type == FKL_F64 && !rows->swapped) {
        for (ptrdiff_t i = 0; i < d; i++)
            for (ptrdiff_t j = 0; j < d; j++)
                memcpy(TILE_AT(tile, i, j), from[0] + i * matrix->line_stride + j * rows->item_stride, 8 * LANES);
        return;
    }
    if (direct && matrix->line_stride == d * 8) {
        transpose_strip(FKL_F64, from, d * d, (char *)tile, LANES * 8);
        return;
    }
    for (ptrdiff_t i = 0; i < d; i++) {
        for (int k = 0; k < LANES; k++) {
            columns[k] = from[k] + i * matrix->line_stride;
            if (!direct) {
                double *to = converted + k * d;
                convert(type, rows->swapped, columns[k], rows->item_stride, d, FKL_F64, (char *)to);
                columns[k] = (const char *)to;
            }
        }
        transpose_strip(FKL_F64, columns, d, (char *)TILE_AT(tile, i, 0), LANES * 8);
    }
}

/* N(0, I) as a prior. */
static void standard_tile(ptrdiff_t d, double *tile, double *mean)
{
    memset(tile, 0, (size_t)(d * d * LANES) * sizeof *tile);
    memset(mean, 0, (size_t)(d * LANES) * sizeof *mean);
    for (ptrdiff_t i = 0; i < d; i++)
        for (int k = 0; k < LANES; k++)
            TILE_AT(tile, i, i)[k] = 1.0;
}

FKL_INLINE void full_lanes(const enum fkl_full_scale scale, const fkl_rows *operands, ptrdiff_t n_rows,
                           const fkl_problem *problem, double *result, double *scratch)
{
    const ptrdiff_t d = problem->length, tile = d * d * LANES, line = d * LANES;
    double *const p = scratch, *const q = p + tile, *const converted = q + tile, *const lines = converted + tile;
    const int standard = problem->operands == 2;
    for (ptrdiff_t first = 0; first < n_rows; first += LANES) {
        const ptrdiff_t count = n_rows - first < LANES ? n_rows - first : LANES;
        const int q_is_taken = first > 0 && (standard || operands[3].row_stride == 0);
        pack_tile(&operands[1], &problem->matrices[1], first, count, d, p, converted);
        pack_columns(&operands[0], first, count, 0, d, FKL_F64, (char *)lines);
        if (standard && first == 0)
            standard_tile(d, q, lines + line);
        if (!standard && !q_is_taken)
            pack_tile(&operands[3], &problem->matrices[3], first, count, d, q, converted);
        if (!standard)
            pack_columns(&operands[2], first, count, 0, d, FKL_F64, (char *)(lines + line));
        for (int k = 0; k < problem->operands; k += 2)
            ask_for_eight_rows(&operands[k], first + LANES, d);
        double values[LANES];
        for (int part = 0; part < LANES; part += VD) {
            double *at = lines + part;
            const struct full_scratch s = {
                .p = p + part,
                .q = q + part,
                .mean_p = at,
                .mean_q = at + line,
                .unit = at + 2 * line,
                .diagonal_q = at + 3 * line,
                .inverse_q = at + 4 * line,
                .first = at + 5 * line,
                .spare = at + 6 * line,
                .more = at + 7 * line,
                .poison_q = at + 11 * line,
            };
            vd_store(values + part, full_register(scale, d, problem->matrices, q_is_taken, &s));
        }
        memcpy(result + first, values, (size_t)count * sizeof *values);
    }
}
