"""The benchmark of products: every form does the work that it is credited with."""

from benchmarks import products


def test_forms_are_credited_with_their_own_work() -> None:
    matrices = 2 * products.TOKENS * products.WIDTH * products.INNER
    attention = 2 * products.ROWS * products.HEADS * products.LENGTH**2 * products.SIZE
    for name, form in products.FORMS.items():
        assert products.flops(form) == (attention if name.startswith("attention") else matrices), name
