"""Is it still right? The held-out text of the course, and perplexity by a sliding window.

The text is not in the repository: `data/eval/manifest.csv` names files of pinned packages with their SHA-256, and
`load_heldout` reads them from the installed environment. The models that the repository ships never saw these files.

Perplexity is exp(sum of negative log-likelihoods / number of units). It depends on the window, on the stride, on
whether a beginning-of-sequence token comes first, and on the unit; all four stand in the result.
"""

from labkit.quality.heldout import Document, Heldout, load_heldout
from labkit.quality.perplexity import Perplexity, compare_perplexity, estimate_perplexity, measure_perplexity

__all__ = [
    "Document",
    "Heldout",
    "Perplexity",
    "compare_perplexity",
    "estimate_perplexity",
    "load_heldout",
    "measure_perplexity",
]
