"""The files in rn50_configs load, have headers with command and expectation, and have the published values."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from rebar.config import flatten_config, load_config_files, parse_config
from rebar.optim.optimizers import build_optimizer, parameter_groups, set_learning_rate
from rebar.optim.schedules import build_base_schedule, peak_lr
from rebar.training.config import TrainConfig, unused_options

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "rn50_configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
RUNNABLE = [name for name in NAMES if not name.endswith("_base.yaml")]
INSTANCES = [name for name in NAMES if re.fullmatch(r"[a-z0-9]+_\d+gpu\.yaml", name)]

# The values in ffcv-imagenet's rn50_configs and rn18_configs.
RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
COMMON = {
    "lr.lr_schedule_type": "cyclic",
    "resolution.min_res": 160,
    "resolution.max_res": 192,
    "training.label_smoothing": 0.1,
    "training.momentum": 0.9,
    "training.optimizer": "sgd",
    "training.use_blurpool": 1,
    "validation.lr_tta": True,
    "validation.resolution": 256,
}
RN50 = COMMON | {
    "model.arch": "resnet50",
    "lr.lr": 1.7,
    "training.batch_size": 512,
    "training.weight_decay": 1e-4,
    "dist.world_size": 8,
}
RN18 = COMMON | {
    "model.arch": "resnet18",
    "lr.lr": 0.5,
    "lr.lr_peak_epoch": 2,
    "training.batch_size": 1024,
    "training.weight_decay": 5e-5,
    "dist.world_size": 1,
}
# Options that do not affect the result: paths, hardware, and those that ffcv-imagenet never reads.
RN50_REST = {
    "data.in_memory": 1,
    "data.num_workers": 12,
    "logging.folder": "/tmp/",
    "training.distributed": 1,
}
RN18_REST = RN50_REST | {"training.distributed": 0, "logging.log_level": 0, "data.gpu": 0}

# vCPUs per GPU of the machine; 0 if the file is for several machines with one GPU.
WORKERS = {"g4dn_4gpu": 12, "g4dn_8gpu": 12, "g5_4gpu": 12, "g5_8gpu": 24, "g6_4gpu": 12, "p3_1gpu": 8}
WORKERS |= {
    "p3_4gpu": 8,
    "p3_8gpu": 8,
    "p4d_8gpu": 12,
    "p5_8gpu": 24,
    "g4dn_1gpu": 0,
    "g5_1gpu": 0,
    "g6_1gpu": 0,
}
SMALL_MEMORY = {"g4dn_1gpu", "g5_1gpu", "g6_1gpu", "p3_1gpu"}


def resolve(path, *arguments):
    data = ["--data.train_dataset", "train.beton", "--data.val_dataset", "val.beton"]
    return parse_config(TrainConfig, ["--config-file", str(path), *data, *arguments], description="test")


def value_of(config, path):
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


def header_of(name):
    lines = (CONFIGS / name).read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:count])


def reference_values(arch, epochs):
    start_ramp, end_ramp = RAMPS[epochs]
    length = {"training.epochs": epochs, "resolution.start_ramp": start_ramp, "resolution.end_ramp": end_ramp}
    return (RN50 if arch == "resnet50" else RN18) | length


@pytest.mark.parametrize("name", NAMES)
def test_config_file_loads_without_warnings(name, capsys):
    resolve(CONFIGS / name)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", NAMES)
def test_config_file_has_numbers_that_yaml_1_1_readers_understand(name):
    strings = {key: value for key, value in load_config_files([CONFIGS / name]).items() if isinstance(value, str)}
    assert not [key for key, value in strings.items() if re.fullmatch(r"[-+.\deE]+", value)]


@pytest.mark.parametrize("name", RUNNABLE)
def test_config_file_header_states_command_and_expected_top1(name):
    header = header_of(name)
    command = re.search(r"torchrun --nproc_per_node=(\d+) train_imagenet\.py --config-file (\S+)", header)
    assert command
    assert command[2] == f"rn50_configs/{name}"
    world_size = resolve(CONFIGS / name).dist.world_size
    assert int(command[1]) == (world_size or 1)
    assert "top-1" in header.lower()
    assert "measured" in header or name == "tiny.yaml"


@pytest.mark.parametrize("epochs", RAMPS)
def test_recipe_equals_ffcv_imagenet(epochs):
    config = resolve(CONFIGS / f"rn50_{epochs}_epochs.yaml")
    expected = reference_values("resnet50", epochs) | {"lr.lr_peak_epoch": 2}
    assert {path: value_of(config, path) for path in expected} == expected


@pytest.mark.parametrize("epochs", RAMPS)
def test_ramps_follow_documented_rule(epochs):
    assert RAMPS[epochs] == (epochs * 3 / 4 - 1, epochs * 7 / 8 - 1)


@pytest.mark.parametrize("epochs", RAMPS)
def test_recipe_trains_about_a_fifth_of_epochs_at_192_px(epochs):
    resolution = resolve(CONFIGS / f"rn50_{epochs}_epochs.yaml").resolution
    sizes = [resolution.at(epoch) for epoch in range(epochs)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {160, 192}
    assert 0.19 < sizes.count(192) / epochs <= 0.25


# Published values: epochs, global batch, learning rate, weight decay, training and validation resolutions.
PUBLISHED = {
    "mosaicml_mild": (36, 2048, 2.048, 5e-4, 88, 176, 224),
    "mosaicml_medium": (135, 2048, 2.048, 5e-4, 88, 176, 224),
    "rsb_a1": (600, 2048, 5e-3, 0.01, 224, 224, 224),
    "rsb_a2": (300, 2048, 5e-3, 0.02, 224, 224, 224),
    "rsb_a3": (100, 2048, 8e-3, 0.02, 160, 160, 224),
    "torchvision_v2": (600, 1024, 0.5, 2e-5, 176, 176, 224),
    "mlperf_lars": (37, 3200, 11.0, 5e-5, 224, 224, 224),
    "algoperf_nesterov": (149, 1024, 1.9487942250159782, 4.681534e-4, 224, 224, 224),
}
TECHNIQUES = {
    "mosaicml_mild": {"use_ema", "bce", "sgdw", "use_blurpool"},
    "mosaicml_medium": {"use_ema", "bce", "sgdw", "use_blurpool", "use_mixup"},
    "rsb_a1": {"bce", "lamb", "use_mixup", "use_cutmix", "use_randaugment"},
    "rsb_a2": {"bce", "lamb", "use_mixup", "use_cutmix", "use_randaugment"},
    "rsb_a3": {"bce", "lamb", "use_mixup", "use_cutmix", "use_randaugment"},
    "torchvision_v2": {"use_ema", "sgd", "use_mixup", "use_cutmix", "use_trivialaugment"},
    "mlperf_lars": {"lars"},
    "algoperf_nesterov": {"sgdw"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_recipes_have_published_values(name):
    config = resolve(CONFIGS / f"{name}.yaml")
    global_batch = config.training.batch_size * config.dist.world_size
    resolutions = (config.resolution.min_res, config.resolution.max_res, config.validation.resolution)
    found = (config.training.epochs, global_batch, config.lr.lr, config.training.weight_decay, *resolutions)
    assert found == PUBLISHED[name]
    enabled = {key.split(".")[1] for key, value in flatten_config(config).items() if value is True and "use_" in key}
    loss = {"bce"} if config.loss.loss_type == "bce" else set()
    assert enabled | loss | {config.training.optimizer} == TECHNIQUES[name]


@pytest.mark.parametrize(("name", "threshold"), [("rsb_a1", None), ("rsb_a2", 0.2), ("rsb_a3", 0.2)])
def test_rsb_recipes_have_published_threshold_and_warmup(name, threshold):
    config = resolve(CONFIGS / f"{name}.yaml")
    assert (config.loss.bce_threshold, config.training.label_smoothing > 0) == (threshold, threshold is None)
    assert config.lr.warmup_factor * config.lr.lr == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "name", [f"{name}.yaml" for name in PUBLISHED] + [name for name in RUNNABLE if name.startswith("rn50_")]
)
def test_imagenet_recipes_evaluate_at_224_and_256_px(name):
    assert resolve(CONFIGS / name).validation.final == (224, 256)


def rate_of(config, steps_per_epoch):
    """Return the learning rate of a recipe as a function of the step, for its global batch."""
    peak = peak_lr(config.lr, global_batch=config.training.batch_size * config.dist.world_size)
    epochs = config.training.epochs
    return build_base_schedule(config.lr, epochs=epochs, steps_per_epoch=steps_per_epoch, peak=peak)


# The constants of MLPerf's log, and the number of steps per epoch of NVIDIA's program: ceil(160145 / 400).
MLPERF = {"base": 11.0, "end": 0.0001, "power": 2, "warmup": 2 * 401, "steps": 37 * 401}


@pytest.mark.parametrize("step", [0, 1, 401, 801, 802, 803, 5000, 10_000, 35 * 401, 37 * 401 - 1])
def test_mlperf_recipe_has_the_published_learning_rate(step):
    if step <= MLPERF["warmup"]:
        expected = MLPERF["base"] * (step / MLPERF["warmup"])
    else:
        remaining = 1 - (step - MLPERF["warmup"]) / (MLPERF["steps"] - MLPERF["warmup"])
        expected = MLPERF["end"] + (MLPERF["base"] - MLPERF["end"]) * remaining ** MLPERF["power"]
    assert rate_of(resolve(CONFIGS / "mlperf_lars.yaml"), 401)(step) == pytest.approx(expected, rel=1e-9)


def test_mlperf_recipe_has_published_lars_and_target():
    config = resolve(CONFIGS / "mlperf_lars.yaml")
    assert (config.optimizer.lars_trust, config.training.momentum, config.training.target_top1) == (0.001, 0.9, 75.9)
    assert (config.training.label_smoothing, config.data.min_scale) == (0.1, 0.05)


# Point 1 of the submission's tuning_search_space.json, and the workload's step_hint.
ALGOPERF = {"learning_rate": 1.9487942250159782, "warmup_steps_fraction": 0.1, "weight_decay": 0.00024022723093685417}
ALGOPERF_STEPS = 186_666


@pytest.mark.parametrize("fraction", [0, 0.05, 0.0999, 0.1001, 0.25, 0.5, 0.75, 0.95, 0.999])
def test_algoperf_recipe_has_the_published_learning_rate(fraction):
    config = resolve(CONFIGS / "algoperf_nesterov.yaml")
    steps_per_epoch = 1_281_167 // 1024
    steps = config.training.epochs * steps_per_epoch
    assert abs(steps - ALGOPERF_STEPS) < steps_per_epoch / 2  # the nearest number of complete epochs
    step, peak = round(fraction * steps), ALGOPERF["learning_rate"]
    warmup = ALGOPERF["warmup_steps_fraction"] * steps
    decay = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    expected = peak * (step / warmup if step < warmup else decay)
    assert rate_of(config, steps_per_epoch)(step) == pytest.approx(expected, rel=1e-6)


def test_algoperf_recipe_has_the_published_decay_of_each_step():
    config = resolve(CONFIGS / "algoperf_nesterov.yaml")
    published = ALGOPERF["learning_rate"] * ALGOPERF["weight_decay"]  # at the peak
    assert config.training.weight_decay == pytest.approx(published, rel=1e-6)
    assert (config.training.momentum, config.training.label_smoothing) == (0.9721703824185486, 0.2)
    assert config.optimizer.nesterov


def test_algoperf_recipe_updates_weights_like_the_source():
    config = resolve(CONFIGS / "algoperf_nesterov.yaml")
    rate, momentum = rate_of(config, 1251), config.training.momentum
    weights = torch.nn.Linear(3, 2, bias=False, dtype=torch.float64)
    groups = parameter_groups(weights, config.training.weight_decay)
    name = config.training.optimizer
    optimizer = build_optimizer(name, groups, config.optimizer, momentum=momentum, peak_lr=config.lr.lr)
    expected, trace = weights.weight.detach().clone(), torch.zeros(2, 3, dtype=torch.float64)
    for step in range(18_000, 18_000 + 5):
        gradient = torch.full((2, 3), 0.1 * (step % 3) - 0.1, dtype=torch.float64)
        # trace(decay, nesterov), add_decayed_weights, scale by the learning rate: the submission's optax chain
        trace = gradient + momentum * trace
        decay = ALGOPERF["weight_decay"] * expected
        expected = expected - rate(step) * (gradient + momentum * trace + decay)
        weights.weight.grad = gradient
        set_learning_rate(optimizer, rate(step))
        optimizer.step()
    torch.testing.assert_close(weights.weight.detach(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["mosaicml_mild", "mosaicml_medium"])
def test_mosaicml_recipes_resize_in_small_steps(name):
    config = resolve(CONFIGS / f"{name}.yaml")
    epochs, ramp = config.training.epochs, config.resolution
    assert (ramp.start_ramp, ramp.end_ramp) == (round(0.4 * epochs), round(0.8 * epochs))
    sizes = [ramp.at(epoch) for epoch in range(epochs)]
    assert set(sizes) <= set(range(88, 177, 4))
    assert len(set(sizes)) >= 14


@pytest.mark.parametrize("name", NAMES)
def test_config_file_has_no_unused_options(name):
    assert list(unused_options(resolve(CONFIGS / name))) == []


def test_demo_reaches_its_largest_resolution():
    config = resolve(CONFIGS / "demo.yaml")
    sizes = [config.resolution.at(epoch) for epoch in range(config.training.epochs)]
    assert (sizes[0], sizes[-1]) == (config.resolution.min_res, config.resolution.max_res)


def test_each_recipe_and_instance_has_a_config_file():
    assert {f"rn50_{epochs}_epochs.yaml" for epochs in RAMPS} <= set(NAMES)
    assert {f"{name}.yaml" for name in WORKERS} == set(INSTANCES)


@pytest.mark.parametrize("name", INSTANCES)
def test_instance_sets_only_options_of_its_machine(name):
    own = {path for path, _ in flat(yaml.safe_load((CONFIGS / name).read_text()))}
    allowed = {"data.num_workers", "data.in_memory", "dist.world_size"}
    assert own == allowed | {"training.batch_size", "training.precision", "extends"}


def flat(content):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


@pytest.mark.parametrize("name", INSTANCES)
def test_instance_matches_its_machine(name):
    config, stem = resolve(CONFIGS / name), name.removesuffix(".yaml")
    family, gpus = re.fullmatch(r"(\w+)_(\d+)gpu", stem).groups()
    assert config.dist.world_size == int(gpus)
    assert config.training.precision == ("fp16" if family in ("g4dn", "p3") else "bf16")
    assert config.data.num_workers == WORKERS[stem]
    assert config.data.in_memory == ("false" if stem in SMALL_MEMORY else "true")


@pytest.mark.parametrize("name", [*INSTANCES, *(f"rn50_{epochs}_epochs.yaml" for epochs in RAMPS)])
def test_learning_rate_is_proportional_to_global_batch(name):
    config = resolve(CONFIGS / name)
    global_batch = config.training.batch_size * config.dist.world_size
    assert peak_lr(config.lr, global_batch=global_batch) == pytest.approx(1.7 * global_batch / 4096)
    assert resolve(CONFIGS / name, "--lr", "0.3").lr.lr_scaling == "none"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("demo.yaml", "tiny.yaml")])
def test_docs_list_every_config_file_with_its_values(name):
    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    if name in INSTANCES:
        config = resolve(CONFIGS / name)
        cells = [cell.strip() for cell in rows[0].split("|")]
        peak = peak_lr(config.lr, global_batch=config.training.batch_size * config.dist.world_size)
        expected = [config.training.batch_size, peak, config.training.precision]
        assert cells[4:7] == [str(value) for value in expected]
        assert int(cells[7].split()[0]) == config.data.num_workers
        assert cells[8] == config.data.in_memory
    else:
        assert f"`{name}`" in page


def test_documented_flags_change_the_length_of_an_instance():
    config = resolve(CONFIGS / "g5_4gpu.yaml", "--epochs", "88", "--start-ramp", "65", "--end-ramp", "76")
    recipe = resolve(CONFIGS / "rn50_88_epochs.yaml")
    assert (config.training.epochs, config.resolution) == (recipe.training.epochs, recipe.resolution)
    assert (config.training.batch_size, peak_lr(config.lr, global_batch=1024)) == (256, 0.425)


def test_documented_config_file_works(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text()
    own = re.search(r"```yaml\n# rn50_configs/(\S+)\n(.*?)```", page, re.DOTALL)
    path = tmp_path / own[1]
    path.write_text(own[2].replace("extends: ", f"extends: {CONFIGS}/"))
    flags = ["--epochs", "88", "--start-ramp", "65", "--end-ramp", "76"]
    assert resolve(path) == resolve(CONFIGS / "g5_4gpu.yaml", *flags)


@pytest.mark.parametrize("arch", ["resnet50", "resnet18"])
@pytest.mark.parametrize("epochs", RAMPS)
def test_ffcv_imagenet_config_files_load(arch, epochs, tmp_path, capsys):
    expected = reference_values(arch, epochs)
    values = expected | (RN50_REST if arch == "resnet50" else RN18_REST) | {"training.bn_wd": 0}
    if arch == "resnet18":
        values["training.weight_decay"] = "5e-5"  # text in YAML 1.1, as in its files
    sections = {}
    for path, value in values.items():
        section, name = path.split(".")
        sections.setdefault(section, {})[name] = value
    path = tmp_path / f"{arch}_{epochs}.yaml"
    path.write_text(yaml.safe_dump(sections))
    if arch == "resnet18":
        assert "weight_decay: 5e-5\n" in path.read_text()

    config = resolve(path)
    assert {key: value_of(config, key) for key in expected} == expected
    warnings = capsys.readouterr().err
    assert "training.bn_wd" in warnings
    assert ("data.gpu" in warnings) == (arch == "resnet18")
