"""Models from a hub, for users who can reach one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safealign.errors import AssetError

# Weights as safetensors only: pickled weights are never loaded.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def looks_like_hub_id(name: str) -> bool:
    """True for "owner/name"."""
    return bool(_HUB_ID.fullmatch(name))


def hub_is_off() -> bool:
    """True when the user's environment switches the hub off."""
    flags = (os.environ.get(key, "").strip().lower() for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(flag in ("1", "true", "yes", "on") for flag in flags)


def snapshot(hub_id: str, offline: bool) -> Path:
    """Folder of a hub model, downloaded unless offline. Raises AssetError with the reason in one sentence."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    local_only = offline or hub_is_off()
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED, local_files_only=local_only))
    except RepositoryNotFoundError as error:
        raise AssetError(
            f"the hub has no model {hub_id!r} that you may read: check the name, or log in for a gated one"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = "the hub is switched off" if local_only else "the hub cannot be reached"
        raise AssetError(
            f"{hub_id} is not in the local hub cache and {reason}: go online once, or give a local folder"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"{hub_id} could not be fetched from the hub ({first}): try again, or give a local folder"
        ) from error
