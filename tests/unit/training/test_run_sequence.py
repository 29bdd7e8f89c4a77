import pytest

from myllm.errors import ConfigError
from myllm.training.run_sequence import run_sequence, with_saved_options
from myllm.training_config import TrainConfig

TWO = ({"epochs": 3, "vision": {"frozen": True}}, {"self_critical": {"samples": 4}, "lr": 1e-5})


def test_a_run_without_next_runs_is_itself() -> None:
    config = TrainConfig(out="run", base="other.pt", epochs=4)
    assert run_sequence(config) == [config]


def test_each_run_starts_from_the_captioner_of_the_one_before_and_changes_only_its_options() -> None:
    first, second, third = run_sequence(TrainConfig(out="run", epochs=7, lr=1e-3, next_runs=TWO))
    assert [run.out for run in (first, second, third)] == ["run/run1", "run/run2", "run"]
    assert [run.base for run in (first, second, third)] == [None, "run/run1/captioner.pt", "run/run2/captioner.pt"]
    assert [run.epochs for run in (first, second, third)] == [7, 3, 7]
    assert [run.vision.frozen for run in (first, second, third)] == [False, True, False]
    assert (second.lr, third.lr, third.self_critical.samples) == (1e-3, 1e-5, 4)
    assert not any(run.next_runs for run in (first, second, third))


def test_given_options_hold_for_all_runs() -> None:
    runs = run_sequence(TrainConfig(out="run", epochs=1, lr=1e-3, next_runs=TWO), {"epochs", "out"})
    assert [run.epochs for run in runs] == [1, 1, 1] and runs[2].lr == 1e-5


@pytest.mark.parametrize(("options", "message"), [
    ({"epoch": 3}, "next_runs has epoch, which cannot be an option of it; did you mean epochs"),
    ({"out": "elsewhere"}, "next_runs has out, which cannot be"),
    ({"vision": {"fast": 1}}, "next_runs has vision.fast, which cannot be"),
    ({"epochs": "many"}, "run 2 of 2: epochs is 'many'; expected a whole number"),
    ({"self_critical": {"samples": 1}}, "run 2 of 2: self_critical.samples is 1"),
])
def test_an_option_of_next_runs_that_is_wrong_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_sequence(TrainConfig(next_runs=(options,)))


def test_only_the_last_run_can_have_adapters() -> None:
    adapters = {"lora": {"rank": 4}}
    assert run_sequence(TrainConfig(next_runs=({}, adapters)))[-1].lora.rank == 4
    with pytest.raises(ConfigError, match="lora.rank in a run with next_runs: .*only the last run can have it"):
        run_sequence(TrainConfig(next_runs=(adapters, {"lora": {"rank": 0}})))


def test_a_resumed_sequence_has_its_saved_options_and_those_given_now() -> None:
    saved = {"epochs": 5, "lr": 1e-3, "next_runs": [{"epochs": 2}], "text": {"n_layer": 3}}
    config = with_saved_options(TrainConfig(out="new", lr=0.5, epochs=9), saved, {"epochs", "out", "resume"})
    assert (config.epochs, config.lr, config.out, config.text.n_layer) == (9, 1e-3, "new", 3)
    assert config.next_runs == ({"epochs": 2},)
