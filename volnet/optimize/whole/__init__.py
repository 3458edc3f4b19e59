"""Networks on whole volumes within a memory budget: :func:`whole_volume`, :func:`plan_whole_volume`."""
