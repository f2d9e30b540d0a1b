"""Plan: compile a step for devices that need not be there, and count what it needs."""
