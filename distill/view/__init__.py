"""The viewer: a run's traces and answers as local pages, read from its files as they are."""
