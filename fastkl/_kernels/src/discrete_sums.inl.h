/* discrete_sums.inl.h: the sums of a pass over one row, or over a block of eight short rows' elements.
 *
 * On eight virtual lanes, in runs of 8 elements a lane and blocks of 4 runs; block sums are added with TwoSum. So the
 * error of a sum of K terms >= 0 is that of some ten additions, whatever K, and even if all of them round one way, as
 * they do where equal elements stand behind a large one. Which additions happen depends on K alone: a row's
 * result depends on its values, never on its neighbours, its layout or the number of threads.
 */
#include "discrete_terms.inl.h"
#include "load.inl.h"

/* Registers of each operand that are worked on at a time: one chain of dependent operations leaves units idle. */
#define MOST_VECTORS (PARTS > 2 ? PARTS : 2)
/* With two divisions each they would not all fit the registers. */
FKL_INLINE int step_vectors(const enum pass pass) { return pass_divisions(pass) > 1 ? PARTS : MOST_VECTORS; }

/* What a pass has summed of a row so far: block sums and, in `low`, what adding them up lost. */
struct sums {
    double high[SUMS][LANES], low[SUMS][LANES];
    int blocks, special;
};

/* How many sums a pass keeps, and whether the last of them is a maximum instead. */
FKL_INLINE int pass_sums(const enum pass pass)
{
    switch (pass) {
    case PASS_SUMS_EXACT:
        return 6;
    case PASS_JS_ONCE:
        return 4;
    case PASS_SUMS_MAX:
    case PASS_KL:
    case PASS_DIFFERENCE:
    case PASS_RENYI:
        return 3;
    case PASS_SUMS:
    case PASS_VARIATION:
    case PASS_SUPPORT:
        return 2;
    default:
        return 1;
    }
}

/* How many of them, from the first, are plain sums without a compensation? */
FKL_INLINE int pass_plain_sums(const enum pass pass)
{
    switch (pass) {
    case PASS_SUMS_EXACT:
    case PASS_SUMS_MAX:
        return 0;
    case PASS_DIFFERENCE:
        return 1;
    default:
        return pass_sums(pass) - (pass == PASS_RENYI);
    }
}

FKL_INLINE int pass_has_maximum(const enum pass pass) { return pass == PASS_SUMS_MAX || pass == PASS_RENYI; }

/* The sums of one register out of those of all, and back. */
FKL_INLINE void take(vd acc[SUMS][PARTS], const int part, vd a[SUMS])
{
    for (int k = 0; k < SUMS; k++)
        a[k] = acc[k][part];
}
FKL_INLINE void give(vd acc[SUMS][PARTS], const int part, const vd a[SUMS])
{
    for (int k = 0; k < SUMS; k++)
        acc[k][part] = a[k];
}

/* The bits of a block's special elements: see set_aside(). */
struct exceptions {
    vi special[PARTS];
};

FKL_INLINE struct exceptions no_exceptions(void)
{
    struct exceptions others;
    for (int j = 0; j < PARTS; j++)
        others.special[j] = vi_set(0);
    return others;
}

/* Terms that are begun: their bases are added to sum. */
FKL_INLINE void add_bases(const enum pass pass, const struct begun *x, vd sum[SUMS])
{
    if (pass == PASS_JS_HALF) {
        sum[0] += x->base[0] + x->base[1];
        return;
    }
    for (int k = 0; k < pass_divisions(pass); k++)
        sum[division_sum(pass, k)] += x->base[k];
}

/* A step's terms are ended: what they are beyond their bases is added to ends, by division. */
FKL_INLINE void end_terms(const enum pass pass, const int vectors, const struct begun x[],
                          vd ends[MOST_DIVISIONS][PARTS])
{
    FKL_UNROLL
    for (int j = 0; j < vectors; j++)
        for (int k = 0; k < pass_divisions(pass); k++) {
            vd *const sum = &ends[k][j % PARTS];
            *sum = vd_end((struct vd_begun){x[j].s2[k], x[j].w[k], *sum});
        }
}

/* Of both operands, the `bytes` bytes that will be wanted as those at offset i from p and q are: by this pass, or,
 * c->ahead bytes from here, by the next one; of short rows, of which p and q are `at` bytes behind a copy, by the next
 * stretch. */
FKL_INLINE void ask_for_more(const enum pass pass, const int across, const char *p, const char *q, ptrdiff_t i,
                             ptrdiff_t bytes, ptrdiff_t at, const struct vcontext *c)
{
    if (!across && pass_is_single(pass)) {
        ask_far_ahead(2, p, i, bytes);
        ask_far_ahead(2, q, i, bytes);
        return;
    }
    for (ptrdiff_t line = i; line < i + bytes; line += 64) {
        if (across) {
            fkl_prefetch_far(c->p_coming, at + line);
            fkl_prefetch_far(c->q_coming, at + line);
        } else {
            fkl_prefetch(p, c->ahead + line);
            fkl_prefetch(q, c->ahead + line);
        }
    }
}

/* `vectors` registers' worth of elements from the i-th of a run; the last n < LANES of a row where n >= 0. They and
 * their terms are added to `run`; of terms that are begun, the bases. */
FKL_INLINE void step_double(const enum pass pass, const enum fkl_type type, const int vectors, ptrdiff_t i, ptrdiff_t n,
                            const char *p, const char *q, const struct vcontext *c, vd run[SUMS][PARTS],
                            struct exceptions *others, struct begun begun[MOST_VECTORS])
{
    const ptrdiff_t stride = VD * type_size(type);
    p += i * type_size(type);
    q += i * type_size(type);
    vd x[MOST_VECTORS], y[MOST_VECTORS], low[MOST_VECTORS];
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        ptrdiff_t part = part_length(n, j * VD, VD);
        x[j] = n < 0 ? load(type, p + j * stride) : load_part(type, part ? p + j * stride : p, part);
        y[j] = n < 0 ? load(type, q + j * stride) : load_part(type, part ? q + j * stride : q, part);
    }
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        vd a[SUMS];
        take(run, j % PARTS, a);
        add_elements(pass, x[j], y[j], a);
        give(run, j % PARTS, a);
        low[j] = vd_set(0.0);
        if (pass_scales(pass))
            y[j] = scaled(y[j], c->c[j % PARTS], c->c_low[j % PARTS], &low[j]);
        if (pass_wants_positive(pass) && n >= 0) {
            x[j] = ones_behind(x[j], part_length(n, j * VD, VD));
            y[j] = ones_behind(y[j], part_length(n, j * VD, VD));
        }
    }
    if (pass_wants_positive(pass)) {
        /* Lanes of several vectors may be of several rows. Of two numbers vd_min() takes the second if one of them is
         * NaN: a NaN in `least` stays and is not >= SMALLEST, another one leaves `least` as it is. */
        vd least = vd_min(x[0], y[0]);
        FKL_UNROLL
        for (int j = 1; j < vectors; j++)
            least = vd_min(vd_min(x[j], y[j]), least);
        if (!FKL_LIKELY(md_all(vd_le(vd_set(SMALLEST), least)))) {
            FKL_UNROLL
            for (int j = 0; j < vectors; j++) {
                vd a[SUMS], term[MOST_DIVISIONS];
                set_aside(pass, &x[j], &y[j], &low[j], term, &others->special[j % PARTS]);
                if (!pass_begins(pass))
                    continue;
                take(run, j % PARTS, a);
                begun[j] = begin(pass, x[j], y[j], low[j]);
                add_bases(pass, &begun[j], a);
                for (int k = 0; k < pass_divisions(pass); k++)
                    a[division_sum(pass, k)] += term[k];
                give(run, j % PARTS, a);
            }
            return;
        }
    }
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        vd a[SUMS];
        take(run, j % PARTS, a);
        if (pass_begins(pass)) {
            begun[j] = begin(pass, x[j], y[j], low[j]);
            add_bases(pass, &begun[j], a);
        } else {
            element(pass, x[j], y[j], low[j], c, j % PARTS, a);
        }
        give(run, j % PARTS, a);
    }
}

#if FKL_FLOAT_KERNELS
/* Floats are added up in float for runs of two steps of sixteen and then in double. Of longer runs the roundings tell
 * where they all go one way, as behind the peak of a smoothed label: four steps made 5.4 ulp of KL. */
#define FLOAT_RUN 2

/* Along a row each lane's four terms of a run go into one double, and most elements too: a conversion takes as long as
 * two other operations. Eight short rows in turn, each in its lane, have so few elements that an ulp of their sum is
 * one of the result: these are added up in double at once, and their terms in pairs. */
struct float_run {
    vf terms[PARTS], p[PARTS], q[PARTS];
    vd block_terms[PARTS], block_p[PARTS], block_q[PARTS];
};

/* The j-th vector of a step, x, from `from`, added to the double lanes its elements belong to: floats from memory
 * again, which is cheaper than out of the register. */
FKL_INLINE void add_elements_float(const enum fkl_type type, ptrdiff_t n, const char *from, const int j, vf x,
                                   vd sum[PARTS])
{
    if (type == FKL_F32 && n < 0) {
        sum[2 * j % PARTS] += vh_load_double(from);
        sum[(2 * j + 1) % PARTS] += vh_load_double(from + 4 * VD);
    } else {
        add_floats(sum, j, x);
    }
}

/* Are elements added up so? An error of q's sum enters KL in second order, but one of p's as it is; the Jensen-Shannon
 * divergence has half of either's. */
FKL_INLINE int adds_q_in_float(const enum pass pass, const int across) { return pass_is_single(pass) && !across; }
FKL_INLINE int adds_p_in_float(const enum pass pass, const int across) { return pass == PASS_JS_ONCE && !across; }

/* The j-th vector of a step, added to those of the steps before it in its run, if it isn't the `first`. */
FKL_INLINE void add_to_run(const int first, const int j, vf x, vf run[PARTS])
{
    run[j % PARTS] = first && j < PARTS ? x : run[j % PARTS] + x;
}

/* step_double() in float; is the step the `first` of its run? */
FKL_INLINE void step_float(const enum pass pass, const enum fkl_type type, const int across, const int vectors,
                           const int first, ptrdiff_t i, ptrdiff_t n, const char *p, const char *q,
                           const struct fcontext *c, struct float_run *run, struct exceptions *others,
                           struct float_begun begun[MOST_VECTORS])
{
    const ptrdiff_t stride = VF * type_size(type);
    p += i * type_size(type);
    q += i * type_size(type);
    vf x[MOST_VECTORS], y[MOST_VECTORS], low[MOST_VECTORS];
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        ptrdiff_t part = part_length(n, j * VF, VF);
        x[j] = n < 0 ? load_float(type, p + j * stride) : load_float_part(type, part ? p + j * stride : p, part);
        y[j] = n < 0 ? load_float(type, q + j * stride) : load_float_part(type, part ? q + j * stride : q, part);
    }
    FKL_UNROLL
    for (int j = 0; j < vectors; j++) {
        if (adds_p_in_float(pass, across))
            add_to_run(first, j, x[j], run->p);
        else if (pass != PASS_JS_HALF)
            add_elements_float(type, n, p + j * stride, j, x[j], run->block_p);
        if (adds_q_in_float(pass, across))
            add_to_run(first, j, y[j], run->q);
        else if (pass != PASS_JS_HALF)
            add_elements_float(type, n, q + j * stride, j, y[j], run->block_q);
        low[j] = vf_set(0.0f);
        if (pass_scales(pass))
            y[j] = scaled_float(y[j], c->c[j % PARTS], c->c_low[j % PARTS], &low[j]);
        if (n >= 0) {
            x[j] = float_ones_behind(x[j], part_length(n, j * VF, VF));
            y[j] = float_ones_behind(y[j], part_length(n, j * VF, VF));
        }
    }
    vf least = vf_min(x[0], y[0]);
    FKL_UNROLL
    for (int j = 1; j < vectors; j++)
        least = vf_min(vf_min(x[j], y[j]), least);
    if (!FKL_LIKELY(mf_all(vf_le(vf_set(SMALLEST_FLOAT), least)))) {
        FKL_UNROLL
        for (int j = 0; j < vectors; j++) {
            vw bits = (vw)others->special[j % PARTS];
            if (pass_begins(pass))
                begun[j] = begin_float_aside(pass, x[j], y[j], low[j], &bits);
            else
                set_aside_float(pass, &x[j], &y[j], &low[j], NULL, &bits);
            others->special[j % PARTS] = (vi)bits;
        }
        return;
    }
    if (!pass_begins(pass))
        return;
    FKL_UNROLL
    for (int j = 0; j < vectors; j++)
        begun[j] = begin_float(pass, x[j], y[j], low[j]);
}

/* A step's terms are ended and added to their run. */
FKL_INLINE void end_terms_float(const enum pass pass, const int vectors, const int first,
                                const struct float_begun begun[MOST_VECTORS], struct float_run *run)
{
    if (!pass_begins(pass))
        return;
    FKL_UNROLL
    for (int j = 0; j < vectors; j++)
        add_to_run(first, j, end_float(pass, begun[j]), run->terms);
}

/* The sums of a run added to those of its block: the terms', and the elements'. */
FKL_INLINE void end_run_terms(const enum pass pass, const int across, struct float_run *run)
{
    if (!pass_begins(pass))
        return;
    if (!across)
        add_folded(run->block_terms, run->terms);
    else
        for (int j = 0; j < PARTS; j++)
            add_floats(run->block_terms, j, run->terms[j]);
}
FKL_INLINE void end_run_elements(const enum pass pass, const int across, struct float_run *run)
{
    if (adds_p_in_float(pass, across))
        add_folded(run->block_p, run->p);
    if (adds_q_in_float(pass, across))
        add_folded(run->block_q, run->q);
}

/* c as two floats: of one row, or of eight, where floats i and i + 8 belong to row i. */
FKL_INLINE struct fcontext float_context(const enum pass pass, const int across, const struct vcontext *c)
{
    struct fcontext f;
    for (int j = 0; j < PARTS; j++) {
        const double high = c->c[0][0];
        f.c[j] = vf_set((float)high);
        f.c_low[j] = vf_set((float)((high - (float)high) + c->c_low[0][0]));
    }
    if (across && pass_scales(pass)) {
        double high[LANES], low[LANES];
        float c_high[2 * LANES], c_low[2 * LANES];
        for (int j = 0; j < PARTS; j++) {
            vd_store(high + j * VD, c->c[j]);
            vd_store(low + j * VD, c->c_low[j]);
        }
        for (int i = 0; i < 2 * LANES; i++) {
            c_high[i] = (float)high[i % LANES];
            c_low[i] = (float)((high[i % LANES] - c_high[i]) + low[i % LANES]);
        }
        for (int j = 0; j < PARTS; j++) {
            f.c[j] = vf_load(c_high + j * VF);
            f.c_low[j] = vf_load(c_low + j * VF);
        }
    }
    return f;
}

FKL_INLINE void add_block_float(const enum pass pass, const enum fkl_type type, const int across, const char *p,
                                const char *q, ptrdiff_t n, const struct vcontext *c, vd acc[SUMS][PARTS],
                                struct exceptions *others)
{
    const ptrdiff_t step = 2 * LANES, whole = FLOAT_RUN * step, most = MOST_VECTORS * VF, size = type_size(type);
    const int first = pass == PASS_SUMS ? 0 : 1; /* of the sums of elements */
    const struct fcontext f = float_context(pass, across, c);
    struct float_begun waiting[MOST_VECTORS], next[MOST_VECTORS];
    struct float_run run;
    ptrdiff_t i = 0;
    for (int j = 0; j < PARTS; j++)
        run.block_terms[j] = run.block_p[j] = run.block_q[j] = vd_set(0.0);
    if (whole == most && pass_divisions(pass) == 1 && whole <= n) {
        /* A run is a step, and there are registers for two of them: see add_run(). */
        ask_for_more(pass, across, p, q, 0, whole * size, 0, c);
        step_float(pass, type, across, MOST_VECTORS, 1, 0, -1, p, q, &f, &run, others, waiting);
        end_run_elements(pass, across, &run);
        for (i = whole; i + whole <= n; i += whole) {
            ask_for_more(pass, across, p, q, i * size, whole * size, 0, c);
            step_float(pass, type, across, MOST_VECTORS, 1, i, -1, p, q, &f, &run, others, next);
            end_run_elements(pass, across, &run);
            end_terms_float(pass, MOST_VECTORS, 1, waiting, &run);
            end_run_terms(pass, across, &run);
            for (int j = 0; j < MOST_VECTORS; j++)
                waiting[j] = next[j];
        }
        end_terms_float(pass, MOST_VECTORS, 1, waiting, &run);
        end_run_terms(pass, across, &run);
    }
    for (; i + whole <= n; i += whole) {
        FKL_UNROLL
        for (ptrdiff_t at = 0; at < whole; at += most) {
            ask_for_more(pass, across, p, q, (i + at) * size, most * size, 0, c);
            step_float(pass, type, across, MOST_VECTORS, at == 0, i + at, -1, p, q, &f, &run, others, next);
            end_terms_float(pass, MOST_VECTORS, at == 0, next, &run);
        }
        end_run_elements(pass, across, &run);
        end_run_terms(pass, across, &run);
    }
    if (i < n) {
        const ptrdiff_t rest = n - i;
        step_float(pass, type, across, PARTS, 1, i, rest < step ? rest : -1, p, q, &f, &run, others, next);
        end_terms_float(pass, PARTS, 1, next, &run);
        if (step < rest) {
            step_float(pass, type, across, PARTS, 0, i + step, rest - step, p, q, &f, &run, others, next);
            end_terms_float(pass, PARTS, 0, next, &run);
        }
        end_run_elements(pass, across, &run);
        end_run_terms(pass, across, &run);
    }
    for (int j = 0; j < PARTS; j++) {
        acc[0][j] = run.block_terms[j];
        if (pass != PASS_JS_HALF) {
            acc[first][j] = run.block_p[j];
            acc[first + 1][j] = run.block_q[j];
        }
    }
}
#endif

/* Are this pass's terms computed in float for rows of this type? */
FKL_INLINE int in_float(const enum pass pass, const enum fkl_type type)
{
    return FKL_FLOAT_KERNELS && type != FKL_F64 && (pass == PASS_SUMS || pass_is_single(pass) || pass == PASS_JS_HALF);
}

/* The context of one row, in every lane. */
FKL_INLINE struct vcontext row_context(const struct context *context, int row, double weight, double order,
                                      ptrdiff_t ahead)
{
    struct vcontext c = {.weight = vd_set(weight), .order = vd_set(order), .ahead = ahead};
    for (int j = 0; j < PARTS; j++) {
        c.c[j] = vd_set(context->c[row]);
        c.c_low[j] = vd_set(context->c_low[row]);
        c.total[j] = vd_set(context->q_sum[row]);
        c.half[j] = vd_set(context->half[row]);
    }
    return c;
}

/* Those of eight rows, each in its lane. */
FKL_INLINE struct vcontext lane_context(const struct context *context, double weight, double order, ptrdiff_t ahead)
{
    struct vcontext c = {.weight = vd_set(weight), .order = vd_set(order), .ahead = ahead};
    for (int j = 0; j < PARTS; j++) {
        c.c[j] = vd_load(&context->c[j * VD]);
        c.c_low[j] = vd_load(&context->c_low[j * VD]);
        c.total[j] = vd_load(&context->q_sum[j * VD]);
        c.half[j] = vd_load(&context->half[j * VD]);
    }
    return c;
}

/* A run of n <= RUN * LANES elements, `at` bytes into its block, added to the block's sums, acc. The terms of a step
 * are begun before those of the step before it are ended. */
FKL_INLINE void add_run(const enum pass pass, const enum fkl_type type, const int across, const char *p, const char *q,
                        ptrdiff_t n, ptrdiff_t at, const struct vcontext *c, vd acc[SUMS][PARTS],
                        struct exceptions *others)
{
    const ptrdiff_t size = type_size(type), most = step_vectors(pass) * VD;
    const int plain = pass_plain_sums(pass);
    struct begun waiting[MOST_VECTORS], next[MOST_VECTORS];
    vd run[SUMS][PARTS], ends[MOST_DIVISIONS][PARTS];
    ptrdiff_t i = 0;
    for (int j = 0; j < PARTS; j++) {
        for (int k = 0; k < SUMS; k++) /* plain sums begin with 0, the others go on from those of the block */
            run[k][j] = k < plain ? vd_set(0.0) : acc[k][j];
        for (int k = 0; k < MOST_DIVISIONS; k++)
            ends[k][j] = vd_set(0.0);
    }
    if (most <= n) {
        ask_for_more(pass, across, p, q, 0, most * size, at, c);
        step_double(pass, type, step_vectors(pass), 0, -1, p, q, c, run, others, waiting);
        for (i = most; i + most <= n; i += most) {
            ask_for_more(pass, across, p, q, i * size, most * size, at, c);
            step_double(pass, type, step_vectors(pass), i, -1, p, q, c, run, others, next);
            end_terms(pass, step_vectors(pass), waiting, ends);
            for (int j = 0; pass_begins(pass) && j < step_vectors(pass); j++)
                waiting[j] = next[j];
        }
        end_terms(pass, step_vectors(pass), waiting, ends);
    }
    if (most > LANES && i + LANES <= n) {
        step_double(pass, type, PARTS, i, -1, p, q, c, run, others, next);
        end_terms(pass, PARTS, next, ends);
        i += LANES;
    }
    if (i < n) {
        step_double(pass, type, PARTS, i, n - i, p, q, c, run, others, next);
        end_terms(pass, PARTS, next, ends);
    }
    for (int j = 0; j < PARTS; j++) {
        for (int k = 0; k < pass_divisions(pass); k++)
            run[division_sum(pass, k)][j] += ends[k][j];
        for (int k = 0; k < SUMS; k++)
            acc[k][j] = k < plain ? acc[k][j] + run[k][j] : run[k][j];
    }
}

/* A block of n <= BLOCK elements, of one row or (across) eight elements of as many rows in turn: its sums, and the bits
 * of special elements added to others. */
FKL_INLINE void add_block(const enum pass pass, const enum fkl_type type, const int across, const char *p,
                          const char *q, ptrdiff_t n, const struct vcontext *c, double sums[SUMS][LANES],
                          struct exceptions *others)
{
    vd acc[SUMS][PARTS];
    for (int k = 0; k < SUMS; k++)
        for (int j = 0; j < PARTS; j++)
            acc[k][j] = vd_set(pass_has_maximum(pass) && k == 2 ? -INFINITY : 0.0);
    if (in_float(pass, type)) {
#if FKL_FLOAT_KERNELS
        add_block_float(pass, type, across, p, q, n, c, acc, others);
#endif
    } else {
        const ptrdiff_t size = type_size(type), run = RUN * LANES;
        for (ptrdiff_t i = 0, at = 0; i < n; i += run, at += run * size)
            add_run(pass, type, across, p + at, q + at, n - i < run ? n - i : run, at, c, acc, others);
    }
    if (pass == PASS_SUMS_MAX) {
        FKL_UNROLL
        for (int j = 0; j < PARTS; j++) {
            acc[0][j] += acc[3][j];
            acc[1][j] += acc[4][j];
        }
    }
    for (int k = 0; k < pass_sums(pass); k++)
        for (int j = 0; j < PARTS; j++)
            vd_store(sums[k] + j * VD, acc[k][j]);
}

FKL_INLINE int any_special(const struct exceptions *others)
{
    vi bits = others->special[0];
    for (int j = 1; j < PARTS; j++)
        bits |= others->special[j];
    return vi_any(bits);
}

/* The sum of a block added to those of a row, *high, and what that loses to *low; the first one begins them. */
FKL_INLINE void add_block_sum(vd sum, int first, double *high, double *low)
{
    vd lost = vd_set(0.0);
    if (!first) {
        vd_two_sum(vd_load(high), sum, &sum, &lost);
        lost += vd_load(low);
    }
    vd_store(high, sum);
    vd_store(low, lost);
}

/* Elements [0, n) of a row, or of a part of one that begins at a multiple of BLOCK, added to s. */
FKL_INLINE void pass_along(const enum pass pass, const enum fkl_type type, const char *p, const char *q, ptrdiff_t n,
                           const struct vcontext *c, struct sums *s)
{
    struct exceptions others = no_exceptions();
    _Alignas(64) double sums[SUMS][LANES];
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        add_block(pass, type, 0, p + start * type_size(type), q + start * type_size(type),
                  n - start < BLOCK ? n - start : BLOCK, c, sums, &others);
        for (int k = 0; k < pass_sums(pass); k++)
            for (int j = 0; j < PARTS; j++) {
                const vd sum = vd_load(&sums[k][j * VD]);
                double *const high = &s->high[k][j * VD];
                if (s->blocks > 0 && pass_has_maximum(pass) && k == 2)
                    vd_store(high, vd_max(vd_load(high), sum));
                else
                    add_block_sum(sum, s->blocks == 0, high, &s->low[k][j * VD]);
            }
        s->blocks++;
    }
    s->special |= any_special(&others);
}

FKL_INLINE double add_lanes(const double x[LANES])
{
    vd parts[PARTS];
    for (int j = 0; j < PARTS; j++)
        parts[j] = vd_load(x + j * VD);
    return vd_add_lanes(parts);
}

FKL_INLINE double largest_lane(const double x[LANES])
{
    double m = -INFINITY;
    for (int i = 0; i < LANES; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}

/* *high + *low = the sum of the lanes of x and of their compensations, to twice the precision. */
FKL_INLINE void add_lanes_exactly(const double x[LANES], const double *const compensations[3], double *high,
                                  double *low)
{
    double sum[LANES], lost[LANES];
    for (int i = 0; i < LANES; i++) {
        sum[i] = x[i];
        lost[i] = (compensations[0][i] + compensations[1][i]) + compensations[2][i];
    }
    for (int n = LANES / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; i++) {
            double a = sum[i], b = sum[i + n], both = a + b, t = both - a;
            lost[i] = (lost[i] + lost[i + n]) + ((a - (both - t)) + (b - t));
            sum[i] = both;
        }
    }
    *high = sum[0] + lost[0];
    *low = lost[0] - (*high - sum[0]);
}

/* What a pass found out about up to eight rows, one per lane. */
struct totals {
    double sum[SUMS][LANES];
    unsigned special; /* a bit for each row that must be judged element by element */
};

FKL_INLINE void total_row(const enum pass pass, const struct sums *s, struct totals *t, int row)
{
    const int count = pass_sums(pass), maximum = pass_has_maximum(pass);
    t->special |= (unsigned)s->special << row;

    if (pass == PASS_SUMS_EXACT || pass == PASS_DIFFERENCE) {
        const int pairs = pass == PASS_SUMS_EXACT ? 3 : 1, first = pass == PASS_SUMS_EXACT ? 0 : 1;
        for (int k = first; k < first + pairs; k++) {
            const double *const compensations[3] = {s->low[k], s->high[k + pairs], s->low[k + pairs]};
            add_lanes_exactly(s->high[k], compensations, &t->sum[k][row], &t->sum[k + pairs][row]);
        }
        if (pass == PASS_SUMS_EXACT)
            return;
    }
    for (int k = 0; k < (pass == PASS_DIFFERENCE ? 1 : count); k++) {
        if (maximum && k == 2) {
            t->sum[k][row] = largest_lane(s->high[k]);
        } else {
            double high = add_lanes(s->high[k]); /* where it is infinite, what adding it up lost is NaN */
            t->sum[k][row] = s->blocks > 1 && !isinf(high) ? high + add_lanes(s->low[k]) : high;
        }
    }
}
