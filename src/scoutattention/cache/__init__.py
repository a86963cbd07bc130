"""Where blocks live: pools, the host's pages, the device's slots, and the store that attention sees."""
