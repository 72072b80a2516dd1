"""Multi-round choice of crops as the method describes it, with plain lists."""

import math


def choose(score_NM, n_slots, threshold, max_rounds):
    """Return the chosen (image, crop) in order, the rounds used, how many of them are below the threshold, and how many came after the rounds."""
    used, chosen, n_rounds = set(), [], 0
    while len(chosen) < n_slots and (max_rounds is None or n_rounds < max_rounds):
        n_rounds += 1
        offers = []
        for image, score_M in enumerate(score_NM):
            unused = [crop for crop in range(len(score_M)) if (image, crop) not in used]
            if unused:
                best = max(unused, key=lambda crop: (score_M[crop], -crop))
                offers.append((score_M[best], image, best))
        confident = [offer for offer in offers if math.exp(offer[0]) >= threshold]
        ranked = sorted(confident or offers, key=lambda offer: (-offer[0], offer[1]))
        for _, image, crop in ranked[: n_slots - len(chosen)]:
            used.add((image, crop))
            chosen.append((image, crop))
    n_after = n_slots - len(chosen)
    rest = [(-score, image, crop) for image, score_M in enumerate(score_NM) for crop, score in enumerate(score_M) if (image, crop) not in used]
    chosen += [(image, crop) for _, image, crop in sorted(rest)[:n_after]]
    n_below = sum(math.exp(score_NM[image][crop]) < threshold for image, crop in chosen)
    return chosen, n_rounds, n_below, n_after
