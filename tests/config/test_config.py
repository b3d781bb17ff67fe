"""Configuration: precedence, spellings, error messages, ``--help`` and ``--print-config``."""

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
    batch_size: int = option(512, help="images per step", minimum=1)
    use_blurpool: bool = option(False, help="blur")
    weight_decay: float = option(1e-4, help="weight decay", minimum=0, maximum=1)
    optimizer: Literal["sgd", "lamb"] = option("sgd", help="optimizer")
    limit: int | None = option(None, help="stop after this many steps")


@dataclass(frozen=True)
class ValidationSection:
    """Validation."""

    batch_size: int = option(256, help="images per step", minimum=1)
    name: str = option("", help="name")


@dataclass(frozen=True)
class Schema:
    """Two sections that both have a ``batch_size``."""

    training: TrainingSection = section(TrainingSection)
    validation: ValidationSection = section(ValidationSection)

    ignored_keys: ClassVar[Mapping[str, str]] = {"training.bn_wd": "it is never read"}


@dataclass(frozen=True)
class DataSection:
    """Data."""

    train_data: str = option(required=True, help="the images")


@dataclass(frozen=True)
class SchemaWithRequiredOption:
    """An option without a default."""

    data: DataSection = section(DataSection)


def parse(*args: str | Path) -> Schema:
    return parse_config(Schema, [str(arg) for arg in args], description="A test.")


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text("training: {epochs: 16, use_blurpool: 1}\n")
    return path


# ------------------------------------------------------------------ precedence


def test_parse_config_command_line_overrides_yaml_overrides_defaults(yaml_file: Path) -> None:
    assert parse().training.epochs == 30
    assert parse("--config-file", yaml_file).training == TrainingSection(epochs=16, use_blurpool=True)
    assert parse("--config-file", yaml_file, "--epochs", "3").training == TrainingSection(epochs=3, use_blurpool=True)
    assert parse("--epochs", "3", "-C", yaml_file).training.epochs == 3


def test_parse_config_later_file_overrides_earlier(yaml_file: Path, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("training.epochs: 88\n")
    both = parse("-C", yaml_file, "-C", tmp_path / "more.yaml")
    assert both.training == TrainingSection(epochs=88, use_blurpool=True)


@pytest.mark.parametrize("name", ["TRAINING_EPOCHS", "training.epochs", "epochs", "EPOCHS", "TRAINING.EPOCHS"])
def test_parse_config_ignores_environment(name: str, yaml_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    assert parse().training.epochs == 30
    assert parse("-C", yaml_file).training.epochs == 16


def test_extends_is_recursive_and_relative_to_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/all.yaml").write_text("training: {epochs: 1, batch_size: 1, weight_decay: 0.5}\n")
    (tmp_path / "base/more.yaml").write_text("extends: all.yaml\ntraining: {epochs: 2, batch_size: 2}\n")
    (tmp_path / "names.yaml").write_text("validation: {name: mine}\ntraining: {limit: 5}\n")
    (tmp_path / "my.yaml").write_text("extends: [base/more.yaml, names.yaml]\ntraining: {epochs: 3}\n")
    config = parse("-C", tmp_path / "my.yaml")
    assert config.training == TrainingSection(epochs=3, batch_size=2, weight_decay=0.5, limit=5)
    assert config.validation.name == "mine"


def test_config_name_is_stem_of_last_config_file() -> None:
    assert config_name(["--epochs", "3", "-C", "a/one.yaml", "--config-file=two.yaml"]) == "two"
    assert config_name(["--epochs", "3"]) is None


# ------------------------------------------------------------------ spellings


@pytest.mark.parametrize(
    ("args", "expected"),
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
def test_parse_config_accepts_flag_spellings(args: list[str], expected: dict[str, Any]) -> None:
    assert parse(*args).training == TrainingSection(**expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {weight_decay: 5e-5}", {"weight_decay": 5e-5}),  # text in YAML 1.1
        ("training: {weight_decay: 1}", {"weight_decay": 1.0}),
        ("training.epochs: 3", {"epochs": 3}),
        ("training: {use_blurpool: yes, limit: 3}", {"use_blurpool": True, "limit": 3}),
        ("training: {limit: null}", {"limit": None}),
        ("training: {limit: none}", {"limit": None}),
        ("training:", {}),
        ("# only a comment", {}),
    ],
)
def test_parse_config_accepts_yaml_spellings(text: str, expected: dict[str, Any], yaml_file: Path) -> None:
    yaml_file.write_text(text)
    assert parse("-C", yaml_file).training == TrainingSection(**expected)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("args", "code", "facts"),
    [
        (["--epoch", "3"], "config-unknown-option", ["--epoch (did you mean --epochs?)"]),
        (["--training.epcohs=3"], "config-unknown-option", ["--training.epcohs (did you mean --training.epochs?)"]),
        (["--foo=1", "--limits", "2", "--bar"], "config-unknown-option", ["--foo,", "--limits (did", "--bar."]),
        (["stray"], "config-unknown-option", ["stray"]),
        (["--batch-size", "3"], "config-ambiguous-option", ["--training.batch_size", "--validation.batch_size"]),
        (["--epochs", "0"], "config-invalid-value", ["--epochs = '0'", "an integer, at least 1"]),
        (["--epochs", "1.5"], "config-invalid-value", ["--epochs = '1.5'", "an integer"]),
        (["--epochs", "none"], "config-invalid-value", ["--epochs = 'none'", "an integer"]),
        (["--epochs"], "config-invalid-value", ["--epochs"]),
        (["--training.batch_size=0"], "config-invalid-value", ["--training.batch_size = '0'"]),
        (["--weight-decay", "2"], "config-invalid-value", ["a number from 0 to 1"]),
        (["--weight-decay", "much"], "config-invalid-value", ["'much'", "a number"]),
        (["--optimizer", "adam"], "config-invalid-value", ["one of sgd|lamb"]),
        (["--use-blurpool", "maybe"], "config-invalid-value", ["true or false"]),
        (["--limit", "few", "--epochs", "x"], "config-invalid-value", ["--limit = 'few'", "--epochs = 'x'"]),
    ],
    ids=str,
)
def test_parse_config_reports_errors_on_command_line(args: list[str], code: str, facts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*args)
    assert caught.value.code == code
    assert [fact for fact in facts if fact not in str(caught.value)] == []


@pytest.mark.parametrize("flag", ["--number-of-workers", "--btach"])
def test_parse_config_suggests_only_similar_options(flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(flag, "3")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code", "facts"),
    [
        ("training: {epoch: 3}", "config-unknown-option", ["training.epoch (did you mean training.epochs?)"]),
        ("validation: {epochs: 3}", "config-unknown-option", ["validation.epochs (did you mean training.epochs?)"]),
        ("training: 3", "config-unknown-option", ["training"]),
        ("training: {foo: 3, bar: 4}", "config-unknown-option", ["training.foo", "training.bar"]),
        ("training: {weight_decay: .nan}", "config-invalid-value", ["training.weight_decay = nan", "a number"]),
        ("training: {epochs: 3.5}", "config-invalid-value", ["training.epochs = 3.5", "an integer"]),
        ("training: {epochs: true}", "config-invalid-value", ["training.epochs = True", "an integer"]),
        ("training: {epochs: [3]}", "config-invalid-value", ["training.epochs = [3]", "an integer"]),
        ("training: {epochs: null}", "config-invalid-value", ["training.epochs = None", "an integer"]),
        ("training: {epochs: -3}", "config-invalid-value", ["training.epochs = -3", "an integer, at least 1"]),
        ("training: {use_blurpool: 2}", "config-invalid-value", ["training.use_blurpool = 2", "true or false"]),
        ("training: {optimizer: adam}", "config-invalid-value", ["one of sgd|lamb"]),
        ("training: {epochs: 3}\ntraining: {limit: 4}", "config-file-invalid", ["training"]),
        ("training.epochs: 3\ntraining: {epochs: 4}", "config-file-invalid", ["training.epochs"]),
        ("extends: 5", "config-file-invalid", ["extends", "5"]),
        ("extends: null", "config-file-invalid", ["extends", "None"]),
        ("- training", "config-file-invalid", ["list"]),
        ("training: {epochs: 3", "config-file-invalid", ["my.yaml:1:21"]),
        ("training:\n  epochs: 3\n limit: 4", "config-file-invalid", ["my.yaml:3:2"]),
        ("training:\n  epochs: 3\n  epochs: 4", "config-file-invalid", ["my.yaml:"]),
        ("training:\n  epochs: \0", "config-file-invalid", ["my.yaml:2:11"]),
        ("training: {use-blurpol: 1}", "config-unknown-option", ["(did you mean training.use_blurpool?)"]),
        ("training: {use-blurpool: 1, use_blurpool: 0}", "config-file-invalid", ["training.use_blurpool"]),
        ("extends: base.yaml", "config-file-not-found", ["base.yaml", "my.yaml"]),
    ],
)
def test_parse_config_reports_errors_in_yaml(text: str, code: str, facts: list[str], yaml_file: Path) -> None:
    yaml_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse("-C", yaml_file)
    assert caught.value.code == code
    facts = [*facts, "my.yaml"]
    assert "\n" not in str(caught.value)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_load_config_files_rejects_circular_extends(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml -> b\.yaml") as caught:
        load_config_files([tmp_path / "a.yaml"])
    assert caught.value.code == "config-file-invalid"


def test_load_config_files_suggests_files_with_similar_names(yaml_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"myy\.yaml.*my\.yaml") as caught:
        load_config_files([yaml_file.with_name("myy.yaml")])
    assert caught.value.code == "config-file-not-found"


def test_load_config_files_suggests_no_file_with_only_the_same_extension(tmp_path: Path) -> None:
    for name in ("e", "odd", "num"):
        (tmp_path / f"{name}.yaml").write_text("extends: nope.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config_files([tmp_path / "e.yaml"])
    assert caught.value.code == "config-file-not-found"
    assert "e.yaml extends" in str(caught.value)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("key", ["1", "z", "zz"])
def test_a_common_section_does_not_make_options_similar(key: str, yaml_file: Path) -> None:
    yaml_file.write_text(f"training: {{{key}: 2}}")
    for arguments in (("-C", yaml_file), (f"--training.{key}=2",)):
        with pytest.raises(ConfigError) as caught:
            parse(*arguments)
        assert caught.value.code == "config-unknown-option"
        assert "did you mean" not in str(caught.value)


def test_keys_in_yaml_may_have_hyphens(yaml_file: Path) -> None:
    yaml_file.write_text("training: {use-blurpool: true, weight-decay: 0.5}\nvalidation.batch-size: 8")
    config = parse("-C", yaml_file)
    assert (config.training.use_blurpool, config.training.weight_decay, config.validation.batch_size) == (True, 0.5, 8)
    yaml_file.write_text("weight-decay: 0.25")
    assert parse("-C", yaml_file).training.weight_decay == 0.25
    assert load_config_files([yaml_file]) == {"weight_decay": 0.25}


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00training"], ids=["folder", "binary"])
def test_load_config_files_rejects_unreadable_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"odd\.yaml") as caught:
        load_config_files([path])
    assert caught.value.code == "config-file-invalid"


def test_parse_config_warns_about_ignored_keys(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml_file.write_text("training: {bn_wd: 0, epochs: 3}")
    assert parse("-C", yaml_file).training.epochs == 3
    assert capsys.readouterr().err == "warning: training.bn_wd has no effect: it is never read\n"


def test_parse_config_requires_options_without_default(yaml_file: Path) -> None:
    with pytest.raises(ConfigError, match="--train-data") as caught:
        parse_config(SchemaWithRequiredOption, [], description="A test.")
    assert caught.value.code == "config-missing-option"
    yaml_file.write_text("data: {train_data: a.beton}")
    assert (
        parse_config(SchemaWithRequiredOption, ["-C", str(yaml_file)], description="A test.").data.train_data
        == "a.beton"
    )
    assert parse_config(SchemaWithRequiredOption, ["--train-data", "b"], description="A test.").data.train_data == "b"


def test_option_has_either_default_or_required() -> None:
    with pytest.raises(TypeError, match="either a default or required"):
        option(help="neither")
    with pytest.raises(TypeError, match="either a default or required"):
        option(1, help="both", required=True)


# ------------------------------------------------------------------ --help and --print-config


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        parse_config(TrainConfig, args, description="A test.")
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_print_config_output_is_equivalent_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--weight-decay", "5e-5", "--epochs", "3", "--lr-tta", "0", "--wandb-name", "on: #1", "--num-workers=2"]
    saved = tmp_path / "config.yaml"
    saved.write_text(printed([*args, "--print-config"], capsys))
    reread = parse_config(TrainConfig, ["-C", str(saved)], description="A test.")
    assert reread == parse_config(TrainConfig, args, description="A test.")
    assert reread.logging.wandb_name == "on: #1"
    complete = {f"{part}.{name}" for part, values in yaml.safe_load(saved.read_text()).items() for name in values}
    assert complete == flatten_config(TrainConfig()).keys()


def test_help_lists_each_option_once_with_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["--help-all"], capsys)
    words = " ".join(text.split())
    assert text.count("--epochs ") == 1
    assert "--training.batch_size" in text
    assert "--epochs N number of epochs [30]" in words
    assert "(an integer from 0 to 9223372036854775807) [0]" in words
    assert "e+" not in words
    assert "text:" not in words


# ------------------------------------------------------------------ properties

valid_configs = st.builds(
    Schema,
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


@settings(deadline=None, max_examples=50)
@given(config=valid_configs)
def test_config_round_trips_through_flatten_config_and_to_yaml(config: Schema) -> None:
    assert build_config(Schema, flatten_config(config)) == config
    assert Schema(**{name: _section(name)(**values) for name, values in _reread(config).items()}) == config


def _section(name: str) -> type:
    return {"training": TrainingSection, "validation": ValidationSection}[name]


def _reread(config: Schema) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = yaml.safe_load(to_yaml(config))
    return content


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Schema().training.epochs = 3  # type: ignore[misc]
