"""How a service is doing: metrics, and what serves them."""
