"""Scopes, which select what a user sees, and the part of a scope that the kernel can evaluate."""

from portwatch.filters.filter import Filter
from portwatch.filters.kernel_filter import KernelFilter
from portwatch.filters.scope import Scope

__all__ = ["Filter", "KernelFilter", "Scope"]
