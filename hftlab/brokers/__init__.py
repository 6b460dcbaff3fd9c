"""Brokers: where order rows become orders, and the venue's word becomes REPORT rows."""
