"""Whole runs on a simulated cluster, in simulated time: deterministic from a seed, no clock, no
threads.

For whoever wants to know how long a job would take on flaky nodes, what a retry policy would cost,
or whether the scheduler keeps its word in a world that he has thought out. The world has nodes that
come, are taken away with and without notice, flap, or are slow; gangs that find room, start and are
lost; ranks that take a time, fail, hang, run out of memory or take their worker down; reports that
are lost, late or repeated; a journal that fails; an autoscaler; and drivers that die and resume.

`python -m thornback.scheduler simulate` is the command line.
"""

from thornback.scheduler.simulate.classified import classified
from thornback.scheduler.simulate.gangside import (
    Deliver,
    GangGone,
    GangSide,
    Grace,
    KillRank,
    News,
    SimpleGang,
)
from thornback.scheduler.simulate.load import LoadStats
from thornback.scheduler.simulate.simulation import Simulation
from thornback.scheduler.simulate.values import (
    BadKind,
    BadNode,
    Incident,
    IncidentKind,
    Mishap,
    MishapKind,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
    Unfinished,
)

__all__ = [
    "BadKind",
    "BadNode",
    "Deliver",
    "GangGone",
    "GangSide",
    "Grace",
    "Incident",
    "IncidentKind",
    "KillRank",
    "LoadStats",
    "Mishap",
    "MishapKind",
    "News",
    "RunStats",
    "SimpleGang",
    "SimulatedCluster",
    "SimulatedFaults",
    "Simulation",
    "Unfinished",
    "classified",
]
