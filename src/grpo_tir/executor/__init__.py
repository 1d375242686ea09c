"""Run code in the sandbox: pools, Docker and process clients."""
