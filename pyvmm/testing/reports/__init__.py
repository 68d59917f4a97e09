"""A run's results written down: ``junit``, ``json_report``, ``ktap_report``, ``html``, each with ``write(report)``."""
