import pytest
import torch

from myllm.device import autocast, choose_device, choose_precision, default_workers
from myllm.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_choose_device_auto_is_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch, has_gpu: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("torch.cuda.device_count", lambda: int(has_gpu))
    assert choose_device("auto").type == ("cuda" if has_gpu else "cpu")
    assert choose_device("cpu").type == "cpu"


def test_choose_device_refuses_unknown_and_missing_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"devices cuda: this machine has no usable GPU; take --devices cpu or auto"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match=r"devices 'tpu': expected auto, cpu, cuda"):
        choose_device("tpu")


@pytest.mark.parametrize("is_faster", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_choose_precision_auto_on_a_cpu_is_bf16_for_a_frozen_backbone_if_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, is_faster: bool, is_frozen: bool
) -> None:
    monkeypatch.setattr("myllm.device.multiplies_faster_in_bf16", lambda: is_faster)
    assert choose_precision("auto", CPU, is_frozen) == ("bf16" if is_faster and is_frozen else "fp32")
    assert [choose_precision(name, CPU, is_frozen) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    with pytest.raises(ConfigError, match=r"precision fp16: a CPU does not train in it; take fp32 or bf16"):
        choose_precision("fp16", CPU, is_frozen)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((7, 0), "fp32"), ((9, 0), "bf16")])
def test_choose_precision_auto_takes_no_emulated_bf16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """A T4 is 7.5, a V100 7.0, an H100 9.0; torch itself decides, with its CUDA calls replaced."""
    properties = type("Properties", (), {"major": capability[0], "minor": capability[1]})
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    monkeypatch.setattr("torch.cuda._check_bf16_tensor_supported", lambda _: True)
    assert choose_precision("auto", GPU, False) == expected


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(1, None, 1), (2, None, 1), (4, None, 3), (64, None, 8), (64, "8", 7), (8, "8", 1), (2, "8", 1)],
)
def test_default_workers_are_the_cores_that_training_leaves_free(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: str | None, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes or "1")
    assert default_workers() == workers
