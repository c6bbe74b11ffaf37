"""Guards of an evaluation: what makes a good policy score zero, looked for before the first rollout.

``trained.py`` what a policy was trained on; ``shown.py`` what the environment shows, and how it answers to
recorded actions; ``cameras.py``, ``states.py``, ``actions.py`` compare the two; ``look.py`` runs them.
"""
