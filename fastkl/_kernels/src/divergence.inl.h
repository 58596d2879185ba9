/* divergence.inl.h: the Jensen-Shannon term of two probabilities whose difference is known better than they are. */
#ifndef FASTKL_DIVERGENCE_H
#define FASTKL_DIVERGENCE_H

#include "vmath.h"

/* w phi(p, m) + (1 - w) phi(q + low, m), m = w p + (1 - w)(q + low), n = p - q - low: p - m and q - m are taken as
 * multiples of n, right to the last bits however close the two are. */
FKL_INLINE vd js_term(vd p, vd q, vd low, vd n, vd w)
{
    const vd zero = vd_set(0.0);
    const md no_p = vd_eq(p, zero), no_q = vd_eq(q, zero);
    vd v = vd_set(1.0) - w, m_low;
    vd m = vd_mean(w, p, v, q, low, &m_low);
    md empty = vd_eq(m, zero);
    m = vd_select(empty, vd_set(1.0), m);
    vd n_p = vd_select(no_p, zero, v * n), n_q = vd_select(no_q, zero, -(w * n));
    vd phi_p = vd_phi_near(vd_select(no_p, m, p), zero, m, vd_select(no_p, zero, m_low), n_p);
    vd phi_q = vd_phi_near(vd_select(no_q, m, q), low, m, vd_select(no_q, zero, m_low), n_q);
    vd term = vd_madd(w, vd_select(no_p, m, phi_p), v * vd_select(no_q, m, phi_q));
    return vd_select(empty, zero, term);
}

/* The same of probabilities, of which any below 2^-400 is as good as 0. */
FKL_INLINE vd js_of_probabilities(vd p, vd q, vd n, vd w)
{
    const vd zero = vd_set(0.0), least = vd_set(0x1p-400);
    const md no_p = vd_lt(p, least), no_q = vd_lt(q, least);
    p = vd_select(no_p, zero, p);
    q = vd_select(no_q, zero, q);
    return js_term(p, q, zero, vd_select(md_or(no_p, no_q), p - q, n), w);
}

#if FKL_FLOAT_KERNELS
/* phi(p, m) + phi(q, m), m = (p + q)/2, for normal p and q whose difference n is known better than they are. Both terms
 * are taken from n or both from the rounded m, in which their sum is stationary. */
FKL_INLINE vf js_term_float(vf p, vf q, vf n)
{
    const vf m = vf_half(p + q), half = n * vf_set(0.5f);
    struct vf_begun x = vf_begin_phi(p, m), y = vf_begin_phi(q, m);
    vf other, p_k = vf_octaves(p, m, &other), q_k = vf_octaves(q, m, &other); /* of opposite signs */
    const mf near = vf_lt(vf_abs(p_k - q_k), vf_set(0.5f));
    x.n = vf_select(near, half, x.n);
    y.n = vf_select(near, -half, y.n);
    x.s = x.n / x.sum;
    y.s = y.n / y.sum;
    return vf_end(x) + vf_end(y);
}
#endif

#endif
