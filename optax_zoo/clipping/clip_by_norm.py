"""On the difficulty of training Recurrent Neural Networks: clipping the global norm.

Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, 2012, arXiv:1211.5063, Algorithm 1.
Where |g| >= max_norm, over the whole tree, g becomes g max_norm / |g|: optax's own function under the paper's name.
"""

from optax import clip_by_global_norm as clip_by_norm

__all__ = ["clip_by_norm"]
