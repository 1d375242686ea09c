"""Write files, find package resources and models, and read recipes."""
