"""A checkpoint is data: what its pickled files would import as they are read is known before one of them is."""

from __future__ import annotations

import zipfile
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from safealign.errors import CheckpointError

_PICKLED = (".pt", ".pth", ".bin")
# numpy's random state, and the plain records that DeepSpeed keeps beside its tensors.
_HARMLESS = {
    "_codecs.encode",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def refuse_code(folder: Path) -> None:
    """Raises CheckpointError for a file that names anything but tensors, plain values and the few records above."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _PICKLED):
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is no file of torch's present format: it was not written by this project")
        odd = sorted(set(get_unsafe_globals_in_checkpoint(path)) - _HARMLESS)
        if odd:
            raise CheckpointError(
                f"{path} holds something else than tensors ({', '.join(odd[:3])}) and was not loaded: it was not "
                "written by this project"
            )
