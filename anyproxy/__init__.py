"""AnyProxy: a gateway with proxies and forwarded ports, whose connections its agents carry."""
