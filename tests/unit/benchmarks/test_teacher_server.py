import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from teacher_server import TeacherServer

from myllm.data.scenes import draw_scene
from myllm.inference.captioner import Captioner
from myllm.inference.teacher import Teacher, Unanswered
from myllm.inference.teacher_apis import Question


@pytest.fixture
def server(tiny_captioner_file: Path) -> Iterator[TeacherServer]:
    with TeacherServer(str(tiny_captioner_file), beams=3, port=0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_teacher_server_gives_the_best_beams_of_its_captioner(
    server: TeacherServer, tiny_captioner_file: Path
) -> None:
    file = io.BytesIO()
    draw_scene(0, "val", 1)[0].save(file, "PNG")
    picture, teacher = ("image/png", file.getvalue()), Teacher(f"http://127.0.0.1:{server.server_port}").connect()
    expected = Captioner.load(tiny_captioner_file).caption(file.getvalue(), beams=3)
    assert teacher.only_model() == "captioner.pt"
    texts = teacher.captions(picture, Question("captioner.pt", "?", n=3))
    # the teacher's captions are cleaned, and equal ones are one
    assert texts == list(dict.fromkeys(" ".join(text.split()) for text in [expected.text, *expected.alternatives]))
    assert teacher.usage.requests == 1 and teacher.usage.tokens_out > 0
    with pytest.raises(Unanswered, match="answered 400 Bad Request: 'DataError: the given bytes"):
        teacher.captions(("image/png", b"no picture"), Question("captioner.pt", "?"))
