"""A fuzzer of everything that raypaml reads: files are damaged by seeds, and each outcome must be a right one.

    python -m tests.fuzz                               # a thousand seeds over all kinds, as `make nightly` does
    python -m tests.fuzz --seed 17 --kind index        # the case of a finding again, with its traceback

`mutations` damages bytes, `subjects` says which files there are and how they are used, and `running` judges what came
of it in a process of its own, so that a crash of native code is a finding and not the end of the fuzzer.
"""
