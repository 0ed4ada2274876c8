"""Run with the peer's own Python: a CLIP of Hugging Face's making with random weights, as ``infinity-emb`` loads one.

``python infinity_model.py FOLDER ARCHITECTURE BPE``: BPE is open_clip's ``bpe_simple_vocab_16e6.txt.gz``.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

# The peer's transformers is another than the project's, whose types a checker would see.
peer: Any = transformers

VISION = {
    "ViT-B-32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
    "ViT-L-14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
}
TEXT = {
    "ViT-B-32": {"hidden_size": 512, "num_attention_heads": 8},
    "ViT-L-14": {"hidden_size": 768, "num_attention_heads": 12},
}
DIMENSION = {"ViT-B-32": 512, "ViT-L-14": 768}
# CLIP's vocabulary: 256 bytes, the same ending a word, so many merges of them, two special tokens.
MERGES = 49_152 - 256 - 2


def byte_letters() -> list[str]:
    """A printable letter for each byte, in CLIP's order (``bytes_to_unicode`` of OpenAI's GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(n) for n in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def save_tokenizer(folder: Path, bpe: Path) -> Any:
    """Writes ``vocab.json`` and ``merges.txt`` from open_clip's file."""
    merges = gzip.decompress(bpe.read_bytes()).decode().split("\n")[1 : MERGES + 1]
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return peer.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def main() -> None:
    """Writes the model."""
    folder, architecture, bpe = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    if architecture not in VISION:
        sys.exit(f"unknown architecture; known are {', '.join(VISION)}")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder, bpe)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    text = TEXT[architecture]
    config = peer.CLIPConfig(
        vision_config={
            **VISION[architecture],
            "intermediate_size": VISION[architecture]["hidden_size"] * 4,
            "image_size": 224,
        },
        text_config={**text, "num_hidden_layers": 12, "intermediate_size": text["hidden_size"] * 4, **ends},
        projection_dim=DIMENSION[architecture],
    )
    torch.manual_seed(0)
    peer.CLIPModel(config).save_pretrained(folder)
    peer.CLIPProcessor(peer.CLIPImageProcessor(), tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main()
