"""Which laws optax's methods break, and why."""

from collections.abc import Mapping

_BREAKS: Mapping[str, Mapping[str, str]] = {
    "complex_leaves": {
        "squares of complex entries are taken as they are, without the conjugate": "adadelta simplified_ademamix",
        "jnp.clip refuses complex numbers": "adopt rprop",
        "magnitudes and maxima of complex entries are taken without the conjugate": "cocob",
        "the noise of a complex leaf is not that of its two real parts": "noisy_sgd",
        "complex parameters are refused without naming the method": "sm3",
    },
    "defaults": {
        "eps_root is 1e-8 in adan and 0 in scale_by_adan": "adan",
        "clip_value_fn defaults to another function object in scale_by_adopt": "adopt",
        "eps is 1e-6 in novograd and 1e-8 in scale_by_novograd": "novograd",
    },
    "donation": {
        "fresh slots share buffers with the parameters or with each other": "cocob dog dowg mechanize prodigy",
    },
    "dtypes": {
        "scalars of the state are kept in the parameters' dtype": "dadapt_adamw dog dowg momo momo_adam prodigy",
        "float16 and bfloat16 parameters cannot be mixed": "mechanize",
        "the second moment of a leaf, a scalar, is kept in the parameters' dtype": "novograd",
        "the updates of mixed dtypes are promoted by the step size": "polyak_sgd",
    },
    "empty_leaves": {
        "0/0 on an empty tree": "dadapt_adamw prodigy",
        "a scalar has no axis to take maxima along": "sm3",
    },
    "init_sharding": {
        "the slots of jit(init) are not laid out like the parameters": (
            "acprop adadelta adagrad adam adamax adamaxw adamw adan adopt amsgrad cocob dadapt_adamw "
            "lamb lars lion momo momo_adam nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent "
            "prodigy radam rmsprop rprop signum simplified_ademamix sm3 yogi"
        ),
    },
    "inject_hyperparams": {
        "the function clip_value_fn is taken for a schedule": "adopt",
        "num_betas may not be traced": "mechanize",
    },
    "needs": {
        "the error about a missing argument does not name the method": (
            "acprop adadelta adamaxw adamw adan cocob dadapt_adamw dog dowg fromage lamb lars lion "
            "mechanize nadamw novograd prodigy simplified_ademamix"
        ),
        "the error about a missing argument is Python's own TypeError": "momo momo_adam polyak_sgd",
    },
    "purity": {
        "fresh slots share buffers with the parameters or with each other": "cocob dog dowg mechanize prodigy",
    },
    "ranges": {
        "numbers out of their range are accepted": (
            "acprop adadelta adagrad adam adamax adamaxw adamw adan adopt amsgrad clip_by_global_norm "
            "cocob dadapt_adamw dog dowg fromage lamb lars lion mechanize momo momo_adam nadam nadamw noisy_sgd "
            "novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd prodigy radam rmsprop rprop sgd "
            "sign_sgd signum simplified_ademamix sm3 yogi"
        ),
    },
    "schedules": {
        "b1 may not be a schedule": (
            "acprop adam adamax adamaxw adamw adan adopt amsgrad lamb lion momo_adam nadam nadamw novograd radam "
            "simplified_ademamix yogi"
        ),
        "rho may not be a schedule": "adadelta",
        "initial_accumulator_value may not be a schedule": "adagrad",
        "max_norm may not be a schedule": "clip_by_global_norm",
        "alpha may not be a schedule": "cocob optimistic_adam_v2 optimistic_gradient_descent",
        "eps may not be a schedule": "dadapt_adamw dog dowg prodigy",
        "min_norm may not be a schedule": "fromage",
        "trust_coefficient may not be a schedule": "lars",
        "weight_decay may not be a schedule": "mechanize",
        "beta may not be a schedule": "momo signum",
        "eta may not be a schedule": "noisy_sgd",
        "max_learning_rate may not be a schedule": "polyak_sgd",
        "decay may not be a schedule": "rmsprop",
        "learning_rate may not be a schedule": "rprop sm3",
    },
    "shard_map": {
        "norms and means are taken over one device's block": (
            "clip_by_global_norm dadapt_adamw dog dowg fromage lamb lars mechanize momo momo_adam "
            "novograd polyak_sgd prodigy sm3"
        ),
        "each device draws the noise of a whole leaf for its block": "noisy_sgd",
    },
    "tree_map_params": {
        "the second moment of a leaf is a scalar that counts as its parameter": "novograd",
        "maxima along several axes stand in lists in place of a leaf": "sm3",
    },
    "weight_decay": {
        "float16 and bfloat16 parameters cannot be mixed": "dog dowg",
        "norms and means are taken over one device's block": "lamb",
    },
    "zero_gradient": {
        "eps rounds to 0 in float16, 0/0": (
            "acprop adam adamax adamaxw adamw adan amsgrad cocob dadapt_adamw mechanize momo_adam nadam nadamw "
            "novograd optimistic_adam_v2 rmsprop simplified_ademamix"
        ),
        "eps rounds to 0 in float16, inf * 0": "dog",
        "the norm of the parameters over min_norm overflows float16, inf * 0": "fromage",
        "0/0 until the first gradient that is not zero": "prodigy",
    },
}
"""Law -> reason -> the methods it holds for, separated by spaces."""


def breaks_of(name: str) -> dict[str, str]:
    """Law -> reason for one method."""
    return {law: why for law, reasons in _BREAKS.items() for why, names in reasons.items() if name in names.split()}
