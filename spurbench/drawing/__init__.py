"""Pictures that are drawn by arithmetic, equal to the last bit on every machine, and datasets made of them.

Only exactly rounded operations are used (+ - * / sqrt, floor, min, max, abs): ``exp``, ``sin`` and the like differ in
their last bit between maths libraries and processors, which would change pixels. So edges are cubic smoothsteps, not
sigmoids, waves are triangles, and rotations are given by the tangent t of half their angle, since
cos = (1 - t²) / (1 + t²) and sin = 2 t / (1 + t²).
"""
