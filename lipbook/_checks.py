"""Refuse bad input early, by name, with the way out.

Every public function of the package checks its tensors here, so that the same mistake gets the
same sentence everywhere.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake


def check_tensor(
    tensor: Tensor,
    name: str,
    *,
    ndim: int | None = None,
    min_ndim: int = 0,
    finite: bool = True,
) -> Tensor:
    """Return `tensor` if it is a non-empty, finite, floating-point tensor of the right rank.

    Parameters
    ----------
    tensor : Tensor
        What the caller was given; any shape, strides and device.
    name : str
        The caller's name for it, which the error repeats.
    ndim : int, optional
        The exact number of axes required.
    min_ndim : int, default 0
        The least number of axes required, where a batch is welcome.
    finite : bool, default True
        Whether to look at the entries, which reads them all and waits for the device.

    Raises
    ------
    TypeError
        If it is not a tensor, is not dense, or has an integer, boolean, complex or float8 dtype.
    ValueError
        If it has the wrong number of axes, no elements, a NaN or an infinity.

    Examples
    --------
    >>> check_tensor(torch.eye(2), "matrix", ndim=2).shape
    torch.Size([2, 2])
    >>> check_tensor(torch.ones(3), "matrix", ndim=2)
    Traceback (most recent call last):
    ValueError: matrix must have 2 axes, got shape (3,)
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{wrong_type(tensor, name, 'a torch.Tensor')}; try torch.as_tensor")
    if not is_dense(tensor):
        raise not_dense(name)
    if not tensor.is_floating_point() or tensor.itemsize == 1:  # torch hardly computes in float8
        raise _wrong_dtype(tensor, name)
    shape = tuple(tensor.shape)
    if ndim is not None and tensor.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {shape}")
    if tensor.ndim < min_ndim:
        raise ValueError(f"{name} must have at least {min_ndim} axes, got shape {shape}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {shape}")
    if tensor.is_meta or is_fake(tensor):
        return tensor  # which has no values
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return tensor  # a graph in the making has no values yet
    if finite and (found := _not_finite(untransformed(tensor))):
        raise ValueError(
            f"{name} must be finite, got {found}; "
            "torch.nan_to_num replaces such entries, but look for their cause first"
        )
    return tensor


def _not_finite(tensor: Tensor) -> str:
    """Say what is not finite, if anything is."""
    # A NaN or an infinity shows in the sum, which is cheap, but may itself overflow; then in the
    # extremes: one pass, and no mask as large as the tensor.
    if math.isfinite(tensor.detach().sum().item()):
        return ""
    if bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        return ""
    bad = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
    return f"{tensor[bad].item()} at index {bad}"


def is_dense(tensor: object) -> bool:
    """Whether a tensor is neither sparse, blocked nor nested; true of what is not a tensor."""
    return not isinstance(tensor, Tensor) or (
        tensor.layout is torch.strided and not tensor.is_nested
    )


def unusable(tensor: object, name: str) -> TypeError | None:
    """Return the refusal of a tensor that has no numbers that torch computes with, if it is one."""
    if not isinstance(tensor, Tensor):
        return None
    if not is_dense(tensor):
        return not_dense(name)
    if tensor.is_meta:
        return TypeError(f"{name} must hold numbers, got a meta tensor; make it on another device")
    return _wrong_dtype(tensor, name) if tensor.itemsize == 1 else None


def _wrong_dtype(tensor: Tensor, name: str) -> TypeError:
    return TypeError(
        f"{name} must have a real floating-point dtype, got {tensor.dtype}; "
        f"{name}.to(torch.float32) converts it"
    )


def not_dense(name: str) -> TypeError:
    """Return the refusal of such a tensor."""
    return TypeError(
        f"{name} must be a dense tensor, got one that is sparse, blocked or nested; "
        f"{name}.to_dense() converts the first two, {name}.to_padded_tensor(0.0) the last"
    )


def is_transformed(tensor: object) -> bool:
    """Whether a tensor is one that `torch.func` looks through, and autograd does not."""
    return isinstance(tensor, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def untransformed(tensor: Tensor) -> Tensor:
    """Return the tensor that `torch.func` looks through, to read it: under `vmap` all of the batch.

    Examples
    --------
    >>> double = torch.func.vmap(lambda x: x * len(untransformed(x)))
    >>> double(torch.ones(2))
    tensor([2., 2.])
    """
    while is_transformed(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def is_transforming() -> bool:
    """Whether `torch.func` transforms what is computed now."""
    return bool(torch._C._are_functorch_transforms_active())


def refuse_transforms(tensor: object, name: str, instead: str) -> None:
    """Refuse a tensor for whose norm a graph would not do."""
    if is_transformed(tensor):
        raise untransformable(name, instead)
    if torch._C._is_tracing():
        raise RuntimeError(
            f"torch.jit.trace would keep one value of {name}, whatever it is called with; take it "
            "outside of the trace, or torch.linalg.matrix_norm"
        )


def untransformable(name: str, instead: str) -> RuntimeError:
    """Return the refusal of such a call, which would else be torch's own, in other words."""
    return RuntimeError(f"torch.func cannot transform {name}; {instead}")


def wrong_type(value: object, name: str, wanted: str) -> TypeError:
    """Return the error to raise, in the one form that all of them have."""
    return TypeError(f"{name} must be {wanted}, got {type(value).__name__}")


def check_bool(value: object, name: str) -> bool:
    """Return `value` if it is true or false, and nothing that only counts as such.

    Examples
    --------
    >>> check_bool("no", "detach")
    Traceback (most recent call last):
    TypeError: detach must be a bool, got str
    """
    if not isinstance(value, bool | np.bool_):
        raise wrong_type(value, name, "a bool")
    return bool(value)


def check_module(module: object, name: str) -> None:
    """Refuse what is no module, a function perhaps."""
    if not isinstance(module, nn.Module):
        raise wrong_type(module, name, "an nn.Module, whose forward may call a function")


def check_positive(value: float, name: str, *, zero: bool = False) -> float:
    """Return `value` if it is a finite number above zero, or `zero` if that is welcome.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is zero, negative, infinite or NaN.

    Examples
    --------
    >>> check_positive(0.5, "radius")
    0.5
    >>> check_positive(-1.0, "radius")
    Traceback (most recent call last):
    ValueError: radius must be a finite number above 0, got -1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise wrong_type(value, name, "a real number")
    beyond = isinstance(value, int) and value > sys.float_info.max
    if beyond or not (0 < value < math.inf or (zero and value == 0)):
        least = "of at least" if zero else "above"
        raise ValueError(f"{name} must be a finite number {least} 0, got {value}")
    return float(value)


def check_count(value: int, name: str, *, least: int = 1) -> int:
    """Return `value` if it is an integer of at least `least`.

    Raises
    ------
    TypeError
        If it is not an integer (a boolean is not one).
    ValueError
        If it is smaller than `least`.

    Examples
    --------
    >>> check_count(5, "n_iterations")
    5
    >>> check_count(0, "n_iterations")
    Traceback (most recent call last):
    ValueError: n_iterations must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise wrong_type(value, name, "an integer")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_labelled(inputs: Tensor, labels: Tensor) -> None:
    """Refuse inputs that are no finite floating-point batch, or labels that do not match them.

    Raises
    ------
    TypeError
        If `inputs` has no floating-point dtype or `labels` another dtype than int64.
    ValueError
        If `inputs` is empty or not finite, or the lengths differ.

    Examples
    --------
    >>> check_labelled(torch.ones(2, 3), torch.tensor([0, 1]))
    >>> check_labelled(torch.ones(2, 3), torch.tensor([0]))
    Traceback (most recent call last):
    ValueError: labels must have shape (2,), one class for each input, got (1,)
    """
    check_tensor(inputs, "inputs", min_ndim=1)
    dtype = getattr(labels, "dtype", type(labels).__name__)
    if dtype != torch.int64:
        raise TypeError(f"labels must be an int64 tensor, got {dtype}; labels.long() converts it")
    if labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"labels must have shape {tuple(inputs.shape[:1])}, one class for each input, "
            f"got {tuple(labels.shape)}"
        )
