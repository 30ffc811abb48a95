"""Safety Representation Ranking: of several answers the safest is chosen by the model's own hidden states.

Source: Du et al. (arXiv 2505.15710). The model stays as it is; a ranker of less than five million weights is trained on
lists of its own answers, and `model.generate(…, best_of=8, ranker="srr")` takes the answer that it scores highest.
"""

from safealign.ranking.artefact import RANKER_FILE, load_ranker, ranker_block, save_ranker
from safealign.ranking.choosing import Ranking, drawing, require_answers, require_count
from safealign.ranking.fitting import Fitted, fit_ranker, score_with
from safealign.ranking.lists import StateList, collate, unaided
from safealign.ranking.network import Ranker
from safealign.ranking.picking import Picks, by_label, picks
from safealign.ranking.scorers import SCORERS, Scorer, make_scorer, reader
from safealign.ranking.settings import CandidateSettings, FitSettings, RankerSettings

__all__ = [
    "RANKER_FILE",
    "SCORERS",
    "CandidateSettings",
    "FitSettings",
    "Fitted",
    "Picks",
    "Ranker",
    "RankerSettings",
    "Ranking",
    "Scorer",
    "StateList",
    "by_label",
    "collate",
    "drawing",
    "fit_ranker",
    "load_ranker",
    "make_scorer",
    "picks",
    "ranker_block",
    "reader",
    "require_answers",
    "require_count",
    "save_ranker",
    "score_with",
    "unaided",
]
