"""Learning-rate schedule of OpenVLA-OFT for LeRobot: constant, then a fraction of it from one step on."""

from dataclasses import dataclass

from lerobot.optim import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@LRSchedulerConfig.register_subclass("step_decay")
@dataclass
class StepDecayConfig(LRSchedulerConfig):
    """Schedule ``step_decay``: the learning rate is multiplied by ``factor`` at ``decay_step``.

    The public code of arXiv 2502.19645 multiplies by 0.1 at step 100,000 of 150,000.
    """

    num_warmup_steps: int | None = None
    decay_step: int = 100_000
    factor: float = 0.1

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
        # Not MultiStepLR: LeRobot cannot read its state back, whose steps are the keys of a dictionary.
        return LambdaLR(optimizer, lambda step: 1.0 if step < self.decay_step else self.factor)
