"""Training: settings, data, objectives, the loop with its checkpoints, and the protocol of stages.

config       Stage, TrainConfig, and the way from and to JSON
data         both series: checked, surveyed, cut into samples
alone        the same for a region alone
corrdiff     the same for pairs of coarse and fine fields, and what both stages of CorrDiff minimize
objectives   what each stage minimizes
batches      which samples an update sees, read ahead by threads
towers       a frozen global network, computed once and kept on disk
ranks        one process or many: DDP, FSDP2
engine       the loop
checkpoints  files that are complete or not there
protocol     train: stage after stage
adapting     a trained model on other grids and fewer variables
estimating   time and memory, measured before
finetuning   finetune: the same stages from a trained model
"""

from xscalemixer.training.config import CorrDiffConfig, Met2NetTrainConfig, Stage, TrainConfig
from xscalemixer.training.finetuning import finetune
from xscalemixer.training.objectives import channel_weights
from xscalemixer.training.protocol import train

__all__ = ["CorrDiffConfig", "Met2NetTrainConfig", "Stage", "TrainConfig", "channel_weights", "finetune", "train"]
