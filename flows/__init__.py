"""Sequencing, retries, logging: the only place of Prefect and MLflow. Nothing heavy is imported here."""
