"""Shapes of tensors, in the words for axes that the package lists."""

from jaxtyping import Float
from torch import Tensor

InDomain = Float[Tensor, "block *domain"]
InCodomain = Float[Tensor, "block *codomain"]
Given = Float[Tensor, "block *given"]
Image = Float[Tensor, "block *image"]
States = Float[Tensor, "block trial *time unit"]
Outputs = Float[Tensor, "block trial *time output"]
Parameters = Float[Tensor, "block parameter"]
