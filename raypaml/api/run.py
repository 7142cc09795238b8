"""A training run as an object: `raypaml.Run.train("digits")`, `raypaml.Run.open("runs/NAME")`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from raypaml.cli import command, say
from raypaml.config import TrainConfig
from raypaml.errors import told_as_user_errors
from raypaml.evaluation.result_records import RunResult, read_result
from raypaml.files import Place, as_texts
from raypaml.mapper import Processes
from raypaml.runs.history import read_history
from raypaml.runs.run_files import CONFIG, REPORT, RESULT, STATE
from raypaml.runs.run_folder import read_config
from raypaml.runs.run_settings import configured

if TYPE_CHECKING:  # what brings scipy and matplotlib is imported where it is used: no step waits for it
    import pyarrow as pa

    from raypaml.api.audited import Audited
    from raypaml.api.explained import Explained
    from raypaml.api.exported import Exported
    from raypaml.api.predicted import Predicted
    from raypaml.api.predicted_split import PredictedSplit
    from raypaml.auditing.answers import AnswersRecord
    from raypaml.evaluation.prediction_plan import SplitRequest
    from raypaml.inference.classifier import Classifier
    from raypaml.training.callbacks import Callback


class Run:
    """A run in its folder: its settings, its records, its result, and the uses of its model.

    Figures are read from the folder at each access, so that they are up to date also while another process trains.
    Methods do what the commands of the same name do, and take the flags' names with `_` for `-`. Their messages go to
    standard error, or nowhere with `progress=False`.
    """

    def __init__(self, path: Place, *, progress: bool = True, stopped: int = 0):
        self.path = Path(path).absolute()
        """The folder of the run, or that of one of its checkpoints, which methods then use instead of the best."""
        self.stopped = signal.Signals(stopped) if stopped else None
        """The signal, such as SIGINT, that stopped the training that gave this object; None where none did."""
        self._say: Callable[[str], None] = say if progress else lambda _: None

    @classmethod
    @told_as_user_errors()
    def train(
        cls,
        config_or_recipe: TrainConfig | Place = "digits",
        *,
        callbacks: Callback | Iterable[Callback] = (),
        progress: bool = True,
        **settings: Any,
    ) -> Self:
        """Train a run, or continue the one with this `name` and `storage`; test it, and write result and report.

        Args:
            config_or_recipe: name of a recipe, a configuration, or a file that holds one: the config.json of a run, the
                best.json of a search.
            callbacks: one or several, called on rank 0 at steps, epochs, checkpoints and the end: `raypaml.Callback`.
            progress: show progress, as a live display in a terminal or notebook, as lines elsewhere.
            settings: settings that `raypaml train --help` lists, such as `epochs=3, data="data/mine", workers=1`, in
                the place of those of the configuration.

        Returns:
            The run. Where Ctrl-C or SIGTERM stopped it, which is no error, `stopped` has the signal and `is_finished`
            is false; the same call goes on from there.

        Raises:
            UserError: what was asked cannot be done; RuntimeError: workers failed for another reason.
            CallbackError: a callback failed; the message names it.
            StoppedAtOnce: a second Ctrl-C or SIGTERM ended it without a further checkpoint.

        One worker without an address trains in this process, and `hang_seconds` without a step end it, a notebook's
        kernel too; with `address="local"` the worker has a process of its own. A process trains one run at a time.
        """
        from raypaml.reports.progress import Display, progress_console
        from raypaml.runs.run_length import is_finished
        from raypaml.runs.sole_writer import sole_writer
        from raypaml.training.callbacks import as_callbacks
        from raypaml.training.job import prepare_job

        heard_by = as_callbacks(callbacks)
        config = configured(config_or_recipe, settings).config
        with Display(progress_console(shown=progress)) as display:
            job = prepare_job(config, display.say)
            with sole_writer(job.folder, command("train"), display.say):
                if not is_finished(job.folder, job.config):
                    from raypaml.cluster.launch import fit

                    if stopped := fit(job, command("train"), display, heard_by):
                        return cls(job.folder, progress=progress, stopped=stopped)
                from raypaml.run_report.conclude import conclude_run

                display.conclude(conclude_run(job), job.folder / REPORT)
        return cls(job.folder, progress=progress)

    @classmethod
    @told_as_user_errors()
    def open(cls, path: Place, *, progress: bool = True) -> Self:
        """The run in a folder, finished or not, or with one of its checkpoints in the place of the best one.

        Raises:
            UserError: neither the folder of a run nor of one of its checkpoints.
        """
        run = cls(path, progress=progress)
        if not (run.folder / CONFIG).is_file():
            raise ValueError(f"{path}: neither the folder of a run nor one of its checkpoints; it has no config.json")
        return run

    # --- What is in its folder ----------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.path.parent.parent if self.is_checkpoint else self.path

    @property
    def is_checkpoint(self) -> bool:
        """Whether the run was opened by one of its checkpoints."""
        return (self.path / STATE).is_file()

    @property
    def name(self) -> str:
        """The name of the run, which is that of its folder."""
        return self.folder.name

    @property
    @told_as_user_errors()
    def config(self) -> TrainConfig:
        """All settings of the run."""
        return read_config(self.folder / CONFIG)

    @property
    def is_finished(self) -> bool:
        """Whether the run was trained to its end and tested."""
        return (self.folder / RESULT).is_file()

    @property
    @told_as_user_errors()
    def result(self) -> RunResult | None:
        """The test figures, such as `mean_ap` (0..1), and how training ended; None for an unfinished run."""
        return read_result(self.folder)

    @property
    def records(self) -> pa.Table:
        """A row for each epoch trained so far: `loss`, `validation_mean_ap`, `rejected`, `images_per_second`, ...

        Epochs count from 0, as in metrics.jsonl; a group of figures there is columns here, such as
        `validation_groups_G1`. The rejections by class are left out. `.to_pandas()` makes a DataFrame.
        """
        from raypaml.api.records import records_table

        return records_table(read_history(self.folder))

    @property
    @told_as_user_errors()
    def best_checkpoint(self) -> Path:
        """The folder of the checkpoint of best validation mAP, whose model is tested; UserError where there is none."""
        from raypaml.runs.models import tested_checkpoint

        return tested_checkpoint(self.folder)

    def __repr__(self) -> str:
        from raypaml.api.records import figures_text

        stopped = f", stopped by {self.stopped.name}" if self.stopped and not self.is_finished else ""
        return f"<Run {self.folder}: {figures_text(self.config, self.records, self.result)}{stopped}>"

    def __fspath__(self) -> str:  # so that another run may start from it, or be compared with it
        return str(self.path)

    # --- What is done with it -----------------------------------------------------------------------------------------

    @told_as_user_errors()
    def load(self, *, alpha: float | str = "", device: str = "cpu") -> Classifier:
        """The model, ready for pictures; see `raypaml.load`."""
        from raypaml.inference.classifier import load

        return load(self.path, device, alpha)

    @told_as_user_errors()
    def report(self, *, data: Place = "") -> RunResult:
        """Write result and report of a trained run again; returns the result. UserError for an unfinished run."""
        from raypaml.data.data_folder import open_folder, resolve_data
        from raypaml.run_report.conclude import conclude_run
        from raypaml.training.job import Job

        config = self.config
        folder = open_folder(resolve_data(str(data) or config.data.data, self._say), **config.data.opening)
        return conclude_run(Job(config.override({"name": self.name}), folder, self.folder))

    @told_as_user_errors()
    def evaluate(
        self,
        split: str = "",
        *,
        data: Place = "",
        choose_alpha: bool = False,
        out: Place = "",
        unobserved: bool = False,
        skip_budget: float | None = None,
        workers: int = 1,
        address: str = "",
        device: str = "auto",
    ) -> PredictedSplit:
        """Predict the missing parts of a split, and give its figures; `choose_alpha` chooses alpha on validation."""
        from raypaml.evaluation.prediction_plan import SplitRequest

        request = SplitRequest(
            split=split,
            data=str(data),
            choose_alpha=choose_alpha,
            out=str(out),
            unobserved=unobserved,
            skip_budget=skip_budget,
        )
        return self.evaluate_asked(request, Processes(workers, address, device))

    @told_as_user_errors()
    def evaluate_asked(self, request: SplitRequest, processes: Processes) -> PredictedSplit:
        """Do what `evaluate` does, from a request, such as the one that the flags of `raypaml evaluate` make."""
        from raypaml.api.predicted_split import predict_split_of

        predicted = predict_split_of(self.path, request, processes, self._say)
        if request.choose_alpha and self.is_finished and not self.is_checkpoint:
            self.report(data=predicted.data)
        return predicted

    @told_as_user_errors()
    def predict(
        self,
        images: Place | Sequence[Place],
        *,
        out: Place = "",
        top: int = 0,
        threshold: float | None = None,
        thresholds_from: Place = "",
        overlays: Place = "",
        background: str = "white",
        alpha: float | str = "",
        workers: int = 1,
        address: str = "",
        device: str = "auto",
    ) -> Predicted:
        """The classes of pictures in files, folders and shards, as a table or in a file; `load()` takes pictures."""
        from raypaml.api.predicted import PicturesRequest, predict_pictures
        from raypaml.inference.choice import ChoiceRequest

        request = PicturesRequest(
            images=as_texts(images),
            out=str(out),
            choosing=ChoiceRequest(top=top, threshold=threshold, thresholds_from=str(thresholds_from)),
            overlays=str(overlays),
            background=background,
            alpha=str(alpha),
        )
        return predict_pictures(self.path, request, Processes(workers, address, device), self._say)

    @told_as_user_errors()
    def explain(self, *, workers: int = 1, address: str = "", device: str = "auto", **settings: Any) -> Explained:
        """Show the maps of the model, compared with those of other runs; the settings are those of MapsRequest."""
        from raypaml.api.explained import explain_run
        from raypaml.explanations.explain_runs import MapsRequest

        return explain_run(self.path, MapsRequest(**settings), Processes(workers, address, device), self._say)

    @told_as_user_errors()
    def audit(self, *, workers: int = 1, address: str = "", device: str = "auto", **settings: Any) -> Audited:
        """List the training labels that are likely missing; the settings are those of AuditRequest."""
        from raypaml.api.audited import Audited
        from raypaml.auditing.audit_run import AuditRequest

        return Audited.of(self.path, AuditRequest(**settings), Processes(workers, address, device), self._say)

    @told_as_user_errors()
    def apply_answers(self, answers: Place, out: Place, *, data: Place = "") -> AnswersRecord:
        """Write a data set with people's answers to an audit; returns how many labels are new."""
        from raypaml.auditing.audit_run import AuditedRun

        return AuditedRun.open(self.folder, str(data), self._say).apply(Path(answers), Path(out))

    @told_as_user_errors()
    def export(self, out: Place = "", *, formats: str | Sequence[str] = (), alpha: float | str = "") -> list[Exported]:
        """Write the model for use elsewhere, each format compared with PyTorch's logits."""
        from raypaml.api.exported import ExportRequest, export_model

        request = ExportRequest(out=str(out), formats=as_texts(formats), alpha=str(alpha))
        return list(export_model(self.path, request, self._say))
