"""volnet inside MONAI's SupervisedTrainer: one line, and MONAI's transforms, loss and handlers as they are.

    python examples/monai_training.py --size 64 --steps 20     # needs monai and pytorch-ignite

A BasicUNet learns bright balls in noise; printed are the losses and the seconds of each step.
"""

from __future__ import annotations

import argparse
import time

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

import volnet
from volnet.train.phantom import PhantomBatches


def train(size: int, steps: int) -> list[float]:
    """Losses, a step each."""
    torch.manual_seed(0)
    balls = iter(PhantomBatches((size,) * 3))
    scans = [{name: volume[0] for name, volume in next(balls).items()} for _ in range(4)]
    transform = Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=0.5)])
    network = BasicUNet(spatial_dims=3, out_channels=2, features=(8, 8, 16, 32, 64, 8))

    # volnet, that is `import volnet` and this line. The weights are those of the network it was made from.
    network = volnet.optimize(network)

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(scans * steps, transform), batch_size=2),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3),
        loss_function=DiceCELoss(softmax=True, to_onehot_y=True),
        epoch_length=steps,
    )
    losses: list[float] = []
    start = time.perf_counter()

    def note(engine: SupervisedTrainer) -> None:
        losses.append(engine.state.output[0]["loss"])
        print(f"step {len(losses)}: loss {losses[-1]:.4f}, {time.perf_counter() - start:.2f} s")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    return losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="edge of a volume, a multiple of 16, from 32")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(arguments)
    train(args.size, args.steps)


if __name__ == "__main__":
    main()
