"""labkit measures, checks and plots for the course. One module or package per question; README.md has the map."""

__version__ = "0.1.0"
