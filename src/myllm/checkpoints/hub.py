"""Download captioners from a hub, and upload them, by huggingface_hub with its cache, HF_TOKEN and HF_ENDPOINT."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi, snapshot_download

from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError
from myllm.hub import ID, describe

OTHER_FILES = ["*.json", "merges.txt", native.INDEX_NAME]
# Only the first of these that a repository has is downloaded.
WEIGHTS = ["model*.safetensors", "captioner.pt", "pytorch_model*.bin", "adapter_model.safetensors"]


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
        raise CheckpointError(f"{source}: no such file or folder; as a hub id, {describe(error)}") from error
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
            raise CheckpointError(f"{repo}: {describe(error)}") from error


def _download(repo: str, revision: str | None) -> Path:
    """Return the cache folder with a repository's weights, in one format, and the files that belong to them.

    If the hub cannot be reached, the files are those that the cache has.
    """
    for weights in WEIGHTS:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[weights, *OTHER_FILES]))
        if any(folder.glob(weights)):
            return folder
    raise ValueError(f"it holds no captioner: none of its files is one of {', '.join(WEIGHTS)}")
