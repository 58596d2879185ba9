# The types of _elementwise.pyx.

import numpy as np

rel_entr: np.ufunc
kl_div: np.ufunc
entr: np.ufunc
kl_term: np.ufunc
kl_term_log: np.ufunc

def kl_terms_at(log_target: bool, row_type: int, n: int, x: int, t: int, out: int) -> None: ...
def kl_sum_at(log_target: bool, row_type: int, n: int, x: int, t: int) -> float: ...
