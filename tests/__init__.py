"""The tests, by what they judge:

    lab/         the judges: a scripted router, a raw caller, the proxy as a process, slow and obvious readers
    unit/        one file for each module of the package, with values
    promises/    what the contract promises, from outside
    house/       the code's own rules, and the documents held to the code
    page/        the chat page: in a browser, and its parts without one
    corpus/      recorded answers, and what they must become
    fuzz/        frames, requests and bodies that a machine makes up; the two ways of an event against each other
    gate/        the shared gate: schedules of faults, a checker, a simulation
    routers/     real model servers and routers     clients/  real clients
    deploy/      files for Docker, systemd, launchd, Kubernetes, Prometheus, the edges
    bench/       what an event and a request cost    release/  mutants, advisories, a wheel that is used

What is no test is run by its name: python -m tests.soak, tests.picture, tests.measures, tests.simulate_silence,
tests.slow_connects, tests.coverage_pure, tests.coverage_shell, tests.environments.
"""
