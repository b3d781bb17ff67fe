"""Plot the speed of the loader and its peers from benchmarks/results/loader.json.

python docs/images/loader.py
"""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAMES = {
    "rebar": "Rebar",
    "torchvision_simplejpeg": "DataLoader, simplejpeg",
    "dali_aliased": "DALI (CPU), not antialiased",
    "torchvision_cv2": "DataLoader, OpenCV",
    "ffcv": "FFCV 1.0.2",
    "webdataset": "WebDataset",
    "spdl": "SPDL",
    "dali": "DALI (CPU)",
    "streaming": "MosaicML Streaming",
    "litdata": "litdata",
    "torchvision_pil": "DataLoader, Pillow",
}
REPOSITORY = Path(__file__).resolve().parents[2]

stored = json.loads((REPOSITORY / "benchmarks/results/loader.json").read_text())
speed = {row["peer"]: row["images_per_second"] for row in stored["rows"] if row["resolution"] == 224}
peers = sorted(NAMES, key=lambda name: speed[name])

figure = Figure(figsize=(8, 3.2), layout="constrained")
FigureCanvasAgg(figure)
axes = figure.subplots()
bars = axes.barh(
    [NAMES[name] for name in peers],
    [speed[name] for name in peers],
    color=["#d9480f" if name == "rebar" else "#adb5bd" for name in peers],
)
axes.bar_label(bars, [f"{speed[name]:,.0f}" for name in peers], padding=4)
axes.set_xlim(0, 1.1 * max(speed[name] for name in peers))
machine = stored["machine"]["processor"]
axes.set_xlabel(f"images/s on one core: decode, random crop to 224 px, flip ({machine}, {stored['date']})")
axes.spines[["top", "right"]].set_visible(False)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)
