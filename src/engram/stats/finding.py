"""`statistics`: from the cache, else counted now; and which of the counts that are kept serve somebody who asks."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram.errors import SettingError
from engram.given import require_lm
from engram.progress import AnyProgress, progress_for
from engram.stats.cache import ALGORITHM, Kept, default_folder, file_for, kept_counts, remember_model, write
from engram.stats.corpus import Corpus, open_corpus, own_corpus
from engram.stats.counting import Checkpoint, Counting, collect
from engram.stats.covariance import KeyStatistics, LayerMoment

if TYPE_CHECKING:
    from engram.models import LM


def statistics(
    lm: "LM",
    layers: int | Sequence[int],
    corpus: Corpus | str | Path | Iterable[str] | None = None,
    *,
    cache: str | Path | None = None,
    save_every: float = 60.0,
    progress: AnyProgress | None = None,
    **counting: Any,
) -> KeyStatistics:
    """Return the key second moments of some layers over a corpus: from the cache, else counted now.

    A count in the cache serves if it is over the same text and at least as good as what is asked: `tokens=N` asks for
    exactly N tokens, otherwise more tokens or a smaller change are as good. A run that is interrupted goes on where it
    was when it is called again with the same arguments.

    Args:
        lm: the model.
        layers: one or more layers; those that are not in the cache are counted in one pass.
        corpus: see `open_corpus`; the model's own text, which `mini` has, when not given.
        cache: folder of the cache; $ENGRAM_CACHE or the user's cache folder when not given.
        save_every: seconds between checkpoints of an unfinished run.
        progress: told about tokens counted, and an estimate of how many there will be; the log when not given.
        **counting: see `Counting`.

    Raises:
        SettingError: a layer out of range, a setting that is not allowed, or no text.
        DataError: a corpus without text, or a broken file.
        NumericalError: a key is NaN or infinite.
    """
    require_lm(lm)
    wanted = [layers] if isinstance(layers, int) else sorted(set(layers))
    for layer in wanted:
        if not 0 <= layer < lm.n_layers:
            raise SettingError(
                f"layer={layer}, but {lm.name} has {lm.n_layers} layers, counted 0 to {lm.n_layers - 1}."
            )
    how = counting_of(**counting)
    source = text_for(lm) if corpus is None else open_corpus(corpus)
    folder = default_folder() if cache is None else Path(cache)
    found: dict[int, LayerMoment] = {}
    for layer in wanted:
        stored = _best(lm, layer, folder, lambda kept: _serves(kept, lm, how, source.digest, exactly=True))
        if stored is not None:
            found[layer] = stored[0]
    missing = [layer for layer in wanted if layer not in found]
    if missing:
        key = _key(lm, how, source, missing)
        checkpoint = Checkpoint(file_for(folder, "unfinished", key), key, save_every)
        new = collect(lm, missing, source, how, checkpoint=checkpoint, progress=progress_for(progress))
        for layer, moment in new.items():
            key = _key(lm, how, source, [layer])
            facts = {"tokens": moment.tokens, "change": moment.change, "whole": moment.whole, "corpus": source.name}
            write(file_for(folder, f"layer-{layer}", key), key, {"moment": moment.moment}, facts)
        remember_model(folder, lm)
        with suppress(OSError):
            checkpoint.path.unlink(missing_ok=True)
        found.update(new)
    return KeyStatistics(found, lm.fingerprint, f"{source.name} ({source.digest})")


def kept_statistics(
    lm: "LM",
    layers: int | Sequence[int],
    corpus: Corpus | None = None,
    *,
    cache: str | Path | None = None,
    **counting: Any,
) -> KeyStatistics:
    """Return for each layer the best count in the cache that is at least as good as what is asked, where there is one.

    Args:
        lm: the model.
        layers: one or more layers; those of which the cache has no such count are left out.
        corpus: over this text; over any when not given.
        cache: folder of the cache.
        **counting: see `Counting`; here `tokens=N` asks for N tokens or more. A count of exactly N is taken before
            the largest one, so that what was done with it can be done again.
    """
    how = counting_of(**counting)
    folder = default_folder() if cache is None else Path(cache)
    digest = None if corpus is None else corpus.digest
    found: dict[int, LayerMoment] = {}
    names: list[str] = []
    for layer in [layers] if isinstance(layers, int) else layers:
        stored = _best(lm, layer, folder, lambda kept: _serves(kept, lm, how, digest, exactly=False), first=how.tokens)
        if stored is not None:
            found[layer] = stored[0]
            names.append(stored[1].corpus)
    return KeyStatistics(found, lm.fingerprint, ", ".join(dict.fromkeys(names)))


def counting_of(**counting: Any) -> Counting:
    """Return how to count.

    Raises:
        SettingError: an unknown setting, or a value that is not allowed.
    """
    try:
        return Counting(**counting)
    except TypeError as error:
        raise SettingError(f"Statistics have no such setting: {error}.") from error


def text_for(lm: "LM") -> Corpus:
    """Return the text that comes with a model.

    Raises:
        SettingError: it has none; the message says what to give.
    """
    own = own_corpus(lm)
    if own is None:
        raise SettingError(need_text(lm.name))
    return own


def need_text(model: str, layers: Sequence[int] = ()) -> str:
    """Return what to say where a model's key statistics are missing, and there is no text to count them on."""
    of = f" of layer {', '.join(map(str, layers))}" if layers else ""
    return (
        f"Editing {model} needs key statistics{of}, and these need text: none was given, and the cache has none of "
        f"this model. Give a corpus (--corpus FILE, in Python corpus=...): a .txt, .csv or .jsonl file, or "
        f"'hf:Salesforce/wikitext:wikitext-103-raw-v1' for a Hugging Face dataset. Or give statistics that "
        f"`engram stats --out FOLDER` wrote (--statistics FOLDER, in Python covariance=...)."
    )


def _best(
    lm: "LM", layer: int, folder: Path, serves: Callable[[Kept], bool], *, first: int | None = None
) -> tuple[LayerMoment, Kept] | None:
    """Return the largest count that serves and can be read; one of exactly `first` tokens comes before all others."""
    some = [kept for kept in kept_counts(folder, lm.fingerprint, layer) if serves(kept)]
    for kept in sorted(some, key=lambda kept: (kept.tokens == first, kept.tokens), reverse=True):
        moment = kept.moment(lm.d_mlp)
        if moment is not None:
            return LayerMoment(moment, kept.tokens, kept.change, kept.whole), kept
    return None


def _serves(kept: Kept, lm: "LM", how: Counting, digest: str | None, *, exactly: bool) -> bool:
    """Say whether a count is of the right kind, and at least as good as what is asked."""
    key = kept.key
    if key["dtype"] != str(lm.dtype) or key["window"] != how.window or (digest and key["corpus"] != digest):
        return False
    if key["precision"] not in (how.precision, "float64"):
        return False
    if how.tokens is not None:
        if exactly:
            return (key["tokens"], key["seed"], key["precision"]) == (how.tokens, how.seed, how.precision)
        return kept.tokens >= how.tokens or kept.whole
    if kept.whole or how.tolerance is None:
        return kept.whole
    most = how.most(lm.d_mlp)
    return (kept.change is not None and kept.change < how.tolerance) or (most is not None and kept.tokens >= most)


def _key(lm: "LM", how: Counting, corpus: Corpus, layers: Sequence[int]) -> dict[str, Any]:
    return {
        "algorithm": ALGORITHM,
        "fingerprint": lm.fingerprint,
        "layers": list(layers),
        "corpus": corpus.digest,
        "tokens": how.tokens,
        "per_dimension": None if how.tokens is not None or how.tolerance is None else how.per_dimension,
        "tolerance": None if how.tokens is not None else how.tolerance,
        "precision": how.precision,
        "window": how.window,
        "seed": how.seed,
        "dtype": str(lm.dtype),
    }
