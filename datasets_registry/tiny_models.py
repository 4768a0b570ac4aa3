"""Tiny text models with random weights, made on the spot: for tests of code paths only, never for numbers."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np

LAYERS, WIDTH, FFN, HEADS, KV_WIDTH = 2, 32, 64, 2, 16
POSITIONS = 128
SEED = 20250319
SPREAD = 0.2  # large enough that tokens move one another, as those of a trained model do
SPECIAL = ("<pad>", "<s>", "</s>")
VOCABULARY = len(SPECIAL) + 256
FORMULA = f"default_rng({SEED}).normal * {SPREAD} by name, norms 1, biases 0, {LAYERS} x {WIDTH}, {FFN}, {KV_WIDTH}"

Family = Literal["llama", "bert"]
FAMILIES: tuple[Family, ...] = ("llama", "bert")


def formula_digest(family: Family) -> str:
    """Return the sha256 of how the weights are made: the revision of a tiny model."""
    return hashlib.sha256(f"{family}: {FORMULA}".encode()).hexdigest()


def tiny_tokenizer(family: Family) -> Any:
    """Return a tokenizer with one token per byte: <s> before a text, and for "bert" </s> after it; pads with <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    made = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    single = "<s> $A" if family == "llama" else "<s> $A </s>"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=POSITIONS
    )


def tiny_trunk(family: Family, attention: str | None = None) -> Any:
    """Return a float32 trunk whose weights are the same on every machine; torch's own random state stays as it is."""
    import torch
    from transformers import AutoModel, BertConfig, LlamaConfig

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }
    if family == "llama":
        config = LlamaConfig(**sizes, num_key_value_heads=HEADS * KV_WIDTH // WIDTH, bos_token_id=1, eos_token_id=2)
    else:
        config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    how = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng(devices=[]):
        trunk: Any = AutoModel.from_config(config, **how)
    random = np.random.default_rng(SEED)
    with torch.no_grad():
        for name, weights in sorted(trunk.named_parameters()):
            if weights.dim() > 1:
                drawn = random.standard_normal(tuple(weights.shape)).astype(np.float32) * np.float32(SPREAD)
                weights.copy_(torch.from_numpy(drawn))
            else:
                weights.fill_(1.0 if name.endswith(".weight") else 0.0)  # the scale of a norm, or a bias
    return trunk
