"""Attribution maps from any method, batched and on the device."""
