"""From a study's best trial to a deployment: refit, gates, decisions, the folder, the service.

The only place that writes or reads deployments. Imports `findings` and below; only programs and paper trading import
it.
"""
