"""The gateway by HTTP: the same service as by gRPC, and what a browser, a probe or Prometheus asks besides."""
