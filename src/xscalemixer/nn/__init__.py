"""Networks: tensors in, tensors out, shapes stated in every ``forward``; no xarray here."""
