"""Captions in files that a later run continues: a log, and what is made from it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

from myllm.apps.caption_files import Sidecars, check_parquet, read_text, write_csv, write_parquet
from myllm.apps.caption_log import (
    DIGEST,
    OVERWRITING,
    SIDECAR,
    CaptionLog,
    check_same_run,
    differences,
    keep_rows,
    read_rows,
    write_facts,
)
from myllm.apps.caption_options import CaptionOptions
from myllm.apps.caption_output import CONFIDENCE, PrintedCaptions, row_fields, row_of, run_facts
from myllm.apps.console import Display
from myllm.apps.json_lines import JsonLines, Row
from myllm.apps.picture_search import FoundPicture, PictureSearch
from myllm.caption import CaptionerProtocol
from myllm.config import nearest
from myllm.data.records import quantity
from myllm.errors import ConfigError, DataError, MyLLMError
from myllm.files import behind_link, is_of_one_file, lock_file, read_json
from myllm.inference.bulk import Result

# the log of captions in text files
HIDDEN_LOG = ".myllm-captions.jsonl"
MAX_FAILURES = MAX_TWINS = 10_000


class SavedCaptions(PrintedCaptions):
    """Writes captions to a log, and from it to other files; a picture is captioned once."""

    def __init__(self, options: CaptionOptions, display: Display) -> None:
        super().__init__(options, display)
        check_parquet(options)
        self.sidecars = Sidecars(options) if options.form == "txt" else None
        self.path = _log_path(options)
        self.out = options.out or str(self.path)
        self.errors_path = Path(f"{self.path if self.sidecars else self.out}.errors.jsonl")
        self.facts_path = Path(f"{self.path if self.sidecars else self.out}.run.json")
        self.had_caption, self.kept, self.copied = 0, 0, 0
        self.overwrites, self.first_offset = options.overwrite, 0
        self.in_work = dict[str, Path | None]()
        """Pictures that are being captioned, each with its text file."""
        self.twins = list[FoundPicture]()
        """Pictures whose text file is that of a picture in work: they are tried if that cannot be captioned."""
        self.claims, self.claims_lock = set[str](), Lock()
        self.failures = dict[str, str]()
        """Errors of the last pictures that can be read, but not captioned, by the hash of their bytes."""
        self.old_errors = 0
        """Size in bytes of the rows of errors that are there at the start."""
        self.copies = dict[str, list[FoundPicture]]()
        """Copies of pictures that are in work, by the hash of their bytes."""
        self.unsure = frozenset[int]()
        """Places in the log of the last rows of an earlier run; if it was killed, their text may be missing."""
        self.stack = ExitStack()

    def __enter__(self) -> "SavedCaptions":
        """Lock the output, and read what is there. Raises ConfigError, DataError and MyLLMError."""
        path, out = self.path, self.out
        with self.stack as stack:
            try:
                stack.enter_context(lock_file(path.with_name(f".{path.name}.lock"), f"--out {out}", "file"))
            except ConfigError:
                raise
            except MyLLMError as error:
                raise DataError(f"--out {out}: cannot be written to ({error})") from error
            self.log = stack.enter_context(self._open_log())
            self.is_resumed = self.log.count > 0 or self.log.is_replaced
            self.stack = stack.pop_all()
        return self

    def _open_log(self) -> CaptionLog:
        """Return the log; --overwrite replaces a file of another kind, too."""
        try:
            return CaptionLog(self.path)
        except DataError:
            if not self.options.overwrite or self.options.only is not None:
                raise
            return CaptionLog(self.path, replace=True)

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def start(self, captioner: CaptionerProtocol) -> None:
        """Check that the captions that are there were made in the same way. Raises ConfigError and MyLLMError."""
        options, earlier = self.options, read_json(self.facts_path) if self.facts_path.exists() else {}
        facts = run_facts(options, captioner) | {"form": options.form}
        changed = [name for name, _ in differences(earlier, facts)] if earlier else ["all"]
        replaces_all = options.overwrite and options.only is None
        self._check_table(earlier)
        anew = "--overwrite without --only" if options.only is not None else "--overwrite"
        has_rows = self.log.count > 0 and not replaces_all
        check_same_run(self.facts_path, facts, has_rows, options.mixed, self.out, anew)
        before = earlier
        if options.overwrite or not self.log.count:
            is_removing = bool(earlier.get("overwrite") and earlier.get("removes"))  # it was interrupted
            before = {
                "overwrite": options.overwrite or self.log.is_replaced, "only": options.only,
                "first_offset": self.log.size, "removes": replaces_all and (bool(changed) or is_removing),
            }
        facts |= {name: before.get(name) for name in OVERWRITING}
        self.log.begin()
        write_facts(self.facts_path, facts)
        self.overwrites = bool(before.get("overwrite")) and before.get("only") == options.only
        if self.overwrites and not options.overwrite:
            self.display.say(f"--overwrite was interrupted; it goes on with the pictures that are left in {self.out}")
        if self.overwrites:
            self.first_offset = before.get("first_offset", 0)
        elif options.mixed:
            self.first_offset = self.log.size
        self._choose(is_same=not {*changed} - {"min_confidence"})
        self.errors = self.stack.enter_context(JsonLines(self.errors_path))
        self.errors.begin()
        self.old_errors = self.errors.size
        self.unsure = frozenset(self.log.last_offsets)

    def _check_table(self, earlier: Mapping[str, Any]) -> None:
        """Raise ConfigError if the CSV or Parquet file is there, but not of an earlier run."""
        form, is_of_a_run = self.options.form, bool(self.log.count) or earlier.get("form") in ("csv", "parquet")
        if form in ("csv", "parquet") and Path(self.out).exists() and not (is_of_a_run or self.options.overwrite):
            raise ConfigError(
                f"--out {self.out} is there already, and is not a table of an earlier run; give another name, or "
                "--overwrite to replace it"
            )

    def _choose(self, is_same: bool) -> None:
        """Set which pictures are wanted, and remove the errors of those that are tried again.

        With --only failed, they are removed at the end: until then, they are the list of pictures to try.

        is_same: whether captions are made as in the last run, but for the minimum of confidence.
        """
        only, path, minimum = self.options.only, self.errors_path, self.options.min_confidence
        if only == "failed":
            self.log.choose(row["image"] for row in read_rows(path))
        elif only in (None, "unprocessed"):
            is_forgotten = self.options.overwrite or not is_same or minimum is None

            def is_kept(row: Row) -> bool:
                # one that was captioned, with too little confidence, gets the same caption again
                is_low = CONFIDENCE in row and not is_forgotten and row[CONFIDENCE] < minimum
                return only == "unprocessed" or is_low

            self.log.choose(row["image"] for row in read_rows(path) if is_kept(row))
            keep_rows(path, is_kept)
        elif only != "changed":
            if only != "-" and not Path(only).exists():
                known = ("changed", "failed", "unprocessed")
                raise ConfigError(
                    f"--only {only}: there is no such list, and it is none of {', '.join(known)}{nearest(only, known)}"
                )
            listed = (entry for entry in PictureSearch([], [only]) if isinstance(entry, FoundPicture))
            self.log.choose(str(entry.picture) for entry in listed)
            keep_rows(path, lambda row: not self.log.is_chosen(row["image"]))

    def is_wanted(self, image: str) -> bool:
        """Return whether --only includes the picture."""
        only = self.options.only
        if only == "changed":
            return self.log.find(image) is not None
        return self.log.is_chosen(image) != (only in (None, "unprocessed"))

    def is_left(self, entry: FoundPicture) -> bool:
        """Return whether a picture is to be captioned: it is wanted, and has no caption yet."""
        image, only = str(entry.picture), self.options.only
        if image in self.in_work:
            return False
        if not self.is_wanted(image):
            self.count(failed=only is None)  # it has too little confidence, as before
            return False
        logged = self.log.find(image)
        is_old = logged is not None and self.overwrites and logged.offset < self.first_offset
        if logged is not None and only != "changed" and not is_old:
            # a text that is added to others is written again only if a kill may have come before it was
            is_sure = self.sidecars is None or (self.sidecars.adds and logged.offset not in self.unsure)
            if is_sure or self._repair(entry, self.log.row_at(logged.offset)):
                self.had_caption += 1
                self.seen += 1
            return False
        if self.sidecars is not None and not self._may_write(entry, self.sidecars):
            return False
        self.in_work[image] = None if self.sidecars is None else self.sidecars.path_of(entry)
        return True

    def left_twins(self) -> Iterator[FoundPicture]:
        """Yield the pictures to caption whose text file was to be that of a picture which could not be captioned."""
        twins, self.twins = self.twins, []
        for entry in twins:
            if self.is_stopped:
                return
            if self.is_left(entry):
                yield entry
        for entry in self.twins:
            self._fail_as_twin(entry)

    def _fail_as_twin(self, entry: FoundPicture, other: str = "another of these pictures") -> None:
        assert self.sidecars is not None
        path = self.sidecars.path_of(entry)
        self.fail(str(entry.picture), f"{path} is the text file of {other}; give --to jsonl, or rename one of them")

    def _may_write(self, entry: FoundPicture, sidecars: Sidecars) -> bool:
        """Return whether the picture's text file is free."""
        image = str(entry.picture)
        try:
            path = sidecars.path_of(entry)
            other = self.log.find_file(str(path))
            if other not in (None, image) and not _is_gone(Path(other)):
                self._fail_as_twin(entry, other)
                return False
            if path in self.in_work.values():
                if len(self.twins) < MAX_TWINS:
                    self.twins.append(entry)
                else:
                    self._fail_as_twin(entry)
                return False
            sidecars.check(path)
            if not (sidecars.adds or self.overwrites or self.log.find(image)) and read_text(path):
                self.kept += 1
                self.seen += 1
                return False
        except MyLLMError as error:
            self.fail(image, str(error))
            return False
        return True

    def claim(self, digest: str) -> bool:
        """Return whether a picture with this hash is to be captioned; if not, it is a copy of one that is."""
        if self.heatmaps is not None:  # each copy gets a heat map of its own
            return True
        with self.claims_lock:
            if digest in self.claims or digest in self.failures or self._find_copy(digest) is not None:
                return False
            self.claims.add(digest)
        return True

    def _find_copy(self, digest: str) -> int | None:
        return self.log.find_copy(digest, self.first_offset)

    def write(self, results: Sequence[Result[FoundPicture]]) -> None:
        """Write the captions of a batch, and those of its copies. Raises MyLLMError."""
        rows = []
        for result in results:
            image, caption = str(result.item.picture), result.caption
            if caption is not None:
                if self._is_below_minimum(image, caption):
                    self._keep_failure(result.digest, f"a copy of {image}, which has too little confidence")
                    continue
                row = row_of(image, caption, row_fields(self.options)) | {DIGEST: result.digest}
                rows.append(row | self._file_of(result.item))
                if self.heatmaps is not None:
                    self.heatmaps.draw(result.item.picture, caption)
                    self._save([rows.pop()])
            elif result.error:
                self.fail(image, result.error)
                self._keep_failure(result.digest, result.error)
            else:
                self.copies.setdefault(result.digest, []).append(result.item)
        self._save(rows)
        self._save(list(self._rows_of_copies()))
        for result in results:
            self.in_work.pop(str(result.item.picture), None)
            if result.caption is not None or result.error:  # a copy's claim is that of another picture, still in work
                self.claims.discard(result.digest)

    def _keep_failure(self, digest: str, error: str) -> None:
        """Keep the error of a picture for its copies in work; they were not claimed, so nothing else fails for them."""
        with self.claims_lock:
            if digest in self.claims:
                self.failures[digest] = error
                if len(self.failures) > MAX_FAILURES:
                    self.failures.pop(next(iter(self.failures)))

    def _rows_of_copies(self) -> Iterator[Row]:
        """Yield the rows of copies of pictures whose captions are written."""
        for digest in list(self.copies):
            offset, error = self._find_copy(digest), self.failures.get(digest)
            if offset is None and error is None:
                continue
            for entry in self.copies.pop(digest):
                image = str(entry.picture)
                logged = self.log.find(image)
                if offset is None:
                    self.fail(image, str(error))
                elif logged is not None and logged.digest == digest and logged.offset >= self.first_offset:
                    self.had_caption += 1  # it has not changed
                    self.seen += 1
                else:
                    self.copied += 1
                    yield {**self.log.row_at(offset), "image": image} | self._file_of(entry)

    def _file_of(self, entry: FoundPicture) -> Row:
        return {} if self.sidecars is None else {SIDECAR: str(self.sidecars.path_of(entry))}

    def _save(self, rows: Sequence[Row]) -> None:
        """Write rows into the log, then into text files: these can be written again from the log."""
        earlier = [self._earlier_text(row["image"]) for row in rows]
        self.log.append(rows)
        for row, replaced in zip(rows, earlier, strict=True):
            if self.sidecars is None or self._write_text(row, row["image"], Path(row[SIDECAR]), replaced):
                self.count(captioned=1)

    def _earlier_text(self, image: str) -> str:
        """Return what an earlier caption of the picture has added to its text file."""
        logged = self.log.find(image) if self.sidecars is not None and self.sidecars.adds else None
        return "" if self.sidecars is None or logged is None else self.sidecars.text_of(self.log.row_at(logged.offset))

    def _repair(self, entry: FoundPicture, row: Row) -> bool:
        """Write the text file of a row if it is not there, or is empty; return whether it is there now."""
        assert self.sidecars is not None
        return self._write_text(row, str(entry.picture), self.sidecars.path_of(entry), is_repaired=True)

    def _write_text(self, row: Row, image: str, path: Path, replaced: str = "", is_repaired: bool = False) -> bool:
        """Write the text file of a row, unless it is there; return False if it cannot be written. Raises MyLLMError."""
        assert self.sidecars is not None
        text = self.sidecars.text_of(row)
        try:
            if not ((is_repaired or self.sidecars.adds) and self.sidecars.is_written(path, text)):
                self.sidecars.write(path, text, replaced)
        except MyLLMError as error:
            if not is_of_one_file(error):
                raise
            self.fail(image, str(error))
            return False
        return True

    def fail(self, image: str, error: str, **facts: Any) -> None:
        """Report a picture that has no caption, and list it in the file of errors."""
        super().fail(image, error, **facts)
        self.in_work.pop(image, None)
        self.errors.append({"image": image, "error": error, **facts})
        if self.options.only == "failed":
            self.log.unchoose(image)

    def _is_untried(self, row: Row) -> bool:
        """Return whether --only failed has not yet tried the picture of an error again."""
        return self.log.is_chosen(row["image"]) and self.log.find(row["image"]) is None

    def see_errors(self) -> str:
        """Return where all errors are listed."""
        return f" (see {self.errors_path})"

    def finish(self, is_complete: bool) -> None:
        """Write the files that are made from the log, and print a summary. Raises MyLLMError."""
        if self.options.only == "failed":
            keep_rows(self.errors_path, self._is_untried, end=self.old_errors)
        facts = read_json(self.facts_path)
        first_offset = 0
        if is_complete and self.overwrites:
            facts["overwrite"] = False
            write_facts(self.facts_path, facts)
            if facts["removes"] and self.log.size > self.first_offset:  # there are new captions
                first_offset = self.first_offset
        write = {"csv": write_csv, "parquet": write_parquet}.get(self.options.form)
        if write is not None and (self.log.count or not Path(self.out).exists()):
            write(lambda: self._rows_of_table(first_offset), behind_link(Path(self.out)))
        if not facts["overwrite"]:  # it moves rows, and an unfinished overwriting needs its `first_offset`
            self.log.remove_old_rows(first_offset)
        where = f"text files in {self.options.out or 'their folders'}" if self.sidecars is not None else self.out
        parts = [f"{quantity(self.captioned, 'picture')} captioned in {where}"]
        parts += [f"{self.copied:,} of them copies of others"] * bool(self.copied)
        parts += [f"{self.had_caption:,} had a caption already"] * bool(self.had_caption)
        parts += [f"{self.kept:,} have a text file of your own, which stays"] * bool(self.kept)
        parts += [f"{self.failed:,} could not be captioned{self.see_errors()}"] * bool(self.failed)
        self.display.say(", ".join(parts))

    def _rows_of_table(self, first_offset: int) -> Iterator[Mapping[str, Any]]:
        for row in self.log.rows(first_offset):
            yield {name: value for name, value in row.items() if name != DIGEST}

    def counts(self) -> dict[str, int]:
        """Return what became of the pictures."""
        return super().counts() | {"copies": self.copied, "had_caption": self.had_caption, "kept": self.kept}


def _is_gone(path: Path) -> bool:
    """Return whether a picture is no longer in its folder; one in an archive has none."""
    return path.parent.is_dir() and not path.exists()


def _log_path(options: CaptionOptions) -> Path:
    """Return the JSONL file of the run's captions."""
    if options.form == "txt":
        folders = [Path(word) for word in options.paths if Path(word).is_dir()]
        return (Path(options.out) if options.out is not None else (*folders, Path())[0]) / HIDDEN_LOG
    return behind_link(Path(str(options.out) if options.form == "jsonl" else f"{options.out}.jsonl"))
