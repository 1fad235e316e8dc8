"""Videos of evaluated episodes.

An evaluation draws nothing. It keeps the actions of the episodes that may be shown, and here these are played again,
from the same seed, with a renderer: one that is missing costs no scores, and what is seen is what was counted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..reporting.files import replacing, video_names
from .environments import install_hint, make_environments
from .rollouts import Job, Step, play

if TYPE_CHECKING:
    from .result import EvaluationResult


def record_videos(
    result: EvaluationResult, folder: str | os.PathLike[str], *, progress: bool = True
) -> dict[Path, float]:
    """Film the first episode of every target return, frame by frame, at the environment's own frame rate.

    Args:
        result: what `evaluate_policy` returned.
        folder: where the videos go; made if it does not exist.
        progress: whether to show a progress bar.

    Returns:
        The files, named by `video_names`, and the returns of the episodes that they show.

    Raises:
        ImportError: imageio or imageio-ffmpeg is not installed.
        OSError: nothing here can draw the environment, or the file cannot be written.
        ValueError: the environment draws no pictures, or the same actions came to another end in it than before.
    """
    import_imageio(result.env_id)
    _check_draws(result)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in result.episodes if row["episode"] == 0]
    paths = [folder / name for name in video_names([row["target_return"] for row in rows])]
    for path, row in zip(paths, rows, strict=True):
        with replacing(path) as draft:
            _film(result, row, draft, progress)
    return {path: row["return"] for path, row in zip(paths, rows, strict=True)}


def import_imageio(env_id: str) -> Any:
    """Return imageio's module, or say what is missing; the environment decides which extra is named."""
    try:
        import imageio.v2 as imageio
        from imageio_ffmpeg import get_ffmpeg_exe

        get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"Videos need imageio and imageio-ffmpeg ({error}); install them with: {install_hint(env_id)}"
        ) from error
    return imageio


def _check_draws(result: EvaluationResult) -> None:
    envs = make_environments(result.env_id, 1, env_kwargs=result.env_kwargs)
    modes = envs.metadata.get("render_modes") or []
    envs.close()
    if "rgb_array" not in modes:
        known = f"its render modes are {', '.join(map(str, modes))}" if modes else "it has no render modes"
        raise ValueError(f"{result.env_id} cannot be filmed: a video needs the render mode rgb_array, and {known}.")


def _film(result: EvaluationResult, row: dict[str, Any], path: Path, progress: bool) -> None:
    """Play an episode again and write what it looks like, from the reset to its last frame."""
    imageio = import_imageio(result.env_id)
    made: dict[str, Any] = {"render_mode": "rgb_array", "env_kwargs": result.env_kwargs}
    envs: Any = make_environments(result.env_id, 1, result.max_episode_steps, **made)
    try:
        follow(envs.envs[0].unwrapped)
        # Two, because the usual format of pixels halves colours in both directions: others would be stretched more.
        options = {"fps": envs.metadata.get("render_fps", 30), "macro_block_size": 2}
        with (
            closing(imageio.get_writer(path, format="FFMPEG", **options)) as writer,  # its own `with` leaks on errors
            tqdm(total=row["length"], desc="video", unit="frame", disable=not progress) as bar,
        ):
            replay = _Replay(result.env_id, envs, result.actions[row["target_return"]], writer, bar)
            over = [*play(envs, replay, [Job(row["seed"])], replay.observe)]
    finally:
        envs.close()
    if (replay.earned, replay.length, bool(over)) != (row["return"], row["length"], True):
        raise ValueError(
            f"{result.env_id} cannot be filmed: the episode with seed {row['seed']} returned {row['return']:g} in "
            f"{row['length']} steps, but the same actions played again {replay.earned:g} in {replay.length}: chance "
            "that the seed does not govern is at work in it."
        )


class _Replay:
    """An actor that repeats the actions (steps, ...) of one episode, and writes what it sees."""

    def __init__(self, env_id: str, envs: Any, actions: NDArray[Any], writer: Any, bar: tqdm):
        self.earned, self.length = 0.0, 0
        self._env_id, self._envs, self._actions, self._writer, self._bar = env_id, envs, actions, writer, bar

    def reset(self, jobs: Sequence[Job]) -> None:
        """Write the first frame."""
        self._writer.append_data(_first_frame(self._env_id, self._envs))

    def reset_rows(self, rows: NDArray[np.bool_], jobs: Sequence[Job]) -> None:
        """Do nothing: there is but one episode."""

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the next action."""
        return self._actions[self.length][None]

    def observe(self, step: Step) -> bool:
        """Write a frame, and stop behind the last action."""
        self._writer.append_data(self._envs.render()[0])
        self._bar.update()
        self.earned, self.length = self.earned + float(step.rewards[0]), self.length + 1
        return self.length == len(self._actions)


def follow(env: Any) -> None:
    """Film MuJoCo's robots with the camera that follows them, where their model has one: gymnasium 1.4 does not."""
    renderer = getattr(env, "mujoco_renderer", None)
    if renderer is None or renderer.camera_id != -1:
        return
    import mujoco

    renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")  # -1 if there is none


def _first_frame(env_id: str, envs: Any) -> NDArray[np.uint8]:
    """Return what the reset looks like; it shows whether there is a renderer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW's many, before the error that says the same
            return envs.render()[0]
    except Exception as error:  # each library has its own
        hint = ""
        if hasattr(envs.envs[0].unwrapped, "mujoco_renderer"):
            hint = " Without a display set MUJOCO_GL=egl, or MUJOCO_GL=osmesa where OSMesa is installed."
        raise OSError(f"{env_id} cannot be drawn here ({' '.join(str(error).split())}).{hint}") from error
