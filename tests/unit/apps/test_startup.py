import gc
import subprocess
import sys

import pytest

from myllm.apps.startup import without_garbage_collection


def test_without_garbage_collection_restores_the_collector_after_an_error() -> None:
    with pytest.raises(ImportError), without_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_without_garbage_collection_leaves_a_disabled_collector_disabled() -> None:
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(("library", "is_frozen"), [("decimal", True), ("sys", False)])
def test_without_garbage_collection_freezes_only_what_is_imported(library: str, is_frozen: bool) -> None:
    program = f"""
import gc
from myllm.apps.startup import without_garbage_collection
with without_garbage_collection():
    import {library}
print(gc.get_freeze_count() > 0)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(is_frozen)


def test_caption_starts_without_what_judges_captions() -> None:
    program = "import sys, myllm.apps.caption; sys.exit('myllm.metrics.score' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
