"""A policy in other people's control loops: LeRobot's `select_action`, Gymnasium's environments.

Neither LeRobot, nor Gymnasium, nor torch is imported: their objects are used as they come.
"""

import dataclasses
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.convert.conversion import FITS
from data_pipelines.convert.looks import fit_image
from lapa_jax.envs.drive import drive
from lapa_jax.envs.env import EnvSpec
from lapa_jax.envs.execution import BY_RUN, Chunks, Execution, check_rate
from lapa_jax.runs.loaded import LoadedPolicy, check_texts
from lapa_jax.serving import fields


class LeRobotPolicy:
    """An action policy as LeRobot asks one: `reset()` before an episode, then `select_action` at
    every step of control.

    cameras: names of the observation's images in the order of training (`image_key`, then
    `extra_image_keys` of a corpus); "observation/image" is also found in {"observation": {"image":
    ...}}. Default: the one key that starts with "observation.images.", else one of
    `fields.IMAGES`.
    control_hz: of the calls; 0.0: that of the training data. Another one is refused where both are
    known; policies that see a history (`data.num_frames` > 1) must have one of them. Before
    an episode is as long as the history, its first frame stands for those before it, as in
    training. how: chunks are acted on (`lapa_jax.envs.execution`); default: after as many actions
    as the run says (evaluation.execution_horizon) the policy is asked again. state: name of the
    robot's state in the observation, for a policy that sees it;
    default: one of `fields.STATES`. resizing: "crop" or "pad", as `lapa data convert --fit` made
    the training data; only images of another size than the policy's are resized.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        *,
        cameras: Sequence[str] = (),
        control_hz: float = 0.0,
        resizing: str = "crop",
        state: str = "",
        how: Execution = BY_RUN,
    ):
        policy.require_head("action")
        check_rate(policy.control_hz, control_hz, "the policy", "the loop")
        control_hz = control_hz or policy.control_hz
        how = how.of(policy.execution_horizon)
        how.check(policy.stage.head.horizon)
        if resizing not in FITS:
            raise ValueError(f"resizing={resizing!r} is not one of {FITS}")
        data = policy.config.data
        if state and policy.stage.state is None:
            raise ValueError(f"state={state!r}: the policy was trained without the robot's state")
        self.policy, self.resizing = policy, resizing
        self.states = (state,) if state else fields.STATES
        count = policy.stage.num_cameras
        if cameras and len(cameras) != count:
            raise ValueError(f"cameras={list(cameras)}: the policy sees {count} of them")
        if not cameras and count > 1:
            raise ValueError(f"the policy sees {count} cameras: name them in cameras")
        self.cameras = tuple(cameras)
        self._apart = round(data.history_seconds * control_hz) if data.num_frames > 1 else 1
        if self._apart < 1:
            raise ValueError(
                f"control_hz={control_hz}: the policy sees {data.num_frames} frames, "
                f"{data.history_seconds} s apart, and needs the rate at which it is asked"
            )
        self._seen: deque[np.ndarray] = deque(maxlen=(data.num_frames - 1) * self._apart + 1)
        self._chunks = Chunks(how)  # of actions (B, n, action_dim)

    def reset(self) -> None:
        """Begins an episode: forgets what was seen."""
        self._seen.clear()
        self._chunks.reset()

    def select_action(self, observation: Mapping[str, Any]) -> Any:
        """The action float32 (action_dim,), or (B, action_dim), in the units of the training data.

        observation: "task" (or "prompt", "instruction"), a text or B texts, and an image of each
        camera: uint8 (H, W, 3) or (B, H, W, 3), or float in [0, 1] with channels first, (3, H, W)
        or (B, 3, H, W), as LeRobot makes them. NumPy arrays give a NumPy array, torch tensors a
        tensor on their device. Of a policy that sees the robot's state also that, float (S,) or
        (B, S) in the units of training; other keys are not looked at. Raises KeyError for what is
        missing, with what was given, and ValueError for an image or a state of another form.
        """
        names = [(name,) for name in self._keys(observation)] or [fields.IMAGES]
        given = [fields.find(observation, one, "camera") for one in names]
        images = [self._image(name, x) for (name, *_), x in zip(names, given, strict=True)]
        single = images[0].ndim == 3
        if len({image.shape for image in images}) > 1:
            raise ValueError("the cameras have different numbers of images")
        frame = np.stack([x[None] if single else x for x in images], axis=1)  # (B, cameras, ...)
        task = fields.find(observation, fields.TEXTS, "task")
        check_texts(task)
        texts = [task] if isinstance(task, str) else list(task)
        if len(texts) != len(frame):
            raise ValueError(f"{len(texts)} tasks for {len(frame)} images of a camera")
        if self._seen and self._seen[-1].shape != frame.shape:
            raise ValueError("another number of images than before: call reset() between episodes")
        self._seen.append(frame)
        if self._chunks.due:
            own = None
            if self.policy.stage.state:
                own = _array(fields.find(observation, self.states, "state"))
                own = own[None] if single else own
            self._chunks.answered(self._chunk(texts, own))
        actions = self._chunks.next()
        found = actions[0] if single else actions
        if hasattr(given[0], "detach"):  # a tensor, so torch is there
            return sys.modules["torch"].as_tensor(found, device=given[0].device)
        return found

    def _chunk(self, texts: list[str], own: np.ndarray | None) -> np.ndarray:
        """Actions (B, n, action_dim) of the steps from here on."""
        times = range(len(self._seen) - self._seen.maxlen, len(self._seen), self._apart)
        seen = np.stack([self._seen[max(0, t)] for t in times], axis=1)  # (B, frames, cameras, ...)
        seen = seen.reshape(len(texts), -1, *seen.shape[3:])
        if self.policy.stage.num_images == 1:
            seen = seen[:, 0]
        head, options = self.policy.stage.head, {}
        if self._chunks.how.delay and head.guided:
            options["going_on"] = self._chunks.going_on()
        actions = np.array(self.policy.predict_action(seen, texts, state=own, **options))
        return actions.reshape(len(texts), head.horizon, -1)

    def _keys(self, observation: Mapping[str, Any]) -> Sequence[str]:
        if not self.cameras:
            found = [key for key in observation if key.startswith("observation.images.")]
            if len(found) > 1:
                raise ValueError(f"the observation holds the cameras {found}: name one in cameras")
            self.cameras = tuple(found)
        return self.cameras

    def _image(self, key: str, image: Any) -> np.ndarray:
        """uint8 (..., H, W, 3) of the policy's size."""
        image = _array(image)
        if image.dtype.kind == "f" and image.ndim in (3, 4) and image.shape[-3] == 3:
            if not (image.min() >= 0.0 and image.max() <= 1.0):  # NaN, too
                raise ValueError(
                    f"{key} holds {image.min()} to {image.max()}: floats are in [0, 1]"
                )
            image = np.rint(np.moveaxis(image, -3, -1) * 255.0).astype(np.uint8)
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
            raise ValueError(
                f"{key} is {image.dtype}{list(image.shape)}: uint8 (..., height, width, 3), or "
                "float (..., 3, height, width) in [0, 1]"
            )
        size = tuple(self.policy.image_size)
        if image.shape[-3:-1] == size:
            return image
        flat = image.reshape(-1, *image.shape[-3:])
        made = [fit_image(x, size, self.resizing) for x in flat]
        return np.stack(made).reshape(*image.shape[:-3], *size, 3)


@dataclasses.dataclass(frozen=True)
class Episode:
    """What a rollout did, T steps of it."""

    actions: np.ndarray  # float32 (T, action_dim), in the units of the training data
    rewards: np.ndarray  # float64 (T,)
    terminated: bool
    truncated: bool  # by the environment, or at max_steps
    info: dict[str, Any]  # the last one


def rollout(
    policy: LoadedPolicy,
    env: Any,
    instruction: str,
    *,
    images: Sequence[str] = ("image",),
    control_hz: float = 0.0,
    resizing: str = "crop",
    state: str = "",
    how: Execution = BY_RUN,
    seed: int | None = None,
    max_steps: int = 1_000,
) -> Episode:
    """One episode of a Gymnasium environment, whose actions must be those of the training data.

        import gymnasium, lapa_jax

        policy, env = lapa_jax.load_policy("runs/action_vla"), gymnasium.make("MyRobot-v0")
        found = lapa_jax.rollout(policy, env, "push the red block", images=["front"], seed=0)
        print(found.rewards.sum())

    images: keys of the observation, a dict, that hold the cameras; () where the observation is the
    image. They are uint8 (H, W, 3); control_hz, resizing, state and how as of
    `LeRobotPolicy`. Actions
    go to `env.step` as they are: whether they fit its action space is for the environment to say.
    """
    asked = LeRobotPolicy(
        policy,
        cameras=images or ("image",),
        control_hz=control_hz,
        resizing=resizing,
        state=state,
        how=how,
    )
    asked.reset()
    observation, info = env.reset(seed=seed)
    seen = asked.states if policy.stage.state else ()
    spec = _unbounded(policy.stage.head.describe()["dim"], max_steps)
    stepped = _Stepped(env, spec, images, (observation, 0.0, False, False, info), seen)
    found = drive(
        stepped,
        lambda seen, texts, key: asked.select_action(seen | {"task": texts}),
        [stepped.last],
        [instruction],
        jax.random.key(0),  # nothing is drawn
        steps=max_steps,
    )
    _, _, terminated, truncated, info = stepped.last
    truncated = bool(truncated or not terminated)
    actions, rewards = found.actions[0, : len(stepped.rewards)], np.array(stepped.rewards)
    return Episode(actions, rewards, bool(terminated), truncated, info)


def _unbounded(dim: int, steps: int) -> EnvSpec:
    """Of an environment whose bounds are its own business: no action is clipped for it."""
    return EnvSpec(
        name="the environment",
        tasks=(),
        actions=tuple(f"action[{i}]" for i in range(dim)),
        action_low=(-np.inf,) * dim,
        action_high=(np.inf,) * dim,
        action_units=("of the data",) * dim,
        control_hz=0.0,
        horizon=steps,
        views=("all",),
        cameras=("all",),
        image_size=(0, 0),
        state=(),
        traceable=False,
    )


@dataclasses.dataclass
class _Stepped:
    """A Gymnasium environment as `drive` asks one. Its state is what its `step` said last."""

    env: Any
    spec: EnvSpec
    images: Sequence[str]
    last: tuple[Any, float, bool, bool, dict[str, Any]]
    states: Sequence[str]  # names that the robot's may have; (): it is not asked for
    rewards: list[float] = dataclasses.field(default_factory=list)

    def step(self, state: Any, action: np.ndarray) -> Any:
        self.last = self.env.step(action)
        self.rewards.append(float(self.last[1]))
        return self.last

    def success(self, state: Any) -> bool:
        """Whether the episode is over."""
        return bool(state[2] or state[3])

    def render(self, state: Any, size: Any, view: str) -> dict[str, Any]:
        if not self.images:
            return {"image": state[0]}
        found = {key: fields.find(state[0], (key,), "images") for key in self.images}
        if self.states:
            found[self.states[0]] = np.asarray(fields.find(state[0], self.states, "state"))
        return found


def _array(x: Any) -> np.ndarray:
    """Of an array or a tensor."""
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
