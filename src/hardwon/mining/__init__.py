"""Mining of hard negatives."""

from hardwon.mining.calibration import Calibration, calibrate
from hardwon.mining.ledger import Entry
from hardwon.mining.ledger import read as read_ledger
from hardwon.mining.run import Mined, Mining, mine
from hardwon.mining.select import AtRandom, Cyclic, Hardest, Selector

__all__ = [
    "AtRandom",
    "Calibration",
    "Cyclic",
    "Entry",
    "Hardest",
    "Mined",
    "Mining",
    "Selector",
    "calibrate",
    "mine",
    "read_ledger",
]
