"""Registration with Feast, in process: what differs, the plan, and the carrying out.

A changed view gets a version beside the promoted one. Applying twice changes nothing.
"""
