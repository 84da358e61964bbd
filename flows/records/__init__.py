"""What MLflow, the Prefect UI and the page are told of a run."""
