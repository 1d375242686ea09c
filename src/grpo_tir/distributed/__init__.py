"""Run on several ranks: process groups, ZeRO, optimizer state, signals and hang detection."""
