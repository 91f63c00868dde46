"""The models of an audit: a trained policy and the base model it was trained from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sera_plugin.host.checks import in_yaml
from sera_plugin.runtime.errors import SeraConfigError, first_line

ADAPTER, WHOLE = "adapter_config.json", "config.json"


@dataclass(frozen=True)
class Trained:
    """Where a trained policy is.

    Attributes:
        path: a folder, or a model's name on the hub.
        adapter: whether it is an adapter on the base model.
    """

    path: str
    adapter: bool


def find_policy(
    base_model: str, output_dir: str | None, policy: str | None, adapter: str | None
) -> Trained:
    """The policy that the options name, or the one that a run has left in ``output_dir``.

    Raises:
        SeraConfigError: one sentence, when there is none, or it is the base model itself.
    """
    if policy and adapter:
        raise SeraConfigError("--policy and --adapter can't be used together.")
    option = "--adapter" if adapter else "--policy"
    named = adapter or policy
    if not named:
        for name in (ADAPTER, WHOLE):
            if output_dir and (Path(output_dir) / name).is_file():
                return Trained(str(output_dir), name == ADAPTER)
        raise SeraConfigError(
            f"output_dir: {in_yaml(output_dir)} holds no trained model; train one, or name one "
            "with --policy or --adapter."
        )
    folder = Path(named)
    is_adapter = bool(adapter) or (folder / ADAPTER).is_file()
    if adapter and not (folder / ADAPTER).is_file():
        raise SeraConfigError(f"--adapter {named} holds no {ADAPTER}; name an adapter's folder.")
    if folder.exists() and not is_adapter and not (folder / WHOLE).is_file():
        raise SeraConfigError(f"{option} {named} holds no {WHOLE}; name a model's folder.")
    same = named == base_model or (folder.exists() and folder.resolve() == _resolved(base_model))
    if same:
        raise SeraConfigError(
            f"{option} {named} is base_model itself, so all margins would be 0; name a model that "
            "was trained from it."
        )
    return Trained(named, is_adapter)


def _resolved(name: str) -> Path | None:
    path = Path(name)
    return path.resolve() if path.exists() else None


@dataclass(frozen=True)
class AuditModels:
    """Loads the models through the host, one after the other, so one is in memory at a time.

    Attributes:
        cfg: the host's validated config; ``base_model`` is the reference.
        tokenizer: the run's.
        accelerator: places the models.
        trained: the policy.
    """

    cfg: Any
    tokenizer: Any
    accelerator: Any
    trained: Trained

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """πref, ready to score.

        Raises:
            SeraConfigError: one sentence, if it can't be loaded.
        """
        from sera_plugin.host.loading import refused_by_host
        from sera_plugin.scoring.scorer import inference

        with refused_by_host(f"base_model: {self.cfg.base_model}"):
            model = self._load(str(self.cfg.base_model))
        model = self._prepared(model)
        with inference(model):
            yield model

    @contextmanager
    def policy(self) -> Iterator[Any]:
        """πθ, ready to score.

        Raises:
            SeraConfigError: one sentence, if it can't be loaded.
        """
        from sera_plugin.scoring.scorer import inference

        try:
            if self.trained.adapter:
                from peft import PeftModel

                base = self._load(str(self.cfg.base_model))
                model = PeftModel.from_pretrained(base, self.trained.path)
            else:
                model = self._load(self.trained.path)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise SeraConfigError(
                f"{self.trained.path} can't be loaded: {first_line(error)}"
            ) from error
        model = self._prepared(model)
        with inference(model):
            yield model

    def _load(self, path: str) -> Any:
        from sera_plugin.host.loading import load_model

        return load_model(self.cfg, self.tokenizer, path)

    def _prepared(self, model: Any) -> Any:
        return self.accelerator.prepare_model(model, evaluation_mode=True)
