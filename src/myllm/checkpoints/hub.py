"""Download captioners from a hub, and upload them, by huggingface_hub with its cache, HF_TOKEN and HF_ENDPOINT."""

import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi, errors, get_token, snapshot_download

from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError, reason

ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
OTHER_FILES = ["*.json", "merges.txt"]
# Of these, only the first that a repository has is downloaded.
WEIGHTS = ["model*.safetensors", "captioner.pt", "pytorch_model*.bin", "adapter_model.safetensors"]


def is_id(source: str) -> bool:
    """Return whether this is a repository, user/name or user/name@revision, and cannot be a local path."""
    is_local = source.endswith((".pt", ".bin", ".safetensors")) or Path(source).exists() or Path(source).parent.is_dir()
    return ID.fullmatch(source) is not None and not is_local


def download(source: str) -> Path:
    """Return a folder with the captioner of user/name or user/name@revision, from the cache if it is there.

    Interrupted downloads resume; finished files are checked against the hub's hashes.
    Raises CheckpointError, which says what to do.
    """
    repo, _, revision = source.partition("@")
    start = time.time()
    try:
        folder = _download(repo, revision or None)
        is_new = any(path.is_file() and path.stat().st_mtime >= start for path in folder.iterdir())
        damaged = HfApi().verify_repo_checksums(repo, revision=revision or None).mismatches if is_new else []
    except Exception as error:  # the network's errors have no other common base
        raise CheckpointError(f"{source}: no such file or folder; as a hub id, {_describe(error)}") from error
    for mismatch in damaged:
        (folder / mismatch["path"]).resolve().unlink()
    if damaged:
        raise CheckpointError(f"{source}: {damaged[0]['path']} arrived damaged and has been deleted; run this again")
    return folder


def upload(checkpoint: Checkpoint, repo: str, private: bool = False, dtype: torch.dtype | None = None) -> str:
    """Upload a captioner to the repository user/name, as safetensors with its model card, and return the commit's URL.

    The repository is created if needed, `private` or not. dtype: as in `native.save`.
    Raises CheckpointError, which says what to do.
    """
    if not ID.fullmatch(repo) or "@" in repo:
        raise CheckpointError(f"{repo!r}: not the name of a repository; expected user/name")
    with TemporaryDirectory(prefix="myllm-push-") as name:
        folder = Path(name) / repo.partition("/")[2]
        native.save_folder(checkpoint, folder, dtype)
        try:
            api = HfApi()
            api.create_repo(repo, private=private or None, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A captioner").commit_url)
        except Exception as error:  # as above
            raise CheckpointError(f"{repo}: {_describe(error)}") from error


def _download(repo: str, revision: str | None) -> Path:
    """Return the cache folder with a repository's weights, in one format, and the files that belong to them.

    If the hub cannot be reached, the files are those that the cache has.
    """
    for weights in WEIGHTS:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[weights, *OTHER_FILES]))
        if any(folder.glob(weights)):
            return folder
    raise ValueError(f"it holds no captioner: none of its files is one of {', '.join(WEIGHTS)}")


def _describe(error: Exception) -> str:
    """Return what went wrong on the hub and what to do."""
    if isinstance(error, errors.LocalEntryNotFoundError):  # the hub failed, and then the cache lacked a file
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(error, errors.GatedRepoError):
        return "it is gated: accept its terms on its page, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub does not know it, or it is private: check the name, or set HF_TOKEN"
    response = error.response if isinstance(error, errors.HfHubHTTPError) else None
    status = 0 if response is None else response.status_code
    if status in (401, 403) and not get_token():
        return "the hub requires a login: set HF_TOKEN"
    if status == 403:
        return "HF_TOKEN does not permit this; use a token with write access"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has no such revision of it; leave @revision out for the newest"
    if status:
        return f"the hub answered {status}; try again later"
    if isinstance(error, ValueError):
        return reason(error)
    return f"the hub could not be reached, and it is not in the cache ({reason(error)})"
