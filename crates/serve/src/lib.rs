//! HTTP APIs, the web studio, keys, limits and metrics.
