"""Train a module of your own as rankwise recommends, with Lightning (``pip install lightning``).

    python -m examples.lightning_module RECOMMENDATION --out trained

RECOMMENDATION is the folder that ``rankwise recommend --out`` wrote. Run it from the repository's root.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

import rankwise

from .modules import tide
from .series import windows


class AdaptedForecaster(lightning.LightningModule):
    """Any module with what was recommended for it; its checkpoints hold what is trained, and nothing else."""

    def __init__(self, module: torch.nn.Module, recommendation: Path) -> None:
        super().__init__()
        self.recommendation = recommendation
        self.model = rankwise.apply(module, recommendation)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        past, future = batch
        loss: torch.Tensor = self.model(past_values=past, future_values=future)["loss"]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return rankwise.optimizer_for(self.model, self.recommendation)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The base is at hand where the training goes on: leave it out."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        states = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: states[name] for name in states if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the base's weights back, as Lightning expects to find them."""
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recommendation", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("trained"))
    given = parser.parse_args(arguments)

    module = AdaptedForecaster(tide.build(), given.recommendation)
    batches = torch.utils.data.DataLoader(list(windows(given.steps)), batch_size=None)
    trainer = lightning.Trainer(
        max_epochs=1,
        default_root_dir=given.out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)
    print(f"loss {trainer.callback_metrics['loss']:.4f} after {trainer.global_step} steps")
    given.out.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(given.out / "lightning.ckpt")  # to go on
    if hasattr(module.model, "save_pretrained"):
        module.model.save_pretrained(given.out, save_embedding_layers=False)  # to be loaded or merged
    print(f"saved to {given.out}")


if __name__ == "__main__":
    main()
