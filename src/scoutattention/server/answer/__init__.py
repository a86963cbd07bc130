"""Responses: their bodies, and how they are sent."""
