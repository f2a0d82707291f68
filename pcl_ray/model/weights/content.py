"""What is in a file of weights. Nothing in it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pcl_ray.errors import DataError


def read(path: Path) -> Any:
    """The content of a file that `torch.save` or safetensors wrote, on the CPU.

    Raises DataError where there is no such file, it is cut or damaged, or it holds code of others.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"checkpoint {str(path)!r} does not exist") from None
    except SafetensorError as error:
        raise DataError(
            f"{str(path)!r} cannot be read as safetensors: {error}; it may be cut, download it again"
        ) from None
    except Exception as error:  # torch raises many kinds here: pickle, zip and runtime errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{str(path)!r} cannot be read as a checkpoint: {reason}") from None
