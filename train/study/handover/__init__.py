"""From a study's winner to what is traded on paper: refit, gates, and deployments that are replaced in one step."""
