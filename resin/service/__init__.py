"""The service: takes samples in, detects, and shows findings as an API, a page and Prometheus metrics."""
