"""The body: hosts, slots, seeds, blueprints, optimiser surgery.

Start with `slot.py` (the life of a seed), then `host.py` and `model.py`. `operations.py` is how a decision gets there.
"""
