"""What is in a file of weights. Nothing in it is executed."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pcl_ray.errors import DataError

# Plain data that projects write beside their weights: arguments of the command line, figures of numpy.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    *(argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_FOREIGN_CODE = re.compile(
    r"(?:GLOBAL|[Uu]nsupported (?:global:|class|operand \d+:)) (?:GLOBAL )?([\w]+[\w.]*)"
)


def read(path: Path) -> Any:
    """The content of a file that `torch.save` or safetensors wrote, on the CPU.

    Raises DataError where there is no such file, it is cut or damaged, or it holds code of others.
    """
    shown = f"{str(path)!r} cannot be read as"
    try:
        if _is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"the file {str(path)!r} does not exist") from None
    except SafetensorError as error:
        raise DataError(f"{shown} safetensors ({error}): it is cut or damaged, fetch it again") from None
    except pickle.UnpicklingError as error:
        match = _FOREIGN_CODE.search(str(error))
        if match is None:
            raise DataError(f"{shown} a checkpoint: it is cut, damaged or no file of weights") from None
        raise DataError(
            f"{shown} a checkpoint: it holds code of others ({match[1]}), which is never run; where it comes"
            " from, save its state_dict alone"
        ) from None
    except Exception as error:  # torch raises many kinds here: zip and runtime errors
        if path.is_file() and not path.stat().st_size:
            raise DataError(f"{str(path)!r} is empty") from None
        reason = (str(error).splitlines() or [""])[0].partition(". ")[0]
        more = f" ({reason})" if " " in reason else ""  # else a number or nothing
        raise DataError(f"{shown} a checkpoint: it is cut, damaged or no file of weights{more}") from None


def _is_safetensors(path: Path) -> bool:
    """Whether it begins as such files do: the length of a header, and the header's brace."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{" and start[6:8] == b"\0\0")
