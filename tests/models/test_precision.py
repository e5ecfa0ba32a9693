import warnings

import pytest
import torch

from hardwon.models import Embedder, Reranker, precision
from hardwon.models.precision import GAIN, bf16_gain, computed_in


@pytest.fixture
def machine(monkeypatch):
    """`machine(gain)`: one on which bfloat16 is so many times faster than float32. Gives the devices that were measured."""
    measured = []

    def made(gain):
        def measure(device):
            measured.append(device)
            return gain

        monkeypatch.setattr(precision, "bf16_gain", measure)
        return measured

    return made


@pytest.mark.parametrize(
    ("gain", "truth"), [(0.006, "fp32"), (0.9, "fp32"), (1.0, "fp32"), (GAIN, "fp32"), (1.3, "bf16"), (16.0, "bf16")]
)
def test_auto_is_bfloat16_where_that_is_faster(machine, gain, truth):
    measured = machine(gain)
    assert computed_in("auto", "cpu") == truth
    assert measured == ["cpu"]


def test_float32_is_not_measured(machine):
    measured = machine(16.0)
    assert computed_in("fp32", "cpu") == "fp32"
    assert measured == []


@pytest.mark.parametrize(("gain", "factor"), [(0.00625, 160), (0.1, 10), (0.5, 2)])
def test_bfloat16_that_is_slower_is_warned_of(machine, gain, factor):
    machine(gain)
    message = f"bfloat16 is {factor} times slower than float32 on this CPU: use precision='auto' or 'fp32'"
    with pytest.warns(UserWarning, match=message):
        assert computed_in("bf16", "cpu") == "bf16"


@pytest.mark.parametrize("gain", [0.9, 1.0, 16.0])
def test_bfloat16_that_is_about_as_fast_is_not(machine, gain):
    machine(gain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert computed_in("bf16", "cpu") == "bf16"


class TestGain:
    @pytest.fixture(autouse=True)
    def anew(self):
        """What was measured before is forgotten, and so is what is measured here."""
        bf16_gain.cache_clear()
        yield
        bf16_gain.cache_clear()

    def test_is_the_ratio_of_times_and_is_measured_once(self, monkeypatch):
        seconds, measured = {torch.float32: 0.3, torch.bfloat16: 0.1}, []

        def product(dtype, device):
            measured.append((dtype, device))
            return seconds[dtype]

        monkeypatch.setattr(precision, "_product", product)
        assert bf16_gain("cpu") == pytest.approx(3.0)
        assert bf16_gain("cpu") == pytest.approx(3.0)
        assert sorted(measured, key=str) == [(torch.bfloat16, "cpu"), (torch.float32, "cpu")]

    def test_of_this_machine_is_a_number(self):
        assert 1e-4 < bf16_gain("cpu") < 1e4

    @pytest.mark.parametrize("native", [True, False])
    def test_of_a_graphics_card_is_looked_up(self, monkeypatch, native):
        asked = []

        def supported(including_emulation):
            asked.append(including_emulation)
            return native

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert (bf16_gain("cuda") > GAIN) == native
        assert (bf16_gain("cuda") < 1 / GAIN) != native
        assert asked == [False]


@pytest.mark.parametrize(("gain", "truth"), [(0.01, "fp32"), (16.0, "bf16")])
def test_a_reranker_scores_in_the_faster_one(machine, text_model, tmp_path, gain, truth):
    machine(gain)
    Reranker.start_from(text_model).save(tmp_path / "model")
    assert Reranker.load(tmp_path / "model", device="cpu", precision="auto").body.precision == truth
    assert Reranker.load(tmp_path / "model", device="cpu").body.precision == "fp32"


def test_embedders_do_not_measure(machine, tiny_text):
    measured = machine(16.0)
    assert Embedder.load(tiny_text, device="cpu").body.precision == "fp32"
    assert measured == []


def test_what_is_computed_in_another_format_is_not_taken_for_the_same(machine, text_model, tmp_path):
    machine(16.0)
    Reranker.start_from(text_model).save(tmp_path / "model")
    plain, again, lower, auto = (
        Reranker.load(tmp_path / "model", device="cpu", precision=how).fingerprint for how in ("fp32", "fp32", "bf16", "auto")
    )
    assert plain == again != lower == auto
