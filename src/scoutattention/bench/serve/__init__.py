"""Load on a server over HTTP: how many requests it answers, and how long they wait."""
