"""Lipschitz constraints in deep learning, as small tested functions.

The chapters import from the modules, so that a page names where its code is; this file re-exports
the public names.

One name is that of a module and of its function: ``from lipbook import power_iteration`` is the
function, as a reader expects, and ``from lipbook.power_iteration import ...`` finds the module. The
price is that the module as an object hides behind the function, from ``import
lipbook.power_iteration as name`` too; ``importlib.import_module`` returns it.
"""

from lipbook.certificate import UncertifiedError, lipschitz_certificate
from lipbook.convolution import (
    circular_conv_spectral_norm,
    conv_matrix,
    conv_norm_bounds,
    conv_spectral_norm,
)
from lipbook.groupsort import GroupSort
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
from lipbook.normalization import (
    OrthonormalPenalty,
    SpectralProjection,
    article_spectral_normalize,
    project_spectral_,
    remove_spectral_normalization,
    spectral_normalize,
    spectral_normalize_network,
)
from lipbook.power_iteration import (
    article_keras_spectral_norm,
    golub_kahan_lanczos,
    power_iteration,
    spectral_norm,
    spectral_norm_bounds,
)
from lipbook.regularization import (
    SpectralPenalty,
    frobenius_penalty,
    input_gradient_penalty,
    penalized_weights,
)
from lipbook.wgan import (
    Constraint,
    FrobeniusClipping,
    FrobeniusExcess,
    GradientPenalty,
    R1Penalty,
    Unconstrained,
    WeightClipping,
    clip_frobenius_,
    clip_weights_,
    critic_loss,
    frobenius_excess_penalty,
    generator_loss,
    gradient_penalty,
    hinge_critic_loss,
    interpolate,
    r1_penalty,
    wasserstein_estimate,
)

__version__ = "0.1.0"

__all__ = [
    "Constraint",
    "FrobeniusClipping",
    "FrobeniusExcess",
    "GradientPenalty",
    "GroupSort",
    "OrthonormalPenalty",
    "R1Penalty",
    "SpectralPenalty",
    "SpectralProjection",
    "UncertifiedError",
    "Unconstrained",
    "WeightClipping",
    "activation_constant",
    "activation_constants",
    "article_keras_spectral_norm",
    "article_spectral_normalize",
    "circular_conv_spectral_norm",
    "clip_frobenius_",
    "clip_weights_",
    "conv_matrix",
    "conv_norm_bounds",
    "conv_spectral_norm",
    "critic_loss",
    "difference_quotients",
    "exact_lipschitz",
    "frobenius_excess_penalty",
    "frobenius_norm",
    "frobenius_penalty",
    "generator_loss",
    "golub_kahan_lanczos",
    "gradient_penalty",
    "hinge_critic_loss",
    "induced_norm",
    "input_gradient_penalty",
    "interpolate",
    "jacobian_norms",
    "l2_attack",
    "layer_matrix",
    "layer_product_bound",
    "lipschitz_certificate",
    "lower_bound_from_pairs",
    "maximize_jacobian_norm",
    "penalized_weights",
    "power_iteration",
    "project_spectral_",
    "r1_penalty",
    "remove_spectral_normalization",
    "spectral_norm",
    "spectral_norm_bounds",
    "spectral_normalize",
    "spectral_normalize_network",
    "stable_rank",
    "wasserstein_estimate",
]
