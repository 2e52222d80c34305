"""The shared gate's own tools: a real server, a record of what it did, a checker, schedules of faults, a simulation."""
