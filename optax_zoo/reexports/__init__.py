"""Methods of other libraries in the registry, so that `create`, the laws and the race treat all alike."""

from optax_zoo.reexports import optax_methods as optax_methods
