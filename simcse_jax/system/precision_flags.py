"""Define the flags that say how precisely a command encodes."""

from absl import flags

DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the computation: float32 or bfloat16.")
PRODUCTS = flags.DEFINE_string(
    "products",
    "float32",
    "Factors of matrix products: float32; bfloat16 (rounded; fast on CPUs with matrix units); auto; int8 (on CPUs).",
)
