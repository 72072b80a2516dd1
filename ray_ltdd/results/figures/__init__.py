"""One figure a file. Every function takes data and returns a matplotlib Figure on the Agg canvas; saving it is the caller's.

Shares become percent on the axes. Nothing here uses pyplot, so figures leave no state behind.
"""
