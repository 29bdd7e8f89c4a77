"""Compares with transformers' own training: Seq2SeqTrainer trains a VisionEncoderDecoderModel for a number of minutes.

    python benchmarks/peer_quality.py --minutes 20 --ours runs/photos-fast

Both have the features of the preset photos-fast (the picture's views in training, and of validation pictures the mirror
image, too), its tokenizer, captions and geometry of the decoder. MYLLM_CACHE is the folder that has the features of
--ours; others are computed first. Their time is not counted, nor is that of validation.

What differs: transformers draws a view for each caption, keeps the epoch with the best CIDEr-D on the validation
pictures, and ranks captions by likelihood, with 5 beams unless --beams says otherwise. The preset takes a picture's
views in turn, keeps the epoch with the lowest loss, and captions with 10 beams and retrieval.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from typing import Any

import torch
from ladder import FLICKR8K, minutes_in, print_head, print_row
from torch import Tensor

from myllm.batched import batched
from myllm.data.batches import CaptionSource
from myllm.data.tokenizer import decode_tokens
from myllm.metrics.score import score_captions
from myllm.presets import preset_config
from myllm.training.prepare import Prepared, prepare

try:
    import transformers as hf
except ImportError as error:
    print(f"skipped: needs transformers ({error})")
    raise SystemExit from None

# Batch and warm-up are those of Keras's captioner of Flickr8k (https://keras.io/examples/vision/image_captioning). Its
# rate, 1e-4, is for 30 epochs; 1e-3 is the peak for this width in "Attention Is All You Need"
# (256 ** -0.5 * 4000 ** -0.5), and nanoGPT's for small networks, as is the weight decay.
RECIPE: dict[str, Any] = {
    "warmup_steps": 1 / 15, "learning_rate": 1e-3, "weight_decay": 0.1, "label_smoothing_factor": 0.1,
}
BATCH, TIMED_STEPS = 64, 50


class StoredFeatures(hf.PreTrainedModel):  # type: ignore[misc]
    """Stands for the frozen encoder: what it is given as pixels are the features of the pictures."""

    config_class, main_input_name = hf.ViTConfig, "pixel_values"

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        return hf.modeling_outputs.BaseModelOutput(pixel_values)


class Timer(hf.TrainerCallback):  # type: ignore[misc]
    """Seconds, and seconds of processor time, of training without validation."""

    def __init__(self) -> None:
        self.seconds = self.processor_seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start, self.processor_start = monotonic(), process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += monotonic() - self.start
        self.processor_seconds += process_time() - self.processor_start
        self.on_train_begin()

    on_evaluate = on_train_begin


def new_model(prepared: Prepared, beams: int) -> Any:
    """Return a model with our geometry; dropout is GPT-2's, except in attention: that takes 14 % of the time."""
    text, width, end = prepared.model.config.text, prepared.model.encoder.width, prepared.train.end
    decoder = hf.GPT2Config(
        vocab_size=text.vocab_size, n_positions=32, n_embd=text.n_embd, n_layer=text.n_layer, n_head=text.n_head,
        attn_pdrop=0.0, add_cross_attention=True, is_decoder=True, bos_token_id=end, eos_token_id=end,
    )
    encoder = StoredFeatures(hf.ViTConfig(hidden_size=width))
    model = hf.VisionEncoderDecoderModel(encoder=encoder, decoder=hf.GPT2LMHeadModel(decoder))
    model.config.decoder_start_token_id = model.config.pad_token_id = end
    model.generation_config = hf.GenerationConfig(
        num_beams=beams, max_new_tokens=30, decoder_start_token_id=end, pad_token_id=end, eos_token_id=end
    )
    return model


def rows_of(source: CaptionSource, captions: int) -> list[dict[str, Any]]:
    """Return a row for each pair of a picture and one of its first captions."""
    return [
        {"source": source, "picture": picture, "caption": number, "input_ids": source.ids[caption]}
        for picture, record in enumerate(source.records) for number, caption in enumerate(record.captions[:captions])
    ]


def drawn_view(row: dict[str, Any]) -> tuple[int, list[int]]:
    """Return the number of a random view of a row's picture, and the tokens of the row's caption for this view."""
    source = row["source"]
    view = row["picture"] * source.views + random.randrange(source.views)
    return view, source.ids[source.view_captions(view)[row["caption"]]]


def batches_of(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return batches of captions of similar length, so that little is padding.

    The trainer shuffles them. Its own group_by_length goes from long captions to short ones, again and again.
    """
    shuffled = random.Random(0).sample(rows, len(rows))
    return list(batched(sorted(shuffled, key=lambda row: len(row["input_ids"])), BATCH))


def train(
    prepared: Prepared, max_steps: int, pictures: int, beams: int, captions_file: Path | None = None
) -> Timer:
    """Train a new model. After each epoch, write its captions to the file if they are better than those before."""
    hf.set_seed(0)
    model, timer, best = new_model(prepared, beams), Timer(), -1.0

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        rows = rows if isinstance(rows[0], dict) else rows[0]
        views, captions = zip(*map(drawn_view, rows), strict=True)
        labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids[1:]) for ids in captions], True, -100)
        (features,) = rows[0]["source"].features.rows(torch.tensor(views))
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
        return {"pixel_values": features, "labels": labels, "decoder_input_ids": decoder_input_ids}

    def judge(prediction: Any) -> dict[str, float]:
        nonlocal best
        captions = [decode_tokens(prepared.tokenizer, tokens) for tokens in prediction.predictions.tolist()]
        records = prepared.val.records[:pictures]
        cider = score_captions(captions, [record.captions for record in records], ["CIDEr-D"]).corpus["CIDEr-D"]
        if captions_file is not None and cider > best:
            best = cider
            lines = [{"image": record.name, "caption": text} for record, text in zip(records, captions, strict=True)]
            captions_file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return {"CIDEr-D": cider}

    with TemporaryDirectory() as folder:
        options = hf.Seq2SeqTrainingArguments(
            folder, max_steps=max_steps, per_device_train_batch_size=1, per_device_eval_batch_size=BATCH,
            predict_with_generate=True, save_strategy="no",
            eval_strategy="epoch" if captions_file else "no", logging_strategy="epoch", report_to=[], use_cpu=True,
            disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False, **RECIPE,
        )
        batches = batches_of(rows_of(prepared.train, captions=5))
        val_rows = rows_of(prepared.val, captions=1)[:pictures]
        hf.Seq2SeqTrainer(
            model, options, collate, batches, val_rows, compute_metrics=judge, callbacks=[timer]
        ).train()
    return timer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--ours", type=Path, help="run folder of myllm train, to compare with")
    parser.add_argument("--minutes", type=float, help="of training; if not given, those of --ours, or 20")
    parser.add_argument("--views", type=int, default=preset_config("photos-fast").views, help="default: the preset's")
    parser.add_argument("--beams", type=int, default=5, help="default: 5")
    parser.add_argument("--captions", type=Path, default=Path("peer.jsonl"), help="where its captions are written")
    parser.add_argument("--max-steps", type=int, help="for a trial, instead of --minutes")
    parser.add_argument("--pictures", type=int, default=1000, help="for a trial, caption only the first ones")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: {arguments.data} is not a folder; give the folder of Flickr8k as --data")
        return
    hf.logging.set_verbosity_error()
    prepared = prepare(preset_config("photos-fast", data=str(arguments.data), views=arguments.views))
    steps, minutes, trial = arguments.max_steps, arguments.minutes, (arguments.pictures, arguments.beams)
    if steps is None:
        minutes = minutes or (minutes_in(arguments.ours) if arguments.ours else 20.0)
        steps = round(60 * minutes * TIMED_STEPS / train(prepared, TIMED_STEPS, *trial).seconds)
    timer = train(prepared, steps, *trial, arguments.captions)
    print(f"{steps:,} steps of {timer.seconds / steps:.2f} s; processor time {timer.processor_seconds / steps:.2f} s")
    words = ["score", "--predictions", str(arguments.captions), "--references", str(arguments.data), "--split", "val"]
    words += ["--allow-missing", "--json"]
    scored = subprocess.run([sys.executable, "-m", "myllm", *words], check=True, stdout=subprocess.PIPE).stdout
    figures = json.loads(scored)
    print_head("trained by")
    print_row("transformers", timer.seconds / 60, figures)
    if arguments.ours:
        ours = json.loads((arguments.ours / "metrics.json").read_text(encoding="utf-8"))
        print_row("myllm", minutes_in(arguments.ours), ours)
        print(f"\nCIDEr-D of myllm / that of transformers: {ours['CIDEr-D'] / figures['CIDEr-D']:.2f}")


if __name__ == "__main__":
    main()
