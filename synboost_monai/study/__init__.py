"""A study: the whole chain from data to report as a DAG of bundle runs, set up by one YAML file."""
