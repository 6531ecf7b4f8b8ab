"""Teachers: one file per engine that turns a request into a chain of thought."""
