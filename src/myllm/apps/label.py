"""`myllm label`: captions of pictures by a large model on a server, as data to train on."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from myllm.apps.console import CountsDisplay, Display
from myllm.apps.json_lines import JsonLines, Row, line_of
from myllm.apps.options import LabelOptions
from myllm.apps.picture_search import pictures_by_name, same_name
from myllm.apps.printing import print_json
from myllm.apps.resuming import command_line
from myllm.data.records import quantity
from myllm.data.table_formats import TEACHER
from myllm.errors import ConfigError, DataError, MyLLMError
from myllm.files import atomic_write, lock_file
from myllm.inference.teacher import Result, Stopped, Teacher, Unanswered, ask_all
from myllm.inference.teacher_apis import Question, has_several_sentences
from myllm.signals import caught_signals

# With as many pictures in a row that the server fails on, something is wrong with it, or with the model.
MAX_FAILURES_IN_ROW = 50


def label(options: LabelOptions) -> int:
    """Ask about each picture that OUT has no captions of. The exit code is 1 if OUT then has none at all."""
    display = Display(options.quiet, options.json)
    out = Path(options.out)
    pictures = pictures_by_name(options.paths, display.warn)
    lock = lock_file(out.with_name(f".{out.name}.lock"), f"--out {out}", "file")
    rows = list[Row]()
    with lock, JsonLines(out, options.overwrite, lambda row, offset: rows.append(row)) as file:
        run = _Run(options, display, file, rows)
        left = run.pictures_left(pictures)

        def stop() -> None:
            run.teacher.stop.set()
            os.write(2, b"\nfinishing the requests in hand; Ctrl-C ends at once\n")

        with caught_signals(stop) as signals:
            try:
                run.ask(left)
            except Stopped:
                pass  # while it waited to ask which models there are
            except MyLLMError as error:
                is_usage = isinstance(error, ConfigError)
                raise error if is_usage else type(error)(f"{error}. {run.hint_to_resume()}") from error
    if signals:
        display.print(f"Stopped. {run.hint_to_resume()}")
        return 128 + signals[0]
    return 0 if run.labelled else 1


class _Run:
    """The questions of one run, and their answers in OUT."""

    def __init__(self, options: LabelOptions, display: Display, file: JsonLines, rows: list[Row]) -> None:
        """rows: those that were in the file when it was opened."""
        self.options, self.display, self.file, self.rows = options, display, file, rows
        self.folder = Path(options.out).parent
        key, is_named = _key(options), "key_variable" in options.given_names
        self.teacher = Teacher(options.teacher, key, key if is_named else "", options.timeout, options.tries)
        self.teacher.on_wait = lambda seconds: display.warn(f"the server asks to wait {seconds:,.0f} s")
        self.labelled, self.answered, self.failures, self.captions = len(rows), 0, 0, 0
        self.long = list[str]()
        self.errors_path = Path(f"{options.out}.errors.jsonl")
        self.failed = dict[str, Row]()
        """Rows of the pictures that failed, in this run or earlier, and have no captions yet."""
        self.errors = JsonLines(self.errors_path, on_row=lambda row, offset: self.failed.update({row["image"]: row}))

    def pictures_left(self, pictures: Mapping[str, Path]) -> dict[str, Path]:
        """Return the pictures without captions in OUT; those that failed before come last.

        Raises ConfigError if OUT does not fit the options.
        """
        options, out = self.options, self.options.out
        check_rows(self.rows, options, options.model)
        done = {row["image"]: self.folder / row["path"] for row in self.rows}
        for name in done.keys() & pictures.keys():
            if done[name].exists() and not pictures[name].samefile(done[name]):
                raise ConfigError(f"--out {out}: {same_name(name, done[name], pictures[name])}")
        left = {name: path for name, path in pictures.items() if name not in done}
        if known := len(pictures) - len(left):
            self.display.say(f"{out} has captions of {quantity(known, 'picture')} already; {len(left):,} to ask about")
        self.failed = {name: row for name, row in self.failed.items() if name in left}
        return dict(sorted(left.items(), key=lambda item: item[0] in self.failed))

    def ask(self, pictures: Mapping[str, Path]) -> None:
        """Ask about the pictures and print a summary. Raises ConfigError, MyLLMError and Stopped."""
        options = self.options
        if pictures:
            self.teacher.connect()
            model = options.model or self.teacher.only_model()
            check_rows(self.rows, options, model)
            question = Question(model, options.prompt, options.n, options.temperature)
        self.file.begin()
        try:
            if pictures:
                # what is left was refused with the key and the model that gave the captions in OUT
                self.teacher.has_answered = bool(self.rows) and pictures.keys() <= self.failed.keys()
                answers = ask_all(self.teacher, question, list(pictures.items()), options.max_side, options.requests)
                with self.errors, CountsDisplay(self.display, "labelling", len(pictures)) as bar:
                    self._write(answers, pictures, question, bar)
        finally:
            self.print_summary()
            self._write_failed()

    def _write(
        self, answers: Iterator[tuple[str, Result]], paths: Mapping[str, Path], question: Question, bar: CountsDisplay
    ) -> None:
        """Write each answer when it arrives. Raises MyLLMError."""
        teacher = {name: value for name, value in asdict(question).items() if value is not None}
        failures_in_row, last_failure = 0, ""
        try:
            for name, result in answers:
                if isinstance(result, list):
                    path = _path_from(self.folder, paths[name])
                    row = {"image": name, "caption": result[0], "alternatives": result[1:], "path": path}
                    self.file.append({**row, TEACHER: teacher})
                    self.failed.pop(name, None)
                    self.labelled += 1
                    self.answered += 1
                    self.captions += len(result)
                    self.long += [name] if any(map(has_several_sentences, result)) else []
                    failures_in_row = 0
                else:
                    self.failed[name] = {"image": name, "error": str(result)}
                    self.errors.append(self.failed[name])
                    self.failures += 1
                    self.display.warn(str(result) if isinstance(result, DataError) else f"{name}: {result}")
                    failures_in_row += isinstance(result, Unanswered)
                if failures_in_row >= MAX_FAILURES_IN_ROW and not last_failure:
                    last_failure = str(result)
                    self.teacher.stop.set()
                bar.show(self.answered + self.failures, self._counts())
        finally:
            self.teacher.stop.set()
        if last_failure:
            raise MyLLMError(f"{MAX_FAILURES_IN_ROW} pictures in a row failed, the last because {last_failure}")

    def _write_failed(self) -> None:
        """Write the list of failed pictures without those that have captions now. Raises MyLLMError."""
        if self.failed:
            with atomic_write(self.errors_path) as file:
                file.writelines(map(line_of, self.failed.values()))
        else:
            self.errors_path.unlink(missing_ok=True)

    def _counts(self) -> str:
        usage = self.teacher.usage
        return (
            f"{self.failures:,} failed  {usage.requests:,} requests  "
            f"{usage.tokens_in:,} tokens in, {usage.tokens_out:,} out"
        )

    def hint_to_resume(self) -> str:
        """Return a sentence with the command that resumes the run."""
        return f"Resume with: {command_line('label', self.options)}"

    def print_summary(self) -> None:
        """Print the numbers of requests, answers and tokens, and advice on long captions."""
        options, usage = self.options, self.teacher.usage
        failed = f", {self.failures:,} failed (see {self.errors_path})" if self.failures else ""
        self.display.say(
            f"{quantity(self.answered, 'picture')} labelled with {quantity(self.captions, 'caption')}{failed}; "
            f"{quantity(usage.requests, 'request')}, {usage.tokens_in:,} tokens in, {usage.tokens_out:,} out. "
            f"{options.out} has {quantity(self.labelled, 'picture')}"
        )
        if self.long:
            self.display.warn(
                f"captions of {quantity(len(self.long), 'picture')} have several sentences, such as those of "
                f"{self.long[0]}; they are kept, but a small captioner learns one sentence better: ask for one by "
                "--prompt"
            )
        if options.json:
            facts = {"labelled": self.labelled, "answered": self.answered, "failed": self.failures}
            print_json({**facts, "captions": self.captions, "long": len(self.long), **asdict(usage)})


def check_rows(rows: Sequence[Mapping[str, Any]], options: LabelOptions, model: str | None) -> None:
    """Raise ConfigError if OUT has rows that are not of `myllm label`, or were asked for with other options.

    model: the model to ask; None: not known yet.
    """
    expected: dict[str, Any] = {
        "model": model, "prompt": options.prompt, "n": options.n, "temperature": options.temperature,
    }
    for number, row in enumerate(rows, 1):
        teacher = row.get(TEACHER)
        if not isinstance(teacher, dict) or not isinstance(row.get("path"), str):
            raise ConfigError(
                f"--out {options.out} is there already, and line {number:,} is not of `myllm label`; replace the file "
                "by --overwrite, or give another name"
            )
        for name, value in expected.items():
            if teacher.get(name) != value and not (name == "model" and value is None):
                raise ConfigError(
                    f"--{name} is {_written(value)}, but the captions in --out {options.out} were asked for with "
                    f"{_written(teacher.get(name))}; give that, another --out, or --overwrite to ask again"
                )


def _written(value: Any) -> str:
    return "not given" if value is None else repr(value)


def _key(options: LabelOptions) -> str:
    """Return the key for the server, or ''. Raises ConfigError if the variable that was named is not set."""
    key = os.environ.get(options.key_variable, "").strip()
    if not key and "key_variable" in options.given_names:
        raise ConfigError(f"--key-variable {options.key_variable}: this variable is not set; put the key into it")
    return key


def _path_from(folder: Path, picture: Path) -> str:
    """Return the path of a picture relative to the folder of OUT, by which `myllm train` finds it."""
    path = os.path.relpath(picture, folder)
    if path.startswith(os.pardir):  # the folder's own path may have links, and `..` is the parent of where they lead
        path = os.path.relpath(picture.parent.resolve() / picture.name, folder.resolve())
    return Path(path).as_posix()
