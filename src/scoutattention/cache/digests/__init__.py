"""Digests: a few numbers per closed block and KV head that estimate a query's scores for the block's keys."""
