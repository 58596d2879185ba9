import numpy as np

rel_entr: np.ufunc
kl_div: np.ufunc
entr: np.ufunc
kl_term: np.ufunc
kl_term_log: np.ufunc
