"""`postlane doctor`: the effective configuration with secrets masked, and every check of what is around it.

One module for each kind of thing that is looked at; `catalogue.py` has every check's name and why it matters,
`examine.py` puts them together. Checks are pure functions over what was told wherever they can be.
"""

from postlane.ops.doctor.effective import effective, masked_url
from postlane.ops.doctor.examine import Report, Wish, examine

__all__ = ["Report", "Wish", "effective", "examine", "masked_url"]
