"""Networks side by side with their peers: what ``volnet bench`` runs.

``networks``, ``peers`` and ``worker`` import nothing of volnet but each other: they also run in environments
whose torch volnet does not load with.
"""
