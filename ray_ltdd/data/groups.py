"""Many-, medium- and few-shot classes, in which long-tailed results are reported.

Shapes: K classes.
"""

import numpy as np

GROUPS = ("many", "medium", "few")
COUNT_RULE = "by training images: many > 100, medium 20-100, few < 20"
THIRDS_RULE = "thirds of the classes by training images (the usual bounds 100 and 20 leave a group empty)"


def shot_groups(count_K: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the group of each class (str `[K]`, of `GROUPS`) and the rule that made them.

    Above 100 training images is many, 20 to 100 medium, below 20 few. Where that leaves a group empty: thirds of the
    classes, largest first (of equal classes the earlier counts as larger), the first groups one larger if K is no
    multiple of 3.

    Args:
        count_K: training images of each class.
    """
    name_G = np.array(GROUPS)
    group_K = name_G[np.where(count_K > 100, 0, np.where(count_K >= 20, 1, 2))]
    if len(np.unique(group_K)) == len(GROUPS):
        return group_K, COUNT_RULE
    largest_first_K = np.argsort(-count_K, kind="stable")
    for name, third in zip(GROUPS, np.array_split(largest_first_K, len(GROUPS)), strict=True):
        group_K[third] = name
    return group_K, THIRDS_RULE
