"""`myllm label`: each picture is asked about once, over kills, refusals and lies; the result trains a captioner."""

import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from myllm.apps.cli import main

Capture = pytest.CaptureFixture[str]
Jsonl = Callable[[Path], list[dict[str, Any]]]
ROOT = Path(__file__).parents[2]
SERVER = runpy.run_path(str(ROOT / "tests/fixtures/teacher_server.py"))
Reply, openai, caption_of, right = (SERVER[name] for name in ("Reply", "openai", "caption_of", "right"))
KEY = "sk-secret-1234567890"
COUNT = 12


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with twelve pictures in pics/, two of them in pics/deep/."""
    (tmp_path / "pics/deep").mkdir(parents=True)
    for number in range(COUNT):
        name = f"{'deep/' * (number < 2)}{number:02}.png"
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "pics" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def label(server: Any, *words: str, model: str = "tiny-vlm") -> int:
    return main(["label", "pics", "--teacher", server.url, "--model", model, "--out", "out.jsonl", "--quiet", *words])


def command(server: Any, *words: str) -> list[str]:
    return ["label", "pics", "--teacher", server.url, "--model", "tiny-vlm", "--out", "out.jsonl", *words]


def asked(server: Any) -> Counter[bytes]:
    return Counter(request.image for request in server.log)


def test_label_writes_the_captions_of_each_picture(teacher_server: Any, folder: Path, jsonl: Jsonl) -> None:
    assert label(teacher_server, "--n=3", "--prompt=What is it?") == 0
    rows = {row["image"]: row for row in jsonl(folder / "out.jsonl")}
    assert len(rows) == len(jsonl(folder / "out.jsonl")) == len(teacher_server.log) == COUNT
    caption = caption_of((folder / "pics/deep/01.png").read_bytes())
    assert rows["deep/01.png"] == {
        "image": "deep/01.png", "caption": caption, "alternatives": [f"{caption} 1", f"{caption} 2"],
        "path": "pics/deep/01.png", "teacher": {"model": "tiny-vlm", "prompt": "What is it?", "n": 3},
    }
    assert sorted(path.name for path in folder.iterdir()) == ["out.jsonl", "pics"]


def test_label_asks_nothing_twice(teacher_server: Any, folder: Path, jsonl: Jsonl, capfd: Capture) -> None:
    assert label(teacher_server) == 0
    (folder / "pics/new.png").write_bytes((folder / "pics/02.png").read_bytes())
    words = command(teacher_server)
    words[1] = str(folder / "pics")  # the same pictures by another path
    assert main(words) == 0
    assert len(teacher_server.log) == COUNT + 1
    assert [row["image"] for row in jsonl(folder / "out.jsonl")][COUNT:] == ["new.png"]
    assert "out.jsonl has captions of 12 pictures already; 1 to ask about" in capfd.readouterr().out
    teacher_server.close()
    assert label(teacher_server) == 0  # there is nothing to ask


def test_label_cuts_a_torn_row_and_asks_again_for_it_only(teacher_server: Any, folder: Path, jsonl: Jsonl) -> None:
    assert label(teacher_server, "--requests=1") == 0
    content = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").write_bytes(content[:-20])
    assert label(teacher_server) == 0
    assert (folder / "out.jsonl").read_bytes() == content and len(teacher_server.log) == COUNT + 1


def test_label_that_is_killed_asks_again_only_for_what_was_not_written(
    teacher_server: Any, folder: Path, jsonl: Jsonl
) -> None:
    for number in range(COUNT, 60):
        Image.new("RGB", (8, 6), (number, 9, 0)).save(folder / f"pics/{number}.png")
    written_before = dict[int, set[str]]()  # by the number of requests at the start of a run

    stop_at, chance = 0, random.Random(0)

    def reply(request: Any) -> Any:
        """Answer the first `stop_at` requests; the others are in flight when the process is killed."""
        answer = right(request)
        answer.seconds = 1000.0 if request.number > stop_at and kills < 5 else 0.0
        return answer

    teacher_server.reply = reply
    names = {path.read_bytes(): path.relative_to(folder / "pics").as_posix() for path in folder.rglob("*.png")}
    environment = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT / 'src'}"}
    kills, code = 0, -1
    while code != 0:
        out = folder / "out.jsonl"
        whole = out.read_text().split("\n")[:-1] if out.exists() else []
        start = len(teacher_server.log)
        written_before[start] = {json.loads(line)["image"] for line in whole}
        stop_at = start + chance.randrange(1, 9)
        process = subprocess.Popen([sys.executable, "-m", "myllm", *command(teacher_server, "--requests=3")],
                                   env=environment, stdout=subprocess.DEVNULL)
        if kills < 5:
            while len(teacher_server.log) <= stop_at and process.poll() is None:
                time.sleep(0.01)
            process.kill()
        code = process.wait()
        kills += code == -signal.SIGKILL
    assert kills == 5
    assert Counter(row["image"] for row in jsonl(folder / "out.jsonl")) == Counter(names.values())
    for number, request in enumerate(teacher_server.log):
        start = max(begin for begin in written_before if begin <= number)
        assert names[request.image] not in written_before[start]  # what is written is not asked about again
    assert sum(asked(teacher_server).values()) <= 60 + 3 * kills  # but what was in flight at a kill is


def test_label_asks_no_further_while_answers_are_not_on_disk(
    teacher_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_on_disk, fsync, out = list[int](), os.fsync, folder / "out.jsonl"

    def slow_fsync(file: int) -> None:
        if out.exists() and os.path.samestat(os.fstat(file), out.stat()):  # other threads write other files
            written = out.read_text().count("\n") - 1  # without the row that is being written
            while len(teacher_server.log) < min(written + 3, COUNT):
                time.sleep(0.01)
            time.sleep(0.1)  # enough for a request too many
            not_on_disk.append(len(teacher_server.log) - written)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    assert label(teacher_server, "--requests=3") == 0
    assert len(not_on_disk) == COUNT and max(not_on_disk) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_label_that_is_stopped_keeps_the_answers_in_hand(
    teacher_server: Any, folder: Path, jsonl: Jsonl, stopped: Any, number: signal.Signals, code: int
) -> None:
    is_caught = threading.Event()

    def reply(request: Any) -> Any:
        is_caught.wait()
        return right(request)

    teacher_server.reply = reply
    words = command(teacher_server, "--requests=2")
    process = stopped(
        words, number, lambda: len(teacher_server.log) == 2, cwd=folder, then=("finishing the requests", is_caught.set)
    )
    assert process.returncode == code, process.stderr
    assert len(jsonl(folder / "out.jsonl")) == len(teacher_server.log) == 2
    line = next(line for line in process.stdout.splitlines() if "Resume with: myllm label pics" in line)
    teacher_server.reply = right
    assert main(line.partition("myllm ")[2].split()) == 0
    assert set(asked(teacher_server).values()) == {1} and len(jsonl(folder / "out.jsonl")) == COUNT


def test_label_ends_at_once_after_a_second_ctrl_c(teacher_server: Any, folder: Path) -> None:
    teacher_server.reply = lambda request: Reply({}, seconds=1000)
    environment = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "myllm", *command(teacher_server, "--timeout=1000")], env=environment,
        stderr=subprocess.PIPE, text=True,
    )
    while not teacher_server.log and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any("Ctrl-C ends at once" in line for line in process.stderr)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=500) == 130


def test_label_stops_at_once_while_it_waits(teacher_server: Any, folder: Path, stopped: Any) -> None:
    teacher_server.reply = lambda request: Reply({}, 429, {"Retry-After": "3000"})
    process = stopped(command(teacher_server), signal.SIGINT, lambda: len(teacher_server.log) > 0, cwd=folder)
    assert process.returncode == 130 and "Resume with" in process.stdout
    assert process.stdout.count("the server asks to wait 3,000 s") == 1
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=other"], "--model is 'other', but the captions in --out out.jsonl were asked for with 'tiny-vlm'"),
        (["--prompt=What?"], "--prompt is 'What?', but the captions in --out out.jsonl were asked for with 'Desc"),
        (["--n=2"], "--n is 2, but the captions in --out out.jsonl were asked for with 1"),
        (["--temperature=1"], "--temperature is 1.0, but the captions in --out out.jsonl were asked for with not giv"),
    ],
)
def test_label_refuses_other_questions_for_the_same_out(
    teacher_server: Any, folder: Path, capfd: Capture, words: list[str], message: str
) -> None:
    assert label(teacher_server) == 0
    content = (folder / "out.jsonl").read_bytes()
    assert label(teacher_server, *words) == 2
    assert message in capfd.readouterr().err
    assert (folder / "out.jsonl").read_bytes() == content and len(teacher_server.log) == COUNT
    assert label(teacher_server, *words, "--overwrite") == 0
    assert len(teacher_server.log) >= 2 * COUNT


def test_label_overwrites_only_when_an_answer_is_there(teacher_server: Any, folder: Path) -> None:
    assert label(teacher_server) == 0
    content = (folder / "out.jsonl").read_bytes()
    teacher_server.reply = lambda request: Reply({"error": "no such model"}, 404)
    assert label(teacher_server, "--overwrite") == 1
    assert (folder / "out.jsonl").read_bytes() == content


@pytest.mark.parametrize("content", ["mine", '{"image": "a.png", "caption": "by hand"}\n', "image,caption\na.png,a\n"])
def test_label_keeps_a_file_that_is_not_its_own(
    teacher_server: Any, folder: Path, capfd: Capture, content: str
) -> None:
    (folder / "out.jsonl").write_text(content)
    assert label(teacher_server) in (1, 2)
    assert (folder / "out.jsonl").read_text() == content and teacher_server.log == []
    assert "out.jsonl" in capfd.readouterr().err


def test_label_refuses_a_second_process_on_one_out(
    teacher_server: Any, folder: Path, stopped: Any, capfd: Capture
) -> None:
    teacher_server.reply = lambda request: Reply({}, seconds=1000)
    codes = list[int]()

    def second() -> bool:
        if teacher_server.log:
            codes.append(label(teacher_server))
        return bool(codes)

    stopped(command(teacher_server), signal.SIGKILL, second, cwd=folder)
    assert codes == [2] and "--out out.jsonl is in use by process " in capfd.readouterr().err
    teacher_server.reply = right
    assert label(teacher_server) == 0  # the lock ended with the process


def test_label_lists_pictures_without_a_caption_and_asks_again_next_time(
    teacher_server: Any, folder: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    (folder / "pics/broken.png").write_bytes(b"no picture")
    bad = (folder / "pics/05.png").read_bytes()
    teacher_server.reply = lambda request: Reply(b"<html>", 500) if request.image == bad else right(request)
    assert label(teacher_server, "--tries=2") == 0
    errors = {row["image"]: row["error"] for row in jsonl(folder / "out.jsonl.errors.jsonl")}
    assert set(errors) == {"05.png", "broken.png"} and len(jsonl(folder / "out.jsonl")) == COUNT - 1
    assert "answered 500 Internal Server Error" in errors["05.png"] and "(2 tries)" in errors["05.png"]
    assert "pics/broken.png: not a picture" in errors["broken.png"]
    assert asked(teacher_server)[bad] == 2 and asked(teacher_server)[b"no picture"] == 0
    teacher_server.reply = right
    assert label(teacher_server) == 0
    assert [row["image"] for row in jsonl(folder / "out.jsonl.errors.jsonl")] == ["broken.png"]
    assert len(jsonl(folder / "out.jsonl")) == COUNT
    (folder / "pics/broken.png").unlink()
    assert label(teacher_server) == 0
    assert not (folder / "out.jsonl.errors.jsonl").exists()


@pytest.mark.parametrize("status", [403, 404])
def test_label_resumes_after_pictures_that_are_refused_first(
    teacher_server: Any, folder: Path, jsonl: Jsonl, capfd: Capture, status: int
) -> None:
    refused = [(folder / f"pics/{name}.png").read_bytes() for name in ("02", "03", "11")]

    def reply(request: Any) -> Any:
        return Reply({"error": "moderated"}, status) if request.image in refused else right(request)

    teacher_server.reply, errors = reply, folder / "out.jsonl.errors.jsonl"
    for count in (1, 2):  # nothing was answered yet, so that the key or the model may be wrong
        assert label(teacher_server, "--requests=1") == 1 and len(teacher_server.log) == count
        assert [row["image"] for row in jsonl(errors)] == ["02.png", "03.png"][:count]
    for _ in range(2):  # the second time only those are left that were refused
        assert label(teacher_server, "--requests=1") == 0
        assert len(jsonl(folder / "out.jsonl")) == COUNT - 3
        assert {row["image"] for row in jsonl(errors)} == {"02.png", "03.png", "11.png"}
        assert len(jsonl(errors)) == 3
    assert len(teacher_server.log) == 2 + COUNT + 3
    assert f"02.png: {teacher_server.url}/chat/completions answered {status}" in capfd.readouterr().out


def test_label_still_asks_last_about_what_failed_if_a_run_ends_early(
    teacher_server: Any, folder: Path, jsonl: Jsonl
) -> None:
    bad = (folder / "pics/02.png").read_bytes()
    teacher_server.reply = lambda request: Reply({}, 413) if request.image == bad else Reply({}, 402)
    assert label(teacher_server, "--requests=1") == 1  # no credit for the second picture
    teacher_server.reply = lambda request: Reply({}, 402)
    assert label(teacher_server, "--requests=1") == 1
    assert [row["image"] for row in jsonl(folder / "out.jsonl.errors.jsonl")] == ["02.png"]
    teacher_server.reply = right
    assert label(teacher_server, "--requests=1") == 0 and teacher_server.log[-1].image == bad
    assert not (folder / "out.jsonl.errors.jsonl").exists()


def test_label_fails_if_no_picture_has_a_caption(teacher_server: Any, folder: Path) -> None:
    teacher_server.reply = lambda request: Reply({"error": "too large"}, 413)
    assert label(teacher_server) == 1


@pytest.mark.parametrize("requests", [1, 4])
def test_label_ends_if_too_many_pictures_fail_in_a_row(
    teacher_server: Any, folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    monkeypatch.setattr("myllm.apps.label.MAX_FAILURES_IN_ROW", 3)
    for number in range(5):  # which are not the server's fault
        (folder / f"pics/0-{number}.png").write_bytes(b"no picture")
    teacher_server.reply = lambda request: Reply({"error": "cannot read pictures"}, 400)
    assert label(teacher_server, f"--requests={requests}") == 1
    message = capfd.readouterr().err
    assert "3 pictures in a row failed, the last because" in message and "'cannot read pictures'" in message
    assert "Resume with: myllm label pics" in message and len(teacher_server.log) <= 2 + requests


@pytest.mark.parametrize(("status", "fix"), [(401, "check the key"), (403, "--key-variable"), (404, "check --model")])
def test_label_ends_at_once_for_a_wrong_key_or_model_and_never_prints_the_key(
    teacher_server: Any, folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, status: int, fix: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    teacher_server.reply = lambda request: Reply({"error": {"message": f"no {KEY}"}}, status)
    assert label(teacher_server, "--requests=1") == 1
    output = capfd.readouterr()
    assert f"{teacher_server.url}/chat/completions answered {status}" in output.err and fix in output.err
    assert "'no ***'" in output.err and KEY not in output.err + output.out
    assert len(teacher_server.log) == 1 and not (folder / "out.jsonl").exists()
    assert teacher_server.log[0].headers["Authorization"] == f"Bearer {KEY}"


def test_label_reads_the_key_from_the_named_variable_and_writes_it_nowhere(
    teacher_server: Any, folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert label(teacher_server, "--key-variable=MY_KEY") == 2
    assert "--key-variable MY_KEY: this variable is not set" in capfd.readouterr().err
    monkeypatch.setenv("MY_KEY", KEY)
    bad = (folder / "pics/05.png").read_bytes()
    teacher_server.reply = lambda request: Reply({"error": KEY}, 400) if request.image == bad else right(request)
    assert label(teacher_server, "--key-variable=MY_KEY") == 0
    assert {request.headers["Authorization"] for request in teacher_server.log} == {f"Bearer {KEY}"}
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert KEY.encode() not in written and KEY not in "".join(capfd.readouterr())


def test_label_of_ollama_takes_its_only_model(teacher_server: Any, folder: Path, jsonl: Jsonl) -> None:
    teacher_server.has_ollama, teacher_server.models = True, ["llava:7b"]
    assert main(["label", "pics", "--teacher", teacher_server.root, "--n=2", "--out=out.jsonl", "--quiet"]) == 0
    rows = jsonl(folder / "out.jsonl")
    assert all(len(row["alternatives"]) == 1 and row["teacher"]["model"] == "llava:7b" for row in rows)
    assert len(teacher_server.log) == 2 * COUNT


def test_label_prints_what_it_used_and_warns_of_long_answers(
    teacher_server: Any, folder: Path, capfd: Capture
) -> None:
    teacher_server.reply = lambda request: openai("A dog. It is brown." if request.number == 1 else "A dog")
    assert main([*command(teacher_server), "--json"]) == 0
    output = capfd.readouterr()
    assert json.loads(output.out) == {
        "labelled": 12, "answered": 12, "failed": 0, "captions": 12, "long": 1, "requests": 12, "tokens_in": 1200,
        "tokens_out": 120,
    }
    assert "12 pictures labelled with 12 captions; 12 requests, 1,200 tokens in, 120 out" in output.err
    assert "captions of 1 picture have several sentences" in output.err and "--prompt" in output.err
    assert main([*command(teacher_server), "--json"]) == 0  # nothing is left to ask
    assert json.loads(capfd.readouterr().out) == {
        "labelled": 12, "answered": 0, "failed": 0, "captions": 0, "long": 0, "requests": 0, "tokens_in": 0,
        "tokens_out": 0,
    }


def test_label_refuses_two_pictures_of_one_name(teacher_server: Any, folder: Path, capfd: Capture) -> None:
    assert label(teacher_server) == 0
    (folder / "other").mkdir()
    Image.new("RGB", (3, 3)).save(folder / "other/05.png")
    words = command(teacher_server)
    words[1] = "other"
    assert main(words) == 2
    assert "pics/05.png and other/05.png would both be called 05.png" in capfd.readouterr().err


def test_label_reports_a_full_disk_and_loses_nothing(teacher_server: Any, folder: Path, jsonl: Jsonl) -> None:
    environment = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT / 'src'}"}
    process = subprocess.run(
        [sys.executable, "-m", "myllm", *command(teacher_server, "--requests=1")],
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert process.returncode == 1
    assert "cannot write out.jsonl: File too large; the previous content is kept" in process.stderr
    assert "Resume with: myllm label" in process.stderr
    written = {row["image"] for row in jsonl(folder / "out.jsonl")}
    assert 1 <= len(written) < COUNT
    before = len(teacher_server.log)
    assert label(teacher_server) == 0
    assert len(teacher_server.log) == before + COUNT - len(written)


@pytest.mark.slow
def test_label_captions_train_a_student_that_is_compared_with_the_teacher(
    teacher_server: Any, tiny_picture_folder: Path, tmp_path: Path, tiny: list[str], capfd: Capture
) -> None:
    out, student = tmp_path / "captions.jsonl", tmp_path / "student"
    pictures = tiny_picture_folder / "flickr30k_images"
    words = ["label", str(pictures), "--teacher", teacher_server.url, "--n=3", "--out", str(out), "--quiet"]
    teacher_server.reply = lambda request: openai("A red cube.", "a cube on grass", "one cube")
    assert main(words) == 0
    assert main(["train", "--data", str(out), "--out", str(student), *tiny, "--epochs=1", "--quiet"]) == 0
    capfd.readouterr()
    judged = tmp_path / "judged"
    options = ["--devices=cpu", "--json", "--out", str(judged), "--metrics=BLEU-4,CIDEr-D"]
    assert main(["evaluate", "--model", str(student), "--data", str(out), *options]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["protocol"]["references"] == 3 * figures["protocol"]["pictures"]
    # the pictures that were not trained on, which are those of the people's captions, too
    names = {json.loads(line)["image"] for line in (judged / "captions.jsonl").read_text().splitlines()}
    assert main(["evaluate", "--model", str(student), "--data", str(tiny_picture_folder), *options, "--overwrite"]) == 0
    assert {json.loads(line)["image"] for line in (judged / "captions.jsonl").read_text().splitlines()} == names


def test_label_in_threads_of_another_program_needs_no_signals(teacher_server: Any, folder: Path) -> None:
    codes = list[int]()
    thread = threading.Thread(target=lambda: codes.append(label(teacher_server)))
    thread.start()
    thread.join()
    assert codes == [0]
