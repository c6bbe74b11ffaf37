"""OpenVLA and OpenVLA-OFT: the model, its released checkpoints, and its action statistics.

The library model alone: nothing here imports LeRobot. Start with `load_openvla` of `checkpoint` and
`inspect_checkpoint` of `inspect`.
"""
