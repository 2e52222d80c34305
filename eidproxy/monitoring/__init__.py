"""What operators see: log lines, metrics, `/status`."""
