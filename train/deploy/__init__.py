"""Deployment of a study's best trial: refit, gates, decision log, deployments folder and service.

Only this package writes or reads deployments. It imports `findings` and the packages below it. Only programs and paper
trading import it.
"""
