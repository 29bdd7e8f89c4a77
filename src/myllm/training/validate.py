"""Validation after each epoch: loss, captions with their scores, warnings, and which epoch is the best."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

import torch

from myllm.caption import Sample
from myllm.data.batches import Batch, evaluation_batches
from myllm.device import autocast
from myllm.inference.generate import generate_captions, make_vocabulary
from myllm.inference.torch_steppers import make_search
from myllm.metrics.diversity import measure_diversity, repeating_share, unusual_endings
from myllm.metrics.score import score_captions, shuffled
from myllm.training.loss import Objective
from myllm.training.prepare import Prepared
from myllm.training.ranks import Ranks
from myllm.training_config import TrainConfig

# With fewer captions, CIDEr-D hardly ranks epochs: of one picture it is 0 by definition.
MIN_CIDER_PICTURES = 50
MIN_WARNING_PICTURES = 20
COLLAPSED_SHARE = 0.2
UNUSUAL_SHARE = 0.1


@dataclass(frozen=True)
class Validation:
    """Results of one validation."""

    loss: float
    """Nats per token over all captions of all validation pictures."""
    samples: list[Sample]
    """Captions of the first `val_images` validation pictures, with their references."""
    cider: float
    """CIDEr-D of the samples."""
    shuffled_cider: float
    """CIDEr-D of the same captions with the references of other pictures: what guessing reaches."""

    @property
    def captions(self) -> list[str]:
        return [sample.caption for sample in self.samples]

    def warnings(self) -> list[str]:
        """Return a sentence for each sign that the model repeats itself or ignores the pictures."""
        if len(self.samples) <= MIN_WARNING_PICTURES:
            return []
        diversity, messages = measure_diversity(self.captions), []
        if diversity.most_frequent_share > COLLAPSED_SHARE:
            messages.append(
                f"{diversity.most_frequent_share:.0%} of the captions are the same sentence "
                f"({diversity.most_frequent!r}): the model has collapsed, or has only begun to learn"
            )
        if self.cider < 2 * self.shuffled_cider:
            messages.append(
                f"with shuffled pictures the captions score nearly as well (CIDEr-D {self.shuffled_cider:.3f}, without "
                f"shuffling {self.cider:.3f}): the model ignores the pictures so far"
            )
        references = [reference for sample in self.samples for reference in sample.references]
        share, usual = repeating_share(self.captions), repeating_share(references)
        if share > usual + UNUSUAL_SHARE:
            messages.append(
                f"{share:.0%} of the captions repeat three words, of people's {usual:.1%}: try "
                "decode.no_repeat_ngram_size 3 or, in self-critical training, a larger self_critical.kl_weight"
            )
        endings = unusual_endings(self.captions, references)
        if sum(endings.values()) > UNUSUAL_SHARE:
            words = ", ".join(map(repr, list(endings)[:3]))
            messages.append(
                f"{sum(endings.values()):.0%} of the captions end in words that hardly any of people's ends in "
                f"({words}): they may be cut off by decode.max_new_tokens, or lost their ends in training for CIDEr-D"
            )
        return messages


class Validator:
    """Validates the model of a run on its validation pictures, which the processes of the run share."""

    def __init__(
        self, config: TrainConfig, prepared: Prepared, device: torch.device, precision: str, ranks: Ranks
    ) -> None:
        self.decode = config.decode.without_retrieval()  # the index is made after training
        self.device, self.precision, self.ranks = device, precision, ranks
        self.tokenizer, self.vocabulary = prepared.tokenizer, make_vocabulary(prepared.tokenizer)
        self.records = prepared.val.records
        self.batches = evaluation_batches(prepared.val, config.batch_size, config.workers, ranks.share)
        self.count = min(config.val_images, len(self.records))

    def __call__(self, objective: Objective, should_stop: Callable[[], object] = bool) -> Validation | None:
        """Return the results, or None if `should_stop` became true in any process before they were complete.

        The objective is in evaluation mode afterwards.
        """

        def batches() -> Iterator[Batch]:
            return takewhile(lambda _: not should_stop(), self.batches.epoch(0))

        loss_sum, tokens = sum_losses(objective, batches(), self.device)
        captioned = self.ranks.gather(self._caption(objective, batches()))
        total, count, stopped = self.ranks.sum(loss_sum, tokens, bool(should_stop()))
        samples = [sample for _, sample in sorted(captioned, key=itemgetter(0))]
        if stopped:
            return None
        captions, references = [sample.caption for sample in samples], [sample.references for sample in samples]
        cider, shuffled_cider = (
            score_captions(order, references, metrics=("CIDEr",)).corpus["CIDEr-D"]
            for order in (captions, shuffled(captions))
        )
        return Validation(total / max(1, count), samples, cider, shuffled_cider)

    @torch.inference_mode()
    def _caption(self, objective: Objective, batches: Iterable[Batch]) -> list[tuple[int, Sample]]:
        """Caption the pictures among the first `count` with the run's decoding options; return their indexes too."""
        model, samples = objective.model, list[tuple[int, Sample]]()
        for batch in batches:
            indexes = batch.index.tolist()
            if not indexes or indexes[0] >= self.count:
                break
            with autocast(self.precision, self.device):
                batch = batch.to(self.device)
                features = batch.features if batch.features is not None else model.encoder(batch.images)
                image = model.image_kv(model.image_tokens(features))
                # seeds by picture, so that sampling draws the same for a picture in each epoch
                search = make_search(model, self.vocabulary, image, self.decode, seeds=indexes)
                captions = generate_captions(search, self.tokenizer)
            for index, caption in zip(indexes, captions, strict=True):
                record = self.records[index]
                samples.append((index, Sample(record.name, record.image, caption.text, record.captions)))
        return [(index, sample) for index, sample in samples if index < self.count]


@torch.inference_mode()
def sum_losses(objective: Objective, batches: Iterable[Batch], device: torch.device) -> tuple[float, int]:
    """Return the loss of all captions in nats, summed over tokens, and the number of tokens."""
    objective.eval()
    loss_sum, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in batches:
        losses = objective(batch.to(device))
        loss_sum += losses.caption_sum
        tokens += losses.tokens
    return float(loss_sum), tokens


def best_criterion(best_by: str, pictures: int) -> str:
    """Return `best_by`, or "loss" if CIDEr-D is asked for and there are too few captioned validation pictures."""
    return "loss" if pictures < MIN_CIDER_PICTURES else best_by


def is_better(row: Mapping[str, float | str], best: Mapping[str, float | str], criterion: str) -> bool:
    """Return whether an epoch's row beats the best epoch's row so far; equal CIDEr-D is decided by the loss."""

    def quality(figures: Mapping[str, float | str]) -> tuple[float, float]:
        return float(figures["CIDEr-D"]) if criterion == "CIDEr-D" else 0.0, -float(figures["val_loss"])

    return quality(row) > quality(best)
