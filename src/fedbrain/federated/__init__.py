"""Federated training: one client's task, the round loop, the apps and the grid that runs them in this process."""
