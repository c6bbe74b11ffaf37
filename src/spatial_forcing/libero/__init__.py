"""LIBERO: its installation checked, its tasks as worlds, a scripted expert, and demonstrations with depth.

    from spatial_forcing.libero.spec import LiberoSpec
    from spatial_forcing.libero.collect import collect

    root = collect(LiberoSpec(suite="libero_object", tasks=(0, 3), episodes=20), "demos")

Nothing of LIBERO is imported before it is used; ``install.load_libero`` says what is missing.
"""
