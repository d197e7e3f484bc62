"""What a model may look at: tokens that its mask hides, padding that it does not hide, positions that do not count."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

QUERIES = 8  # of each row, where a mask says for each position what it sees; of the first batch, all
_LEAST_RUN = 2  # pad tokens in a row; one alone may be a row's own
_LEAST_RUN = 2  # pad tokens in a row; one alone may be the row's own first token
