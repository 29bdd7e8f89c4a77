"""`myllm caption --ray`: a Ray Data pipeline that captions pictures on all machines of a cluster, each exactly once.

Tasks list the pictures of archives, tables and groups of files; actors that hold the captioner read and caption them;
Ray Data writes Parquet files, and the ids of their rows into a checkpoint.
"""

import logging
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import ray.data
from ray.data.block import BlockMetadata
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import Datasource, ReadTask

from myllm.apps.caption_files import parquet_schema
from myllm.apps.caption_log import check_same_run, write_facts
from myllm.apps.caption_options import FIELDS, CaptionOptions
from myllm.apps.caption_output import MAX_WARNINGS, low_confidence, row_fields, row_of, run_facts
from myllm.apps.console import Display
from myllm.apps.folder_walk import matches, split_glob
from myllm.apps.opening import open_captioner
from myllm.apps.path_lists import read_paths
from myllm.apps.picture_search import Found, FoundPicture, PictureSearch, is_collection
from myllm.apps.printing import print_json
from myllm.apps.resuming import command_line
from myllm.apps.skipped_files import without_outputs
from myllm.batched import batched
from myllm.config import DecodeConfig
from myllm.data.records import quantity
from myllm.data.splits import name_hash
from myllm.device import count_cores
from myllm.errors import ConfigError, DataError, MyLLMError, reason
from myllm.files import Picture, StoredImage, atomic_write, lock_file
from myllm.inference.bulk import BulkCaptioner

BLOCK_BYTES = 2**16  # some hundred rows of LISTED; a task captions one block, or several if they are smaller
HAS_ERROR = pyarrow.dataset.field("error").is_valid()
TASKS = 4  # that list at the same time, and that write
MAX_THREADS = 8  # of an actor with a GPU
ROWS = 16  # with a camera's pictures in a table, these are 100 MB
TEXT = pyarrow.string()
LISTED = pyarrow.schema({"id": pyarrow.int64(), "image": TEXT, "picture": pyarrow.binary(), "error": TEXT})


def caption_on_cluster(options: CaptionOptions) -> int:
    """Caption the pictures that are not in --out yet; return the exit code, as `myllm caption` does.

    Raises MyLLMError.
    """
    out = Path(str(options.out))
    display = Display(options.quiet, json=True)
    PictureSearch(options.paths, [] if options.from_ is None else [options.from_]).check()
    with lock_file(Path(f"{out}.lock"), f"--out {out}", "folder"):
        captioner = open_captioner(options.model, "cpu", options.precision, options.adapter, threads=1)
        captioner.decode = captioner.decode_options(**options.decode_changes)
        facts, has_rows = run_facts(options, captioner), _has_rows(out)
        if options.only == "failed" and not has_rows:
            raise ConfigError(f"--only failed: --out {out} has no captions yet; leave out --only")
        check_same_run(_facts_path(out), facts, has_rows, options.mixed, str(out))
        write_facts(_facts_path(out), facts)
        listing = Listing(options)
        resume = f"Resume with: {command_line('caption', options)}"
        try:
            if options.only != "failed":
                _run(options, listing.groups, out, display)
            elif _failed_ids(out):
                _retry(options, listing.groups, out, display)
        except (KeyboardInterrupt, SystemExit):
            display.print(f"Stopped. {resume}")
            raise
        except ConfigError:
            raise
        except (ray.exceptions.RayError, OSError, MyLLMError) as error:
            raise MyLLMError(f"--ray {options.ray}: {_cause(error)}. {resume}") from error
        if listing.skipped:
            display.warn(listing.skipped)
        return _report(options, out, display)


class Listing:
    """Groups of pictures to list on the cluster: an archive or a table with pictures each, and pictures in files."""

    def __init__(self, options: CaptionOptions) -> None:
        """List pictures that are files, but not those in archives and tables. Raises DataError if there are none."""
        paths = without_outputs([name for word in options.paths if word != "-" for name in _expand(word)])
        for source in (*["-"] * ("-" in options.paths), *([options.from_] if options.from_ is not None else ())):
            paths += read_paths(source)
        collections = list(dict.fromkeys(str(Path(path)) for path in paths if is_collection(path)))
        search = PictureSearch([path for path in dict.fromkeys(paths) if not is_collection(path)])
        inside = tuple(f"{path}/" for path in collections)
        files = {
            _identity(entry): entry for entry in search
            if not (isinstance(entry, FoundPicture) and isinstance(entry.picture, StoredImage)
                    and str(entry.picture).startswith(inside))
        }
        self.groups: list[str | list[Found]] = [*collections, *batched(files.values(), 8 * options.batch_size)]
        """Collections, and lists of pictures; none is in two groups, unless a table both names and holds pictures."""
        if not self.groups:
            raise DataError("no paths are given")
        self.skipped = search.describe_skipped()
        """What looks like a picture and is not read; '' if there is none."""


class PictureSource(Datasource):
    """The listed pictures, as Ray Data reads them: a task for each group. Archives are opened where the task runs."""

    def __init__(self, groups: Sequence[str | list[Found]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.groups = groups

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the size is not known before archives are opened."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return a task for each group, whatever `parallelism` is."""
        facts = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        folder = os.getcwd()
        return [
            ReadTask(partial(_list_group, folder, group), facts, per_task_row_limit=per_task_row_limit)
            for group in self.groups
        ]


class ListedPicture(NamedTuple):
    """A picture of a row of `LISTED`."""

    id: int
    image: str
    picture: Picture


class CaptionWorker:
    """Actor that holds the captioner."""

    def __init__(self, options: CaptionOptions, folder: str, gpus: int) -> None:
        _enter(folder)
        out = Path(str(options.out))
        if not _facts_path(out).exists():
            raise DataError(f"--out {options.out}: is not on this machine; give a folder that all machines share")
        captioner = open_captioner(
            options.model, "cuda" if gpus else "cpu", options.precision, options.adapter, threads=1
        )
        captioner.decode = captioner.decode_options(**options.decode_changes)
        threads = min(count_cores(), MAX_THREADS) if gpus else 2  # one may wait for a disk
        self.bulk: BulkCaptioner[ListedPicture] = BulkCaptioner(captioner, options.batch_size, threads, options.seed)
        self.options, self.fields = options, row_fields(options)
        self.schema = _schema(self.fields, captioner.decode)
        self.chosen = _failed_ids(out) if options.only == "failed" else None

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Return rows of captions and errors for rows of `LISTED`."""
        listed = [row for row in table.to_pylist() if self.chosen is None or row["id"] in self.chosen]
        rows = [row for row in listed if row["error"] is not None]
        pictures = (
            ListedPicture(row["id"], row["image"], pickle.loads(row["picture"]))
            for row in listed if row["error"] is None
        )
        for result in chain.from_iterable(self.bulk.caption(pictures)):
            image, caption = result.item.image, result.caption
            error = low_confidence(caption, self.options.min_confidence) if caption else result.error
            if caption is None or error:
                row = {"image": image, "error": _as_utf8(error)}
            else:
                row = row_of(image, caption, self.fields)
            rows.append(row | {"id": result.item.id})
        return pyarrow.Table.from_pylist(rows, self.schema)


def _schema(fields: Collection[str], decode: DecodeConfig) -> pyarrow.Schema:
    """Return the columns of the captions."""
    chosen = [name for name in FIELDS if name in fields and name not in ("text", "caption")]
    names = ["image", "caption", *chosen, *["missing"] * bool(decode.force_words), "error"]
    return parquet_schema(names).append(pyarrow.field("id", pyarrow.int64()))


def _run(options: CaptionOptions, groups: Sequence[str | list[Found]], out: Path, display: Display) -> None:
    """Caption on the cluster until all rows are written into the folder `out`. Raises ConfigError and RayError."""
    with _cluster(str(options.ray)):
        _write_captions(options, groups, out, display)


def _retry(options: CaptionOptions, groups: Sequence[str | list[Found]], out: Path, display: Display) -> None:
    """Caption pictures with an error into another folder, then replace their rows; resumes what was interrupted.

    Raises ConfigError, RayError, OSError and MyLLMError.
    """
    folder, finished = Path(f"{out}.failed"), Path(f"{out}.failed.finished")
    _run(options, groups, folder / "rows", display)
    for path in out.glob("*.parquet"):
        _replace_errors(path, folder / "rows")
    shutil.rmtree(finished, ignore_errors=True)
    folder.rename(finished)  # all of it at once: rows without their checkpoint would be written twice
    shutil.rmtree(finished)


def _replace_errors(path: Path, folder: Path) -> None:
    """Replace the rows with errors in a Parquet file by those with the same ids in `folder`. Raises MyLLMError."""
    rows, row_id = pyarrow.parquet.read_table(path), pyarrow.dataset.field("id")
    failed = rows.filter(HAS_ERROR)["id"].combine_chunks()
    new = pyarrow.dataset.dataset(folder, format="parquet").to_table(filter=row_id.isin(failed))
    if new.num_rows:
        kept = rows.filter(~row_id.isin(new["id"].combine_chunks()))
        with atomic_write(path) as file:
            pyarrow.parquet.write_table(pyarrow.concat_tables([kept, new], promote_options="default"), file)


def _failed_ids(out: Path) -> set[int]:
    """Return the ids of the rows with an error."""
    return set(pyarrow.dataset.dataset(out, format="parquet").to_table(["id"], filter=HAS_ERROR)["id"].to_pylist())


def _write_captions(options: CaptionOptions, groups: Sequence[str | list[Found]], out: Path, display: Display) -> None:
    """Run the pipeline. Raises ConfigError if this machine lacks the GPU it needs."""
    resources = ray.cluster_resources()
    gpus = int(options.devices == "cuda" or (options.devices == "auto" and "GPU" in resources))
    if gpus > resources.get("GPU", 0):
        if options.ray == "local":
            raise ConfigError("--devices cuda: this machine has no GPU; take --devices auto")
        display.warn("no machine of the cluster has a GPU; waiting for one")
    elif resources.get("CPU", 0) < 1:
        display.warn("the cluster has no machine with a free processor yet; waiting for one")
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = -1  # machines may be hours in coming
    context.max_consecutive_actor_init_deaths = 3
    context.enable_progress_bars = display.console.is_terminal and not options.quiet
    filesystem = pyarrow.fs.LocalFileSystem()  # otherwise, paths are read as addresses: # and % would be changed
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(_checkpoint_path(out).absolute()), delete_checkpoint_on_success=False,
        override_filesystem=filesystem,
    )
    with ray.data.DataContext.current(context):
        # Only actors reserve processors; on a machine whose processors they have, other tasks would wait for ever.
        listed = ray.data.read_datasource(
            PictureSource(groups), override_num_blocks=len(groups), num_cpus=0, concurrency=TASKS
        )
        captions = listed.map_batches(
            CaptionWorker, batch_size=8 * options.batch_size, batch_format="pyarrow",
            fn_constructor_args=[options, os.getcwd(), gpus], compute=ray.data.ActorPoolStrategy(min_size=1),
            num_cpus=1, num_gpus=gpus,
        )
        captions.write_parquet(
            str(out.absolute()), filesystem=filesystem, min_rows_per_file=32 * options.batch_size,
            ray_remote_args={"num_cpus": 0}, concurrency=TASKS,
        )


def _list_group(folder: str, group: str | list[Found]) -> Iterator[pyarrow.Table]:
    """Yield rows of `LISTED` for the pictures of a group, each once."""
    _enter(folder)
    for batch in batched(_distinct(PictureSearch([group]) if isinstance(group, str) else group), ROWS):
        yield pyarrow.Table.from_pylist([_listed_row(entry) for entry in batch], LISTED)


def _distinct(pictures: Iterable[Found]) -> Iterator[Found]:
    """Yield each picture once: a table may name one in several rows."""
    names = set[str]()
    for entry in pictures:
        if _identity(entry) not in names:
            names.add(_identity(entry))
            yield entry


def _listed_row(entry: Found) -> dict[str, Any]:
    name = _identity(entry)
    row = {"id": name_hash("picture", name) - 2**63, "image": _as_utf8(name)}
    if isinstance(entry, FoundPicture):
        return row | {"picture": pickle.dumps(entry.picture)}
    return row | {"error": _as_utf8(entry.error)}


def _identity(entry: Found) -> str:
    return str(entry.picture) if isinstance(entry, FoundPicture) else entry.path


def _expand(word: str) -> Iterable[str]:
    """Return the paths that match a glob; a path as it is."""
    if os.path.lexists(word) or not has_magic(word):
        return [word]
    names = [str(match if isinstance(match, Path) else match.filename) for match in matches(*split_glob(word))]
    return names or [word]


def _enter(folder: str) -> None:
    """Make relative paths mean what they mean where the command was started. Raises DataError."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: is not on this machine ({error.strerror}); start the command in a folder that they all share"
        ) from error


def _as_utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _facts_path(out: Path) -> Path:
    return Path(f"{out}.run.json")


def _checkpoint_path(out: Path) -> Path:
    # not inside: Ray Data removes files of `out` that a stopped run did not finish by names that these have, too
    return Path(f"{out}.checkpoint")


def _has_rows(out: Path) -> bool:
    """Return whether an earlier run wrote captions. Raises ConfigError if they and their checkpoint do not match."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; with --ray, give a folder for Parquet files")
    checkpoint = _checkpoint_path(out)
    has_rows, is_known = any(out.glob("*.parquet")), checkpoint.is_dir()
    has_ids = any(not path.name.endswith(".pending.parquet") for path in checkpoint.glob("*.parquet"))
    if has_rows and not is_known:
        raise ConfigError(
            f"--out {out} has Parquet files, but {checkpoint}, which lists their pictures, is missing; give another "
            "folder"
        )
    if has_ids and not has_rows:
        raise ConfigError(
            f"{checkpoint} lists pictures whose captions are gone from --out {out}; put them back, or remove "
            f"{checkpoint} to caption all again"
        )
    return has_rows


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Use a cluster, or start one on this machine. Raises ConfigError if none answers, MyLLMError if none starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    is_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local":
            ray.init("local", num_cpus=count_cores(), include_dashboard=False, **quiet)
        else:
            if address != "auto":  # Ray would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(address, **quiet)
    except Exception as error:  # Ray raises a plain Exception if it is started too slowly
        if address == "local":
            raise MyLLMError(
                f"Ray did not start ({reason(error)}); wait until this machine is less busy, or leave out --ray"
            ) from error
        raise ConfigError(
            f"--ray {address}: no cluster answers ({reason(error)}); give the address that `ray start --head` prints, "
            "auto for the cluster of this machine, or local"
        ) from error
    if is_main:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray replaces it
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):  # Ray prints to standard output
            yield
    finally:
        ray.shutdown()


def _cause(error: BaseException) -> str:
    """Return the message of the error in our code that ends Ray's message, or else Ray's."""
    *_, last = str(error).strip().splitlines() or [type(error).__name__]
    return last.partition(": ")[2] if last.startswith("myllm.errors.") else reason(error)


def _report(options: CaptionOptions, out: Path, display: Display) -> int:
    """Print how many rows have captions, and the first errors; return the exit code."""
    rows = pyarrow.dataset.dataset(out, format="parquet")
    total, failed = rows.count_rows(), rows.count_rows(filter=HAS_ERROR)
    for row in rows.head(MAX_WARNINGS, columns=["image", "error"], filter=HAS_ERROR).to_pylist():
        display.warn(row["error"] if row["error"].startswith(row["image"]) else f"{row['image']}: {row['error']}")
    if failed:
        captioned = quantity(total - failed, "picture")
        display.say(f"{captioned} captioned, {failed:,} could not be captioned; see the column error in {out}")
    if options.json:
        print_json({"captioned": total - failed, "failed": failed})
    return 1 if failed and (options.strict or failed == total) else 0
