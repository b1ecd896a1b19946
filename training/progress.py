"""How fast a run goes, and what its log lines say of a step."""

import resource
import time

import torch

from models.alarms import SPREADS


class Meter:
    """Time and waiting since the last reading, by a clock that no change of the date can move."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._since, self._steps, self._samples, self._waited = time.monotonic(), 0, 0, 0.0

    def waited(self, seconds: float) -> None:
        """The step has waited so long for its batches."""
        self._waited += seconds

    def stepped(self, samples: int) -> None:
        """A step over that many samples, of all ranks, is done."""
        self._steps += 1
        self._samples += samples

    def read(self) -> dict[str, float]:
        """seconds_per_step, data_seconds of them, and samples_per_s since the last reading, which begins anew."""
        seconds = time.monotonic() - self._since
        found = {
            "seconds_per_step": seconds / max(self._steps, 1),
            "data_seconds": self._waited / max(self._steps, 1),
            "samples_per_s": self._samples / seconds,
        }
        self._begin()
        return found


def memory_gb(device: torch.device) -> float:
    """Peak memory in 10^9 bytes: of the GPU's tensors, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def format_seconds(seconds: float) -> str:
    """As h:mm:ss, or d d h:mm:ss from a day on."""
    days, rest = divmod(round(seconds), 86_400)
    hours, minutes = divmod(rest // 60, 60)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02d}:{rest % 60:02d}"


def summarize_losses(parts: dict[str, float]) -> str:
    """Total, the parts of the last head, the segmentations and the spreads, for the log line."""
    last = max(int(name.rsplit("_", 1)[1]) for name in parts if name.startswith("loss_cls_"))
    shown = {"loss": parts["loss"], "cls": parts[f"loss_cls_{last}"], "pts": parts[f"loss_pts_{last}"],
             "dir": parts[f"loss_dir_{last}"], "seg": parts["loss_seg"], "ground": parts["loss_ground"]}
    if "loss_scene" in parts:
        shown["scene"] = parts["loss_scene"]
    shown |= {name: parts[name] for name in SPREADS}
    return " ".join(f"{name} {value:.3f}" for name, value in shown.items())
