"""Model card of a trained model, in the format of the Hugging Face Hub.

https://huggingface.co/docs/hub/model-cards: YAML metadata with a "model-index" of results, then Markdown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from rebar.cli import escape_control_characters
from rebar.reporting.console import final_resolutions, format_duration

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
_RESULTS = (
    ("val/top1", "accuracy", "top-1"),
    ("val/top5", "accuracy", "top-5"),
    ("val/top1_tta", "accuracy", "top-1 with flip TTA"),
    ("val/top5_tta", "accuracy", "top-5 with flip TTA"),
)


@dataclass(frozen=True)
class ModelFacts:
    """The content of a model card.

    - resolution: validation resolution in px.
    - metrics: by their names in the log; accuracies are fractions.
    - environment: command, code and versions.
    - in_torchvision: whether torchvision has this architecture.
    """

    name: str
    arch: str
    parameters: int
    num_classes: int
    train_images: int
    resolution: int
    metrics: Mapping[str, float]
    epochs: int
    recipe: str
    hardware: str
    train_seconds: float
    environment: Mapping[str, str]
    use_blurpool: bool
    in_torchvision: bool

    @property
    def dataset(self) -> str:
        """The name of the dataset: ImageNet if the numbers of images and classes match."""
        imagenet = (self.train_images, self.num_classes) == (IMAGENET_IMAGES, IMAGENET_CLASSES)
        return "imagenet-1k" if imagenet else f"{self.num_classes} classes, {self.train_images:,} training images"


def model_card(facts: ModelFacts, files: Sequence[str]) -> str:
    """Return the model card as text; ``files`` are the names of the files that are published with it."""
    metadata = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    rows = [
        ("top-1, top-5 (%)", _pair(facts.metrics, "val/top1", "val/top5")),
        ("with flip TTA", _pair(facts.metrics, "val/top1_tta", "val/top5_tta")),
        ("evaluated at", f"{facts.resolution} px, each validation image once"),
        *_other_resolutions(facts),
        ("data", facts.dataset),
        ("recipe", facts.recipe),
        ("trained", f"{facts.epochs} epochs in {format_duration(facts.train_seconds)} (without validation)"),
        ("hardware", facts.hardware),
        *((name, f"`{value}`") for name, value in facts.environment.items() if value),
    ]
    table = "\n".join(f"| {name} | {_escape_cell(value)} |" for name, value in rows if value)
    file_list = "\n".join(f"- `{name}`" for name in files)
    return (
        f"---\n{metadata}---\n\n# {facts.name}\n\n"
        f"A {facts.arch} with {facts.parameters:,} parameters for {facts.num_classes:,} classes, trained with Rebar "
        f"from FFCV's .beton files.\n\n| | |\n| --- | --- |\n{table}\n\n{_usage(facts)}\n## Files\n\n{file_list}\n"
    )


def _escape_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return escape_control_characters(text).replace("|", r"\|")


def _other_resolutions(facts: ModelFacts) -> list[tuple[str, str]]:
    rows = []
    for pixels in final_resolutions(facts.metrics):
        if pixels != facts.resolution:
            for heading, name in ((f"at {pixels} px", "top{}"), (f"at {pixels} px with flip TTA", "top{}_tta")):
                top1, top5 = (f"val/{name.format(k)}_{pixels}px" for k in (1, 5))
                rows.append((heading, _pair(facts.metrics, top1, top5)))
    return rows


def _pair(metrics: Mapping[str, float], top1: str, top5: str) -> str:
    if metrics.get(top1) is None:
        return ""
    return f"{100 * metrics[top1]:.2f}, {100 * metrics[top5]:.2f}"


def _metadata(facts: ModelFacts) -> dict[str, object]:
    metrics = [
        {"type": kind, "name": name, "value": round(100 * facts.metrics[key], 3)}
        for key, kind, name in _RESULTS
        if facts.metrics.get(key) is not None
    ]
    is_imagenet = facts.dataset == "imagenet-1k"
    dataset = (
        {"type": "imagenet-1k", "name": "ImageNet-1k"} if is_imagenet else {"type": "other", "name": facts.dataset}
    )
    task = {"type": "image-classification", "name": "Image Classification"}
    index = [{"name": facts.name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return {
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", facts.arch, "pytorch", "rebar", "ffcv"],
        **({"datasets": ["imagenet-1k"]} if is_imagenet else {}),
        "metrics": ["accuracy"],
        "model-index": index,
    }


def _usage(facts: ModelFacts) -> str:
    note = ""
    if facts.use_blurpool or not facts.in_torchvision:
        imports = "from rebar.models.build import build_model"
        blurpool = ", use_blurpool=True" if facts.use_blurpool else ""
        model = f'build_model("{facts.arch}", num_classes={facts.num_classes}{blurpool})'
        if facts.in_torchvision:
            note = "The model uses BlurPool. torchvision's model has the same parameters, but other outputs.\n\n"
    else:
        imports = "import torchvision"
        model = f"torchvision.models.{facts.arch}(num_classes={facts.num_classes})"
    return (
        f"{note}```python\n{imports}\nfrom safetensors.torch import load_file\n\n"
        f'model = {model}\nmodel.load_state_dict(load_file("model.safetensors"))\n```\n'
    )
