"""Evaluation of policies on fixed episodes of any environment of LeRobot: ``spatial-forcing eval``.

``options.py`` the command's options; ``env_flags.py`` LeRobot's flags after ``--``; ``plan.py`` the episodes;
``rollout.py`` a batch of them; ``launch.py`` shares them over processes; ``results.py`` and ``table.py`` what
comes out; ``guards/`` what is compared before the first rollout.
"""
