/* probe.inl.h: the functions of vmath.h over arrays, so that a test can measure their errors at each level. */
#include "vmath.h"
#include "kernels.h"

#if FKL_FLOAT_KERNELS
static vf probe_float(int function, vf x, vf y)
{
    const vf magic = vf_set(FKL_MAGIC_FLOAT), shifted = x + magic, k = shifted - magic;
    switch (function) {
    case FKL_PROBE_PHI_FLOAT:
        return vf_phi(x, y);
    case FKL_PROBE_EXCESS_FLOAT:
        return vf_excess(x);
    case FKL_PROBE_EXP2_FRACTION_FLOAT:
        return vf_exp2_fraction(x);
    case FKL_PROBE_EXP_FLOAT:
        return vf_exp(x);
    default: /* FKL_PROBE_EXCESS2_FLOAT, at x octaves */
        return vf_excess2_at(k, vw_float(vf_bits(shifted) << 23), x - k);
    }
}
#endif

static void probe(int function, ptrdiff_t n, const double *a, const double *b, double *result)
{
    for (ptrdiff_t i = 0; i + VD <= n; i += VD) {
        vd x = vd_load(a + i), y = vd_load(b + i), other, value;
        switch (function) {
        case FKL_PROBE_PHI:
            value = vd_phi(x, y);
            break;
        case FKL_PROBE_LOG_RATIO:
            value = vd_log_ratio(x, y, vd_set(0.0));
            break;
        case FKL_PROBE_LOG1P:
            value = vd_log1p(x);
            break;
        case FKL_PROBE_EXP:
            vd_exp_excess(x, &value);
            break;
        case FKL_PROBE_EXP_EXCESS:
            value = vd_exp_excess(x, &other);
            break;
        case FKL_PROBE_PHI_OVER:
            value = vd_phi_over(x, y, &other);
            break;
        case FKL_PROBE_LESS_LOG1P:
            value = vd_less_log1p(x);
            break;
        default:
            value = vd_set(0.0);
            break;
        }
        vd_store(result + i, value);
    }
#if FKL_FLOAT_KERNELS
    for (ptrdiff_t i = 0; i + VF <= n && function >= FKL_PROBE_PHI_FLOAT; i += VF) {
        float x[VF], y[VF];
        for (int j = 0; j < VF; j++)
            x[j] = (float)a[i + j], y[j] = (float)b[i + j];
        vf_store(x, probe_float(function, vf_load(x), vf_load(y)));
        for (int j = 0; j < VF; j++)
            result[i + j] = x[j];
    }
#endif
}
