"""One DINOv2 pre-training step in plain eager PyTorch: a second opinion for the tests, and the peer of the benchmark.

The formulas of DINOv2 (arXiv 2304.07193) and LeJEPA (Balestriero and LeCun 2025) in our own words. Arrays are in
PyTorch's order: images (b, C, H, W); crops view-major (all of view 1, then all of view 2), as DINOv2 stacks them; one
process is one group. Student crops of the two sizes go through the backbone in two forwards. No stochastic depth.
"""
