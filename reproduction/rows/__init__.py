"""The rows of the page, one file each or one for a few that share a measurement."""
