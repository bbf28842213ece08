"""From stored samples to batches on the device: decoded cache, transforms, views."""
