"""Was the change real? CounterFact's and zsRE's protocols, the stricter ones beside them, runs, tables, sweeps."""

from engram.evaluation.evaluate import evaluate
from engram.evaluation.measuring import LIKELIHOODS, Scoring
from engram.evaluation.report import Cell, Report, Run
from engram.evaluation.scores import CaseScores
from engram.evaluation.scoring import score_case, score_cases
from engram.evaluation.sweep import Advice, Place, Sweep, advise, sweep
from engram.evaluation.tuning import tune
from engram.evaluation.verdicts import COLUMNS, Column, verdict

__all__ = [
    "COLUMNS",
    "LIKELIHOODS",
    "Advice",
    "CaseScores",
    "Cell",
    "Column",
    "Place",
    "Report",
    "Run",
    "Scoring",
    "Sweep",
    "advise",
    "evaluate",
    "score_case",
    "score_cases",
    "sweep",
    "tune",
    "verdict",
]
