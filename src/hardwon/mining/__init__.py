"""Mining of hard negatives."""

from hardwon.mining.calibration import Calibration, Canary, calibrate
from hardwon.mining.judgements import Answer, JudgementStore
from hardwon.mining.judging import Metered
from hardwon.mining.ledger import Entry
from hardwon.mining.ledger import read as read_ledger
from hardwon.mining.reselect import reselect
from hardwon.mining.run import Mined, mine
from hardwon.mining.select import AtRandom, Cyclic, Hardest, Margin, Selector, Survivors, TopK
from hardwon.mining.settings import Mining

__all__ = [
    "Answer",
    "AtRandom",
    "Calibration",
    "Canary",
    "Cyclic",
    "Entry",
    "Hardest",
    "JudgementStore",
    "Margin",
    "Metered",
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
