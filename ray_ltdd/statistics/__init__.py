"""Class moments, momentum schedules, targets and alignment losses."""
