"""Calls of the libraries of trackers, one small class each. Environment variables of theirs choose server and project.

Each class has:

- `__init__(name, known, settings)`: begins a run called `name`, or goes on with the one whose id is `known`
- `id`, `where`: its id, and where a person finds it
- `scalars`, `image`, `scores`: as in `Link`
- `close(how)`: finishes; `how` is "finished", "stopped" or "failed"
"""

import os
import time
from collections.abc import Iterator, Sequence


class Wandb:
    """Weights & Biases. WANDB_PROJECT is the project, WANDB_MODE=offline keeps all in ./wandb.

    Steps are on the axis global_step, as in its own copy of TensorBoard: those of wandb itself could not go back.
    """

    def __init__(self, name: str, known: str | None, settings: dict):
        import wandb

        quiet = wandb.Settings(silent=True, console="off", x_stats_pid=os.getppid())
        project = os.environ.get("WANDB_PROJECT", "jaxseg")
        self._run = wandb.init(project=project, name=name, id=known, resume="allow", settings=quiet)
        self._run.config.update(settings, allow_val_change=True)
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")
        self.id, self.where = self._run.id, self._run.url or os.path.dirname(self._run.dir)

    def scalars(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Logs a row of numbers for each step."""
        for step, values in rows:
            self._run.log(values | {"global_step": step})

    def image(self, tag: str, image, step: int) -> None:
        """Logs a picture."""
        import wandb

        self._run.log({tag: wandb.Image(image), "global_step": step})

    def scores(self, scores: dict[str, int | float], step: int) -> None:
        """Puts the best scores into the summary."""
        self._run.summary.update({f"best/{name}": value for name, value in scores.items()})

    def close(self, how: str) -> None:
        """Waits until all is sent."""
        self._run.finish(exit_code=int(how != "finished"))


class Mlflow:
    """MLflow. MLFLOW_TRACKING_URI is the server or database, MLFLOW_EXPERIMENT_NAME the experiment."""

    def __init__(self, name: str, known: str | None, settings: dict):
        import mlflow.entities

        self._client, self._entities = mlflow.MlflowClient(), mlflow.entities
        if known is None:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxseg")
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            tags = {"mlflow.source.name": "jaxseg.train"}
            self.id = self._client.create_run(number, run_name=name, tags=tags).info.run_id
            params = [
                mlflow.entities.Param(f"{group}.{key}", str(value)[:6000])
                for group, values in settings.items()
                for key, value in values.items()
            ]
            for some in _parts(params, 100):  # the most that a request may have
                self._client.log_batch(self.id, params=some)
        else:
            self.id = known
            self._client.update_run(known, status="RUNNING")  # parameters of a run cannot be changed
        self.where = f"run {self.id}"

    def scalars(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Logs numbers, in requests of at most 1000."""
        now = time.time_ns() // 10**6
        metrics = [self._entities.Metric(tag, x, now, step) for step, values in rows for tag, x in values.items()]
        for some in _parts(metrics, 1000):
            self._client.log_batch(self.id, metrics=some)

    def image(self, tag: str, image, step: int) -> None:
        """Logs a picture."""
        self._client.log_image(self.id, image, key=tag, step=step, synchronous=True)

    def scores(self, scores: dict[str, int | float], step: int) -> None:
        """Logs the best scores as metrics best/..."""
        self.scalars([(step, {f"best/{name}": value for name, value in scores.items()})])

    def close(self, how: str) -> None:
        """Sets the run's status."""
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[how]
        self._client.set_terminated(self.id, status)


class Aim:
    """Aim. Its repository is .aim in the current folder, or the one above it that has it."""

    def __init__(self, name: str, known: str | None, settings: dict):
        import aim

        quiet = {"system_tracking_interval": None, "capture_terminal_logs": False}
        self._aim = aim
        self._run = aim.Run(known, experiment="jaxseg", force_resume=known is not None, **quiet)
        self._run.name = name
        self._run["settings"] = settings
        self.id, self.where = self._run.hash, f"run {self._run.hash} in {self._run.repo.path}"

    def scalars(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Logs numbers."""
        for step, values in rows:
            for tag, value in values.items():
                self._run.track(value, name=tag, step=step)

    def image(self, tag: str, image, step: int) -> None:
        """Logs a picture."""
        self._run.track(self._aim.Image(image), name=tag, step=step)

    def scores(self, scores: dict[str, int | float], step: int) -> None:
        """Keeps the best scores as attributes of the run."""
        self._run["best"] = scores | {"step": step}

    def close(self, how: str) -> None:
        """Closes the run."""
        self._run["ended"] = how
        self._run.close()


def _parts(items: Sequence, most: int) -> Iterator[Sequence]:
    return (items[i : i + most] for i in range(0, len(items), most))


LIBRARIES = {"wandb": Wandb, "mlflow": Mlflow, "aim": Aim}
"""Classes by the names of --log."""
