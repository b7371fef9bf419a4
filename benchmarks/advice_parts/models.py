"""Small models that know something: each pretrained for about a minute on other data than it is tuned on.

Each is a folder that a study takes, made once. Knows no studies.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import mse_loss

from .sources import IMAGE_SIDE, airports, handwritten, imdb_labelled, imdb_texts, seattle

VOCABULARY = 2048
TEXTS = 6_000
LABELLED = 16_000
WORDS_ROW = 48
"""Tokens of a row in pretraining."""
CONTEXT, HORIZON = 48, 4
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>"}
"""Of numbers 0 and 1."""
Batches = Iterator[dict[str, torch.Tensor]]


def make_all(folder: Path, only: Collection[str] = ()) -> dict[str, Path]:
    """Name → folder of each model; what is there is kept.

    Args:
        folder: of all of them.
        only: make these; empty means all.

    Raises:
        SystemExit: a package is not installed.
    """
    makers: dict[str, Callable[[Path], None]] = {
        "feeling": _pretrain_on_feeling,
        "place": _pretrain_on_places,
        "decoder": _pretrain_decoder,
        "encoder-decoder": _pretrain_encoder_decoder,
        "vision": _pretrain_vision,
        "patch-tst": _pretrain_patch_tst,
        "patch-mixer": _pretrain_patch_mixer,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        place = folder / name
        if not place.exists() and (not only or name in only):
            unfinished = folder / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            torch.manual_seed(0)
            make(unfinished)
            unfinished.rename(place)
    return {name: folder / name for name in makers}


def _tokenizer() -> Any:
    """A byte-level BPE of film reviews."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(imdb_texts(TEXTS), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def _token_rows(tokenizer: Any) -> torch.Tensor:
    """The reviews one after the other, cut into rows."""
    ids = [token for text in imdb_texts(TEXTS) for token in [*tokenizer(text)["input_ids"], 1]]
    whole = len(ids) // WORDS_ROW * WORDS_ROW
    return torch.tensor(ids[:whole]).reshape(-1, WORDS_ROW)


def _pretrain_decoder(place: Path) -> None:
    """Llama on film reviews."""
    tokenizer = _tokenizer()
    rows = _token_rows(tokenizer)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    batches = ({"input_ids": rows[of], "labels": rows[of]} for of in _orders(len(rows), 32))
    _pretrain(model, batches, steps=900, rate=2e-3)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _pretrain_encoder_decoder(place: Path) -> None:
    """BART on film reviews: the second half of a row from the first."""
    tokenizer = _tokenizer()
    rows = _token_rows(tokenizer)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    model = transformers.BartForConditionalGeneration(config)
    half = WORDS_ROW // 2
    batches = (
        {"input_ids": rows[of, :half], "labels": rows[of, half:].contiguous()}
        for of in _orders(len(rows), 32)
    )
    _pretrain(model, batches, steps=900, rate=2e-3)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _pretrain_on_feeling(place: Path) -> None:
    """BERT on whether a film review is good, told by its end."""
    texts, labels = zip(*imdb_labelled(LABELLED), strict=True)
    tokenizer = _tokenizer()
    _pretrain_encoder(place, tokenizer, texts, torch.tensor(labels), classes=2, steps=900)


def _pretrain_on_places(place: Path) -> None:
    """BERT on how far north airports lie."""
    texts, north = zip(*airports("latitude"), strict=True)
    tokenizer = _tokenizer()
    _pretrain_encoder(place, tokenizer, texts, torch.tensor(north), classes=1, steps=700)


def _pretrain_encoder(
    place: Path, tokenizer: Any, texts: Sequence[str], labels: torch.Tensor, *, classes: int, steps: int
) -> None:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        pad_token_id=0,
        num_labels=classes,
    )
    model = transformers.BertForSequenceClassification(config)
    tokens = [tokenizer(text)["input_ids"][-WORDS_ROW:] for text in texts]

    def batch(of: torch.Tensor) -> dict[str, torch.Tensor]:
        padded = tokenizer.pad({"input_ids": [tokens[row] for row in of]}, return_tensors="pt")
        return {
            "input_ids": padded["input_ids"],
            "attention_mask": padded["attention_mask"],
            "labels": labels[of],
        }

    _pretrain(model, map(batch, _orders(len(texts), 32)), steps=steps, rate=5e-4)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _pretrain_vision(place: Path) -> None:
    """ViT on MNIST."""
    images, digits = handwritten()
    pixels = torch.from_numpy(images)[:, None] * 2 - 1
    labels = torch.from_numpy(digits)
    config = transformers.ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=IMAGE_SIDE,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    model = transformers.ViTForImageClassification(config)
    batches = ({"pixel_values": pixels[of], "labels": labels[of]} for of in _orders(len(pixels), 50))
    _pretrain(model, batches, steps=1000, rate=1e-3)
    model.save_pretrained(place)


def _pretrain_patch_tst(place: Path) -> None:
    """PatchTST on Seattle's temperatures."""
    config = transformers.PatchTSTConfig(
        num_input_channels=1,
        context_length=CONTEXT,
        prediction_length=HORIZON,
        patch_length=4,
        patch_stride=4,
        d_model=64,
        ffn_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        loss="mse",
    )
    _pretrain_forecaster(transformers.PatchTSTForPrediction(config), place)


def _pretrain_patch_mixer(place: Path) -> None:
    """PatchTSMixer on Seattle's temperatures."""
    config = transformers.PatchTSMixerConfig(
        num_input_channels=1,
        context_length=CONTEXT,
        prediction_length=HORIZON,
        patch_length=4,
        patch_stride=4,
        d_model=48,
        num_layers=4,
        loss="mse",
    )
    _pretrain_forecaster(transformers.PatchTSMixerForPrediction(config), place)


def _pretrain_forecaster(model: Any, place: Path) -> None:
    hours = seattle()
    scaled = torch.from_numpy(((hours - hours.mean()) / hours.std()).astype(np.float32))
    windows = scaled.unfold(0, CONTEXT + HORIZON, 1)[..., None]
    batches = (
        {"past_values": windows[of, :CONTEXT], "future_values": windows[of, CONTEXT:]}
        for of in _orders(len(windows), 32)
    )
    _pretrain(model, batches, steps=1200, rate=1e-3)
    model.save_pretrained(place)


def _orders(rows: int, batch: int) -> Iterator[torch.Tensor]:
    """Row numbers of one batch after the other, for ever."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(rows, generator=generator)[: rows // batch * batch].split(batch)


def _pretrain(model: Any, batches: Batches, *, steps: int, rate: float) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for number in range(steps):
        batch = next(batches)
        output = model(**batch)
        future = batch.get("future_values")
        loss = output.loss if future is None else mse_loss(output.prediction_outputs, future)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if number % 100 == 99:
            print(f"{type(model).__name__} step {number + 1}: loss {float(loss):.4f}", flush=True)
