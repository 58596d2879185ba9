"""``rel_entr``, ``kl_div`` and ``entr`` of ``scipy.special``: NumPy ufuncs, as theirs are, over fastkl's own kernels."""

from fastkl._kernels._elementwise import entr, kl_div, rel_entr

__all__ = ["entr", "kl_div", "rel_entr"]
