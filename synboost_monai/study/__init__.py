"""Run a study: the whole chain from data to report as a DAG of bundle runs, defined in one YAML file."""
