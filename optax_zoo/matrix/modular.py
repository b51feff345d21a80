"""How much each layer may change, from how the layers are composed (arXiv:2410.21265; `modula`'s abstract.py).

A module has a mass, its share in the change of whatever it is part of, and a sensitivity, the most that it magnifies
a change of its input. Atoms have weights; bonds have none, and no mass.
"""

import dataclasses
from collections.abc import Mapping

import jax
from jax.tree_util import keystr

from optax_zoo._core.hyper import Scalar, check_range, is_zero, number
from optax_zoo._core.naming import method, speaking_as, suggestion
from optax_zoo._core.rules import without_store
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import path_name


@dataclasses.dataclass(frozen=True)
class ModularNorm:
    """A module, as far as the norm of its weights goes; made by `modular_atom` and `modular_bond`.

    `outer @ inner` is the composition, `outer` applied to the output of `inner`; `a + b` both on one input, with their
    outputs added.

        mlp = modular_atom("head/kernel") @ modular_bond(2.0) @ modular_atom("hidden/kernel")
        tx = dualize("linear", target_norm=mlp.target_norms(params))

    Attributes:
      mass: at least 0.
      sensitivity: above 0.
      shares: of each leaf by its path, without the `value` at the end of a variable's, the norm of its update where
        that of the module is 1.
    """

    mass: Scalar
    sensitivity: Scalar
    shares: Mapping[str, Scalar]

    def __matmul__(self, inner: "ModularNorm") -> "ModularNorm":
        if not isinstance(inner, ModularNorm):
            return NotImplemented
        mass = self.mass + inner.mass
        return ModularNorm(
            mass,
            self.sensitivity * inner.sensitivity,
            _together(inner._scaled(inner.mass, mass * self.sensitivity), self._scaled(self.mass, mass)),
        )

    def __add__(self, other: "ModularNorm") -> "ModularNorm":
        if not isinstance(other, ModularNorm):
            return NotImplemented
        mass = self.mass + other.mass
        return ModularNorm(
            mass,
            self.sensitivity + other.sensitivity,
            _together(self._scaled(self.mass, mass), other._scaled(other.mass, mass)),
        )

    def _scaled(self, part: Scalar, whole: Scalar) -> dict[str, Scalar]:
        """The shares in a module of mass `whole`; none where nothing has mass."""
        return {path: share * (0.0 if is_zero(part) else part / whole) for path, share in self.shares.items()}

    def with_mass(self, mass: float) -> "ModularNorm":
        """The module with all its masses multiplied so that their sum is `mass` (`tare` in `modula`).

        Raises:
          ValueError: `mass` is negative, or the module has none to begin with.
        """
        with speaking_as("ModularNorm"):
            check_range("mass", mass, "[0, inf)")
        if is_zero(self.mass):
            raise ValueError("ModularNorm: a module without mass cannot be given one; give it to its atoms")
        return dataclasses.replace(self, mass=mass)

    def target_norms(self, params: PyTree, target_norm: float = 1.0) -> PyTree:
        """The `target_norm` of each leaf for `dualize`, where that of the whole module is `target_norm`.

        Args:
          params: the parameters, or their `jax.ShapeDtypeStruct`s.
          target_norm: norm of the update of the whole module, at least 0.

        Returns:
          A tree like `params` of numbers.

        Raises:
          ValueError: a leaf that is no atom, or an atom that is no leaf, named by its path; a negative `target_norm`.
        """
        with speaking_as("ModularNorm"):
            check_range("target_norm", target_norm, "[0, inf)")
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        names = [without_store(path_name(path)) for path, _ in flat]
        for path in self.shares:
            if path not in names:
                raise ValueError(f"ModularNorm: params has no leaf {path!r}{suggestion(path, names)}")
        for name, (path, _) in zip(names, flat, strict=True):
            if name not in self.shares:
                raise ValueError(f"ModularNorm: the leaf at {keystr(path)} is no atom of the module")
        return jax.tree.unflatten(treedef, [target_norm * self.shares[name] for name in names])


def _together(first: dict[str, Scalar], second: dict[str, Scalar]) -> dict[str, Scalar]:
    if twice := first.keys() & second.keys():
        raise ValueError(f"ModularNorm: the leaf {min(twice)!r} is an atom of both modules")
    return first | second


@method
def modular_atom(path: str, mass: float = 1.0, sensitivity: float = 1.0) -> ModularNorm:
    """A layer with weights in one leaf.

    Args:
      path: of the leaf, such as "block/kernel".
      mass: its share in the change of what it is part of, at least 0.
      sensitivity: the most that it magnifies its input, above 0; 1 for weights of norm 1.
    """
    share: dict[str, Scalar] = {without_store(path): 1.0}
    return ModularNorm(number("mass", mass, "[0, inf)"), number("sensitivity", sensitivity, "(0, inf)"), share)


@method
def modular_bond(sensitivity: float = 1.0) -> ModularNorm:
    """A layer without weights, such as a multiplication by `sensitivity`, or an activation with such a slope.

    Args:
      sensitivity: the most that it magnifies its input, above 0.
    """
    return ModularNorm(0.0, number("sensitivity", sensitivity, "(0, inf)"), {})
