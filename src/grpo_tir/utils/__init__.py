"""Files, package resources, Hub access, recipes."""
