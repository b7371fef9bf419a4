"""Train a module of your own as rankwise recommends, in plain PyTorch.

    python -m examples.plain_pytorch RECOMMENDATION --out trained

RECOMMENDATION is the folder that ``rankwise recommend --out`` wrote. Run it from the repository's root.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

import rankwise

from .modules import tide
from .series import windows


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train and save; returns the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recommendation", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("trained"))
    given = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Quantized and frozen as recommended, with the adapter; the optimizer has only what is trained.
    model = rankwise.apply(tide.build().to(device), given.recommendation)
    optimizer = rankwise.optimizer_for(model, given.recommendation)
    model.train()
    losses = []
    for past, future in windows(given.steps):
        loss = model(past_values=past.to(device), future_values=future.to(device))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.4f} at first, {losses[-1]:.4f} after {given.steps} steps")

    if hasattr(model, "save_pretrained"):  # an adapter, by PEFT: rankwise merge makes a whole module of it
        model.save_pretrained(given.out, save_embedding_layers=False)  # nor ask the hub about them
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), given.out / "model.safetensors")
    print(f"saved to {given.out}")
    return losses


if __name__ == "__main__":
    main()
