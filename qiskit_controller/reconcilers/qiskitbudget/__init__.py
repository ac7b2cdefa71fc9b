"""QiskitBudgets.

``ledger``      every change of a budget's record, by whoever makes it
``reconciler``  charges what jobs have cost, begins new periods, tells of thresholds
"""
