"""Mining of hard negatives."""

from hardwon.mining.calibration import Calibration, calibrate
from hardwon.mining.ledger import Entry
from hardwon.mining.ledger import read as read_ledger
from hardwon.mining.reselect import reselect
from hardwon.mining.run import Mined, Mining, mine
from hardwon.mining.select import AtRandom, Cyclic, Hardest, Margin, Selector, Survivors, TopK

__all__ = [
    "AtRandom",
    "Calibration",
    "Cyclic",
    "Entry",
    "Hardest",
    "Margin",
    "Mined",
    "Mining",
    "Selector",
    "Survivors",
    "TopK",
    "calibrate",
    "mine",
    "read_ledger",
    "reselect",
]
