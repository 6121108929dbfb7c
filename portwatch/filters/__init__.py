"""What a user asks to see, and the part of it that the kernel can evaluate."""

from portwatch.filters.filter import Filter
from portwatch.filters.kernel_filter import KernelFilter
from portwatch.filters.scope import Scope

__all__ = ["Filter", "KernelFilter", "Scope"]
