"""What came of it: frames of orders, fills and P&L from a journal's rows."""
