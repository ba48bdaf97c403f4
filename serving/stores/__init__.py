"""Where stores are: the frozen places of online store, offline store and registry.

A place opens nothing. It says where a store is and how Feast configures it.
"""
