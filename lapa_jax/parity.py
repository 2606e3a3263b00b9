"""What an export was compared in, and whether it passed."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Parity:
    """Measures with limits, and statements that are only told."""

    checks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    stated: dict[str, Any] = dataclasses.field(default_factory=dict)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """A measure that must not exceed its limit; NaN does."""
        value = value if isinstance(value, int) else float(value)
        self.checks[name] = {"value": value, "limit": limit, "passed": bool(value <= limit)}

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(one["passed"] for one in self.checks.values())

    def failures(self) -> str:
        return (
            ", ".join(
                f"{name}={one['value']} (at most {one['limit']})"
                for name, one in self.checks.items()
                if not one["passed"]
            )
            or "nothing was checked"
        )

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": self.checks, "stated": self.stated}
