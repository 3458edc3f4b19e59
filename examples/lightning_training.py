"""volnet inside Lightning's Trainer: one line in the module.

    python examples/lightning_training.py --size 64 --steps 20     # needs monai and lightning

A BasicUNet learns bright balls in noise; the losses are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor

import volnet
from volnet.train.phantom import PhantomBatches

try:
    from lightning import LightningModule, Trainer
except ImportError:
    from pytorch_lightning import LightningModule, Trainer


class Segmentation(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        network = BasicUNet(spatial_dims=3, out_channels=2, features=(8, 8, 16, 32, 64, 8))

        # volnet, that is `import volnet` and this line. Lightning's checkpoints hold the same weights by the
        # same names with it and without.
        self.network = volnet.optimize(network)

        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss = volnet.losses.dice_ce(self.network(batch["image"]), batch["label"])
        self.losses.append(loss.item())
        print(f"step {len(self.losses)}: loss {self.losses[-1]:.4f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def train(size: int, steps: int, out: str | Path | None = None) -> Segmentation:
    torch.manual_seed(0)
    module = Segmentation()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=12.0,
    )
    trainer.fit(module, PhantomBatches((size,) * 3, batch=2))
    if out is not None:
        trainer.save_checkpoint(Path(out) / "last.ckpt", weights_only=True)
    return module


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="edge of a volume, a multiple of 16, from 32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder for a checkpoint")
    args = parser.parse_args(arguments)
    train(args.size, args.steps, args.out)


if __name__ == "__main__":
    main()
