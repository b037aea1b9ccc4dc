"""tinyedge: an edge runtime for small gateways that lose power and network without warning."""

__version__ = "0.1.0"
