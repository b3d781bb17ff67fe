"""Read a .beton file with FFCV's own loader and Rebar's decoders, which decode only the crop.

    python examples/ffcv_loader.py train.beton

FFCV must be installed: scripts/setup.sh does it.
"""

import argparse
import time
from collections.abc import Sequence

from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

from rebar.loading.ffcv.operations import RandomResizedCrop


def main(argv: Sequence[str] | None = None) -> None:
    """Iterate over one epoch, and print the number of images and the speed."""
    parser = argparse.ArgumentParser(description="Read a .beton file with FFCV's loader and Rebar's decoders.")
    parser.add_argument("path", help="a .beton file")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)

    decoder = RandomResizedCrop((args.resolution, args.resolution), flip_prob=0.5, seed=0)
    loader = Loader(
        args.path,
        batch_size=args.batch_size,
        num_workers=args.workers,
        order=OrderOption.RANDOM,
        seed=0,
        drop_last=False,
        pipelines={"image": [decoder, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    start, num_images = time.perf_counter(), 0
    for images, labels in loader:
        assert len(images) == len(labels)
        num_images += len(images)
    seconds = time.perf_counter() - start
    print(f"{num_images} images of {tuple(images.shape[1:])} in {seconds:.1f} s, compilation included", flush=True)


if __name__ == "__main__":
    main()
