"""The engine inside other projects' programs; each third party is imported in its own file only."""
