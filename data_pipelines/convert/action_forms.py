"""Conventions of robot actions, by name: what a published set says, as who trains on it wants it.

Of a whole episode, in the order given. The last step of an episode has no action in RLDS: its
numbers are neither looked at nor changed. The last number of an action is the gripper's.

Sources: OpenVLA's transforms of Open X-Embodiment (`data_utils.py`: `binarize_gripper_actions`,
`rel2abs_gripper_actions`, `invert_gripper_actions`, `relabel_bridge_actions`), whose results these
are (tested).
"""

from collections.abc import Callable, Sequence

import numpy as np

MOVES = 6  # numbers of an action that move the hand
_OPEN, _CLOSED = 0.95, 0.05
_EVENT = 0.1


def _state_differences(actions: np.ndarray, states: np.ndarray) -> np.ndarray:
    found = actions.copy()
    found[:, :MOVES] = states[1:, :MOVES] - states[:-1, :MOVES]
    return found


def _binary_gripper(actions: np.ndarray, states: np.ndarray | None) -> np.ndarray:
    del states
    found = actions.copy()
    value = found[-1, -1]
    for step in range(len(found) - 1, -1, -1):
        gripper = found[step, -1]
        if gripper > _OPEN or gripper < _CLOSED:
            value = float(gripper > _OPEN)
        found[step, -1] = value
    return found


def _event_gripper(actions: np.ndarray, states: np.ndarray | None) -> np.ndarray:
    del states
    found = actions.copy()
    opens, closes = found[:, -1] < -_EVENT, found[:, -1] > _EVENT
    events = np.flatnonzero(opens | closes)
    value = 1.0 if not len(events) or closes[events[0]] else 0.0
    for step in range(len(found)):
        if opens[step] or closes[step]:
            value = float(opens[step])
        found[step, -1] = value
    return found


def _of_share(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Of grippers in 0..1."""

    def form(actions: np.ndarray, states: np.ndarray | None) -> np.ndarray:
        del states
        gripper = actions[:, -1]
        if len(beyond := np.flatnonzero(~((gripper >= 0) & (gripper <= 1)))):
            raise ValueError(
                f"the gripper of step {beyond[0]} is {gripper[beyond[0]]:g}, not in 0..1"
            )
        found = actions.copy()
        found[:, -1] = change(gripper)
        return found

    return form


# name → actions (T, A), states (T + 1, S) → actions (T, A)
FORMS: dict[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray]] = {
    "state_differences": _state_differences,
    "binary_gripper": _binary_gripper,
    "event_gripper": _event_gripper,
    "inverted_gripper": _of_share(lambda gripper: 1 - gripper),
    "signed_gripper": _of_share(lambda gripper: 2 * gripper - 1),
}


def check(forms: Sequence[str], action_dim: int, state_dim: int) -> None:
    """ValueError for forms that are not known, or not of actions and states of so many numbers."""
    if unknown := [name for name in forms if name not in FORMS]:
        raise ValueError(f"--action_forms {unknown[0]}: known are {', '.join(FORMS)}")
    if forms and not action_dim:
        raise ValueError(f"--action_forms {','.join(forms)}: there are no actions (--action_key)")
    if "state_differences" in forms and min(action_dim, state_dim) < MOVES:
        raise ValueError(
            f"--action_forms state_differences: the first {MOVES} numbers of actions become "
            f"differences of those of states; actions have {action_dim}, states {state_dim} "
            "(--state_key)"
        )


def formed(forms: Sequence[str], actions: np.ndarray, states: np.ndarray | None) -> np.ndarray:
    """Actions float32 (T, A) of an episode, whose last one means nothing, in these forms. states:
    float32 (T, S). ValueError for a gripper out of the range that a form is of."""
    if not forms or len(actions) < 2:
        return actions
    found = actions[:-1]
    for name in forms:
        try:
            found = FORMS[name](found, states)
        except ValueError as error:
            raise ValueError(f"--action_forms {name}: {error}") from error
    return np.concatenate([found.astype(np.float32), actions[-1:]])
