"""Everything that knows Ray: session, expert hosts, the executor that sends them tasks."""
