"""Sentence embeddings by ONNX Runtime on the CPU (extra `text`).

A model gives a state for every token; the vector of a text is their mean, or the state of the
first token, and usually brought to unit length, as Sentence-BERT does (Reimers & Gurevych, 2019).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from annheal.errors import FailedPrecondition
from annheal.model.records import Float32Matrix
from annheal.model.texts.spec import Pooling

BATCH_TEXTS: Final = 32
TOKENS_MAX_DEFAULT: Final = 512
MODEL_FILE: Final = "model.onnx"
TOKENIZER_FILE: Final = "tokenizer.json"

_STATES = "last_hidden_state"
_INSTALL = "pip install 'annheal[text]'"
_PAD_TO_MULTIPLE = 8
_FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")
_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


class OnnxModel:
    """A loaded model. `embed` may be called from several threads; it uses the CPU's cores.

    Args:
        session: an `onnxruntime.InferenceSession`.
        tokenizer: a `tokenizers` tokenizer that cuts off and pads.
        pooling: how the states of tokens become one vector.
        normalize: whether vectors are brought to unit length.
    """

    def __init__(self, *, session: Any, tokenizer: Any, pooling: Pooling, normalize: bool) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._normalize = normalize
        self._inputs = {item.name for item in session.get_inputs()}
        outputs = {item.name: item.shape for item in session.get_outputs()}
        self._output = _output_name(session.get_outputs())
        last = outputs[self._output][-1] if outputs[self._output] else None
        self.dimension: int | None = last if isinstance(last, int) else None
        """Floats of a vector; None where the file does not say."""

    def embed(self, texts: Sequence[str]) -> Float32Matrix:
        """Return (n, d) float32 vectors of `texts`, of which there is at least one."""
        parts: list[npt.NDArray[np.float32]] = []
        # Texts of like length together: a batch is padded to its longest.
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(texts), BATCH_TEXTS):
            parts.append(
                self._embed_batch([texts[row] for row in order[start : start + BATCH_TEXTS]])
            )
        vectors = np.concatenate(parts)
        found = np.empty_like(vectors)
        found[order] = vectors
        return found

    def _embed_batch(self, texts: list[str]) -> npt.NDArray[np.float32]:
        encodings = self._tokenizer.encode_batch(texts)
        mask = np.array([e.attention_mask for e in encodings], dtype=np.int64)
        feeds = {
            "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        (states,) = self._session.run(
            [self._output], {n: a for n, a in feeds.items() if n in self._inputs}
        )
        vectors = np.asarray(states, dtype=np.float32)
        if vectors.ndim == 3:
            vectors = self._pooled(vectors, mask)
        if self._normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return vectors.astype(np.float32, copy=False)

    def _pooled(
        self, states: npt.NDArray[np.float32], mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        if self._pooling is Pooling.CLS:
            return states[:, 0]
        weights = mask[:, :, None].astype(np.float32)
        mean: npt.NDArray[np.float32] = (states * weights).sum(axis=1) / weights.sum(axis=1)
        return mean


def _output_name(outputs: Sequence[Any]) -> str:
    """Return the output that holds the states, by its usual name or by its type.

    Some exports hand their inputs on as outputs: token ids, which are integers, before the states.
    """
    names = [item.name for item in outputs]
    if _STATES in names:
        return _STATES
    floats = [item.name for item in outputs if item.type in _FLOAT_TYPES]
    return str((floats or names)[0])


def open_session(path: Path, *, threads: int | None = None) -> Any:
    """Return a session for the model in `path`; raises `FailedPrecondition`."""
    # ONNX Runtime 1.32 reports to its maker from the moment it is imported, unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    runtime = required_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.log_severity_level = 3
    # Threads that wait sleep: the cores belong to searches, too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except tuple(_errors_of(runtime)) as error:
        raise _unusable(path, error) from error


def load_folder(
    folder: Path,
    *,
    pooling: Pooling,
    normalize: bool,
    tokens_max: int = 0,
    threads: int | None = None,
) -> OnnxModel:
    """Load `model.onnx` and `tokenizer.json` of a folder; a second, or a few.

    Without `tokens_max` a text is cut off where the tokenizer's file says, or at 512 tokens.
    Raises `FailedPrecondition` when the extra is not installed or a file cannot be used.
    """
    tokenizers = required_module("tokenizers")
    for name in (MODEL_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise FailedPrecondition(
                f"there is no file {folder / name}; a folder of an embedding model holds"
                f" {MODEL_FILE} and {TOKENIZER_FILE}",
                reason="EMBEDDER_MODEL_UNUSABLE",
            )
    session = open_session(folder / MODEL_FILE, threads=threads)
    path = folder / TOKENIZER_FILE
    tokenizer = _parsed(tokenizers.Tokenizer.from_file, path)
    given = (tokenizer.truncation or {}).get("max_length", TOKENS_MAX_DEFAULT)
    tokenizer.enable_truncation(tokens_max or given)
    tokenizer.enable_padding(**_padding(tokenizer))
    return OnnxModel(session=session, tokenizer=tokenizer, pooling=pooling, normalize=normalize)


def required_module(name: str) -> Any:
    """Import a module of the extra `text`; raises `FailedPrecondition` that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise not_installed(name) from error


def not_installed(package: str) -> FailedPrecondition:
    """Return the error for a package of the extra that is not there."""
    return FailedPrecondition(
        f"embedding text needs {package}, which is not installed: {_INSTALL}",
        reason="EMBEDDER_NOT_INSTALLED",
    )


def _padding(tokenizer: Any) -> dict[str, Any]:
    known = tokenizer.padding
    if known:
        keys = ("direction", "pad_id", "pad_type_id", "pad_token")
        return {key: known[key] for key in keys} | {"pad_to_multiple_of": _PAD_TO_MULTIPLE}
    ids = {token: tokenizer.token_to_id(token) for token in _PAD_TOKENS}
    found = [(token, number) for token, number in ids.items() if number is not None]
    token, number = found[0] if found else ("[PAD]", 0)
    return {"pad_id": number, "pad_token": token, "pad_to_multiple_of": _PAD_TO_MULTIPLE}


def _parsed(read: Callable[[str], Any], path: Path) -> Any:
    try:
        return read(str(path))
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises nothing narrower for a bad file
            raise
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> FailedPrecondition:
    return FailedPrecondition(
        f"{path} cannot be used as a model: {str(error)[:300]}", reason="EMBEDDER_MODEL_UNUSABLE"
    )


def _errors_of(runtime: Any) -> list[type[Exception]]:
    """Return what ONNX Runtime raises; its errors have no base of their own."""
    state = runtime.capi.onnxruntime_pybind11_state
    return [
        found
        for name in dir(state)
        if isinstance(found := getattr(state, name), type) and issubclass(found, Exception)
    ]
