"""Captioners on a model hub, through huggingface_hub: its cache, its token (HF_TOKEN), its address (HF_ENDPOINT)."""

import hashlib
import re
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError, reason

ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
BESIDE = ["*.json", "merges.txt"]
# the first that a repository has is downloaded, the others are left
WEIGHTS = ["model*.safetensors", "captioner.pt", "pytorch_model*.bin", "adapter_model.safetensors"]


def is_id(source: str) -> bool:
    """Whether this can only be a repository: user/name or user/name@revision, and nothing here has such a path."""
    is_here = Path(source).exists() or Path(source).parent.is_dir()
    return ID.fullmatch(source) is not None and not source.endswith((".pt", ".bin", ".safetensors")) and not is_here


def download(source: str) -> Path:
    """A folder with the captioner of user/name, or user/name@revision; what is in the cache is not fetched again.

    What broke off is gone on with, and what came is held against the hub's own hash.
    Raises CheckpointError with the way out.
    """
    found = ID.fullmatch(source)
    assert found is not None
    repo, revision, began = found["repo"], found["revision"], time.time()
    try:
        folder = _fetched(repo, revision)
    except Exception as error:  # the network's errors have no common base below this
        raise CheckpointError(f"{source}: no such file or folder here; as a hub id, {_told(error)}") from error
    for path in folder.iterdir():
        blob = path.resolve()
        if blob.is_file() and blob.stat().st_mtime >= began and not _is_whole(blob):
            blob.unlink()
            raise CheckpointError(f"{source}: {path.name} came damaged, and was thrown away; run this again")
    return folder


def upload(checkpoint: Checkpoint, repo: str, private: bool = False, dtype: torch.dtype | None = None) -> str:
    """Put a captioner into the repository user/name as safetensors with its model card; returns the commit's address.

    The repository is made where there is none. Raises CheckpointError with the way out.
    """
    if not ID.fullmatch(repo) or "@" in repo:
        raise CheckpointError(f"{repo!r}: no name for a repository; expected user/name")
    with TemporaryDirectory(prefix="myllm-push-") as name:
        folder = Path(name) / repo.partition("/")[2]
        native.save_folder(checkpoint, folder, dtype)
        try:
            api = HfApi()
            api.create_repo(repo, private=private or None, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A captioner").commit_url)
        except Exception as error:  # as above
            raise CheckpointError(f"{repo}: {_told(error)}") from error


def _fetched(repo: str, revision: str | None) -> Path:
    """The repository's files in the cache: one form of the weights, and what belongs to it."""
    try:
        names = [one.rfilename for one in HfApi().model_info(repo, revision=revision).siblings or ()]
    except HfHubHTTPError:
        raise
    except Exception as error:  # as above; what is in the cache needs no network
        return _cached(repo, revision, error)
    weights = next((one for one in WEIGHTS if any(Path(name).match(one) for name in names)), None)
    if weights is None:
        raise ValueError(f"it holds no captioner: none of {', '.join(WEIGHTS)} is among its {len(names)} files")
    return Path(snapshot_download(repo, revision=revision, allow_patterns=[weights, *BESIDE]))


def _cached(repo: str, revision: str | None, unreached: Exception) -> Path:
    for weights in WEIGHTS:
        with suppress(LocalEntryNotFoundError, IncompleteSnapshotError):
            patterns = [weights, *BESIDE]
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
            if any(folder.glob(weights)):
                return folder
    raise FileNotFoundError(reason(unreached))


def _is_whole(blob: Path) -> bool:
    """The cache names a file by its hash: sha256, or git's sha1 for what is not stored as a large file."""
    begun = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\0" % blob.stat().st_size)}
    if not re.fullmatch("[0-9a-f]+", blob.name) or len(blob.name) not in begun:
        return True
    with blob.open("rb") as file:  # by parts: it may be larger than memory
        return hashlib.file_digest(file, lambda: begun[len(blob.name)]).hexdigest() == blob.name


def _told(error: Exception) -> str:
    """What went wrong on the hub, and the way out."""
    if isinstance(error, GatedRepoError):
        return "it is gated: accept its terms on its page, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "unknown to the hub, or private: check the name, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if status in (401, 403) and not get_token():
        return "it asks who you are: set HF_TOKEN"
    if status == 403:
        return "HF_TOKEN may not do this; take one that may write"
    if isinstance(error, RevisionNotFoundError):
        return "the hub has no such revision of it; leave @revision out for the newest"
    if status:
        return f"the hub answered {status}; try again later"
    if isinstance(error, ValueError):
        return reason(error)
    return f"the hub was not reached, and it is not in the cache ({reason(error)})"
