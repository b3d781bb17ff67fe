"""Environment of a run."""

import pytest

from rebar.reporting.environment import environment, redact_secrets


def test_environment_describes_command_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/train_imagenet.py", "--hf-token", "abc"])
    described = environment()
    assert described["command"] == "train_imagenet.py --hf-token ***"
    assert "torch " in described["packages"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--hf-token abc --lr 1", "--hf-token *** --lr 1"),
        ("--wandb-api-key=abc", "--wandb-api-key=***"),
        ("--password --lr 1", "--password --lr 1"),
    ],
)
def test_redact_secrets_masks_values(command: str, expected: str) -> None:
    assert " ".join(redact_secrets(command.split())) == expected
