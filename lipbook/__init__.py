"""Lipschitz constraints in deep learning, as small tested functions.

The chapters import from the modules, so that a page names where its code is; this file re-exports
the public names. One is left out: ``lipbook.power_iteration`` is the module, and the function of
that name is ``lipbook.power_iteration.power_iteration``.
"""

from lipbook.convolution import (
    circular_conv_spectral_norm,
    conv_matrix,
    conv_norm_bounds,
    conv_spectral_norm,
)
from lipbook.lipschitz import (
    activation_constant,
    activation_constants,
    difference_quotients,
    exact_lipschitz,
    jacobian_norms,
    l2_attack,
    layer_matrix,
    layer_product_bound,
    lower_bound_from_pairs,
    maximize_jacobian_norm,
)
from lipbook.matrix_norms import frobenius_norm, induced_norm, stable_rank
from lipbook.power_iteration import (
    article_keras_spectral_norm,
    golub_kahan_lanczos,
    spectral_norm,
    spectral_norm_bounds,
)

__all__ = [
    "activation_constant",
    "activation_constants",
    "article_keras_spectral_norm",
    "circular_conv_spectral_norm",
    "conv_matrix",
    "conv_norm_bounds",
    "conv_spectral_norm",
    "difference_quotients",
    "exact_lipschitz",
    "frobenius_norm",
    "golub_kahan_lanczos",
    "induced_norm",
    "jacobian_norms",
    "l2_attack",
    "layer_matrix",
    "layer_product_bound",
    "lower_bound_from_pairs",
    "maximize_jacobian_norm",
    "spectral_norm",
    "spectral_norm_bounds",
    "stable_rank",
]
