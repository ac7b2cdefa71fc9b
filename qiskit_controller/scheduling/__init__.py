"""Money and choice, as pure functions over plain values.

``cost``       what a run will use, and what that costs
``prices``     the price book
``budgets``    windows, reservations and charges of a budget
``selection``  which device is the right one for a job
"""
