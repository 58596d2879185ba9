/* gaussian_full_panels.inl.h: full Gaussians of many components, one pair at a time.
 *
 * A lower triangular matrix is kept in panels of 8 rows: panel I has rows 8I to 8I + 7, column after column, up to its
 * diagonal block, so that a column of it is one virtual vector. The last panel is filled up with components that both
 * Gaussians have in common and that depend on no other. All but the 8 by 8 blocks on the diagonal is one loop
 * (subtract_products()), in which every element is a chain of multiply-adds of its own.
 */

#define PANEL_BLOCK (LANES * LANES)

/* Panel i of a triangle, and the block that begins at its column k. */
FKL_INLINE double *panel(double *triangle, ptrdiff_t i) { return triangle + PANEL_BLOCK / 2 * i * (i + 1); }

struct full_pair {
    ptrdiff_t d, panels;
    double *p, *q;          /* triangles: the factors, in q's units; later p's is E */
    double *x, *y;          /* panels of full length */
    double *unit, *roots, *own, *first, *diagonal_q, *inverse_q, *solved; /* lines of 8 * panels doubles */
    double poison_q;
};

/* n columns of products: c_s -= sum_k vectors_k scalars_ks, for the 8 virtual vectors c_s. */
static FKL_NOINLINE void subtract_products(double *restrict c, const double *restrict vectors,
                                           const double *restrict scalars, ptrdiff_t n)
{
    enum { WIDTH = VD == 8 ? 8 : VD == 4 ? 4 : 2 };
    for (int first = 0; first < LANES; first += WIDTH) {
        vd sum[WIDTH][PARTS];
        FKL_UNROLL
        for (int s = 0; s < WIDTH; s++)
            for (int j = 0; j < PARTS; j++)
                sum[s][j] = vd_load(c + (first + s) * LANES + j * VD);
        for (ptrdiff_t k = 0; k < n; k++) {
            vd v[PARTS];
            FKL_UNROLL
            for (int j = 0; j < PARTS; j++)
                v[j] = -vd_load(vectors + k * LANES + j * VD);
            FKL_UNROLL
            for (int s = 0; s < WIDTH; s++)
                for (int j = 0; j < PARTS; j++)
                    sum[s][j] = vd_madd(v[j], vd_set(scalars[k * LANES + first + s]), sum[s][j]);
        }
        FKL_UNROLL
        for (int s = 0; s < WIDTH; s++)
            for (int j = 0; j < PARTS; j++)
                vd_store(c + (first + s) * LANES + j * VD, sum[s][j]);
    }
}

/* A virtual vector less a multiple of another one; a multiple of it. */
FKL_INLINE void subtract_multiple(double *to, const double *x, double y)
{
    for (int j = 0; j < LANES; j += VD)
        vd_store(to + j, vd_madd(-vd_load(x + j), vd_set(y), vd_load(to + j)));
}
FKL_INLINE void scale_vector(double *to, double y)
{
    for (int j = 0; j < LANES; j += VD)
        vd_store(to + j, vd_load(to + j) * vd_set(y));
}

/* One element of an operand as a double. */
FKL_INLINE double matrix_element(const fkl_rows *rows, const fkl_matrix *matrix, ptrdiff_t i, ptrdiff_t j)
{
    return load_any((enum fkl_type)rows->type, rows->swapped,
                    rows->data + i * (matrix->whole ? matrix->line_stride : 0) + j * rows->item_stride);
}

/* Rows 8i.. of a matrix up to its diagonal block, as a panel; lines are converted to `converted`. */
static FKL_NOINLINE void load_panel(ptrdiff_t d, const fkl_rows *rows, const fkl_matrix *matrix, ptrdiff_t i,
                                    double *to, double *converted)
{
    const ptrdiff_t begin = i * LANES, width = begin + LANES, n = d < width ? d : width;
    const char *lines[LANES];
    memset(to, 0, (size_t)(width * LANES) * sizeof *to);
    for (ptrdiff_t row = n; row < width; row++)
        to[row * LANES + row - begin] = 1.0;
    if (!matrix->whole) {
        for (ptrdiff_t row = begin; row < n; row++)
            to[row * LANES + row - begin] = matrix_element(rows, matrix, 0, row);
        return;
    }
    for (ptrdiff_t j = 0; j < LANES; j++) {
        const char *const from = rows->data + (begin + j) * matrix->line_stride;
        double *const line = converted + j * n;
        if (begin + j >= n)
            memset(line, 0, (size_t)n * sizeof *line);
        else if (!is_direct(rows, FKL_F64))
            convert((enum fkl_type)rows->type, rows->swapped, from, rows->item_stride, n, FKL_F64, (char *)line);
        lines[j] = begin + j < n && is_direct(rows, FKL_F64) ? from : (const char *)line;
    }
    transpose_strip(FKL_F64, lines, n, (char *)to, LANES * 8);
}

/* Is what lies above the diagonal in the columns of a panel as it should be, of a covariance the mirror image, of a
 * factor nothing? The upper half of the panel's diagonal block becomes 0. */
static FKL_NOINLINE int check_panel(const struct full_pair *pair, const fkl_rows *rows, const fkl_matrix *matrix,
                                    int is_factor, ptrdiff_t i, double *panel)
{
    const ptrdiff_t d = pair->d, begin = i * LANES, n = d < begin + LANES ? d : begin + LANES;
    md good = vd_le(vd_set(0.0), vd_set(0.0));
    int block_good = 1;
    if (!matrix->whole)
        return 1;
    for (ptrdiff_t k = 0; k < begin; k++) {
        double above[LANES] = {0.0};
        convert((enum fkl_type)rows->type, rows->swapped,
                rows->data + k * matrix->line_stride + begin * rows->item_stride, rows->item_stride, n - begin, FKL_F64,
                (char *)above);
        const vd allowed = vd_set(matrix->asymmetry) * vd_set(pair->roots[k]);
        for (int j = 0; j < LANES; j += VD) {
            vd x = vd_load(panel + k * LANES + j), y = vd_load(above + j);
            md same = is_factor ? md_and(vd_eq(y, vd_set(0.0)), finite_lanes(x))
                                : vd_le(vd_abs(x - y), allowed * vd_load(pair->roots + begin + j));
            good = md_and(good, same);
        }
    }
    for (ptrdiff_t k = begin; k < n; k++)
        for (ptrdiff_t row = k + 1; row < n; row++) {
            const double x = panel[k * LANES + row - begin], y = panel[row * LANES + k - begin];
            block_good &= is_factor ? y == 0.0 && fabs(x) <= DBL_MAX
                                    : fabs(x - y) <= matrix->asymmetry * pair->roots[k] * pair->roots[row];
            panel[row * LANES + k - begin] = 0.0;
        }
    return block_good && md_all(good);
}

/* Multiply a panel's rows, and of a covariance its columns, by units. */
FKL_INLINE void scale_panel(double *panel, ptrdiff_t i, const double *rows, const double *columns)
{
    for (ptrdiff_t k = 0; k < (i + 1) * LANES; k++)
        for (int j = 0; j < LANES; j += VD) {
            vd x = vd_load(panel + k * LANES + j) * vd_load(rows + i * LANES + j);
            vd_store(panel + k * LANES + j, columns ? x * vd_set(columns[k]) : x);
        }
}

/* The units of a covariance: see take_covariance(). 0 if there is a diagonal element that no covariance has. */
static int find_units(const struct full_pair *pair, const fkl_rows *rows, const fkl_matrix *matrix, int is_q,
                      int *usual)
{
    int good = 1;
    *usual = 1;
    for (ptrdiff_t i = 0; i < pair->panels * LANES; i += VD) {
        double x[VD];
        for (ptrdiff_t j = 0; j < VD; j++)
            x[j] = i + j < pair->d ? matrix_element(rows, matrix, i + j, i + j) : 1.0;
        vd root = vd_sqrt(vd_load(x));
        good &= md_all(md_and(vd_le(vd_set(0.0), root), finite_lanes(root)));
        vd_store(pair->roots + i, root);
        vd unit = unit_of(root);
        if (is_q) {
            vd_store(pair->unit + i, unit);
        } else {
            vd given = vd_load(pair->unit + i), size = root * given;
            md inside = md_and(vd_le(vd_set(1.0 / ROOT_LIMIT), size), vd_le(size, vd_set(ROOT_LIMIT)));
            *usual &= md_all(inside);
            unit = vd_select(inside, given, unit);
        }
        vd_store(pair->own + i, unit);
    }
    return good;
}

/* The diagonal block of the covariance of a panel, of which what stands left of it has been subtracted. The poison. */
static double factor_block(double *c, double *diagonal, double *inverse)
{
    double poison = 0.0;
    for (int j = 0; j < LANES; j++) {
        double *column = c + j * LANES;
        for (int k = 0; k < j; k++)
            subtract_multiple(column, c + k * LANES, c[k * LANES + j]);
        const double pivot = column[j];
        for (int i = 0; i < j; i++)
            column[i] = 0.0;
        if (!(pivot >= 0.0 && pivot <= DBL_MAX))
            return (double)NAN;
        if (pivot == 0.0) {
            for (int i = j + 1; i < LANES; i++)
                if (column[i] != 0.0)
                    return (double)NAN;
            poison = (double)INFINITY;
            diagonal[j] = 0.0;
            inverse[j] = 1.0; /* so that what should be 0 below shows if it is not */
            continue;
        }
        double lanes[VD] = {pivot};
        vd_store(lanes, vd_sqrt(vd_load(lanes)));
        diagonal[j] = lanes[0];
        inverse[j] = 1.0 / diagonal[j];
        scale_vector(column, inverse[j]);
        column[j] = diagonal[j];
    }
    return poison;
}

/* Solve with a diagonal block: c_s = (c_s - sum_{k < s} c_k l_sk) inverse_s, for the 8 virtual vectors c_s. */
FKL_INLINE void divide_block(double *c, const double *l, const double *inverse)
{
    for (int part = 0; part < LANES; part += VD) {
        vd x[LANES];
        FKL_UNROLL
        for (int s = 0; s < LANES; s++)
            x[s] = vd_load(c + s * LANES + part);
        FKL_UNROLL
        for (int s = 0; s < LANES; s++) {
            FKL_UNROLL
            for (int k = 0; k < s; k++)
                x[s] = vd_madd(-x[k], vd_set(l[k * LANES + s]), x[s]);
            x[s] *= vd_set(inverse[s]);
            vd_store(c + s * LANES + part, x[s]);
        }
    }
}

/* Are the columns of a block 0 whose pivots are 0? */
static int empty_stay_empty(const double *c, const double *diagonal)
{
    for (int j = 0; j < LANES; j++)
        for (int i = 0; i < LANES && diagonal[j] == 0.0; i++)
            if (c[j * LANES + i] != 0.0)
                return 0;
    return 1;
}

/* A factor, or E where the scales are factors, in q's units; its diagonal and 1 over it. The poison. */
static double factor_panels(const struct full_pair *pair, const fkl_rows *rows, const fkl_matrix *matrix, int is_q)
{
    double *const triangle = is_q ? pair->q : pair->p, *const diagonal = is_q ? pair->diagonal_q : pair->first;
    double *const inverse = is_q ? pair->inverse_q : pair->solved;
    double poison = 0.0;
    int usual;
    if (!find_units(pair, rows, matrix, is_q, &usual))
        return (double)NAN;
    for (ptrdiff_t i = 0; i < pair->panels; i++) {
        double *const here = panel(triangle, i);
        load_panel(pair->d, rows, matrix, i, here, pair->x);
        if (!check_panel(pair, rows, matrix, 0, i, here))
            return (double)NAN;
        scale_panel(here, i, pair->own, pair->own);
        for (ptrdiff_t j = 0; j <= i; j++) {
            double *const c = here + j * PANEL_BLOCK, *const there = panel(triangle, j);
            subtract_products(c, here, there, j * LANES);
            if (j == i) {
                poison += factor_block(c, diagonal + j * LANES, inverse + j * LANES);
                continue;
            }
            divide_block(c, there + j * PANEL_BLOCK, inverse + j * LANES);
            if (poison != 0.0 && !empty_stay_empty(c, diagonal + j * LANES))
                return (double)NAN;
        }
        if (poison != poison)
            return poison;
    }
    if (!usual) {
        for (ptrdiff_t i = 0; i < pair->panels * LANES; i++) {
            pair->own[i] = pair->unit[i] / pair->own[i];
            diagonal[i] *= pair->own[i];
        }
        for (ptrdiff_t i = 0; i < pair->panels; i++)
            scale_panel(panel(triangle, i), i, pair->own, NULL);
    }
    return poison;
}

/* A factor as it is given, in q's units; of p it is E. The poison. The given diagonals are left in `roots` (of q) and
 * `own` (of p). */
static double take_panels(const struct full_pair *pair, const fkl_rows *rows, const fkl_matrix *matrix, int is_q)
{
    double *const triangle = is_q ? pair->q : pair->p, *const given = is_q ? pair->roots : pair->own;
    double poison = 0.0;
    for (ptrdiff_t i = 0; i < pair->panels * LANES; i++) {
        given[i] = i < pair->d ? matrix_element(rows, matrix, i, i) : 1.0;
        if (!(given[i] >= 0.0 && given[i] <= DBL_MAX))
            return (double)NAN;
        if (given[i] == 0.0)
            poison = (double)INFINITY;
    }
    for (ptrdiff_t i = 0; is_q && i < pair->panels * LANES; i += VD) {
        vd x = vd_load(given + i), unit = unit_of(x);
        vd_store(pair->unit + i, unit);
        vd_store(pair->diagonal_q + i, x * unit);
        vd_store(pair->inverse_q + i, vd_set(1.0) / (x * unit));
    }
    for (ptrdiff_t i = 0; i < pair->panels; i++) {
        double *const here = panel(triangle, i), *const other = panel(pair->q, i);
        load_panel(pair->d, rows, matrix, i, here, pair->x);
        if (!check_panel(pair, rows, matrix, 1, i, here))
            return (double)NAN;
        scale_panel(here, i, pair->unit, NULL);
        for (ptrdiff_t k = 0; !is_q && k < (i + 1) * PANEL_BLOCK; k += VD)
            vd_store(here + k, vd_load(here + k) - vd_load(other + k));
    }
    return poison;
}

/* The sum of (Lq^-1 X)_ij^2 over i > j, for X in p's place: eight columns at a time. */
static double whitened_panels(const struct full_pair *pair)
{
    double total = 0.0, *const columns = pair->x;
    for (ptrdiff_t j = 0; j < pair->panels; j++) {
        vd sum[PARTS];
        for (int part = 0; part < PARTS; part++)
            sum[part] = vd_set(0.0);
        for (ptrdiff_t i = j; i < pair->panels; i++) {
            const double *const x = panel(pair->p, i) + j * PANEL_BLOCK, *const l = panel(pair->q, i);
            double *const c = columns + (i - j) * PANEL_BLOCK; /* rows of the block */
            for (int row = 0; row < LANES; row++)
                for (int column = 0; column < LANES; column++)
                    c[row * LANES + column] = x[column * LANES + row];
            subtract_products(c, columns, l + j * PANEL_BLOCK, (i - j) * LANES);
            divide_block(c, l + i * PANEL_BLOCK, pair->inverse_q + i * LANES);
            for (int row = 0; row < LANES; row++) {
                double diagonal[LANES]; /* of all columns' blocks this is the first */
                memcpy(diagonal, c + row * LANES, sizeof diagonal);
                diagonal[row] = 0.0;
                const double *const r = i == j ? diagonal : c + row * LANES;
                for (int part = 0; part < PARTS; part++) {
                    vd y = vd_load(r + part * VD);
                    sum[part] = vd_madd(y, y, sum[part]);
                }
            }
        }
        total += vd_add_lanes(sum);
    }
    return total;
}

/* The sum over a line of 8 * panels terms >= 0. */
static double add_terms(const struct full_pair *pair, const double *terms)
{
    double total = 0.0;
    for (ptrdiff_t i = 0; i < pair->panels; i++) {
        vd sum[PARTS];
        for (int part = 0; part < PARTS; part++)
            sum[part] = vd_load(terms + i * LANES + part * VD);
        total += vd_add_lanes(sum);
    }
    return total;
}

/* That of the unit matrix. */
static void standard_panel(ptrdiff_t i, double *to)
{
    memset(to, 0, (size_t)((i + 1) * PANEL_BLOCK) * sizeof *to);
    for (int j = 0; j < LANES; j++)
        to[i * PANEL_BLOCK + j * LANES + j] = 1.0;
}

/* The way near: see full_near(). */
static double near_panels(const struct full_pair *pair, const fkl_rows *operands, const fkl_problem *problem)
{
    const fkl_matrix *const matrices = problem->matrices;
    double *const terms = pair->roots;
    for (ptrdiff_t i = 0; i < pair->panels; i++) {
        double *const here = panel(pair->p, i), *const l = panel(pair->q, i), *const sum = pair->y;
        load_panel(pair->d, &operands[1], &matrices[1], i, here, pair->x);
        if (problem->operands == 4)
            load_panel(pair->d, &operands[3], &matrices[3], i, sum, pair->x);
        else
            standard_panel(i, sum);
        for (ptrdiff_t k = 0; k < (i + 1) * PANEL_BLOCK; k += VD)
            vd_store(here + k, vd_load(here + k) - vd_load(sum + k));
        scale_panel(here, i, pair->unit, pair->unit);
        for (ptrdiff_t j = 0; j <= i; j++) {
            double *const c = here + j * PANEL_BLOCK, *const there = panel(pair->p, j);
            const double *const e = there + j * PANEL_BLOCK, *const lj = panel(pair->q, j);
            subtract_products(c, sum, there, j * LANES);
            subtract_products(c, here, lj, j * LANES);
            for (int m = 0; m < LANES; m++) {
                double *const column = c + m * LANES;
                const ptrdiff_t at = j * LANES + m;
                for (int k = 0; k < m; k++) {
                    subtract_multiple(column, sum + j * PANEL_BLOCK + k * LANES, e[k * LANES + m]);
                    subtract_multiple(column, c + k * LANES, lj[j * PANEL_BLOCK + k * LANES + m]);
                }
                if (i == j) {
                    const double t = column[m], s = pair->diagonal_q[at];
                    double root[VD] = {0.0};
                    vd_store(root, vd_sqrt(vd_madd(vd_set(s), vd_set(s), vd_set(t))));
                    pair->first[at] = t / (s + root[0]);
                    pair->solved[at] = 1.0 / root[0];
                    terms[at] = (t * pair->inverse_q[at]) * pair->inverse_q[at];
                }
                subtract_multiple(column, l + at * LANES, pair->first[at]);
                scale_vector(column, pair->solved[at]);
                if (i == j) {
                    for (int row = 0; row < m; row++)
                        column[row] = 0.0;
                    column[m] = pair->first[at];
                }
                const ptrdiff_t begin = at * LANES;
                for (int k = 0; k < LANES; k += VD)
                    vd_store(sum + begin + k, vd_load(column + k) + vd_load(l + begin + k));
            }
        }
    }
    for (ptrdiff_t i = 0; i < pair->panels * LANES; i += VD)
        vd_store(terms + i, vd_less_log1p(vd_load(terms + i)));
    return add_terms(pair, terms) + whitened_panels(pair);
}

/* The means' part, y'y; NaN where a mean is not finite. */
static double means_of_panels(const struct full_pair *pair, const fkl_rows *operands, int n_operands)
{
    static const fkl_matrix line = {0};
    double *const y = pair->solved;
    for (ptrdiff_t i = 0; i < pair->panels * LANES; i++) {
        double m = i < pair->d ? matrix_element(&operands[0], &line, 0, i) : 0.0;
        double mq = i < pair->d && n_operands == 4 ? matrix_element(&operands[2], &line, 0, i) : 0.0;
        if (!(fabs(m) <= DBL_MAX && fabs(mq) <= DBL_MAX))
            return (double)NAN;
        y[i] = m * pair->unit[i] - mq * pair->unit[i];
    }
    for (ptrdiff_t i = 0; i < pair->panels; i++) {
        double *const l = panel(pair->q, i), *const r = y + i * LANES;
        for (ptrdiff_t k = 0; k < i * LANES; k++)
            subtract_multiple(r, l + k * LANES, y[k]);
        for (int k = 0; k < LANES; k++) {
            const double value = r[k] * pair->inverse_q[i * LANES + k];
            subtract_multiple(r, l + (i * LANES + k) * LANES, value);
            r[k] = value;
        }
    }
    for (ptrdiff_t i = 0; i < pair->panels * LANES; i++)
        y[i] *= y[i];
    return add_terms(pair, y);
}

static void standard_panels(struct full_pair *pair)
{
    for (ptrdiff_t i = 0; i < pair->panels; i++)
        standard_panel(i, panel(pair->q, i));
    for (ptrdiff_t i = 0; i < pair->panels * LANES; i++)
        pair->unit[i] = pair->diagonal_q[i] = pair->inverse_q[i] = pair->roots[i] = 1.0;
    pair->poison_q = 0.0;
}

static double full_pair_divergence(struct full_pair *pair, const fkl_rows *operands, const fkl_problem *problem,
                                   int q_is_taken)
{
    const int is_factor = problem->scale == FKL_CHOLESKY;
    const fkl_matrix *const matrices = problem->matrices;
    double *const true_p = is_factor ? pair->own : pair->first;
    double *const true_q = is_factor ? pair->roots : pair->diagonal_q;
    if (!q_is_taken && problem->operands == 2)
        standard_panels(pair);
    else if (!q_is_taken)
        pair->poison_q = (is_factor ? take_panels : factor_panels)(pair, &operands[3], &matrices[3], 1);
    if (pair->poison_q != 0.0)
        return (double)NAN;
    double poison = (is_factor ? take_panels : factor_panels)(pair, &operands[1], &matrices[1], 0);
    const double means = means_of_panels(pair, operands, problem->operands);
    if (poison != 0.0 || means != means)
        return means != means ? means : poison;
    double *const terms = pair->solved;
    for (ptrdiff_t i = 0; i < pair->panels * LANES; i += VD) {
        vd s = is_factor ? vd_load(true_p + i) * vd_load(pair->unit + i) : vd_load(pair->first + i);
        vd t = vd_load(pair->diagonal_q + i);
        vd_store(terms + i, spread(s, t, vd_load(pair->inverse_q + i), true_p + i, true_q + i));
    }
    double total = add_terms(pair, terms) + whitened_panels(pair);
    if (!is_factor && total < NEAR_LIMIT) {
        const double better = near_panels(pair, operands, problem);
        total = better == better ? better : total;
    }
    double lanes[VD] = {0.0};
    vd_store(lanes, full_result(vd_set(total + means), vd_set(0.0)));
    return lanes[0];
}

static void full_panels(const fkl_rows *operands, ptrdiff_t n_rows, const fkl_problem *problem, double *result,
                        double *scratch)
{
    const ptrdiff_t d = problem->length, panels = fkl_full_panels(d);
    const ptrdiff_t triangle = PANEL_BLOCK / 2 * panels * (panels + 1);
    double *const x = scratch + 2 * triangle, *const lines = x + 2 * panels * PANEL_BLOCK;
    const ptrdiff_t line = panels * LANES;
    struct full_pair pair = {
        .d = d,
        .panels = panels,
        .q = scratch,
        .p = scratch + triangle,
        .x = x,
        .y = x + panels * PANEL_BLOCK,
        .unit = lines,
        .roots = lines + line,
        .own = lines + 2 * line,
        .first = lines + 3 * line,
        .diagonal_q = lines + 4 * line,
        .inverse_q = lines + 5 * line,
        .solved = lines + 6 * line,
    };
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        fkl_rows row[FKL_MOST_OPERANDS];
        for (int k = 0; k < problem->operands; k++) {
            row[k] = operands[k];
            row[k].data += i * row[k].row_stride;
        }
        const int q_is_taken = i > 0 && (problem->operands == 2 || operands[3].row_stride == 0);
        result[i] = full_pair_divergence(&pair, row, problem, q_is_taken);
    }
}
