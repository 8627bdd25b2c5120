"""Two volumes brought onto each other by frozen features, without training: ConvexAdam's scheme on patch tokens.

A coupled convex search on a coarse grid (Heinrich 2014) gives the start, Adam refines it on a finer one (Siebert et
al., "ConvexAdam", IEEE TMI); features as in FlexiCT and DINO-Reg, the principal components of the tokens of both.
"""
