"""Will this flight arrive late? A project over the flights that left New York City in 2013.

Read in this order: ``README.md`` (what the data is), ``project.py`` (streams, features, label),
``model.py`` (preprocessing and model), ``ingest.py`` (how csv rows become events),
``tidemill.yaml`` (where the sources and stores are).
"""
