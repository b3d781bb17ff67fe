"""Settings: where they come from, what wins, and what a mistake is told."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rebar.config import (
    ConfigError,
    build_config,
    config_name,
    flatten_config,
    load_config_files,
    option,
    parse_config,
    section,
    to_yaml,
)
from rebar.training.config import TrainConfig


@dataclass(frozen=True)
class TrainingSection:
    """Training."""

    epochs: int = option(30, help="epochs", minimum=1)
    batch_size: int = option(512, help="images a step", minimum=1)
    use_blurpool: bool = option(False, help="blur first")
    weight_decay: float = option(1e-4, help="of the weights", minimum=0, maximum=1)
    optimizer: Literal["sgd", "lamb"] = option("sgd", help="optimizer")
    limit: int | None = option(None, help="stop after this many steps")


@dataclass(frozen=True)
class ValidationSection:
    """Validation."""

    batch_size: int = option(256, help="images a step", minimum=1)
    name: str = option("", help="what to call it")


@dataclass(frozen=True)
class Settings:
    """Two sections that share a last name, ``batch_size``."""

    training: TrainingSection = section(TrainingSection)
    validation: ValidationSection = section(ValidationSection)

    ignored_keys: ClassVar[Mapping[str, str]] = {"training.bn_wd": "nobody reads it"}


@dataclass(frozen=True)
class DataSection:
    """Data."""

    train_data: str = option(required=True, help="the images")


@dataclass(frozen=True)
class Needy:
    """A schema with a setting that has no default."""

    data: DataSection = section(DataSection)


def parse(*words: str | Path) -> Settings:
    return parse_config(Settings, [str(word) for word in words], description="A test.")


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text("training: {epochs: 16, use_blurpool: 1}\n")
    return path


# ------------------------------------------------------------------ who wins


def test_the_command_line_wins_over_yaml_over_defaults(yaml_file: Path) -> None:
    assert parse().training.epochs == 30
    assert parse("--config-file", yaml_file).training == TrainingSection(epochs=16, use_blurpool=True)
    assert parse("--config-file", yaml_file, "--epochs", "3").training == TrainingSection(epochs=3, use_blurpool=True)
    assert parse("--epochs", "3", "-C", yaml_file).training.epochs == 3


def test_of_two_files_the_later_wins(yaml_file: Path, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("training.epochs: 88\n")
    both = parse("-C", yaml_file, "-C", tmp_path / "more.yaml")
    assert both.training == TrainingSection(epochs=88, use_blurpool=True)


@pytest.mark.parametrize("name", ["TRAINING_EPOCHS", "training.epochs", "epochs", "EPOCHS", "TRAINING.EPOCHS"])
def test_the_environment_has_no_influence(name: str, yaml_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    assert parse().training.epochs == 30
    assert parse("-C", yaml_file).training.epochs == 16


def test_a_file_extends_others_that_extend_others(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/all.yaml").write_text("training: {epochs: 1, batch_size: 1, weight_decay: 0.5}\n")
    (tmp_path / "base/more.yaml").write_text("extends: all.yaml\ntraining: {epochs: 2, batch_size: 2}\n")
    (tmp_path / "names.yaml").write_text("validation: {name: mine}\ntraining: {limit: 5}\n")
    (tmp_path / "my.yaml").write_text("extends: [base/more.yaml, names.yaml]\ntraining: {epochs: 3}\n")
    config = parse("-C", tmp_path / "my.yaml")
    assert config.training == TrainingSection(epochs=3, batch_size=2, weight_decay=0.5, limit=5)
    assert config.validation.name == "mine"


def test_the_name_of_a_run_is_its_last_config_files() -> None:
    assert config_name(["--epochs", "3", "-C", "a/one.yaml", "--config-file=two.yaml"]) == "two"
    assert config_name(["--epochs", "3"]) is None


# ------------------------------------------------------------------ ways of writing


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--training.epochs", "3"], {"epochs": 3}),
        (["--training.epochs=3"], {"epochs": 3}),
        (["--epochs=3"], {"epochs": 3}),
        (["--training.batch_size=3"], {"batch_size": 3}),
        (["--training.batch-size", "3"], {"batch_size": 3}),
        (["--weight-decay", "5e-5"], {"weight_decay": 5e-5}),
        (["--weight_decay=5e-5"], {"weight_decay": 5e-5}),
        (["--use-blurpool"], {"use_blurpool": True}),
        (["--use-blurpool", "--epochs", "3"], {"use_blurpool": True, "epochs": 3}),
        (["--use-blurpool=1"], {"use_blurpool": True}),
        (["--use_blurpool", "true"], {"use_blurpool": True}),
        (["--training.use_blurpool=0"], {"use_blurpool": False}),
        (["--use-blurpool", "False"], {"use_blurpool": False}),
        (["--limit", "7"], {"limit": 7}),
        (["--limit", "7", "--limit=none"], {"limit": None}),
    ],
)
def test_spellings_on_the_command_line(words: list[str], expected: dict[str, Any]) -> None:
    assert parse(*words).training == TrainingSection(**expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {weight_decay: 5e-5}", {"weight_decay": 5e-5}),  # a string to YAML 1.1
        ("training: {weight_decay: 1}", {"weight_decay": 1.0}),
        ("training.epochs: 3", {"epochs": 3}),
        ("training: {use_blurpool: yes, limit: 3}", {"use_blurpool": True, "limit": 3}),
        ("training: {limit: null}", {"limit": None}),
        ("training: {limit: none}", {"limit": None}),
        ("training:", {}),
        ("# only a comment", {}),
    ],
)
def test_spellings_in_yaml(text: str, expected: dict[str, Any], yaml_file: Path) -> None:
    yaml_file.write_text(text)
    assert parse("-C", yaml_file).training == TrainingSection(**expected)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "unknown argument --epoch; did you mean --epochs?"),
        (["--training.epcohs=3"], "unknown argument --training.epcohs; did you mean --training.epochs?"),
        (["--batch-size", "3"], "--batch-size is ambiguous: write --training.batch_size or --validation.batch_size"),
        (["--epochs", "0"], "training.epochs = '0': expected an integer, at least 1"),
        (["--epochs", "1.5"], "training.epochs = '1.5': expected an integer"),
        (["--epochs", "none"], "training.epochs = 'none': expected an integer"),
        (["--epochs"], "expected one argument"),
        (["--weight-decay", "2"], "expected a number from 0 to 1"),
        (["--weight-decay", "much"], "expected a number"),
        (["--optimizer", "adam"], "expected one of sgd|lamb"),
        (["--use-blurpool", "maybe"], "expected true or false"),
        (["--limit", "few"], "expected an integer"),
        (["stray"], "unknown argument stray"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(*words)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "unknown setting 'training.epoch'; did you mean 'training.epochs'?"),
        pytest.param("validation: {epochs: 3}", "unknown setting 'validation.epochs'; did you mean 'training.epochs'?"),
        pytest.param("training: {weight_decay: .nan}", "training.weight_decay = nan: expected a number"),
        pytest.param("training: {epochs: 3}\ntraining: {limit: 4}", "is not valid YAML"),
        pytest.param("extends: 5", "extends"),
        pytest.param("extends: null", "extends"),
        ("training: {epochs: 3.5}", "training.epochs = 3.5: expected an integer"),
        ("training: {epochs: true}", "training.epochs = True: expected an integer"),
        ("training: {epochs: [3]}", "training.epochs = [3]: expected an integer"),
        ("training: {epochs: null}", "training.epochs = None: expected an integer"),
        ("training: {epochs: -3}", "training.epochs = -3: expected an integer, at least 1"),
        ("training: {use_blurpool: 2}", "training.use_blurpool = 2: expected true or false"),
        ("training: {optimizer: adam}", "expected one of sgd|lamb"),
        ("training: 3", "unknown setting 'training'"),
        ("- training", "must hold sections such as 'training:', not a list"),
        ("training: {epochs: 3", "is not valid YAML"),
        ("extends: base.yaml", "base.yaml does not exist"),
    ],
)
def test_mistakes_in_yaml_name_the_file(text: str, message: str, yaml_file: Path) -> None:
    yaml_file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        parse("-C", yaml_file)
    assert message in str(refused.value)
    assert ("base.yaml" if "base.yaml" in text else "my.yaml") in str(refused.value)


def test_files_that_extend_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match=r"extends itself, through a.yaml -> b.yaml"):
        load_config_files([tmp_path / "a.yaml"])


def test_a_missing_file_names_its_neighbours(yaml_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml does not exist; near it there is my.yaml"):
        load_config_files([yaml_file.with_name("mine.yaml")])


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00training"])
def test_a_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"odd.yaml cannot be read"):
        load_config_files([path])


def test_a_setting_without_effect_is_warned_of(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml_file.write_text("training: {bn_wd: 0, epochs: 3}")
    assert parse("-C", yaml_file).training.epochs == 3
    assert capsys.readouterr().err == "warning: training.bn_wd has no effect: nobody reads it\n"


def test_what_is_required_must_be_given(yaml_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"--train-data is required \(text\): the images"):
        parse_config(Needy, [], description="A test.")
    yaml_file.write_text("data: {train_data: a.beton}")
    assert parse_config(Needy, ["-C", str(yaml_file)], description="A test.").data.train_data == "a.beton"
    assert parse_config(Needy, ["--train-data", "b"], description="A test.").data.train_data == "b"


def test_a_knob_has_a_default_or_is_required() -> None:
    with pytest.raises(TypeError, match="either a default or required"):
        option(help="neither")
    with pytest.raises(TypeError, match="either a default or required"):
        option(1, help="both", required=True)


# ------------------------------------------------------------------ showing


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_config(TrainConfig, words, description="A test.")
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_printed_config_is_a_config_file_of_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--weight-decay", "5e-5", "--epochs", "3", "--lr-tta", "0", "--wandb-name", "on: #1", "--num-workers=2"]
    saved = tmp_path / "config.yaml"
    saved.write_text(printed([*words, "--print-config"], capsys))
    again = parse_config(TrainConfig, ["-C", str(saved)], description="A test.")
    assert again == parse_config(TrainConfig, words, description="A test.")
    assert again.logging.wandb_name == "on: #1"
    complete = {f"{part}.{name}" for part, values in yaml.safe_load(saved.read_text()).items() for name in values}
    assert complete == flatten_config(TrainConfig()).keys()


def test_help_tells_every_knob_once_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["--help"], capsys)
    assert text.count("--epochs ") == 1
    assert "--training.batch_size" in text
    assert "30" in text


# ------------------------------------------------------------------ properties

valid_settings = st.builds(
    Settings,
    training=st.builds(
        TrainingSection,
        epochs=st.integers(min_value=1),
        batch_size=st.integers(1, 4096),
        use_blurpool=st.booleans(),
        weight_decay=st.floats(0, 1),
        optimizer=st.sampled_from(["sgd", "lamb"]),
        limit=st.none() | st.integers(),
    ),
    validation=st.builds(ValidationSection, batch_size=st.integers(1, 4096), name=st.text()),
)


@settings(deadline=None, max_examples=100)
@given(config=valid_settings)
def test_any_config_survives_flattening_and_yaml(config: Settings) -> None:
    assert build_config(Settings, flatten_config(config)) == config
    assert Settings(**{name: _section(name)(**values) for name, values in _reread(config).items()}) == config


def _section(name: str) -> type:
    return {"training": TrainingSection, "validation": ValidationSection}[name]


def _reread(config: Settings) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = yaml.safe_load(to_yaml(config))
    return content


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().training.epochs = 3  # type: ignore[misc]
