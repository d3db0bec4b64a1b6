"""Key statistics: equal to the published numbers, resumable, cached by everything they depend on, stopped in time."""

from pathlib import Path
from typing import Any

import pytest
import tolerance
import torch
from families import FAMILIES, golden_tokenizer, tiny, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import engram
import engram.stats.counting as counting_module
import engram.stats.finding as finding_module
from edits import DATA, golden_json, golden_lm, golden_statistics
from engram.errors import DataError, EditMismatch, NumericalError, SettingError
from engram.models import LM
from engram.models.hooks import Site, record
from engram.stats import KeyStatistics, statistics
from engram.stats.covariance import RunningMoment, factorised

TEXTS = [f"Ann lives in Rome and Bo plays {word} today." for word in ("chess", "the harp", "a long old song", "it")] * 6


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def rounding(lm: LM, layer: int) -> float:
    """The relative bound of a second moment: that of keys, twice (a product of two)."""
    return 2 * tolerance.of_pass(lm, layer + 1)


def test_equal_to_the_published_second_moments_in_rows_and_diagonal() -> None:
    wanted = load_file(DATA / "golden_covariance_rows.safetensors")
    for layer in (2, 3):
        moment = golden_statistics()[layer].moment
        assert moment.dtype == torch.float64
        assert close(moment[::80], wanted[f"layer_{layer}"]) < rounding(golden_lm(), layer)
        assert close(moment.diagonal(), wanted[f"layer_{layer}_diagonal"]) < rounding(golden_lm(), layer)
    assert golden_statistics()[2].tokens == 44_049


def test_equal_to_all_published_second_moments(golden: Path) -> None:
    wanted = load_file(golden / "covariance.safetensors")
    for layer in (2, 3):
        assert close(golden_statistics()[layer].moment, wanted[f"layer_{layer}"]) < rounding(golden_lm(), layer)


def plain_moment(lm: LM, layer: int, texts: list[str]) -> torch.Tensor:
    total, count = torch.zeros(lm.d_mlp, lm.d_mlp, dtype=torch.float64), 0
    for text in texts:
        with torch.no_grad(), record(lm, [Site("key", layer)]) as seen:
            lm.forward(lm.encode(text).ids)
        keys = seen[Site("key", layer)][0].double()
        total += keys.T @ keys
        count += len(keys)
    return total / count


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_padding_and_batches_change_nothing(family: str, tmp_path: Path) -> None:
    lm = tiny(family)
    found = statistics(lm, [1, 2], TEXTS, cache=tmp_path, tolerance=None)
    for layer in (1, 2):
        assert close(found[layer].moment, plain_moment(lm, layer, TEXTS)) < rounding(lm, layer)


@given(n=st.integers(1, 40), size=st.integers(1, 30), parts=st.integers(1, 4))
def test_panels_add_up_to_the_whole_matrix(n: int, size: int, parts: int) -> None:
    keys = torch.randn(n, size, generator=torch.Generator().manual_seed(n * size))
    running = RunningMoment(size, precision="float64", device=torch.device("cpu"))
    for part in keys.tensor_split(parts):
        running.add(part)
    assert torch.allclose(running.mean(), keys.double().T @ keys.double() / n, atol=1e-12)
    assert torch.equal(running.mean(), running.mean().T)


def test_half_precision_models_are_summed_up_in_full(tmp_path: Path) -> None:
    half = engram.load(DATA / "golden_model", device="cpu", dtype="bfloat16")
    found = statistics(half, 2, golden_json("texts")[:300], cache=tmp_path, tolerance=None)
    assert found[2].moment.dtype == torch.float32
    wanted = statistics(golden_lm(), 2, golden_json("texts")[:300], cache=tmp_path, tolerance=None)
    assert 0 < close(found[2].moment, wanted[2].moment) < 0.02


def test_a_fixed_count_is_exact_and_only_so_much_is_read(tmp_path: Path) -> None:
    found = statistics(golden_lm(), 2, golden_json("texts"), cache=tmp_path, tokens=1_234)
    assert found[2].tokens == 1_234 and found[2].change is None


def test_counting_stops_when_directions_no_longer_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting_module, "CHUNK", 1_024)
    lm, texts = golden_lm(), golden_json("texts")
    loose = statistics(lm, 2, texts, cache=tmp_path, tolerance=0.2)[2]
    tight = statistics(lm, 2, texts, cache=tmp_path, tolerance=1e-9, per_dimension=None)[2]
    assert loose.tokens < tight.tokens == 44_049
    assert loose.change is not None and loose.change < 0.2
    # The measured change is an honest estimate of the error that is left.
    with torch.no_grad(), record(lm, [Site("key", 2)]) as seen:
        lm.forward(lm.encode(texts[5]).ids)
    cosine = torch.nn.functional.cosine_similarity(
        *(_solved(m.moment, seen[Site("key", 2)][0].double()) for m in (loose, tight))
    )
    assert float((1 - cosine).mean()) < 0.4


def _solved(moment: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(moment.double(), keys.T).T


class Killed(KeyboardInterrupt):
    """Stands for a kill in the middle."""


def test_a_killed_run_goes_on_where_it_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting_module, "CHUNK", 2_000)
    lm, texts = golden_lm(), golden_json("texts")[:1000]
    counted: list[int] = []

    def kill(_: str, done: int, total: int) -> None:
        assert 0 < done <= total
        counted.append(done)
        if len(counted) == 3:
            raise Killed

    options: dict[str, Any] = {"tolerance": None, "precision": "float64"}
    with pytest.raises(Killed):
        statistics(lm, [2, 3], texts, cache=tmp_path, progress=kill, **options)
    again: list[int] = []
    found = statistics(lm, [2, 3], texts, cache=tmp_path, progress=lambda _, done, __: again.append(done), **options)
    assert again[0] >= counted[-1]
    whole = statistics(lm, [2, 3], texts, cache=tmp_path / "other", **options)
    assert found[2].tokens == whole[2].tokens and close(found[3].moment, whole[3].moment) < rounding(lm, 3)
    assert not list(tmp_path.rglob("unfinished*"))


@pytest.mark.parametrize("halfway", [False, True], ids=["between batches", "between the layers of a batch"])
def test_ctrl_c_within_a_chunk_counts_nothing_twice(
    halfway: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting_module, "CHUNK", 3_000)
    monkeypatch.setattr(counting_module, "BATCH", 400)
    lm, texts = golden_lm(), golden_json("texts")[:600]
    options: dict[str, Any] = {"tolerance": None, "precision": "float64"}
    add, added = RunningMoment.add, [0]

    def interrupted(self: RunningMoment, keys: torch.Tensor) -> None:
        added[0] += 1
        if added[0] == 2 * 13 + 2:  # the second layer of the fourteenth batch
            raise KeyboardInterrupt
        add(self, keys)

    def kill(_: str, done: int, __: int) -> None:
        if done > 4_000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if halfway:
            patched.setattr(RunningMoment, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            statistics(lm, [2, 3], texts, cache=tmp_path, progress=None if halfway else kill, save_every=0.0, **options)
    again: list[int] = []
    found = statistics(lm, [2, 3], texts, cache=tmp_path, progress=lambda _, done, __: again.append(done), **options)
    whole = statistics(lm, [2, 3], texts, cache=tmp_path / "other", **options)
    assert again[1] > 3_000  # after what was kept
    assert found[2].tokens == whole[2].tokens
    assert all(close(found[layer].moment, whole[layer].moment) < rounding(lm, layer) for layer in (2, 3))


def test_a_run_that_is_killed_without_warning_goes_on_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting_module, "CHUNK", 2_000)
    lm, texts = golden_lm(), golden_json("texts")[:600]

    def die(_: str, done: int, __: int) -> None:
        if done > 5_000:
            raise SystemError

    with pytest.raises(SystemError):
        statistics(lm, 2, texts, cache=tmp_path, save_every=0.0, tolerance=None, progress=die)
    seen: list[int] = []
    statistics(lm, 2, texts, cache=tmp_path, tolerance=None, progress=lambda _, done, __: seen.append(done))
    assert seen[1] > 5_000  # after what was kept


def test_the_cache_knows_everything_that_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LM(tiny_model("gpt2"), golden_tokenizer())
    first = statistics(lm, [1, 2], TEXTS, cache=tmp_path, tolerance=None)

    def none(*_: Any, **__: Any) -> None:
        raise AssertionError("counted again")

    with monkeypatch.context() as patched:
        patched.setattr(finding_module, "collect", none)
        again = statistics(lm, 2, TEXTS, cache=tmp_path, tolerance=None)
        assert torch.equal(again[2].moment, first[2].moment) and again[2].tokens == first[2].tokens
        other = LM(tiny_model("gpt2"), golden_tokenizer())
        other.mlp_out(0).weight.data += 1
        half = LM(tiny_model("gpt2").bfloat16(), golden_tokenizer())
        for model, layer, texts, options in (
            (lm, 3, TEXTS, {}),
            (lm, 2, TEXTS[1:], {}),
            (lm, 2, TEXTS, {"tokens": 20}),
            (lm, 2, TEXTS, {"precision": "float64"}),
            (lm, 2, TEXTS, {"window": 3}),
            (other, 2, TEXTS, {}),
            (half, 2, TEXTS, {}),
        ):
            with pytest.raises(AssertionError, match="counted again"):
                statistics(model, layer, texts, cache=tmp_path, **{"tolerance": None, **options})


def test_damaged_cache_files_are_counted_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny("gpt2")
    first = statistics(lm, 1, TEXTS, cache=tmp_path, tolerance=None)
    (path,) = tmp_path.rglob("layer-1-*.safetensors")
    for bad in (b"", path.read_bytes()[:200], b"x" * 400):
        path.write_bytes(bad)
        again = statistics(lm, 1, TEXTS, cache=tmp_path, tolerance=None)
        assert torch.equal(again[1].moment, first[1].moment)
        assert "damaged" in caplog.text


def test_a_cache_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "stats").write_text("in the way")
    assert statistics(tiny("gpt2"), 1, TEXTS, cache=tmp_path, tolerance=None)[1].tokens > 0


def test_the_environment_moves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path / "here"))
    statistics(tiny("gpt2"), 1, TEXTS, tolerance=None)
    assert list((tmp_path / "here").rglob("layer-1-*.safetensors"))


@given(n=st.integers(2, 12), rank=st.integers(1, 12))
def test_solving_inverts_and_singular_moments_get_the_smallest_ridge(n: int, rank: int) -> None:
    root = torch.randn(n, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(17 * n + rank))
    moment = root @ root.T
    factor, ridge = factorised(moment, "layer 0")
    assert (ridge > 0) == (rank < n) or torch.linalg.cond(moment) > 1e10
    scale = float(moment.diagonal().mean())
    assert torch.allclose(
        factor @ factor.T, moment + ridge * scale * torch.eye(n, dtype=torch.float64), atol=1e-9 * scale
    )


def test_what_cannot_be_solved_says_so() -> None:
    with pytest.raises(NumericalError, match="NaN"):
        factorised(torch.full((2, 2), float("nan")), "layer 3")
    with pytest.raises(NumericalError, match="singular"):
        factorised(torch.zeros(3, 3), "layer 3")


def test_statistics_of_another_model_or_layer_are_refused() -> None:
    lm = tiny("gpt2")
    given_ = KeyStatistics.of(lm, {1: torch.eye(lm.d_mlp)})
    with pytest.raises(EditMismatch, match="another model"):
        given_.require_fit(tiny("llama"))
    with pytest.raises(SettingError, match="layers \\[1\\]"):
        given_.solve(2, torch.ones(1, lm.d_mlp))
    with pytest.raises(SettingError, match="shape"):
        KeyStatistics.of(lm, {1: torch.eye(3)})


@pytest.mark.parametrize(
    ("layers", "texts", "options", "error"),
    [
        (9, TEXTS, {}, SettingError),
        ([1, -1], TEXTS, {}, SettingError),
        (1, [], {}, DataError),
        (1, TEXTS, {"tokens": 0}, SettingError),
        (1, TEXTS, {"tolerance": -1.0}, SettingError),
        (1, TEXTS, {"precision": "float16"}, SettingError),
        (1, TEXTS, {"tokns": 3}, SettingError),
        (1, "corpus.pdf", {}, SettingError),
        (1, "nowhere.txt", {}, DataError),
    ],
)
def test_bad_input_is_refused(layers: Any, texts: Any, options: dict[str, Any], error: type, tmp_path: Path) -> None:
    with pytest.raises(error):
        statistics(tiny("gpt2"), layers, texts, cache=tmp_path, **options)
