"""The gateway: what clients call. It embeds a query, looks up its nearest neighbours and answers; it holds no state."""
