"""Images and labels on the host: reading, writing, normalising, sampling; numpy only, no device."""
