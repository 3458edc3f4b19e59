"""nnU-Net on volnet: two lines beside its own.

    python examples/nnunet.py --model nnUNet_results/Dataset.../nnUNetTrainer__nnUNetPlans__3d_fullres IN OUT
    python examples/nnunet.py --size 160 192 192     # without nnU-Net: its network, random weights, its loop

The first predicts the images in folder IN with a model that nnU-Net has trained, and needs nnunetv2. The
second does what nnU-Net's predictor does with one image (windows that overlap by half, Gaussian weights,
mirrored along every axis) to the network that nnU-Net trains, and compares torch with volnet.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import volnet
from volnet.bench.networks import plain_conv_unet


def predict_folder(model_folder: str, images: str, results: str) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(
        model_folder, use_folds=None, checkpoint_name="checkpoint_final.pth"
    )

    # volnet, that is `import volnet` and this line. The weights of every fold are loaded into it in turn.
    predictor.network = volnet.optimize(predictor.network)

    predictor.predict_from_files(images, results)


def mirrored(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The mean of the network's answers to its window and to the window mirrored, as nnU-Net takes it."""
    axes = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]

    def run(window: Tensor) -> Tensor:
        total = network(window)
        for flipped in axes[1:]:
            total = total + network(window.flip(flipped)).flip(flipped)
        return total / len(axes)

    return run


def predict_image(network: nn.Module, image: Tensor, window: tuple[int, ...]) -> Tensor:
    """Which class each voxel is of."""
    logits = volnet.sliding_window(image, window, 1, mirrored(network), overlap=0.5, mode="gaussian")
    return volnet.ops.argmax(logits, 1)


def compare(size: tuple[int, ...], window: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, image = plain_conv_unet().eval(), torch.randn(1, 1, *size)
    seconds, classes = [], []
    for run in (network, volnet.optimize(network, torch.zeros(1, 1, *window))):
        start = time.perf_counter()
        classes.append(predict_image(run, image, window))
        seconds.append(time.perf_counter() - start)
    same = (classes[0] == classes[1]).double().mean()
    print(f"torch: {seconds[0]:.2f} s")
    print(f"volnet: {seconds[1]:.2f} s, {seconds[0] / seconds[1]:.1f} times as fast")
    print(f"voxels of the same class: {same:.4%}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="folder of a trained nnU-Net")
    parser.add_argument("--size", type=int, nargs=3, default=(160, 160, 160), help="of a volume of noise")
    parser.add_argument(
        "--window", type=int, nargs=3, default=(128, 128, 128), help="multiples of 32, from 64"
    )
    parser.add_argument("folders", nargs="*", help="images, results")
    args = parser.parse_args(arguments)
    if args.model:
        if len(args.folders) != 2:
            parser.error("--model needs a folder of images and one for results")
        predict_folder(args.model, *args.folders)
    else:
        with torch.inference_mode():
            compare(tuple(args.size), tuple(args.window))


if __name__ == "__main__":
    main()
