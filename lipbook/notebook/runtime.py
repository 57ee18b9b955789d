"""One way to start a chapter: seeds, device, threads, and a record of all three.

Every chapter has the same three parameters. :func:`start` checks them, seeds every generator a
chapter draws from, limits the thread pools, and returns them as a :class:`Run`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import random
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

DEVICES = ("auto", "cpu", "cuda")
SCALES = ("default", "full")
_PACKAGE = Path(__file__).parents[1]
_SEED_LIMIT = 2**32  # NumPy's; torch's is larger


@dataclass(frozen=True)
class Run:
    """What a chapter runs with: resolved, checked, and the same for all its cells."""

    seed: int
    device: torch.device
    scale: str
    threads: int

    @property
    def full(self) -> bool:
        """Whether the reader asked for the sizes meant for a GPU."""
        return self.scale == "full"

    def generator(self, stream: int = 0) -> torch.Generator:
        """Return a fresh CPU generator, one for each `stream`, all determined by the seed.

        Random numbers are drawn on the CPU and moved, so that a GPU sees the same ones.

        Examples
        --------
        >>> run = start(seed=1, device="cpu")
        >>> a, b = (torch.rand(2, generator=run.generator(3)) for _ in range(2))
        >>> bool((a == b).all())
        True
        """
        words = np.random.SeedSequence([self.seed, stream]).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))

    def seeds(self, count: int) -> list[int]:
        """Return the seeds of `count` repetitions of an experiment, determined by the run's.

        The first of them are the same however many are asked for.

        Examples
        --------
        >>> run = start(seed=1, device="cpu")
        >>> run.seeds(2) == run.seeds(5)[:2], start(seed=2, device="cpu").seeds(2) == run.seeds(2)
        (True, False)
        """
        seeds: list[int] = np.random.SeedSequence(self.seed).generate_state(count).tolist()
        return seeds


_current: Run | None = None


def check_seed(seed: int) -> int:
    """Return `seed` if every library here accepts it.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is outside [0, 2³²).

    Examples
    --------
    >>> check_seed(3)
    3
    >>> check_seed("3")
    Traceback (most recent call last):
    TypeError: seed must be an integer, got '3'
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"seed must be at least 0 and below 2**32, got {seed}")
    return int(seed)


def check_scale(scale: str) -> str:
    """Return `scale` if it is one of `SCALES`.

    Raises
    ------
    ValueError
        Otherwise; the message lists the choices.

    Examples
    --------
    >>> check_scale("full")
    'full'
    >>> check_scale("huge")
    Traceback (most recent call last):
    ValueError: scale must be one of 'default', 'full', got 'huge'
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {_listed(SCALES)}, got {scale!r}")
    return scale


def resolve_device(device: str = "auto") -> torch.device:
    """Turn a device parameter into a device that exists here.

    ``"auto"`` takes the environment variable ``LIPBOOK_DEVICE`` if it is set, else the GPU if
    there is one, else the CPU.

    Raises
    ------
    ValueError
        If the name is none of `DEVICES`.
    RuntimeError
        If it is ``"cuda"`` and torch sees no GPU.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    >>> resolve_device("gpu")
    Traceback (most recent call last):
    ValueError: device must be one of 'auto', 'cpu', 'cuda', got 'gpu'
    """
    name, origin = device, "device"
    if device == "auto":
        name, origin = os.environ.get("LIPBOOK_DEVICE") or "auto", "LIPBOOK_DEVICE"
    if name not in DEVICES:
        raise ValueError(f"{origin} must be one of {_listed(DEVICES)}, got {name!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"{origin} is 'cuda', but torch {torch.__version__} sees no GPU here; "
            "take 'cpu' or 'auto', or install a CUDA build of torch"
        )
    return torch.device(name)


def start(
    seed: int = 0, device: str = "auto", scale: str = "default", *, threads: int | None = None
) -> Run:
    """Check a chapter's parameters, make the run repeatable, and return it.

    Seeds Python, NumPy and torch; asks torch for deterministic kernels without TF32; and limits
    torch, BLAS and OpenMP to `threads`.

    Parameters
    ----------
    seed : int, default 0
        In [0, 2³²).
    device : {"auto", "cpu", "cuda"}, default "auto"
        See :func:`resolve_device`.
    scale : {"default", "full"}, default "default"
        Sizes for two cores, or for a GPU.
    threads : int, optional
        By default ``LIPBOOK_THREADS`` or 1: sums in one order give the same digits on a laptop
        and on a server.

    Examples
    --------
    >>> start(seed=3, device="cpu")
    Run(seed=3, device=device(type='cpu'), scale='default', threads=1)
    >>> start(seed=-1)
    Traceback (most recent call last):
    ValueError: seed must be at least 0 and below 2**32, got -1
    """
    global _current
    if threads is None:
        text = os.environ.get("LIPBOOK_THREADS", "1")
        threads = int(text) if text.isdecimal() else 0
    if threads < 1:
        raise ValueError(
            "threads must be at least 1; look at LIPBOOK_THREADS, "
            f"which is {os.environ.get('LIPBOOK_THREADS')!r}"
        )
    run = Run(check_seed(seed), resolve_device(device), check_scale(scale), threads)

    threadpool_limits(threads)
    torch.set_num_threads(threads)
    # cuBLAS reads this when it starts; without it, deterministic mode refuses matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As use_deterministic_algorithms(warn_only=True), which takes a second to import the compiler.
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    random.seed(run.seed)
    np.random.seed(run.seed)  # noqa: NPY002  (scikit-learn's default generator is this one)
    torch.manual_seed(run.seed)
    _current = run
    return run


def current() -> Run | None:
    """Return the run that :func:`start` made last in this process, or None before that."""
    return _current


def provenance(run: Run, chapter: str | None = None) -> pd.DataFrame:
    """Return what made the numbers on this page, as a table with one row a fact.

    Parameters
    ----------
    run : Run
        From :func:`start`.
    chapter : str, optional
        A notebook's name without its ending; adds the digest of its cells.

    Returns
    -------
    DataFrame
        Indexed by the fact, with the one column ``value``.

    Examples
    --------
    >>> provenance(start(seed=3, device="cpu")).loc["seed", "value"]
    '3'
    """
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    facts = {
        "seed": run.seed,
        "scale": run.scale,
        "device": f"{device}, {run.threads} thread{'s' if run.threads > 1 else ''}",
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "NumPy": np.__version__,
        "lipbook": _version(),
        "lipbook source": source_digest(sorted(_PACKAGE.rglob("*.py"))),
    }
    notebook = _PACKAGE.parent / "book" / f"{chapter}.ipynb"
    if chapter is not None and notebook.exists():
        facts["chapter source"] = _cells_digest(notebook)
    values = [str(value) for value in facts.values()]
    return pd.DataFrame({"value": values}, index=list(facts))


def _version() -> str:
    try:
        return version("lipbook")
    except PackageNotFoundError:  # a clone on PYTHONPATH
        return "not installed"


def source_digest(paths: list[Path]) -> str:
    """Return the first 12 hex digits of the SHA-256 of these files' names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _cells_digest(notebook: Path) -> str:
    """Digest a notebook's cells without their outputs, which would change it at each run."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    text = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in cells)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(map(repr, choices))
