"""What the step that scores requests needs of a machine, in the YAML file.

```yaml
stream:
  inference:                    # optional: engines that choose machines heed it (Dataflow)
    accelerator: "type:nvidia-l4;count:1;install-nvidia-driver"
    min_ram: 8GB
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tidemill.pipelines.config.strict_yaml import Value

INFERENCE_KEYS: Final = ("accelerator", "min_ram")
_ACCELERATOR: Final = re.compile(r"type:[a-z0-9-]+;count:[1-9][0-9]*(;[a-z0-9:-]+)*")
_RAM: Final = re.compile(r"[0-9]+(\.[0-9]+)?(B|[KMGTP]i?B)")


@dataclass(frozen=True)
class InferenceOptions:
    """What the step that scores requests, and no other, needs of a machine.

    Engines that choose machines heed it: Dataflow. On others it changes nothing.

    Attributes:
        accelerator: The accelerator, as Dataflow names it.
        min_ram: The least memory.
    """

    accelerator: str | None = None
    min_ram: str | None = None

    @property
    def hints(self) -> Mapping[str, str]:
        """Beam's resource hints."""
        found = {"accelerator": self.accelerator, "min_ram": self.min_ram}
        return {name: value for name, value in found.items() if value is not None}


def read_inference(value: Value) -> InferenceOptions:
    """Read the section.

    Raises:
        ConfigurationError: A value cannot be used.
    """

    def text(like: re.Pattern[str], example: str, one: Value) -> str:
        if not like.fullmatch(found := one.text()):
            raise one.wrong(f"found {found!r}, expected one such as {example!r}")
        return found

    readers = {
        "accelerator": lambda one: text(
            _ACCELERATOR, "type:nvidia-l4;count:1;install-nvidia-driver", one
        ),
        "min_ram": lambda one: text(_RAM, "8GB", one),
    }
    return InferenceOptions(**value.section(INFERENCE_KEYS).read(readers))
