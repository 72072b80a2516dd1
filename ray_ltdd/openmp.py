"""Set before torch is imported: OpenMP threads that wait spin for a moment, then sleep.

Small networks meet a barrier every few microseconds, so a thread that sleeps at once loses time to waking up; one that spins on takes a core from
whatever else runs. Measured on 2 cores, milliseconds of a student's step with and without its teacher (ConvNet-3, 25 images): 39 and 31 without
spinning, 35 and 27 with this many turns, 39 and 30 with 50,000. Beside one busy process: 56 and 44, 70 and 51; with GNU OpenMP's own 300,000 turns a
small ConvNet had gone at a third of its speed there.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # what other OpenMP libraries go by
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
