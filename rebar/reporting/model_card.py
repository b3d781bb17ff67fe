"""A trained model's card: what it is, how good, how it was made. The form is Hugging Face's README.md.

https://huggingface.co/docs/hub/model-cards: YAML between two lines of dashes, with a "model-index" of results, then
Markdown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from rebar.reporting.console import in_words, resolutions

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
_RESULTS = (
    ("val/top1", "accuracy", "top-1"),
    ("val/top5", "accuracy", "top-5"),
    ("val/top1_tta", "accuracy", "top-1, averaged with the mirror image"),
    ("val/top5_tta", "accuracy", "top-5, averaged with the mirror image"),
)


@dataclass(frozen=True)
class ModelFacts:
    """What a card says."""

    name: str
    arch: str
    parameters: int
    num_classes: int
    train_images: int
    resolution: int
    """Of validation, pixels."""
    metrics: Mapping[str, float]
    """Under the log's names; accuracies are shares of 1."""
    epochs: int
    recipe: str
    hardware: str
    train_seconds: float
    environment: Mapping[str, str]
    """Command, code, versions."""
    use_blurpool: bool
    in_torchvision: bool
    """Torchvision has a network of this name."""

    @property
    def dataset(self) -> str:
        """ImageNet where its numbers are ImageNet's."""
        imagenet = (self.train_images, self.num_classes) == (IMAGENET_IMAGES, IMAGENET_CLASSES)
        return "imagenet-1k" if imagenet else f"{self.num_classes} classes, {self.train_images:,} training images"


def model_card(facts: ModelFacts, files: Sequence[str]) -> str:
    """The card as text; ``files`` are the names of what lies beside it."""
    metadata = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    rows = [
        ("top-1, top-5 (%)", _pair(facts.metrics, "val/top1", "val/top5")),
        ("averaged with the mirror image", _pair(facts.metrics, "val/top1_tta", "val/top5_tta")),
        ("evaluated at", f"{facts.resolution} px, every validation image once"),
        *_at_other_resolutions(facts),
        ("data", facts.dataset),
        ("recipe", facts.recipe),
        ("trained", f"{facts.epochs} epochs in {in_words(facts.train_seconds)} (without validation)"),
        ("hardware", facts.hardware),
        *((name, f"`{value}`") for name, value in facts.environment.items() if value),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows if value)
    beside = "\n".join(f"- `{name}`" for name in files)
    return (
        f"---\n{metadata}---\n\n# {facts.name}\n\n"
        f"A {facts.arch} with {facts.parameters:,} parameters for {facts.num_classes:,} classes, trained with Rebar "
        f"from FFCV's .beton files.\n\n| | |\n| --- | --- |\n{table}\n\n{_usage(facts)}\n## Files\n\n{beside}\n"
    )


def _at_other_resolutions(facts: ModelFacts) -> list[tuple[str, str]]:
    rows = []
    for pixels in resolutions(facts.metrics):
        if pixels != facts.resolution:
            for words, name in ((f"at {pixels} px", "top{}"), (f"at {pixels} px, mirrored too", "top{}_tta")):
                first, second = (f"val/{name.format(k)}_{pixels}px" for k in (1, 5))
                rows.append((words, _pair(facts.metrics, first, second)))
    return rows


def _pair(metrics: Mapping[str, float], first: str, second: str) -> str:
    if metrics.get(first) is None:
        return ""
    return f"{100 * metrics[first]:.2f}, {100 * metrics[second]:.2f}"


def _metadata(facts: ModelFacts) -> dict[str, object]:
    metrics = [
        {"type": kind, "name": name, "value": round(100 * facts.metrics[key], 3)}
        for key, kind, name in _RESULTS
        if facts.metrics.get(key) is not None
    ]
    known = facts.dataset == "imagenet-1k"
    dataset = {"type": "imagenet-1k", "name": "ImageNet-1k"} if known else {"type": "other", "name": facts.dataset}
    task = {"type": "image-classification", "name": "Image Classification"}
    index = [{"name": facts.name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return {
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", facts.arch, "pytorch", "rebar", "ffcv"],
        **({"datasets": ["imagenet-1k"]} if known else {}),
        "metrics": ["accuracy"],
        "model-index": index,
    }


def _usage(facts: ModelFacts) -> str:
    note = ""
    if facts.use_blurpool or not facts.in_torchvision:
        imports = "from rebar.models.resnets import build_model"
        blurred = ", use_blurpool=True" if facts.use_blurpool else ""
        model = f'build_model("{facts.arch}", num_classes={facts.num_classes}{blurred})'
        if facts.in_torchvision:
            note = "It was trained with BlurPool, without which a plain torchvision model gives other results.\n\n"
    else:
        imports = "import torchvision"
        model = f"torchvision.models.{facts.arch}(num_classes={facts.num_classes})"
    return (
        f"{note}```python\n{imports}\nfrom safetensors.torch import load_file\n\n"
        f'model = {model}\nmodel.load_state_dict(load_file("model.safetensors"))\n```\n'
    )
