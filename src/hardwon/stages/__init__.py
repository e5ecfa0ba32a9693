"""Stages: what a recipe is made of."""

from hardwon.stages.base import Stage, Workspace
from hardwon.stages.judges import ChatModel, Server
from hardwon.stages.learn import Backbone, Mine, Train
from hardwon.stages.measure import BuildIndex, Evaluate
from hardwon.stages.report import Query, WriteReport
from hardwon.stages.reselect import Reselect
from hardwon.stages.sample import SampleData

__all__ = [
    "Backbone",
    "BuildIndex",
    "ChatModel",
    "Evaluate",
    "Mine",
    "Query",
    "Reselect",
    "SampleData",
    "Server",
    "Stage",
    "Train",
    "Workspace",
    "WriteReport",
]
