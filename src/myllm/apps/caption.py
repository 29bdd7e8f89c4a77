"""`myllm caption`: captions of many pictures, each once, whatever interrupts it."""

from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from threading import Thread

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.caption_output import PrintedCaptions
from myllm.apps.console import CountsDisplay, Display
from myllm.apps.heatmap_files import HeatmapFiles
from myllm.apps.opening import open_captioner
from myllm.apps.picture_search import FoundPicture, PictureSearch
from myllm.apps.printing import print_json
from myllm.apps.resuming import command_line
from myllm.apps.saved_captions import SavedCaptions
from myllm.caption import CaptionerProtocol
from myllm.device import count_cores
from myllm.errors import ConfigError, MyLLMError
from myllm.inference.bulk import BulkCaptioner
from myllm.signals import caught_signals

# Python's own part of the work keeps about so many threads busy
MAX_THREADS = 8


def caption(options: CaptionOptions) -> int:
    """Caption every picture that has no caption yet.

    The exit code is 1 if no picture has one, or with --strict if any could not be captioned.
    """
    if options.ray is not None:
        from myllm.apps.ray_data import caption_on_cluster  # imports Ray, for seconds

        return caption_on_cluster(options)
    is_saved = options.out is not None or options.form == "txt"
    display = Display(options.quiet, json=True)
    search = PictureSearch(options.paths, [] if options.from_ is None else [options.from_])
    search.check()
    threads = min(count_cores(), MAX_THREADS)
    with ExitStack() as stack:
        output = stack.enter_context((SavedCaptions if is_saved else PrintedCaptions)(options, display))
        captioner = open_captioner(
            options.model, options.devices, options.precision, options.adapter, max(1, count_cores() // MAX_THREADS)
        )
        captioner.decode = captioner.decode_options(**options.decode_changes)
        if options.heatmaps is not None:
            output.heatmaps = HeatmapFiles(Path(options.heatmaps), captioner)
            output.heatmaps.choose(search, options.overwrite or output.is_resumed)
        output.start(captioner)
        try:
            signals = _caption_all(options, search, captioner, output, display, threads)
        except MyLLMError as error:
            if not is_saved or isinstance(error, ConfigError):
                raise
            raise type(error)(f"{error}. Resume with: {command_line('caption', options)}") from error
        output.finish(is_complete=not signals)
    if skipped := search.describe_skipped():
        display.warn(skipped)
    if is_saved and options.json:
        print_json(output.counts())
    if signals:
        display.print(f"Stopped. Resume with: {command_line('caption', options)}" if is_saved else "Stopped.")
        return 128 + signals[0]
    return 1 if output.failed and (options.strict or output.failed == output.seen) else 0


def _caption_all(
    options: CaptionOptions, search: PictureSearch, captioner: CaptionerProtocol, output: PrintedCaptions,
    display: Display, threads: int,
) -> list[int]:
    """Caption the pictures that are left; return the signals that ended it early. Raises MyLLMError."""
    with CountsDisplay(display, "captioning") as bar, caught_signals(output.stop) as signals:
        Thread(target=lambda: bar.set_total(search.count(lambda: output.is_stopped)), daemon=True).start()
        bulk: BulkCaptioner[FoundPicture] = BulkCaptioner(
            captioner, options.batch_size, threads, options.seed, output.claim, lambda: output.is_stopped
        )
        batches = bulk.caption(output.left(search))
        twins = bulk.caption(output.left_twins())  # begins when the others are written
        try:
            for results in chain(batches, twins):
                output.write(results)
                bar.show(output.seen, f"{bar.rate(output.captioned):,.1f} captions/s  {output.failed:,} failed")
        finally:
            output.is_stopped = True
            batches.close()
            twins.close()
    return signals
